//! Why a snapshot has no such value.

use ktstr_proto::{scx_stats::MissingStatsReason, word::edits};
use thiserror::Error;

/// Names that are listed in place of one that is not there.
const LISTED: usize = 3;

/// Why a snapshot has no such value. What is there instead is part of it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// The capture was not taken.
    #[error("{tag} was not taken: {why}")]
    PlaceholderSample {
        /// Its tag.
        tag: String,
        /// Why not.
        why: String,
    },
    /// The scheduler said nothing of itself before this capture.
    #[error("{tag} has no statistics of the scheduler: {why}")]
    MissingStats {
        /// Its tag.
        tag: String,
        /// Why not.
        why: MissingStatsReason,
    },
    /// No capture has this tag.
    #[error("no snapshot `{tag}`{there}")]
    TagNotFound {
        /// The tag asked for.
        tag: String,
        /// The nearest that are there.
        there: Near,
    },
    /// No map has this name.
    #[error("no BPF map `{name}`{there}")]
    MapNotFound {
        /// The name asked for.
        name: String,
        /// The nearest that are there.
        there: Near,
    },
    /// Several maps have this name, and not just one of them is the running scheduler's.
    #[error("`{name}` is the name of several maps ({}): ask for one by its whole name", maps.join(", "))]
    AmbiguousMap {
        /// The name asked for.
        name: String,
        /// The maps.
        maps: Vec<String>,
    },
    /// No variable has this name.
    #[error("no variable `{name}` in .bss, .data or .rodata{there}")]
    VarNotFound {
        /// The name asked for.
        name: String,
        /// The nearest that are there.
        there: Near,
    },
    /// Several maps have a variable of this name.
    #[error("`{name}` is a variable of several maps ({}): ask one by `map(…)`", maps.join(", "))]
    AmbiguousVar {
        /// The name asked for.
        name: String,
        /// The maps.
        maps: Vec<String>,
    },
    /// No such member.
    #[error("no member `{field}` in `{of}`{there}")]
    FieldNotFound {
        /// The member asked for.
        field: String,
        /// The place where it was looked for.
        of: String,
        /// The nearest that are there.
        there: Near,
    },
    /// It has no members.
    #[error("`{of}` is {found}, which has no member `{field}`")]
    NotAStruct {
        /// The place.
        of: String,
        /// The member asked for.
        field: String,
        /// What is there.
        found: String,
    },
    /// It is of another kind.
    #[error("`{of}` is {found}, which is no {wanted}")]
    TypeMismatch {
        /// The place.
        of: String,
        /// What was asked for.
        wanted: &'static str,
        /// What is there.
        found: String,
    },
    /// There are fewer elements.
    #[error("`{of}` has {len} elements, none at {index}")]
    IndexOutOfRange {
        /// The place.
        of: String,
        /// The index asked for.
        index: u64,
        /// How many there are.
        len: u64,
    },
    /// No value for this CPU.
    #[error("`{of}` has values for {cpus} CPUs, none for CPU {cpu}")]
    PerCpuSlot {
        /// The place.
        of: String,
        /// The CPU asked for.
        cpu: u32,
        /// For how many there are.
        cpus: usize,
    },
    /// Each CPU has a value of its own.
    #[error("`{of}` has a value for each of {cpus} CPUs: choose one by `cpu(…)`")]
    PerCpuNotNarrowed {
        /// The place.
        of: String,
        /// For how many there are.
        cpus: usize,
    },
    /// No entry is as asked.
    #[error("none of the {entries} entries of `{map}` matches")]
    NoMatch {
        /// The map.
        map: String,
        /// How many entries there are.
        entries: usize,
    },
    /// The capture does not hold all entries.
    #[error("the capture does not hold all of `{map}`: {left_off} entries were left off {damage}")]
    Incomplete {
        /// The map.
        map: String,
        /// How many are missing for their number.
        left_off: u64,
        /// Why others could not be read.
        damage: String,
    },
    /// A path with nothing between its dots.
    #[error("`{path}` is no path: a name is missing between its dots, or a bracket is not closed")]
    EmptyPathComponent {
        /// The path.
        path: String,
    },
    /// The monitor could not read it, or this kernel lacks it.
    #[error("`{of}` has no value: {why}")]
    NoRendered {
        /// The place.
        of: String,
        /// Why.
        why: String,
    },
}

/// Names that are there, nearest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Near(Vec<String>);

impl std::fmt::Display for Near {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.is_empty() {
            true => f.write_str("; there are none"),
            false => write!(f, "; nearest: {}", self.0.join(", ")),
        }
    }
}

/// The names nearest to `name`.
pub(super) fn near<'n>(name: &str, there: impl Iterator<Item = &'n str>) -> Near {
    let mut all: Vec<(usize, &str)> = there.map(|own| (edits(name, own), own)).collect();
    all.sort_unstable();
    all.dedup();
    Near(all.into_iter().take(LISTED).map(|(_, own)| own.to_owned()).collect())
}

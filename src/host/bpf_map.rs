//! Numbers in BPF maps: what the host sets before a test's workers start, and what it samples while they run.
//!
//! ```
//! # use ktstr::prelude::*;
//! const SLOW: BpfMapWrite = BpfMapWrite::new(".bss", "slow_ns", 5_000_000);
//! const QUEUED: WatchBpfMap = WatchBpfMap::new(".bss", "nr_enqueued", Aggregate::ScalarCounter, "queued");
//! ```

use ktstr_guest::scenario::{Ctx, HostError};
use ktstr_proto::map_watch::{Aggregate, MapWatch};

/// A number that the host writes into a map of the scheduler's programs, once they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BpfMapWrite {
    /// The map's name, or the end of it: `.bss` is the map of global variables.
    pub map: &'static str,
    /// Where in it: `slow_ns`, `[3].weight`.
    pub path: &'static str,
    /// The number.
    pub value: i64,
}

impl BpfMapWrite {
    /// `value` at `path` in `map`.
    pub const fn new(map: &'static str, path: &'static str, value: i64) -> Self {
        assert!(!map.is_empty(), "a BPF map needs a name, or the end of one");
        assert!(!path.is_empty(), "a path in the map is needed: a variable's name, or `[key]`");
        Self { map, path, value }
    }
}

/// A value in a map that the host samples while the test's scenarios run; what comes of it is a metric of the
/// run, see [`super::VmResult::run_metric`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchBpfMap {
    /// The map's name, or the end of it.
    pub map: &'static str,
    /// Where in it.
    pub path: &'static str,
    /// What the samples become.
    pub aggregate: Aggregate,
    /// Last part of the metric's name; the first is the map's without its section.
    pub label: &'static str,
}

impl WatchBpfMap {
    /// What is at `path` in `map`, as the metric `label`.
    pub const fn new(
        map: &'static str,
        path: &'static str,
        aggregate: Aggregate,
        label: &'static str,
    ) -> Self {
        assert!(!map.is_empty(), "a BPF map needs a name, or the end of one");
        assert!(!path.is_empty(), "a path in the map is needed: a variable's name, or `[key]`");
        assert!(!label.is_empty(), "a metric needs a name");
        Self { map, path, aggregate, label }
    }

    pub(crate) fn wanted(&self) -> MapWatch {
        let Self { map, path, aggregate, label } = *self;
        MapWatch { map: map.into(), path: path.into(), aggregate, label: label.into() }
    }
}

/// Has the host write them, one after the other.
pub(crate) fn write_all(ctx: &Ctx, writes: &[BpfMapWrite]) -> Result<(), HostError> {
    writes.iter().try_for_each(|write| ctx.write_map(write.map, write.path, write.value))
}

//! Which tests and cells an executable lists: all, those that a budget of its own has room for, or what
//! was planned for it beside others.
//!
//! `KTSTR_BUDGET_SECS` alone is a budget for this executable. Whoever starts several asks each for an
//! offer first and then gives them one plan ([`ktstr_proto::budget`]), which outranks the budget. Tests
//! that wait to be asked for are none of a budget's business, nor are their cells.

use std::{
    collections::BTreeSet,
    env, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use ktstr_proto::budget::{self as choosing, Candidate, Offer, Plan};

use super::{Cell, budget, durations, listing::set};
use crate::host::{self, KtstrTestEntry};

/// Seconds that the chosen tests may take.
const BUDGET: &str = "KTSTR_BUDGET_SECS";

/// Why no list can be given.
#[derive(Debug, thiserror::Error)]
pub(super) enum SelectionError {
    /// The budget is no number.
    #[error("{BUDGET}=`{given}` is no whole number of seconds")]
    Budget {
        /// What it is instead.
        given: String,
    },
    /// What this executable holds cannot be told.
    #[error("cannot write the offer for the budget to {}", path.display())]
    Offer {
        /// Where it was to be.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// What was planned cannot be read.
    #[error("cannot read the plan of the budget in {}", path.display())]
    Plan {
        /// Where it is.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Which of the harness's own tests stay in the list.
#[derive(Default)]
pub(super) struct Selection {
    dropped: BTreeSet<String>,
}

impl Selection {
    /// Whether a line of the harness's list stays.
    pub(super) fn keeps(&self, line: &str) -> bool {
        line.strip_suffix(": test").is_none_or(|name| !self.dropped.contains(name))
    }
}

/// By what a list is made.
enum By {
    /// Everything is listed.
    All,
    /// Everything that can be chosen is listed as if it had been, and offered in this directory.
    Offering(PathBuf),
    /// By what was chosen elsewhere.
    Plan(PathBuf),
    /// By a choice of our own.
    Budget(Duration),
}

fn asked() -> Result<By, SelectionError> {
    let path = |name| set(name).map(PathBuf::from);
    if let Some(directory) = path(choosing::OFFERS) {
        return Ok(By::Offering(directory));
    }
    if let Some(file) = path(choosing::PLAN) {
        return Ok(By::Plan(file));
    }
    let Some(given) = set(BUDGET) else { return Ok(By::All) };
    match given.parse() {
        Ok(seconds) => Ok(By::Budget(Duration::from_secs(seconds))),
        Err(_) => Err(SelectionError::Budget { given }),
    }
}

/// Selects as the environment says.
pub(super) fn select(
    entries: &[KtstrTestEntry],
    cells: &mut Vec<Cell>,
    ignored_only: bool,
) -> Result<Selection, SelectionError> {
    select_by(asked()?, entries, cells, ignored_only)
}

/// Several kernels replace the plain tests that have cells of them; of the rest stays what is chosen, and
/// what is chosen of the cells is no longer ignored.
///
/// A harness asks twice, for all and for those that are ignored; the choice is the same each time.
fn select_by(
    by: By,
    entries: &[KtstrTestEntry],
    cells: &mut Vec<Cell>,
    ignored_only: bool,
) -> Result<Selection, SelectionError> {
    let own = cells.iter().filter(|cell| cell.variant.topology.is_none());
    let mut selection = Selection { dropped: own.map(|cell| cell.entry.full_name()).collect() };
    let plain: Vec<&KtstrTestEntry> = entries
        .iter()
        .filter(|entry| !entry.ignored && !selection.dropped.contains(&entry.full_name()))
        .collect();
    let chosen: BTreeSet<String> = match by {
        By::All => return Ok(selection),
        By::Offering(directory) => {
            let candidates = candidates(&plain, cells);
            let all = candidates.iter().map(|candidate| candidate.name.clone()).collect();
            offer(&directory, candidates)?;
            all
        }
        By::Plan(file) => planned(&file)?,
        By::Budget(limit) => {
            let candidates = candidates(&plain, cells);
            let choice = choosing::choose(&candidates, limit);
            if !ignored_only {
                tell(&choice, candidates.len(), limit, &host::state_dir().join("left-out-by-budget"));
            }
            choice.chosen.into_iter().collect()
        }
    };
    let plain = plain.into_iter().map(KtstrTestEntry::full_name);
    selection.dropped.extend(plain.filter(|name| !chosen.contains(name)));
    cells.retain(|cell| cell.entry.ignored || chosen.contains(&cell.variant.name));
    cells.iter_mut().for_each(|cell| cell.ignored = cell.entry.ignored);
    Ok(selection)
}

/// What there is to choose from.
fn candidates(plain: &[&KtstrTestEntry], cells: &[Cell]) -> Vec<Candidate> {
    let accel = set("KTSTR_ACCEL").unwrap_or_else(|| "auto".into());
    let history = durations::History::read(&host::state_dir());
    let candidate = |name: &str, entry: &KtstrTestEntry, variant: Option<&host::Variant>| {
        let shape = variant.and_then(|v| v.topology).or_else(|| entry.topology().ok())?;
        let kernel = variant.and_then(|v| v.kernel.as_deref());
        let scheduler = entry.scheduler.map_or("EEVDF", |scheduler| scheduler.name);
        let scenario = Duration::from_secs(entry.duration_s);
        let (runs, accel) = host::under(entry.seeds, &accel);
        let guess = || match entry.host_only {
            true => scenario + Duration::from_secs(2),
            false => budget::guess(&accel, &shape, scenario),
        };
        let krate = entry.crate_name();
        Some(Candidate {
            features: budget::features(&format!("{krate} {}", entry.full_name()), scheduler, kernel, &shape),
            estimate: runs * history.usual(&accel, &durations::key(krate, name)).unwrap_or_else(guess),
            name: name.into(),
        })
    };
    let own = plain.iter().filter_map(|entry| candidate(&entry.full_name(), entry, None));
    let of_cells = cells
        .iter()
        .filter(|cell| !cell.entry.ignored)
        .filter_map(|cell| candidate(&cell.variant.name, cell.entry, Some(&cell.variant)));
    own.chain(of_cells).collect()
}

/// The file name of this executable: a harness starts it by the same each time.
fn executable() -> String {
    let exe = env::current_exe().unwrap_or_default();
    exe.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Says what there is; the file is there whole or not at all.
fn offer(directory: &Path, candidates: Vec<Candidate>) -> Result<(), SelectionError> {
    let executable = executable();
    let path = directory.join(format!("{executable}.json"));
    // A harness asks for both lists at once.
    let partial = directory.join(format!("{executable}.{}.partial", std::process::id()));
    serde_json::to_vec(&Offer { executable, candidates })
        .map_err(io::Error::from)
        .and_then(|text| fs::write(&partial, text))
        .and_then(|()| fs::rename(&partial, &path))
        .map_err(|source| SelectionError::Offer { path, source })
}

/// What of this executable was chosen.
fn planned(file: &Path) -> Result<BTreeSet<String>, SelectionError> {
    let plan: Plan = fs::read(file)
        .and_then(|text| serde_json::from_slice(&text).map_err(io::Error::from))
        .map_err(|source| SelectionError::Plan { path: file.into(), source })?;
    let Plan(mut plan) = plan;
    Ok(plan.remove(&executable()).unwrap_or_default())
}

/// Says what was chosen, and writes down what was not, one file for each test executable.
fn tell(choice: &choosing::Choice, candidates: usize, limit: Duration, dir: &Path) {
    let left_out = dir.join(executable()).with_extension("txt");
    let written =
        fs::create_dir_all(dir).and_then(|()| fs::write(&left_out, choice.left_out.join("\n") + "\n"));
    eprintln!(
        "ktstr budget for this executable alone: {}; left out: {}",
        choice.in_words(candidates, limit),
        match written {
            Ok(()) => left_out.display().to_string(),
            Err(_) => choice.left_out.join(", "),
        }
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gauntlet::{NamedKernel, cells},
        host::Constraints,
    };

    const TWO_KERNELS: [&str; 2] = ["6.18", "7.2"];

    /// One test of each kind: usual, waiting to be asked for, on this host.
    fn of_each_kind() -> &'static [KtstrTestEntry] {
        let constraints = Constraints { max_cpus: Some(8), ..Constraints::NONE };
        let usual = *crate::host::tests::entry("usual", constraints);
        let waiting = KtstrTestEntry { name: "waiting", ignored: true, ..usual };
        let here = KtstrTestEntry { name: "here", host_only: true, ..usual };
        Box::leak(Box::new([usual, waiting, here]))
    }

    #[test]
    fn several_kernels_leave_tests_on_this_host_and_ask_for_nothing_more() {
        let entries = of_each_kind();
        let mut cells = cells(entries, &TWO_KERNELS.map(NamedKernel::parse));
        let selection = select_by(By::All, entries, &mut cells, false).unwrap();
        assert!(selection.keeps("here: test"), "it has no cell that could stand for it");
        assert!(!selection.keeps("usual: test") && !selection.keeps("waiting: test"));
        for cell in &cells {
            let asked_for = cell.variant.name.starts_with("ktstr/usual/");
            assert_eq!(cell.ignored, !asked_for, "{}", cell.variant.name);
        }
    }

    #[test]
    fn a_budget_chooses_the_same_for_both_lists_and_never_what_waits_to_be_asked_for() {
        let entries = of_each_kind();
        for kernels in [&[][..], &TWO_KERNELS.map(NamedKernel::parse)[..]] {
            let lists = [false, true].map(|ignored_only| {
                let mut cells = cells(entries, kernels);
                let selection =
                    select_by(By::Budget(Duration::from_secs(40)), entries, &mut cells, ignored_only)
                        .unwrap();
                let cells: Vec<_> = cells.into_iter().map(|cell| (cell.variant.name, cell.ignored)).collect();
                (selection.dropped, cells)
            });
            let [(dropped, cells), of_ignored] = &lists;
            assert_eq!((dropped, cells), (&of_ignored.0, &of_ignored.1));
            assert!(cells.iter().all(|(name, ignored)| *ignored == name.contains("/waiting")), "{cells:?}");
            assert!(cells.iter().any(|(name, _)| name.contains("/usual")), "{cells:?}");
            assert!(cells.iter().any(|(_, ignored)| *ignored), "they can still be asked for");
            assert_eq!(dropped.contains("waiting"), !kernels.is_empty(), "a budget leaves it where it is");
        }
    }

    #[test]
    fn replaced_tests_leave_the_list_and_nothing_else_does() {
        let selection = Selection { dropped: BTreeSet::from(["demo".to_owned()]) };
        assert!(!selection.keeps("demo: test"));
        assert!(selection.keeps("demo2: test") && selection.keeps("") && selection.keeps("demo: benchmark"));
    }

    #[test]
    fn what_is_offered_is_listed_and_a_plan_keeps_what_it_names() {
        let entries = of_each_kind();
        let dir = tempfile::tempdir().unwrap();
        let lists = |by: &dyn Fn() -> By| {
            let mut cells = cells(entries, &[]);
            let selection = select_by(by(), entries, &mut cells, true).unwrap();
            let cells: Vec<_> = cells.into_iter().map(|cell| (cell.variant.name, cell.ignored)).collect();
            (selection, cells)
        };
        let (all, offered) = lists(&|| By::Offering(dir.path().into()));
        assert!(["usual: test", "here: test", "waiting: test"].iter().all(|line| all.keeps(line)));
        assert!(offered.iter().all(|(name, ignored)| *ignored == name.contains("/waiting/")), "{offered:?}");
        let executable = executable();
        let read = fs::read(dir.path().join(format!("{executable}.json"))).unwrap();
        let offer: Offer = serde_json::from_slice(&read).unwrap();
        assert_eq!(offer.executable, executable);
        let names: Vec<&str> = offer.candidates.iter().map(|candidate| candidate.name.as_str()).collect();
        assert!(names.contains(&"usual") && names.contains(&"here") && !names.contains(&"waiting"));
        assert!(names.iter().any(|name| name.starts_with("gauntlet/usual/")), "{names:?}");

        let file = dir.path().join("plan");
        let cell = names.iter().find(|name| name.starts_with("gauntlet/usual/")).unwrap().to_string();
        let of = |executable: &str, names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            Plan([(executable.to_owned(), names)].into())
        };
        for (plan, kept) in [(of(&executable, &["here", &cell]), true), (of("other", &["here"]), false)] {
            fs::write(&file, serde_json::to_vec(&plan).unwrap()).unwrap();
            let (listed, cells) = lists(&|| By::Plan(file.clone()));
            assert_eq!((listed.keeps("here: test"), listed.keeps("usual: test")), (kept, false));
            assert!(listed.keeps("waiting: test"), "a plan has nothing to say of it");
            assert_eq!(cells.contains(&(cell.clone(), false)), kept, "{cells:?}");
        }
        fs::write(&file, "[").unwrap();
        assert!(select_by(By::Plan(file), entries, &mut cells(entries, &[]), false).is_err());
    }
}

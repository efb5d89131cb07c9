//! What the test harness is asked, answered before its `main`: `--list` with the cells in it,
//! `--exact CELL` as a run of that cell.
//!
//! The harness's own list comes from this executable itself, started again with `KTSTR_PLAIN_HARNESS`
//! set, so that ordinary tests stay exactly as they are. Everything that does not concern cells is
//! left to the harness.

use std::{
    collections::BTreeSet,
    env,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use super::{Cell, NamedKernel, budget, cells, durations};
use crate::host::{self, KTSTR_TESTS, KtstrTestEntry};

/// Set for the harness's own list.
const PLAIN: &str = "KTSTR_PLAIN_HARNESS";
/// Kernels of a run over several, separated by commas: `NAME=SELECTOR`, or a selector that is its name.
const KERNELS: &str = "KTSTR_KERNELS";
/// Seconds that the tests of one executable may take.
const BUDGET: &str = "KTSTR_BUDGET_SECS";
const PREFIXES: [&str; 3] = ["gauntlet/", "ktstr/", "host/"];

/// What the command line asks for, as far as it concerns cells.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    List { ignored_only: bool },
    Run { filters: Vec<String>, exact: bool, ignored: bool },
}

/// Does what the command line asks for and does not return, or leaves it to the harness.
pub(crate) fn before_main() {
    if env::var_os(PLAIN).is_some() || KTSTR_TESTS.is_empty() {
        return;
    }
    let args: Vec<String> = env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let code = match request(&args, env::var_os("NEXTEST").is_some()) {
        None => return,
        Some(Request::List { ignored_only }) => list(&args, ignored_only),
        Some(Request::Run { filters, exact, ignored }) => run(&filters, exact, ignored),
    };
    std::process::exit(code);
}

fn request(args: &[String], nextest: bool) -> Option<Request> {
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let named: Vec<String> =
        args.iter().filter(|arg| PREFIXES.iter().any(|p| arg.starts_with(p))).cloned().collect();
    let terse = has("terse") || has("--format=terse");
    if has("--list") && (nextest && terse || !named.is_empty()) {
        return Some(Request::List { ignored_only: has("--ignored") });
    }
    let ignored = has("--ignored") || has("--include-ignored");
    (!named.is_empty()).then(|| Request::Run { filters: named, exact: has("--exact"), ignored })
}

fn set(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|value| !value.is_empty())
}

fn kernels() -> Vec<NamedKernel> {
    let all = set(KERNELS).unwrap_or_default();
    all.split(',').map(str::trim).filter(|kernel| !kernel.is_empty()).map(NamedKernel::parse).collect()
}

fn all_cells() -> Vec<Cell> {
    cells(KTSTR_TESTS.iter(), &kernels())
}

/// Prints the list; the exit status.
fn list(args: &[String], ignored_only: bool) -> i32 {
    let own = env::current_exe().and_then(|exe| {
        Command::new(exe).args(args).env(PLAIN, "1").stdin(Stdio::null()).stderr(Stdio::inherit()).output()
    });
    let own = match own {
        Ok(output) if output.status.success() => output,
        Ok(output) => return output.status.code().unwrap_or(101),
        Err(error) => {
            eprintln!("ktstr: cannot ask the test harness for its tests: {error}");
            return 101;
        }
    };
    let plain = String::from_utf8_lossy(&own.stdout);
    let plain: Vec<&str> = plain.lines().collect();
    let mut cells = all_cells();
    let selection = select(&KTSTR_TESTS, &mut cells, budget(), ignored_only);
    let mut text = String::new();
    for line in plain.iter().filter(|line| selection.keeps(line)) {
        text.push_str(line);
        text.push('\n');
    }
    for cell in cells.iter().filter(|cell| cell.ignored || !ignored_only) {
        text.push_str(&format!("{}: test\n", cell.variant.name));
    }
    // The reader may have enough and close; then there is nobody to tell.
    let _ = std::io::stdout().write_all(text.as_bytes());
    0
}

/// Which of the harness's own tests stay in the list.
#[derive(Default)]
struct Selection {
    dropped: BTreeSet<String>,
}

impl Selection {
    fn keeps(&self, line: &str) -> bool {
        line.strip_suffix(": test").is_none_or(|name| !self.dropped.contains(name))
    }
}

/// The budget, if one is given that can be read.
fn budget() -> Option<Duration> {
    let given = set(BUDGET)?;
    let seconds = given.parse().ok();
    if seconds.is_none() {
        eprintln!("ktstr: {BUDGET}=`{given}` is no whole number of seconds and is passed over");
    }
    seconds.map(Duration::from_secs)
}

/// Several kernels replace the plain tests that have cells of them; a budget leaves out what does not
/// fit, and what it takes of the cells is no longer ignored. Tests that wait to be asked for are none of
/// its business, nor are their cells.
///
/// A harness asks twice, for all and for those that are ignored; the choice is the same each time.
fn select(
    entries: &[KtstrTestEntry],
    cells: &mut Vec<Cell>,
    budget: Option<Duration>,
    ignored_only: bool,
) -> Selection {
    let own = cells.iter().filter(|cell| cell.variant.topology.is_none());
    let mut selection = Selection { dropped: own.map(|cell| cell.entry.full_name()).collect() };
    let Some(limit) = budget else { return selection };
    let unasked = |entry: &&KtstrTestEntry| !entry.ignored;
    let plain: Vec<(String, &KtstrTestEntry)> = entries
        .iter()
        .filter(unasked)
        .map(|entry| (entry.full_name(), entry))
        .filter(|(name, _)| !selection.dropped.contains(name))
        .collect();
    let chosen = chosen_within(limit, &plain, cells, !ignored_only);
    selection.dropped.extend(plain.into_iter().map(|(name, _)| name).filter(|name| !chosen.contains(name)));
    cells.retain(|cell| cell.entry.ignored || chosen.contains(&cell.variant.name));
    cells.iter_mut().for_each(|cell| cell.ignored = cell.entry.ignored);
    selection
}

fn chosen_within(
    limit: Duration,
    plain: &[(String, &KtstrTestEntry)],
    cells: &[Cell],
    aloud: bool,
) -> BTreeSet<String> {
    let accel = set("KTSTR_ACCEL").unwrap_or_else(|| "auto".into());
    let root = host::state_dir();
    let learned = durations::learned(&root, &accel);
    let candidate = |name: &str, entry: &KtstrTestEntry, variant: Option<&host::Variant>| {
        let shape = variant.and_then(|v| v.topology).or_else(|| entry.topology().ok())?;
        let kernel = variant.and_then(|v| v.kernel.as_deref());
        let scheduler = entry.scheduler.map_or("EEVDF", |scheduler| scheduler.name);
        let scenario = Duration::from_secs(entry.duration_s);
        let guess = || match entry.host_only {
            true => scenario + Duration::from_secs(2),
            false => budget::guess(&accel, &shape, scenario),
        };
        Some(budget::Candidate {
            features: budget::features(&entry.full_name(), scheduler, kernel, &shape),
            estimate: budget::estimate(name, &learned, guess),
            name: name.into(),
        })
    };
    let own = plain.iter().filter_map(|(name, entry)| candidate(name, entry, None));
    let of_cells = cells
        .iter()
        .filter(|cell| !cell.entry.ignored)
        .filter_map(|cell| candidate(&cell.variant.name, cell.entry, Some(&cell.variant)));
    let candidates: Vec<budget::Candidate> = own.chain(of_cells).collect();
    let choice = budget::choose(&candidates, limit);
    if aloud {
        tell(&choice, candidates.len(), limit, &root.join("left-out-by-budget"));
    }
    choice.chosen.into_iter().collect()
}

/// Says what was chosen, and writes down what was not, one file for each test executable.
fn tell(choice: &budget::Choice, candidates: usize, limit: Duration, dir: &Path) {
    let exe = env::current_exe().unwrap_or_default();
    let left_out = dir.join(exe.file_name().unwrap_or_default()).with_extension("txt");
    let written = std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&left_out, choice.left_out.join("\n") + "\n"));
    eprintln!(
        "ktstr budget: {} of {candidates} tests, {} of {} s used, {} of {} pairs of features covered; left out: {}",
        choice.chosen.len(),
        choice.used.as_secs(),
        limit.as_secs(),
        choice.covered.0,
        choice.covered.1,
        match written {
            Ok(()) => left_out.display().to_string(),
            Err(_) => choice.left_out.join(", "),
        }
    );
}

/// The cells that can be run by name: those that are listed, and each test under the name it would have
/// among them (`ktstr/TEST`, `host/TEST`), which is not listed since the harness has it as `TEST`.
fn runnable() -> Vec<Cell> {
    let mut all = all_cells();
    let several = all.iter().any(|cell| cell.variant.topology.is_none());
    let alias = |entry: &'static KtstrTestEntry| {
        let kind = if entry.host_only { "host" } else { "ktstr" };
        let name = format!("{kind}/{}", entry.full_name());
        Cell { entry, variant: host::Variant { name, topology: None, kernel: None }, ignored: entry.ignored }
    };
    all.extend(KTSTR_TESTS.iter().filter(|entry| entry.host_only || !several).map(alias));
    all
}

/// Runs the cells that are named; the exit status.
fn run(filters: &[String], exact: bool, ignored: bool) -> i32 {
    let fits = |name: &str| {
        filters.iter().any(|filter| if exact { name == filter } else { name.starts_with(filter.as_str()) })
    };
    // A prefix asks for the cells of presets, but not for those of tests that wait to be asked for.
    let asked = |cell: &Cell| exact || ignored || !cell.entry.ignored;
    let fitting = runnable().into_iter().filter(|cell| fits(&cell.variant.name) && asked(cell));
    let chosen: Vec<Cell> = fitting.collect();
    if chosen.is_empty() {
        eprintln!(
            "ktstr: no cell is called {}; `--list` with a name that begins with `gauntlet/` shows them, and \
             those of several kernels exist where {KERNELS} names the kernels",
            filters.join(" or ")
        );
        return 101;
    }
    println!("\nrunning {} tests", chosen.len());
    let mut failed = Vec::new();
    for cell in &chosen {
        let name = &cell.variant.name;
        match host::run_variant(cell.entry, &cell.variant) {
            Ok(()) => println!("test {name} ... ok"),
            Err(why) => {
                println!("test {name} ... FAILED ({why})");
                failed.push(name);
            }
        }
    }
    let result = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out",
        chosen.len() - failed.len(),
        failed.len()
    );
    if failed.is_empty() { 0 } else { 101 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Constraints;

    fn ask(args: &[&str], nextest: bool) -> Option<Request> {
        request(&args.iter().map(|arg| arg.to_string()).collect::<Vec<_>>(), nextest)
    }

    #[test]
    fn the_harness_keeps_what_is_its_own() {
        assert_eq!(ask(&[], true), None);
        assert_eq!(ask(&["--exact", "demo", "--nocapture"], true), None);
        assert_eq!(ask(&["--list"], false), None);
        assert_eq!(ask(&["--ignored", "demo"], false), None);
    }

    #[test]
    fn cells_are_listed_for_nextest_and_where_they_are_named() {
        let list = |ignored_only| Some(Request::List { ignored_only });
        assert_eq!(ask(&["--list", "--format", "terse"], true), list(false));
        assert_eq!(ask(&["--list", "--format", "terse", "--ignored"], true), list(true));
        assert_eq!(ask(&["--list", "gauntlet/"], false), list(false));
    }

    #[test]
    fn a_cell_is_run_by_name() {
        let run = |name: &str, exact, ignored| {
            Some(Request::Run { filters: vec![name.to_owned()], exact, ignored })
        };
        let name = "gauntlet/demo/4cpu-1llc-nosmt";
        assert_eq!(ask(&["--exact", name, "--nocapture", "--ignored"], true), run(name, true, true));
        assert_eq!(ask(&["--include-ignored", "ktstr/demo"], false), run("ktstr/demo", false, true));
        assert_eq!(ask(&["host/demo"], false), run("host/demo", false, false));
    }

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
        let mut cells = cells(entries, &["6.18", "7.2"].map(NamedKernel::parse));
        let selection = select(entries, &mut cells, None, false);
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
        for kernels in [&[][..], &["6.18", "7.2"].map(NamedKernel::parse)[..]] {
            let lists = [false, true].map(|ignored_only| {
                let mut cells = cells(entries, kernels);
                let selection = select(entries, &mut cells, Some(Duration::from_secs(40)), ignored_only);
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
}

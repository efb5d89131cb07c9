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
    process::{Command, Stdio},
    time::Duration,
};

use super::{Cell, budget, cells, durations};
use crate::host::{self, KTSTR_TESTS};

/// Set for the harness's own list.
const PLAIN: &str = "KTSTR_PLAIN_HARNESS";
/// Kernels of a run over several, separated by commas.
const KERNELS: &str = "KTSTR_KERNELS";
/// Seconds that the tests of one executable may take.
const BUDGET: &str = "KTSTR_BUDGET_SECS";
const PREFIXES: [&str; 2] = ["gauntlet/", "ktstr/"];

/// What the command line asks for, as far as it concerns cells.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    List { ignored_only: bool },
    Run { filters: Vec<String>, exact: bool },
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
        Some(Request::Run { filters, exact }) => run(&filters, exact),
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
    (!named.is_empty()).then(|| Request::Run { filters: named, exact: has("--exact") })
}

fn set(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|value| !value.is_empty())
}

fn kernels() -> Vec<String> {
    let all = set(KERNELS).unwrap_or_default();
    all.split(',').map(str::trim).filter(|kernel| !kernel.is_empty()).map(str::to_owned).collect()
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
    let selection = select(&plain, &mut cells, ignored_only);
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

/// Several kernels replace the plain tests; a budget leaves out what does not fit, and what it takes
/// of the cells is no longer ignored.
fn select(plain: &[&str], cells: &mut Vec<Cell>, ignored_only: bool) -> Selection {
    let mut selection = Selection::default();
    if cells.iter().any(|cell| !cell.ignored) {
        selection.dropped.extend(KTSTR_TESTS.iter().map(|entry| entry.full_name()));
    }
    let Some(budget) = set(BUDGET) else { return selection };
    let Ok(seconds) = budget.parse::<u64>() else {
        eprintln!("ktstr: {BUDGET}=`{budget}` is no whole number of seconds and is passed over");
        return selection;
    };
    let chosen = chosen_within(Duration::from_secs(seconds), plain, cells, &selection);
    let of_tests = KTSTR_TESTS.iter().map(|entry| entry.full_name()).filter(|name| !chosen.contains(name));
    selection.dropped.extend(of_tests);
    cells.retain(|cell| chosen.contains(&cell.variant.name));
    cells.iter_mut().for_each(|cell| cell.ignored = false);
    if ignored_only {
        // The other list has them.
        cells.clear();
    }
    selection
}

fn chosen_within(limit: Duration, plain: &[&str], cells: &[Cell], selection: &Selection) -> BTreeSet<String> {
    let accel = set("KTSTR_ACCEL").unwrap_or_else(|| "auto".into());
    let root = host::state_dir();
    let learned = durations::learned(&root, &accel);
    let candidate = |name: String, entry: &host::KtstrTestEntry, variant: Option<&host::Variant>| {
        let shape = variant.and_then(|v| v.topology).or_else(|| entry.topology().ok())?;
        let kernel = variant.and_then(|v| v.kernel.as_deref());
        let scheduler = entry.scheduler.map_or("EEVDF", |scheduler| scheduler.name);
        let scenario = Duration::from_secs(entry.duration_s);
        Some(budget::Candidate {
            features: budget::features(&entry.full_name(), scheduler, kernel, &shape),
            estimate: budget::estimate(&name, &learned, || budget::guess(&accel, &shape, scenario)),
            name,
        })
    };
    let listed = |name: &str| plain.iter().any(|line| line.strip_suffix(": test") == Some(name));
    let own = KTSTR_TESTS.iter().filter_map(|entry| {
        let name = entry.full_name();
        (listed(&name) && !selection.dropped.contains(&name)).then(|| candidate(name, entry, None))?
    });
    let of_cells =
        cells.iter().filter_map(|cell| candidate(cell.variant.name.clone(), cell.entry, Some(&cell.variant)));
    let candidates: Vec<budget::Candidate> = own.chain(of_cells).collect();
    let choice = budget::choose(&candidates, limit);
    let left_out = root.join("left-out-by-budget.txt");
    let written = std::fs::create_dir_all(&root)
        .and_then(|()| std::fs::write(&left_out, choice.left_out.join("\n") + "\n"));
    eprintln!(
        "ktstr budget: {} of {} tests, {} of {} s used, {} of {} pairs of features covered; left out: {}",
        choice.chosen.len(),
        candidates.len(),
        choice.used.as_secs(),
        limit.as_secs(),
        choice.covered.0,
        choice.covered.1,
        match written {
            Ok(()) => left_out.display().to_string(),
            Err(_) => choice.left_out.join(", "),
        }
    );
    choice.chosen.into_iter().collect()
}

/// Runs the cells that are named; the exit status.
fn run(filters: &[String], exact: bool) -> i32 {
    let fits = |name: &str| {
        filters.iter().any(|filter| if exact { name == filter } else { name.starts_with(filter.as_str()) })
    };
    let chosen: Vec<Cell> = all_cells().into_iter().filter(|cell| fits(&cell.variant.name)).collect();
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
        let run = |name: &str, exact| Some(Request::Run { filters: vec![name.to_owned()], exact });
        let name = "gauntlet/demo/4cpu-1llc-nosmt";
        assert_eq!(ask(&["--exact", name, "--nocapture", "--ignored"], true), run(name, true));
        assert_eq!(ask(&["--ignored", "ktstr/demo"], false), run("ktstr/demo", false));
    }

    #[test]
    fn replaced_tests_leave_the_list_and_nothing_else_does() {
        let selection = Selection { dropped: BTreeSet::from(["demo".to_owned()]) };
        assert!(!selection.keeps("demo: test"));
        assert!(selection.keeps("demo2: test") && selection.keeps("") && selection.keeps("demo: benchmark"));
    }
}

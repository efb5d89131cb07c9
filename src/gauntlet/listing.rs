//! What the test harness is asked, answered before its `main`: `--list` with the cells in it,
//! `--exact CELL` as a run of that cell.
//!
//! The harness's own list comes from this executable itself, started again with `KTSTR_PLAIN_HARNESS`
//! set, so that ordinary tests stay exactly as they are. Everything that does not concern cells is
//! left to the harness.

use std::{
    env,
    io::Write,
    process::{Command, Stdio},
};

use super::{Cell, NamedKernel, cells, selection};
use crate::host::{self, KTSTR_TESTS, KtstrTestEntry};

/// Set for the harness's own list.
const PLAIN: &str = "KTSTR_PLAIN_HARNESS";
/// Kernels of a run over several, separated by commas: `NAME=SELECTOR`, or a selector that is its name.
const KERNELS: &str = "KTSTR_KERNELS";
const PREFIXES: [&str; 3] = ["gauntlet/", "ktstr/", "host/"];

/// What the command line asks for, as far as it concerns cells.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    List {
        ignored_only: bool,
    },
    /// `others` are the arguments without those that name cells, where they name other tests, too.
    Run {
        filters: Vec<String>,
        skip: Vec<String>,
        exact: bool,
        ignored: bool,
        others: Option<Vec<String>>,
    },
}

/// Options of the harness that take their value from the next argument.
const WITH_VALUE: [&str; 6] = ["--skip", "--test-threads", "--logfile", "--color", "--format", "-Z"];

/// The arguments that choose tests, by their places.
fn choosing(args: &[String]) -> Vec<usize> {
    let is_value = |at: usize| at > 0 && WITH_VALUE.contains(&args[at - 1].as_str());
    (0..args.len()).filter(|at| !args[*at].starts_with('-') && !is_value(*at)).collect()
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
        Some(Request::Run { filters, skip, exact, ignored, others }) => {
            let of_cells = run(&filters, &skip, exact, ignored);
            of_cells.max(others.map_or(0, |args| run_others(&args)))
        }
    };
    std::process::exit(code);
}

fn request(args: &[String], nextest: bool) -> Option<Request> {
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let choosing = choosing(args);
    let of_cells = |at: &usize| PREFIXES.iter().any(|prefix| args[*at].starts_with(prefix));
    let places: Vec<usize> = choosing.iter().copied().filter(of_cells).collect();
    let named: Vec<String> = places.iter().map(|at| args[*at].clone()).collect();
    let terse = has("terse") || has("--format=terse");
    if has("--list") && (nextest && terse || !named.is_empty()) {
        return Some(Request::List { ignored_only: has("--ignored") });
    }
    let ignored = has("--ignored") || has("--include-ignored");
    let others = || {
        let rest = args.iter().enumerate().filter(|(at, _)| !places.contains(at)).map(|(_, arg)| arg.clone());
        (choosing.len() > places.len()).then(|| rest.collect())
    };
    (!named.is_empty()).then(|| Request::Run {
        filters: named,
        skip: skipped(args),
        exact: has("--exact"),
        ignored,
        others: others(),
    })
}

/// What `--skip` names.
fn skipped(args: &[String]) -> Vec<String> {
    let next = args.windows(2).filter(|pair| pair[0] == "--skip").map(|pair| pair[1].clone());
    next.chain(args.iter().filter_map(|arg| arg.strip_prefix("--skip=")).map(Into::into)).collect()
}

pub(super) fn set(variable: &str) -> Option<String> {
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
    let selection = match selection::select(&KTSTR_TESTS, &mut cells, ignored_only) {
        Ok(selection) => selection,
        Err(error) => {
            eprintln!("ktstr: {error}");
            return 101;
        }
    };
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

/// Has the harness run the tests that are named beside cells; the exit status.
fn run_others(args: &[String]) -> i32 {
    let status = env::current_exe()
        .and_then(|exe| Command::new(exe).args(args).env(PLAIN, "1").stdin(Stdio::null()).status());
    match status {
        Ok(status) => status.code().unwrap_or(101),
        Err(error) => {
            eprintln!("ktstr: cannot start the test harness for its own tests: {error}");
            101
        }
    }
}

/// Runs the cells that are named; the exit status.
fn run(filters: &[String], skip: &[String], exact: bool, ignored: bool) -> i32 {
    let fits = |name: &str| {
        filters.iter().any(|filter| if exact { name == filter } else { name.starts_with(filter.as_str()) })
            && !skip.iter().any(|skip| if exact { name == skip } else { name.contains(skip.as_str()) })
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
            let (filters, skip) = (vec![name.to_owned()], Vec::new());
            Some(Request::Run { filters, skip, exact, ignored, others: None })
        };
        let name = "gauntlet/demo/4cpu-1llc-nosmt";
        assert_eq!(ask(&["--exact", name, "--nocapture", "--ignored"], true), run(name, true, true));
        assert_eq!(ask(&["--include-ignored", "ktstr/demo"], false), run("ktstr/demo", false, true));
        assert_eq!(ask(&["host/demo"], false), run("host/demo", false, false));
        assert_eq!(ask(&["--skip", "gauntlet/x"], false), None, "the value of an option names no cell");
        for args in [["gauntlet/x", "--skip", "128cpu"].as_slice(), &["--skip=128cpu", "gauntlet/x"]] {
            let Some(Request::Run { skip, .. }) = ask(args, false) else { panic!("{args:?}") };
            assert_eq!(skip, ["128cpu"]);
        }
        let both = ask(&["my_test", "gauntlet/x", "--nocapture"], false);
        let Some(Request::Run { filters, others, .. }) = both else { panic!("{both:?}") };
        assert_eq!(filters, ["gauntlet/x"]);
        assert_eq!(others, Some(vec!["my_test".to_owned(), "--nocapture".to_owned()]));
    }
}

//! The cells of a gauntlet as the test harness sees them: listed, chosen and run by name.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use ktstr::prelude::*;
use ktstr_proto::{
    budget::Plan,
    verdict::{Cause, RunReport},
};

/// This executable as nextest would start it.
fn harness(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(args).env("NEXTEST", "1").env("KTSTR_ACCEL", "tcg");
    command.env_remove("KTSTR_KERNELS").env_remove("KTSTR_BUDGET_SECS").envs(env.iter().copied());
    command.output().unwrap()
}

fn listed(args: &[&str], env: &[(&str, &str)]) -> (Vec<String>, String) {
    let args: Vec<&str> = ["--list", "--format", "terse"].iter().chain(args).copied().collect();
    let output = harness(&args, env);
    assert!(output.status.success(), "{output:?}");
    let names = String::from_utf8(output.stdout).unwrap();
    let names = names.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
    (names, String::from_utf8(output.stderr).unwrap())
}

const CELL: &str = "gauntlet/verdicts::eevdf/4cpu-2llc-nosmt";

#[test]
fn cells_are_listed_beside_the_tests_and_ignored() {
    let (all, _) = listed(&[], &[]);
    let (ignored, _) = listed(&["--ignored"], &[]);
    for names in [&all, &ignored] {
        assert!(names.iter().any(|name| name == CELL), "{names:?}");
    }
    let own = "gauntlet::cells_are_listed_beside_the_tests_and_ignored".to_owned();
    assert!(all.contains(&own) && !ignored.contains(&own));
    let two_nodes = all.iter().filter(|name| name.contains("/2numa-")).count();
    assert_eq!(two_nodes, 0, "several nodes must be asked for");
}

#[test]
fn several_kernels_replace_the_plain_tests() {
    let (all, _) = listed(&[], &[("KTSTR_KERNELS", "6.18,7.2")]);
    for name in ["ktstr/verdicts::eevdf/kernel_6_18", &format!("{CELL}/kernel_7_2")] {
        assert!(all.iter().any(|listed| listed == name), "{name}");
    }
    assert!(!all.contains(&"verdicts::eevdf".to_owned()));
    // What waits to be asked for, and what needs no machine, is as it is on one kernel.
    let (ignored, _) = listed(&["--ignored"], &[("KTSTR_KERNELS", "6.18,7.2")]);
    let waiting = "ktstr/race::lost_wakeup/kernel_6_18".to_owned();
    assert!(all.contains(&waiting) && ignored.contains(&waiting), "{ignored:?}");
    let usual = "ktstr/race::declared_seeds_are_run/kernel_6_18".to_owned();
    assert!(all.contains(&usual) && !ignored.contains(&usual), "{ignored:?}");
    let here = "gauntlet::an_error_on_this_host".to_owned();
    assert!(all.contains(&here) && ignored.contains(&here));
}

#[test]
fn a_budget_chooses_and_says_what_it_left_out() {
    let (all, said) = listed(&[], &[("KTSTR_BUDGET_SECS", "100")]);
    let (ignored, _) = listed(&["--ignored"], &[("KTSTR_BUDGET_SECS", "100")]);
    let chosen: Vec<&String> =
        all.iter().filter(|name| name.starts_with("gauntlet/") && !ignored.contains(name)).collect();
    assert!((1..20).contains(&chosen.len()), "what was chosen runs without being asked for: {chosen:?}");
    for waiting in ["race::lost_wakeup", "gauntlet/race::lost_wakeup/4cpu-1llc-nosmt"] {
        let waiting = waiting.to_owned();
        assert!(all.contains(&waiting) && ignored.contains(&waiting), "{waiting}: {ignored:?}");
    }
    let left_out = said.trim().rsplit("left out: ").next().unwrap();
    let left_out = std::fs::read_to_string(left_out).unwrap();
    assert!(left_out.lines().count() > 10, "{left_out}");
    assert!(left_out.lines().all(|name| !all.contains(&name.to_owned())));
}

/// A cargo whose nextest knows two executables: of `a` it is asked for the tests whose names have
/// `nosmt` in them, of `b` for the others. What each lists for a run is in `$HERE/a.run`, `a.ignored`.
const TWO_EXECUTABLES: &str = r#"#!/bin/sh
set -e
export NEXTEST=1
listed() { awk -v status="$2" -v other="$3" '
    { sub(/: test$/, ""); printf "%s\"%s\":{\"filter-match\":{\"status\":\"%s\"}}", separator, $0,
      /nosmt/ ? status : other; separator = "," }' "$1"; }
case "$2" in
list)
    for exe in a b; do
        "$HERE/$exe" --list --format terse >"$HERE/$exe.list"
        "$HERE/$exe" --list --format terse --ignored >/dev/null
    done
    printf '{"rust-suites":{"k::a":{"binary-path":"%s/a","testcases":{' "$HERE"
    listed "$HERE/a.list" matches mismatch
    printf '}},"k::b":{"binary-path":"%s/b","testcases":{' "$HERE"
    listed "$HERE/b.list" mismatch matches
    printf '}}}}' ;;
run)
    for exe in a b; do
        "$HERE/$exe" --list --format terse >"$HERE/$exe.run"
        "$HERE/$exe" --list --format terse --ignored >"$HERE/$exe.ignored"
    done ;;
esac
"#;

#[test]
fn a_budget_is_one_for_all_executables_of_a_run() {
    let exe = std::env::current_exe().unwrap();
    // Beside the original, whose figures of earlier runs are found from there.
    let here = tempfile::tempdir_in(exe.parent().unwrap()).unwrap();
    let file = |name: &str| here.path().join(name);
    for name in ["a", "b"] {
        fs::hard_link(&exe, file(name)).unwrap();
    }
    fs::write(file("cargo"), TWO_EXECUTABLES).unwrap();
    fs::set_permissions(file("cargo"), fs::Permissions::from_mode(0o755)).unwrap();
    let command = ktstr::executables::find_own("cargo-ktstr").unwrap();
    let output = Command::new(command)
        .args(["ktstr", "test", "--accel", "tcg", "--", "--no-fail-fast", "-E", "test(x)"])
        .env("HERE", here.path())
        .env("CARGO", file("cargo"))
        .env("KTSTR_BUDGET_SECS", "150")
        .env("KTSTR_RUNS_ROOT", here.path().join("runs"))
        .env_remove("KTSTR_KERNELS")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();

    let root = fs::read_dir(file("runs")).unwrap().flatten().next().unwrap().path();
    let plan: Plan = serde_json::from_slice(&fs::read(root.join("budget/plan")).unwrap()).unwrap();
    let lines = |path: &Path| -> BTreeSet<String> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| line.strip_suffix(": test").unwrap_or(line).to_owned()).collect()
    };
    let left_out = lines(&root.join("left-out-by-budget.txt"));
    for (name, without_smt) in [("a", true), ("b", false)] {
        let chosen = &plan.0[name];
        assert!(!chosen.is_empty(), "each has ground of its own: {plan:?}");
        assert!(chosen.iter().all(|test| test.contains("nosmt") == without_smt), "{chosen:?}");
        let run = lines(&file(&format!("{name}.run")));
        let ignored = lines(&file(&format!("{name}.ignored")));
        assert!(chosen.iter().all(|test| run.contains(test) && !ignored.contains(test)), "{chosen:?}");
        assert!(!run.iter().any(|test| left_out.contains(&format!("k::{name} {test}"))), "{run:?}");
        let cells: BTreeSet<&String> = run.iter().filter(|test| test.starts_with("gauntlet/")).collect();
        assert!(cells.iter().all(|cell| chosen.contains(*cell) || ignored.contains(*cell)), "{cells:?}");
    }
    let count = plan.0.values().map(BTreeSet::len).sum::<usize>();
    let line = said.lines().find(|line| line.starts_with("ktstr budget over 2 test executables: ")).unwrap();
    let (_, figures) = line.split_once(": ").unwrap();
    assert!(figures.starts_with(&format!("{count} of {} tests, ", count + left_out.len())), "{said}");
    let (_, used) = figures.split_once(" tests, ").unwrap();
    let used: u64 = used.split_once(" of 150 s used").unwrap().0.parse().unwrap();
    assert!(used <= 150, "{said}");
}

#[test]
fn a_cell_runs_on_its_own_machine() {
    let output = harness(&["--exact", CELL, "--nocapture", "--ignored"], &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains(&format!("'{CELL}' [sched=EEVDF] [topo=1n2l2c1t] PASS")), "{said}");
    assert!(said.contains(&format!("& test(={CELL})' --run-ignored all")), "{said}");
}

/// Fails when somebody asks for it.
#[ktstr_test(host_only, ignore)]
fn an_error_on_this_host(_ctx: &Ctx) -> Result<AssertResult> {
    bail!("the cheese is out")
}

/// The one report below `root`.
fn recorded(root: &Path) -> RunReport {
    let runs: Vec<_> = fs::read_dir(root).unwrap().flatten().collect();
    assert_eq!(runs.len(), 1, "{runs:?}");
    serde_json::from_slice(&fs::read(runs[0].path().join("sidecar.json")).unwrap()).unwrap()
}

#[test]
fn a_failure_on_this_host_is_told_and_recorded() {
    for name in ["gauntlet::an_error_on_this_host", "host/gauntlet::an_error_on_this_host"] {
        let root = tempfile::tempdir().unwrap();
        let env = [("KTSTR_RUNS_ROOT", root.path().to_str().unwrap())];
        let output = harness(&["--exact", name, "--nocapture", "--ignored"], &env);
        assert_eq!(output.status.code(), Some(101));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("the cheese is out"), "{said}");
        let report = recorded(root.path());
        assert_eq!((report.outcome, report.infrastructure), (Outcome::Fail, false));
    }
}

#[test]
fn what_cannot_even_be_asked_for_is_recorded() {
    let root = tempfile::tempdir().unwrap();
    let env = [("KTSTR_RUNS_ROOT", root.path().to_str().unwrap()), ("KTSTR_SCHEDULER", "/nonexistent/scx")];
    let output = harness(&["--exact", "race::kept_wakeups", "--nocapture", "--ignored"], &env);
    assert_eq!(output.status.code(), Some(101));
    let report = recorded(root.path());
    assert_eq!((report.name.as_str(), report.exit_code()), ("race::kept_wakeups", 4));
    let Some(Cause::BadRequest { reason }) = &report.cause else { panic!("{:?}", report.cause) };
    assert!(reason.contains("/nonexistent/scx"), "{reason}");
}

#[test]
fn a_cell_that_is_not_there_is_an_error() {
    let output = harness(&["--exact", "gauntlet/verdicts::eevdf/no-such-preset"], &[]);
    assert_eq!(output.status.code(), Some(101));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-preset"), "{output:?}");
}

//! `cargo ktstr test` over two kernels, a look at each run afterwards, and the reports they leave: each kernel's
//! run is a test of its own, named by it, and what the one finds says nothing of the other.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use ktstr::prelude::*;
use ktstr_proto::verdict::{Cause, RunReport};

/// The series of Linux that `is_of_the_older_series` accepts.
const OLDER: &str = "6.18";

/// The newest series in the store, which it does not accept.
fn newest() -> String {
    let mut list = Command::new(ktstr::executables::find_own("cargo-ktstr").unwrap());
    let listed = list.args(["ktstr", "kernel", "list", "--json"]).output().unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let series = listed[0]["series"].as_str().expect("the store holds a kernel").to_owned();
    assert_ne!(series, OLDER, "the store holds a newer series");
    series
}

/// Figures alone, and nobody watches: nothing here depends on how fast the host is.
#[ktstr_test(llcs = 1, cores = 2, threads = 1, duration_s = 1, ignore, post_vm = is_of_the_older_series)]
fn looked_at(ctx: &Ctx) -> Result<AssertResult> {
    let mut result = AssertResult::pass();
    result.stats = scenarios::steady(ctx)?.stats;
    Ok(result)
}

fn is_of_the_older_series(vm: &VmResult) -> Result<()> {
    let recorded = fs::read(vm.run_dir().join("sidecar.json")).context("the run is not recorded yet")?;
    let recorded: RunReport = serde_json::from_slice(&recorded)?;
    ensure!(recorded.outcome == Outcome::Pass && recorded.run_id == vm.report.run_id, "another run");
    let done = vm.stats().context("no figures")?.total_iterations();
    ensure!(done > 0, "the workers did nothing");
    let release = &vm.report.kernel;
    ensure!(release.starts_with(&format!("{OLDER}.")), "{done} iterations were done, but on {release}");
    println!("looked at {release} after the run");
    Ok(())
}

/// A cargo whose nextest knows this executable alone, and runs the tests of it that `$PATTERN` fits.
const ONE_EXECUTABLE: &str = r#"#!/bin/sh
export NEXTEST=1 NEXTEST_BINARY_ID=ktstr::e2e
[ "$2" = run ] || exit 0
code=0
for name in $("$EXE" --list --format terse | sed -n 's/: test$//p' | grep -E "$PATTERN"); do
    "$EXE" --exact "$name" --nocapture --ignored || code=100
done
exit $code
"#;

/// `cargo ktstr test` over both series with the tests that `pattern` fits, and the reports of their runs.
fn over_both(here: &Path, series: &[String; 2], pattern: &str) -> (Output, Vec<RunReport>) {
    let (cargo, runs) = (here.join("cargo"), here.join("runs"));
    fs::write(&cargo, ONE_EXECUTABLE).unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(ktstr::executables::find_own("cargo-ktstr").unwrap());
    command.args(["ktstr", "test", "--accel", "tcg", "--kernel", &series[0], "--kernel", &series[1]]);
    command.env("CARGO", cargo).env("EXE", std::env::current_exe().unwrap()).env("PATTERN", pattern);
    command.env("KTSTR_RUNS_ROOT", &runs).env("KTSTR_OBSERVE", "0").env_remove("KTSTR_BUDGET_SECS");
    let output = command.output().unwrap();
    let root = fs::read_dir(&runs).unwrap().flatten().next().expect("a directory of its runs").path();
    let sidecars = fs::read_dir(root).unwrap().flatten().map(|run| run.path().join("sidecar.json"));
    let sidecars = sidecars.filter(|path| path.exists());
    let mut reports: Vec<RunReport> =
        sidecars.map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap()).collect();
    reports.sort_by(|a, b| a.name.cmp(&b.name));
    (output, reports)
}

#[test]
fn each_kernel_is_run_looked_at_and_recorded() {
    let (here, both) = (tempfile::tempdir().unwrap(), [OLDER.to_owned(), newest()]);
    let (output, reports) = over_both(here.path(), &both, "^ktstr/kernels::looked_at/kernel_");
    let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let names: Vec<&str> = reports.iter().map(|report| report.name.as_str()).collect();
    let name = |series: &String| format!("ktstr/kernels::looked_at/kernel_{}", series.replace('.', "_"));
    let expected = both.each_ref().map(name);
    assert_eq!(names, expected, "{told}\n{said}");

    let [older, newer] = &reports[..] else { panic!("{names:?}") };
    for (report, series) in reports.iter().zip(&both) {
        assert!(report.kernel.starts_with(&format!("{series}.")), "{}", report.kernel);
        assert!(report.result.as_ref().unwrap().stats.total_iterations() > 0);
        let repeated = "-E 'binary_id(=ktstr::e2e) & test(=kernels::looked_at)' --run-ignored all";
        let replay = &report.replay;
        assert!(replay.starts_with("KTSTR_OBSERVE=0 ") && replay.ends_with(repeated), "{replay}");
        // What is recorded is what was printed, word for word.
        let printed = if report.outcome == Outcome::Pass { &told } else { &said };
        assert!(printed.contains(&ktstr::render::report(report)), "{told}\n{said}");
    }
    assert_eq!((older.outcome, &older.cause), (Outcome::Pass, &None), "{said}");
    assert!(told.contains(&format!("looked at {} after the run", older.kernel)), "{told}");

    assert_eq!((newer.outcome, &newer.cause), (Outcome::Fail, &Some(Cause::Assertion)));
    let found: Vec<&str> = newer.result.as_ref().unwrap().failure_details().collect();
    assert_eq!(found.len(), 1, "{found:?}");
    let claim = format!("iterations were done, but on {}", newer.kernel);
    assert!(found[0].starts_with("after the run: ") && found[0].ends_with(&claim), "{found:?}");

    assert!(said.contains("ktstr: 1 passed, 1 failed, 0 inconclusive, 0 not run\n"), "{said}");
    assert!(said.contains(&format!("failed: {}: ", expected[1])), "{said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
}

#[test]
fn where_the_kernel_that_fails_is_not_run_the_code_is_zero() {
    let (here, both) = (tempfile::tempdir().unwrap(), [OLDER.to_owned(), newest()]);
    let (output, reports) = over_both(here.path(), &both, "^ktstr/kernels::looked_at/kernel_6_18$");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), reports.len()), (Some(0), 1), "{said}");
    assert!(said.contains("ktstr: 1 passed, 0 failed"), "{said}");
}

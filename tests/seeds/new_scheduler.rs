//! "Test a new scheduler", steps 1 and 2. `scx_my_sched` is the reader's own scheduler; here the tests
//! are ignored as they stand, and run below with the fixture scheduler in its place.

use ktstr::declare_scheduler;
use ktstr::prelude::*;
use ktstr_proto::{
    RunId,
    verdict::{Cause, RunReport},
};

declare_scheduler!(MY_SCHED, {
    name = "my_sched",
    binary = "scx_my_sched",
    topology = (1, 2, 4, 1),
    kernels = ["6.14", "6.15..=7.0"],
    sched_args = ["--exit-dump-len", "1048576"],
});

#[ignore = "there is no scx_my_sched; see basic_steady_runs_with_a_scheduler_in_its_place"]
#[ktstr_test(scheduler = MY_SCHED)]
fn basic_steady(ctx: &Ctx) -> Result<AssertResult> {
    // Inherits 1n2l4c1t from MY_SCHED
    scenarios::steady(ctx)
}

#[ignore = "there is no scx_my_sched; see smt_steady_runs_with_a_scheduler_in_its_place"]
#[ktstr_test(scheduler = MY_SCHED, threads = 2)]
fn smt_steady(ctx: &Ctx) -> Result<AssertResult> {
    // Inherits llcs=2, cores=4; overrides threads to exercise SMT
    scenarios::steady(ctx)
}

#[test]
fn each_dimension_is_inherited_on_its_own() {
    let shape = |name: &str| {
        let entry = ktstr::host::KTSTR_TESTS.iter().find(|entry| entry.name == name);
        entry.expect("it is registered").topology().expect("it can be built").to_string()
    };
    assert_eq!(shape("basic_steady"), "1n2l4c1t");
    assert_eq!(shape("smt_steady"), "1n2l4c2t");
}

/// The test executable itself, as a user would call it, with `KTSTR_SCHEDULER` in the place of the
/// scheduler that is not there, on a kernel that it is declared for.
#[test]
fn basic_steady_runs_with_a_scheduler_in_its_place() {
    runs("new_scheduler::basic_steady");
}

/// On sixteen CPUs, two threads a core.
#[test]
fn smt_steady_runs_with_a_scheduler_in_its_place() {
    runs("new_scheduler::smt_steady");
}

fn runs(test: &str) {
    let scheduler = ktstr::executables::find("scx-ktstr").expect("the fixture scheduler is built");
    let root = tempfile::tempdir().expect("room for a run");
    let output = std::process::Command::new(std::env::current_exe().expect("a test has an executable"))
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("KTSTR_SCHEDULER", scheduler)
        .env("KTSTR_KERNEL", "6.18")
        .env("KTSTR_RUNS_ROOT", root.path())
        .output()
        .expect("the test executable runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{text}");
    let runs = std::fs::read_dir(root.path()).expect("the run has a directory").flatten();
    let recorded: Vec<_> =
        runs.filter_map(|run| std::fs::read(run.path().join("sidecar.json")).ok()).collect();
    let [sidecar] = recorded.as_slice() else { panic!("{} runs are recorded", recorded.len()) };
    let report: RunReport = serde_json::from_slice(sidecar).expect("a report");
    assert_eq!(output.status.success(), report.outcome <= Outcome::Pass, "{text}");
    assert!(report.outcome <= Outcome::Pass || left_undecided_by_the_host(&report), "{text}");
}

/// Sixteen CPUs on a host with two that does other things besides: what that explains is no failure of the example.
fn left_undecided_by_the_host(report: &RunReport) -> bool {
    const EXCUSED: &str = "may be the host's doing";
    if report.infrastructure || report.outcome != Outcome::Inconclusive {
        return false;
    }
    if let Some(Cause::SchedulerStall { reason }) = &report.cause {
        return reason.contains(EXCUSED);
    }
    let details = report.result.iter().flat_map(|result| &result.details);
    let against: Vec<_> = details.filter(|detail| detail.outcome > Outcome::Pass).collect();
    !against.is_empty() && against.iter().all(|detail| detail.message.contains(EXCUSED))
}

#[test]
fn a_failure_with_an_excuse_among_its_remarks_is_a_failure() {
    const EXCUSED: &str = "a gap of 4 s may be the host's doing";
    let report = |details: &[(Outcome, &str)]| {
        let mut result = AssertResult::pass();
        details.iter().for_each(|(outcome, said)| result.push(DetailKind::Gap, *outcome, (*said).to_owned()));
        let outcome = details.iter().map(|(outcome, _)| *outcome).max().expect("something is said");
        let shape = Topology::new(1, 1, 1, 1).expect("the smallest machine");
        RunReport {
            outcome,
            result: Some(result),
            ..RunReport::blank(RunId("t-1".into()), "/t-1", "t", shape)
        }
    };
    let excused = (Outcome::Inconclusive, EXCUSED);
    assert!(left_undecided_by_the_host(&report(&[excused, (Outcome::Pass, "a remark")])));
    assert!(!left_undecided_by_the_host(&report(&[(Outcome::Fail, "it is stuck"), excused])));
    assert!(!left_undecided_by_the_host(&report(&[(Outcome::Inconclusive, "nobody knows"), excused])));
    assert!(!left_undecided_by_the_host(&report(&[(Outcome::Fail, EXCUSED)])));
    let broken = RunReport { infrastructure: true, ..report(&[excused]) };
    assert!(!left_undecided_by_the_host(&broken));
}

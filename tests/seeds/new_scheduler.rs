//! "Test a new scheduler", steps 1 and 2. `scx_my_sched` is the reader's own scheduler; here the tests
//! are ignored as they stand, and run below with the fixture scheduler in its place.

use ktstr::declare_scheduler;
use ktstr::prelude::*;

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
    let output = std::process::Command::new(std::env::current_exe().expect("a test has an executable"))
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("KTSTR_SCHEDULER", scheduler)
        .env("KTSTR_KERNEL", "6.18")
        .output()
        .expect("the test executable runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{text}");
    let passed = output.status.success() && text.contains("1 passed");
    // Sixteen CPUs on a host with two that does other things besides.
    assert!(passed || text.contains("may be the host's doing"), "{text}");
}

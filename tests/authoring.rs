//! Authoring as the documentation shows it: what the macros register, and what the guest half of a
//! test executable does before `main`. The functions here are registered and not run; `tests/demo.rs`
//! runs real ones.

use std::{
    io::Read,
    os::{fd::AsRawFd, unix::net::UnixStream},
    process::Command,
};

use ktstr::{KTSTR_SCHEDULERS, declare_scheduler, host::KTSTR_TESTS, prelude::*};
use ktstr_guest::report::Inbox;
use ktstr_proto::guest::{CHANNEL_ENV, GuestFrame, TEST_ENV, TestEnd};

declare_scheduler!(MY_SCHED, {
    name = "my_sched",
    binary = "scx_my_sched",
    topology = (1, 2, 4, 1),
    kernels = ["6.14", "6.15..=7.0"],
    sched_args = ["--exit-dump-len", "1048576"],
    assert = Assert { max_gap_ms: Some(500), ..Assert::NO_OVERRIDES },
});

#[ktstr_test(llcs = 1, cores = 2, threads = 1, ignore)]
fn my_test(ctx: &Ctx) -> Result<AssertResult> {
    execute_defs(
        ctx,
        vec![
            CgroupDef::named("cg_0").workers(2),
            CgroupDef::named("cg_1").workers(2).work_type(WorkType::pipe_io()).cpuset(CpusetSpec::Llc(0)),
        ],
    )
}

mod nested {
    use ktstr::prelude::*;

    use super::MY_SCHED;

    #[ktstr_test(scheduler = MY_SCHED, ignore)]
    fn basic_steady(ctx: &Ctx) -> Result<AssertResult> {
        scenarios::steady(ctx)
    }

    #[ktstr_test(scheduler = MY_SCHED, threads = 2, max_gap_ms = 900, isolation = false, ignore)]
    fn smt_steady(ctx: &Ctx) -> Result<AssertResult> {
        scenarios::steady(ctx)
    }
}

fn entry(name: &str) -> &'static ktstr::host::KtstrTestEntry {
    KTSTR_TESTS
        .iter()
        .find(|entry| entry.full_name() == name)
        .unwrap_or_else(|| panic!("{name} is not registered"))
}

#[test]
fn every_declaration_is_registered_under_the_harness_name() {
    let mut names: Vec<_> = KTSTR_TESTS.iter().map(|entry| entry.full_name()).collect();
    names.sort();
    assert_eq!(names, ["my_test", "nested::basic_steady", "nested::smt_steady"]);
    assert_eq!(KTSTR_SCHEDULERS.iter().map(|s| s.name).collect::<Vec<_>>(), ["my_sched"]);
    assert_eq!(MY_SCHED.kernels, ["6.14", "6.15..=7.0"]);
    assert_eq!(entry("my_test").package, "ktstr");
}

#[test]
fn shape_and_thresholds_are_inherited() {
    assert_eq!(entry("my_test").topology().unwrap().to_string(), "1n1l2c1t");
    assert_eq!(entry("nested::basic_steady").topology().unwrap().to_string(), "1n2l4c1t");
    assert_eq!(entry("nested::smt_steady").topology().unwrap().to_string(), "1n2l4c2t");
    assert_eq!(entry("nested::basic_steady").overrides().max_gap_ms, Some(500));
    let own = entry("nested::smt_steady").overrides();
    assert_eq!((own.max_gap_ms, own.isolation, own.not_stuck), (Some(900), Some(false), None));
}

/// This executable, started as PID 1 of a guest would start it; its frames and exit status.
fn as_guest(test: &str) -> (Vec<GuestFrame>, Option<i32>) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    nix::fcntl::fcntl(&theirs, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(TEST_ENV, test)
        .env(CHANNEL_ENV, theirs.as_raw_fd().to_string())
        .spawn()
        .unwrap();
    drop(theirs);
    let mut bytes = Vec::new();
    ours.read_to_end(&mut bytes).unwrap();
    let mut inbox = Inbox::default();
    inbox.push(&bytes);
    let frames = std::iter::from_fn(|| inbox.next_frame().unwrap()).collect();
    (frames, child.wait().unwrap().code())
}

#[test]
fn in_the_guest_the_constructor_runs_instead_of_the_harness() {
    let (frames, code) = as_guest("no_such_test");
    let known = vec!["my_test".into(), "nested::basic_steady".into(), "nested::smt_steady".into()];
    assert_eq!(frames, [GuestFrame::TestEnded(TestEnd::Unknown(known))]);
    assert_eq!(code, Some(1));
}

#[test]
fn without_a_job_a_test_does_not_pass() {
    let (frames, code) = as_guest("my_test");
    assert_eq!((frames, code), (vec![], Some(2)));
}

/// Everything `use ktstr::prelude::*` brings, in order. A name that goes breaks users' tests; one that
/// comes may shadow theirs: both are meant to be noticed.
const PRELUDE: &str = "\
    AbsoluteThresholds AffinityIntent Aggregate Assert AssertResult BTreeSet Backdrop BpfMapWrite
    CgroupDef CgroupGroup CgroupManager
    CgroupStats Cgroups CloneMode Constraints Context CpuQuota CpusetSpec Ctx Custom CustomCfg
    DISK_DEVICE DISK_MOUNT DetailKind DiskConfig Duration Filesystem HoldSpec HostError Irq KernelTarget
    KernelValue KernelWidth KernelWrite Limit Limits MapValue
    MemPolicy MetricCheck MetricDef MissingStatsReason MpolFlags NetConfig Op OpKind Outcome Payload PayloadHandle
    PayloadMetrics PayloadOutput Phase PhaseBucket PhaseCgroup PiMode Placement Polarity Random
    Reap Result SampleSeries ScenarioStats SchbenchConfig SchedPolicy Scheduler SequencePhase
    SeriesField Setup SimdWidth Snapshot SnapshotBridge SnapshotError Step Sysctl TaobenchConfig
    TestTopology Topology Verdict VmResult WakeMechanism WatchBpfMap WorkSpec WorkType WorkerCtx WorkerExit
    WorkerReport WorkloadConfig WorkloadHandle all_of any_of anyhow assert_scx_events_clean
    assert_thresholds bail claim claim_better claim_present claim_seq claim_set collect_all declare_scheduler dfl_wl
    ensure execute_defs execute_scenario execute_scenario_with execute_steps execute_steps_with
    judge ktstr_test scenarios setup_cgroups spawn_diverse
";

#[test]
fn the_prelude_has_exactly_these_names() {
    let source = include_str!("../src/prelude.rs");
    let code: String = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let mut names: Vec<String> = Vec::new();
    for statement in code.split(';').filter_map(|statement| statement.split_once("pub use ")) {
        // What is followed by `::` is a module, the rest are names.
        let words = statement.1.split(['{', '}', ',']).map(str::trim).filter(|word| !word.is_empty());
        let last = words.filter(|word| !word.ends_with("::")).filter_map(|word| word.rsplit("::").next());
        names.extend(last.map(str::to_owned));
    }
    names.sort();
    // `Payload` is a type and a derive macro.
    names.dedup();
    assert_eq!(names, PRELUDE.split_whitespace().collect::<Vec<_>>());
}

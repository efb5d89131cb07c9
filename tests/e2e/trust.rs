//! Whether a verdict can be trusted: each way in which a scheduler misbehaves is found by the check that is
//! meant for it, and a healthy one by none.
//!
//! One run each here; `cargo xtask trust` makes many, under load, and prints what became of them. All
//! subjects run the same scenario: sleepers for the time a wake takes, then workers that never pause
//! for fairness beside workers of a cpuset.

use ktstr::prelude::*;
use ktstr_proto::{
    Accel,
    verdict::{Cause, Detail, Outcome, RunReport},
};

use crate::harness::{run, spec};

/// What the mutations of the scheduler are told apart by.
macro_rules! mutations {
    ($($name:ident, $scheduler:ident, $label:tt, $args:tt;)*) => {
        $(declare_scheduler!($scheduler, {
            name = $label,
            binary = "scx-ktstr",
            topology = (1, 1, 2, 1),
            sched_args = $args,
        });

        #[ktstr_test(scheduler = $scheduler, duration_s = 5, max_p99_wake_latency_ns = 250_000_000, ignore)]
        fn $name(ctx: &Ctx) -> Result<AssertResult> {
            scenario(ctx)
        })*
    };
}

mutations! {
    trust_sound, SOUND, "scx-ktstr", [];
    trust_stall, STALL, "scx-ktstr-stall", ["--stall-after", "1000", "--watchdog-ms", "2000"];
    trust_slow, SLOW, "scx-ktstr-slow", ["--slow", "10ms"];
    trust_unfair, UNFAIR, "scx-ktstr-unfair", ["--unfair", "--watchdog-ms", "30000"];
    trust_wrong_cpu, WRONG_CPU, "scx-ktstr-wrong-cpu", ["--wrong-cpu"];
}

declare_scheduler!(STARVING, {
    name = "scx-ktstr-starving",
    binary = "scx-ktstr",
    topology = (1, 1, 2, 1),
    sched_args = ["--unfair", "--unfair-ms", "25000", "--watchdog-ms", "30000"],
});

/// Says nothing about checks.
#[ktstr_test(scheduler = STARVING, duration_s = 6, ignore)]
fn trust_starved(ctx: &Ctx) -> Result<AssertResult> {
    execute_defs(ctx, vec![CgroupDef::named("spinners").workers(3)])
}

/// Asks for what this machine has not.
#[ktstr_test(llcs = 1, cores = 2, threads = 1, duration_s = 1, ignore)]
fn trust_nothing_ran(ctx: &Ctx) -> Result<AssertResult> {
    execute_defs(ctx, vec![CgroupDef::named("siblings").workers(2).work_type(WorkType::SmtSiblingSpin)])
}

fn scenario(ctx: &Ctx) -> Result<AssertResult> {
    let naps = WorkType::Bursty {
        burst_duration: Duration::from_micros(100),
        sleep_duration: Duration::from_millis(10),
    };
    let sleepers = CgroupDef::named("sleepers").workers(24).work_type(naps);
    let spinners = CgroupDef::named("spinners").workers(3);
    let placed =
        CgroupDef::named("placed").workers(1).cpuset(CpusetSpec::exact([1])).work_type(WorkType::bursty());
    execute_steps(
        ctx,
        vec![
            Step::with_defs(vec![sleepers], HoldSpec::frac(0.3)),
            Step::with_defs(vec![spinners, placed], HoldSpec::frac(0.7)),
        ],
    )
}

/// Findings that failed.
fn failed(report: &RunReport) -> Vec<DetailKind> {
    let details = report.result.iter().flat_map(|result| &result.details);
    details.filter(|detail| detail.outcome == Outcome::Fail).map(|detail| detail.kind).collect()
}

/// The check failed, or it is said that and why the host may be to blame.
fn found(name: &str, kind: DetailKind) {
    let report = run(spec(name, Accel::Tcg));
    if let (Outcome::Inconclusive, Some(Cause::SchedulerStall { reason })) = (report.outcome, &report.cause) {
        assert!(reason.contains("may be the host's doing"), "{reason}");
        return;
    }
    let details = report.result.iter().flat_map(|result| &result.details);
    let mut about = details.filter(|detail| detail.kind == kind);
    let excused = |detail: &Detail| detail.message.contains("may be the host's doing");
    assert!(about.any(|detail| detail.outcome == Outcome::Fail || excused(detail)), "{:?}", report.cause);
}

#[test]
fn a_slow_scheduler_is_found_by_the_time_a_wake_takes() {
    found("trust_slow", DetailKind::Benchmark);
}

#[test]
fn an_unfair_scheduler_is_found_by_the_spread() {
    found("trust_unfair", DetailKind::Spread);
}

#[test]
fn a_scheduler_that_ignores_cpusets_is_found_by_the_kernel() {
    let report = run(spec("trust_wrong_cpu", Accel::Tcg));
    let Some(Cause::SchedulerError { reason }) = &report.cause else { panic!("{:?}", report.cause) };
    assert!(reason.contains("not allowed") || reason.contains("cannot move"), "{reason}");
}

#[test]
fn under_det_a_starved_worker_fails_a_test_that_asks_for_nothing() {
    let report = run(spec("trust_starved", Accel::Det));
    assert!(failed(&report).contains(&DetailKind::Spread), "{:?}", report.result);
}

#[test]
fn a_scenario_of_which_nothing_could_run_is_not_run() {
    let report = run(spec("trust_nothing_ran", Accel::Tcg));
    assert_eq!(report.outcome, Outcome::NotRun, "{:?}", report.result);
}

#[test]
fn under_det_a_healthy_scheduler_is_found_by_nothing() {
    let report = run(spec("trust_sound", Accel::Det));
    assert_eq!((report.outcome, failed(&report)), (Outcome::Pass, Vec::new()));
}

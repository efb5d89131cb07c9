//! The same test has the same verdict everywhere, and each way to fail has its own cause.

use std::time::{Duration, Instant};

use ktstr::prelude::*;
use ktstr_proto::{
    Accel,
    host::HostTime,
    run::RunSpec,
    verdict::{Cause, Outcome, RunReport},
};

use crate::harness::{assert_sound, exec, not_run, recorded, run, run_with_output, spec};
use crate::pulse::Pulse;

declare_scheduler!(HEALTHY, { name = "scx-ktstr", binary = "scx-ktstr", topology = (1, 2, 2, 1) });
declare_scheduler!(STALLING, {
    name = "scx-ktstr-stall",
    binary = "scx-ktstr",
    topology = (1, 1, 2, 1),
    sched_args = ["--stall-after", "2000", "--watchdog-ms", "2000"],
});
declare_scheduler!(CRASHING, {
    name = "scx-ktstr-crash",
    binary = "scx-ktstr",
    topology = (1, 1, 2, 1),
    sched_args = ["--crash-after", "2000"],
});
declare_scheduler!(REJECTED, {
    name = "scx-ktstr-rejected",
    binary = "scx-ktstr",
    topology = (1, 1, 2, 1),
    sched_args = ["--fail-verify"],
});

#[ktstr_test(scheduler = HEALTHY, duration_s = 3, ignore)]
fn healthy(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

#[ktstr_test(scheduler = STALLING, duration_s = 30, ignore)]
fn stalling(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

#[ktstr_test(scheduler = CRASHING, duration_s = 30, ignore)]
fn crashing(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

#[ktstr_test(scheduler = REJECTED, duration_s = 3, ignore)]
fn rejected(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

#[ktstr_test(llcs = 1, cores = 2, threads = 1, duration_s = 3, ignore)]
fn eevdf(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

#[ktstr_test(llcs = 1, cores = 2, threads = 1, duration_s = 1, ignore)]
fn brief(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

#[ktstr_test(llcs = 1, cores = 2, threads = 1, duration_s = 3, ignore)]
fn every_work_type(ctx: &Ctx) -> Result<AssertResult> {
    execute_defs(
        ctx,
        vec![
            CgroupDef::named("spin").workers(1),
            CgroupDef::named("yield").workers(2).work_type(WorkType::YieldHeavy),
            CgroupDef::named("pipe").workers(2).work_type(WorkType::PipeIo { burst_iters: 1024 }),
            CgroupDef::named("bursty").workers(2).work_type(WorkType::Bursty {
                burst_duration: Duration::from_millis(20),
                sleep_duration: Duration::from_millis(40),
            }),
        ],
    )
}

#[ktstr_test(llcs = 1, cores = 1, threads = 1, duration_s = 1, ignore)]
fn panicking(_ctx: &Ctx) -> Result<AssertResult> {
    let queues: [u32; 0] = [];
    assert_eq!(queues.len(), 3, "three queues were expected");
    Ok(AssertResult::pass())
}

#[ktstr_test(llcs = 1, cores = 1, threads = 1, duration_s = 1, ignore)]
fn erring(_ctx: &Ctx) -> Result<AssertResult> {
    Err(anyhow::anyhow!("no such knob").context("tuning the machine"))
}

/// A healthy scheduler's run, with figures; false where the host kept it from its end.
fn assert_pass(report: &RunReport) -> bool {
    if !assert_sound(report) {
        return false;
    }
    let stats = &report.result.as_ref().expect("a passing test has figures").stats;
    assert!(stats.total_iterations() > 0 && stats.workers.iter().all(|w| w.cpu_time_ns > 0));
    true
}

#[test]
fn on_tcg_a_healthy_scheduler_passes() {
    let report = run(spec("healthy", Accel::Tcg));
    if !assert_pass(&report) {
        return;
    }
    let monitor = report.monitor.expect("the run was observed");
    assert!(monitor.samples >= 5, "only {} samples", monitor.samples);
    assert!(!monitor.events.is_empty(), "the scheduler's event counters were read");
    let phases = &report.result.as_ref().expect("checked").stats.phases;
    let seen: Vec<_> = phases.iter().filter_map(|phase| phase.monitor.as_ref()).collect();
    assert!(seen.iter().any(|seen| seen.samples > 0 && seen.mean_nr_running > 0.0), "{phases:?}");
    assert!(monitor.vcpu_time_known, "what the host gave to the vCPUs was known to the monitor");
    let host = report.host.expect("and is in the report");
    assert!(host.ran_ms.len() == 4 && host.ran_ms.iter().all(|ran| *ran > 0), "{host:?}");
}

#[test]
fn on_tcg_an_older_series_gives_the_same_verdict() {
    let mut older = spec("healthy", Accel::Tcg);
    older.kernel = Some("6.18".into());
    let report = run(older);
    assert_pass(&report);
    assert!(report.kernel.starts_with("6.18."), "{}", report.kernel);
}

#[test]
fn on_det_a_healthy_scheduler_passes() {
    assert_pass(&run(spec("healthy", Accel::Det)));
}

/// A seed is an interleaving: the same one again gives the same bytes, another one others.
#[test]
fn on_det_a_seed_decides_everything() {
    let said_by_guest = |seed| {
        let report = run(RunSpec { seed, vary: true, ..spec("brief", Accel::Det) });
        assert_pass(&report);
        std::fs::read_to_string(report.run_dir.join("guest.jsonl")).expect("the guest's words are kept")
    };
    let first = said_by_guest(1);
    assert_eq!(first, said_by_guest(1));
    assert_ne!(first, said_by_guest(2));
}

#[test]
fn on_kvm_a_healthy_scheduler_passes() {
    let report = run(spec("healthy", Accel::Kvm));
    if !not_run(&report, Accel::Kvm) {
        assert_pass(&report);
    }
}

#[test]
fn on_kvm_eevdf_passes() {
    let report = run(spec("eevdf", Accel::Kvm));
    if !not_run(&report, Accel::Kvm) {
        assert_pass(&report);
    }
}

#[test]
fn on_tcg_eevdf_passes() {
    let report = run(spec("eevdf", Accel::Tcg));
    assert_pass(&report);
    assert_eq!(report.scheduler, "EEVDF");
}

#[test]
fn on_tcg_every_work_type_makes_progress() {
    let report = run(spec("every_work_type", Accel::Tcg));
    if assert_pass(&report) {
        assert_eq!(report.result.expect("checked").stats.cgroups.len(), 4);
    }
}

/// A scheduler that is out is reported soon after, not when the test's time is up.
fn assert_prompt(report: &RunReport, pulse: &Pulse) {
    let disabled = recorded(&report.run_dir, "scheduler-disabled").expect("the event is in the log");
    let at = disabled.pointer("/t_ms").and_then(serde_json::Value::as_u64).expect("with its time");
    let took = report.host_ms.1 - at;
    // What is left to do takes CPU time, of which the guest got this share, and time that passes.
    let waited_pct = report.host.as_ref().map_or(0.0, HostTime::worst_waited_pct).min(95.0);
    let withheld = pulse.withheld_since(Instant::now() - Duration::from_millis(took));
    let allowed = (2000.0 / (1.0 - waited_pct / 100.0)) as u64 + withheld.as_millis() as u64;
    println!("reported {took} ms after sched_ext was disabled, {allowed} ms are allowed");
    assert!(took <= allowed, "the report came {took} ms after sched_ext was disabled");
}

fn assert_fails(report: &RunReport) {
    assert_eq!(
        (report.outcome, report.infrastructure, report.exit_code()),
        (Outcome::Fail, false, 1),
        "{:?}",
        report.cause
    );
}

#[test]
fn a_stall_is_called_a_stall() {
    let pulse = Pulse::start();
    let report = run(spec("stalling", Accel::Tcg));
    assert_fails(&report);
    assert!(matches!(report.cause, Some(Cause::SchedulerStall { .. })), "{:?}", report.cause);
    assert!(!report.scheduler_log.is_empty(), "the scheduler's log is kept");
    assert_prompt(&report, &pulse);
    // The evidence was taken before the kernel ended the scheduler and cleared its queues away.
    let dump = std::fs::read_to_string(report.run_dir.join("capture-0.txt")).expect("a capture in time");
    assert!(dump.lines().next().is_some_and(|line| line.contains("watchdog")), "{dump}");
    assert!(dump.contains("state: enabled") && !dump.contains("runnable tasks that wait ==\nnone"), "{dump}");
    assert!(report.notes.iter().any(|note| note.contains("capture-0.txt")), "{:?}", report.notes);
}

#[test]
fn a_crash_is_called_an_error_of_the_scheduler() {
    let pulse = Pulse::start();
    let report = run(spec("crashing", Accel::Tcg));
    assert_fails(&report);
    assert!(matches!(report.cause, Some(Cause::SchedulerError { .. })), "{:?}", report.cause);
    assert_prompt(&report, &pulse);
}

#[test]
fn a_rejected_program_never_attached_and_its_log_says_why() {
    let report = run(spec("rejected", Accel::Tcg));
    assert_fails(&report);
    assert!(matches!(report.cause, Some(Cause::SchedulerNotAttached { .. })), "{:?}", report.cause);
    assert!(!report.scheduler_log.is_empty());
}

#[test]
fn a_panic_in_the_test_arrives_with_message_and_backtrace() {
    let report = run(spec("panicking", Accel::Tcg));
    assert_fails(&report);
    let Some(Cause::TestPanic { message, backtrace }) = &report.cause else { panic!("{:?}", report.cause) };
    assert!(message.contains("three queues were expected") && message.contains("verdicts.rs"), "{message}");
    assert!(backtrace.contains("panicking"), "{backtrace}");
}

#[test]
fn an_error_from_the_test_arrives_with_its_causes() {
    let report = run(spec("erring", Accel::Tcg));
    assert_fails(&report);
    let result = report.result.expect("the error is a finding");
    let said: Vec<&str> = result.failure_details().collect();
    assert!(said.iter().any(|s| s.contains("tuning the machine") && s.contains("no such knob")), "{said:?}");
}

#[test]
fn a_command_gives_its_output_and_status() {
    let (report, output) = run_with_output(exec("echo out; echo err >&2; exit 7"));
    assert_eq!(report.exit_status, Some(7), "{:?}", report.cause);
    assert!(output.contains("out\n") && output.contains("err\n"), "{output}");
}

#[test]
fn a_published_scheduler_passes_unpatched() {
    let Some(binary) = std::env::var_os("KTSTR_PUBLISHED_SCHEDULER") else {
        println!("NOT RUN: KTSTR_PUBLISHED_SCHEDULER names no scheduler; `cargo xtask published` builds one");
        return;
    };
    let mut published = spec("healthy", Accel::Tcg);
    if let ktstr_proto::run::Job::Test(test) = &mut published.job {
        let scheduler = test.scheduler.as_mut().expect("the subject has a scheduler");
        scheduler.name = binary.to_string_lossy().into_owned();
        scheduler.source = ktstr_proto::run::SchedulerSource::Program(binary.into());
    }
    assert_pass(&run(published));
}

//! A crash is looked into by a second run, which tells what the kernel did on the way there.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ktstr::prelude::*;
use ktstr_proto::{
    Accel,
    repro::{AutoRepro, Recurrence, Seen, SeenKind},
    run::RunSpec,
    verdict::{Cause, Outcome, RunReport},
};

use crate::death::{orchestrator, strike};
use crate::harness::{Live, PATIENCE, SOON, alive, not_run, recorded_pid, run, spec, wait_for};

declare_scheduler!(ERRS, {
    name = "scx-ktstr-errs",
    binary = "scx-ktstr",
    topology = (1, 1, 2, 1),
    sched_args = ["--crash-after", "1000"],
});
declare_scheduler!(STALLS, {
    name = "scx-ktstr-stalls",
    binary = "scx-ktstr",
    topology = (1, 1, 2, 1),
    sched_args = ["--stall-after", "1000", "--watchdog-ms", "2000"],
});

#[ktstr_test(scheduler = ERRS, duration_s = 30, ignore)]
fn errs_twice(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

#[ktstr_test(scheduler = STALLS, duration_s = 30, ignore)]
fn stalls_twice(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

/// Runs a subject that fails, and what its second run showed.
fn looked_into(name: &str) -> (RunReport, AutoRepro) {
    shown(run(RunSpec { auto_repro: true, ..spec(name, Accel::Tcg) }))
}

/// What a crash's second run showed.
fn shown(report: RunReport) -> (RunReport, AutoRepro) {
    assert!(matches!(report.outcome, Outcome::Fail | Outcome::Inconclusive), "{:?}", report.cause);
    let repro = *report.auto_repro.clone().expect("a second run");
    assert!(matches!(repro.recurrence, Recurrence::Again(_)), "{:?}", repro.recurrence);
    let account = repro.account.as_ref().expect("the guest says what became of its probes");
    assert_eq!(account.impossible, None);
    assert!(!account.triggers.is_empty(), "{account:?}");
    let refused: Vec<_> = account.sites.iter().filter(|site| site.refused.is_some()).collect();
    assert!(refused.is_empty(), "{refused:?}");
    let end = repro.end.as_ref().expect("the guest says how much was recorded");
    assert!(end.fired && end.sent > 0, "{end:?}");
    // The same facts are in the sidecar, and the second run has its directory in the first's.
    let sidecar = std::fs::read(report.run_dir.join("sidecar.json")).expect("a sidecar");
    let told: RunReport = serde_json::from_slice(&sidecar).expect("a report");
    assert_eq!(told.auto_repro.as_deref(), Some(&repro));
    assert!(repro.run_dir.starts_with(&report.run_dir) && repro.run_dir.join("guest.jsonl").is_file());
    (report, repro)
}

fn exit(repro: &AutoRepro) -> &Seen {
    let last = repro.seen.last().expect("events");
    assert_eq!((last.kind, last.at_us), (SeenKind::Exit, 0), "{last:?}");
    last
}

fn has(seen: &Seen, name: &str, value: &str) -> bool {
    seen.args.iter().any(|(n, v)| n == name && v == value)
}

#[test]
fn an_error_of_the_scheduler_is_told_with_what_led_to_it() {
    let (report, repro) = looked_into("errs_twice");
    assert!(matches!(report.cause, Some(Cause::SchedulerError { .. })), "{:?}", report.cause);
    assert!(has(exit(&repro), "kind", "ERROR_BPF"), "{:?}", exit(&repro));
    assert!(repro.stack.iter().any(|function| function == "scx_bpf_error_bstr"), "{:?}", repro.stack);
    // The kernel blames no task, so these are of the CPU on which it happened.
    assert_eq!((repro.task.as_deref(), repro.cpu), (None, Some(exit(&repro).cpu)));
    assert!(repro.seen.iter().any(|seen| seen.site == "scx_bpf_error_bstr"), "the call that raised it");
    let text = ktstr::render::report(&report);
    assert!(text.contains("--- auto-repro ---") && text.contains("kind=ERROR_BPF"), "{text}");
}

#[test]
fn a_stalled_task_is_told_of_up_to_the_exit() {
    let (report, repro) = looked_into("stalls_twice");
    assert!(matches!(report.cause, Some(Cause::SchedulerStall { .. })), "{:?}", report.cause);
    assert!(has(exit(&repro), "kind", "ERROR_STALL"), "{:?}", exit(&repro));
    let Some(task) = repro.task.as_deref() else {
        // The watchdog's own worker may stand in that queue, too; then the kernel blames nobody else.
        let Recurrence::Again(Cause::SchedulerStall { reason }) = &repro.recurrence else {
            panic!("{:?}", repro.recurrence)
        };
        assert!(reason.contains("watchdog failed to check in"), "{reason}");
        assert_eq!(repro.cpu, Some(exit(&repro).cpu));
        assert!(repro.seen.iter().all(|seen| seen.cpu == exit(&repro).cpu), "{:?}", repro.seen);
        return;
    };
    // The last that was done to it: it was put into the shared queue, where it stayed.
    let enqueued = |seen: &&Seen| ["dispatch_enqueue", "scx_dispatch_enqueue"].contains(&seen.site.as_str());
    let enqueued = repro.seen.iter().rfind(enqueued);
    let enqueued = enqueued.unwrap_or_else(|| panic!("no queue for {task} among {:?}", repro.seen));
    assert!(has(enqueued, "p.task", task) && !has(enqueued, "dsq.id", "LOCAL"), "{enqueued:?}");
    assert!(enqueued.at_us < -1_000_000, "it waited for as long as the watchdog tolerates: {enqueued:?}");
}

#[test]
fn on_kvm_an_error_of_the_scheduler_is_told_with_what_led_to_it() {
    let report = run(RunSpec { auto_repro: true, ..spec("errs_twice", Accel::Kvm) });
    if not_run(&report, Accel::Kvm) {
        return;
    }
    let (_, repro) = shown(report);
    assert!(has(exit(&repro), "kind", "ERROR_BPF"), "{:?}", exit(&repro));
    assert!(repro.seen.iter().any(|seen| seen.site == "scx_bpf_error_bstr"), "the call that raised it");
}

/// Kills a process of the second run as soon as there is one, and gives the report that comes, and the section.
fn struck(victim: fn(&Path) -> u32) -> (RunReport, AutoRepro) {
    let root = tempfile::tempdir().expect("a directory");
    // A second run that went on from a snapshot might be over first.
    let asked = RunSpec { auto_repro: true, warm: false, ..spec("errs_twice", Accel::Tcg) };
    let live = Live::start(asked, root.path());
    let second = wait_for("second run", PATIENCE, || second_run(&live.dir));
    let pids = ["vmm-pid", "emulator-pid", "monitor-pid"].map(|event| recorded_pid(&second, event, "/value"));
    strike(victim(&second));
    let report = live.end().0.expect("the first run's report");
    // What the first run came to stands.
    assert_eq!((report.outcome, report.infrastructure), (Outcome::Fail, false), "{:?}", report.cause);
    assert!(matches!(report.cause, Some(Cause::SchedulerError { .. })), "{:?}", report.cause);
    for pid in pids {
        wait_for("end of the second run", SOON, || (!alive(pid)).then_some(()));
    }
    let repro = *report.auto_repro.clone().expect("what became of the second run");
    println!("{}", ktstr::render::report(&report));
    (report, repro)
}

/// Its directory in the first's, once it is there.
fn second_run(first: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(first).ok()?.flatten().map(|entry| entry.path());
    entries.into_iter().find(|path| path.is_dir() && path.join("events.jsonl").is_file())
}

#[test]
fn a_verdict_outlives_each_process_of_its_second_run() {
    let (report, repro) = struck(|dir| recorded_pid(dir, "vmm-pid", "/value"));
    assert_eq!(repro.recurrence, Recurrence::NotRun("ktstr-vmm was killed by signal 9".into()));
    assert!(ktstr::render::report(&report).contains("came to no end of its own"));

    let (_, repro) = struck(|dir| recorded_pid(dir, "monitor-pid", "/value"));
    assert!(matches!(repro.recurrence, Recurrence::Again(_)), "{:?}", repro.recurrence);
    assert!(repro.notes.iter().any(|note| note.contains("ktstr-monitor was killed")), "{:?}", repro.notes);
    assert!(has(exit(&repro), "kind", "ERROR_BPF"), "events come from the guest: {:?}", exit(&repro));

    let (_, repro) = struck(|_| orchestrator());
    let Recurrence::NotRun(why) = &repro.recurrence else { panic!("{:?}", repro.recurrence) };
    assert!(why.contains("ktstr-orch was killed by signal 9"), "{why}");
}

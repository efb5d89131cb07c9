//! A crash looked into: which runs are, what is told of them.

use std::path::Path;

use ktstr_proto::{
    Topology,
    repro::{ProbeSite, SeenKind},
    run::{Expectation, RunId, SchedulerJob, SchedulerSource, TestJob},
    verdict::{Assert, Process},
};

use super::*;
use crate::example;

fn spec() -> RunSpec {
    let scheduler = SchedulerJob {
        name: "s".into(),
        source: SchedulerSource::Program("/s".into()),
        args: Vec::new(),
        cgroup_parent: None,
        kernels: Vec::new(),
    };
    let job = Job::Test(TestJob {
        binary: "/t".into(),
        test: "t".into(),
        duration_ms: 1,
        scheduler: Some(scheduler),
        include: Vec::new(),
        assert: Assert::NO_OVERRIDES,
        staged: Vec::new(),
        files: Vec::new(),
        expect: Expectation::default(),
        snapshots: 0,
    });
    RunSpec { accel: Accel::Auto, auto_repro: true, ..example::request(job, Path::new("/runs")) }
}

fn stall() -> Cause {
    Cause::SchedulerStall { reason: "runnable task stall: worker[122] failed to run for 2.048s".into() }
}

fn report(outcome: Outcome, cause: Option<Cause>) -> RunReport {
    let shape = Topology::new(1, 1, 2, 1).unwrap();
    RunReport { outcome, cause, ..RunReport::blank(RunId("t-1".into()), "/runs/t-1", "t", shape) }
}

fn held(spec: &RunSpec, report: &RunReport) -> Option<Held> {
    hold(spec, report, Some(("debian-7", AccelKind::Tcg)), [&[], &[]])
}

#[test]
fn only_a_crash_that_nobody_expected_is_looked_into() {
    let failed = |cause| report(Outcome::Fail, Some(cause));
    for cause in
        [stall(), Cause::SchedulerError { reason: "e".into() }, Cause::SchedulerDied { how: "d".into() }]
    {
        assert!(held(&spec(), &failed(cause.clone())).is_some(), "{cause:?}");
        assert!(held(&spec(), &report(Outcome::Inconclusive, Some(cause.clone()))).is_some());
        assert!(held(&spec(), &report(Outcome::Pass, Some(cause))).is_none());
    }
    for cause in [Cause::Assertion, Cause::Cancelled, Cause::SchedulerNotAttached { reason: "n".into() }] {
        assert!(held(&spec(), &failed(cause.clone())).is_none(), "{cause:?}");
    }
    let broken = RunReport { infrastructure: true, ..failed(stall()) };
    assert!(held(&spec(), &broken).is_none());
    assert!(held(&RunSpec { auto_repro: false, ..spec() }, &failed(stall())).is_none());
    let second = held(&spec(), &failed(stall())).unwrap().second;
    assert!(held(&second, &failed(stall())).is_none(), "a second run has no third");
    let mut expected = spec();
    if let Job::Test(test) = &mut expected.job {
        test.expect.err = true;
    }
    assert!(held(&expected, &failed(stall())).is_none());
}

#[test]
fn the_second_run_is_the_first_with_what_was_chosen_for_it() {
    let second = held(&spec(), &report(Outcome::Fail, Some(stall()))).unwrap().second;
    let same = RunSpec {
        name: second.name.clone(),
        kernel: Some("debian-7".into()),
        accel: Accel::Tcg,
        runs_root: "/runs/t-1".into(),
        auto_repro: false,
        probing: Some(Probing { stack: Vec::new() }),
        ..spec()
    };
    assert_eq!(second, same);
}

fn event(t_us: u64, cpu: u32, pid: u32, site: &str, text: &str) -> ProbeEvent {
    ProbeEvent { t_ns: t_us * 1000, cpu, pid, comm: "c".into(), site: site.into(), text: text.into() }
}

fn gathered(events: Vec<ProbeEvent>) -> Gathered {
    let site = ProbeSite { name: "scx_vexit".into(), of_stack: false, absent: vec![], refused: None };
    let account =
        ProbeAccount { sites: vec![site], triggers: vec!["scx_vexit".into()], ..Default::default() };
    let mut gathered = Gathered::default();
    assert!(gathered.take(&GuestFrame::Probes(account)));
    assert!(gathered.take(&GuestFrame::Probed(events)));
    assert!(gathered.take(&GuestFrame::ProbesEnded(ProbeEnd { fired: true, ..Default::default() })));
    assert!(!gathered.take(&GuestFrame::Watch("x".into())));
    gathered
}

#[test]
fn the_blamed_tasks_events_are_told_in_order_up_to_the_exit() {
    let first = report(Outcome::Fail, Some(stall()));
    let held = held(&spec(), &first).unwrap();
    let enqueue = "(enqueue_task_scx+0x4/0x340) rq=0xffff88803d832100 enq_flags=9 p_pid=122 p_comm=\"my worker\" \
                   p_cpus=0x3 p_slice=20000000";
    let events = vec![
        event(900, 1, 5, "scx_vexit", "(scx_vexit+0x4/0x1c0) kind=1026 exit_code=0"),
        event(950, 1, 5, "sched_switch", "prev_comm=x prev_pid=122 prev_state=R ==> next_comm=y next_pid=7"),
        event(500, 0, 122, "scx_bpf_dsq_insert", "(f+0x0/0x1) dsq_id=9223372036854775810 slice=20000000"),
        event(400, 0, 0, "enqueue_task_scx", enqueue),
        event(450, 0, 0, "enqueue_task_scx", "(f+0x0/0x1) p_pid=99 p_comm=\"other\""),
        event(300, 1, 0, "select_task_rq_scx__return", "(f <- g) cpu=1 p_pid=122"),
        event(
            600,
            1,
            8,
            "sched_switch",
            "prev_comm=a b prev_pid=8 prev_state=R ==> next_comm=y next_pid=122",
        ),
    ];
    let told = told(&held, first.clone(), gathered(events));
    assert_eq!(told.recurrence, Recurrence::Again(stall()));
    assert_eq!((told.task.as_deref(), told.cpu, told.left_out), (Some("worker[122]"), Some(1), 0));
    let order: Vec<(i64, &str, SeenKind)> =
        told.seen.iter().map(|s| (s.at_us, s.site.as_str(), s.kind)).collect();
    assert_eq!(
        order,
        [
            (-600, "select_task_rq_scx", SeenKind::Return),
            (-500, "enqueue_task_scx", SeenKind::Entry),
            (-400, "scx_bpf_dsq_insert", SeenKind::Entry),
            (-300, "sched_switch", SeenKind::Trace),
            (0, "scx_vexit", SeenKind::Exit),
        ]
    );
    let args: Vec<String> = told.seen[1].args.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(
        args,
        [
            "p.task=my worker[122]",
            "rq=0xffff88803d832100",
            "enq_flags=WAKEUP|0x8",
            "p.cpus=0-1",
            "p.slice=20000us"
        ]
    );
    let switch: Vec<String> =
        told.seen[3].args.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(switch, ["prev=a b[8]", "prev_state=R", "next=y[122]"]);
    assert!(told.seen[2].args.contains(&("dsq_id".into(), "LOCAL".into())), "{:?}", told.seen[2]);
}

#[test]
fn without_a_blamed_task_it_is_the_cpu_of_the_exit_and_what_is_too_much_is_counted() {
    let cause = Cause::SchedulerError { reason: "scx_bpf_error: it broke".into() };
    let first = report(Outcome::Fail, Some(cause));
    let held = held(&spec(), &first).unwrap();
    let mut events: Vec<ProbeEvent> =
        (0..600).map(|n| event(n, (n % 2) as u32, 3, "sched_switch", "a=1")).collect();
    events.push(event(700, 1, 3, "scx_vexit", "(f) kind=1025"));
    let told = told(&held, first.clone(), gathered(events));
    assert_eq!((told.seen.len(), told.left_out, told.cpu), (stitch::TOLD, 101, Some(1)));
    assert!(told.seen.iter().all(|seen| seen.cpu == 1), "{:?}", told.seen.last());
}

#[test]
fn a_task_of_which_nothing_was_recorded_is_said_to_be_so() {
    let first = report(Outcome::Fail, Some(stall()));
    let held = held(&spec(), &first).unwrap();
    let events = vec![event(1, 0, 3, "sched_switch", ""), event(9000, 0, 3, "scx_vexit", "(f) kind=1026")];
    let told = told(&held, first.clone(), gathered(events));
    assert!(told.notes.iter().any(|note| note.contains("no event of worker[122]")), "{:?}", told.notes);
    assert_eq!(told.seen.len(), 2);
}

#[test]
fn what_does_not_come_again_stays_a_failure_and_is_said() {
    let first = report(Outcome::Fail, Some(stall()));
    let held = held(&spec(), &first).unwrap();
    let recurrence = |second: RunReport| told(&held, second, Gathered::default()).recurrence;
    assert_eq!(recurrence(report(Outcome::Pass, None)), Recurrence::NotAgain);
    let other = Cause::SchedulerDied { how: "d".into() };
    assert_eq!(recurrence(report(Outcome::Fail, Some(other.clone()))), Recurrence::Otherwise(other));
    let lost = RunReport { infrastructure: true, ..report(Outcome::Fail, Some(Cause::Cancelled)) };
    assert!(matches!(recurrence(lost), Recurrence::NotRun(_)));
    let killed = Cause::ProcessDied { process: Process::Vmm, how: "was killed by signal 9".into() };
    let lost = RunReport { infrastructure: true, ..report(Outcome::Fail, Some(killed)) };
    assert_eq!(recurrence(lost), Recurrence::NotRun("ktstr-vmm was killed by signal 9".into()));
    let told = told(&held, report(Outcome::Pass, None), Gathered::default());
    assert!(told.notes.iter().any(|note| note.contains("did not say")), "{:?}", told.notes);
}

#[test]
fn what_became_of_the_second_runs_monitor_is_told() {
    let first = RunReport { notes: vec!["accelerator tcg".into()], ..report(Outcome::Fail, Some(stall())) };
    let held = held(&RunSpec { observe: true, ..spec() }, &first).unwrap();
    let lost = "observation ended after 9 ms".to_owned();
    let second = RunReport { notes: vec!["accelerator tcg".into(), lost.clone()], ..first.clone() };
    let seen = RunReport { monitor: Some(Default::default()), ..second.clone() };
    assert!(told(&held, second, gathered(Vec::new())).notes.contains(&lost));
    assert!(!told(&held, seen, gathered(Vec::new())).notes.contains(&lost));
}

#[test]
fn a_guest_that_floods_or_lies_is_cut() {
    let mut gathered = Gathered::default();
    let wild = event(u64::MAX / 1000, u32::MAX, u32::MAX, "scx_vexit", &"x=\u{1b}[31m ".repeat(300));
    for _ in 0..50 {
        gathered.take(&GuestFrame::Probed(vec![wild.clone(); 200]));
    }
    assert_eq!((gathered.events.len(), gathered.refused), (MAX_EVENTS, 6000));
    let account = ProbeAccount {
        unknown: vec!["y".repeat(4096); 1000],
        triggers: vec!["scx_vexit".into()],
        ..ProbeAccount::default()
    };
    gathered.take(&GuestFrame::Probes(account));
    let first = report(Outcome::Fail, Some(stall()));
    let held = held(&spec(), &first).unwrap();
    let told = told(&held, first.clone(), gathered);
    assert!(told.seen.iter().flat_map(|seen| &seen.args).all(|(_, value)| !value.contains('\u{1b}')));
    let text = serde_json::to_string(&told).unwrap();
    assert!(text.len() < 2 << 20, "{}", text.len());
}

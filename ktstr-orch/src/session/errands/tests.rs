//! Errands in whatever order their replies come.

use ktstr_proto::{
    channel::Message,
    link::ReplyFrame,
    run::{Job, RunSpec, ShellJob},
    scx_stats::MissingStatsReason,
};

use super::*;
use crate::{example, session::told};

fn session(root: &std::path::Path) -> Session {
    let job = ShellJob { include: Vec::new(), exec: Some("true".into()), dmesg: false, term: None };
    let spec = RunSpec { observe: true, ..example::request(Job::Shell(job), root) };
    let mut session = Session::open(spec).unwrap();
    session.vmm_known = true;
    session
}

/// The capture is read, the guest is to go on, and at that moment it has powered off by itself.
#[test]
fn a_machine_that_ends_before_it_can_go_on_is_no_failure() {
    let root = tempfile::tempdir().unwrap();
    let refusal = || {
        let result = Err(error(ErrorCode::BadRequest, "resume: the machine has ended"));
        Message::Reply(ReplyFrame { id: 7, result })
    };
    let mut late = session(root.path());
    late.state = State::Finishing;
    late.vmm_message(refusal(), Fds::default());
    assert!(late.evidence.stopped.is_none(), "{:?}", late.evidence.stopped);

    let mut early = session(root.path());
    early.state = State::Starting;
    early.vmm_message(refusal(), Fds::default());
    assert!(early.evidence.stopped.is_some(), "a refused start ends the run");
}

/// What the scheduler says before a planned capture is waited for, and not for ever.
#[test]
fn a_planned_capture_waits_for_the_schedulers_word_and_no_longer() {
    let dir = tempfile::tempdir().unwrap();
    let (now, boundary) = (Instant::now(), Duration::from_millis(900));
    let planned = |asked| {
        let mut errands = Errands { nr_planned: 2, planned: [(now, boundary)].into(), ..Errands::default() };
        errands.told.expect(asked);
        errands
    };
    let unasked = planned(0);
    assert!(unasked.is_due(now) && unasked.deadline(true) == Some(now));

    let mut asked = planned(2);
    assert!(!asked.is_due(now) && asked.deadline(true) == Some(now + told::WAIT));
    assert!(asked.is_due(now + told::WAIT));
    // The word for another one does not do.
    asked.told.hear(StatsOf::Snapshot(0), &Ok("{}".into()), dir.path());
    assert!(!asked.is_due(now));
    asked.told.hear(StatsOf::Snapshot(1), &Err(MissingStatsReason::NoScheduler), dir.path());
    assert!(asked.is_due(now) && asked.deadline(true) == Some(now));

    let mut virtual_time = planned(2);
    let at =
        |since_began: Duration| Some(GuestTime { began_ns: 7, now_ns: 7 + since_began.as_nanos() as u64 });
    virtual_time.guest = at(boundary);
    assert!(!virtual_time.is_due(now + 2 * told::WAIT), "the host's time says nothing");
    virtual_time.guest = at(boundary + told::WAIT);
    assert!(virtual_time.is_due(now));
}

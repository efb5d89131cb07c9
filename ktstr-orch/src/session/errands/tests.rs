//! Errands in whatever order their replies come.

use ktstr_proto::{
    capture::Question,
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

/// Who asks before the machine runs may ask again, and is told so by the code; who asks after its end may not.
#[test]
fn a_question_that_comes_too_early_is_told_so_by_its_code() {
    let root = tempfile::tempdir().unwrap();
    let mut session = session(root.path());
    let mut asked = |state| {
        session.state = state;
        let asker = Asker { connection: 1, request: 2 };
        session.query(asker, Query { run: None, question: Question::Tasks, freeze: false });
        session.capture(asker, &TakeCapture { run: None, vmcore: false });
        let answers = session.take_answers();
        let code = |(to, answer): &Answered| {
            assert_eq!(*to, asker);
            answer.as_ref().expect_err("nothing runs").code
        };
        (answers.iter().map(code).collect::<Vec<_>>(), session.captures())
    };
    for (state, code) in [
        (State::Planning, ErrorCode::NotYet),
        (State::Starting, ErrorCode::NotYet),
        // Nobody observes it, which will stay so.
        (State::Running, ErrorCode::Unavailable),
        (State::Finishing, ErrorCode::Unavailable),
    ] {
        // However often it is asked for, the report has no capture that was not taken.
        assert_eq!(asked(state), (vec![code; 2], 0), "{state:?}");
    }
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

//! Errands in whatever order their replies come.

use ktstr_proto::{
    Accel, Topology,
    channel::Message,
    link::ReplyFrame,
    run::{Job, RunSpec, ShellJob},
};

use super::*;

fn session(root: &std::path::Path) -> Session {
    let job = ShellJob { include: Vec::new(), exec: Some("true".into()), dmesg: false, term: None };
    let spec = RunSpec {
        name: "late".into(),
        job: Job::Shell(job),
        kernel: None,
        accel: Accel::Det,
        topology: Topology::new(1, 1, 1, 1).unwrap(),
        numa: Default::default(),
        memory_mb: None,
        seed: 1,
        vary: false,
        deadline_ms: None,
        runs_root: root.to_owned(),
        replay: String::new(),
        warm: false,
        kernel_args: Vec::new(),
        observe: true,
        watchdog_ms: None,
        snapshots: 0,
        env: Vec::new(),
        disk: None,
        networks: Vec::new(),
        jail: Default::default(),
        performance: Default::default(),
        cpu_budget: None,
        cleanup_budget_ms: None,
        watches: Vec::new(),
    };
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

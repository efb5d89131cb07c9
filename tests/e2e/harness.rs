//! Running a subject and looking at what it left.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ktstr::{
    client::{ClientError, Session},
    host::{KTSTR_TESTS, KtstrTestEntry, spec_of},
};
use ktstr_proto::{
    Accel, Topology,
    client::ClientEvent,
    run::{Job, RunSpec, ShellJob},
    verdict::{Cause, Outcome, Process, RunReport},
};

use crate::schema;

/// Longer than any run here may take; the orchestrator's own deadlines are shorter.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// What takes a moment is waited for this long: on a host that is stopped for seconds, it takes seconds.
pub const SOON: Duration = Duration::from_secs(60);

/// The registered test whose name ends in `name`.
pub fn subject(name: &str) -> &'static KtstrTestEntry {
    let ends = |entry: &&KtstrTestEntry| entry.full_name().rsplit("::").next() == Some(name);
    KTSTR_TESTS.iter().find(ends).unwrap_or_else(|| panic!("no subject {name}"))
}

/// The request for a subject.
pub fn spec(name: &str, accel: Accel) -> RunSpec {
    let mut spec = spec_of(subject(name)).expect("the subject can be asked for");
    spec.accel = accel;
    // A second machine for each crash is the subject of `repro`, and elsewhere only takes time.
    spec.auto_repro = false;
    spec
}

/// The request for one command.
pub fn exec(command: &str) -> RunSpec {
    let mut spec = spec("eevdf", Accel::Tcg);
    spec.topology = Topology::new(1, 1, 1, 1).expect("the smallest machine");
    spec.name = "exec".into();
    spec.job =
        Job::Shell(ShellJob { include: Vec::new(), exec: Some(command.into()), dmesg: false, term: None });
    spec
}

/// Runs to the report.
pub fn run(spec: RunSpec) -> RunReport {
    run_with_output(spec).0
}

/// It passed, or nothing stands against it but what the host's own figures explain. False where the host kept it from
/// its end.
pub fn assert_sound(report: &RunReport) -> bool {
    const EXCUSED: &str = "may be the host's doing";
    if let (Outcome::Inconclusive, Some(Cause::SchedulerStall { reason })) = (report.outcome, &report.cause) {
        assert!(reason.contains(EXCUSED), "{reason}");
        return false;
    }
    let sound = [Outcome::Pass, Outcome::Inconclusive].contains(&report.outcome);
    let details = report.result.iter().flat_map(|result| &result.details);
    let against: Vec<_> = details.filter(|detail| detail.outcome > Outcome::Pass).collect();
    assert!(!report.infrastructure && sound, "{:?}: {against:#?}", report.cause);
    let excused = against.iter().all(|detail| detail.message.contains(EXCUSED));
    assert!(excused && against.is_empty() == (report.outcome == Outcome::Pass), "{against:#?}");
    true
}

/// Runs to the report and keeps what the guest's processes printed. Machines on KVM boot, whose time in the
/// lab is better spent than on snapshots that nothing begins from; `warm` has its own.
pub fn run_with_output(mut spec: RunSpec) -> (RunReport, String) {
    spec.warm &= spec.accel != Accel::Kvm;
    let mut output = String::new();
    let mut session = Session::start("e2e").expect("an orchestrator");
    let report = session
        .run(spec, PATIENCE, |event, _| {
            if let ClientEvent::Output { text, .. } = event {
                output.push_str(&text);
            }
        })
        .expect("a report");
    println!("{}", ktstr::render::report(&report));
    schema::check_captures(&report.run_dir);
    (report, output)
}

/// True when the run did not take place for lack of hardware, which is said, and allowed here.
pub fn not_run(report: &RunReport, accel: Accel) -> bool {
    let required = std::env::var("KTSTR_REQUIRE").unwrap_or_default();
    let demanded = required.split(',').any(|word| word == "all" || word.parse() == Ok(accel));
    if report.outcome == Outcome::NotRun && !demanded {
        println!("NOT RUN: {:?}", report.cause);
        return true;
    }
    false
}

/// Polls until `found` yields something.
pub fn wait_for<T>(what: &str, limit: Duration, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(start.elapsed() < limit, "no {what} within {limit:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A run under way in its own thread.
pub struct Live {
    /// Its directory.
    pub dir: PathBuf,
    thread: std::thread::JoinHandle<(Result<RunReport, ClientError>, Instant)>,
}

impl Live {
    /// Submits and returns at once.
    pub fn start(mut spec: RunSpec, root: &Path) -> Self {
        spec.runs_root = root.to_path_buf();
        let thread = std::thread::spawn(move || {
            let result = Session::start("e2e").and_then(|mut session| session.run(spec, PATIENCE, |_, _| ()));
            (result, Instant::now())
        });
        let dir = run_dir(root);
        Self { dir, thread }
    }

    /// The report, or why there is none, and when it came.
    pub fn end(self) -> (Result<RunReport, ClientError>, Instant) {
        self.thread.join().expect("the client does not panic")
    }
}

/// Kills the machine of a run.
pub fn end_machine(live: Live) {
    let vmm = nix::unistd::Pid::from_raw(recorded_pid(&live.dir, "vmm-pid", "/value").cast_signed());
    nix::sys::signal::kill(vmm, nix::sys::signal::SIGKILL).expect("it is there");
    let report = live.end().0.expect("a report");
    assert!(
        matches!(report.cause, Some(Cause::ProcessDied { process: Process::Vmm, .. })),
        "{:?}",
        report.cause
    );
}

/// The one run directory below `root`, once it exists.
pub fn run_dir(root: &Path) -> PathBuf {
    wait_for("run directory", SOON, || Some(fs::read_dir(root).ok()?.flatten().next()?.path()))
}

/// A number recorded in the event log, once it is there.
pub fn recorded_pid(dir: &Path, event: &str, path: &str) -> u32 {
    wait_for(event, PATIENCE, || recorded(dir, event)?.pointer(path)?.as_u64()?.try_into().ok())
}

/// The first line of the event log about `event`.
pub fn recorded(dir: &Path, event: &str) -> Option<serde_json::Value> {
    let log = fs::read_to_string(dir.join("events.jsonl")).ok()?;
    let line = log.lines().find(|l| l.contains(&format!("\"what\":\"{event}\"")))?;
    serde_json::from_str(line).ok()
}

/// Host time since the Unix epoch at which `event` was recorded, milliseconds.
pub fn recorded_at(dir: &Path, event: &str) -> Option<u64> {
    let opened = recorded(dir, "opened-unix-ms")?.pointer("/value")?.as_u64()?;
    Some(opened + recorded(dir, event)?.pointer("/t_ms")?.as_u64()?)
}

/// Waits until the guest has said it reached a phase; false when the run ended before.
pub fn reached(dir: &Path, phase: &str) -> bool {
    wait_for(phase, PATIENCE, || {
        let said = fs::read_to_string(dir.join("guest.jsonl")).unwrap_or_default();
        if said.contains(&format!("{{\"Phase\":\"{phase}\"}}")) {
            return Some(true);
        }
        dir.join("sidecar.json").exists().then_some(false)
    })
}

/// Whether a process is there and not a zombie; one whose first thread is dead lives on in the others.
pub fn alive(pid: u32) -> bool {
    let threads = || fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    let zombie = |stat: &str| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !zombie(&stat) || threads() > 1)
}

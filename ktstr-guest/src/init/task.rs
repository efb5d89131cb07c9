//! The task of a run, from its start to the end of everything that belongs to it.
//!
//! ```text
//!                 ┌─ the task ends ────────────► its end ─► teardown
//!  start ─► watch ┼─ the scheduler ends ───────► its end ─► grace ─► task killed, its end
//!                 ├─ the kernel disabled it ───► grace ─► attached again: watch on; else kill, teardown
//!                 └─ the host asks to stop ────► task asked, then killed ─► teardown
//! ```

use std::{os::unix::net::UnixStream, path::Path, process::Stdio};

use ktstr_proto::{
    guest::{
        CHANNEL_ENV, GuestFrame, GuestJob, GuestTask, GuestTest, Phase, ProcessEnd, TEST_ENV, TEST_PATH,
    },
    ring::RingError,
    run::Term,
};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::signal::Signal,
    unistd::Pid,
};

use super::{
    change, clock,
    outbox::Outbox,
    pin::Pinned,
    scheduler::{Scheduler, is_enabled},
    shell::{self, ShellError},
    spawn::{self, Output, SpawnError},
    system::SHELL,
    watch::{Watch, WatchError},
};

/// How long the last words of scheduler and kernel may take once something has ended the run.
const GRACE_MS: u64 = 500;
/// How long the task may take to end after SIGTERM.
const STOP_MS: u64 = 1_000;
/// How long the task may take to end after SIGKILL.
const KILL_MS: u64 = 500;

/// Why the task could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The test did not start.
    #[error("the test {test} did not start")]
    Test {
        /// Name of the registered test.
        test: String,
        /// Why.
        #[source]
        source: SpawnError,
    },
    /// The test's channel cannot be made.
    #[error("cannot make the channel to the test")]
    Channel(#[source] std::io::Error),
    /// The command did not start.
    #[error("the command did not start")]
    Command(#[source] SpawnError),
    /// The shell did not start.
    #[error("the interactive shell did not start")]
    Shell(#[source] ShellError),
    /// The loop cannot go on.
    #[error("cannot watch the task")]
    Watch(#[from] WatchError),
}

impl From<RingError> for TaskError {
    fn from(source: RingError) -> Self {
        Self::Watch(source.into())
    }
}

/// What ended the watch.
enum Ending {
    Task(ProcessEnd),
    Scheduler(ProcessEnd),
    Disabled,
    Shutdown,
}

/// Runs the task and stops the scheduler. Everything up to power-off is said when it returns.
pub fn run(
    watch: &mut Watch,
    out: &mut Outbox,
    job: &GuestJob,
    mut scheduler: Option<Scheduler>,
) -> Result<(), TaskError> {
    let pid = start(watch, out, job)?;
    let ended = |out: &mut Outbox, end: ProcessEnd| say_end(out, &job.task, end);
    let mut pinned = Pinned::default();
    let scheduler = match follow(watch, out, job, pid, (&mut scheduler, &mut pinned))? {
        Ending::Task(end) => {
            ended(out, end)?;
            scheduler
        }
        Ending::Scheduler(end) => {
            out.send(GuestFrame::SchedulerEnded { end, expected: false })?;
            watch.until(out, GRACE_MS, |watch| watch.disabled_at_ms().map(drop))?;
            kill(watch, out, pid, &[(Signal::SIGKILL, KILL_MS)], ended)?;
            None
        }
        Ending::Disabled => {
            kill(watch, out, pid, &[(Signal::SIGKILL, KILL_MS)], ended)?;
            scheduler
        }
        Ending::Shutdown => {
            out.note("the host asked to stop")?;
            kill(watch, out, pid, &[(Signal::SIGTERM, STOP_MS), (Signal::SIGKILL, KILL_MS)], ended)?;
            scheduler
        }
    };
    out.phase(Phase::TestEnded)?;
    if let Some(scheduler) = scheduler {
        out.phase(Phase::TeardownStarted)?;
        scheduler.stop(watch, out, job)?;
    }
    // What the kernel and the children said last.
    watch.turn(out, Some(0))?;
    Ok(())
}

/// Waits until something ends the run.
fn follow(
    watch: &mut Watch,
    out: &mut Outbox,
    job: &GuestJob,
    task: Pid,
    (scheduler, pinned): (&mut Option<Scheduler>, &mut Pinned),
) -> Result<Ending, WatchError> {
    loop {
        if let Some(request) = watch.take_request() {
            let reply = change::carry_out(watch, out, job, (&mut *scheduler, &mut *pinned), &request)?;
            out.send(GuestFrame::Answered(reply.clone()))?;
            watch.answer(out, &reply)?;
        }
        if let Some(end) = scheduler.as_ref().and_then(|scheduler| watch.take_end(scheduler.pid?)) {
            return Ok(Ending::Scheduler(end));
        }
        if let Some(end) = watch.take_end(task) {
            return Ok(Ending::Task(end));
        }
        if out.shutdown_requested() {
            return Ok(Ending::Shutdown);
        }
        let mut limit = None;
        if let Some(at_ms) = watch.disabled_at_ms().filter(|_| scheduler.is_some()) {
            let waited = clock::now_ms().saturating_sub(at_ms);
            // Who is to start anew is loaded, verified and attached again, which takes as long as the first time.
            let returns = job.scheduler.as_ref().filter(|_| watch.is_sent_away());
            let grace = returns.map_or(GRACE_MS, |scheduler| scheduler.attach_timeout_ms.max(GRACE_MS));
            match grace.checked_sub(waited).filter(|rest| *rest > 0) {
                Some(rest) => limit = Some(rest),
                None if is_enabled() => watch.forget_disabled(),
                None => return Ok(Ending::Disabled),
            }
        }
        watch.turn(out, limit)?;
    }
}

/// Ends the task and says how it ended; one that does not even end after SIGKILL is said to live on.
fn kill(
    watch: &mut Watch,
    out: &mut Outbox,
    pid: Pid,
    signals: &[(Signal, u64)],
    say: impl Fn(&mut Outbox, ProcessEnd) -> Result<(), RingError>,
) -> Result<(), WatchError> {
    for (signal, limit_ms) in signals {
        spawn::signal_group(pid, *signal);
        if let Some(end) = watch.until(out, *limit_ms, |watch| watch.take_end(pid))? {
            return Ok(say(out, end)?);
        }
    }
    Ok(out.note("the task did not end after SIGKILL")?)
}

fn say_end(out: &mut Outbox, task: &GuestTask, end: ProcessEnd) -> Result<(), RingError> {
    out.send(match task {
        GuestTask::Test(_) => GuestFrame::TestProcessEnded(end),
        GuestTask::Exec(_) | GuestTask::Shell(_) => GuestFrame::ExecEnded(end),
    })
}

fn start(watch: &mut Watch, out: &mut Outbox, job: &GuestJob) -> Result<Pid, TaskError> {
    let pid = match &job.task {
        GuestTask::Test(test) => start_test(watch, job, test)?,
        GuestTask::Exec(text) => {
            let mut command = spawn::command(SHELL, job);
            command.arg("-c").arg(text);
            spawn::spawn(watch, command, Output::Apart).map_err(TaskError::Command)?
        }
        GuestTask::Shell(term) => start_shell(watch, job, term.as_ref())?,
    };
    out.phase(Phase::TestStarted)?;
    Ok(pid)
}

fn start_test(watch: &mut Watch, job: &GuestJob, test: &GuestTest) -> Result<Pid, TaskError> {
    let (ours, theirs) = UnixStream::pair().map_err(TaskError::Channel)?;
    ours.set_nonblocking(true).map_err(TaskError::Channel)?;
    // This end goes to the child. Nothing else is started before it is closed here.
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|e| TaskError::Channel(e.into()))?;
    let mut command = spawn::command(TEST_PATH, job);
    command.env(TEST_ENV, &test.test).env(CHANNEL_ENV, std::os::fd::AsRawFd::as_raw_fd(&theirs).to_string());
    let pid = spawn::spawn(watch, command, Output::Apart)
        .map_err(|source| TaskError::Test { test: test.test.clone(), source })?;
    watch.set_channel(ours);
    Ok(pid)
}

fn start_shell(watch: &mut Watch, job: &GuestJob, term: Option<&Term>) -> Result<Pid, TaskError> {
    let terminal = shell::open_terminal(term).map_err(TaskError::Shell)?;
    shell::follow_size(&terminal);
    let dup = || terminal.try_clone().map(Stdio::from);
    let duplicated = |source| TaskError::Shell(ShellError::Open { source });
    // `setsid -c` makes the terminal the controlling one, so that ^C and job control work.
    let mut command = spawn::command("/bin/busybox", job);
    command.args(["setsid", "-c", SHELL, "-l"]).env("PS1", "ktstr# ");
    if let Some(term) = term {
        command.env("TERM", &term.term);
        command.envs(term.colorterm.iter().map(|value| ("COLORTERM", value)));
    }
    if Path::new("/root").is_dir() {
        command.current_dir("/root");
    }
    command
        .stdin(dup().map_err(duplicated)?)
        .stdout(dup().map_err(duplicated)?)
        .stderr(dup().map_err(duplicated)?);
    spawn::start(watch, &mut command).map_err(|e| TaskError::Shell(ShellError::Start(e)))
}

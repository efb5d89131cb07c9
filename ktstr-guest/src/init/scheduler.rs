//! The scheduler under test: started before the task, attached or refused, stopped after it.

use std::path::Path;

use ktstr_proto::{
    guest::{GuestFrame, GuestJob, GuestScheduler, LogSource, Phase, ProcessEnd, SCHEDULER_PATH},
    link::chain,
    ring::RingError,
};
use nix::{sys::signal::Signal, unistd::Pid};

use super::{
    clock,
    outbox::Outbox,
    spawn::{self, Output, SpawnError},
    system::SHELL,
    watch::{Watch, WatchError},
};

/// What the kernel says about the class of BPF schedulers.
const STATE: &str = "/sys/kernel/sched_ext/state";
/// How often [`STATE`] is read while waiting.
const LOOK_MS: u64 = 5;
/// How long an attached scheduler may take to end after SIGTERM.
const STOP_MS: u64 = 5_000;
/// How long one may take that never attached.
const GIVE_UP_MS: u64 = 500;
/// How long it may take after SIGKILL: the kernel detaches it then.
const KILL_MS: u64 = 2_000;

/// Why the scheduler is not in charge.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The kernel cannot run any.
    #[error("this kernel has no {STATE}: it was built without CONFIG_SCHED_CLASS_EXT")]
    NoSchedExt,
    /// It did not start.
    #[error("scheduler {name} did not start")]
    Spawn {
        /// Name for people.
        name: String,
        /// Why.
        #[source]
        source: SpawnError,
    },
    /// Its cgroup cannot be made.
    #[error("cannot make {path}, the cgroup that the scheduler wants")]
    CgroupParent {
        /// The cgroup.
        path: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A command that switches the kernel's own on did not succeed.
    #[error("scheduler {name} was not switched on: `{command}` {how}")]
    Command {
        /// Name for people.
        name: String,
        /// The command.
        command: String,
        /// How it ended.
        how: String,
    },
    /// It runs but does not attach.
    #[error("scheduler {name} did not attach within {limit_ms} ms of guest time: {STATE} says `{state}`")]
    Timeout {
        /// Name for people.
        name: String,
        /// How long was waited.
        limit_ms: u64,
        /// What the kernel says.
        state: String,
    },
    /// It ended before it attached; already reported.
    #[error("scheduler {name} {end} before it attached")]
    Ended {
        /// Name for people.
        name: String,
        /// How.
        end: ProcessEnd,
    },
    /// The host asks to stop.
    #[error("the host asked to stop before scheduler {name} was attached")]
    Cancelled {
        /// Name for people.
        name: String,
    },
    /// The loop cannot go on.
    #[error("cannot watch the scheduler")]
    Watch(#[from] WatchError),
}

impl From<RingError> for SchedulerError {
    fn from(source: RingError) -> Self {
        Self::Watch(source.into())
    }
}

/// A scheduler that was attached.
#[derive(Debug)]
pub struct Scheduler {
    /// Its process, unless it is the kernel's own.
    pub pid: Option<Pid>,
    /// What switches the kernel's own off.
    disable: Vec<String>,
}

/// Runs one command of the shell; what it says is the scheduler's log.
fn run_command(
    watch: &mut Watch,
    out: &mut Outbox,
    job: &GuestJob,
    text: &str,
    limit_ms: u64,
) -> Result<Result<(), String>, WatchError> {
    let mut command = spawn::command(SHELL, job);
    command.arg("-c").arg(text);
    let pid = match spawn::spawn(watch, command, Output::Joined(LogSource::Scheduler)) {
        Ok(pid) => pid,
        Err(error) => return Ok(Err(chain(&error))),
    };
    match watch.until(out, limit_ms, |watch| watch.take_end(pid))? {
        Some(ProcessEnd::Exited(0)) => Ok(Ok(())),
        Some(end) => Ok(Err(end.to_string())),
        None => {
            spawn::signal_group(pid, Signal::SIGKILL);
            Ok(Err(format!("did not end within {limit_ms} ms")))
        }
    }
}

/// What the kernel says, without line end; `None` without the class.
fn state() -> Option<String> {
    std::fs::read_to_string(Path::new(STATE)).ok().map(|text| text.trim().to_owned())
}

/// Whether no BPF scheduler is there, nor comes or goes. The kernel has said all about the last one then.
pub fn is_disabled() -> bool {
    state().is_none_or(|state| state == "disabled")
}

/// Whether a BPF scheduler is in charge.
pub fn is_enabled() -> bool {
    state().is_some_and(|state| state == "enabled")
}

impl Scheduler {
    /// Starts the scheduler and waits until the kernel says that it is in charge.
    pub fn attach(
        watch: &mut Watch,
        out: &mut Outbox,
        job: &GuestJob,
        wanted: &GuestScheduler,
    ) -> Result<Self, SchedulerError> {
        Self::attach_program(watch, out, job, SCHEDULER_PATH, wanted, false)
    }

    /// As [`Self::attach`], with another program. `asked` is whether the test wanted it: then it is told if that failed, and
    /// decides what it means.
    pub fn attach_program(
        watch: &mut Watch,
        out: &mut Outbox,
        job: &GuestJob,
        program: &str,
        wanted: &GuestScheduler,
        asked: bool,
    ) -> Result<Self, SchedulerError> {
        let name = || wanted.name.clone();
        if let Some(builtin) = &wanted.builtin {
            out.phase(Phase::SchedulerStarted)?;
            for command in &builtin.enable {
                let done = run_command(watch, out, job, command, wanted.attach_timeout_ms)?;
                let failed = |how| SchedulerError::Command { name: name(), command: command.clone(), how };
                done.map_err(failed)?;
            }
            out.phase(Phase::SchedulerAttached)?;
            return Ok(Self { pid: None, disable: builtin.disable.clone() });
        }
        if state().is_none() {
            return Err(SchedulerError::NoSchedExt);
        }
        if let Some(parent) = &wanted.cgroup_parent {
            let path = format!("/sys/fs/cgroup{parent}");
            std::fs::create_dir_all(&path).map_err(|source| SchedulerError::CgroupParent { path, source })?;
        }
        let mut command = spawn::command(program, job);
        command.args(&wanted.args);
        let pid = spawn::spawn(watch, command, Output::Joined(LogSource::Scheduler))
            .map_err(|source| SchedulerError::Spawn { name: name(), source })?;
        out.phase(Phase::SchedulerStarted)?;
        let limit_ms = wanted.attach_timeout_ms;
        let until = clock::now_ms() + limit_ms;
        while !is_enabled() {
            if let Some(end) = watch.take_end(pid) {
                out.send(GuestFrame::SchedulerEnded { end: end.clone(), expected: asked })?;
                return Err(SchedulerError::Ended { name: name(), end });
            }
            if clock::now_ms() >= until {
                let state = state().unwrap_or_default();
                Self::of(pid).end(watch, out, pid, GIVE_UP_MS)?;
                return Err(SchedulerError::Timeout { name: name(), limit_ms, state });
            }
            if out.shutdown_requested() {
                Self::of(pid).end(watch, out, pid, GIVE_UP_MS)?;
                return Err(SchedulerError::Cancelled { name: name() });
            }
            watch.turn(out, Some(LOOK_MS))?;
        }
        out.phase(Phase::SchedulerAttached)?;
        Ok(Self::of(pid))
    }

    fn of(pid: Pid) -> Self {
        Self { pid: Some(pid), disable: Vec::new() }
    }

    /// Asks the scheduler to end, then forces it; says how it ended.
    pub fn stop(self, watch: &mut Watch, out: &mut Outbox, job: &GuestJob) -> Result<(), WatchError> {
        if let Some(pid) = self.pid {
            return self.end(watch, out, pid, STOP_MS);
        }
        for command in &self.disable {
            if let Err(how) = run_command(watch, out, job, command, STOP_MS)? {
                out.note(&format!("the scheduler was not switched off: `{command}` {how}"))?;
                break;
            }
        }
        Ok(())
    }

    fn end(self, watch: &mut Watch, out: &mut Outbox, pid: Pid, ask_ms: u64) -> Result<(), WatchError> {
        for (signal, limit_ms) in [(Signal::SIGTERM, ask_ms), (Signal::SIGKILL, KILL_MS)] {
            spawn::signal_group(pid, signal);
            if let Some(end) = watch.until(out, limit_ms, |watch| watch.take_end(pid))? {
                return Ok(out.send(GuestFrame::SchedulerEnded { end, expected: true })?);
            }
            out.note(&format!("the scheduler did not end within {limit_ms} ms after {signal}"))?;
        }
        Ok(())
    }
}

//! The scheduler under test: started before the task, attached or refused, stopped after it.

use std::path::Path;

use ktstr_proto::{
    guest::{GuestFrame, GuestJob, GuestScheduler, LogSource, Phase, ProcessEnd, SCHEDULER_PATH},
    ring::RingError,
};
use nix::{sys::signal::Signal, unistd::Pid};

use super::{
    clock,
    outbox::Outbox,
    spawn::{self, Output, SpawnError},
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
    /// Its process.
    pub pid: Pid,
}

/// What the kernel says, without line end; `None` without the class.
fn state() -> Option<String> {
    std::fs::read_to_string(Path::new(STATE)).ok().map(|text| text.trim().to_owned())
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
        Self::attach_program(watch, out, job, SCHEDULER_PATH, wanted)
    }

    /// As [`Self::attach`], with another program.
    pub fn attach_program(
        watch: &mut Watch,
        out: &mut Outbox,
        job: &GuestJob,
        program: &str,
        wanted: &GuestScheduler,
    ) -> Result<Self, SchedulerError> {
        let name = || wanted.name.clone();
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
                out.send(GuestFrame::SchedulerEnded { end: end.clone(), expected: false })?;
                return Err(SchedulerError::Ended { name: name(), end });
            }
            if clock::now_ms() >= until {
                let state = state().unwrap_or_default();
                Self { pid }.end(watch, out, GIVE_UP_MS)?;
                return Err(SchedulerError::Timeout { name: name(), limit_ms, state });
            }
            if out.shutdown_requested() {
                Self { pid }.end(watch, out, GIVE_UP_MS)?;
                return Err(SchedulerError::Cancelled { name: name() });
            }
            watch.turn(out, Some(LOOK_MS))?;
        }
        out.phase(Phase::SchedulerAttached)?;
        Ok(Self { pid })
    }

    /// Asks the scheduler to end, then forces it; says how it ended.
    pub fn stop(self, watch: &mut Watch, out: &mut Outbox) -> Result<(), WatchError> {
        self.end(watch, out, STOP_MS)
    }

    fn end(self, watch: &mut Watch, out: &mut Outbox, ask_ms: u64) -> Result<(), WatchError> {
        for (signal, limit_ms) in [(Signal::SIGTERM, ask_ms), (Signal::SIGKILL, KILL_MS)] {
            spawn::signal_group(self.pid, signal);
            if let Some(end) = watch.until(out, limit_ms, |watch| watch.take_end(self.pid))? {
                return Ok(out.send(GuestFrame::SchedulerEnded { end, expected: true })?);
            }
            out.note(&format!("the scheduler did not end within {limit_ms} ms after {signal}"))?;
        }
        Ok(())
    }
}

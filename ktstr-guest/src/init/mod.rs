//! PID 1 of the guest: sets the machine up, runs one scheduler and one task, switches it off.
//!
//! It is told everything by a file ([`ktstr_proto::guest::GuestJob`]): in the initramfs, and then it waits
//! for nobody outside, or in what comes once it is ready for any job ([`await_job`]). It says everything through the ring. The steps, in order, are the body of
//! `Init::set_up` and `Init::work`; each returns a `Result`, and the first that fails is reported by
//! its name before the power goes off. It never exits and never restarts anything.
//!
//! It judges nothing: what a frame means for the verdict is the orchestrator's business. The test
//! itself is another process, see [`crate::report`].

mod await_job;
mod bpf;
mod change;
mod clock;
mod console;
mod disk;
mod kmsg;
mod modules;
mod mounts;
mod outbox;
mod pin;
mod power;
mod probes;
mod scheduler;
mod shell;
mod spawn;
mod stats;
mod streams;
mod symbols;
mod system;
mod task;
mod unpack;
mod watch;

use std::{
    error::Error,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ktstr_proto::{
    Topology,
    guest::{COMPLETE_PATH, GuestFrame, GuestJob, GuestTask, JOB_PATH, MODULES_PATH, Phase},
    link::chain,
    ring::{RingError, RingRegion},
    symbols::SymbolsTold,
};

use self::{
    kmsg::Kmsg,
    outbox::{Outbox, OutboxError},
    probes::Probes,
    scheduler::{Scheduler, SchedulerError},
    stats::SchedulerStats,
    watch::Watch,
};
use crate::job::read_job;

pub use self::console::PREFIX as FATAL_PREFIX;

/// How long the host may take to empty the ring before the power goes off.
const DRAIN_MS: u64 = 5_000;

/// The initramfs was not unpacked to its end.
#[derive(Debug, thiserror::Error)]
#[error(
    "{COMPLETE_PATH} is missing: the kernel did not unpack the initramfs to its end, almost always because the guest has too little memory"
)]
struct Truncated;

/// A step that failed, and why.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    step: &'static str,
    reason: String,
}

/// Names the step of an error.
fn step<T, E: Error>(step: &'static str, result: Result<T, E>) -> Result<T, Failure> {
    result.map_err(|error| Failure { step, reason: chain(&error) })
}

/// What PID 1 holds on to until the end, failed or not.
#[derive(Default)]
struct Init {
    out: Option<Outbox>,
    /// Where a ring can be set up should there be something to say before there is a job.
    silent_ring: Option<RingRegion>,
    can_power_off: bool,
    interactive: bool,
}

/// What is found out about the machine before there is a job.
struct Found {
    /// What this kernel does not have.
    missing: Vec<String>,
    /// Where it has what the monitor depends on.
    symbols: SymbolsTold,
}

/// What every job needs of the machine.
fn prepare(topology: Topology) -> Result<Found, Failure> {
    let mut missing: Vec<String> = mounts::mount_optional().iter().map(|e| chain(e)).collect();
    step("modules", modules::load_listed(Path::new(MODULES_PATH)))?;
    step("cpus", system::wait_for_cpus(topology))?;
    missing.extend(system::set_sysctls());
    missing.extend(system::loopback_up().err().map(|e| format!("loopback: {e}")));
    missing.extend(system::escape_scheduler().err().map(|e| format!("real-time priority of PID 1: {e}")));
    Ok(Found { missing, symbols: symbols::ask() })
}

/// What this machine is; the same before and after it waited for its job.
fn hello() -> GuestFrame {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    GuestFrame::Hello { release: release.unwrap_or_default(), cpus_online: system::cpus_online() }
}

/// Starts the scheduler, if there is one, and the task, and sees both to their end.
fn carry_out(watch: &mut Watch, out: &mut Outbox, job: &GuestJob) -> Result<(), Failure> {
    let scheduler = match &job.scheduler {
        None => None,
        Some(wanted) => match Scheduler::attach(watch, out, job, wanted) {
            Ok(scheduler) => Some(scheduler),
            // Both have been said in frames of their own, or were asked for.
            Err(SchedulerError::Ended { .. } | SchedulerError::Cancelled { .. }) => return Ok(()),
            Err(error) => return step("scheduler", Err(error)),
        },
    };
    step("task", task::run(watch, out, job, scheduler))
}

/// Message of the last panic, for the report.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// Entry of the executable. Returns only when it is not PID 1.
pub fn main() -> ExitCode {
    if std::process::id() != 1 {
        return crate::on_host::main(&std::env::args().skip(1).collect::<Vec<_>>());
    }
    std::panic::set_hook(Box::new(|info| {
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string();
    }));
    let mut init = Init::default();
    let failure = match catch_unwind(AssertUnwindSafe(|| init.run())) {
        Ok(result) => result.err(),
        Err(_) => Some(Failure {
            step: "panic",
            reason: PANIC.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }),
    };
    // A panic while reporting must not keep the power on.
    let _ = catch_unwind(AssertUnwindSafe(|| init.finish(failure)));
    power::power_off(init.can_power_off)
}

impl Init {
    fn run(&mut self) -> Result<(), Failure> {
        let ready = self.set_up();
        if let (Err(_), Some(ring)) = (&ready, self.silent_ring) {
            // Without it the console says why.
            let _ = self.open_ring(Outbox::open(ring), hello());
        }
        let (job, kmsg) = ready?;
        self.work(&job, kmsg)
    }

    /// From the bare initramfs to a machine that can run a test.
    fn set_up(&mut self) -> Result<(GuestJob, Kmsg), Failure> {
        step("mount", mounts::mount_required())?;
        let kmsg = Kmsg::open();
        self.can_power_off = kmsg.as_ref().is_ok_and(Kmsg::can_power_off);
        let complete = if Path::new(COMPLETE_PATH).exists() { Ok(()) } else { Err(Truncated) };
        let base = step("base", await_job::read_base())?;
        let (job, kmsg, Found { mut missing, symbols }) = match &base {
            Some(base) => {
                self.silent_ring = Some(base.ring);
                step("initramfs", complete)?;
                let found = prepare(base.topology)?;
                let kmsg = step("kernel log", kmsg)?;
                let hello = hello();
                let (job, memory) = step("job", await_job::await_job(base))?;
                self.open_ring(Outbox::over(memory, job.ring.mode), hello)?;
                (job, kmsg, found)
            }
            None => {
                let job = read_job(Path::new(JOB_PATH));
                if let Ok(job) = &job {
                    self.open_ring(Outbox::open(job.ring), hello())?;
                }
                step("initramfs", complete)?;
                let job = step("job", job)?;
                let found = prepare(job.topology)?;
                (job, step("kernel log", kmsg)?, found)
            }
        };
        if !matches!(job.task, GuestTask::Test(_)) {
            step("shell", system::install_shell())?;
            missing.extend(system::install_commands());
        }
        if let Some(disk) = &job.disk {
            step("disk", disk::set_up(disk))?;
        }
        for what in missing {
            self.say(|out| out.note(&format!("not available: {what}")))?;
        }
        self.say(|out| out.send(GuestFrame::Symbols(symbols)))?;
        self.say(|out| out.phase(Phase::SystemReady))?;
        Ok((job, kmsg))
    }

    /// The scheduler and the task.
    fn work(&mut self, job: &GuestJob, kmsg: Kmsg) -> Result<(), Failure> {
        self.interactive = matches!(job.task, GuestTask::Shell(_));
        let Some(out) = &mut self.out else { return Ok(()) };
        let mut watch = step("watch", Watch::new(kmsg, SchedulerStats::of(job)))?;
        system::compute_for(Duration::from_micros(job.jitter_us.into()));
        let probes = match &job.probing {
            None => None,
            Some(probing) => {
                let probes = Probes::set_up(probing, system::cpus_online());
                step("probes", out.send(GuestFrame::Probes(probes.account().clone())))?;
                Some(probes)
            }
        };
        let done = carry_out(&mut watch, out, job);
        if let Some(probes) = probes {
            step("probes", probes.hand_in(out, watch.reason()))?;
        }
        done
    }

    /// Says the first words through the ring.
    fn open_ring(&mut self, ring: Result<Outbox, OutboxError>, hello: GuestFrame) -> Result<(), Failure> {
        self.silent_ring = None;
        let out = self.out.insert(step("ring", ring)?);
        step("ring", out.send(hello))?;
        step("ring", out.phase(Phase::InitStarted))
    }

    fn say(&mut self, say: impl FnOnce(&mut Outbox) -> Result<(), RingError>) -> Result<(), Failure> {
        self.out.as_mut().map_or(Ok(()), |out| step("ring", say(out)))
    }

    /// The last words: the failure if there is one, and that the power goes off now.
    fn finish(&mut self, failure: Option<Failure>) {
        if self.interactive {
            shell::flush_terminal();
        }
        let mut heard = failure.is_none();
        if let Some(out) = &mut self.out {
            if let Some(Failure { step, reason }) = &failure {
                let frame = GuestFrame::StepFailed { step: (*step).into(), reason: reason.clone() };
                heard = out.send(frame).is_ok();
            }
            heard &= out.phase(Phase::PoweringOff).is_ok();
            out.drain(DRAIN_MS);
        }
        let Failure { step, reason } = match failure {
            Some(failure) => failure,
            None if heard => return,
            None => Failure { step: "ring", reason: "no room left in the ring for the last words".into() },
        };
        console::say_fatal(step, &reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_carries_its_whole_chain_of_causes() {
        let error = crate::job::JobError::Read {
            path: "/ktstr/job".into(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        let failed = step::<(), _>("job", Err(error)).unwrap_err();
        assert_eq!(failed.step, "job");
        assert_eq!(failed.reason, "cannot read the job at /ktstr/job: entity not found");
    }
}

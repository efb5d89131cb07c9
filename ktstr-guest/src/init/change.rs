//! The scheduler changes while the test runs, because the test asks for it.
//!
//! A change that fails leaves no scheduler of ours behind; the test is told why and decides.

use std::path::Path;

use ktstr_proto::{
    guest::{
        GuestJob, GuestScheduler, GuestTask, SCHEDULER_PATH, SchedulerReply, SchedulerRequest, staged_path,
    },
    link::chain,
};

use super::{
    outbox::Outbox,
    scheduler::{Scheduler, SchedulerError, is_enabled},
    watch::{Watch, WatchError},
};

/// How long the kernel may take to fall back to its own scheduler once ours is gone.
const DETACH_MS: u64 = 10_000;

/// Does what the test asks for; the answer for it.
pub fn carry_out(
    watch: &mut Watch,
    out: &mut Outbox,
    job: &GuestJob,
    scheduler: &mut Option<Scheduler>,
    request: &SchedulerRequest,
) -> Result<SchedulerReply, WatchError> {
    let Some(own) = &job.scheduler else { return Ok(Err("this test has no scheduler of its own".into())) };
    match request {
        SchedulerRequest::Attach if scheduler.is_some() => {
            Ok(Err(format!("scheduler {} is attached already", own.name)))
        }
        SchedulerRequest::Attach => start(watch, out, job, scheduler, SCHEDULER_PATH, own),
        SchedulerRequest::Detach if scheduler.is_none() => Ok(Err("no scheduler is attached".into())),
        SchedulerRequest::Detach => end(watch, out, job, scheduler),
        SchedulerRequest::Restart => match end(watch, out, job, scheduler)? {
            Ok(()) => start(watch, out, job, scheduler, SCHEDULER_PATH, own),
            failed => Ok(failed),
        },
        SchedulerRequest::Replace(name) => {
            let GuestTask::Test(test) = &job.task else { return Ok(Err("this guest runs no test".into())) };
            let Some(index) = test.staged.iter().position(|staged| staged.name == *name) else {
                return Ok(Err(format!("no scheduler {name} is staged")));
            };
            match end(watch, out, job, scheduler)? {
                Ok(()) => start(watch, out, job, scheduler, &staged_path(index), &test.staged[index]),
                failed => Ok(failed),
            }
        }
    }
}

/// Ends the scheduler that runs, if one does, and waits until the kernel has noticed.
fn end(
    watch: &mut Watch,
    out: &mut Outbox,
    job: &GuestJob,
    scheduler: &mut Option<Scheduler>,
) -> Result<SchedulerReply, WatchError> {
    let Some(running) = scheduler.take() else { return Ok(Ok(())) };
    running.stop(watch, out, job)?;
    let gone = watch.until(out, DETACH_MS, |_| (!is_enabled()).then_some(()))?;
    // The kernel says that it disabled it, which here is what was wanted.
    watch.forget_disabled();
    Ok(gone
        .ok_or_else(|| format!("sched_ext was still enabled {DETACH_MS} ms after the scheduler had ended")))
}

fn start(
    watch: &mut Watch,
    out: &mut Outbox,
    job: &GuestJob,
    scheduler: &mut Option<Scheduler>,
    program: &str,
    wanted: &GuestScheduler,
) -> Result<SchedulerReply, WatchError> {
    if wanted.builtin.is_none() && !Path::new(program).exists() {
        return Ok(Err(format!("{program} is not in the initramfs")));
    }
    match Scheduler::attach_program(watch, out, job, program, wanted, true) {
        Ok(started) => {
            watch.forget_disabled();
            *scheduler = Some(started);
            Ok(Ok(()))
        }
        Err(SchedulerError::Watch(error)) => Err(error),
        Err(error) => Ok(Err(chain(&error))),
    }
}

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
    pin::Pinned,
    scheduler::{Scheduler, SchedulerError, is_disabled},
    watch::{Watch, WatchError},
};

/// How long the kernel may take to fall back to its own scheduler once ours is gone.
const DETACH_MS: u64 = 10_000;

/// Does what the test asks for; the answer for it.
pub fn carry_out(
    watch: &mut Watch,
    out: &mut Outbox,
    job: &GuestJob,
    (scheduler, pinned): (&mut Option<Scheduler>, &mut Pinned),
    request: &SchedulerRequest,
) -> Result<SchedulerReply, WatchError> {
    match (request, &job.scheduler) {
        (SchedulerRequest::PinMap(name), _) => {
            Ok(pinned.pin(name).map(|id| id.to_string()).map_err(|error| chain(&error)))
        }
        (_, None) => Ok(Err("this test has no scheduler of its own".into())),
        (SchedulerRequest::Attach, Some(own)) if scheduler.is_some() => {
            Ok(Err(format!("scheduler {} is attached already", own.name)))
        }
        (SchedulerRequest::Attach, Some(own)) => start(watch, out, job, scheduler, SCHEDULER_PATH, own),
        (SchedulerRequest::Detach, _) if scheduler.is_none() => Ok(Err("no scheduler is attached".into())),
        (SchedulerRequest::Detach, _) => end(watch, out, job, scheduler),
        (SchedulerRequest::Restart, Some(own)) => match end(watch, out, job, scheduler)? {
            Ok(_) => start(watch, out, job, scheduler, SCHEDULER_PATH, own),
            failed => Ok(failed),
        },
        (SchedulerRequest::Replace(name), _) => {
            let GuestTask::Test(test) = &job.task else { return Ok(Err("this guest runs no test".into())) };
            let Some(index) = test.staged.iter().position(|staged| staged.name == *name) else {
                return Ok(Err(format!("no scheduler {name} is staged")));
            };
            match end(watch, out, job, scheduler)? {
                Ok(_) => start(watch, out, job, scheduler, &staged_path(index), &test.staged[index]),
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
    let Some(running) = scheduler.take() else { return Ok(Ok(String::new())) };
    running.stop(watch, out, job)?;
    // The kernel says that it disabled it, which here is what was wanted.
    let gone = until_disabled(watch, out)?;
    Ok(gone.then(String::new).ok_or_else(|| {
        format!("sched_ext was still not disabled {DETACH_MS} ms after the scheduler had ended")
    }))
}

/// Waits until no scheduler is left, and passes on what the kernel says of the last one.
fn until_disabled(watch: &mut Watch, out: &mut Outbox) -> Result<bool, WatchError> {
    let gone = watch.until(out, DETACH_MS, |_| is_disabled().then_some(()))?;
    watch.hear_kernel_out(out)?;
    watch.forget_disabled();
    Ok(gone.is_some())
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
    watch.forget_reason();
    match Scheduler::attach_program(watch, out, job, program, wanted, true) {
        Ok(started) => {
            watch.forget_disabled();
            *scheduler = Some(started);
            Ok(Ok(String::new()))
        }
        Err(SchedulerError::Watch(error)) => Err(error),
        Err(error) => {
            until_disabled(watch, out)?;
            let said = watch.reason().map_or(String::new(), |said| format!("; the kernel said: {said}"));
            Ok(Err(chain(&error) + &said))
        }
    }
}

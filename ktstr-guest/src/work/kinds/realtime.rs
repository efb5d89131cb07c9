//! Work in which real-time tasks take the CPU from fair ones.

use std::time::Duration;

use super::spin;
use crate::{
    attributes::{SchedPolicy, set_affinity},
    work::{
        cpus,
        not_run::Missing,
        worker::{Done, Place, Worker},
    },
};

/// Priority of the worker that interrupts.
pub(super) const STORM_PRIORITY: u32 = 50;

/// All of a group on one CPU, where the real-time workers, which come first, are in the others' way.
pub(super) fn take_priority(place: Place, rt_workers: u32, priority: u32) -> Done {
    let allowed = cpus::allowed();
    let cpu = *allowed.get(place.group % allowed.len().max(1)).ok_or(Missing::Policy)?;
    set_affinity(0, &[cpu]).map_err(|errno| Missing::Policy.because(errno))?;
    if place.position >= rt_workers as usize {
        return Ok(());
    }
    SchedPolicy::Fifo(priority).apply(0, None).map_err(|errno| Missing::Priority.because(errno))
}

/// The first of a group interrupts, the others spin.
pub(super) fn preempt_storm(w: &mut Worker<'_>, burst_iters: u64, sleep_us: u64) -> Done {
    if w.place.position > 0 {
        return spin::spin_wait(w);
    }
    while !w.stopped() {
        w.compute(burst_iters);
        w.sleep(Duration::from_micros(sleep_us));
        w.meter.did(0, 1);
        w.meter.checkpoint();
    }
    Ok(())
}

pub(super) fn starvation(w: &mut Worker<'_>, rt_workers: u32, burst_iters: u64) -> Done {
    if w.place.position >= rt_workers as usize {
        return spin::spin_wait(w);
    }
    while !w.stopped() {
        w.compute(burst_iters);
        w.meter.did(0, 1);
        w.meter.checkpoint();
    }
    Ok(())
}

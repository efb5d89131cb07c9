//! Work that shares a lock.

use std::sync::atomic::{
    AtomicU32,
    Ordering::{AcqRel, Acquire, SeqCst},
};

use nix::unistd::gettid;

use crate::{
    attributes::{SchedPolicy, set_affinity},
    work::{
        PiMode, cpus,
        not_run::Missing,
        sys::{futex_lock_pi, futex_unlock_pi, futex_wait, futex_wake, now_ns},
        worker::{Done, Place, WAIT_SLICE, Worker},
    },
};

/// Line of the group that holds the lock; its stamp is the time of the last hand-over.
const LOCK: usize = 0;

const FREE: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;

/// The three-state futex mutex. Returns false when told to stop.
fn lock(w: &mut Worker<'_>) -> bool {
    let line = w.line(LOCK);
    if line.word.compare_exchange(FREE, HELD, Acquire, Acquire).is_ok() {
        return true;
    }
    while line.word.swap(CONTENDED, AcqRel) != FREE {
        if w.stopped() {
            return false;
        }
        let slept = w.meter.blocking(|| futex_wait(&line.word, CONTENDED, WAIT_SLICE));
        if slept {
            // One waiter is woken at a time, so the last stamp is that of its wake or of a later one,
            // which came before it ran.
            w.meter.woken(line.stamp.load(SeqCst));
        }
    }
    true
}

fn unlock(w: &Worker<'_>) {
    let line = w.line(LOCK);
    if line.word.swap(FREE, AcqRel) == CONTENDED {
        line.stamp.store(now_ns(), SeqCst);
        futex_wake(&line.word, 1);
    }
}

pub(super) fn contention(w: &mut Worker<'_>, hold_iters: u64, work_iters: u64) -> Done {
    while !w.stopped() {
        w.compute(work_iters);
        if !lock(w) {
            break;
        }
        w.compute(hold_iters);
        unlock(w);
        w.meter.did(0, 1);
        w.meter.checkpoint();
    }
    Ok(())
}

/// All of a group on one CPU: the high ones first, then the medium, then the low ones.
pub(super) fn take_priority(place: Place, high: u32, medium: u32) -> Done {
    let allowed = cpus::allowed();
    let cpu = *allowed.get(place.group % allowed.len().max(1)).ok_or(Missing::Policy)?;
    set_affinity(0, &[cpu]).map_err(|errno| Missing::Policy.because(errno))?;
    let position = place.position as u32;
    let priority = match position {
        _ if position < high => 30,
        _ if position < high + medium => 20,
        _ => 10,
    };
    SchedPolicy::Fifo(priority).apply(0, None).map_err(|errno| Missing::Priority.because(errno))
}

pub(super) fn inversion(
    w: &mut Worker<'_>,
    (high, medium): (u32, u32),
    (hold_iters, work_iters): (u64, u64),
    mode: PiMode,
) -> Done {
    /// Pause of high and medium workers, so that lower ones get to the lock at all, nanoseconds.
    const PAUSE_NS: u64 = 1_000_000;
    let position = w.place.position as u32;
    let (is_high, is_medium) = (position < high, position >= high && position < high + medium);
    while !w.stopped() {
        w.compute(work_iters);
        if !is_medium {
            let locked = match mode {
                PiMode::Plain => lock(w),
                PiMode::Pi => lock_pi(w)?,
            };
            if !locked {
                break;
            }
            w.compute(hold_iters);
            match mode {
                PiMode::Plain => unlock(w),
                PiMode::Pi => unlock_pi(&w.line(LOCK).word)?,
            }
        }
        w.meter.did(0, 1);
        w.meter.checkpoint();
        if is_high || is_medium {
            w.sleep_until(now_ns() + PAUSE_NS);
        }
    }
    Ok(())
}

/// False when told to stop.
fn lock_pi(w: &mut Worker<'_>) -> Result<bool, crate::work::not_run::NotRun> {
    let word = &w.line(LOCK).word;
    let own = gettid().as_raw() as u32;
    if word.compare_exchange(FREE, own, Acquire, Acquire).is_ok() {
        return Ok(true);
    }
    loop {
        if w.stopped() {
            return Ok(false);
        }
        let locked = w.meter.blocking(|| futex_lock_pi(word, WAIT_SLICE));
        if locked.map_err(|errno| Missing::PiFutex.because(errno))? {
            return Ok(true);
        }
    }
}

fn unlock_pi(word: &AtomicU32) -> Result<(), crate::work::not_run::NotRun> {
    let own = gettid().as_raw() as u32;
    if word.compare_exchange(own, FREE, AcqRel, Acquire).is_ok() {
        return Ok(());
    }
    futex_unlock_pi(word).map_err(|errno| Missing::PiFutex.because(errno))
}

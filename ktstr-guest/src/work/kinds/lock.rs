//! Work that shares a lock.

use std::{
    cell::Cell,
    sync::atomic::{
        AtomicU32,
        Ordering::{AcqRel, Acquire, SeqCst},
    },
    time::Duration,
};

use nix::unistd::gettid;

use crate::{
    attributes::{SchedPolicy, set_affinity},
    work::{
        PiMode, cpus,
        not_run::Missing,
        sys::{futex_lock_pi, futex_unlock_pi, now_ns},
        worker::{Done, Place, WAIT_SLICE, Worker},
    },
};

/// Line of the group that holds the lock.
const LOCK: usize = 0;
/// Line of the group on which medium workers wait and count their rounds.
const MEDIUM: usize = 1;

const FREE: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;

/// The three-state futex mutex; each waits on a word of its own, so that it is known who is woken. Returns false when
/// told to stop.
fn lock(w: &mut Worker<'_>, before_waiting: impl Fn(&Worker<'_>)) -> bool {
    let line = w.line(LOCK);
    if line.word.compare_exchange(FREE, HELD, Acquire, Acquire).is_ok() {
        return true;
    }
    before_waiting(w);
    let since = now_ns();
    let mut taken = line.word.swap(CONTENDED, AcqRel) == FREE;
    while !taken {
        // Who says that it waits looks once more: who unlocked before that did not see it.
        let got = Cell::new(false);
        let needless = || {
            got.set(line.word.swap(CONTENDED, AcqRel) == FREE);
            got.get()
        };
        let on = w.wait_turn(since, needless);
        taken = got.get();
        if !on && !taken {
            return false;
        }
    }
    true
}

/// Of those who wait, those that come first by `order` are served first, as the kernel does by priority.
fn unlock(w: &Worker<'_>, order: impl Fn(usize) -> usize) {
    if w.line(LOCK).word.swap(FREE, AcqRel) == CONTENDED {
        w.call(0..w.place.size, order);
    }
}

pub(super) fn contention(w: &mut Worker<'_>, hold_iters: u64, work_iters: u64) -> Done {
    while !w.stopped() {
        w.compute(work_iters);
        if !lock(w, |_| ()) {
            break;
        }
        w.compute(hold_iters);
        unlock(w, |_| 0);
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

/// Who is high and must wait lets the medium ones go first, which keep a plain lock's holder, and so the high one, from
/// the CPU; a holder that has been lent the high one's priority they do not.
pub(super) fn inversion(
    w: &mut Worker<'_>,
    (high, medium): (u32, u32),
    (hold_iters, work_iters): (u64, u64),
    mode: PiMode,
) -> Done {
    /// Pause of high and medium workers, so that lower ones get to the lock at all.
    const PAUSE: Duration = Duration::from_millis(1);
    let position = w.place.position as u32;
    let (is_high, is_medium) = (position < high, position >= high && position < high + medium);
    let rounds = w.line(MEDIUM);
    let let_go = |w: &Worker<'_>| {
        if is_high {
            (high..high + medium).for_each(|position| w.stamp(position as usize));
            w.set_and_wake(rounds, rounds.word.load(SeqCst).wrapping_add(1), medium);
        }
    };
    let mut delayed = 0;
    while !w.stopped() {
        let seen = rounds.word.load(SeqCst);
        w.compute(work_iters);
        if is_medium {
            rounds.value.fetch_add(1, SeqCst);
        } else {
            let before = rounds.value.load(SeqCst);
            let locked = match mode {
                PiMode::Plain => lock(w, let_go),
                PiMode::Pi => lock_pi(w, let_go)?,
            };
            if !locked {
                break;
            }
            if is_high {
                delayed += rounds.value.load(SeqCst) - before;
                w.meter.metric(0, delayed as f64);
            }
            w.compute(hold_iters);
            match mode {
                PiMode::Plain => unlock(w, |position| position),
                PiMode::Pi => unlock_pi(&w.line(LOCK).word)?,
            }
        }
        w.meter.did(0, 1);
        w.meter.checkpoint();
        if is_high {
            w.sleep(PAUSE);
        } else if is_medium {
            w.await_change(rounds, seen, PAUSE);
        }
    }
    Ok(())
}

/// False when told to stop.
fn lock_pi(
    w: &mut Worker<'_>,
    before_waiting: impl Fn(&Worker<'_>),
) -> Result<bool, crate::work::not_run::NotRun> {
    let word = &w.line(LOCK).word;
    let own = gettid().as_raw() as u32;
    if word.compare_exchange(FREE, own, Acquire, Acquire).is_ok() {
        return Ok(true);
    }
    before_waiting(w);
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

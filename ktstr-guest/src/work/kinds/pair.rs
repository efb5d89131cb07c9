//! Work of pairs that wake each other.

use std::sync::atomic::Ordering::SeqCst;

use super::cache::Strider;
use crate::{
    attributes::SchedPolicy,
    work::{
        not_run::Missing,
        sys::signal_thread,
        worker::{Done, Place, Worker},
    },
};

/// Distance of two touches of `CachePipe`, bytes.
const STRIDE: u32 = 64;

/// The first of the two sends before it waits.
pub(super) fn pipe(w: &mut Worker<'_>, burst_iters: u64, cache_kib: Option<u32>) -> Done {
    let mut strider = cache_kib.map(|size_kib| Strider::new(size_kib, STRIDE)).transpose()?;
    let mut sends = w.place.position == 0;
    while !w.stopped() {
        if sends {
            match &mut strider {
                Some(strider) => strider.touch(w, burst_iters),
                None => w.compute(burst_iters),
            }
            w.meter.did(0, 1);
            if !w.send_byte(w.next()) {
                break;
            }
        }
        sends = true;
        if !w.receive_byte() {
            break;
        }
        w.meter.checkpoint();
    }
    Ok(())
}

/// The word says whose turn it is.
pub(super) fn futex(w: &mut Worker<'_>, spin_iters: u64) -> Done {
    let turn = w.line(0);
    let (own, next) = (w.place.position as u32, w.next());
    loop {
        let whose = turn.word.load(SeqCst);
        if whose != own {
            if !w.wait_while(turn, whose) {
                return Ok(());
            }
            continue;
        }
        if w.stopped() {
            return Ok(());
        }
        w.compute(spin_iters);
        w.meter.did(0, 1);
        w.stamp(next);
        w.set_and_wake(turn, next as u32, 1);
        w.meter.checkpoint();
    }
}

/// The first of a pair begins as the one that wakes.
pub(super) fn take_class(place: Place, waker: &SchedPolicy, wakee: &SchedPolicy) -> Done {
    let policy = if place.position == 0 { waker } else { wakee };
    policy.apply(0, None).map_err(|errno| Missing::Policy.because(errno))
}

/// Signals go to the partner's thread, from the moment it is there.
pub(super) fn signals(w: &mut Worker<'_>, per_iter: u32, work_iters: u64) -> Done {
    let partner = w.member(w.next());
    while !w.stopped() {
        w.compute(work_iters);
        let (pid, tid) = (partner.pid.load(SeqCst), partner.tid.load(SeqCst));
        if tid != 0 {
            for _ in 0..per_iter {
                // A partner that has just ended gets no more.
                let _ = signal_thread(pid, tid, nix::libc::SIGUSR1);
            }
        }
        w.meter.did(0, 1);
        w.meter.checkpoint();
    }
    Ok(())
}

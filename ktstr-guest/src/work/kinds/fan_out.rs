//! Work in which one wakes many.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use nix::{errno::Errno, sys::epoll::EpollEvent};

use super::matrix::Matrices;
use crate::work::{
    not_run::Missing,
    sys::{futex_wake, now_ns},
    worker::{Done, WAIT_SLICE, Worker},
};

/// Pause of an epoll producer between two bursts, in which consumers run dry and sleep.
const BETWEEN_BURSTS: Duration = Duration::from_millis(1);

/// Lines of the group: the generation that receivers wait for, and how many are done with theirs.
const GENERATION: usize = 0;
const DONE: usize = 1;

fn next_generation(w: &Worker<'_>) {
    let generation = w.line(GENERATION);
    w.stamp_others();
    w.set_and_wake(generation, generation.word.load(SeqCst).wrapping_add(1), u32::MAX);
}

/// Receives generations until told to stop; a late receiver takes the newest.
fn receive(w: &mut Worker<'_>, mut each: impl FnMut(&mut Worker<'_>)) {
    let generation = w.line(GENERATION);
    let mut seen = 0;
    while w.wait_while(generation, seen) {
        seen = generation.word.load(SeqCst);
        each(w);
        w.meter.did(0, 1);
        let done = w.line(DONE);
        if done.word.fetch_add(1, SeqCst) + 2 >= w.place.size as u32 {
            w.stamp(0);
            futex_wake(&done.word, 1);
        }
        w.meter.checkpoint();
    }
}

/// Waits until all receivers are done, and lets them be counted anew; false when told to stop.
fn await_all(w: &mut Worker<'_>) -> bool {
    let (done, all) = (w.line(DONE), w.place.size as u32 - 1);
    loop {
        let seen = done.word.load(SeqCst);
        if seen >= all {
            done.word.store(0, SeqCst);
            return true;
        }
        if !w.wait_while(done, seen) {
            return false;
        }
    }
}

pub(super) fn futex(w: &mut Worker<'_>, spin_iters: u64) -> Done {
    if w.place.position > 0 {
        receive(w, |w| w.compute(spin_iters));
        return Ok(());
    }
    while !w.stopped() {
        w.compute(spin_iters);
        next_generation(w);
        w.meter.did(0, 1);
        w.meter.checkpoint();
    }
    Ok(())
}

pub(super) fn compute(w: &mut Worker<'_>, footprint_kib: u32, operations: u32, think_us: u64) -> Done {
    if w.place.position > 0 {
        let mut matrices = Matrices::new(footprint_kib as usize * 1024);
        receive(w, |w| {
            if think_us > 0 {
                w.sleep(Duration::from_micros(think_us));
            }
            for _ in 0..operations {
                if !w.stopped() {
                    w.meter.did(matrices.multiply(), 0);
                }
            }
        });
        return Ok(());
    }
    while !w.stopped() {
        next_generation(w);
        w.meter.did(1, 1);
        if !await_all(w) {
            break;
        }
        w.meter.checkpoint();
    }
    Ok(())
}

/// After a round of wakes without regard for stragglers the waker lets all catch up.
pub(super) fn herd(w: &mut Worker<'_>, batches: u32, inter_batch_ms: u64) -> Done {
    if w.place.position > 0 {
        receive(w, |w| w.compute(1024));
        return Ok(());
    }
    while !w.stopped() {
        for _ in 0..batches {
            w.line(DONE).word.store(0, SeqCst);
            next_generation(w);
            w.meter.did(1, 1);
            w.sleep(Duration::from_millis(inter_batch_ms));
            w.meter.checkpoint();
            if w.stopped() {
                return Ok(());
            }
        }
        if !await_all(w) {
            break;
        }
    }
    Ok(())
}

/// Producers come first in a group. All consumers wait in one epoll, which wakes one for an event. The
/// first event since the last one taken carries the time; who takes it was woken for it.
pub(super) fn epoll(w: &mut Worker<'_>, burst: u32) -> Done {
    if let Some(event) = w.links.events.get(w.place.position) {
        let own = w.member(w.place.position);
        while !w.stopped() {
            for _ in 0..burst {
                w.compute(16);
                let _ = own.stamp.compare_exchange(0, now_ns(), SeqCst, SeqCst);
                match event.write(1) {
                    Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                    Err(errno) => return Err(Missing::File.because(errno)),
                }
            }
            w.meter.did(0, 1);
            w.meter.checkpoint();
            w.sleep(BETWEEN_BURSTS);
        }
        return Ok(());
    }
    let epoll = w.links.epoll.as_ref().ok_or(Missing::File)?;
    let slice = WAIT_SLICE.as_millis() as u8;
    while !w.stopped() {
        let mut ready = [EpollEvent::empty(); 1];
        match w.meter.blocking(|| epoll.wait(&mut ready, slice)) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => {
                let producer = ready[0].data() as usize % w.links.events.len();
                w.meter.woken(w.member(producer).stamp.swap(0, SeqCst));
                // Another consumer may have been faster.
                if w.links.events[producer].read().is_ok() {
                    w.compute(64);
                    w.meter.did(0, 1);
                }
            }
            Err(errno) => return Err(Missing::File.because(errno)),
        }
        w.meter.checkpoint();
    }
    Ok(())
}

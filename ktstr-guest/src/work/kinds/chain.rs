//! Work that is handed on: chains of wakes, and queues between producers and consumers.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use crate::work::{
    WakeMechanism,
    sys::now_ns,
    worker::{Done, Worker},
};

/// Line of the group: what is in the queue.
const ITEMS: usize = 0;

/// CPU time of a consumer's step: an item costs the same on every machine, so that who cannot keep up on one cannot
/// on another.
const ITEM_STEP: Duration = Duration::from_nanos(250);

/// One token goes round; who has it works and wakes the next.
pub(super) fn wake_chain(w: &mut Worker<'_>, wake: WakeMechanism, work: Duration) -> Done {
    match wake {
        WakeMechanism::Pipe => {
            let mut has_token = w.place.position == 0;
            while has_token || w.receive_byte() {
                hop(w, work);
                if w.stopped() || !w.send_byte(w.next()) {
                    break;
                }
                has_token = false;
            }
        }
        WakeMechanism::Futex => {
            // Each waits for its own line, so that a wake reaches only the next one.
            let own = w.member(w.place.position);
            if w.place.position == 0 {
                own.word.store(1, SeqCst);
            }
            while w.wait_while(own, 0) {
                own.word.store(0, SeqCst);
                hop(w, work);
                if w.stopped() {
                    break;
                }
                let next = w.next();
                w.stamp(next);
                w.set_and_wake(w.member(next), 1, 1);
            }
        }
    }
    Ok(())
}

fn hop(w: &mut Worker<'_>, work: Duration) {
    w.burst(work);
    w.meter.did(1, 1);
    w.meter.checkpoint();
}

/// Producers come first in a group.
pub(super) fn queue(
    w: &mut Worker<'_>,
    producers: u32,
    rate_hz: u64,
    consume_iters: u64,
    depth: u64,
) -> Done {
    if w.place.position < producers as usize {
        produce(w, producers as usize, 1_000_000_000 / rate_hz, depth as u32);
    } else {
        consume(w, producers as usize, ITEM_STEP.saturating_mul(consume_iters as u32));
    }
    Ok(())
}

/// An item at each tick; ticks missed while the queue was full are made up for at once.
fn produce(w: &mut Worker<'_>, producers: usize, period_ns: u64, depth: u32) {
    let items = w.line(ITEMS);
    let mut tick = now_ns();
    while !w.stopped() {
        tick += period_ns;
        w.sleep_until(tick);
        let since = now_ns();
        while items.word.fetch_update(SeqCst, SeqCst, |n| (n < depth).then_some(n + 1)).is_err() {
            if !w.wait_turn(since, || items.word.load(SeqCst) < depth) {
                return;
            }
            tick = tick.max(now_ns().saturating_sub(1_000_000_000));
        }
        items.value.fetch_max(u64::from(items.word.load(SeqCst)), SeqCst);
        w.call(producers..w.place.size, |_| 0);
        w.meter.did(1, 1);
        w.meter.metric(0, items.value.load(SeqCst) as f64);
        w.meter.checkpoint();
    }
}

fn consume(w: &mut Worker<'_>, producers: usize, cost: Duration) {
    let items = w.line(ITEMS);
    while !w.stopped() {
        let since = now_ns();
        while items.word.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_err() {
            if !w.wait_turn(since, || items.word.load(SeqCst) > 0) {
                return;
            }
        }
        w.call(0..producers, |_| 0);
        w.burst(cost);
        w.meter.did(0, 1);
        w.meter.checkpoint();
    }
}

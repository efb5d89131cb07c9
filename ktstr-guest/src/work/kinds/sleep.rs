//! Work that sleeps by the clock.

use std::{io::Write, time::Duration};

use nix::{sched::sched_yield, sys::prctl};

use super::{alu, arch, io::scratch_file};
use crate::work::{
    SequencePhase,
    board::Series,
    not_run::Missing,
    sys::now_ns,
    worker::{Done, Worker},
};

/// What `Sequence` writes at once.
const IO_BYTES: usize = 64 << 10;

pub(super) fn bursty(w: &mut Worker<'_>, burst: Duration, sleep: Duration) -> Done {
    w.meter.wants_duty(burst.as_nanos() as u64, sleep.as_nanos() as u64);
    while !w.stopped() {
        w.burst(burst);
        w.sleep(sleep);
        w.meter.did(0, 1);
        w.meter.checkpoint();
    }
    Ok(())
}

pub(super) fn idle_churn(w: &mut Worker<'_>, burst: Duration, sleep: Duration, precise: bool) -> Done {
    if precise {
        // Without it timers are merged, which is only less precise.
        let _ = prctl::set_timerslack(1);
    }
    bursty(w, burst, sleep)
}

/// Each deadline follows the one before; those missed altogether are passed over.
pub(super) fn timer_latency(w: &mut Worker<'_>, interval_us: u64) -> Done {
    let _ = prctl::set_timerslack(1);
    let interval = interval_us * 1000;
    let mut deadline = now_ns() + interval;
    while !w.stopped() {
        w.sleep_until(deadline);
        let late = now_ns().saturating_sub(deadline);
        if !w.stopped() {
            w.meter.record(Series::Timer, late);
            w.meter.did(1, 1);
        }
        deadline += interval * (1 + late / interval);
        w.meter.checkpoint();
    }
    Ok(())
}

pub(super) fn sequence(w: &mut Worker<'_>, first: &SequencePhase, rest: &[SequencePhase]) -> Done {
    let mut file = scratch_file()?;
    let bytes = vec![0x5a; IO_BYTES];
    while !w.stopped() {
        for phase in std::iter::once(first).chain(rest) {
            let until = now_ns() + phase.duration().as_nanos() as u64;
            match phase {
                SequencePhase::Spin(duration) => w.burst(*duration),
                SequencePhase::Sleep(duration) => w.sleep(*duration),
                SequencePhase::Yield(_) => {
                    while now_ns() < until && !w.stopped() {
                        w.compute(16);
                        // Fails never on Linux.
                        let _ = sched_yield();
                        w.meter.checkpoint();
                    }
                }
                SequencePhase::Io(_) => {
                    while now_ns() < until && !w.stopped() {
                        // The same 64 KiB each time, so that the file does not grow.
                        if std::io::Seek::rewind(&mut file).and_then(|()| file.write_all(&bytes)).is_err() {
                            return Err(Missing::File.into());
                        }
                        w.meter.did(1, 0);
                        w.sleep(Duration::from_micros(100));
                        w.meter.checkpoint();
                    }
                }
                SequencePhase::AluHot { width, .. } => {
                    let multiply = arch::multiplier(*width).ok_or(Missing::Width)?;
                    while now_ns() < until && !w.stopped() {
                        alu::unit(w, multiply);
                        w.meter.checkpoint();
                    }
                }
            }
            if w.stopped() {
                return Ok(());
            }
        }
        w.meter.did(0, 1);
        w.meter.checkpoint();
    }
    Ok(())
}

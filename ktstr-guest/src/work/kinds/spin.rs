//! Work that only computes or yields.

use nix::sched::sched_yield;

use crate::{
    attributes::set_affinity,
    work::{
        board::Series,
        burn::STEPS_PER_UNIT,
        cpus,
        not_run::Missing,
        region::Region,
        sys::now_ns,
        worker::{Done, Place, Worker},
    },
};

/// Units between two checkpoints of a loop that does nothing but compute.
const UNITS_PER_CHECKPOINT: u64 = 16;
/// Yields between two checkpoints.
const YIELDS_PER_CHECKPOINT: u64 = 16;
/// Pauses in one unit of spinning on SMT siblings.
const PAUSES_PER_UNIT: u64 = 64;
/// Memory that random touches are spread over, bytes.
const COLD_BYTES: usize = 512 << 10;

pub(super) fn spin_wait(w: &mut Worker<'_>) -> Done {
    while !w.stopped() {
        w.compute(STEPS_PER_UNIT * UNITS_PER_CHECKPOINT);
        w.meter.did(0, 1);
        w.meter.checkpoint();
    }
    Ok(())
}

pub(super) fn yield_heavy(w: &mut Worker<'_>, steps: u64) -> Done {
    while !w.stopped() {
        for _ in 0..YIELDS_PER_CHECKPOINT {
            w.compute(steps);
            // Fails never on Linux.
            let _ = sched_yield();
        }
        w.meter.did(0, YIELDS_PER_CHECKPOINT);
        w.meter.checkpoint();
    }
    Ok(())
}

/// Each group sits on one core; groups are spread over the cores that have siblings.
pub(super) fn take_sibling(place: Place) -> Done {
    let cores = cpus::sibling_groups(&cpus::allowed());
    let core = cores.get(place.group % cores.len().max(1)).ok_or(Missing::SmtSiblings)?;
    let cpu = core[place.position % core.len()];
    set_affinity(0, &[cpu]).map_err(|errno| Missing::SmtSiblings.because(errno))
}

pub(super) fn smt_sibling_spin(w: &mut Worker<'_>) -> Done {
    while !w.stopped() {
        let start = now_ns();
        for _ in 0..PAUSES_PER_UNIT {
            std::hint::spin_loop();
        }
        w.meter.record(Series::Iteration, now_ns().saturating_sub(start));
        w.meter.did(1, 1);
        w.meter.checkpoint();
    }
    Ok(())
}

pub(super) fn ipc_variance(w: &mut Worker<'_>, hot: u64, cold: u64, periods: u64) -> Done {
    let mut memory = Region::new(COLD_BYTES).map_err(|errno| Missing::Memory.because(errno))?;
    while !w.stopped() {
        let start = now_ns();
        for _ in 0..periods {
            let mut left = hot;
            while left > 0 && !w.stopped() {
                let steps = left.min(STEPS_PER_UNIT * UNITS_PER_CHECKPOINT);
                w.compute(steps);
                w.meter.checkpoint();
                left -= steps;
            }
            for _ in 0..cold {
                let offset = w.rng.below(COLD_BYTES as u64) as usize;
                memory.touch(offset);
            }
            w.meter.did(1, 0);
            w.meter.checkpoint();
            if w.stopped() {
                return Ok(());
            }
        }
        w.meter.record(Series::Iteration, now_ns().saturating_sub(start));
        w.meter.did(0, 1);
    }
    Ok(())
}

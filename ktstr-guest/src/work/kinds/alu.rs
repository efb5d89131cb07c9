//! Multiplications in four independent chains, in registers of a chosen width.

use super::arch;
use crate::work::{
    SimdWidth,
    board::Series,
    not_run::Missing,
    sys::now_ns,
    worker::{Done, Worker},
};

/// Rounds of the inner loop in one unit of work.
const ROUNDS_PER_UNIT: u64 = 4096;

pub(super) fn alu_hot(w: &mut Worker<'_>, width: SimdWidth) -> Done {
    let multiply = arch::multiplier(width).ok_or(Missing::Width)?;
    while !w.stopped() {
        unit(w, multiply);
        w.meter.did(0, 1);
        w.meter.checkpoint();
    }
    arch::leave();
    Ok(())
}

/// One unit; in other work types, too.
pub(super) fn unit(w: &mut Worker<'_>, multiply: fn(u64)) {
    let start = now_ns();
    multiply(ROUNDS_PER_UNIT);
    w.meter.record(Series::Iteration, now_ns().saturating_sub(start));
    w.meter.did(1, 0);
}

//! Workers that park: each sleeps once it has done so many iterations, and goes on when it is released. It does not end,
//! and what it does not run meanwhile is its own choice, no gap.

use std::sync::atomic::Ordering::SeqCst;

use super::{WorkError, WorkloadConfig, WorkloadHandle};
use crate::work::sys;

/// Refuses work that would not park as a whole.
pub(super) fn check(config: &WorkloadConfig) -> Result<(), WorkError> {
    match config.park_after_iterations.is_some() && config.work_type.has_threads() {
        true => Err(WorkError::Parks { work_type: config.work_type.name() }),
        false => Ok(()),
    }
}

impl WorkloadHandle {
    /// Lets parked workers go on, for good: those that have not parked yet never will.
    pub fn release(&self) {
        self.board.released().store(1, SeqCst);
        sys::futex_wake(self.board.released(), u32::MAX);
    }
}

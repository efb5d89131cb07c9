//! Waiting until each worker has done its first iteration: bounded, and who has not is named.

use std::{
    sync::atomic::Ordering::Acquire,
    time::{Duration, Instant},
};

use super::{WorkError, WorkloadHandle};
use crate::work::board::Counter;

/// How long [`super::WorkloadConfig::signal_first_iteration`] waits for workers, in guest time.
pub const FIRST_ITERATION_TIMEOUT: Duration = Duration::from_secs(30);
/// It looks at their figures this often.
const FIRST_ITERATION_LOOK: Duration = Duration::from_millis(1);

/// Workers in words.
pub(super) fn named(workers: &[(usize, u32)]) -> String {
    let names: Vec<String> =
        workers.iter().map(|(worker, tid)| format!("worker {worker} (tid {tid})")).collect();
    names.join(", ")
}

impl WorkloadHandle {
    /// Waits for first iterations where the workload says so.
    pub(crate) fn first_iterations(&self) -> Result<(), WorkError> {
        match self.config.signal_first_iteration {
            true => self.await_first_iteration(FIRST_ITERATION_TIMEOUT),
            false => Ok(()),
        }
    }

    /// Waits until each worker has counted an iteration, at most so long; the error names those that have not. Those
    /// that cannot do their work on this machine are not waited for: their reports say so.
    pub fn await_first_iteration(&self, most: Duration) -> Result<(), WorkError> {
        let began = Instant::now();
        loop {
            let late = |index: &usize| {
                let slot = self.board.slot(*index);
                slot.total(Counter::Iterations) == 0 && slot.not_run.load(Acquire) == 0
            };
            let late: Vec<(usize, u32)> =
                (0..self.workers()).filter(late).map(|index| (index, self.tid(index))).collect();
            if late.is_empty() {
                return Ok(());
            }
            let waited = began.elapsed();
            if waited >= most {
                let cgroup = self.config.cgroup.clone();
                return Err(WorkError::FirstIteration { cgroup, workers: self.workers(), late, waited });
            }
            std::thread::sleep(FIRST_ITERATION_LOOK.min(most - waited));
        }
    }
}

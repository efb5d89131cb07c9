//! Why workers cannot be had.

use std::{io, time::Duration};

use crate::work::WorkTypeError;

/// Why workers cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// Nobody is to work.
    #[error("a workload of no workers does nothing: give `workers`")]
    NoWorkers,
    /// The number of workers does not fit the kind of work.
    #[error("{work_type} works in groups of {group}: {workers} workers cannot be divided into such groups")]
    Group {
        /// Kind of work.
        work_type: &'static str,
        /// Workers in a group.
        group: u32,
        /// Workers asked for.
        workers: u32,
    },
    /// A parameter makes no work.
    #[error("a parameter of the work type is wrong")]
    Parameter(#[from] WorkTypeError),
    /// The kind of work cannot be done in threads of the calling process.
    #[error("{work_type} forks or moves its process: use CloneMode::Fork, not Thread")]
    Threads {
        /// Kind of work.
        work_type: &'static str,
    },
    /// A worker cannot be what it should be.
    #[error("worker {worker} of cgroup `{cgroup}` cannot be set up as asked: it {reason}")]
    Refused {
        /// Which, from 0.
        worker: usize,
        /// Its cgroup.
        cgroup: String,
        /// What it asked for and why it was refused.
        reason: String,
    },
    /// Workers did not do a first iteration.
    #[error(
        "{} of {workers} workers of cgroup `{cgroup}` did no first iteration within {waited:?}: {}",
        late.len(),
        super::first_iteration::named(late)
    )]
    FirstIteration {
        /// Their cgroup.
        cgroup: String,
        /// How many there are.
        workers: usize,
        /// Those who did not: which, from 0, and its thread id.
        late: Vec<(usize, u32)>,
        /// How long they were waited for.
        waited: Duration,
    },
    /// Threads that a worker makes would go on while it is parked.
    #[error("{work_type} works in threads of its own, which do not park: leave `park_after_iterations` away")]
    Parks {
        /// Kind of work.
        work_type: &'static str,
    },
    /// Workloads that are to share a process are not made for it.
    #[error("workloads that share a process are all CloneMode::Pcomm with the same name")]
    Unshared,
    /// The system refused.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

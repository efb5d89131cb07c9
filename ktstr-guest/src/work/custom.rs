//! Work that the user writes: a function that is called once per worker and loops until it is told to stop.
//! It is measured like any other work, through what it says to its [`WorkerCtx`].

use std::{fmt, path::PathBuf, sync::atomic::Ordering::Relaxed, time::Duration};

use super::{board::Series, cpus, rng::Rng, sys::now_ns, worker::Worker};

/// A function with a name and numbers to go by.
#[derive(Clone, Copy)]
pub struct Custom {
    /// Name in reports.
    pub name: &'static str,
    function: fn(&mut WorkerCtx<'_, '_>),
    cfg: CustomCfg,
}

/// Numbers of the user's choice, the same for all workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CustomCfg {
    /// Any numbers.
    pub u64s: [u64; 4],
    /// Any sizes.
    pub usizes: [usize; 4],
    /// Any signed numbers.
    pub i32s: [i32; 4],
    /// Any switches.
    pub bools: [bool; 4],
    /// Any bytes.
    pub bytes: [u8; 32],
}

impl Custom {
    /// Work of this name done by this function.
    pub const fn new(name: &'static str, function: fn(&mut WorkerCtx<'_, '_>)) -> Self {
        Self {
            name,
            function,
            cfg: CustomCfg { u64s: [0; 4], usizes: [0; 4], i32s: [0; 4], bools: [false; 4], bytes: [0; 32] },
        }
    }

    /// With these numbers.
    pub const fn with_cfg(mut self, cfg: CustomCfg) -> Self {
        self.cfg = cfg;
        self
    }

    pub(super) fn run(&self, worker: &mut Worker<'_>) {
        (self.function)(&mut WorkerCtx { worker, cfg: self.cfg });
    }
}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Custom").field("name", &self.name).field("cfg", &self.cfg).finish_non_exhaustive()
    }
}

impl PartialEq for Custom {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
            && self.cfg == other.cfg
            && std::ptr::fn_addr_eq(self.function, other.function)
    }
}

impl Eq for Custom {}

/// A worker as a user's function sees it.
pub struct WorkerCtx<'w, 'b> {
    worker: &'w mut Worker<'b>,
    cfg: CustomCfg,
}

impl WorkerCtx<'_, '_> {
    /// Whether the worker was told to stop; to be looked at often.
    pub fn stopped(&self) -> bool {
        self.worker.stopped()
    }

    /// Number of this worker among those of its workload, from 0.
    pub fn index(&self) -> usize {
        self.worker.place.index
    }

    /// The numbers given with the function.
    pub fn cfg(&self) -> &CustomCfg {
        &self.cfg
    }

    /// Random choices, from the seed of the run.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.worker.rng
    }

    /// CPUs this worker may use, ascending.
    pub fn cpus(&self) -> Vec<u32> {
        cpus::allowed()
    }

    /// Thread ids of the other workers of the workload that have begun.
    pub fn sibling_tids(&self) -> Vec<u32> {
        let board = self.worker.board;
        (0..board.slots())
            .filter(|index| *index != self.index())
            .map(|index| board.slot(index).tid.load(Relaxed))
            .filter(|tid| *tid != 0)
            .collect()
    }

    /// Directory of the cgroup this worker is in.
    pub fn cgroup_dir(&self) -> Option<PathBuf> {
        super::kinds::own_cgroup()
    }

    /// Counts work done, publishes the figures, and notes the time off the CPU since the last call.
    pub fn did(&mut self, work_units: u64, iterations: u64) {
        self.worker.meter.did(work_units, iterations);
        self.worker.meter.checkpoint();
    }

    /// Computes so many steps of arithmetic, counted as work.
    pub fn compute(&mut self, steps: u64) {
        self.worker.compute(steps);
    }

    /// Computes for so much CPU time, counted as work.
    pub fn burst(&mut self, time: Duration) {
        self.worker.burst(time);
    }

    /// Sleeps; how late it woke counts as wake latency.
    pub fn sleep(&mut self, time: Duration) {
        self.worker.sleep(time);
    }

    /// Runs a call that blocks by choice. A signal tells the worker to stop: the call must end on `EINTR`.
    pub fn blocking<T>(&mut self, call: impl FnOnce() -> T) -> T {
        self.worker.meter.blocking(call)
    }

    /// Notes a wake latency.
    pub fn wake_latency(&mut self, latency: Duration) {
        self.worker.meter.record(Series::Wake, latency.as_nanos() as u64);
    }

    /// Notes the time that a round of work took.
    pub fn iteration_cost(&mut self, cost: Duration) {
        self.worker.meter.record(Series::Iteration, cost.as_nanos() as u64);
    }

    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub fn now_ns(&self) -> u64 {
        now_ns()
    }
}

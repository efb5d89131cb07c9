//! What each phase of a scenario was like: the workers' counters at its ends, subtracted.

use std::time::Instant;

use ktstr_proto::{
    stats::{Phase, PhaseBucket, PhaseCgroup},
    verdict::WorkerReport,
};

use super::engine::Running;

/// Counters of one group of workers.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    iterations: u64,
    work_units: u64,
    cpu_time_ns: u64,
    migrations: u64,
}

impl Totals {
    fn of(reports: &[WorkerReport]) -> Self {
        let sum = |of: fn(&WorkerReport) -> u64| reports.iter().map(of).sum();
        Self {
            iterations: sum(|r| r.iterations),
            work_units: sum(|r| r.work_units),
            cpu_time_ns: sum(|r| r.cpu_time_ns),
            migrations: sum(|r| r.migrations),
        }
    }
}

/// The phases so far.
pub(super) struct Phases {
    begun: Instant,
    buckets: Vec<PhaseBucket>,
    /// Counters of each group when the phase began, by its order.
    before: Vec<(usize, Totals)>,
}

impl Phases {
    /// The baseline begins.
    pub fn begin() -> Self {
        let baseline = PhaseBucket { label: Phase::Baseline.to_string(), ..PhaseBucket::default() };
        Self { begun: Instant::now(), buckets: vec![baseline], before: Vec::new() }
    }

    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    /// Counts an operation.
    pub fn count_op(&mut self) {
        if let Some(phase) = self.buckets.last_mut() {
            phase.ops += 1;
        }
    }

    /// The next phase begins with these workers.
    pub fn next(&mut self, index: u32, label: String, workers: &[Running]) {
        for worker in workers {
            self.account(&worker.origin, worker.order, &worker.handle.snapshot());
        }
        let now = self.now_ms();
        if let Some(phase) = self.buckets.last_mut() {
            phase.end_ms = now;
        }
        self.buckets.push(PhaseBucket { index, label, start_ms: now, end_ms: now, ..PhaseBucket::default() });
    }

    /// A group of workers is gone.
    pub fn finish(&mut self, cgroup: &str, order: usize, reports: &[WorkerReport]) {
        self.account(cgroup, order, reports);
        self.before.retain(|(known, _)| *known != order);
    }

    /// Adds what a group did since it was last looked at to the current phase.
    fn account(&mut self, cgroup: &str, order: usize, reports: &[WorkerReport]) {
        let now = Totals::of(reports);
        let before = match self.before.iter_mut().find(|(known, _)| *known == order) {
            Some((_, before)) => std::mem::replace(before, now),
            None => {
                self.before.push((order, now));
                Totals::default()
            }
        };
        let Some(phase) = self.buckets.last_mut() else { return };
        let at = phase.cgroups.iter().position(|known| known.name == cgroup).unwrap_or_else(|| {
            phase.cgroups.push(PhaseCgroup { name: cgroup.into(), ..PhaseCgroup::default() });
            phase.cgroups.len() - 1
        });
        let entry = &mut phase.cgroups[at];
        entry.workers += reports.len() as u32;
        entry.iterations += now.iterations.saturating_sub(before.iterations);
        entry.work_units += now.work_units.saturating_sub(before.work_units);
        entry.cpu_time_ns += now.cpu_time_ns.saturating_sub(before.cpu_time_ns);
        entry.migrations += now.migrations.saturating_sub(before.migrations);
    }

    /// All phases, the last one ended now.
    pub fn into_buckets(mut self) -> Vec<PhaseBucket> {
        let now = self.now_ms();
        if let Some(phase) = self.buckets.last_mut() {
            phase.end_ms = now;
        }
        self.buckets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(iterations: u64) -> WorkerReport {
        WorkerReport { iterations, cpu_time_ns: iterations * 1000, ..WorkerReport::default() }
    }

    #[test]
    fn each_phase_has_what_was_done_in_it() {
        let mut phases = Phases::begin();
        phases.account("a", 0, &[report(5), report(6)]);
        phases.next(1, "Step[0]".into(), &[]);
        phases.count_op();
        phases.account("a", 0, &[report(7), report(10)]);
        phases.finish("b", 1, &[report(3)]);
        let buckets = phases.into_buckets();
        assert_eq!(buckets[0].cgroup("a").unwrap().iterations, 11);
        let step = &buckets[1];
        assert_eq!((step.label.as_str(), step.ops, step.index), ("Step[0]", 1, 1));
        assert_eq!((step.cgroup("a").unwrap().iterations, step.cgroup("a").unwrap().workers), (6, 2));
        assert_eq!(step.cgroup("b").unwrap().iterations, 3);
        assert_eq!(step.cgroup("b").unwrap().iteration_rate(), 1e6);
    }
}

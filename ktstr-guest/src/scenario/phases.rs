//! What each phase of a scenario was like: the workers' counters at its ends, subtracted, and what the
//! workers themselves keep by phase, taken over when they are gone. Of a scenario with more phases than
//! [`MAX_PHASES`] the last kept one is a mixture, so no bucket gets it.

use std::time::Instant;

use ktstr_proto::{
    figures::LatencyFigures,
    histogram::Histogram,
    stats::{Phase, PhaseBucket, PhaseCgroup},
    verdict::{PhaseSlice, WorkerReport},
};

use super::{engine::Running, hold::Account};
use crate::work::MAX_PHASES;

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
    /// What workers kept by phase, by phase and cgroup.
    kept: Vec<Kept>,
}

/// What the workers of a cgroup kept of a phase.
struct Kept {
    phase: u32,
    cgroup: String,
    wakes: Histogram,
    timers: Histogram,
    costs: Histogram,
    blocked: Histogram,
    /// Lowest and highest share of the time that a worker wanted to run and did not, percent.
    off_cpu: Option<(f64, f64)>,
}

impl Kept {
    fn add(&mut self, slice: &PhaseSlice, is_messenger: bool) {
        if !is_messenger {
            self.wakes.merge(&slice.wake_latency);
        }
        self.timers.merge(&slice.timer_latency);
        self.costs.merge(&slice.iteration_cost);
        self.blocked.merge(&slice.block_time);
        if slice.wall_time_ns > 0 {
            let off = slice
                .wall_time_ns
                .saturating_sub(slice.voluntary_off_cpu_ns)
                .saturating_sub(slice.cpu_time_ns);
            let pct = off as f64 * 100.0 / slice.wall_time_ns as f64;
            let (low, high) = self.off_cpu.unwrap_or((pct, pct));
            self.off_cpu = Some((low.min(pct), high.max(pct)));
        }
    }
}

impl Phases {
    /// The baseline begins.
    pub fn begin() -> Self {
        let baseline = PhaseBucket { label: Phase::Baseline.to_string(), ..PhaseBucket::default() };
        Self { begun: Instant::now(), buckets: vec![baseline], before: Vec::new(), kept: Vec::new() }
    }

    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    /// Which phase it is.
    pub fn current(&self) -> u32 {
        self.buckets.last().map_or(0, |phase| phase.index)
    }

    /// Counts an operation.
    pub fn count_op(&mut self) {
        if let Some(phase) = self.buckets.last_mut() {
            phase.ops += 1;
        }
    }

    /// The phase's step held, and this is the kernel's account of it.
    pub fn held(&mut self, account: Account) {
        let Some(phase) = self.buckets.last_mut() else { return };
        phase.hold = Some(account.hold);
        for (name, usage) in account.cgroups {
            entry(phase, &name).usage = Some(usage);
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
        let slices = reports.iter().flat_map(|report| report.phases.iter().map(|s| (s, report.is_messenger)));
        for (slice, is_messenger) in slices {
            let Some(phase) = self.buckets.iter_mut().find(|phase| phase.index == slice.phase) else {
                continue;
            };
            let entry = entry(phase, cgroup);
            entry.run_delay_ns += slice.run_delay_ns;
            entry.pcount += slice.pcount;
            entry.max_gap_ms = entry.max_gap_ms.max(slice.max_gap_ns / 1_000_000);
            let known = |kept: &&mut Kept| kept.phase == slice.phase && kept.cgroup == cgroup;
            if let Some(kept) = self.kept.iter_mut().find(known) {
                kept.add(slice, is_messenger);
                continue;
            }
            let mut kept = Kept {
                phase: slice.phase,
                cgroup: cgroup.into(),
                wakes: Histogram::default(),
                timers: Histogram::default(),
                costs: Histogram::default(),
                blocked: Histogram::default(),
                off_cpu: None,
            };
            kept.add(slice, is_messenger);
            self.kept.push(kept);
        }
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
        let entry = entry(phase, cgroup);
        entry.workers += reports.len() as u32;
        entry.iterations += now.iterations.saturating_sub(before.iterations);
        entry.work_units += now.work_units.saturating_sub(before.work_units);
        entry.cpu_time_ns += now.cpu_time_ns.saturating_sub(before.cpu_time_ns);
        entry.migrations += now.migrations.saturating_sub(before.migrations);
    }

    /// When the baseline began, guest `CLOCK_MONOTONIC`, nanoseconds.
    pub fn begun_ns(&self) -> u64 {
        let since = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        crate::work::now_ns().saturating_sub(since)
    }

    /// All phases, the last one ended now.
    pub fn into_buckets(mut self) -> Vec<PhaseBucket> {
        let now = self.now_ms();
        if let Some(phase) = self.buckets.last_mut() {
            phase.end_ms = now;
        }
        let mixed = (self.buckets.len() > MAX_PHASES).then_some(MAX_PHASES as u32 - 1);
        for phase in &mut self.buckets {
            for cgroup in &mut phase.cgroups {
                if mixed == Some(phase.index) {
                    (cgroup.run_delay_ns, cgroup.pcount, cgroup.max_gap_ms) = (0, 0, 0);
                    continue;
                }
                let known = |kept: &&Kept| kept.phase == phase.index && kept.cgroup == cgroup.name;
                let Some(kept) = self.kept.iter().find(known) else { continue };
                let wakes = &kept.wakes;
                cgroup.wakes = wakes.count();
                cgroup.median_wake_latency_ns = wakes.quantile(0.5).unwrap_or_default();
                cgroup.p99_wake_latency_ns = wakes.quantile(0.99).unwrap_or_default();
                cgroup.max_wake_latency_ns = wakes.max();
                cgroup.wake_latency = LatencyFigures::of(wakes);
                cgroup.timer_latency = LatencyFigures::of(&kept.timers);
                cgroup.iteration_cost = LatencyFigures::of(&kept.costs);
                cgroup.block_time = LatencyFigures::of(&kept.blocked);
                (cgroup.min_off_cpu_pct, cgroup.max_off_cpu_pct) = kept.off_cpu.unwrap_or_default();
            }
        }
        self.buckets
    }
}

/// A cgroup's figures in a phase, made if they are not there yet.
fn entry<'a>(phase: &'a mut PhaseBucket, cgroup: &str) -> &'a mut PhaseCgroup {
    let at = phase.cgroups.iter().position(|known| known.name == cgroup).unwrap_or_else(|| {
        phase.cgroups.push(PhaseCgroup { name: cgroup.into(), ..PhaseCgroup::default() });
        phase.cgroups.len() - 1
    });
    &mut phase.cgroups[at]
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

    #[test]
    fn latencies_are_those_of_all_workers_of_a_cgroup_in_the_phase() {
        let slice = |phase, wakes: &[u64]| PhaseSlice {
            phase,
            run_delay_ns: 600,
            pcount: 3,
            wake_latency: Histogram::of(wakes.iter().copied()),
            iteration_cost: Histogram::of(wakes.iter().map(|ns| 2 * ns)),
            ..PhaseSlice::default()
        };
        let worker = |slices| WorkerReport { phases: slices, ..report(1) };
        let mut phases = Phases::begin();
        phases.next(1, "Step[0]".into(), &[]);
        let (one, two) = (slice(1, &[1000, 1000, 1000]), slice(1, &[9000]));
        phases.finish("a", 0, &[worker(vec![slice(0, &[]), one])]);
        phases.finish("a", 1, &[worker(vec![two])]);
        let buckets = phases.into_buckets();
        let step = buckets[1].cgroup("a").unwrap();
        assert_eq!((step.wakes, step.max_wake_latency_ns), (4, 9000));
        assert_eq!(step.metric("worst_wake_latency_us"), Some(9.0));
        assert_eq!(step.metric("worst_timer_latency_us"), None);
        assert_eq!(step.metric("worst_iteration_cost_us"), Some(18.0));
        assert_eq!(step.metric("worst_block_time_us"), None);
        assert!(step.median_wake_latency_ns.abs_diff(1000) < 16 && step.p99_wake_latency_ns > 8900);
        assert_eq!(step.mean_run_delay_ns(), Some(200));
        let baseline = buckets[0].cgroup("a").unwrap();
        assert_eq!((baseline.wakes, baseline.mean_run_delay_ns()), (0, Some(200)));
        assert_eq!(PhaseCgroup::default().mean_run_delay_ns(), None);
    }

    #[test]
    fn a_mixture_of_phases_is_given_to_none() {
        let mut phases = Phases::begin();
        for index in 1..=MAX_PHASES as u32 {
            phases.next(index, format!("Step[{}]", index - 1), &[]);
        }
        let last = MAX_PHASES as u32 - 1;
        let slice =
            PhaseSlice { phase: last, pcount: 3, wake_latency: Histogram::of([5]), ..PhaseSlice::default() };
        phases.finish("a", 0, &[WorkerReport { phases: vec![slice], ..report(1) }]);
        let buckets = phases.into_buckets();
        let mixed = buckets[last as usize].cgroup("a").unwrap();
        assert_eq!((mixed.wakes, mixed.pcount), (0, 0));
    }
}

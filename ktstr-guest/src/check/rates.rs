//! Checks that are not made unless a test asks for them: work done in equal time, latencies, migrations,
//! and where memory was.
//!
//! What has no measurement to judge by is inconclusive, never passed: a limit of wake latency says
//! nothing about workers that never waited.

use ktstr_proto::verdict::{
    Assert, AssertResult, DetailKind, Outcome, TimeFigures, WorkerExit, WorkerReport,
};

use crate::scenario::TestTopology;

/// Judges the workers of one cgroup that were told the same.
pub fn judge(
    assert: &Assert,
    topo: Option<&TestTopology>,
    peers: &[WorkerReport],
    result: &mut AssertResult,
) {
    let alive: Vec<&WorkerReport> =
        peers.iter().filter(|w| w.exit == WorkerExit::Completed && w.not_run.is_none()).collect();
    let Some(first) = alive.first() else { return };
    let mut judge = Judge { cgroup: &first.cgroup, result };
    judge.throughput(assert, &alive);
    judge.wakes(assert, &alive);
    judge.migrations(assert, &alive);
    judge.memory(assert, topo, &alive);
}

/// Says when a limit was given for what no worker of the whole test did, or for a comparison of workers and there was
/// nobody to compare.
pub fn judge_measured(assert: &Assert, groups: &[super::Group], result: &mut AssertResult) {
    let limited = assert.max_p99_wake_latency_ns.is_some() || assert.max_wake_latency_cv.is_some();
    let mut ran = groups.iter().flat_map(|group| &group.reports).filter(|w| w.not_run.is_none()).peekable();
    if limited && ran.peek().is_some() && ran.all(|w| w.is_messenger || w.wake_latency.is_empty()) {
        let message = "wake latency cannot be judged: no worker was ever woken by another or by a timer";
        result.push(DetailKind::Benchmark, Outcome::Inconclusive, message);
    }
    let alone = |group: &super::Group| group.reports.iter().filter(|w| w.not_run.is_none()).count() < 2;
    if assert.max_throughput_cv.is_some() && !groups.is_empty() && groups.iter().all(alone) {
        let message = "throughput cannot be compared: no two workers were told the same";
        result.push(DetailKind::Throughput, Outcome::Inconclusive, message);
    }
}

/// Where the pages of some workers were.
#[derive(Debug, Clone, Copy)]
pub struct Placed {
    /// Pages counted.
    pub pages: u64,
    /// Share on the nodes of their CPUs.
    pub local: f64,
    /// Share on nodes without CPUs.
    pub slow: f64,
    /// Pages moved between nodes for each of them.
    pub moved: f64,
}

/// `None` when no pages were counted or nobody knows the machine.
pub fn placed(workers: &[&WorkerReport], topo: Option<&TestTopology>) -> Option<Placed> {
    let pages: u64 = workers.iter().flat_map(|w| &w.numa_pages).map(|(_, pages)| pages).sum();
    let topo = topo.filter(|_| pages > 0)?;
    let on = |nodes: &dyn Fn(&WorkerReport, u32) -> bool| -> f64 {
        let counted = |w: &&WorkerReport| -> u64 {
            w.numa_pages.iter().filter(|(node, _)| nodes(w, *node)).map(|(_, pages)| pages).sum()
        };
        workers.iter().map(counted).sum::<u64>() as f64 / pages as f64
    };
    let expected = |w: &WorkerReport, node: u32| {
        let cpus = if w.cpus_allowed.is_empty() { topo.all_cpus() } else { &w.cpus_allowed };
        topo.nodes_of(cpus).contains(&node)
    };
    // The kernel counts for the whole system, so every worker saw the same moves.
    let moved = workers.iter().map(|w| w.numa_pages_migrated).max().unwrap_or(0);
    Some(Placed {
        pages,
        local: on(&expected),
        slow: on(&|_, node| topo.nodes().get(node as usize).is_none_or(Vec::is_empty)),
        moved: moved as f64 / pages as f64,
    })
}

struct Judge<'a> {
    cgroup: &'a str,
    result: &'a mut AssertResult,
}

/// Events per second of CPU time.
fn rate(count: u64, cpu_time_ns: u64) -> Option<f64> {
    (cpu_time_ns > 0).then(|| count as f64 * 1e9 / cpu_time_ns as f64)
}

/// Standard deviation as a share of the mean.
fn variation(values: &[f64]) -> Option<f64> {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    if values.len() < 2 || mean <= 0.0 {
        return None;
    }
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
    Some(variance.sqrt() / mean)
}

impl Judge<'_> {
    fn fail(&mut self, kind: DetailKind, message: String) {
        self.result.push(kind, Outcome::Fail, message);
    }

    fn unmeasured(&mut self, kind: DetailKind, what: &str) {
        let message = format!("{what} of {} cannot be judged: nothing was measured", self.cgroup);
        self.result.push(kind, Outcome::Inconclusive, message);
    }

    fn throughput(&mut self, assert: &Assert, workers: &[&WorkerReport]) {
        let cgroup = self.cgroup;
        if let Some(limit) = assert.max_throughput_cv {
            let rates: Vec<f64> = workers.iter().filter_map(|w| rate(w.work_units, w.cpu_time_ns)).collect();
            match variation(&rates) {
                Some(cv) if cv > limit => self.fail(
                    DetailKind::Throughput,
                    format!("work per CPU second in {cgroup} varies by {cv:.2} (threshold {limit:.2})"),
                ),
                Some(_) => {}
                None if workers.len() < 2 => {}
                None => self.unmeasured(DetailKind::Throughput, "throughput"),
            }
        }
        let floors = [
            (assert.min_work_rate, "work rate", (|w| w.work_units) as fn(&WorkerReport) -> u64),
            (assert.min_iteration_rate, "iteration rate", |w| w.iterations),
        ];
        for (floor, name, count) in floors {
            let Some(floor) = floor else { continue };
            for worker in workers {
                match rate(count(worker), worker.cpu_time_ns) {
                    Some(seen) if seen < floor => self.fail(
                        DetailKind::Throughput,
                        format!("tid {} {name} {seen:.0}/s below floor {floor:.0}/s in {cgroup}", worker.tid),
                    ),
                    Some(_) => {}
                    None => self.unmeasured(DetailKind::Throughput, name),
                }
            }
        }
    }

    fn wakes(&mut self, assert: &Assert, workers: &[&WorkerReport]) {
        if assert.max_p99_wake_latency_ns.is_none() && assert.max_wake_latency_cv.is_none() {
            return;
        }
        let mut all = ktstr_proto::histogram::Histogram::default();
        workers.iter().filter(|w| !w.is_messenger).for_each(|w| all.merge(&w.wake_latency));
        // Work that never waits has no wakes; a limit for the whole test does not mean it while there is
        // other work, see `judge_measured`.
        if all.is_empty() {
            if workers.iter().any(|w| w.voluntary_switches > 0 && w.voluntary_off_cpu_ns > 0) {
                self.unmeasured(DetailKind::Benchmark, "wake latency");
            }
            return;
        }
        let cgroup = self.cgroup;
        if let Some(limit) = assert.max_p99_wake_latency_ns {
            let seen = all.quantile(0.99).unwrap_or(0);
            if seen > limit {
                let (seen_us, limit_us) = (seen / 1000, limit / 1000);
                let count = all.count();
                let message = format!(
                    "p99 wake latency {seen_us}us of {count} wakes in {cgroup} (threshold {limit_us}us)"
                );
                let time = TimeFigures { seen_ms: seen / 1_000_000, limit_ms: limit.div_ceil(1_000_000) };
                self.result.fail_time(DetailKind::Benchmark, time, message);
            }
        }
        if let Some(limit) = assert.max_wake_latency_cv {
            let cv = all.coefficient_of_variation().unwrap_or(0.0);
            if cv > limit {
                let message = format!("wake latency in {cgroup} varies by {cv:.2} (threshold {limit:.2})");
                // The longest wake is within the variation if it is no longer than this.
                let widest = all.mean().unwrap_or(0.0) * (1.0 + limit);
                let time =
                    TimeFigures { seen_ms: all.max() / 1_000_000, limit_ms: (widest / 1e6).ceil() as u64 };
                self.result.fail_time(DetailKind::Benchmark, time, message);
            }
        }
    }

    fn migrations(&mut self, assert: &Assert, workers: &[&WorkerReport]) {
        let Some(limit) = assert.max_migration_ratio else { return };
        let moved: u64 = workers.iter().map(|w| w.kernel_migrations.unwrap_or(w.migrations)).sum();
        let iterations: u64 = workers.iter().map(|w| w.iterations).sum();
        if iterations == 0 {
            return self.unmeasured(DetailKind::Migration, "migration ratio");
        }
        let seen = moved as f64 / iterations as f64;
        if seen > limit {
            let message = format!(
                "{moved} migrations in {iterations} iterations of {}: {seen:.3} each (threshold {limit:.3})",
                self.cgroup
            );
            self.fail(DetailKind::Migration, message);
        }
    }

    fn memory(&mut self, assert: &Assert, topo: Option<&TestTopology>, workers: &[&WorkerReport]) {
        let wanted = assert.min_page_locality.is_some()
            || assert.max_cross_node_migration_ratio.is_some()
            || assert.max_slow_tier_ratio.is_some();
        if !wanted {
            return;
        }
        let Some(Placed { pages, local, slow, moved }) = placed(workers, topo) else {
            return self.unmeasured(DetailKind::PageLocality, "memory placement");
        };
        let cgroup = self.cgroup;
        if let Some(floor) = assert.min_page_locality.filter(|floor| local < *floor) {
            let (seen, floor) = (local * 100.0, floor * 100.0);
            let message =
                format!("{seen:.0}% of {pages} pages of {cgroup} are on its nodes (threshold {floor:.0}%)");
            self.fail(DetailKind::PageLocality, message);
        }
        if let Some(limit) = assert.max_slow_tier_ratio.filter(|limit| slow > *limit) {
            let (seen, limit) = (slow * 100.0, limit * 100.0);
            let message = format!(
                "{seen:.0}% of {pages} pages of {cgroup} are on nodes without CPUs (threshold {limit:.0}%)"
            );
            self.fail(DetailKind::SlowTier, message);
        }
        if let Some(limit) = assert.max_cross_node_migration_ratio.filter(|limit| moved > *limit) {
            let count = moved * pages as f64;
            let message = format!(
                "{count:.0} pages moved between nodes, {moved:.2} for each of {pages} pages of {cgroup} (threshold {limit:.2})"
            );
            self.fail(DetailKind::CrossNodeMigration, message);
        }
    }
}

#[cfg(test)]
mod tests {
    use ktstr_proto::{Topology, histogram::Histogram};

    use super::*;

    fn worker(tid: u32, work_units: u64) -> WorkerReport {
        WorkerReport {
            tid,
            cgroup: "a".into(),
            work_units,
            iterations: work_units,
            cpu_time_ns: 1_000_000_000,
            ..WorkerReport::default()
        }
    }

    fn found(assert: Assert, peers: &[WorkerReport]) -> Vec<(DetailKind, Outcome, String)> {
        let topo = TestTopology::of_shape(Topology::new(2, 2, 1, 1).unwrap());
        let mut result = AssertResult::pass();
        judge(&assert, Some(&topo), peers, &mut result);
        result.details.into_iter().map(|d| (d.kind, d.outcome, d.message)).collect()
    }

    fn one(assert: Assert, peers: &[WorkerReport]) -> String {
        let mut found = found(assert, peers);
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0).2
    }

    #[test]
    fn nothing_is_judged_unless_asked_for() {
        assert_eq!(found(Assert::default_checks(), &[worker(1, 1), worker(2, 900)]), []);
    }

    #[test]
    fn each_limit_is_found_missed_with_its_figures() {
        let limits = Assert::NO_OVERRIDES;
        let unequal = [worker(1, 100), worker(2, 300)];
        let text = one(limits.max_throughput_cv(0.4), &unequal);
        assert_eq!(text, "work per CPU second in a varies by 0.50 (threshold 0.40)");
        assert_eq!(
            one(limits.min_work_rate(200.0), &unequal),
            "tid 1 work rate 100/s below floor 200/s in a"
        );
        assert!(one(limits.min_iteration_rate(200.0), &unequal).contains("iteration rate 100/s"));
        let moving = [WorkerReport { migrations: 50, ..worker(1, 100) }];
        assert!(one(limits.max_migration_ratio(0.1), &moving).contains("0.500 each (threshold 0.100)"));
        let wakes = Histogram::of([1000, 3000, 9000]);
        let woken = [WorkerReport { wake_latency: wakes, ..worker(1, 1) }];
        assert!(one(limits.max_p99_wake_latency_ns(2), &woken).contains("p99 wake latency"));
        assert!(one(limits.max_wake_latency_cv(0.1), &woken).contains("varies by"));
        let remote = [WorkerReport {
            numa_pages: vec![(0, 25), (1, 75)],
            cpus_allowed: vec![0],
            numa_pages_migrated: 50,
            ..worker(1, 1)
        }];
        assert!(one(limits.min_page_locality(0.5), &remote).contains("25% of 100 pages"));
        assert!(one(limits.max_cross_node_migration_ratio(0.2), &remote).contains("50 pages moved"));
        let slow = [WorkerReport { numa_pages: vec![(0, 25), (2, 75)], ..worker(1, 1) }];
        assert!(one(limits.max_slow_tier_ratio(0.5), &slow).contains("75% of 100 pages"));
    }

    #[test]
    fn what_was_not_measured_is_inconclusive() {
        let blank = [WorkerReport { cpu_time_ns: 0, iterations: 0, ..worker(1, 0) }];
        for limits in [
            Assert::NO_OVERRIDES.min_work_rate(1.0),
            Assert::NO_OVERRIDES.max_migration_ratio(1.0),
            Assert::NO_OVERRIDES.min_page_locality(0.5),
        ] {
            let found = found(limits, &blank);
            assert!(
                found.iter().all(|(_, outcome, _)| *outcome == Outcome::Inconclusive) && !found.is_empty()
            );
        }
    }
}

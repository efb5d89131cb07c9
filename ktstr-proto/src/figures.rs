//! Figures of a scenario: of each cgroup and of all of them, and the names under which they are asked for.
//!
//! What nothing was measured of is `None`, never 0.

use serde::{Deserialize, Serialize};

use crate::{
    stats::{PayloadMetrics, Phase, PhaseBucket, PhaseCgroup},
    verdict::WorkerReport,
};

/// Figures of one cgroup.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CgroupStats {
    /// Name.
    pub name: String,
    /// Workers in it.
    pub workers: u32,
    /// CPUs its workers ran on.
    pub cpus: u32,
    /// Lowest off-CPU share of a worker, percent.
    pub min_off_cpu_pct: f64,
    /// Highest off-CPU share of a worker, percent.
    pub max_off_cpu_pct: f64,
    /// Mean off-CPU share of its workers, percent.
    pub avg_off_cpu_pct: f64,
    /// Largest difference between workers that can be compared, percentage points.
    pub spread_pct: f64,
    /// Longest gap, milliseconds.
    pub max_gap_ms: u64,
    /// CPU on which that gap ended.
    pub max_gap_cpu: u32,
    /// Migrations in total.
    pub migrations: u64,
    /// Migrations in each iteration, by the kernel's count where it tells; `None` without iterations.
    pub migration_ratio: Option<f64>,
    /// Iterations in total.
    pub iterations: u64,
    /// CPU time in total, nanoseconds.
    pub cpu_time_ns: u64,
    /// Mean run delay per schedule, microseconds.
    pub mean_run_delay_us: f64,
    /// Mean run delay per schedule of the worker for which it is longest, microseconds.
    pub worst_run_delay_us: f64,
    /// From the wake to the run, of those that are woken.
    pub wake_latency: Option<LatencyFigures>,
    /// How late timers were.
    pub timer_latency: Option<LatencyFigures>,
    /// Time of one round of work, of work types for which that is the figure of interest.
    #[serde(default)]
    pub iteration_cost: Option<LatencyFigures>,
    /// Time inside calls that block.
    #[serde(default)]
    pub block_time: Option<LatencyFigures>,
    /// Share of its pages on the NUMA nodes of its CPUs, 0 to 1; `None` when no pages were counted.
    pub page_locality: Option<f64>,
    /// Pages that the whole system moved between nodes meanwhile for each of its pages.
    pub cross_node_migration_ratio: Option<f64>,
}

/// A distribution of latencies in a few figures, microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct LatencyFigures {
    /// How many were measured.
    pub count: u64,
    /// The median.
    pub median_us: f64,
    /// The 99th percentile.
    pub p99_us: f64,
    /// The 99.9th percentile.
    pub p999_us: f64,
    /// The longest.
    pub worst_us: f64,
    /// Standard deviation divided by the mean; 0 when all are 0.
    pub cv: f64,
}

impl LatencyFigures {
    /// Of a distribution in nanoseconds; `None` when it is empty.
    pub fn of(histogram: &crate::histogram::Histogram) -> Option<Self> {
        let at = |q| Some(histogram.quantile(q)? as f64 / 1000.0);
        Some(Self {
            count: histogram.count(),
            median_us: at(0.5)?,
            p99_us: at(0.99)?,
            p999_us: at(0.999)?,
            worst_us: histogram.max() as f64 / 1000.0,
            cv: histogram.coefficient_of_variation().unwrap_or(0.0),
        })
    }
}

/// Figures of the whole scenario.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ScenarioStats {
    /// Per cgroup, in order of creation.
    pub cgroups: Vec<CgroupStats>,
    /// Every worker's telemetry.
    pub workers: Vec<WorkerReport>,
    /// The baseline and each step.
    pub phases: Vec<PhaseBucket>,
    /// What programs beside the workers measured.
    pub payloads: Vec<PayloadMetrics>,
}

/// The greatest of what was measured.
fn greatest(values: impl Iterator<Item = f64>) -> Option<f64> {
    values.reduce(f64::max)
}

impl ScenarioStats {
    /// Names that [`Self::metric`] knows.
    pub const METRICS: &[&str] = &[
        "worst_spread",
        "worst_gap_ms",
        "worst_gap_cpu",
        "total_workers",
        "total_migrations",
        "worst_migration_ratio",
        "total_iterations",
        "total_cpu_time_sec",
        "p99_wake_latency_us",
        "worst_p99_wake_latency_us",
        "worst_median_wake_latency_us",
        "worst_wake_latency_us",
        "worst_wake_latency_cv",
        "worst_median_timer_latency_us",
        "worst_p99_timer_latency_us",
        "worst_p999_timer_latency_us",
        "worst_timer_latency_us",
        "worst_median_iteration_cost_us",
        "worst_p99_iteration_cost_us",
        "worst_iteration_cost_us",
        "worst_median_block_time_us",
        "worst_p99_block_time_us",
        "worst_block_time_us",
        "mean_run_delay_us",
        "worst_mean_run_delay_us",
        "worst_run_delay_us",
        "worst_page_locality",
        "worst_cross_node_migration_ratio",
    ];

    /// A figure by its name; of what is told per cgroup, that of the worst one. `None` for what was not measured and
    /// for names that are not in [`Self::METRICS`].
    pub fn metric(&self, name: &str) -> Option<f64> {
        let worst = |of: fn(&CgroupStats) -> Option<f64>| greatest(self.cgroups.iter().filter_map(of));
        match name {
            "worst_spread" => Some(self.worst_spread()),
            "worst_gap_ms" => Some(self.worst_gap_ms() as f64),
            "worst_gap_cpu" => self.worst_gap_cpu().map(f64::from),
            "total_workers" => Some(f64::from(self.total_workers())),
            "total_migrations" => Some(self.total_migrations() as f64),
            "worst_migration_ratio" => self.worst_migration_ratio(),
            "total_iterations" => Some(self.total_iterations() as f64),
            "total_cpu_time_sec" => {
                Some(self.cgroups.iter().map(|c| c.cpu_time_ns).sum::<u64>() as f64 / 1e9)
            }
            "p99_wake_latency_us" | "worst_p99_wake_latency_us" => self.p99_wake_latency_us(),
            "worst_median_wake_latency_us" => worst(|c| Some(c.wake_latency?.median_us)),
            "worst_wake_latency_us" => worst(|c| Some(c.wake_latency?.worst_us)),
            "worst_wake_latency_cv" => worst(|c| Some(c.wake_latency?.cv)),
            "worst_median_timer_latency_us" => worst(|c| Some(c.timer_latency?.median_us)),
            "worst_p99_timer_latency_us" => worst(|c| Some(c.timer_latency?.p99_us)),
            "worst_p999_timer_latency_us" => worst(|c| Some(c.timer_latency?.p999_us)),
            "worst_timer_latency_us" => worst(|c| Some(c.timer_latency?.worst_us)),
            "worst_median_iteration_cost_us" => worst(|c| Some(c.iteration_cost?.median_us)),
            "worst_p99_iteration_cost_us" => worst(|c| Some(c.iteration_cost?.p99_us)),
            "worst_iteration_cost_us" => worst(|c| Some(c.iteration_cost?.worst_us)),
            "worst_median_block_time_us" => worst(|c| Some(c.block_time?.median_us)),
            "worst_p99_block_time_us" => worst(|c| Some(c.block_time?.p99_us)),
            "worst_block_time_us" => worst(|c| Some(c.block_time?.worst_us)),
            "mean_run_delay_us" | "worst_mean_run_delay_us" => worst(|c| Some(c.mean_run_delay_us)),
            "worst_run_delay_us" => worst(|c| Some(c.worst_run_delay_us)),
            "worst_page_locality" => self.cgroups.iter().filter_map(|c| c.page_locality).reduce(f64::min),
            "worst_cross_node_migration_ratio" => worst(|c| c.cross_node_migration_ratio),
            _ => None,
        }
    }

    /// Largest spread of any cgroup, percentage points; 0 is perfect fairness.
    pub fn worst_spread(&self) -> f64 {
        self.cgroups.iter().map(|c| c.spread_pct).fold(0.0, f64::max)
    }

    /// Longest gap of any worker, milliseconds.
    pub fn worst_gap_ms(&self) -> u64 {
        self.cgroups.iter().map(|c| c.max_gap_ms).max().unwrap_or(0)
    }

    /// CPU on which the longest gap ended; `None` when there was none.
    pub fn worst_gap_cpu(&self) -> Option<u32> {
        let gaps = self.cgroups.iter().filter(|c| c.max_gap_ms > 0);
        gaps.max_by_key(|c| c.max_gap_ms).map(|c| c.max_gap_cpu)
    }

    /// Workers of all cgroups.
    pub fn total_workers(&self) -> u32 {
        self.cgroups.iter().map(|c| c.workers).sum()
    }

    /// Migrations of all workers.
    pub fn total_migrations(&self) -> u64 {
        self.cgroups.iter().map(|c| c.migrations).sum()
    }

    /// Most migrations in each iteration of any cgroup.
    pub fn worst_migration_ratio(&self) -> Option<f64> {
        greatest(self.cgroups.iter().filter_map(|c| c.migration_ratio))
    }

    /// Longest 99th percentile of the time from wake to run of any cgroup, microseconds.
    pub fn p99_wake_latency_us(&self) -> Option<f64> {
        greatest(self.cgroups.iter().filter_map(|c| Some(c.wake_latency?.p99_us)))
    }

    /// Iterations of all workers.
    pub fn total_iterations(&self) -> u64 {
        self.cgroups.iter().map(|c| c.iterations).sum()
    }

    /// One phase.
    pub fn phase(&self, phase: Phase) -> Option<&PhaseBucket> {
        self.phases.iter().find(|bucket| bucket.index == phase.index())
    }

    /// One cgroup in one phase.
    pub fn phase_cgroup(&self, phase: Phase, cgroup: &str) -> Option<&PhaseCgroup> {
        self.phase(phase)?.cgroup(cgroup)
    }

    /// A figure of one cgroup in one phase by its name, see [`PhaseCgroup::metric`].
    pub fn phase_metric(&self, phase: Phase, cgroup: &str, name: &str) -> Option<f64> {
        self.phase_cgroup(phase, cgroup)?.metric(name)
    }

    /// The same where it must be there: what is missing is named, with the nearest that is there.
    pub fn expect_metric(&self, phase: Phase, cgroup: &str, name: &str) -> Result<f64, MissingMetric> {
        let index = phase.index();
        let Some(bucket) = self.phase(phase) else {
            return Err(MissingMetric::Phase { index, there: self.phases.iter().map(|p| p.index).collect() });
        };
        let cgroup = bucket.cgroup(cgroup).ok_or_else(|| MissingMetric::Cgroup {
            name: cgroup.to_owned(),
            index,
            near: nearest(cgroup, bucket.cgroups.iter().map(|own| own.name.as_str())),
        })?;
        if !PhaseCgroup::METRICS.contains(&name) {
            let near = nearest(name, PhaseCgroup::METRICS.iter().copied());
            return Err(MissingMetric::Name { name: name.to_owned(), near });
        }
        cgroup.metric(name).ok_or_else(|| MissingMetric::NotMeasured {
            name: name.to_owned(),
            cgroup: cgroup.name.clone(),
            index,
        })
    }

    /// Whether the scenario had steps.
    pub fn has_steps(&self) -> bool {
        self.phases.iter().any(|bucket| bucket.index > 0)
    }

    /// Figures of one cgroup.
    pub fn cgroup(&self, name: &str) -> Option<&CgroupStats> {
        self.cgroups.iter().find(|cgroup| cgroup.name == name)
    }

    /// What a program measured; the last one of this name.
    pub fn payload(&self, name: &str) -> Option<&PayloadMetrics> {
        self.payloads.iter().rev().find(|payload| payload.name == name)
    }
}

/// Why there is no such figure of a phase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MissingMetric {
    /// The scenario had no such phase.
    #[error("there is no phase {index}; there are {there:?} (0 is the baseline, step N is N + 1)")]
    Phase {
        /// Its index.
        index: u32,
        /// Those there are.
        there: Vec<u32>,
    },
    /// No such cgroup in it.
    #[error("phase {index} has no cgroup `{name}`; nearest: {near}")]
    Cgroup {
        /// The cgroup.
        name: String,
        /// The phase.
        index: u32,
        /// The nearest there.
        near: String,
    },
    /// There is no figure of that name.
    #[error("there is no figure `{name}`; nearest: {near}")]
    Name {
        /// The name.
        name: String,
        /// The nearest.
        near: String,
    },
    /// There is, and it was not measured here.
    #[error("`{name}` was not measured for `{cgroup}` in phase {index}")]
    NotMeasured {
        /// The figure.
        name: String,
        /// The cgroup.
        cgroup: String,
        /// The phase.
        index: u32,
    },
}

fn nearest<'n>(name: &str, there: impl Iterator<Item = &'n str>) -> String {
    // The end of what is longer than any name here does not matter.
    let name: String = name.chars().take(64).collect();
    there.min_by_key(|own| crate::word::edits(&name, own)).unwrap_or("none").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::Histogram;

    #[test]
    fn a_figure_that_must_be_there_says_what_is() {
        let cgroup = PhaseCgroup { name: "load".into(), iterations: 3, ..PhaseCgroup::default() };
        let bucket = PhaseBucket { index: 1, cgroups: vec![cgroup], ..PhaseBucket::default() };
        let stats = ScenarioStats { phases: vec![bucket], ..ScenarioStats::default() };
        let expect =
            |phase, cgroup, name| stats.expect_metric(phase, cgroup, name).map_err(|e| e.to_string());
        assert_eq!(expect(Phase::step(0), "load", "total_iterations"), Ok(3.0));
        for (phase, cgroup, name, said) in [
            (Phase::Baseline, "load", "max_gap_ms", "there is no phase 0; there are [1]"),
            (Phase::step(0), "laod", "max_gap_ms", "phase 1 has no cgroup `laod`; nearest: load"),
            (Phase::step(0), "load", "max_gap", "there is no figure `max_gap`; nearest: max_gap_ms"),
            (Phase::step(0), "load", "wake_latency_cv", "`wake_latency_cv` was not measured for `load`"),
        ] {
            let error = expect(phase, cgroup, name).unwrap_err();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn figures_of_all_are_those_of_the_worst_cgroup() {
        let wakes = |ns: &[u64]| LatencyFigures::of(&Histogram::of(ns.iter().copied()));
        let a = CgroupStats {
            workers: 2,
            max_gap_ms: 5,
            max_gap_cpu: 3,
            migration_ratio: Some(0.5),
            wake_latency: wakes(&[1000, 2000, 4_000_000]),
            page_locality: Some(0.25),
            mean_run_delay_us: 7.0,
            ..CgroupStats::default()
        };
        let b = CgroupStats { workers: 1, page_locality: Some(1.0), ..CgroupStats::default() };
        let stats = ScenarioStats { cgroups: vec![b, a], ..ScenarioStats::default() };
        assert_eq!(stats.metric("worst_migration_ratio"), Some(0.5));
        assert_eq!(stats.metric("p99_wake_latency_us"), Some(4000.0));
        assert_eq!(stats.metric("worst_p99_wake_latency_us"), stats.metric("p99_wake_latency_us"));
        assert_eq!(stats.metric("worst_page_locality"), Some(0.25));
        assert_eq!(stats.metric("worst_gap_cpu"), Some(3.0));
        assert_eq!(stats.metric("total_workers"), Some(3.0));
        assert_eq!(stats.metric("mean_run_delay_us"), Some(7.0));
        assert_eq!(stats.metric("worst_timer_latency_us"), None, "nothing was measured");
        assert_eq!(stats.metric("no_such_name"), None);
    }

    #[test]
    fn every_name_is_answered_where_everything_was_measured() {
        let latency = LatencyFigures::of(&Histogram::of([1000]));
        let all = CgroupStats {
            max_gap_ms: 1,
            migration_ratio: Some(0.0),
            wake_latency: latency,
            timer_latency: latency,
            iteration_cost: latency,
            block_time: latency,
            page_locality: Some(1.0),
            cross_node_migration_ratio: Some(0.0),
            ..CgroupStats::default()
        };
        let stats = ScenarioStats { cgroups: vec![all], ..ScenarioStats::default() };
        for name in ScenarioStats::METRICS {
            assert!(stats.metric(name).is_some(), "{name}");
        }
        let phase = PhaseCgroup {
            iterations: 1,
            workers: 1,
            pcount: 1,
            wake_latency: latency,
            timer_latency: latency,
            iteration_cost: latency,
            block_time: latency,
            ..PhaseCgroup::default()
        };
        for name in PhaseCgroup::METRICS {
            assert!(phase.metric(name).is_some(), "{name}");
        }
        assert_eq!(PhaseCgroup::default().metric("p99_wake_latency_us"), None);
    }
}

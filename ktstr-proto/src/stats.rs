//! Figures of a scenario beside those of its workers: what each phase was like, and what programs that
//! ran beside the workers measured.

use serde::{Deserialize, Serialize};

use crate::figures::LatencyFigures;

/// A part of a scenario: the time before its first step, or one step.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PhaseBucket {
    /// 0 is the baseline, the first step is 1.
    pub index: u32,
    /// `BASELINE` or `Step[0]` and so on.
    pub label: String,
    /// When it began, milliseconds of guest time after the scenario's start.
    pub start_ms: u64,
    /// When it ended.
    pub end_ms: u64,
    /// Operations done in it, repeated ones counted each time.
    pub ops: u32,
    /// Figures per cgroup, in order of creation.
    pub cgroups: Vec<PhaseCgroup>,
    /// What the kernel accounted while the step held: after its operations, before its end.
    #[serde(default)]
    pub hold: Option<Hold>,
    /// What the monitor saw in it; filled in outside of the guest, none without a sample.
    #[serde(default)]
    pub monitor: Option<PhaseMonitor>,
}

/// The monitor's samples that fell into a phase.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PhaseMonitor {
    /// How many with readable run queues.
    pub samples: u32,
    /// Tasks on all run queues, running and waiting, mean of the samples.
    pub mean_nr_running: f64,
    /// Largest `max(nr_running) / max(1, min(nr_running))` over one sample.
    pub max_imbalance_ratio: f64,
    /// Deepest local DSQ; 0 where this kernel does not tell.
    pub max_local_dsq_depth: u32,
    /// Increase of each event counter of sched_ext.
    pub events: Vec<(String, i64)>,
}

/// The kernel's own account of a machine while a step held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Hold {
    /// When its account began, guest `CLOCK_MONOTONIC`, nanoseconds; 0 is unknown.
    #[serde(default)]
    pub from_ns: u64,
    /// How long, nanoseconds of guest time.
    pub lasted_ns: u64,
    /// CPUs in service all the time.
    pub cpus: u32,
    /// Time in which they had nothing to do, nanoseconds of all of them (`idle` and `iowait` of `/proc/stat`).
    pub idle_ns: u64,
    /// Time that went to others than the scenario's workers, nanoseconds of all CPUs.
    pub others_ns: u64,
}

/// The kernel's own account of a cgroup while a step held (`cpu.stat`, Documentation/admin-guide/cgroup-v2.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CgroupUsage {
    /// CPU time of all its tasks and of those in cgroups below it, nanoseconds.
    pub usage_ns: u64,
    /// Periods in which its quota ran out; 0 where the cpu controller is off.
    pub throttled: u64,
    /// How long it was kept from running by its quota, nanoseconds.
    pub throttled_ns: u64,
}

impl CgroupUsage {
    /// What was added since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            usage_ns: self.usage_ns.saturating_sub(before.usage_ns),
            throttled: self.throttled.saturating_sub(before.throttled),
            throttled_ns: self.throttled_ns.saturating_sub(before.throttled_ns),
        }
    }
}

/// Figures of one cgroup in one phase: differences between the worker's checkpoints nearest to its ends.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PhaseCgroup {
    /// Name.
    pub name: String,
    /// Workers that worked in it.
    pub workers: u32,
    /// Iterations.
    pub iterations: u64,
    /// Units of work.
    pub work_units: u64,
    /// CPU time, nanoseconds.
    pub cpu_time_ns: u64,
    /// Changes of CPU.
    pub migrations: u64,
    /// Time runnable but not running, nanoseconds, of all its workers.
    pub run_delay_ns: u64,
    /// Times its workers were put on a CPU.
    pub pcount: u64,
    /// Wakes whose latency was measured; without any the latencies below say nothing.
    pub wakes: u64,
    /// From the wake to the run, nanoseconds, over the wakes of all its workers: the median.
    pub median_wake_latency_ns: u64,
    /// The 99th percentile.
    pub p99_wake_latency_ns: u64,
    /// The longest.
    pub max_wake_latency_ns: u64,
    /// From the wake to the run, of the wakes of all its workers.
    #[serde(default)]
    pub wake_latency: Option<LatencyFigures>,
    /// How late timers of its workers were.
    #[serde(default)]
    pub timer_latency: Option<LatencyFigures>,
    /// Time of one round of work of its workers, of work types for which that is the figure of interest.
    #[serde(default)]
    pub iteration_cost: Option<LatencyFigures>,
    /// Time of its workers inside calls that block.
    #[serde(default)]
    pub block_time: Option<LatencyFigures>,
    /// Longest gap of a worker, milliseconds.
    #[serde(default)]
    pub max_gap_ms: u64,
    /// Lowest off-CPU share of a worker in its time in this phase, percent.
    #[serde(default)]
    pub min_off_cpu_pct: f64,
    /// The highest.
    #[serde(default)]
    pub max_off_cpu_pct: f64,
    /// What the kernel accounted while the step held; `None` for cgroups that were not there all the time.
    #[serde(default)]
    pub usage: Option<CgroupUsage>,
}

impl PhaseCgroup {
    /// Names that [`Self::metric`] knows.
    pub const METRICS: &[&str] = &[
        "p99_wake_latency_us",
        "median_wake_latency_us",
        "worst_wake_latency_us",
        "wake_latency_cv",
        "p99_timer_latency_us",
        "p999_timer_latency_us",
        "median_timer_latency_us",
        "worst_timer_latency_us",
        "median_iteration_cost_us",
        "p99_iteration_cost_us",
        "worst_iteration_cost_us",
        "median_block_time_us",
        "p99_block_time_us",
        "worst_block_time_us",
        "mean_run_delay_us",
        "max_gap_ms",
        "min_off_cpu_pct",
        "max_off_cpu_pct",
        "off_cpu_spread_pct",
        "migration_ratio",
        "iterations_per_worker",
        "total_iterations",
    ];

    /// A figure by its name; `None` for what was not measured and for names that are not in [`Self::METRICS`].
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (wake, timer) = (self.wake_latency, self.timer_latency);
        match name {
            "p99_wake_latency_us" => Some(wake?.p99_us),
            "median_wake_latency_us" => Some(wake?.median_us),
            "worst_wake_latency_us" => Some(wake?.worst_us),
            "wake_latency_cv" => Some(wake?.cv),
            "p99_timer_latency_us" => Some(timer?.p99_us),
            "p999_timer_latency_us" => Some(timer?.p999_us),
            "median_timer_latency_us" => Some(timer?.median_us),
            "worst_timer_latency_us" => Some(timer?.worst_us),
            "median_iteration_cost_us" => Some(self.iteration_cost?.median_us),
            "p99_iteration_cost_us" => Some(self.iteration_cost?.p99_us),
            "worst_iteration_cost_us" => Some(self.iteration_cost?.worst_us),
            "median_block_time_us" => Some(self.block_time?.median_us),
            "p99_block_time_us" => Some(self.block_time?.p99_us),
            "worst_block_time_us" => Some(self.block_time?.worst_us),
            "mean_run_delay_us" => Some(self.mean_run_delay_ns()? as f64 / 1000.0),
            "max_gap_ms" => Some(self.max_gap_ms as f64),
            "min_off_cpu_pct" => Some(self.min_off_cpu_pct),
            "max_off_cpu_pct" => Some(self.max_off_cpu_pct),
            "off_cpu_spread_pct" => Some(self.max_off_cpu_pct - self.min_off_cpu_pct),
            "migration_ratio" => {
                (self.iterations > 0).then(|| self.migrations as f64 / self.iterations as f64)
            }
            "iterations_per_worker" => {
                (self.workers > 0).then(|| self.iterations as f64 / f64::from(self.workers))
            }
            "total_iterations" => Some(self.iterations as f64),
            _ => None,
        }
    }

    /// Time runnable but not running before it was put on a CPU, nanoseconds; `None` when it never was.
    pub fn mean_run_delay_ns(&self) -> Option<u64> {
        self.run_delay_ns.checked_div(self.pcount)
    }

    /// Iterations in each second of CPU time; 0 without any.
    pub fn iteration_rate(&self) -> f64 {
        if self.cpu_time_ns == 0 { 0.0 } else { self.iterations as f64 * 1e9 / self.cpu_time_ns as f64 }
    }
}

impl PhaseBucket {
    /// How long it lasted, milliseconds.
    pub fn duration_ms(&self) -> u64 {
        self.end_ms.saturating_sub(self.start_ms)
    }

    /// CPUs that a cgroup kept busy on average while the step held, by the kernel's account.
    pub fn cpus_of(&self, name: &str) -> Option<f64> {
        let hold = self.hold.filter(|hold| hold.lasted_ns > 0)?;
        Some(self.cgroup(name)?.usage?.usage_ns as f64 / hold.lasted_ns as f64)
    }

    /// Figures of one cgroup.
    pub fn cgroup(&self, name: &str) -> Option<&PhaseCgroup> {
        self.cgroups.iter().find(|cgroup| cgroup.name == name)
    }
}

/// Which phase is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before the first step.
    Baseline,
    /// A step, from 0.
    Step(u32),
}

impl Phase {
    /// A step, from 0.
    pub const fn step(index: u32) -> Self {
        Self::Step(index)
    }

    /// Its [`PhaseBucket::index`].
    pub const fn index(self) -> u32 {
        match self {
            Self::Baseline => 0,
            Self::Step(index) => index + 1,
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Baseline => f.write_str("BASELINE"),
            Self::Step(index) => write!(f, "Step[{index}]"),
        }
    }
}

/// Whether more is better.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub enum Polarity {
    /// More is better.
    HigherBetter,
    /// Less is better.
    LowerBetter,
    /// As near to this as possible.
    TargetValue(f64),
    /// Nobody said.
    #[default]
    Unknown,
    /// Not to be judged.
    Informational,
}

/// A number that a program measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Its place in the program's output, parts joined by dots.
    pub name: String,
    /// The number.
    pub value: f64,
    /// Its unit, when declared.
    pub unit: Option<String>,
    /// Whether more is better, when declared.
    pub polarity: Polarity,
}

/// What came of one program.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PayloadMetrics {
    /// Its name.
    pub name: String,
    /// Cgroup it ran in; empty is the test's own.
    pub cgroup: String,
    /// Its exit status; `None` when it was killed.
    pub exit_code: Option<i32>,
    /// How long it ran, milliseconds of guest time.
    pub ran_ms: u64,
    /// What it measured, by name.
    pub metrics: Vec<Metric>,
}

impl PayloadMetrics {
    /// A number by its name.
    pub fn get(&self, metric: &str) -> Option<f64> {
        self.metrics.iter().find(|m| m.name == metric).map(|m| m.value)
    }
}

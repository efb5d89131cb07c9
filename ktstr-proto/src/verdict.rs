//! What a test found: worker telemetry, results, their outcome. Why a run ended is in `cause`, all that is
//! told of it in `report`; thresholds are [`crate::thresholds`].

mod cause;
mod report;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use cause::{Cause, Process};
pub use report::{CaptureMark, RunReport, TimelineMark, TimelineSource};

use crate::histogram::Histogram;
pub use crate::{
    figures::{CgroupStats, ScenarioStats},
    thresholds::Assert,
};

/// The lattice `Fail > Inconclusive > Pass > NotRun`; merging keeps the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// Nothing was tested; something was missing.
    NotRun,
    /// Every check held.
    Pass,
    /// The instruments do not allow a judgement.
    Inconclusive,
    /// A check failed.
    Fail,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotRun => "NOT RUN",
            Self::Pass => "PASS",
            Self::Inconclusive => "INCONCLUSIVE",
            Self::Fail => "FAIL",
        })
    }
}

/// What kind of finding a [`Detail`] is. Append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DetailKind {
    /// A worker did no work at all.
    NoProgress,
    /// A worker was off the CPU for too long.
    Gap,
    /// Workers of one cgroup got unequal CPU time.
    Spread,
    /// A worker ran outside its cpuset.
    Isolation,
    /// A worker process ended before it was told to.
    WorkerDied,
    /// The host-side monitor saw a threshold crossed.
    Monitor,
    /// A check written in the test.
    Claim,
    /// A remark that fails nothing.
    Note,
    /// A program that ran beside the workers failed or missed a limit.
    Payload,
    /// Workers of one cgroup got unequal work done in equal CPU time, or too little.
    Throughput,
    /// A latency or rate missed its limit.
    Benchmark,
    /// Workers changed CPU too often.
    Migration,
    /// Memory was not where it should be.
    PageLocality,
    /// Memory was moved between NUMA nodes too often.
    CrossNodeMigration,
    /// Memory was on nodes without CPUs.
    SlowTier,
    /// Whether the run ended as was expected of it.
    Expectation,
    /// The test function returned an error.
    Error,
    /// A cgroup got another amount of CPU time than a comparison asks for.
    Share,
    /// The guest and the monitor differ about where the kernel's symbols lie.
    Symbols,
}

/// One finding with its evidence in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    /// Kind of finding.
    pub kind: DetailKind,
    /// How it counts.
    pub outcome: Outcome,
    /// What was seen against what was allowed.
    pub message: String,
    /// The figures of a finding about a length of time.
    pub time: Option<TimeFigures>,
    /// When it was, where that is known.
    #[serde(default)]
    pub when: Option<Moment>,
}

/// A length of time against its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeFigures {
    /// What was seen, milliseconds.
    pub seen_ms: u64,
    /// What was allowed, milliseconds.
    pub limit_ms: u64,
}

/// When something lay, in guest `CLOCK_MONOTONIC`, and the CPUs it concerns.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Moment {
    /// Its beginning, nanoseconds.
    pub from_ns: u64,
    /// Its end, nanoseconds.
    pub to_ns: u64,
    /// Where it was seen before and after, ascending.
    pub cpus: Vec<u32>,
}

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum WorkerExit {
    /// Told to stop, reported, exited.
    #[default]
    Completed,
    /// Exited by itself.
    Exited {
        /// Exit status.
        code: i32,
    },
    /// Killed by a signal.
    Signaled {
        /// Signal number.
        signal: i32,
    },
    /// Did not stop when told to.
    TimedOut,
    /// Its code panicked; the message is on standard error.
    Panicked,
}

/// Telemetry of one worker.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Thread id in the guest.
    pub tid: u32,
    /// Cgroup the worker ran in.
    pub cgroup: String,
    /// Work type by name.
    pub work_type: String,
    /// Units of work done.
    pub work_units: u64,
    /// Outer iterations done.
    pub iterations: u64,
    /// CPU time, nanoseconds.
    pub cpu_time_ns: u64,
    /// Wall time from start to stop, nanoseconds.
    pub wall_time_ns: u64,
    /// Changes of CPU seen at checkpoints.
    pub migrations: u64,
    /// CPUs the worker was seen on, ascending.
    pub cpus_used: Vec<u32>,
    /// CPUs it was allowed at any time, ascending; empty when it was unrestricted, if only for a while.
    pub cpus_allowed: Vec<u32>,
    /// CPUs it was seen on at a time when it was not allowed there, ascending.
    pub cpus_outside: Vec<u32>,
    /// Time it chose to sleep or block, nanoseconds: not the scheduler's doing.
    pub voluntary_off_cpu_ns: u64,
    /// Longest time off the CPU between two checkpoints, nanoseconds, voluntary blocking excluded.
    pub max_gap_ns: u64,
    /// CPU on which that gap ended.
    pub max_gap_cpu: u32,
    /// When that gap ended, nanoseconds after the worker's start.
    pub max_gap_at_ns: u64,
    /// The two checkpoints between which it lay.
    #[serde(default)]
    pub max_gap_moment: Moment,
    /// Time runnable but not running, nanoseconds (`/proc/thread-self/schedstat`).
    pub run_delay_ns: u64,
    /// Times it was put on a CPU (`/proc/thread-self/schedstat`).
    pub pcount: u64,
    /// How it ended.
    pub exit: WorkerExit,
    /// Number of its group among the workers of its workload, from 0.
    pub group: u32,
    /// Place in its group, from 0.
    pub position: u32,
    /// Which part it has in its group (the one that wakes, one that is woken, ...); only workers with the
    /// same part can be compared.
    pub role: u32,
    /// Whether it only hands out work to the others of its group; its latencies are not theirs.
    pub is_messenger: bool,
    /// Times it gave up the CPU (`getrusage`, `ru_nvcsw`).
    pub voluntary_switches: u64,
    /// Times it was taken off the CPU (`getrusage`, `ru_nivcsw`).
    pub involuntary_switches: u64,
    /// Page faults without I/O (`getrusage`, `ru_minflt`).
    pub minor_faults: u64,
    /// Page faults with I/O (`getrusage`, `ru_majflt`).
    pub major_faults: u64,
    /// The kernel's own count of changes of CPU (`nr_migrations` in `/proc/thread-self/sched`); `None`
    /// when this kernel does not tell or the worker died.
    pub kernel_migrations: Option<u64>,
    /// From the wake to the run, nanoseconds. The waker notes the time just before it wakes, a timer's
    /// time is the one asked for; waits that ended without sleeping are not counted.
    pub wake_latency: Histogram,
    /// Time inside calls that block, nanoseconds: what the worker waited for and how long it was kept.
    pub block_time: Histogram,
    /// Time of one round of work, nanoseconds, of work types for which that is the figure of interest.
    pub iteration_cost: Histogram,
    /// How late a timer was, nanoseconds.
    pub timer_latency: Histogram,
    /// Share of time on the CPU, asked for and achieved; of work types that have one.
    pub duty: Option<DutyCycle>,
    /// Pages by NUMA node at the end (`/proc/thread-self/numa_maps`).
    pub numa_pages: Vec<(u32, u64)>,
    /// Pages the whole system moved between nodes meanwhile (`numa_pages_migrated` in `/proc/vmstat`).
    pub numa_pages_migrated: u64,
    /// Figures by phase of the scenario; phases in which the worker did not run are left out.
    pub phases: Vec<PhaseSlice>,
    /// Why the work could not be done on this machine; then no other figure means anything.
    pub not_run: Option<String>,
    /// Figures that only this work type has, by name.
    pub metrics: Vec<(String, f64)>,
}

impl WorkerReport {
    /// Leaves out histograms and phases, which make most of a report's size.
    pub fn drop_distributions(&mut self) {
        self.wake_latency = Histogram::default();
        self.block_time = Histogram::default();
        self.iteration_cost = Histogram::default();
        self.timer_latency = Histogram::default();
        self.phases = Vec::new();
    }
}

/// Share of time on the CPU, percent of the wall time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct DutyCycle {
    /// What the work type asks for.
    pub requested_pct: f64,
    /// What the worker got.
    pub achieved_pct: f64,
}

/// Figures of one worker in one phase of the scenario; units as in [`WorkerReport`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseSlice {
    /// Number of the phase: 0 before the first step, then by step.
    pub phase: u32,
    /// Units of work done.
    pub work_units: u64,
    /// Outer iterations done.
    pub iterations: u64,
    /// CPU time, nanoseconds.
    pub cpu_time_ns: u64,
    /// Wall time, nanoseconds.
    pub wall_time_ns: u64,
    /// Time it chose to sleep or block, nanoseconds.
    pub voluntary_off_cpu_ns: u64,
    /// Longest time off the CPU between two checkpoints, nanoseconds, voluntary blocking excluded.
    pub max_gap_ns: u64,
    /// Changes of CPU seen at checkpoints.
    pub migrations: u64,
    /// Time runnable but not running, nanoseconds.
    pub run_delay_ns: u64,
    /// Times it was put on a CPU.
    pub pcount: u64,
    /// Times it gave up the CPU.
    pub voluntary_switches: u64,
    /// Times it was taken off the CPU.
    pub involuntary_switches: u64,
    /// Page faults without I/O.
    pub minor_faults: u64,
    /// Page faults with I/O.
    pub major_faults: u64,
    /// From the wake to the run, nanoseconds.
    pub wake_latency: Histogram,
    /// How late a timer was, nanoseconds.
    pub timer_latency: Histogram,
    /// Time of one round of work, nanoseconds.
    pub iteration_cost: Histogram,
    /// Time inside calls that block, nanoseconds.
    pub block_time: Histogram,
}

/// What a test function returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[must_use]
pub struct AssertResult {
    /// Greatest outcome of all details.
    pub outcome: Outcome,
    /// Findings, in order.
    pub details: Vec<Detail>,
    /// Figures.
    pub stats: ScenarioStats,
}

impl AssertResult {
    /// Every check held.
    pub fn pass() -> Self {
        Self { outcome: Outcome::Pass, details: Vec::new(), stats: ScenarioStats::default() }
    }

    /// Nothing was tested and nothing found: what results are merged into. It stays so while all of them were
    /// not run.
    pub fn nothing() -> Self {
        Self { outcome: Outcome::NotRun, ..Self::pass() }
    }

    /// Nothing was tested, because of `reason`.
    pub fn skip(reason: impl Into<String>) -> Self {
        let mut result = Self { outcome: Outcome::NotRun, ..Self::pass() };
        result.push(DetailKind::Note, Outcome::NotRun, reason);
        result
    }

    /// One failed check.
    pub fn fail(kind: DetailKind, message: impl Into<String>) -> Self {
        let mut result = Self::pass();
        result.push(kind, Outcome::Fail, message);
        result
    }

    /// A pass because what was found is what was expected: that stays readable and no longer counts.
    pub fn expected(message: impl Into<String>, found: Option<Self>) -> Self {
        let mut result = Self::pass();
        result.push(DetailKind::Expectation, Outcome::Pass, message);
        if let Some(found) = found {
            for detail in found.details {
                result.push(detail.kind, Outcome::Pass, detail.message);
            }
            result.stats = found.stats;
        }
        result
    }

    /// Adds a finding. A remark, which is [`DetailKind::Note`] with [`Outcome::Pass`], shows nothing: what was
    /// not run stays so.
    pub fn push(&mut self, kind: DetailKind, outcome: Outcome, message: impl Into<String>) {
        if (kind, outcome) != (DetailKind::Note, Outcome::Pass) {
            self.outcome = self.outcome.max(outcome);
        }
        self.details.push(Detail { kind, outcome, message: message.into(), time: None, when: None });
    }

    /// Adds a failure about a length of time, which the host may explain.
    pub fn fail_time(&mut self, kind: DetailKind, time: TimeFigures, message: impl Into<String>) {
        self.outcome = self.outcome.max(Outcome::Fail);
        let (outcome, message) = (Outcome::Fail, message.into());
        self.details.push(Detail { kind, outcome, message, time: Some(time), when: None });
    }

    /// As [`Self::fail_time`], for what lay at a known moment.
    pub fn fail_at(&mut self, kind: DetailKind, time: TimeFigures, when: Moment, message: impl Into<String>) {
        self.outcome = self.outcome.max(Outcome::Fail);
        let (outcome, message) = (Outcome::Fail, message.into());
        self.details.push(Detail { kind, outcome, message, time: Some(time), when: Some(when) });
    }

    /// Joins another result.
    pub fn merge(&mut self, other: Self) {
        self.outcome = self.outcome.max(other.outcome);
        self.details.extend(other.details);
        self.stats.cgroups.extend(other.stats.cgroups);
        self.stats.workers.extend(other.stats.workers);
        self.stats.phases.extend(other.stats.phases);
        self.stats.payloads.extend(other.stats.payloads);
    }

    /// Whether every check held.
    pub fn is_pass(&self) -> bool {
        self.outcome == Outcome::Pass
    }

    /// Whether a check failed.
    pub fn is_fail(&self) -> bool {
        self.outcome == Outcome::Fail
    }

    /// Whether nothing was tested.
    pub fn is_skip(&self) -> bool {
        self.outcome == Outcome::NotRun
    }

    /// Whether no judgement was possible.
    pub fn is_inconclusive(&self) -> bool {
        self.outcome == Outcome::Inconclusive
    }

    /// The messages of what failed.
    pub fn failure_details(&self) -> impl Iterator<Item = &str> {
        self.details.iter().filter(|d| d.outcome == Outcome::Fail).map(|d| d.message.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_the_worst_outcome_and_all_details() {
        let mut result = AssertResult::skip("no second node");
        result.merge(AssertResult::pass());
        assert!(result.is_pass());
        result.merge(AssertResult::fail(DetailKind::Gap, "tid 3 stuck"));
        result.merge(AssertResult::pass());
        assert!(result.is_fail());
        assert_eq!(result.failure_details().collect::<Vec<_>>(), ["tid 3 stuck"]);
        assert_eq!(result.details.len(), 2);
    }
}

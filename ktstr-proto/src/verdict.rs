//! What a test found: worker telemetry, thresholds, results, and the run's final report.

use std::fmt;

use serde::{Deserialize, Serialize};

pub use crate::{
    figures::{CgroupStats, ScenarioStats},
    thresholds::Assert,
};
use crate::{
    histogram::Histogram,
    monitor::MonitorSummary,
    run::{AccelKind, RunId},
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
}

/// A length of time against its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeFigures {
    /// What was seen, milliseconds.
    pub seen_ms: u64,
    /// What was allowed, milliseconds.
    pub limit_ms: u64,
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

    /// Adds a finding.
    pub fn push(&mut self, kind: DetailKind, outcome: Outcome, message: impl Into<String>) {
        self.outcome = self.outcome.max(outcome);
        self.details.push(Detail { kind, outcome, message: message.into(), time: None });
    }

    /// Adds a failure about a length of time, which the host may explain.
    pub fn fail_time(&mut self, kind: DetailKind, time: TimeFigures, message: impl Into<String>) {
        self.outcome = self.outcome.max(Outcome::Fail);
        let (outcome, message) = (Outcome::Fail, message.into());
        self.details.push(Detail { kind, outcome, message, time: Some(time) });
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

/// The processes of a run, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Process {
    /// `ktstr-vmm`.
    Vmm,
    /// The emulator child of the VMM.
    Emulator,
    /// `ktstr-monitor`.
    Monitor,
    /// `ktstr-orch`.
    Orchestrator,
    /// Test binary or CLI.
    Client,
    /// The process that serves disks and networks.
    Device,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vmm => "ktstr-vmm",
            Self::Emulator => "emulator",
            Self::Monitor => "ktstr-monitor",
            Self::Orchestrator => "ktstr-orch",
            Self::Client => "client",
            Self::Device => "device process",
        })
    }
}

/// Why a run ended as it did. Append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// A check of the test failed, or its function returned an error.
    Assertion,
    /// The test function panicked.
    TestPanic {
        /// Panic message with location.
        message: String,
        /// Backtrace, if captured.
        backtrace: String,
    },
    /// The test process ended without a result.
    TestDied {
        /// Exit status or signal in words.
        how: String,
    },
    /// The kernel's watchdog ended the scheduler: a runnable task was not run.
    SchedulerStall {
        /// The kernel's or scheduler's words.
        reason: String,
    },
    /// The scheduler ended itself with an error (`scx_bpf_error`, runtime error).
    SchedulerError {
        /// The kernel's or scheduler's words.
        reason: String,
    },
    /// The scheduler never reached `enabled`.
    SchedulerNotAttached {
        /// What was seen.
        reason: String,
    },
    /// The scheduler's process died.
    SchedulerDied {
        /// Exit status or signal in words.
        how: String,
    },
    /// The guest kernel panicked.
    KernelPanic {
        /// The panic line of the console.
        message: String,
    },
    /// PID 1 could not set the guest up.
    GuestInit {
        /// The step that failed.
        step: String,
        /// Why.
        reason: String,
    },
    /// The guest never spoke or stopped speaking before the deadline.
    Deadline {
        /// The last thing known to have happened.
        phase: String,
        /// Wall time waited, milliseconds.
        waited_ms: u64,
    },
    /// The guest ended (reset, triple fault, power-off) before its result arrived.
    GuestEnded {
        /// How, in words.
        how: String,
    },
    /// The guest sent what cannot be decoded.
    Channel {
        /// What is wrong and where.
        reason: String,
    },
    /// A process of ktstr died.
    ProcessDied {
        /// Which.
        process: Process,
        /// Exit status or signal in words.
        how: String,
    },
    /// Something needed is missing here.
    Missing {
        /// What and what to do.
        reason: String,
    },
    /// The request cannot be carried out as written.
    BadRequest {
        /// What is wrong and what to do.
        reason: String,
    },
    /// The client asked to stop.
    Cancelled,
}

/// Who says what a [`TimelineMark`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TimelineSource {
    /// The scenario, or the kernel and PID 1 about the scheduler.
    Stimulus,
    /// A station of the run.
    Station,
    /// The scheduler's output.
    Scheduler,
    /// Output of the test and of PID 1.
    Output,
    /// The kernel's console.
    Console,
    /// A sample of the monitor.
    Monitor,
    /// A capture.
    Capture,
}

impl std::fmt::Display for TimelineSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stimulus => "scenario",
            Self::Station => "run",
            Self::Scheduler => "scheduler",
            Self::Output => "output",
            Self::Console => "console",
            Self::Monitor => "monitor",
            Self::Capture => "capture",
        })
    }
}

/// Something that happened in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineMark {
    /// Guest time after the scenario's start, milliseconds; negative before it.
    pub at_ms: i64,
    /// Whose words these are.
    pub source: TimelineSource,
    /// What, in a few words.
    pub what: String,
    /// Iterations of all workers until then; 0 where they are not counted.
    pub iterations: u64,
    /// The scenario's phase, as [`crate::stats::PhaseBucket::index`]; none outside of all.
    pub phase: Option<u32>,
}

/// A look at all of the guest's state, taken while its CPUs stood, or one that was to be taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureMark {
    /// What it is called: `periodic_000` and so on for those a test asks for, `seen_000` for those the
    /// run took by itself, `asked_000` for those somebody outside asked for,
    /// `watched_000` for writes to watched places.
    pub tag: String,
    /// Why it was taken.
    pub why: String,
    /// When, in milliseconds after the scenario's start; time in which the guest stood does not count.
    pub at_ms: i64,
    /// When it was to be taken, in the same time.
    pub boundary_ms: Option<u64>,
    /// How long the guest stood for it, microseconds.
    pub stood_us: u64,
    /// Name of its JSON in the run's directory, or why there is none.
    pub file: Result<String, String>,
}

/// Everything a client learns of a finished run; also the sidecar.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// The run.
    pub run_id: RunId,
    /// Its directory.
    pub run_dir: std::path::PathBuf,
    /// Test name.
    pub name: String,
    /// Judgement; meaningless when `infrastructure`.
    pub outcome: Outcome,
    /// Whether ktstr itself failed, so that nothing can be said about the scheduler.
    pub infrastructure: bool,
    /// Why, unless it passed.
    pub cause: Option<Cause>,
    /// The test's findings and figures, when it delivered any.
    pub result: Option<AssertResult>,
    /// What happened and when: all that the scenario did, and the last of everything else. The whole
    /// is `timeline.jsonl` in the run's directory.
    pub timeline: Vec<TimelineMark>,
    /// Captures, in the order in which they were taken or given up.
    pub captures: Vec<CaptureMark>,
    /// The thresholds that were applied.
    pub assert: Option<Assert>,
    /// What the monitor saw.
    pub monitor: Option<MonitorSummary>,
    /// What the host gave to the vCPUs while the test ran.
    pub host: Option<crate::host::HostTime>,
    /// Remarks: accelerator choice, observation that ended early.
    pub notes: Vec<String>,
    /// Last lines of the scheduler's output.
    pub scheduler_log: Vec<String>,
    /// Last lines of the kernel console.
    pub console_tail: Vec<String>,
    /// Accelerator used, if it came to that.
    pub accel: Option<AccelKind>,
    /// Emulator and version, or the KVM's description.
    pub accel_detail: String,
    /// Kernel release or the name asked for.
    pub kernel: String,
    /// Scheduler name.
    pub scheduler: String,
    /// Machine shape.
    pub topology: crate::Topology,
    /// Exit status of a shell command.
    pub exit_status: Option<i32>,
    /// Seed used.
    pub seed: u64,
    /// Repeats the run.
    pub replay: String,
    /// Host time spent, milliseconds: (until the first guest frame, until the end).
    pub host_ms: (u64, u64),
    /// How the guest came to be ready.
    #[serde(default)]
    pub boot: crate::run::Boot,
    /// Whether its test takes an inconclusive run for good enough.
    #[serde(default)]
    pub allow_inconclusive: bool,
}

impl RunReport {
    /// Whether it is inconclusive where its test does not allow that.
    pub fn undecided(&self) -> bool {
        !self.infrastructure && self.outcome == Outcome::Inconclusive && !self.allow_inconclusive
    }

    /// Exit code of our own commands (DESIGN section 7).
    pub fn exit_code(&self) -> u8 {
        match (self.infrastructure, self.outcome) {
            (true, _) => 4,
            (false, Outcome::Pass) => 0,
            (false, Outcome::Fail) => 1,
            (false, Outcome::Inconclusive) => 2,
            (false, Outcome::NotRun) => 3,
        }
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

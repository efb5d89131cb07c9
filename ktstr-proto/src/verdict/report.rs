//! All that is told of a finished run: what a client gets, and what lies in its directory as
//! `sidecar.json`.

use serde::{Deserialize, Serialize};

use super::{AssertResult, Cause, Outcome};
use crate::{
    monitor::MonitorSummary,
    repro::AutoRepro,
    run::{AccelKind, RunId},
    scx_stats::Stats,
    thresholds::Assert,
};

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
    /// Name of the file in the run's directory with what the scheduler said of itself right before, or why there
    /// is none.
    pub stats: Stats,
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
    /// The second run, with probes, of a run whose scheduler crashed.
    #[serde(default)]
    pub auto_repro: Option<Box<AutoRepro>>,
}

impl RunReport {
    /// A report of a run that has not taken place: nothing found, nothing used.
    pub fn blank(
        run_id: RunId,
        run_dir: impl Into<std::path::PathBuf>,
        name: impl Into<String>,
        topology: crate::Topology,
    ) -> Self {
        Self {
            run_id,
            run_dir: run_dir.into(),
            name: name.into(),
            outcome: Outcome::NotRun,
            infrastructure: false,
            cause: None,
            result: None,
            timeline: Vec::new(),
            captures: Vec::new(),
            assert: None,
            monitor: None,
            host: None,
            notes: Vec::new(),
            scheduler_log: Vec::new(),
            console_tail: Vec::new(),
            accel: None,
            accel_detail: String::new(),
            kernel: String::new(),
            scheduler: "EEVDF".into(),
            topology,
            exit_status: None,
            seed: 0,
            replay: String::new(),
            host_ms: (0, 0),
            boot: crate::run::Boot::default(),
            allow_inconclusive: false,
            auto_repro: None,
        }
    }

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

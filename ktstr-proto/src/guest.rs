//! What PID 1 says through the ring, and what it is told before boot.

use serde::{Deserialize, Serialize};

use crate::{
    device::DiskConfig,
    kernel_place::{KernelTarget, KernelWidth, KernelWrite},
    repro::{ProbeAccount, ProbeEnd, ProbeEvent, Probing},
    ring::RingRegion,
    run::{KernelBuiltin, Term},
    scx_stats::{Stats, StatsOf},
    symbols::SymbolsTold,
    topology::Topology,
    verdict::{Assert, AssertResult},
};

/// Where the initramfs holds the encoded [`GuestJob`].
pub const JOB_PATH: &str = "/ktstr/job";
/// Where an initramfs without a job holds the encoded [`GuestBase`].
pub const BASE_PATH: &str = "/ktstr/base";
/// Where the host puts random bytes for a guest that may be one of several started from one snapshot.
pub const ENTROPY_PATH: &str = "/ktstr/entropy";
/// Last file of the initramfs: its absence means that extraction was cut short.
pub const COMPLETE_PATH: &str = "/.ktstr-complete";
/// Where the initramfs holds the user's test executable.
pub const TEST_PATH: &str = "/ktstr/test";
/// Where the initramfs holds the scheduler.
pub const SCHEDULER_PATH: &str = "/ktstr/scheduler";
/// Text file with the kernel modules to load, one path per line, in order.
pub const MODULES_PATH: &str = "/ktstr/modules";
/// Directory with the kernel modules, those of the list and those that are loaded when somebody needs them.
pub const ON_DEMAND_PATH: &str = "/ktstr/ko";
/// Variable that makes the user's test executable run one registered test in the guest.
pub const TEST_ENV: &str = "KTSTR_GUEST_TEST";
/// Variable that names the descriptor on which the test process reports to PID 1.
pub const CHANNEL_ENV: &str = "KTSTR_GUEST_FD";

/// Everything PID 1 is told; packed into the initramfs, so that the guest waits for nobody. Holds
/// nothing that differs between two runs that should be the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestJob {
    /// Where the ring lies.
    pub ring: RingRegion,
    /// Machine shape asked for.
    pub topology: Topology,
    /// Seed of every random choice.
    pub seed: u64,
    /// How long PID 1 computes before it starts the scheduler, microseconds: under `det` everything
    /// after it is interleaved differently.
    pub jitter_us: u32,
    /// Variables for the guest's processes.
    pub env: Vec<(String, String)>,
    /// Scheduler to start before the task; its arguments and name.
    pub scheduler: Option<GuestScheduler>,
    /// What to do.
    pub task: GuestTask,
    /// The machine's disk.
    pub disk: Option<DiskConfig>,
    /// What is probed from before the scheduler's start to its end.
    pub probing: Option<Probing>,
}

/// What PID 1 is told at boot when its job comes later, through [`crate::handover`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestBase {
    /// Where the ring will lie, and until then the pieces.
    pub ring: RingRegion,
    /// Machine shape asked for.
    pub topology: Topology,
}

/// The scheduler, as PID 1 starts it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestScheduler {
    /// Name for people.
    pub name: String,
    /// Arguments.
    pub args: Vec<String>,
    /// Cgroup that must be there before it starts, from the root of the hierarchy.
    pub cgroup_parent: Option<String>,
    /// How long it may take until `/sys/kernel/sched_ext/state` says `enabled`, milliseconds of guest time.
    pub attach_timeout_ms: u64,
    /// Commands instead of a program, where the kernel has it.
    pub builtin: Option<KernelBuiltin>,
}

/// What PID 1 runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum GuestTask {
    /// The user's test.
    Test(GuestTest),
    /// One command through `/bin/sh -c`.
    Exec(String),
    /// An interactive shell on hvc0.
    Shell(Option<Term>),
}

/// The user's test, also handed to the test process as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestTest {
    /// Name of the registered test.
    pub test: String,
    /// Scenario length, milliseconds.
    pub duration_ms: u64,
    /// Merged thresholds.
    pub assert: Assert,
    /// Schedulers that may take over during the test; PID 1 finds them at [`staged_path`].
    pub staged: Vec<GuestScheduler>,
    /// How often, evenly spread over the first scenario as [`crate::scx_stats::boundary`] says, the scheduler is
    /// asked for its statistics.
    pub snapshots: u32,
}

/// Where the initramfs holds the staged scheduler number `index`.
pub fn staged_path(index: usize) -> String {
    format!("/ktstr/staged-{index}")
}

/// What the test process asks PID 1 to do with the scheduler. Append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SchedulerRequest {
    /// Start the test's own, which must not be running.
    Attach,
    /// End the one that runs.
    Detach,
    /// End the one that runs and start the test's own.
    Restart,
    /// End the one that runs and start the staged one of this name.
    Replace(String),
    /// Keep the map of this name when the scheduler goes.
    PinMap(String),
}

impl std::fmt::Display for SchedulerRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Attach => f.write_str("scheduler attached"),
            Self::Detach => f.write_str("scheduler detached"),
            Self::Restart => f.write_str("scheduler restarted"),
            Self::Replace(name) => write!(f, "scheduler replaced by {name}"),
            Self::PinMap(name) => write!(f, "map {name} pinned"),
        }
    }
}

/// What PID 1 answers on the test's channel: done, with the number of a pinned map, or why not.
pub type SchedulerReply = Result<String, String>;

/// What the test process asks of the host. PID 1 passes it on through the ring; the answer comes back
/// through [`crate::ring::RingReader::answer`], one question at a time. Append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostRequest {
    /// A capture of all of the guest's state, under this name.
    Capture {
        /// Its name.
        name: String,
    },
    /// The value at a path of a BPF map.
    ReadMap {
        /// The map's name, or the end of it.
        map: String,
        /// Where in it.
        path: String,
    },
    /// Another number at a path of a BPF map.
    WriteMap {
        /// The map's name, or the end of it.
        map: String,
        /// Where in it.
        path: String,
        /// The number; an unsigned one beyond 2^63 as the signed one of the same bits.
        value: i64,
    },
    /// What is at a place of the kernel.
    ReadKernel {
        /// The place.
        target: KernelTarget,
        /// How much of it.
        width: KernelWidth,
        /// All vCPUs stand meanwhile.
        cold: bool,
    },
    /// Other values at places of the kernel, all or, where one cannot be found, none.
    WriteKernel {
        /// What, and where.
        writes: Vec<KernelWrite>,
        /// All vCPUs stand meanwhile.
        cold: bool,
    },
}

/// Why the host did not do it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRefusal {
    /// It cannot be done in a run like this, whatever the guest does: the test is not run.
    pub not_here: bool,
    /// Why.
    pub reason: String,
}

/// What the host answers: a value as JSON, nothing where none was asked for, or why not.
pub type HostReply = Result<String, HostRefusal>;

/// One message with its time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestMessage {
    /// Guest `CLOCK_MONOTONIC`, nanoseconds.
    pub t_ns: u64,
    /// What is said.
    pub body: GuestFrame,
}

/// Whose text a [`Log`] carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LogSource {
    /// PID 1 itself.
    Init,
    /// The scheduler's standard output and error.
    Scheduler,
    /// Standard output of the test or command.
    Stdout,
    /// Standard error of the test or command.
    Stderr,
}

/// A piece of text; long output comes in several pieces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Whose.
    pub source: LogSource,
    /// The text as it came, with its line ends; invalid UTF-8 replaced.
    pub text: String,
}

/// How the kernel's words begin when it has taken a scheduler away by itself, as at a hotplug that the scheduler
/// does not handle, and expects it to start anew (kernel/sched/ext.c, `scx_exit_reason()`).
pub const BY_KERNEL: &str = "unregistered from the main kernel";

/// Stations of a run, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// PID 1 runs and the ring works.
    InitStarted,
    /// File systems, modules and CPUs are ready.
    SystemReady,
    /// The scheduler process was started.
    SchedulerStarted,
    /// `/sys/kernel/sched_ext/state` says `enabled`.
    SchedulerAttached,
    /// The test process was started.
    TestStarted,
    /// Workers run.
    ScenarioStarted,
    /// Workers were told to stop.
    ScenarioEnded,
    /// The test process is gone.
    TestEnded,
    /// The scheduler was asked to stop.
    TeardownStarted,
    /// Next comes power-off.
    PoweringOff,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessEnd {
    /// Exited with a status.
    Exited(i32),
    /// Killed by a signal.
    Signaled(i32),
}

impl std::fmt::Display for ProcessEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with status {code}"),
            Self::Signaled(signal) => write!(f, "was killed by signal {signal}"),
        }
    }
}

/// What the test function came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum TestEnd {
    /// It returned a result.
    Returned(AssertResult),
    /// It returned an error: the chain of causes.
    Error(Vec<String>),
    /// It panicked.
    Panicked {
        /// Panic message with location.
        message: String,
        /// Backtrace, if captured.
        backtrace: String,
    },
    /// No such test is registered; the names that are.
    Unknown(Vec<String>),
}

/// What PID 1 (or the test process through it) says. Append only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum GuestFrame {
    /// First message.
    Hello {
        /// `uname -r`.
        release: String,
        /// CPUs online.
        cpus_online: u32,
    },
    /// A station was reached.
    Phase(Phase),
    /// Text of a process.
    Log(Log),
    /// A step of the set-up failed; the guest powers off.
    StepFailed {
        /// Which step.
        step: String,
        /// Chain of causes.
        reason: String,
    },
    /// The kernel said that it disabled the BPF scheduler.
    ScxDisabled {
        /// The kernel's reason, e.g. `runnable task stall`.
        reason: String,
    },
    /// The scheduler process ended.
    SchedulerEnded {
        /// How.
        end: ProcessEnd,
        /// Whether PID 1 had asked for it.
        expected: bool,
    },
    /// Something the scenario did, for the timeline.
    Stimulus {
        /// What, in a few words.
        what: String,
        /// Iterations of all workers so far.
        iterations: u64,
    },
    /// The test function ended.
    TestEnded(TestEnd),
    /// The test process ended.
    TestProcessEnded(ProcessEnd),
    /// The shell or command ended.
    ExecEnded(ProcessEnd),
    /// The test asks for something; PID 1 answers it on the test's channel and passes the question on.
    Ask(SchedulerRequest),
    /// The test asks the host for something.
    AskHost {
        /// Number of the question, from 1.
        id: u32,
        /// What.
        request: HostRequest,
    },
    /// From now on each write to this place is to be captured; see [`crate::capture::Locate::what`].
    Watch(String),
    /// What became of the last [`Self::Ask`]; what the kernel said of it comes before this.
    Answered(SchedulerReply),
    /// What the scheduler says of itself, right before a capture.
    SchedulerStats {
        /// Which capture.
        of: StatsOf,
        /// What it says.
        stats: Stats,
    },
    /// What became of the probes that were asked for.
    Probes(ProbeAccount),
    /// What they saw, a piece of it, in order of time.
    Probed(Vec<ProbeEvent>),
    /// How much they saw in all.
    ProbesEnded(ProbeEnd),
    /// Where the running kernel has the symbols that the monitor depends on.
    Symbols(SymbolsTold),
}

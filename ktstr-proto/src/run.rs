//! What is asked of a run: the test or command, the machine, the kernel, the accelerator.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{
    device::{DiskConfig, NetConfig},
    map_watch::MapWatch,
    repro::Probing,
    topology::{Numa, Topology},
    verdict::Assert,
};

/// Which accelerator the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Accel {
    /// Probe, then hardware KVM if it can run a stock kernel, else the emulator.
    #[default]
    Auto,
    /// Hardware KVM or nothing.
    Kvm,
    /// The emulator.
    Tcg,
    /// The emulator with instruction-counted time: the same inputs give the same run.
    Det,
}

/// Which accelerator runs the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AccelKind {
    /// Our VMM on hardware KVM.
    Kvm,
    /// QEMU, one thread per vCPU.
    Tcg,
    /// QEMU, instruction-counted virtual time.
    Det,
}

/// The text names no accelerator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no accelerator: choose auto, kvm, tcg or det")]
pub struct UnknownAccel(pub String);

impl FromStr for Accel {
    type Err = UnknownAccel;

    fn from_str(text: &str) -> Result<Self, UnknownAccel> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            "det" => Ok(Self::Det),
            other => Err(UnknownAccel(other.into())),
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::Det => "det",
        })
    }
}

impl fmt::Display for AccelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::Det => "det",
        })
    }
}

/// How the guest came to be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub enum Boot {
    /// It booted.
    #[default]
    Cold,
    /// It booted, and a snapshot of it was kept for those that come after.
    Kept,
    /// It went on from a snapshot.
    Warm,
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cold => "cold",
            Self::Kept => "cold, kept for warm starts",
            Self::Warm => "warm",
        })
    }
}

/// Names one run; also the name of its directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RunId(pub String);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the host does for the machine's own time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub enum Performance {
    /// What can be had without asking more of the host.
    #[default]
    Usual,
    /// Each vCPU has a host CPU of its own, and whatever else keeps others away; without it the run is
    /// not run.
    Isolated,
    /// Nothing of the kind, so that large machines run on small hosts.
    Unassisted,
}

/// How the processes of a run are confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub enum Jail {
    /// In namespaces with an empty root, or not at all.
    #[default]
    Full,
    /// Without namespaces, for hosts that forbid them: Landlock and system call filters remain, and the report
    /// says so.
    Reduced,
}

/// The text names no jail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no jail: choose full or reduced")]
pub struct UnknownJail(pub String);

impl FromStr for Jail {
    type Err = UnknownJail;

    fn from_str(text: &str) -> Result<Self, UnknownJail> {
        match text {
            "full" => Ok(Self::Full),
            "reduced" => Ok(Self::Reduced),
            other => Err(UnknownJail(other.into())),
        }
    }
}

impl fmt::Display for Jail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Reduced => "reduced",
        })
    }
}

/// Everything the orchestrator needs to carry out one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// Test name or `shell`.
    pub name: String,
    /// What runs in the guest.
    pub job: Job,
    /// Kernel as the user named it; `None` chooses the newest cached one.
    pub kernel: Option<String>,
    /// Accelerator asked for.
    pub accel: Accel,
    /// Machine shape.
    pub topology: Topology,
    /// What is special about its NUMA nodes.
    pub numa: Numa,
    /// LLCs whose CPUs are possible and not there; see [`Topology::possible_cpus`].
    pub absent_llcs: u32,
    /// Guest memory in MiB; `None` is what the nodes add up to, or lets the orchestrator compute it.
    pub memory_mb: Option<u32>,
    /// Seed of every random choice.
    pub seed: u64,
    /// Under `det`: whether the seed also chooses how fast the CPUs are and how long the boot takes,
    /// so that other seeds give other interleavings.
    pub vary: bool,
    /// Wall-clock limit for the whole run, milliseconds; `None` derives it from the job.
    pub deadline_ms: Option<u64>,
    /// Directory under which the run's own directory is created.
    pub runs_root: PathBuf,
    /// The line that repeats this run; `{accel}` and `{kernel}` are replaced by what was used.
    pub replay: String,
    /// Whether the run may begin from a snapshot of a machine that is like it and ready, and whether
    /// one may be kept; see [`Boot`].
    pub warm: bool,
    /// Words for the guest's kernel command line, after our own; see
    /// Documentation/admin-guide/kernel-parameters.rst.
    pub kernel_args: Vec<String>,
    /// Whether the monitor observes this run.
    pub observe: bool,
    /// What the kernel's stall watchdog is to tolerate at least, milliseconds. The monitor writes it
    /// into the guest's memory, so not under `det`.
    pub watchdog_ms: Option<u64>,
    /// Captures taken in the scenario, evenly spread from 10 % to 90 % of its length.
    pub snapshots: u32,
    /// Variables for the guest's processes.
    pub env: Vec<(String, String)>,
    /// Its disk.
    pub disk: Option<DiskConfig>,
    /// Its networks, at most [`crate::device::MAX_NETWORKS`].
    pub networks: Vec<NetConfig>,
    /// What the host does for the machine's own time.
    pub performance: Performance,
    /// Host CPUs on which the machine may run; needs [`Performance::Unassisted`].
    pub cpu_budget: Option<u32>,
    /// How long putting the run away may take once its machine is gone, milliseconds of wall time.
    pub cleanup_budget_ms: Option<u64>,
    /// Values in BPF maps that are sampled while scenarios run.
    pub watches: Vec<MapWatch>,
    /// How its processes are confined.
    pub jail: Jail,
    /// Whether a run whose scheduler crashes is carried out again, with probes; see [`crate::repro`].
    pub auto_repro: bool,
    /// What is probed: this run is the second one.
    pub probing: Option<Probing>,
}

/// What runs in the guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Job {
    /// One registered test function.
    Test(TestJob),
    /// A shell or one command.
    Shell(ShellJob),
}

/// One registered test function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TestJob {
    /// The user's test executable on the host.
    pub binary: PathBuf,
    /// Name of the registered test.
    pub test: String,
    /// Scenario length, milliseconds.
    pub duration_ms: u64,
    /// The scheduler under test; `None` is EEVDF.
    pub scheduler: Option<SchedulerJob>,
    /// Files to place under `/include-files`.
    pub include: Vec<PathBuf>,
    /// Thresholds that differ from the defaults, which depend on the accelerator.
    pub assert: Assert,
    /// Schedulers that may take over during the test.
    pub staged: Vec<SchedulerJob>,
    /// Files made for this run.
    pub files: Vec<PlacedFile>,
    /// How it is expected to end.
    pub expect: Expectation,
    /// Captures that the test itself wants of its first scenario, for which the scheduler is asked for its
    /// statistics. What the run takes, [`RunSpec::snapshots`], may be another number; under `det` that must not
    /// change what happens in the guest.
    pub snapshots: u32,
}

/// A file made for a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedFile {
    /// Its path in the guest, from the root.
    pub guest_path: String,
    /// What is in it.
    pub content: Vec<u8>,
}

/// How a test is expected to end.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Expectation {
    /// It must fail.
    pub err: bool,
    /// Words the scheduler's error must contain.
    pub error_contains: Option<String>,
    /// A pattern the scheduler's error must match, a regular expression.
    pub error_matches: Option<String>,
    /// The scheduler must stay attached all the time, even where the test itself detaches it.
    pub survives_storm: bool,
}

/// Where a scheduler comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SchedulerSource {
    /// An executable on the host, as given or found.
    Program(PathBuf),
    /// The kernel itself.
    Builtin(KernelBuiltin),
}

impl SchedulerSource {
    /// The executable, unless the kernel has it.
    pub fn program(&self) -> Option<&Path> {
        match self {
            Self::Program(path) => Some(path),
            Self::Builtin(_) => None,
        }
    }
}

/// A scheduler that the kernel has: commands for the guest's shell that switch it on and off, one after the
/// other. One that fails ends the series.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelBuiltin {
    /// Before the test.
    pub enable: Vec<String>,
    /// After it.
    pub disable: Vec<String>,
}

/// The scheduler under test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SchedulerJob {
    /// Name for people.
    pub name: String,
    /// Where it comes from.
    pub source: SchedulerSource,
    /// Command-line arguments.
    pub args: Vec<String>,
    /// Cgroup that must be there before it starts, from the root of the hierarchy.
    pub cgroup_parent: Option<String>,
    /// Kernels it is meant for, as series or ranges of them; empty is all.
    pub kernels: Vec<String>,
}

/// A shell or one command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShellJob {
    /// Files and directories to place under `/include-files`.
    pub include: Vec<PathBuf>,
    /// One command; `None` is an interactive shell.
    pub exec: Option<String>,
    /// Kernel messages go to the client as they come.
    pub dmesg: bool,
    /// `TERM`, `COLORTERM` and the window size for an interactive shell.
    pub term: Option<Term>,
}

/// The user's terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    /// `TERM`.
    pub term: String,
    /// `COLORTERM`, if set.
    pub colorterm: Option<String>,
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

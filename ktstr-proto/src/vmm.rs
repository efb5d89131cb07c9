//! Orchestrator ↔ VMM.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    capture::WatchPoint,
    device::{DiskConfig, NetConfig},
    link::{FdSlot, Link, calls},
    registers::{Registers, TripleFault},
    ring::RingRegion,
    run::AccelKind,
    topology::{Numa, Topology},
};

/// The link itself; the orchestrator asks, the VMM serves.
#[derive(Debug)]
pub struct VmmLink;

impl Link for VmmLink {
    const ID: u8 = 2;
    const NAME: &'static str = "orchestrator-vmm";
    type Request = VmmRequest;
    type Reply = VmmReply;
    type Event = VmmEvent;
}

calls! {
    /// What the orchestrator asks of a VMM. One VM per process.
    VmmLink: VmmRequest => VmmReply {
        /// Can hardware KVM run a stock kernel here?
        Probe => ProbeReport,
        /// Build the machine and run it.
        Start => Started,
        /// Stop all vCPUs.
        Pause => Paused,
        /// Let them run again.
        Resume => Resumed,
        /// Ask the guest to end itself (not under `det`).
        Shutdown => Accepted,
        /// End the machine now.
        Kill => Accepted,
        /// Answer a question of the guest (not under `det`).
        Tell => Accepted,
        /// Watch these places for writes, and no others.
        Watch => Watching,
    }
}

/// See [`VmmRequest::Tell`]; the VMM does not look into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tell {
    /// Number of the question.
    pub id: u32,
    /// The answer, at most [`crate::ring::MAX_ANSWER`] bytes.
    pub answer: Vec<u8>,
}

/// See [`VmmRequest::Probe`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe;

/// What the probe found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// Whether a stock kernel can be run at speed.
    pub usable: bool,
    /// Why, in one line.
    pub detail: String,
    /// How long it took, microseconds.
    pub took_us: u64,
}

/// See [`VmmRequest::Start`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// What runs the vCPUs.
    pub accel: AccelKind,
    /// Machine shape.
    pub topology: Topology,
    /// What is special about its NUMA nodes.
    pub numa: Numa,
    /// LLCs whose CPUs are possible and not there; see [`Topology::possible_cpus`].
    pub absent_llcs: u32,
    /// Guest memory, MiB.
    pub memory_mb: u32,
    /// Kernel command line, complete.
    pub cmdline: String,
    /// Where the ring lies.
    pub ring: RingRegion,
    /// The decompressed kernel, an ELF file.
    pub kernel: FdSlot,
    /// The initramfs.
    pub initrd: FdSlot,
    /// The emulator, unless the accelerator is KVM.
    pub emulator: Option<Emulator>,
    /// Whether the guest gets an interactive console: hvc0, and a port for the terminal's size.
    pub interactive: bool,
    /// Seed handed to the emulator.
    pub seed: u64,
    /// Under `det` one instruction takes 2 to the power of this, nanoseconds.
    pub instruction_shift: u8,
    /// The disk, served by another process.
    pub disk: Option<AttachDisk>,
    /// The networks, served by another process.
    pub networks: Vec<AttachNetwork>,
    /// The archive that the guest waits for once it is ready, unless the initramfs holds its job; see
    /// [`crate::handover`].
    pub input: Option<FdSlot>,
    /// Whether the machine begins from a snapshot, or one is taken when the guest waits for its input.
    pub snapshot: Snapshot,
    /// What the machine has of the host for itself; only with KVM.
    pub isolation: Option<Isolation>,
}

/// What a machine has of the host for itself, beside CPUs, which the orchestrator sees to: its RAM lies in
/// 2 MiB pages that are all there before the guest starts, a waiting vCPU keeps its host CPU, and the guest
/// is told that no vCPU is ever without one. A host that has not got it all refuses the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// The host's NUMA node for the memory of each of the guest's.
    pub nodes: Vec<u32>,
}

/// A disk that another process serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachDisk {
    /// A connected stream socket to its server, which speaks vhost-user.
    pub socket: FdSlot,
    /// What was asked for.
    pub config: DiskConfig,
}

/// A network that another process serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachNetwork {
    /// The place of its server's listening socket (`O_PATH`), which speaks vhost-user to whoever connects.
    pub socket: FdSlot,
    /// What was asked for.
    pub config: NetConfig,
}

/// See [`Start::snapshot`] and, for the file, [`crate::snapshot`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Snapshot {
    /// None.
    Unused,
    /// The machine begins from this one. Nothing of the kernel and the initramfs is loaded.
    Load(FdSlot),
    /// One is written, before any input is given.
    Save {
        /// An empty file, writable and readable.
        file: FdSlot,
        /// What the machine is, for the file's header.
        description: String,
    },
}

/// Where the emulator is and what it needs to see inside its jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Emulator {
    /// The executable.
    pub program: PathBuf,
    /// Its version, major and minor.
    pub version: (u32, u32),
    /// Files and directories it reads beside the system's libraries: firmware. Bound read-only.
    pub files: Vec<PathBuf>,
}

/// A piece of guest RAM in the memfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamRegion {
    /// Guest-physical start.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
    /// Offset in the memfd.
    pub offset: u64,
}

/// What stands between a machine and its host, beside Landlock and the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Walls {
    /// Namespaces of a user namespace of its own, and an empty root.
    All,
    /// Namespaces by privilege of root, and an empty root.
    NoUserNamespace,
    /// Nothing more.
    None,
}

/// The ports of an interactive console, each a stream socket.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ConsoleSockets {
    /// What is typed and printed.
    pub terminal: FdSlot,
    /// The terminal's size; see [`crate::terminal`].
    pub size: FdSlot,
}

/// The machine runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// Guest RAM.
    pub ram: FdSlot,
    /// How the memfd is laid out in guest-physical space.
    pub regions: Vec<RamRegion>,
    /// The interactive console.
    pub console: Option<ConsoleSockets>,
    /// Process id of the emulator child, as the VMM sees it.
    pub emulator_pid: Option<u32>,
    /// A pidfd of the emulator child, which means the same to everybody.
    pub emulator: Option<FdSlot>,
    /// What stands between the machine and the host.
    pub walls: Walls,
    /// Emulator and version, or the KVM's description.
    pub detail: String,
}

/// See [`VmmRequest::Pause`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pause {
    /// Whether the registers are wanted, too.
    pub registers: bool,
}
/// All vCPUs stand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Paused {
    /// Time until they stood, microseconds.
    pub took_us: u64,
    /// Their registers, where they were wanted.
    pub registers: Option<Registers>,
}
/// See [`VmmRequest::Resume`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resume;
/// The vCPUs run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resumed {
    /// How long they stood, microseconds; 0 when they did not.
    pub stood_us: u64,
}
/// See [`VmmRequest::Shutdown`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shutdown;
/// See [`VmmRequest::Kill`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kill;
/// See [`VmmRequest::Watch`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    /// At most [`crate::capture::MAX_WATCHED`]; none ends watching.
    pub places: Vec<WatchPoint>,
}
/// From now on [`VmmEvent::Written`] tells of writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Watching;
/// The request will be carried out; [`VmmEvent::Exited`] tells when it has been.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accepted;

/// What a VMM tells unasked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum VmmEvent {
    /// Bytes of COM1.
    Console(Vec<u8>),
    /// Bytes of COM2.
    Com2(Vec<u8>),
    /// Bytes of the ring, in order and complete.
    Ring(Vec<u8>),
    /// The guest broke the ring's rules; no more ring bytes will come.
    RingBroken(String),
    /// The machine is gone; everything it wrote has been sent before.
    Exited(VmExit),
    /// The snapshot asked for was written, or why it was not; the machine goes on either way.
    Saved(Result<Saved, String>),
    /// A CPU wrote to a watched place. All vCPUs stand until [`VmmRequest::Resume`].
    Written {
        /// The place.
        place: WatchPoint,
        /// The CPU.
        cpu: u32,
    },
    /// What KVM counted for each vCPU, by number; the end of the machine follows.
    Statistics(Vec<VcpuStatistics>),
    /// Where a start has got to.
    Station {
        /// What had just been done.
        what: String,
        /// When that was, microseconds since the request to start arrived.
        at_us: u64,
    },
}

/// Counters of one vCPU: exits by reason, halts, polls; see KVM_GET_STATS_FD in
/// Documentation/virt/kvm/api.rst.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VcpuStatistics {
    /// The kernel's names and the values when the machine ended.
    pub counters: Vec<(String, u64)>,
}

/// A snapshot that was written, not yet to the disk itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Length of the file in bytes.
    pub bytes: u64,
    /// How long the guest stood for it, microseconds.
    pub stood_us: u64,
}

/// What [`VmExit::EmulatorDied`] says of an emulator that somebody has ended.
pub const KILLED: &str = "killed by SIGKILL";

impl VmExit {
    /// Whether the guest, or what runs it, came to this by itself, and nobody ended it.
    #[must_use]
    pub fn is_of_itself(&self) -> bool {
        match self {
            Self::PowerOff | Self::Reset | Self::TripleFault(_) | Self::InternalError { .. } => true,
            Self::EmulatorDied { how, .. } => how != KILLED,
            Self::Killed => false,
        }
    }
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmExit {
    /// The guest powered off.
    PowerOff,
    /// The guest reset itself (a kernel panic with `panic=-1` does).
    Reset,
    /// A vCPU ended in a triple fault. An emulator does not tell it from a reset.
    TripleFault(Box<TripleFault>),
    /// Killed on request.
    Killed,
    /// The emulator died.
    EmulatorDied {
        /// Exit status or signal in words.
        how: String,
        /// Last lines of its stderr.
        stderr: String,
    },
    /// A vCPU cannot go on.
    InternalError {
        /// What KVM or the emulator said.
        detail: String,
    },
}

//! Orchestrator ↔ monitor.

use serde::{Deserialize, Serialize};

use crate::{
    capture::{Answer, Ask, BusyPlace, Capture, Captured, Locate, Located, Stalling, ThawNoted, Thawed},
    kernel_place::KernelWrite,
    link::{FdSlot, Link, calls},
    map_watch::{MapMetric, MapWatch},
    registers::Registers,
    symbols::{SymbolsCompared, SymbolsTold},
    vmm::RamRegion,
};

/// The link itself; the orchestrator asks, the monitor serves.
#[derive(Debug)]
pub struct MonitorLink;

impl Link for MonitorLink {
    const ID: u8 = 3;
    const NAME: &'static str = "orchestrator-monitor";
    type Request = MonitorRequest;
    type Reply = MonitorReply;
    type Event = MonitorEvent;
}

calls! {
    /// What the orchestrator asks of a monitor.
    MonitorLink: MonitorRequest => MonitorReply {
        /// Map guest RAM and begin to sample.
        Attach => Attached,
        /// Take a last sample and sum up.
        Finish => MonitorSummary,
        /// Choose which samples count.
        Window => Windowed,
        /// How long each vCPU has run on the host, to tell a CPU that stands still from one that
        /// the host does not run.
        VcpuTime => VcpuTimeNoted,
        /// Answer a question about the guest as it is now.
        Ask => Answer,
        /// Read everything while the guest stands, and write it down.
        Capture => Captured,
        /// The guest stands no more.
        Thawed => ThawNoted,
        /// Set a number in a BPF map.
        WriteMap => MapWritten,
        /// Find a place that is to be watched for writes.
        Locate => Located,
        /// Write values at places of the kernel.
        WriteKernel => KernelWritten,
        /// Compare where the guest says that symbols lie with where they are read.
        CompareSymbols => SymbolsNoted,
    }
}

/// See [`MonitorRequest::Attach`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attach {
    /// Guest RAM.
    pub ram: FdSlot,
    /// Its layout.
    pub regions: Vec<RamRegion>,
    /// The decompressed kernel, an ELF file with `.BTF`.
    pub kernel: FdSlot,
    /// Guest CPUs that are present.
    pub cpus: u32,
    /// Those that may come beside them: not every kernel counts them as possible.
    pub absent_cpus: u32,
    /// Sampling period, milliseconds.
    pub period_ms: u32,
    /// Consecutive samples that make a finding.
    pub sustained_samples: u32,
    /// What the kernel's stall watchdog is to tolerate at least, milliseconds; with it guest memory is
    /// mapped for writing, without it for reading only.
    pub watchdog_ms: Option<u64>,
    /// Values in BPF maps that are read with each sample that counts.
    pub watches: Vec<MapWatch>,
}

/// See [`MonitorRequest::WriteMap`]. Guest memory comes with it: nothing is mapped for writing before
/// something is to be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteMap {
    /// Guest RAM, the same as in [`Attach::ram`].
    pub ram: FdSlot,
    /// The map's name, or the end of it.
    pub map: String,
    /// Where in it.
    pub path: String,
    /// The number.
    pub value: i64,
}

/// It is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapWritten {
    /// What and where, in words.
    pub what: String,
}

/// See [`MonitorRequest::WriteKernel`]; guest memory comes with it as with [`WriteMap`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteKernel {
    /// Guest RAM, the same as in [`Attach::ram`].
    pub ram: FdSlot,
    /// What, and where.
    pub writes: Vec<KernelWrite>,
    /// All vCPUs stand until [`Thawed`].
    pub frozen: bool,
}

/// They are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelWritten {
    /// What and where, in words.
    pub what: String,
}

/// The kernel file is understood; samples follow once the guest is up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attached {
    /// Symbols decoded from the kernel file.
    pub symbols: u32,
    /// BTF types in it.
    pub btf_types: u32,
    /// Members this kernel does not have, as `struct.member`.
    pub absent: Vec<String>,
}

/// See [`MonitorRequest::Finish`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finish {
    /// Of the vCPUs, where the machine ended for what one of them did.
    pub registers: Option<Registers>,
}

/// Which samples count from now on; all do until the first of these is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Window {
    /// They count again, and what counted before is forgotten.
    Restart,
    /// They count again.
    Open,
    /// They are reported but count for nothing.
    Close,
}

/// The window is as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Windowed;

/// See [`MonitorRequest::VcpuTime`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuTime {
    /// By CPU number: CPU time of the vCPU's thread since it was created, nanoseconds.
    pub ran_ns: Vec<u64>,
}

/// The times are noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuTimeNoted;

/// What the guest says; it is compared as soon as its kernel is found, and only the first time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompareSymbols(pub SymbolsTold);

/// It will be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SymbolsNoted;

/// What a monitor tells unasked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum MonitorEvent {
    /// The guest's structures can be read from now on.
    Ready,
    /// One sample.
    Sample(Sample),
    /// Something cannot be read; said once per thing.
    Unavailable(String),
    /// A task waits for long; said once per scheduler.
    Stalling(Stalling),
    /// The scheduler is being ended by the kernel; said once per scheduler.
    SchedulerExiting {
        /// The enumerator of `scx_exit_kind`.
        kind: String,
    },
    /// The files of the last capture are written, or why they are not.
    CaptureWritten(Result<(), String>),
    /// A scheduler got the watchdog limit that was asked for, or not.
    Watchdog {
        /// Whether it did.
        written: bool,
        /// Where it was written, or why it was not.
        what: String,
    },
    /// What came of [`CompareSymbols`].
    SymbolsCompared(SymbolsCompared),
}

/// One look at all CPUs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Host time since attach, nanoseconds.
    pub t_ns: u64,
    /// Time the reading took, microseconds.
    pub took_us: u32,
    /// Per CPU, by CPU number.
    pub cpus: Vec<CpuSample>,
    /// sched_ext event counters by kernel name (`SCX_EV_…`), when a scheduler is attached.
    pub events: Vec<(String, i64)>,
}

/// One CPU's run queue; `None` is a member this kernel lacks or that could not be read, never 0.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CpuSample {
    /// `rq.nr_running`.
    pub nr_running: Option<u32>,
    /// `rq.clock`, nanoseconds.
    pub clock: Option<u64>,
    /// `rq.scx.nr_running`.
    pub scx_nr_running: Option<u32>,
    /// `rq.scx.local_dsq.nr`.
    pub local_dsq_nr: Option<u32>,
    /// `rq.scx.flags`.
    pub scx_flags: Option<u32>,
}

/// What the whole observation amounts to.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MonitorSummary {
    /// Samples with readable run queues.
    pub samples: u32,
    /// Samples that failed.
    pub failed_samples: u32,
    /// Largest `max(nr_running) / max(1, min(nr_running))` over one sample.
    pub max_imbalance_ratio: f64,
    /// The largest such ratio that held for `sustained_samples` in a row; none where there were not so many.
    pub sustained_imbalance_ratio: Option<f64>,
    /// Deepest local DSQ and its CPU.
    pub max_local_dsq_depth: u32,
    /// CPU of the deepest local DSQ.
    pub max_local_dsq_cpu: u32,
    /// The depth that held for `sustained_samples` in a row on one CPU; none where there were not so many, or
    /// this kernel does not tell.
    pub sustained_local_dsq_depth: Option<u32>,
    /// That CPU.
    pub sustained_local_dsq_cpu: u32,
    /// CPUs whose clock stood still for `sustained_samples` in a row with tasks waiting.
    pub stuck_cpus: Vec<u32>,
    /// Whether the vCPUs' own run time was known, so that `stuck_cpus` leaves out those the host did
    /// not run.
    pub vcpu_time_known: bool,
    /// Increase of each event counter over the observation.
    pub events: Vec<(String, i64)>,
    /// What could not be read and why.
    pub unavailable: Vec<String>,
    /// Median time of one sample, microseconds.
    pub median_sample_us: u32,
    /// What came of [`Attach::watches`].
    #[serde(default)]
    pub watched: Vec<MapMetric>,
    /// Places that were written too often to be watched to the end.
    #[serde(default)]
    pub busy_places: Vec<BusyPlace>,
    /// What came of [`CompareSymbols`]; none where the guest said nothing or its kernel was never found.
    #[serde(default)]
    pub symbols: Option<SymbolsCompared>,
    /// Where the vCPUs of [`Finish::registers`] stood, by number: `function+0xoffset`, or what else it is.
    #[serde(default)]
    pub stood: Vec<String>,
}

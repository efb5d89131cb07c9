//! Single operations of a scenario.

mod kind;

use ktstr_proto::kernel_place::{KernelTarget, KernelWidth, KernelWrite};

pub use self::kind::OpKind;
use super::{AffinityIntent, CgroupDef, CpusetSpec, Payload, WorkSpec};
use crate::cgroup::Limits;

/// Where workers or a program are put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// The cgroup of the test itself, outside of all workload cgroups.
    RunnerCgroup,
    /// A workload cgroup.
    Cgroup(String),
}

/// Which interrupt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Irq {
    /// By number.
    Number(u32),
    /// By a part of its line in `/proc/interrupts`.
    Label(String),
}

/// One operation. Names are looked up when the scenario begins: one that is not there at that point of
/// the scenario is an error, with the nearest known name.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Creates a cgroup without workers.
    AddCgroup {
        /// Its name.
        name: String,
    },
    /// Creates a cgroup with its workers.
    AddCgroupDef {
        /// The cgroup.
        def: CgroupDef,
    },
    /// Ends the workers of a cgroup and removes it.
    RemoveCgroup {
        /// Its name.
        cgroup: String,
    },
    /// Ends the workers of a cgroup.
    StopCgroup {
        /// Its name.
        cgroup: String,
    },
    /// Changes the CPUs of a cgroup.
    SetCpuset {
        /// Its name.
        cgroup: String,
        /// The new CPUs.
        cpus: CpusetSpec,
    },
    /// Gives a cgroup all CPUs again.
    ClearCpuset {
        /// Its name.
        cgroup: String,
    },
    /// Exchanges the CPUs of two cgroups.
    SwapCpusets {
        /// One.
        a: String,
        /// The other.
        b: String,
    },
    /// Changes limits of a cgroup; those not given stay.
    SetLimits {
        /// Its name.
        cgroup: String,
        /// The new limits.
        limits: Limits,
    },
    /// Starts more workers.
    Spawn {
        /// Where.
        placement: Placement,
        /// Which.
        work: WorkSpec,
    },
    /// Changes the CPUs of each worker of a cgroup.
    SetAffinity {
        /// Its name.
        cgroup: String,
        /// The new CPUs.
        affinity: AffinityIntent,
    },
    /// Moves all tasks of one cgroup to another.
    MoveAllTasks {
        /// From.
        from: String,
        /// To.
        to: String,
    },
    /// Freezes a cgroup; what its workers miss meanwhile is not held against the scheduler.
    FreezeCgroup {
        /// Its name.
        cgroup: String,
    },
    /// Thaws a cgroup.
    UnfreezeCgroup {
        /// Its name.
        cgroup: String,
    },
    /// Takes a CPU out of service.
    OfflineCpu {
        /// Which; not 0.
        cpu: u32,
    },
    /// Puts a CPU into service again.
    OnlineCpu {
        /// Which.
        cpu: u32,
    },
    /// Sends an interrupt to one CPU.
    SteerIrq {
        /// Which interrupt.
        irq: Irq,
        /// To which CPU.
        cpu: u32,
    },
    /// Notes the process ids of a cgroup in the timeline.
    CaptureCgroupProcs {
        /// Under which name.
        tag: String,
        /// Its name.
        cgroup: String,
    },
    /// Has the host capture all of the guest's state while its CPUs stand, and waits for it; under `det` it
    /// does not wait, and the host captures what it finds then.
    CaptureSnapshot {
        /// By which name the host's half of the test finds it; a second one of the same name gets `_2` after it.
        name: String,
    },
    /// Has the host read a value in a BPF map, and notes it in the timeline and among the findings.
    ReadMap {
        /// Under which name.
        tag: String,
        /// The map's name, or the end of it: `.bss`.
        map: String,
        /// Where in it: `nr_enqueued`, `[3].weight`.
        path: String,
    },
    /// Has the host write a number into a BPF map.
    WriteMap {
        /// The map's name, or the end of it: `.bss`.
        map: String,
        /// Where in it: `slow_ns`, `[3].weight`.
        path: String,
        /// The number.
        value: i64,
    },
    /// Keeps a BPF map of the scheduler when the scheduler goes: from now on `pinned:NAME` is that map, whatever other
    /// maps of its name there are.
    PinBpfMap {
        /// The map's name, or the end of it: `.bss`.
        name: String,
    },
    /// Has the host read a place of the kernel while the guest runs, and notes it in the timeline and among the findings.
    ReadKernelHot {
        /// Under which name.
        tag: String,
        /// The place.
        target: KernelTarget,
        /// How much of it.
        width: KernelWidth,
    },
    /// As [`Op::ReadKernelHot`], while all CPUs stand.
    ReadKernelCold {
        /// Under which name.
        tag: String,
        /// The place.
        target: KernelTarget,
        /// How much of it.
        width: KernelWidth,
    },
    /// Has the host write values at places of the kernel while the guest runs, all or, where one is not found, none.
    WriteKernelHot {
        /// What, and where.
        writes: Vec<KernelWrite>,
    },
    /// As [`Op::WriteKernelHot`], while all CPUs stand: they see all of it at once.
    WriteKernelCold {
        /// What, and where.
        writes: Vec<KernelWrite>,
    },
    /// From now on captures the guest's state at each write to a place, without cost until then. Found
    /// on the host once it is there; not under `det`.
    WatchSnapshot {
        /// A kernel symbol, `scx_root->member`, a map with a path, or a scheduler's global variable.
        what: String,
    },
    /// Starts a program.
    RunPayload {
        /// Which.
        payload: Payload,
        /// Arguments after its own.
        args: Vec<String>,
        /// Where.
        placement: Placement,
    },
    /// Waits for a program to end.
    WaitPayload {
        /// Its name; of several, the one that was started first.
        name: String,
        /// Where it is, should another one run elsewhere.
        cgroup: Option<String>,
    },
    /// Ends a program.
    KillPayload {
        /// Its name; of several, the one that was started first.
        name: String,
        /// Where it is, should another one run elsewhere.
        cgroup: Option<String>,
    },
    /// Starts the test's scheduler, which was detached.
    AttachScheduler,
    /// Ends the scheduler; the kernel's own takes over.
    DetachScheduler,
    /// Ends the scheduler that runs and starts the test's own.
    RestartScheduler,
    /// Ends the scheduler that runs and starts another of the test's `staged_schedulers`.
    ReplaceScheduler {
        /// Its name.
        name: String,
    },
}

impl Op {
    /// Creates a cgroup without workers.
    pub fn add_cgroup(name: impl Into<String>) -> Self {
        Self::AddCgroup { name: name.into() }
    }

    /// Creates a cgroup with its workers.
    pub fn add_cgroup_def(def: CgroupDef) -> Self {
        Self::AddCgroupDef { def }
    }

    /// Ends the workers of a cgroup and removes it.
    pub fn remove_cgroup(cgroup: impl Into<String>) -> Self {
        Self::RemoveCgroup { cgroup: cgroup.into() }
    }

    /// Ends the workers of a cgroup.
    pub fn stop_cgroup(cgroup: impl Into<String>) -> Self {
        Self::StopCgroup { cgroup: cgroup.into() }
    }

    /// Changes the CPUs of a cgroup.
    pub fn set_cpuset(cgroup: impl Into<String>, cpus: CpusetSpec) -> Self {
        Self::SetCpuset { cgroup: cgroup.into(), cpus }
    }

    /// Gives a cgroup all CPUs again.
    pub fn clear_cpuset(cgroup: impl Into<String>) -> Self {
        Self::ClearCpuset { cgroup: cgroup.into() }
    }

    /// Exchanges the CPUs of two cgroups.
    pub fn swap_cpusets(a: impl Into<String>, b: impl Into<String>) -> Self {
        Self::SwapCpusets { a: a.into(), b: b.into() }
    }

    /// Changes limits of a cgroup.
    pub fn set_limits(cgroup: impl Into<String>, limits: Limits) -> Self {
        Self::SetLimits { cgroup: cgroup.into(), limits }
    }

    /// Starts more workers in a cgroup.
    pub fn spawn_workers(cgroup: impl Into<String>, work: WorkSpec) -> Self {
        Self::Spawn { placement: Placement::Cgroup(cgroup.into()), work }
    }

    /// Starts workers outside of all workload cgroups.
    pub fn spawn_host(work: WorkSpec) -> Self {
        Self::Spawn { placement: Placement::RunnerCgroup, work }
    }

    /// Changes the CPUs of each worker of a cgroup.
    pub fn set_affinity(cgroup: impl Into<String>, affinity: AffinityIntent) -> Self {
        Self::SetAffinity { cgroup: cgroup.into(), affinity }
    }

    /// Moves all tasks of one cgroup to another.
    pub fn move_all_tasks(from: impl Into<String>, to: impl Into<String>) -> Self {
        Self::MoveAllTasks { from: from.into(), to: to.into() }
    }

    /// Freezes a cgroup.
    pub fn freeze_cgroup(cgroup: impl Into<String>) -> Self {
        Self::FreezeCgroup { cgroup: cgroup.into() }
    }

    /// Thaws a cgroup.
    pub fn unfreeze_cgroup(cgroup: impl Into<String>) -> Self {
        Self::UnfreezeCgroup { cgroup: cgroup.into() }
    }

    /// Takes a CPU out of service.
    pub const fn offline_cpu(cpu: u32) -> Self {
        Self::OfflineCpu { cpu }
    }

    /// Puts a CPU into service again.
    pub const fn online_cpu(cpu: u32) -> Self {
        Self::OnlineCpu { cpu }
    }

    /// Has the host capture all of the guest's state.
    pub fn capture_snapshot(name: impl Into<String>) -> Self {
        Self::CaptureSnapshot { name: name.into() }
    }

    /// Has the host read a value in a BPF map.
    pub fn read_map(tag: impl Into<String>, map: impl Into<String>, path: impl Into<String>) -> Self {
        Self::ReadMap { tag: tag.into(), map: map.into(), path: path.into() }
    }

    /// Has the host write a number into a BPF map.
    pub fn write_map(map: impl Into<String>, path: impl Into<String>, value: i64) -> Self {
        Self::WriteMap { map: map.into(), path: path.into(), value }
    }

    /// Keeps a BPF map of the scheduler when the scheduler goes.
    pub fn pin_bpf_map(name: impl Into<String>) -> Self {
        Self::PinBpfMap { name: name.into() }
    }

    /// Has the host read a place of the kernel while the guest runs.
    pub fn read_kernel_hot(tag: impl Into<String>, target: KernelTarget, width: KernelWidth) -> Self {
        Self::ReadKernelHot { tag: tag.into(), target, width }
    }

    /// Has the host read a place of the kernel while all CPUs stand.
    pub fn read_kernel_cold(tag: impl Into<String>, target: KernelTarget, width: KernelWidth) -> Self {
        Self::ReadKernelCold { tag: tag.into(), target, width }
    }

    /// Has the host write values at places of the kernel while the guest runs.
    pub fn write_kernel_hot(writes: impl IntoIterator<Item = KernelWrite>) -> Self {
        Self::WriteKernelHot { writes: writes.into_iter().collect() }
    }

    /// Has the host write values at places of the kernel while all CPUs stand.
    pub fn write_kernel_cold(writes: impl IntoIterator<Item = KernelWrite>) -> Self {
        Self::WriteKernelCold { writes: writes.into_iter().collect() }
    }

    /// Captures the guest's state at each write to a place: a kernel symbol, `scx_root->member`,
    /// `map.path` or a scheduler's global variable.
    pub fn watch_snapshot(what: impl Into<String>) -> Self {
        Self::WatchSnapshot { what: what.into() }
    }

    /// Starts a program outside of all workload cgroups.
    pub fn run_payload(payload: &Payload) -> Self {
        Self::RunPayload { payload: *payload, args: Vec::new(), placement: Placement::RunnerCgroup }
    }

    /// Starts a program in a cgroup.
    pub fn run_payload_in(payload: &Payload, cgroup: impl Into<String>) -> Self {
        let placement = Placement::Cgroup(cgroup.into());
        Self::RunPayload { payload: *payload, args: Vec::new(), placement }
    }

    /// Waits for a program to end.
    pub fn wait_payload(name: impl Into<String>) -> Self {
        Self::WaitPayload { name: name.into(), cgroup: None }
    }

    /// Waits for a program in a cgroup to end.
    pub fn wait_payload_in(name: impl Into<String>, cgroup: impl Into<String>) -> Self {
        Self::WaitPayload { name: name.into(), cgroup: Some(cgroup.into()) }
    }

    /// Ends a program.
    pub fn kill_payload(name: impl Into<String>) -> Self {
        Self::KillPayload { name: name.into(), cgroup: None }
    }

    /// Ends a program in a cgroup.
    pub fn kill_payload_in(name: impl Into<String>, cgroup: impl Into<String>) -> Self {
        Self::KillPayload { name: name.into(), cgroup: Some(cgroup.into()) }
    }

    /// Ends the scheduler that runs and starts another.
    pub fn replace_scheduler(name: impl Into<String>) -> Self {
        Self::ReplaceScheduler { name: name.into() }
    }
}

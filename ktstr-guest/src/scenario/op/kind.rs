//! Which operation one is, without its particulars.

use super::Op;

/// An [`Op`] without its particulars, for statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each variant is documented at the variant of Op it is named after")]
pub enum OpKind {
    AddCgroup,
    AddCgroupDef,
    RemoveCgroup,
    StopCgroup,
    SetCpuset,
    ClearCpuset,
    SwapCpusets,
    SetLimits,
    Spawn,
    SetAffinity,
    MoveAllTasks,
    FreezeCgroup,
    UnfreezeCgroup,
    OfflineCpu,
    OnlineCpu,
    SteerIrq,
    CaptureCgroupProcs,
    CaptureSnapshot,
    ReadMap,
    WriteMap,
    PinBpfMap,
    ReadKernelHot,
    ReadKernelCold,
    WriteKernelHot,
    WriteKernelCold,
    WatchSnapshot,
    RunPayload,
    WaitPayload,
    KillPayload,
    AttachScheduler,
    DetachScheduler,
    RestartScheduler,
    ReplaceScheduler,
}

impl Op {
    /// Which operation it is.
    pub const fn kind(&self) -> OpKind {
        match self {
            Self::AddCgroup { .. } => OpKind::AddCgroup,
            Self::AddCgroupDef { .. } => OpKind::AddCgroupDef,
            Self::RemoveCgroup { .. } => OpKind::RemoveCgroup,
            Self::StopCgroup { .. } => OpKind::StopCgroup,
            Self::SetCpuset { .. } => OpKind::SetCpuset,
            Self::ClearCpuset { .. } => OpKind::ClearCpuset,
            Self::SwapCpusets { .. } => OpKind::SwapCpusets,
            Self::SetLimits { .. } => OpKind::SetLimits,
            Self::Spawn { .. } => OpKind::Spawn,
            Self::SetAffinity { .. } => OpKind::SetAffinity,
            Self::MoveAllTasks { .. } => OpKind::MoveAllTasks,
            Self::FreezeCgroup { .. } => OpKind::FreezeCgroup,
            Self::UnfreezeCgroup { .. } => OpKind::UnfreezeCgroup,
            Self::OfflineCpu { .. } => OpKind::OfflineCpu,
            Self::OnlineCpu { .. } => OpKind::OnlineCpu,
            Self::SteerIrq { .. } => OpKind::SteerIrq,
            Self::CaptureCgroupProcs { .. } => OpKind::CaptureCgroupProcs,
            Self::CaptureSnapshot { .. } => OpKind::CaptureSnapshot,
            Self::ReadMap { .. } => OpKind::ReadMap,
            Self::WriteMap { .. } => OpKind::WriteMap,
            Self::PinBpfMap { .. } => OpKind::PinBpfMap,
            Self::ReadKernelHot { .. } => OpKind::ReadKernelHot,
            Self::ReadKernelCold { .. } => OpKind::ReadKernelCold,
            Self::WriteKernelHot { .. } => OpKind::WriteKernelHot,
            Self::WriteKernelCold { .. } => OpKind::WriteKernelCold,
            Self::WatchSnapshot { .. } => OpKind::WatchSnapshot,
            Self::RunPayload { .. } => OpKind::RunPayload,
            Self::WaitPayload { .. } => OpKind::WaitPayload,
            Self::KillPayload { .. } => OpKind::KillPayload,
            Self::AttachScheduler => OpKind::AttachScheduler,
            Self::DetachScheduler => OpKind::DetachScheduler,
            Self::RestartScheduler => OpKind::RestartScheduler,
            Self::ReplaceScheduler { .. } => OpKind::ReplaceScheduler,
        }
    }
}

//! Why a run cannot be started, and which of the reasons are merely something missing.

use std::{io, path::PathBuf};

use ktstr_proto::AccelKind;

use super::accelerator::SOUND_EMULATOR;
use crate::{
    children::SpawnError,
    disk::DiskError,
    host::GrantError,
    pack::{PackError, memory},
    store::{KernelUnfit, NoRange, ResolveError, RootError, StoreError},
};

/// Why a run cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The kernel store cannot be found.
    #[error("no kernel store")]
    Root(#[source] RootError),
    /// The kernel store cannot be read.
    #[error("cannot use the kernel store")]
    Store(#[source] StoreError),
    /// No such kernel.
    #[error("no kernel to boot")]
    Kernel(#[source] ResolveError),
    /// The kernel does not suit the test.
    #[error("scheduler `{scheduler}` cannot be tested")]
    Unfit {
        /// The scheduler.
        scheduler: String,
        /// Why.
        #[source]
        source: KernelUnfit,
    },
    /// The scheduler is not meant for the kernel.
    #[error("scheduler `{scheduler}` declares that it is for kernels {kernels}; this one is {kernel}")]
    OtherKernels {
        /// The scheduler.
        scheduler: String,
        /// What it declares.
        kernels: String,
        /// The kernel's release.
        kernel: String,
    },
    /// What it declares names no kernels.
    #[error("scheduler `{scheduler}` cannot be matched with a kernel")]
    NoRange {
        /// The scheduler.
        scheduler: String,
        /// Why.
        #[source]
        source: NoRange,
    },
    /// An executable of ours is missing.
    #[error(transparent)]
    Executable(#[from] SpawnError),
    /// The initramfs cannot be packed.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The memory given does not suffice.
    #[error(transparent)]
    Memory(#[from] memory::TooLittleMemory),
    /// The memory cannot be divided among the nodes.
    #[error("divide the memory among the NUMA nodes (give more with --memory-mb, or each node its own)")]
    Numa(#[from] ktstr_proto::topology::numa::NumaError),
    /// No busybox on this host.
    #[error("no static busybox found on PATH: install the package busybox-static")]
    Busybox,
    /// No emulator on this host.
    #[error(
        "no qemu-system-x86_64 on PATH, which accelerator {accel} needs: install version {SOUND_EMULATOR} or newer (`cargo xtask demo` does it)"
    )]
    NoEmulator {
        /// The accelerator.
        accel: AccelKind,
    },
    /// The emulator does not say its version.
    #[error("{program} --version says `{said}`, which names no version")]
    EmulatorVersion {
        /// The emulator.
        program: PathBuf,
        /// What it said.
        said: String,
    },
    /// Hardware KVM was asked for and cannot be used.
    #[error("accelerator kvm cannot be used here: {detail}")]
    NoKvm {
        /// The probe's finding.
        detail: String,
    },
    /// A word for the kernel command line that cannot be passed on.
    #[error("kernel argument `{word}` cannot be used: {reason}")]
    KernelArg {
        /// The word.
        word: String,
        /// Why.
        reason: &'static str,
    },
    /// An interactive guest cannot be replayed.
    #[error(
        "accelerator det is for replayable runs: an interactive shell takes host-timed input, use --exec or another accelerator"
    )]
    InteractiveDet,
    /// A disk or network that cannot be made.
    #[error("the machine's {device} cannot be made: {reason}")]
    Device {
        /// Disk or network.
        device: &'static str,
        /// Why.
        reason: String,
    },
    /// A disk or network completes requests in the host's time.
    #[error(
        "accelerator det has no disks and networks: another process serves them in the host's time, and the run could not be repeated; use tcg or kvm"
    )]
    DeviceDet,
    /// The kernel cannot use the disk.
    #[error(
        "kernel {kernel} has no {module} in the store, which the machine's disk or network needs: `cargo ktstr kernel pull` it again, or choose another"
    )]
    NoModule {
        /// The kernel.
        kernel: String,
        /// The module.
        module: &'static str,
    },
    /// The disk's image cannot be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Nobody is there to write, or nobody may.
    #[error("the test wants another watchdog limit, which the monitor writes into the guest's memory: {why}")]
    Watchdog {
        /// Why it does not.
        why: &'static str,
    },
    /// The host does not give what was asked of it.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// A file cannot be used.
    #[error("cannot {action} {path}")]
    File {
        /// What was to be done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel image is no ELF executable.
    #[error("{path} is no kernel image: {reason}")]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl PlanError {
    /// Whether something is merely missing here, so that the run counts as not run.
    pub fn is_missing(&self) -> bool {
        match self {
            Self::Disk(error) => return error.is_missing(),
            Self::Grant(error) => return error.is_missing(),
            _ => {}
        }
        matches!(
            self,
            Self::DeviceDet
                | Self::NoModule { .. }
                | Self::Kernel(ResolveError::Nothing { .. })
                | Self::Unfit { .. }
                | Self::OtherKernels { .. }
                | Self::Busybox
                | Self::NoEmulator { .. }
                | Self::NoKvm { .. }
                | Self::Watchdog { .. }
        )
    }
}

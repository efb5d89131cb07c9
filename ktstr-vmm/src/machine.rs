//! What the role process and both backends agree on: how a machine is described, how a running one
//! is driven, and how it may end.
//!
//! It refuses paths: everything a machine needs arrives as an open descriptor, because the process
//! is already in its jail when the machine starts. Where to look next: `kvm` and `emulator` are the
//! two backends that implement [`Running`].

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use ktstr_proto::capture::WatchPoint;
use ktstr_proto::device::{DiskConfig, NetConfig};
use ktstr_proto::registers::{TripleFault, VcpuRegisters};
pub use ktstr_proto::topology::{Numa, Topology};
pub use ktstr_proto::vmm::{Isolation, VcpuStatistics};

use crate::snapshot::SnapshotFileError;
use crate::{emulator, kvm};

/// A guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The part of guest RAM kept out of the kernel's hands for the guest channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingRegion {
    /// First byte; page aligned.
    pub gpa: Gpa,
    /// Length in bytes; a multiple of the page size.
    pub len: u64,
}

/// The interactive console: a virtio-console with two ports.
#[derive(Debug)]
pub struct ConsoleFds {
    /// What the user types, for port 0 (`hvc0`); end of file is a hang-up, not an exit. May be a pipe, socket or pty.
    pub input: OwnedFd,
    /// What the guest prints. When it is full the guest waits.
    pub output: OwnedFd,
    /// Port 1, [`ktstr_proto::terminal::SIZE_PORT`], both directions: a stream socket.
    pub size: OwnedFd,
}

impl ConsoleFds {
    /// With a stream socket for each port, whose other ends come along: the terminal's and its size's.
    pub fn sockets() -> std::io::Result<(ConsoleFds, [OwnedFd; 2])> {
        let (theirs, ours) = UnixStream::pair()?;
        let (size, our_size) = UnixStream::pair()?;
        let input = theirs.try_clone()?.into();
        Ok((ConsoleFds { input, output: theirs.into(), size: size.into() }, [ours.into(), our_size.into()]))
    }
}

/// Everything a backend needs to start a machine.
#[derive(Debug)]
pub struct MachineSpec {
    /// CPUs and caches.
    pub topology: Topology,
    /// What is special about the NUMA nodes.
    pub numa: Numa,
    /// LLCs whose CPUs are possible and not there.
    pub absent_llcs: u32,
    /// Guest RAM in bytes; a multiple of 2 MiB.
    pub memory: u64,
    /// The decompressed kernel (ELF with a PVH entry note).
    pub kernel: OwnedFd,
    /// Initramfs archives, concatenated in this order (each padded to four bytes).
    pub initrd: Vec<OwnedFd>,
    /// Kernel command line, without a terminating NUL.
    pub cmdline: String,
    /// Where the guest channel lives, if there is one.
    pub ring: Option<RingRegion>,
    /// Receives what the guest writes to COM1 (the kernel console). File or pipe.
    pub com1: OwnedFd,
    /// Receives what the guest writes to COM2 (the fallback channel).
    pub com2: Option<OwnedFd>,
    /// The interactive console, if one is wanted.
    pub console: Option<ConsoleFds>,
    /// Disks and networks that another process serves.
    pub devices: Devices,
    /// What it has of the host for itself.
    pub isolation: Option<Isolation>,
}

/// Devices that another process serves over vhost-user: the disk's connected stream socket, and the places
/// (`O_PATH`) of the networks' listening ones.
#[derive(Debug, Default)]
pub struct Devices {
    /// The disk, and what it is like.
    pub disk: Option<(OwnedFd, DiskConfig)>,
    /// The networks, in the order of their interfaces.
    pub networks: Vec<(OwnedFd, NetConfig)>,
}

/// One contiguous piece of guest RAM and where it lies in the RAM file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRegion {
    /// First guest-physical address.
    pub gpa: Gpa,
    /// Offset in the memfd.
    pub file_offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Guest RAM: the sealed memfd and its mapping into guest-physical addresses.
#[derive(Debug)]
pub struct Ram {
    /// The memfd (sealed against shrinking and growing).
    pub memfd: OwnedFd,
    /// Ascending and disjoint, in both address and offset.
    pub regions: Vec<RamRegion>,
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset (with `panic=-1` also after a kernel panic).
    Reset,
    /// A CPU faulted while delivering a double fault: no handler was left.
    TripleFault(Box<TripleFault>),
    /// The hypervisor gave up on the guest.
    InternalError {
        /// What the backend knows about it, registers included.
        detail: String,
    },
    /// The emulator process ended by itself (never under `kvm`).
    BackendDied {
        /// Exit status or signal in words.
        how: String,
        /// The last lines of its standard error.
        stderr: String,
    },
    /// [`Running::kill`] ended it.
    Killed,
}

/// What a running machine reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The machine ended; nothing follows.
    Exited(Exit),
    /// A device stopped working while the machine goes on (for instance a full COM1 sink).
    DeviceFailed {
        /// Which device: `com1`, `com2`, `console`.
        device: &'static str,
        /// What happened.
        detail: String,
    },
    /// A vCPU wrote to a watched place, and every vCPU has stopped or is about to: [`Running::pause`]
    /// returns when they have.
    Written {
        /// The place.
        place: WatchPoint,
        /// Number of the vCPU.
        cpu: u32,
    },
}

/// Why a machine could not be started or driven.
#[derive(Debug, thiserror::Error)]
#[error("{action}")]
pub struct MachineError {
    /// What failed, where, and what to do about it.
    pub action: String,
    /// The backend's own error.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl MachineError {
    /// Whether the snapshot that it was to go on from is the reason.
    #[must_use]
    pub fn is_of_snapshot(&self) -> bool {
        let Some(source) = self.source.as_deref() else { return false };
        if let Some(error) = source.downcast_ref::<SnapshotFileError>() {
            return error.is_damage();
        }
        source.downcast_ref::<kvm::StartError>().is_some_and(kvm::StartError::is_of_snapshot)
            || source.downcast_ref::<emulator::StartError>().is_some_and(emulator::StartError::is_of_snapshot)
    }

    /// Whether the host lacks something that the machine was to have of it.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        let Some(source) = self.source.as_deref() else { return false };
        let kvm = source.downcast_ref().is_some_and(kvm::StartError::is_refusal);
        kvm || source.downcast_ref().is_some_and(emulator::StartError::is_refusal)
    }
}

/// A started machine, whichever backend runs it.
pub trait Running: Send {
    /// Guest RAM. Valid also after the machine has ended.
    fn ram(&self) -> &Ram;

    /// Readable while an event waits; for the event loop (level triggered).
    fn event_fd(&self) -> BorrowedFd<'_>;

    /// The next event, without blocking.
    fn next_event(&mut self) -> Option<Event>;

    /// Freezes the machine; returns when every vCPU has stopped. Idempotent.
    fn pause(&mut self) -> Result<(), MachineError>;

    /// Lets a frozen machine go on. Idempotent.
    fn resume(&mut self) -> Result<(), MachineError>;

    /// The registers of all vCPUs of a frozen machine, by number.
    fn registers(&mut self) -> Result<Vec<VcpuRegisters>, MachineError>;

    /// Watches these places of a frozen machine for writes, and no others: each write freezes it.
    fn watch(&mut self, places: &[WatchPoint]) -> Result<(), MachineError>;

    /// Everything about a frozen machine that is not in its RAM, in the backend's own form.
    fn device_state(&mut self) -> Result<Vec<u8>, MachineError>;

    /// What was done to start it, and when; told once.
    fn stations(&mut self) -> Vec<(&'static str, Instant)> {
        Vec::new()
    }

    /// What was counted for each vCPU; told once, after the machine has ended.
    fn statistics(&mut self) -> Vec<VcpuStatistics> {
        Vec::new()
    }

    /// Ends the machine now and waits until nothing of it runs. Idempotent.
    fn kill(&mut self);
}

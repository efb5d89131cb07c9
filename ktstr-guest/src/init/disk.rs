//! The machine's disk: waited for, and mounted when it has a file system.

use std::{
    io,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use ktstr_proto::device::{DISK_DEVICE, DISK_MOUNT, DiskConfig};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
};

/// How long the kernel may take to find the disk, guest time. It is there when its module is loaded;
/// a module that finds its devices later has this long.
const LIMIT: Duration = Duration::from_secs(30);

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The kernel has not found it.
    #[error("{DISK_DEVICE} did not appear in {} s: does the kernel have virtio_blk?", LIMIT.as_secs())]
    Absent,
    /// There is no place to mount it.
    #[error("cannot create {DISK_MOUNT}")]
    Directory(#[source] io::Error),
    /// The kernel refuses its file system.
    #[error("cannot mount the {kind} of {DISK_DEVICE} on {DISK_MOUNT}")]
    Mount {
        /// The file system.
        kind: &'static str,
        /// The system's reason.
        #[source]
        source: Errno,
    },
}

/// Returns when the test can use it.
pub fn set_up(disk: &DiskConfig) -> Result<(), DiskError> {
    let begun = Instant::now();
    while !Path::new(DISK_DEVICE).exists() {
        if begun.elapsed() > LIMIT {
            return Err(DiskError::Absent);
        }
        sleep(Duration::from_millis(5));
    }
    let Some(kind) = disk.filesystem.kind().filter(|_| disk.is_mounted()) else { return Ok(()) };
    std::fs::create_dir_all(DISK_MOUNT).map_err(DiskError::Directory)?;
    let flags = if disk.read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    mount(Some(DISK_DEVICE), DISK_MOUNT, Some(kind), flags, None::<&str>)
        .map_err(|source| DiskError::Mount { kind, source })
}

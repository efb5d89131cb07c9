//! The file systems a test expects to find.

use std::{io, os::unix::fs::symlink, path::Path};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
};

/// Why a file system is not there.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The directory cannot be made.
    #[error("cannot create {target}")]
    Directory {
        /// Where.
        target: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel refuses.
    #[error("cannot mount {kind} on {target}")]
    Mount {
        /// File system type.
        kind: &'static str,
        /// Where.
        target: &'static str,
        /// The system's reason.
        #[source]
        source: Errno,
    },
}

/// Type, place and options; the order matters, since later ones lie inside earlier ones.
type Entry = (&'static str, &'static str, Option<&'static str>);

/// Without these no test can run.
const REQUIRED: [Entry; 7] = [
    ("proc", "/proc", None),
    ("sysfs", "/sys", None),
    ("devtmpfs", "/dev", None),
    ("tmpfs", "/tmp", Some("mode=1777")),
    ("tmpfs", "/run", Some("mode=755")),
    ("tmpfs", "/dev/shm", Some("mode=1777")),
    ("cgroup2", "/sys/fs/cgroup", None),
];

/// Some schedulers and shells want these.
const OPTIONAL: [Entry; 4] = [
    ("devpts", "/dev/pts", Some("mode=620,ptmxmode=666")),
    ("bpf", "/sys/fs/bpf", None),
    ("debugfs", "/sys/kernel/debug", None),
    ("tracefs", "/sys/kernel/tracing", None),
];

/// Links every Unix program takes for granted.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts what is required; already mounted is fine.
pub fn mount_required() -> Result<(), MountError> {
    REQUIRED.iter().try_for_each(mount_one)
}

/// Mounts what is optional; returns what is missing.
pub fn mount_optional() -> Vec<MountError> {
    for (original, link) in LINKS {
        // Present or not needed: whoever wants it says so better.
        let _ = symlink(original, link);
    }
    OPTIONAL.iter().filter_map(|entry| mount_one(entry).err()).collect()
}

fn mount_one((kind, target, options): &Entry) -> Result<(), MountError> {
    if !Path::new(target).is_dir() {
        std::fs::create_dir_all(target).map_err(|source| MountError::Directory { target, source })?;
    }
    match mount(Some(*kind), *target, Some(*kind), MsFlags::empty(), *options) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(source) => Err(MountError::Mount { kind, target, source }),
    }
}

//! What a jailed process keeps, as plain values. Nothing here touches the system; `plan.rs` turns it
//! into steps.

use std::path::{Path, PathBuf};

use crate::Role;

/// Everything that is decided about a jail before it is entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JailSpec {
    /// Whose filter applies.
    pub role: Role,
    /// By whose leave it gets namespaces of its own.
    pub namespaces: Namespaces,
    /// What the otherwise empty, read-only root shows. In order: a directory before what lies in it.
    pub mounts: Vec<Mount>,
    /// Resource limits, lowered for good.
    pub limits: Limits,
}

/// By whose leave a jail has namespaces, and with them a root of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// Those of a new user namespace: works without privilege, and takes privilege away from root.
    OfNewUser,
    /// Privilege: needs `CAP_SYS_ADMIN`, for hosts that forbid user namespaces even to root.
    OfRoot,
    /// None, for hosts that allow neither, where somebody asked for that: Landlock and the filter remain, and
    /// the processes and mounts of the host can be told from what they answer.
    Forgone,
}

/// One thing of the host that the jail shows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mount {
    /// A file or a directory tree under its own path; read-only, no devices, no set-user-ID.
    ReadOnly(PathBuf),
    /// A symbolic link at the first path with the second as its content.
    Link(PathBuf, PathBuf),
    /// A device node such as `/dev/null`, under its own path.
    Device(PathBuf),
    /// `/proc/self/fd` of the jailed process and nothing else of procfs.
    OwnDescriptors,
}

/// Resource limits, in the units of `setrlimit(2)`. Core dumps are always off: they would hold guest
/// memory. So are locked memory and message queues, which nobody needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// One more than the highest descriptor number it can obtain.
    pub open_files: u64,
    /// How far into a file it can write, bytes.
    pub file_size: Option<u64>,
}

impl JailSpec {
    /// The jail of the process that owns the machine. Nothing of the host is visible.
    #[must_use]
    pub fn vmm() -> Self {
        // Two for each of 512 vCPUs, and the rest.
        Self::empty(Role::Vmm, 4096)
    }

    /// The jail of the process that reads guest memory. Nothing of the host is visible.
    #[must_use]
    pub fn monitor() -> Self {
        Self::empty(Role::Monitor, 256)
    }

    /// The jail of the process that serves disks and networks. Nothing of the host is visible.
    #[must_use]
    pub fn device() -> Self {
        Self::empty(Role::Device, 128)
    }

    /// The jail of an emulator: its executable's libraries, its firmware, its own descriptors.
    ///
    /// `data` are directories or files it reads beside the system's library directories.
    #[must_use]
    pub fn emulator(data: &[&Path]) -> Self {
        let mut spec = Self::empty(Role::Emulator, 256);
        spec.mounts = library_mounts();
        let present = data.iter().filter(|path| path.exists());
        spec.mounts.extend(present.map(|path| Mount::ReadOnly(path.to_path_buf())));
        spec.mounts.push(Mount::OwnDescriptors);
        spec
    }

    /// The same with other namespaces, or none.
    #[must_use]
    pub fn with_namespaces(self, namespaces: Namespaces) -> Self {
        Self { namespaces, ..self }
    }

    /// That of one whose machine has networks: it connects to their servers.
    #[must_use]
    pub fn with_networks(self) -> Self {
        Self { role: Role::EmulatorWithNetworks, ..self }
    }

    /// That of one who makes no file larger.
    #[must_use]
    pub fn with_files_of(self, bytes: u64) -> Self {
        Self { limits: Limits { file_size: Some(bytes), ..self.limits }, ..self }
    }

    fn empty(role: Role, open_files: u64) -> Self {
        Self {
            role,
            namespaces: Namespaces::OfNewUser,
            mounts: Vec::new(),
            limits: Limits { open_files, file_size: None },
        }
    }
}

/// Where a dynamic loader looks, as this host lays it out: `/lib` may be a link to `/usr/lib`.
fn library_mounts() -> Vec<Mount> {
    let mut mounts = Vec::new();
    for directory in ["/usr/lib", "/usr/lib64", "/usr/lib32", "/lib", "/lib64", "/nix/store"] {
        let path = Path::new(directory);
        match std::fs::read_link(path) {
            Ok(target) => mounts.push(Mount::Link(path.to_path_buf(), target)),
            Err(_) if path.is_dir() => mounts.push(Mount::ReadOnly(path.to_path_buf())),
            Err(_) => {}
        }
    }
    let cache = Path::new("/etc/ld.so.cache");
    if cache.is_file() {
        mounts.push(Mount::ReadOnly(cache.to_path_buf()));
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vmm_and_monitor_see_nothing() {
        assert!(JailSpec::vmm().mounts.is_empty());
        assert!(JailSpec::monitor().mounts.is_empty());
        assert!(JailSpec::device().mounts.is_empty());
    }

    #[test]
    fn emulator_sees_libraries_existing_data_and_its_descriptors() {
        let spec = JailSpec::emulator(&[Path::new("/proc/version"), Path::new("/no/such/firmware")]);
        assert!(spec.mounts.contains(&Mount::ReadOnly("/usr/lib".into())));
        assert!(spec.mounts.contains(&Mount::ReadOnly("/proc/version".into())));
        assert!(!spec.mounts.contains(&Mount::ReadOnly("/no/such/firmware".into())));
        assert_eq!(spec.mounts.last(), Some(&Mount::OwnDescriptors));
    }
}

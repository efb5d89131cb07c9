//! Disks and networks of a machine: what is asked for, and what the orchestrator tells the process
//! that serves them.
//!
//! A device's memory and queues are set up between that process and whoever runs the vCPUs, over a
//! socket that speaks vhost-user; none of it passes here.

use serde::{Deserialize, Serialize};

use crate::link::{FdSlot, Link, calls};

/// Networks of one machine at most.
pub const MAX_NETWORKS: usize = 4;
/// Pairs of queues of one network at most.
pub const MAX_QUEUE_PAIRS: u16 = 8;
/// Capacity of a disk at most, MiB.
pub const MAX_DISK_MIB: u32 = 1 << 20;
/// Where a disk with a file system is mounted in the guest.
pub const DISK_MOUNT: &str = "/mnt/disk0";
/// The disk in the guest.
pub const DISK_DEVICE: &str = "/dev/vda";

/// What is on a disk when the machine starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Filesystem {
    /// Nothing: it reads as zeros.
    #[default]
    Raw,
    /// An empty btrfs, made once on the host by `mkfs.btrfs`.
    Btrfs,
    /// An empty ext4, made once on the host by `mkfs.ext4`.
    Ext4,
}

impl Filesystem {
    /// As `mount(8)` names it; nothing for a raw disk.
    #[must_use]
    pub const fn kind(self) -> Option<&'static str> {
        match self {
            Self::Raw => None,
            Self::Btrfs => Some("btrfs"),
            Self::Ext4 => Some("ext4"),
        }
    }
}

/// How much a disk does in a second. Nothing said is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Throttle {
    /// Requests per second.
    pub iops: Option<u32>,
    /// Bytes per second, of reads and writes together.
    pub bytes_per_sec: Option<u64>,
}

/// A disk: `/dev/vda`. Made as a constant: `DiskConfig::new().capacity_mib(64).iops(200)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// Size in MiB.
    pub capacity_mib: u32,
    /// What is on it.
    pub filesystem: Filesystem,
    /// How fast it is.
    pub throttle: Throttle,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// Whether a file system is not mounted by itself.
    pub no_auto_mount: bool,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl DiskConfig {
    /// 256 MiB of zeros, unthrottled, writable.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            capacity_mib: 256,
            filesystem: Filesystem::Raw,
            throttle: Throttle { iops: None, bytes_per_sec: None },
            read_only: false,
            no_auto_mount: false,
        }
    }

    /// Sets its size, MiB.
    #[must_use]
    pub const fn capacity_mib(mut self, mib: u32) -> Self {
        self.capacity_mib = mib;
        self
    }

    /// Sets what is on it.
    #[must_use]
    pub const fn filesystem(mut self, filesystem: Filesystem) -> Self {
        self.filesystem = filesystem;
        self
    }

    /// Limits the requests per second.
    #[must_use]
    pub const fn iops(mut self, iops: u32) -> Self {
        self.throttle.iops = Some(iops);
        self
    }

    /// Limits the bytes per second.
    #[must_use]
    pub const fn bytes_per_sec(mut self, bytes: u64) -> Self {
        self.throttle.bytes_per_sec = Some(bytes);
        self
    }

    /// Makes it one that the guest cannot write.
    #[must_use]
    pub const fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Leaves its file system unmounted.
    #[must_use]
    pub const fn no_auto_mount(mut self) -> Self {
        self.no_auto_mount = true;
        self
    }

    /// Why it cannot be made, if it cannot. Constant, so that a test with such a disk does not compile.
    #[must_use]
    pub const fn objection(&self) -> Option<&'static str> {
        let least = match self.filesystem {
            Filesystem::Raw => 1,
            Filesystem::Ext4 => 8,
            Filesystem::Btrfs => 128,
        };
        if self.capacity_mib == 0 {
            return Some("a disk of 0 MiB holds nothing");
        }
        if self.capacity_mib > MAX_DISK_MIB {
            return Some("a disk has at most 1048576 MiB");
        }
        if self.capacity_mib < least {
            return Some("the disk is too small for its file system: ext4 needs 8 MiB, btrfs 128 MiB");
        }
        if matches!(self.throttle.iops, Some(0)) || matches!(self.throttle.bytes_per_sec, Some(0)) {
            return Some("a disk throttled to 0 never completes a request");
        }
        None
    }

    /// Its size in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        (self.capacity_mib as u64) << 20
    }

    /// Whether the guest finds it mounted.
    #[must_use]
    pub const fn is_mounted(&self) -> bool {
        !self.no_auto_mount && !matches!(self.filesystem, Filesystem::Raw)
    }
}

/// What is wrong with a disk that is described by a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` describes no disk: {reason}")]
pub struct NoDisk {
    /// The part that is wrong.
    pub word: String,
    /// Why.
    pub reason: &'static str,
}

/// `64,fs=ext4,iops=200,bytes=1048576,ro,nomount`: MiB first, the rest in any order.
impl std::str::FromStr for DiskConfig {
    type Err = NoDisk;

    fn from_str(text: &str) -> Result<Self, NoDisk> {
        let wrong = |word: &str, reason| NoDisk { word: word.to_owned(), reason };
        let mut words = text.split(',');
        let size = words.next().unwrap_or_default();
        let mib = size.parse().map_err(|_| wrong(size, "its size in MiB comes first"))?;
        let mut disk = Self::new().capacity_mib(mib);
        for word in words {
            let number =
                |value: &str| value.parse::<u64>().map_err(|_| wrong(word, "it needs a whole number"));
            disk = match word.split_once('=') {
                None if word == "ro" => disk.read_only(),
                None if word == "nomount" => disk.no_auto_mount(),
                Some(("fs", "raw")) => disk.filesystem(Filesystem::Raw),
                Some(("fs", "ext4")) => disk.filesystem(Filesystem::Ext4),
                Some(("fs", "btrfs")) => disk.filesystem(Filesystem::Btrfs),
                Some(("fs", _)) => return Err(wrong(word, "a file system is raw, ext4 or btrfs")),
                Some(("iops", value)) => {
                    let iops = u32::try_from(number(value)?);
                    disk.iops(iops.map_err(|_| wrong(word, "it must be below 2^32"))?)
                }
                Some(("bytes", value)) => disk.bytes_per_sec(number(value)?),
                _ => return Err(wrong(word, "choose among fs=, iops=, bytes=, ro, nomount")),
            };
        }
        disk.objection().map_or(Ok(disk), |reason| Err(wrong(text, reason)))
    }
}

/// A network interface. What the guest sends comes back to the interface itself and to no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// Its address.
    pub mac: [u8; 6],
    /// Pairs of queues.
    pub queue_pairs: u16,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl NetConfig {
    /// One pair of queues, `52:54:00:6b:74:01`.
    #[must_use]
    pub const fn new() -> Self {
        Self { mac: [0x52, 0x54, 0x00, 0x6b, 0x74, 0x01], queue_pairs: 1 }
    }

    /// Sets its address.
    #[must_use]
    pub const fn mac(mut self, mac: [u8; 6]) -> Self {
        self.mac = mac;
        self
    }

    /// Sets how many pairs of queues it has.
    #[must_use]
    pub const fn queue_pairs(mut self, pairs: u16) -> Self {
        self.queue_pairs = pairs;
        self
    }

    /// Why it cannot be made, if it cannot.
    #[must_use]
    pub const fn objection(&self) -> Option<&'static str> {
        if self.queue_pairs == 0 || self.queue_pairs > MAX_QUEUE_PAIRS {
            return Some("a network has 1 to 8 pairs of queues");
        }
        if self.mac[0] & 1 != 0 {
            return Some("the address of a network is a group address: its first byte must be even");
        }
        if self.mac[0] & 2 == 0 {
            return Some("the address of a network must be a local one: bit 1 of its first byte set");
        }
        None
    }
}

/// The link itself; the orchestrator asks, the device process serves.
#[derive(Debug)]
pub struct DeviceLink;

impl Link for DeviceLink {
    const ID: u8 = 4;
    const NAME: &'static str = "orchestrator-device";
    type Request = DeviceRequest;
    type Reply = DeviceReply;
    type Event = DeviceEvent;
}

calls! {
    /// What the orchestrator asks of a device process. One machine's devices per process.
    DeviceLink: DeviceRequest => DeviceReply {
        /// Serve these devices until the machine is gone.
        Serve => Serving,
    }
}

/// See [`DeviceRequest::Serve`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serve {
    /// The disk.
    pub disk: Option<ServeDisk>,
    /// The networks, in the order of their interfaces.
    pub networks: Vec<ServeNetwork>,
}

/// A disk to be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeDisk {
    /// Its content: a regular file of its size, this machine's alone.
    pub image: FdSlot,
    /// A listening socket with the one connection of its user waiting.
    pub listener: FdSlot,
    /// What was asked for.
    pub config: DiskConfig,
}

/// A network to be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeNetwork {
    /// A listening socket that its one user connects to.
    pub listener: FdSlot,
    /// A listening socket of the process itself, with one connection waiting.
    pub inner: FdSlot,
    /// That connection.
    pub link: FdSlot,
    /// What was asked for.
    pub config: NetConfig,
}

/// The devices answer their users; the process is confined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving;

/// What a device process tells unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceEvent {
    /// The guest broke a device's rules; that device does nothing more.
    Broken {
        /// Which device.
        device: String,
        /// What the guest did.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_described_by_words() {
        let disk: DiskConfig = "64,ro,fs=ext4,iops=200,bytes=1048576".parse().unwrap();
        let expected = DiskConfig::new().capacity_mib(64).filesystem(Filesystem::Ext4).read_only();
        assert_eq!(disk, expected.iops(200).bytes_per_sec(1 << 20));
        for (text, word) in [
            ("", "comes first"),
            ("64,fs=xfs", "raw, ext4 or btrfs"),
            ("64,rw", "choose among"),
            ("0", "0 MiB"),
        ] {
            let error = text.parse::<DiskConfig>().unwrap_err();
            assert!(error.to_string().contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn impossible_devices_are_objected_to() {
        const BTRFS: DiskConfig = DiskConfig::new().filesystem(Filesystem::Btrfs);
        assert_eq!(BTRFS.objection(), None);
        assert!(BTRFS.is_mounted() && !BTRFS.no_auto_mount().is_mounted() && !DiskConfig::new().is_mounted());
        for (disk, word) in [
            (DiskConfig::new().capacity_mib(0), "0 MiB"),
            (BTRFS.capacity_mib(64), "too small"),
            (DiskConfig::new().iops(0), "throttled to 0"),
            (DiskConfig::new().bytes_per_sec(0), "throttled to 0"),
            (DiskConfig::new().capacity_mib(u32::MAX), "at most"),
        ] {
            assert!(disk.objection().is_some_and(|why| why.contains(word)), "{disk:?}");
        }
        assert_eq!(NetConfig::new().objection(), None);
        for (network, word) in [
            (NetConfig::new().queue_pairs(0), "1 to 8"),
            (NetConfig::new().mac([0x53, 0, 0, 0, 0, 1]), "group"),
            (NetConfig::new().mac([0x50, 0, 0, 0, 0, 1]), "local"),
        ] {
            assert!(network.objection().is_some_and(|why| why.contains(word)), "{network:?}");
        }
    }
}

//! The front of a device that another process serves over vhost-user: what the guest does to the registers
//! is passed on, and then queues and interrupts pass this process by.
//!
//! The guest's doorbell is the server's kick and the server's call is the interrupt line, both descriptors
//! that KVM connects. The server is believed no more than a guest: what it answers is checked, and an answer
//! that does not come in time (the socket has a limit) is a device that asks for a reset. Next:
//! `crate::device` is the other side.

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use ktstr_proto::device::NetConfig;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::virtio::F_VERSION_1;
use crate::kvm::memory::GuestRam;

/// Descriptors of each queue.
pub const QUEUE_SIZE: u16 = 256;
/// Virtio device ids (Virtual I/O Device specification 1.2, section 5).
pub const NET: u32 = 1;
/// See [`NET`].
pub const BLOCK: u32 = 2;
/// `struct virtio_blk_config`, as far as ours goes.
const BLOCK_CONFIG: u32 = 60;

const F_PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
/// Features that any device may have: indirect descriptors, event indices.
const COMMON: u64 = 1 << 28 | 1 << 29;
/// Those of a disk: size and number of segments, read-only, block size, flush, discard, write zeroes.
const OF_BLOCK: u64 = 1 << 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 13 | 1 << 14;
/// Those of an interface: address, link status.
const OF_NET: u64 = 1 << 5 | 1 << 16;
/// Those of one with several pairs of queues: the control queue, the pairs.
const OF_PAIRS: u64 = 1 << 17 | 1 << 22;

/// Why a device has no front.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The conversation failed.
    #[error("{action} the device's server")]
    Talk {
        /// What was tried, up to the words for whom.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: vhost::Error,
    },
    /// It does not speak what is needed.
    #[error("the device's server lacks {what}")]
    Lacks {
        /// What it lacks.
        what: &'static str,
    },
    /// Descriptors for it could not be made.
    #[error("make the descriptors of a device's queues")]
    Descriptors(#[source] std::io::Error),
    /// A ring lies outside of RAM.
    #[error("queue {queue} lies outside of guest RAM")]
    Ring {
        /// Which.
        queue: usize,
    },
}

fn talk(action: &'static str) -> impl FnOnce(vhost::Error) -> RemoteError {
    move |source| RemoteError::Talk { action, source }
}

/// A server and the queues it works on.
pub struct Remote {
    frontend: Frontend,
    kicks: Vec<EventFd>,
    call: EventFd,
    memfd: OwnedFd,
    /// What the guest may choose from.
    pub features: u64,
    /// Virtio device id.
    pub id: u32,
    /// What the guest reads as configuration.
    pub config: Vec<u8>,
    /// Pairs of queues of an interface that has several, and then a control queue, which the server has not.
    pub pairs: Option<u16>,
    running: bool,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("id", &self.id).field("running", &self.running).finish_non_exhaustive()
    }
}

impl Remote {
    /// Introduces itself to the server of a disk.
    pub fn disk(socket: UnixStream, call: EventFd, memfd: OwnedFd) -> Result<Self, RemoteError> {
        let mut remote = Self::connect(socket, BLOCK, 1, OF_BLOCK, call, memfd)?;
        let empty = [0; BLOCK_CONFIG as usize];
        let read = remote.frontend.get_config(0, BLOCK_CONFIG, VhostUserConfigFlags::empty(), &empty);
        remote.config = read.map_err(talk("read the configuration from"))?.1;
        Ok(remote)
    }

    /// Introduces itself to the server of a network.
    pub fn network(
        socket: UnixStream,
        config: &NetConfig,
        call: EventFd,
        memfd: OwnedFd,
    ) -> Result<Self, RemoteError> {
        let pairs = config.queue_pairs;
        let several = pairs > 1;
        let known = if several { OF_NET | OF_PAIRS } else { OF_NET };
        let mut remote = Self::connect(socket, NET, 2 * usize::from(pairs), known, call, memfd)?;
        if several && remote.features & OF_PAIRS != OF_PAIRS {
            return Err(RemoteError::Lacks { what: "several pairs of queues" });
        }
        remote.pairs = several.then_some(pairs);
        // The link is up.
        remote.config = config.mac.into_iter().chain([1, 0]).chain(pairs.to_le_bytes()).collect();
        Ok(remote)
    }

    fn connect(
        socket: UnixStream,
        id: u32,
        queues: usize,
        known: u64,
        call: EventFd,
        memfd: OwnedFd,
    ) -> Result<Self, RemoteError> {
        let mut frontend = Frontend::from_stream(socket, queues as u64);
        frontend.set_owner().map_err(talk("own"))?;
        let offered = frontend.get_features().map_err(talk("ask the features of"))?;
        if offered & (F_PROTOCOL | F_VERSION_1) != F_PROTOCOL | F_VERSION_1 {
            return Err(RemoteError::Lacks { what: "virtio 1 with protocol features" });
        }
        let wanted = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK;
        let spoken = frontend.get_protocol_features().map_err(talk("ask the protocol of"))?;
        frontend.set_protocol_features(spoken & wanted).map_err(talk("agree on a protocol with"))?;
        if spoken.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let kick = |_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let kicks = (0..queues).map(kick).collect::<Result<_, _>>().map_err(RemoteError::Descriptors)?;
        let features = offered & (known | COMMON);
        Ok(Self {
            frontend,
            kicks,
            call,
            memfd,
            features,
            id,
            config: Vec::new(),
            pairs: None,
            running: false,
        })
    }

    /// Whether a driver may have just these: a control queue is there for pairs alone, and behind all of them.
    pub fn accepts(&self, features: u64) -> bool {
        features & OF_PAIRS == 0 || features & OF_PAIRS == OF_PAIRS
    }

    /// Where the control queue is for a driver that has accepted `features`.
    pub fn control(&self, features: u64) -> Option<usize> {
        self.pairs.filter(|_| features & OF_PAIRS == OF_PAIRS).map(|pairs| 2 * usize::from(pairs))
    }

    /// One per queue of the server, to be rung by the guest.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// The driver is up: the server gets the memory and the queues.
    pub fn start(&mut self, ram: &GuestRam, queues: &[Queue], features: u64) -> Result<(), RemoteError> {
        let host = |gpa: u64| ram.memory.get_host_address(GuestAddress(gpa)).ok().map(|at| at as u64);
        self.frontend.set_features(features | F_PROTOCOL).map_err(talk("agree on features with"))?;
        let mut regions = Vec::new();
        for region in &ram.regions {
            let userspace_addr = host(region.gpa.0).expect("every region of guest RAM is mapped");
            regions.push(VhostUserMemoryRegionInfo {
                guest_phys_addr: region.gpa.0,
                memory_size: region.len,
                userspace_addr,
                mmap_offset: region.file_offset,
                mmap_handle: self.memfd.as_raw_fd(),
            });
        }
        self.frontend.set_mem_table(&regions).map_err(talk("give guest RAM to"))?;
        let control = self.control(features);
        let served = queues.iter().enumerate().filter(|(index, _)| Some(*index) != control);
        for (index, queue) in served.filter(|(_, queue)| queue.ready()) {
            let outside = RemoteError::Ring { queue: index };
            let places = [queue.desc_table(), queue.used_ring(), queue.avail_ring()].map(host);
            let ([Some(desc), Some(used), Some(avail)], true) = (places, queue.is_valid(&ram.memory)) else {
                return Err(outside);
            };
            let config = VringConfigData {
                queue_max_size: queue.max_size(),
                queue_size: queue.size(),
                flags: 0,
                desc_table_addr: desc,
                used_ring_addr: used,
                avail_ring_addr: avail,
                log_addr: None,
            };
            self.frontend.set_vring_num(index, queue.size()).map_err(talk("size a queue of"))?;
            self.frontend.set_vring_addr(index, &config).map_err(talk("place a queue of"))?;
            self.frontend.set_vring_base(index, 0).map_err(talk("begin a queue of"))?;
            self.frontend.set_vring_call(index, &self.call).map_err(talk("give the interrupt to"))?;
            let kick = self.kicks.get(index).ok_or(outside)?;
            self.frontend.set_vring_kick(index, kick).map_err(talk("give the doorbell to"))?;
            self.frontend.set_vring_enable(index, true).map_err(talk("start a queue of"))?;
        }
        self.running = true;
        Ok(())
    }

    /// The driver has reset the device: the server lets go of its queues.
    pub fn stop(&mut self) {
        if std::mem::take(&mut self.running) {
            for queue in 0..self.kicks.len() {
                // A server that is gone holds no queue either.
                let _ = self.frontend.get_vring_base(queue);
            }
        }
    }

    /// The guest rang where KVM did not hear it.
    pub fn kick(&self, queue: u32) {
        if let Some(kick) = self.kicks.get(queue as usize) {
            // Fails only when the counter is full: then the server has been told.
            let _ = kick.write(1);
        }
    }
}

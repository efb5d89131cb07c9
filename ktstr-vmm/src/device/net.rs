//! A network whose only station is the guest: what an interface sends comes back to it (Virtual I/O
//! Device specification 1.2, section 5.1).
//!
//! Each pair of queues is a loop of its own, so that traffic of several CPUs stays apart. A frame that
//! finds no buffer is dropped, as on any wire; nothing is kept, so nothing grows. The header before a
//! frame is not believed: what comes back carries one of ours.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ktstr_proto::device::NetConfig;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VringRwLock, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::queues::{Faults, QUEUE_SIZE, complete, take, transport_features};

/// Length of the header before each frame, bytes.
const HEADER: u64 = 12;
/// The longest frame, bytes: a jumbo one with its tag.
const LONGEST: u64 = 9018 + 4;
/// The shortest: both addresses and the type.
const SHORTEST: u64 = 14;

const F_MAC: u64 = 1 << 5;
const F_STATUS: u64 = 1 << 16;
const F_CTRL_VQ: u64 = 1 << 17;
const F_MQ: u64 = 1 << 22;

/// An interface with its queues: an even one to receive, the odd one behind it to send.
pub struct Net {
    name: String,
    config: NetConfig,
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
    broken: AtomicBool,
    faults: Arc<Faults>,
    /// Held while a frame is on its way: who stops a queue waits for that.
    serving: Mutex<()>,
}

impl Net {
    /// An interface that is `name` in reports.
    #[must_use]
    pub fn new(
        name: String,
        config: NetConfig,
        memory: GuestMemoryAtomic<GuestMemoryMmap>,
        faults: Arc<Faults>,
    ) -> Net {
        Net { name, config, memory, broken: AtomicBool::new(false), faults, serving: Mutex::default() }
    }

    /// Sends what waits in `sending`, back into `receiving`.
    fn drain(&self, sending: &VringRwLock, receiving: &VringRwLock) -> Result<(), String> {
        loop {
            sending.disable_notification().map_err(|e| e.to_string())?;
            while self.send_one(sending, receiving)? {}
            let ready = sending.get_ref().get_queue().ready();
            if !ready || !sending.enable_notification().map_err(|e| e.to_string())? {
                return Ok(());
            }
        }
    }

    fn send_one(&self, sending: &VringRwLock, receiving: &VringRwLock) -> Result<bool, String> {
        let _serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = self.memory.memory();
        let Some((head, request)) = take(sending, &memory)? else { return Ok(false) };
        let len = request.readable.len();
        let frame = len.checked_sub(HEADER).filter(|frame| (SHORTEST..=LONGEST).contains(frame));
        if frame.is_some() {
            let mut bytes = vec![0; len as usize];
            request.readable.read(&memory, "frame", 0, &mut bytes).map_err(|e| e.to_string())?;
            bytes[..HEADER as usize].fill(0);
            // How many buffers the frame takes.
            bytes[10] = 1;
            self.deliver(receiving, &bytes)?;
        }
        complete(sending, head, 0)?;
        Ok(true)
    }

    fn deliver(&self, receiving: &VringRwLock, bytes: &[u8]) -> Result<(), String> {
        let memory = self.memory.memory();
        let Some((head, request)) = take(receiving, &memory)? else { return Ok(()) };
        if request.writable.len() < bytes.len() as u64 {
            return complete(receiving, head, 0);
        }
        request.writable.write(&memory, "frame", 0, bytes).map_err(|e| e.to_string())?;
        complete(receiving, head, bytes.len() as u32)
    }
}

impl VhostUserBackend for Net {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        2 * usize::from(self.config.queue_pairs)
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        transport_features() | F_MAC | F_STATUS | F_CTRL_VQ | F_MQ
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn update_memory(&self, _memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        // The one given at the start is changed in place.
        Ok(())
    }

    fn stop_vring(&self, _queue: u32) -> io::Result<()> {
        // It is not ready any more, so no further frame touches it.
        drop(self.serving.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    fn handle_event(
        &self,
        event: u16,
        _ready: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        // New buffers to receive into need no answer: a frame that found none is gone.
        let pair = usize::from(event) & !1;
        if let Some([receiving, sending]) = vrings.get(pair..pair + 2)
            && event & 1 == 1
            && !self.broken.load(Ordering::Acquire)
            && let Err(reason) = self.drain(sending, receiving)
        {
            self.broken.store(true, Ordering::Release);
            self.faults.report(&self.name, reason);
        }
        // An error here would end the thread in silence.
        Ok(())
    }
}

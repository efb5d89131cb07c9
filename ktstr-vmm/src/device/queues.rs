//! A disk's queue: requests taken, throttled, carried out, completed.
//!
//! ```text
//! kick ──► take ──► pass? ──► serve ──► used, call
//!            ▲        │ no: put back, timer
//!            └────────┘
//! ```
//!
//! A guest that breaks the rules of a queue, not merely of a request, ends its device: it serves
//! nothing more and says so once.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ktstr_proto::device::{DeviceEvent, DiskConfig};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VringRwLock, VringT};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::block::Block;
use super::buffers::Request;
use super::throttle::Throttle;

/// Guest memory, held still.
pub(super) type Memory = GuestMemoryLoadGuard<GuestMemoryMmap>;

/// Virtio 1.0 and later.
const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const INDIRECT: u64 = 1 << 28;
/// That the protocol of vhost-user can be negotiated.
const PROTOCOL: u64 = 1 << 30;
/// The flush feature of a disk.
const BLK_FLUSH: u64 = 1 << 9;
/// Longest queue.
pub(super) const QUEUE_SIZE: usize = 256;

/// Feature bits that every device here has.
#[must_use]
pub fn transport_features() -> u64 {
    VERSION_1 | EVENT_IDX | INDIRECT | PROTOCOL
}

/// Where devices say that their guest has broken them.
#[derive(Debug)]
pub struct Faults {
    waiting: Mutex<Vec<DeviceEvent>>,
    bell: EventFd,
}

impl Faults {
    /// Nothing is broken yet.
    pub fn new() -> io::Result<Arc<Faults>> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Arc::new(Faults { waiting: Mutex::default(), bell }))
    }

    /// Notes one.
    pub fn report(&self, device: &str, reason: String) {
        let event = DeviceEvent::Broken { device: device.to_owned(), reason };
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        // It fails when the counter is full, and then the bell rings already.
        let _ = self.bell.write(1);
    }

    /// Readable when there is one.
    #[must_use]
    pub fn bell(&self) -> std::os::fd::BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Takes all.
    #[must_use]
    pub fn take(&self) -> Vec<DeviceEvent> {
        let _ = self.bell.read();
        std::mem::take(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A disk with its one queue.
pub struct Disk {
    block: Block,
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
    throttle: Mutex<Throttle>,
    timer: TimerFd,
    acked: AtomicU64,
    broken: AtomicBool,
    faults: Arc<Faults>,
    /// Held from taking a request to its completion: who stops the queue waits for that.
    serving: Mutex<()>,
}

/// What became of one look at the queue.
enum Step {
    Served,
    Empty,
    /// The throttle holds the next request; the timer runs.
    Held,
}

impl Disk {
    /// The event of the throttle's timer, above those of the queue and of the end.
    pub const TIMER: u64 = 2;

    /// A disk over `block`, as fast as `config` says.
    pub fn new(
        block: Block,
        config: &DiskConfig,
        memory: GuestMemoryAtomic<GuestMemoryMmap>,
        faults: Arc<Faults>,
    ) -> io::Result<Disk> {
        Ok(Disk {
            block,
            memory,
            throttle: Mutex::new(Throttle::new(config.throttle, Instant::now())),
            timer: TimerFd::new(
                ClockId::CLOCK_MONOTONIC,
                TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
            )?,
            acked: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            faults,
            serving: Mutex::default(),
        })
    }

    /// To be registered under [`Self::TIMER`].
    #[must_use]
    pub fn timer(&self) -> i32 {
        self.timer.as_fd().as_raw_fd()
    }

    fn hold(&self, wait: Duration) -> io::Result<()> {
        // Nothing would be armed by zero.
        let wait = wait.max(Duration::from_micros(1));
        Ok(self.timer.set(Expiration::OneShot(wait.into()), TimerSetTimeFlags::empty())?)
    }

    fn step(&self, vring: &VringRwLock) -> Result<Step, String> {
        let _serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = self.memory.memory();
        let (head, request) = {
            let mut state = vring.get_mut();
            let queue = state.get_queue_mut();
            if !queue.ready() {
                return Ok(Step::Empty);
            }
            let mut chains = queue.iter(memory.clone()).map_err(|e| e.to_string())?;
            let Some(chain) = chains.next() else { return Ok(Step::Empty) };
            let head = chain.head_index();
            let request = Request::gather(&memory, chain).map_err(|e| e.to_string())?;
            let mut throttle = self.throttle.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(wait) = throttle.pass(self.block.weight(&request), Instant::now()) {
                chains.go_to_previous_position();
                self.hold(wait).map_err(|e| format!("its timer cannot be set: {e}"))?;
                return Ok(Step::Held);
            }
            (head, request)
        };
        let write_through = self.acked.load(Ordering::Acquire) & BLK_FLUSH == 0;
        let given = self.block.serve(&memory, &request, write_through).map_err(|e| e.to_string())?;
        complete(vring, head, given)?;
        Ok(Step::Served)
    }

    fn drain(&self, vring: &VringRwLock) -> Result<(), String> {
        loop {
            vring.disable_notification().map_err(|e| e.to_string())?;
            loop {
                match self.step(vring)? {
                    Step::Served => {}
                    Step::Empty => break,
                    Step::Held => return Ok(()),
                }
            }
            if !vring.get_ref().get_queue().ready()
                || !vring.enable_notification().map_err(|e| e.to_string())?
            {
                return Ok(());
            }
        }
    }
}

/// The next request of a queue and its number, if there is one.
pub(super) fn take(vring: &VringRwLock, memory: &Memory) -> Result<Option<(u16, Request)>, String> {
    let mut state = vring.get_mut();
    let queue = state.get_queue_mut();
    if !queue.ready() {
        return Ok(None);
    }
    let mut chains = queue.iter(memory.clone()).map_err(|e| e.to_string())?;
    let Some(chain) = chains.next() else { return Ok(None) };
    let head = chain.head_index();
    let request = Request::gather(memory, chain).map_err(|e| e.to_string())?;
    Ok(Some((head, request)))
}

/// Hands a request back to the guest, which is called if it wants to be.
pub(super) fn complete(vring: &VringRwLock, head: u16, given: u32) -> Result<(), String> {
    vring.add_used(head, given).map_err(|e| e.to_string())?;
    if vring.needs_notification().map_err(|e| e.to_string())? {
        vring.signal_used_queue().map_err(|e| format!("the guest cannot be called: {e}"))?;
    }
    Ok(())
}

impl VhostUserBackend for Disk {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        transport_features() | self.block.features()
    }

    fn acked_features(&self, features: u64) {
        self.acked.store(features, Ordering::Release);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let space = self.block.config();
        // Of what is behind the end the guest reads zeros.
        (0..size)
            .map(|at| space.get((offset as usize).saturating_add(at as usize)).copied().unwrap_or(0))
            .collect()
    }

    fn update_memory(&self, _memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        // The one given at the start is changed in place.
        Ok(())
    }

    fn stop_vring(&self, _queue: u32) -> io::Result<()> {
        // The queue is not ready any more, so nothing is taken after what is being served.
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
        if u64::from(event) == Self::TIMER {
            // Whether it is still due is for the throttle to say.
            let _ = self.timer.wait();
        }
        if let Some(vring) = vrings.first()
            && !self.broken.load(Ordering::Acquire)
            && let Err(reason) = self.drain(vring)
        {
            self.broken.store(true, Ordering::Release);
            self.faults.report("the disk", reason);
        }
        // An error here would end the thread in silence.
        Ok(())
    }
}

//! The virtio-mmio transport (virtio 1.2, section 4.2, version 2 registers) and what a device must
//! bring to sit behind it.
//!
//! Registers are served on vCPU threads; queues are worked on the I/O thread, which a doorbell wakes.
//! Queue addresses and everything in the rings come from the guest and are checked on each use.
//! Next: `console` is a device of this process, `remote` the front of one that another serves.

use std::fmt;
use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::control;
use super::remote::{QUEUE_SIZE, Remote};
use super::serial::IrqLine;
use crate::kvm::memory::GuestRam;
use vm_superio::Trigger;

const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"KTST");
/// Register at which the guest rings the doorbell.
pub const QUEUE_NOTIFY: u64 = 0x50;
const CONFIG: u64 = 0x100;
/// Feature: virtio 1.x, not legacy.
pub const F_VERSION_1: u64 = 1 << 32;

/// Feature: indices at which the other side wants to hear.
const F_EVENT_IDX: u64 = 1 << 29;

const STATUS_FEATURES_OK: u32 = 8;
const STATUS_DRIVER_OK: u32 = 4;
const STATUS_NEEDS_RESET: u32 = 64;
const INTERRUPT_QUEUE: u32 = 1;
const INTERRUPT_CONFIG: u32 = 2;

/// What one kind of device is.
#[derive(Clone, Copy, Debug)]
pub struct DeviceKind {
    /// Virtio device id.
    pub id: u32,
    /// Features offered; [`F_VERSION_1`] is added.
    pub features: u64,
    /// Largest size of each queue.
    pub queues: &'static [u16],
    /// Device configuration space, read-only.
    pub config: &'static [u8],
}

/// One window: registers and queues.
pub struct MmioTransport {
    kind: DeviceKind,
    ram: Arc<GuestRam>,
    irq: IrqLine,
    doorbell: Arc<EventFd>,
    queues: Vec<Queue>,
    selected_queue: u32,
    selected_features: [u32; 2],
    driver_features: u64,
    status: u32,
    interrupts: u32,
    /// How often it was reset.
    life: u32,
    /// Serves the queues, if another process does.
    remote: Option<Remote>,
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("id", &self.id())
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// A device in reset. `doorbell` is signalled when the guest has something in a queue.
    pub fn new(
        kind: DeviceKind,
        ram: Arc<GuestRam>,
        irq: EventFd,
        doorbell: Arc<EventFd>,
    ) -> Result<Self, virtio_queue::Error> {
        let queues = kind.queues.iter().map(|size| Queue::new(*size)).collect::<Result<_, _>>()?;
        Ok(Self {
            kind,
            ram,
            irq: IrqLine(irq),
            doorbell,
            queues,
            selected_queue: 0,
            selected_features: [0; 2],
            driver_features: 0,
            status: 0,
            interrupts: 0,
            life: 0,
            remote: None,
        })
    }

    /// A device that another process serves, in reset.
    pub fn remote(remote: Remote, ram: Arc<GuestRam>, irq: EventFd) -> Result<Self, virtio_queue::Error> {
        const NOTHING: DeviceKind = DeviceKind { id: 0, features: 0, queues: &[], config: &[] };
        let count = remote.kicks().len() + usize::from(remote.pairs.is_some());
        let queues = (0..count).map(|_| Queue::new(QUEUE_SIZE)).collect::<Result<_, _>>()?;
        let unused = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let doorbell = Arc::new(unused.map_err(|_| virtio_queue::Error::QueueNotReady)?);
        let transport = Self::new(NOTHING, ram, irq, doorbell)?;
        Ok(Self { queues, remote: Some(remote), ..transport })
    }

    fn id(&self) -> u32 {
        self.remote.as_ref().map_or(self.kind.id, |remote| remote.id)
    }

    fn config(&self) -> &[u8] {
        self.remote.as_ref().map_or(self.kind.config, |remote| &remote.config)
    }

    /// Whether the driver took this feature.
    pub fn accepted(&self, feature: u64) -> bool {
        self.driver_features & feature != 0
    }

    /// Changes with every reset: what its server remembers of the driver is void then.
    pub fn life(&self) -> u32 {
        self.life
    }

    /// The queue and the memory it lies in, when the driver is up and has set it up soundly.
    pub fn queue(&mut self, index: usize) -> Option<(&mut Queue, &GuestRam)> {
        let up = self.status & STATUS_DRIVER_OK != 0 && self.status & STATUS_NEEDS_RESET == 0;
        let queue = self.queues.get_mut(index).filter(|q| up && q.ready() && q.is_valid(&self.ram.memory))?;
        Some((queue, &self.ram))
    }

    /// Tells the driver that buffers were used, if it wants to know.
    pub fn used(&mut self, index: usize) {
        let wanted = self.queues[index].needs_notification(&self.ram.memory).unwrap_or(true);
        if wanted {
            self.interrupt(INTERRUPT_QUEUE);
        }
    }

    /// The driver did something that cannot be served: ask it to reset the device.
    pub fn needs_reset(&mut self) {
        self.status |= STATUS_NEEDS_RESET;
        self.interrupt(INTERRUPT_CONFIG);
    }

    fn interrupt(&mut self, cause: u32) {
        self.interrupts |= cause;
        // Fails only when the counter is full: then the interrupt is pending anyway.
        let _ = self.irq.trigger();
    }

    fn features(&self) -> u64 {
        self.remote.as_ref().map_or(self.kind.features, |remote| remote.features) | F_VERSION_1
    }

    /// The guest reads a register.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(CONFIG) {
            for (index, byte) in data.iter_mut().enumerate() {
                *byte = self.config().get(at as usize + index).copied().unwrap_or(0);
            }
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            *word = self.register(offset).to_le_bytes();
        }
    }

    fn register(&self, offset: u64) -> u32 {
        let queue = self.queues.get(self.selected_queue as usize);
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.id(),
            0x0c => VENDOR,
            0x10 => match self.selected_features[0] {
                0 => self.features() as u32,
                1 => (self.features() >> 32) as u32,
                _ => 0,
            },
            0x34 => queue.map_or(0, |q| q.max_size().into()),
            0x44 => queue.is_some_and(QueueT::ready).into(),
            // A server interrupts without a word to this process, so each may be for its queues.
            0x60 => self.interrupts | if self.remote.is_some() { INTERRUPT_QUEUE } else { 0 },
            0x70 => self.status,
            // No shared memory regions: their length reads as all ones.
            0xb0 | 0xb4 => u32::MAX,
            _ => 0,
        }
    }

    /// The guest writes a register.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else { return };
        match offset {
            0x14 => self.selected_features[0] = value,
            0x24 => self.selected_features[1] = value,
            0x20 => self.accept_features(value),
            0x30 => self.selected_queue = value,
            QUEUE_NOTIFY => match &self.remote {
                Some(remote) if remote.control(self.driver_features) == Some(value as usize) => {
                    self.control()
                }
                Some(remote) => remote.kick(value),
                None => drop(self.doorbell.write(1)),
            },
            0x64 => self.interrupts &= !value,
            0x70 => self.set_status(value),
            _ => self.write_queue(offset, value),
        }
    }

    fn accept_features(&mut self, value: u32) {
        let shift = match self.selected_features[1] {
            0 => 0,
            1 => 32,
            _ => return,
        };
        self.driver_features = self.driver_features & !(0xffff_ffff << shift) | u64::from(value) << shift;
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.queues.get_mut(self.selected_queue as usize) else { return };
        match offset {
            0x38 => queue.set_size(u16::try_from(value).unwrap_or(0)),
            0x44 => queue.set_ready(value == 1),
            0x80 => queue.set_desc_table_address(Some(value), None),
            0x84 => queue.set_desc_table_address(None, Some(value)),
            0x90 => queue.set_avail_ring_address(Some(value), None),
            0x94 => queue.set_avail_ring_address(None, Some(value)),
            0xa0 => queue.set_used_ring_address(Some(value), None),
            0xa4 => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    /// The guest rang at the queue that its server does not have.
    fn control(&mut self) {
        let Some(remote) = &self.remote else { return };
        let (Some(index), Some(pairs)) = (remote.control(self.driver_features), remote.pairs) else { return };
        let with_events = self.driver_features & F_EVENT_IDX != 0;
        let Some((queue, ram)) = self.queue(index) else { return };
        queue.set_event_idx(with_events);
        match control::answer(queue, &ram.memory, pairs) {
            Ok(true) => self.used(index),
            Ok(false) => {}
            Err(_) => self.needs_reset(),
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            if let Some(remote) = &mut self.remote {
                remote.stop();
            }
            self.queues.iter_mut().for_each(QueueT::reset);
            self.driver_features = 0;
            self.interrupts = 0;
            self.life = self.life.wrapping_add(1);
            self.status = 0;
            return;
        }
        let acceptable = self.driver_features & !self.features() == 0
            && self.driver_features & F_VERSION_1 != 0
            && self.remote.as_ref().is_none_or(|remote| remote.accepts(self.driver_features));
        let was_up = self.status & STATUS_DRIVER_OK != 0;
        self.status = if acceptable { value } else { value & !STATUS_FEATURES_OK };
        if self.status & STATUS_DRIVER_OK == 0 {
            return;
        }
        match &mut self.remote {
            // What the driver queued before it was up.
            None => drop(self.doorbell.write(1)),
            Some(_) if was_up => {}
            Some(remote) => {
                if remote.start(&self.ram, &self.queues, self.driver_features).is_err() {
                    self.needs_reset();
                }
            }
        }
    }
}

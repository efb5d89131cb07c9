//! The devices of the machine and who answers which address.
//!
//! Unknown ports and addresses read as all ones and swallow writes, as on real hardware. Next:
//! `serial`, `power`, `virtio`, `control`.

pub mod console;
pub mod control;
pub mod ioapic;
pub mod power;
pub mod remote;
pub mod serial;
pub mod virtio;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;

use self::ioapic::Ioapic;
use self::serial::Uart;
use self::virtio::MmioTransport;
use super::port_ring::PortRing;
use super::x86_64::layout::{IOAPIC, VIRTIO_MMIO, VIRTIO_MMIO_SIZE};
use crate::machine::Exit;

/// First port of COM1; also its transmit register.
pub const COM1: u16 = 0x3f8;
/// First port of COM2; also its transmit register.
pub const COM2: u16 = 0x2f8;
const COM_PORTS: u16 = 8;

/// All devices of one machine.
#[derive(Debug)]
pub struct Devices {
    /// Kernel console.
    pub com1: Mutex<Uart>,
    /// Fallback channel.
    pub com2: Mutex<Uart>,
    /// The virtio-mmio windows in address order.
    pub virtio: Vec<Mutex<MmioTransport>>,
    /// The I/O APIC and the machine whose lines it routes, unless KVM has one itself.
    pub ioapic: Option<(Mutex<Ioapic>, Arc<VmFd>)>,
    /// Serial writes on their way here, where KVM collects them.
    pub port_ring: Option<Mutex<PortRing>>,
}

/// Locks a device; a panic elsewhere does not make its registers unusable.
pub fn lock<T>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Devices {
    fn uart(&self, port: u16) -> Option<(&Mutex<Uart>, u8)> {
        let within = |base: u16| port.checked_sub(base).filter(|offset| *offset < COM_PORTS).map(|o| o as u8);
        within(COM1).map(|o| (&self.com1, o)).or_else(|| within(COM2).map(|o| (&self.com2, o)))
    }

    /// Serves the writes that KVM has collected. Called before any exit is served.
    pub fn catch_up(&self) {
        if let Some(ring) = &self.port_ring {
            self.drain(&mut lock(ring));
        }
    }

    /// The same for a thread that has no exit to serve: does nothing while another is at it.
    pub fn catch_up_if_idle(&self) {
        if let Some(mut ring) = self.port_ring.as_ref().and_then(|ring| ring.try_lock().ok()) {
            self.drain(&mut ring);
        }
    }

    /// The ring stays locked until its bytes are with their devices, or they would change order.
    fn drain(&self, ring: &mut PortRing) {
        while let Some((port, byte)) = ring.pop() {
            if let Some((uart, offset)) = self.uart(port) {
                lock(uart).write(offset, byte);
            }
        }
    }

    /// The guest reads a port.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let [byte] = data {
            if let Some((uart, offset)) = self.uart(port) {
                *byte = lock(uart).read(offset);
            } else if let Some(value) = power::read(port) {
                *byte = value;
            }
        }
    }

    /// The guest writes a port; some writes end the machine.
    pub fn port_write(&self, port: u16, data: &[u8]) -> Option<Exit> {
        if let Some((uart, offset)) = self.uart(port) {
            let mut uart = lock(uart);
            // `rep outsb` arrives as several bytes for the same port.
            data.iter().for_each(|byte| uart.write(offset, *byte));
            return None;
        }
        power::write(port, *data.first()?)
    }

    fn window(&self, address: u64) -> Option<(&Mutex<MmioTransport>, u64)> {
        let offset = address.checked_sub(VIRTIO_MMIO)?;
        let device = self.virtio.get((offset / VIRTIO_MMIO_SIZE) as usize)?;
        Some((device, offset % VIRTIO_MMIO_SIZE))
    }

    /// The guest reads device memory.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.window(address) {
            lock(device).read(offset, data);
        } else if let Some((ioapic, _, offset)) = self.ioapic(address) {
            lock(ioapic).read(offset, data);
        }
    }

    fn ioapic(&self, address: u64) -> Option<(&Mutex<Ioapic>, &VmFd, u64)> {
        let offset = address.checked_sub(IOAPIC.into()).filter(|offset| *offset < ioapic::SIZE)?;
        let (ioapic, vm) = self.ioapic.as_ref()?;
        Some((ioapic, vm, offset))
    }

    /// The guest writes device memory. The machine ends if its interrupts cannot be routed as it says.
    pub fn mmio_write(&self, address: u64, data: &[u8]) -> Option<Exit> {
        if let Some((device, offset)) = self.window(address) {
            lock(device).write(offset, data);
        } else if let Some((ioapic, vm, offset)) = self.ioapic(address) {
            // Locked until KVM knows: the last writer's table is the one that holds.
            let mut ioapic = lock(ioapic);
            if ioapic.write(offset, data)
                && let Err(error) = vm.set_gsi_routing(&ioapic.routing()?)
            {
                let detail = format!("KVM refuses the routes of the interrupt lines: {error}");
                return Some(Exit::InternalError { detail });
            }
        }
        None
    }
}

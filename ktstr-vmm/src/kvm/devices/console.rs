//! virtio-console with one port (`hvc0`): the interactive shell.
//!
//! Both directions have back-pressure: guest output is taken from the queue only while there is room
//! for it, typed input is read only while the guest has offered a buffer. Runs on the I/O thread.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;

use virtio_queue::{QueueOwnedT, QueueT};

use super::lock;
use super::virtio::{DeviceKind, MmioTransport};
use crate::machine::ConsoleFds;

/// What the transport presents: columns, rows, ports and emergency write all zero.
pub const KIND: DeviceKind = DeviceKind { id: 3, features: 0, queues: &[64, 64], config: &[0; 12] };

const RX: usize = 0;
const TX: usize = 1;
/// Output kept here before the guest has to wait.
const BACKLOG: usize = 64 << 10;
/// Most bytes taken from one buffer chain: a real driver sends at most a page.
const CHAIN: usize = 64 << 10;
/// A terminal that is ready for writing takes this much without blocking.
const WRITE: usize = 512;

/// The host's end of the console.
#[derive(Debug)]
pub struct Console {
    input: Option<File>,
    output: Option<File>,
    typed: Vec<u8>,
    printed: Vec<u8>,
}

impl Console {
    /// Takes over the two descriptors.
    pub fn new(fds: ConsoleFds) -> Self {
        Self {
            input: Some(File::from(fds.input)),
            output: Some(File::from(fds.output)),
            typed: Vec::new(),
            printed: Vec::new(),
        }
    }

    /// Where to wait for input; none while the guest has not taken the last.
    pub fn wants_input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().filter(|_| self.typed.is_empty()).map(AsFd::as_fd)
    }

    /// Where to wait for room; none while there is nothing to print.
    pub fn wants_output(&self) -> Option<BorrowedFd<'_>> {
        self.output.as_ref().filter(|_| !self.printed.is_empty()).map(AsFd::as_fd)
    }

    /// Input is ready. End of file and errors end the input, not the machine.
    pub fn read_input(&mut self) {
        let Some(input) = &mut self.input else { return };
        let mut bytes = [0; 1024];
        match input.read(&mut bytes) {
            Ok(0) => self.input = None,
            Ok(count) => self.typed.extend_from_slice(&bytes[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.input = None,
        }
    }

    /// There is room for output. An error is returned once; later output is dropped.
    pub fn write_output(&mut self) -> io::Result<()> {
        let Some(output) = &mut self.output else { return Ok(()) };
        match output.write(&self.printed[..self.printed.len().min(WRITE)]) {
            Ok(count) => drop(self.printed.drain(..count)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                self.output = None;
                self.printed = Vec::new();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Moves bytes between the queues and this end.
    pub fn work(&mut self, device: &Mutex<MmioTransport>) {
        let mut device = lock(device);
        let served = self.transmit(&mut device).and_then(|()| self.receive(&mut device));
        if served.is_err() {
            device.needs_reset();
        }
    }

    fn transmit(&mut self, device: &mut MmioTransport) -> Result<(), virtio_queue::Error> {
        let mut any = false;
        while self.printed.len() < BACKLOG {
            let Some((queue, ram)) = device.queue(TX) else { break };
            let Some(chain) = queue.iter(&ram.memory)?.next() else { break };
            let head = chain.head_index();
            let mut reader = chain.reader(&ram.memory)?;
            let mut bytes = vec![0; reader.available_bytes().min(CHAIN)];
            reader.read_exact(&mut bytes).map_err(|_| virtio_queue::Error::InvalidChain)?;
            if self.output.is_some() {
                self.printed.extend_from_slice(&bytes);
            }
            queue.add_used(&ram.memory, head, 0)?;
            any = true;
        }
        if any {
            device.used(TX);
        }
        Ok(())
    }

    fn receive(&mut self, device: &mut MmioTransport) -> Result<(), virtio_queue::Error> {
        let mut any = false;
        while !self.typed.is_empty() {
            let Some((queue, ram)) = device.queue(RX) else { break };
            let Some(chain) = queue.iter(&ram.memory)?.next() else { break };
            let head = chain.head_index();
            let mut writer = chain.writer(&ram.memory)?;
            let count = writer.available_bytes().min(self.typed.len());
            writer.write_all(&self.typed[..count]).map_err(|_| virtio_queue::Error::InvalidChain)?;
            self.typed.drain(..count);
            queue.add_used(&ram.memory, head, count as u32)?;
            any = true;
        }
        if any {
            device.used(RX);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::kvm::memory::GuestRam;
    use crate::machine::{Gpa, RamRegion};

    const DESC: u64 = 0x1000;
    const AVAIL: u64 = 0x2000;
    const USED: u64 = 0x3000;
    const BUFFER: u64 = 0x8000;
    const WRITABLE: u16 = 2;

    /// A driver's end: one queue set up through the registers.
    struct Driver {
        device: Mutex<MmioTransport>,
        ram: Arc<GuestRam>,
        irq: EventFd,
    }

    impl Driver {
        fn new(queue: u32, addresses: [u64; 3]) -> Self {
            let regions = vec![RamRegion { gpa: Gpa(0), file_offset: 0, len: 2 << 20 }];
            let ram = Arc::new(GuestRam::new(regions, None).unwrap().0);
            let irq = EventFd::new(libc::EFD_NONBLOCK).unwrap();
            let doorbell = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
            let device = MmioTransport::new(KIND, ram.clone(), irq.try_clone().unwrap(), doorbell).unwrap();
            let driver = Self { device: Mutex::new(device), ram, irq };
            driver.set(0x70, 3);
            driver.set(0x24, 1);
            driver.set(0x20, 1);
            driver.set(0x70, 11);
            driver.set(0x30, queue);
            driver.set(0x38, 8);
            for (register, address) in [0x80, 0x90, 0xa0].into_iter().zip(addresses) {
                driver.set(register, address as u32);
                driver.set(register + 4, (address >> 32) as u32);
            }
            driver.set(0x44, 1);
            driver.set(0x70, 15);
            driver
        }

        fn set(&self, register: u64, value: u32) {
            lock(&self.device).write(register, &value.to_le_bytes());
        }

        fn get(&self, register: u64) -> u32 {
            let mut word = [0; 4];
            lock(&self.device).read(register, &mut word);
            u32::from_le_bytes(word)
        }

        /// Offers one descriptor as the next available one.
        fn offer(&self, index: u16, address: u64, len: u32, flags: u16) {
            let at = DESC + 16 * u64::from(index);
            let memory = &self.ram.memory;
            memory.write_obj(address, GuestAddress(at)).unwrap();
            memory.write_obj(len, GuestAddress(at + 8)).unwrap();
            memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
            memory.write_obj(index, GuestAddress(AVAIL + 4 + 2 * u64::from(index))).unwrap();
            memory.write_obj(index + 1, GuestAddress(AVAIL + 2)).unwrap();
        }

        fn used(&self) -> u16 {
            self.ram.memory.read_obj(GuestAddress(USED + 2)).unwrap()
        }
    }

    fn console() -> (Console, io::PipeReader, io::PipeWriter) {
        let (guest_input, typing) = io::pipe().unwrap();
        let (printed, guest_output) = io::pipe().unwrap();
        (Console::new(ConsoleFds { input: guest_input.into(), output: guest_output.into() }), printed, typing)
    }

    #[test]
    fn what_the_guest_prints_comes_out() {
        let (mut console, mut printed, _typing) = console();
        let driver = Driver::new(1, [DESC, AVAIL, USED]);
        driver.ram.memory.write_slice(b"hello", GuestAddress(BUFFER)).unwrap();
        driver.offer(0, BUFFER, 5, 0);
        console.work(&driver.device);
        assert_eq!((driver.used(), driver.irq.read().unwrap(), driver.get(0x60)), (1, 1, 1));
        console.write_output().unwrap();
        let mut seen = [0; 5];
        printed.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"hello");
        assert!(console.wants_output().is_none());
    }

    #[test]
    fn typed_input_waits_for_a_buffer() {
        let (mut console, _printed, mut typing) = console();
        let driver = Driver::new(0, [DESC, AVAIL, USED]);
        typing.write_all(b"abc").unwrap();
        console.read_input();
        console.work(&driver.device);
        assert!(
            console.wants_input().is_none(),
            "nothing more is read while the guest has not taken the last"
        );
        driver.offer(0, BUFFER, 2, WRITABLE);
        driver.offer(1, BUFFER + 16, 64, WRITABLE);
        console.work(&driver.device);
        let mut seen = [0; 2];
        driver.ram.memory.read_slice(&mut seen, GuestAddress(BUFFER)).unwrap();
        assert_eq!(
            (&seen, driver.ram.memory.read_obj::<u8>(GuestAddress(BUFFER + 16)).unwrap()),
            (b"ab", b'c')
        );
        assert_eq!(driver.used(), 2);
        assert!(console.wants_input().is_some());
    }

    #[test]
    fn the_guest_waits_while_nobody_reads() {
        let (mut console, _printed, _typing) = console();
        let driver = Driver::new(1, [DESC, AVAIL, USED]);
        for index in 0..4 {
            driver.offer(index, 0x10_0000, 40 << 10, 0);
        }
        console.work(&driver.device);
        assert_eq!(driver.used(), 2, "64 KiB are kept, the rest stays in the queue");
    }

    #[test]
    fn a_lying_driver_is_told_to_reset() {
        for (address, len) in [(0xffff_ffff_ffff_f000, 0x2000), (0x40_0000, 16), (0x1f_fff0, 0x1000)] {
            let (mut console, _printed, _typing) = console();
            let driver = Driver::new(1, [DESC, AVAIL, USED]);
            driver.offer(0, address, len, 0);
            console.work(&driver.device);
            assert_eq!(driver.get(0x70) & 64, 64, "buffer at {address:#x} of {len} bytes");
            assert!(console.wants_output().is_none());
        }
    }

    #[test]
    fn queues_outside_ram_are_never_served() {
        for addresses in [[0x40_0000, AVAIL, USED], [DESC, u64::MAX - 1, USED], [DESC, AVAIL, 0x1f_fff0]] {
            let (mut console, _printed, _typing) = console();
            let driver = Driver::new(1, addresses);
            console.work(&driver.device);
            assert!(lock(&driver.device).queue(1).is_none(), "{addresses:x?}");
        }
    }

    #[test]
    fn features_that_were_not_offered_are_refused() {
        let driver = Driver::new(1, [DESC, AVAIL, USED]);
        driver.set(0x70, 0);
        driver.set(0x24, 0);
        driver.set(0x20, 0xff);
        driver.set(0x70, 11);
        assert_eq!(driver.get(0x70) & 8, 0);
        let mut config = [1; 8];
        lock(&driver.device).read(0x100 + 8, &mut config);
        assert_eq!(config, [0; 8], "behind the end reads as zero");
    }
}

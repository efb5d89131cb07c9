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


//! virtio-console (virtio 1.2, section 5.3) with two ports: the interactive shell (`hvc0`) and, where the driver takes
//! `VIRTIO_CONSOLE_F_MULTIPORT`, one for the size of the user's terminal.
//!
//! ```text
//! driver: DEVICE_READY ──▶ PORT_ADD, per port
//!         PORT_READY n ──▶ CONSOLE_PORT (0) or PORT_NAME (1), then PORT_OPEN
//!         PORT_OPEN n  ──▶ from now on, and until it closes, the port's input is given to the driver
//! ```
//!
//! Every direction has back-pressure: guest output is taken from a queue only while there is room for it, input is
//! read only while the guest has taken the last, and a control message is taken only while no more than
//! [`UNSENT`] answers wait. Runs on the I/O thread. Next: `port` is the host's end of one port, `protocol` the
//! messages.

mod port;
mod protocol;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::sync::Mutex;

use ktstr_proto::terminal::SIZE_PORT;
use virtio_queue::{QueueOwnedT, QueueT};

pub use self::port::Direction;
use self::port::Port;
use self::protocol::{Event, Message};
use super::lock;
use super::virtio::{DeviceKind, MmioTransport};
use crate::machine::ConsoleFds;

/// What the transport presents. Columns and rows are zero, as their feature is not offered, and so is emergency write.
pub const KIND: DeviceKind = DeviceKind {
    id: 3,
    features: MULTIPORT,
    queues: &[64; 2 * (PORTS + 1)],
    config: &[0, 0, 0, 0, PORTS as u8, 0, 0, 0, 0, 0, 0, 0],
};

/// Feature: several ports, and a pair of queues for what is said about them.
const MULTIPORT: u64 = 1 << 1;
/// How many there are.
pub const PORTS: usize = 2;
const CONTROL_RX: usize = 2;
const CONTROL_TX: usize = 3;
/// Answers that may wait for the driver before it has to.
const UNSENT: usize = 16;
/// Most bytes taken from one buffer chain: a real driver sends at most a page.
const CHAIN: usize = 64 << 10;

/// Receiving and transmitting queue of a port.
const fn queues(port: usize) -> (usize, usize) {
    // The control queues lie between the first port's and the others'.
    let pair = if port == 0 { 0 } else { port + 1 };
    (2 * pair, 2 * pair + 1)
}

/// The host's end of the console.
#[derive(Debug)]
pub struct Console {
    ports: [Port; PORTS],
    /// What the driver has not been told yet.
    unsent: VecDeque<Message>,
    /// Which of its lives the device was in when it was last worked on.
    life: u32,
}

impl Console {
    /// Takes over the descriptors.
    pub fn new(fds: ConsoleFds) -> Self {
        let terminal = Port::new("console", fds.input, fds.output);
        let size = match fds.size.try_clone() {
            Ok(output) => Port::new(SIZE_PORT, fds.size, output),
            // Without a descriptor to spare there is nobody to talk to.
            Err(_) => Port::unconnected(SIZE_PORT),
        };
        Self { ports: [terminal, size], unsent: VecDeque::new(), life: 0 }
    }

    /// What to wait for: input of a port where the guest has taken the last, room where there is something to print.
    pub fn wants(&self) -> impl Iterator<Item = (usize, Direction, BorrowedFd<'_>)> {
        self.ports.iter().enumerate().flat_map(|(index, port)| {
            let input = port.wants_input().map(|fd| (index, Direction::In, fd));
            input.into_iter().chain(port.wants_output().map(|fd| (index, Direction::Out, fd)))
        })
    }

    /// One of those is ready. An error is returned once, with the port's name; later output is dropped.
    pub fn serve(&mut self, port: usize, direction: Direction) -> Result<(), (&'static str, io::Error)> {
        let port = &mut self.ports[port];
        match direction {
            Direction::In => port.read_input(),
            Direction::Out => port.write_output().map_err(|error| (port.name, error))?,
        }
        Ok(())
    }

    /// Moves bytes between the queues and this end.
    pub fn work(&mut self, device: &Mutex<MmioTransport>) {
        let mut device = lock(device);
        if device.life() != self.life {
            self.life = device.life();
            self.unsent.clear();
            self.ports.iter_mut().for_each(Port::forget_driver);
        }
        if self.serve_queues(&mut device).is_err() {
            device.needs_reset();
        }
    }

    fn serve_queues(&mut self, device: &mut MmioTransport) -> Result<(), virtio_queue::Error> {
        let several = device.accepted(MULTIPORT);
        if several {
            self.hear(device)?;
        }
        let ports = if several { PORTS } else { 1 };
        for (index, port) in self.ports.iter_mut().enumerate().take(ports) {
            let (rx, tx) = queues(index);
            transmit(port, device, tx)?;
            if port.open || !several {
                receive(port, device, rx)?;
            }
        }
        if several {
            self.tell_ends();
            self.tell(device)?;
        }
        Ok(())
    }

    /// Takes what the driver says about ports.
    fn hear(&mut self, device: &mut MmioTransport) -> Result<(), virtio_queue::Error> {
        let mut any = false;
        while self.unsent.len() < UNSENT {
            let Some((queue, ram)) = device.queue(CONTROL_TX) else { break };
            let Some(chain) = queue.iter(&ram.memory)?.next() else { break };
            let head = chain.head_index();
            let mut reader = chain.reader(&ram.memory)?;
            let mut bytes = [0; Message::LEN];
            let len = reader.available_bytes().min(bytes.len());
            reader.read_exact(&mut bytes[..len]).map_err(|_| virtio_queue::Error::InvalidChain)?;
            queue.add_used(&ram.memory, head, 0)?;
            any = true;
            // What is too short or means nothing to this device is passed over.
            if let Some((port, event, value)) = Message::parse(&bytes[..len]) {
                self.answer(port, event, value);
            }
        }
        if any {
            device.used(CONTROL_TX);
        }
        Ok(())
    }

    fn answer(&mut self, port: u32, event: Event, value: u16) {
        if event == Event::DeviceReady {
            if value == 1 {
                let added = (0..).zip(&self.ports).map(|(port, _)| Message::new(port, Event::PortAdd, 1));
                self.unsent.extend(added);
            }
            return;
        }
        let Some(end) = usize::try_from(port).ok().and_then(|port| self.ports.get_mut(port)) else { return };
        match event {
            Event::PortReady if value == 1 => {
                end.connected = end.has_input();
                let open = Message::new(port, Event::PortOpen, u16::from(end.connected));
                let what = match port {
                    0 => Message::new(port, Event::ConsolePort, 1),
                    _ => Message::named(port, end.name),
                };
                self.unsent.extend([what, open]);
            }
            Event::PortOpen => end.open = value == 1,
            _ => {}
        }
    }

    /// Whoever was at the other end of a port is gone. The console stays: its guest is not logged out.
    fn tell_ends(&mut self) {
        for (port, end) in (0..).zip(&mut self.ports).skip(1) {
            if end.connected && !end.has_input() && end.is_empty() {
                end.connected = false;
                self.unsent.push_back(Message::new(port, Event::PortOpen, 0));
            }
        }
    }

    fn tell(&mut self, device: &mut MmioTransport) -> Result<(), virtio_queue::Error> {
        let mut any = false;
        while let Some(message) = self.unsent.front() {
            let Some((queue, ram)) = device.queue(CONTROL_RX) else { break };
            let Some(chain) = queue.iter(&ram.memory)?.next() else { break };
            let head = chain.head_index();
            let mut writer = chain.writer(&ram.memory)?;
            writer.write_all(message.bytes()).map_err(|_| virtio_queue::Error::InvalidChain)?;
            queue.add_used(&ram.memory, head, message.bytes().len() as u32)?;
            self.unsent.pop_front();
            any = true;
        }
        if any {
            device.used(CONTROL_RX);
        }
        Ok(())
    }
}

fn transmit(port: &mut Port, device: &mut MmioTransport, tx: usize) -> Result<(), virtio_queue::Error> {
    let mut any = false;
    while port.has_room() {
        let Some((queue, ram)) = device.queue(tx) else { break };
        let Some(chain) = queue.iter(&ram.memory)?.next() else { break };
        let head = chain.head_index();
        let mut reader = chain.reader(&ram.memory)?;
        let mut bytes = vec![0; reader.available_bytes().min(CHAIN)];
        reader.read_exact(&mut bytes).map_err(|_| virtio_queue::Error::InvalidChain)?;
        port.print(&bytes);
        queue.add_used(&ram.memory, head, 0)?;
        any = true;
    }
    if any {
        device.used(tx);
    }
    Ok(())
}

fn receive(port: &mut Port, device: &mut MmioTransport, rx: usize) -> Result<(), virtio_queue::Error> {
    let mut any = false;
    while !port.is_empty() {
        let Some((queue, ram)) = device.queue(rx) else { break };
        let Some(chain) = queue.iter(&ram.memory)?.next() else { break };
        let head = chain.head_index();
        let mut writer = chain.writer(&ram.memory)?;
        let bytes = port.typed(writer.available_bytes());
        writer.write_all(bytes).map_err(|_| virtio_queue::Error::InvalidChain)?;
        let count = bytes.len();
        port.took(count);
        queue.add_used(&ram.memory, head, count as u32)?;
        any = true;
    }
    if any {
        device.used(rx);
    }
    Ok(())
}

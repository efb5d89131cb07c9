//! A 16550 and where its output goes.
//!
//! Output is collected to lines, so that a guest that prints costs one write per line and not one per
//! byte. A sink that is full makes the guest wait; a sink that is gone is reported once and the rest
//! is dropped.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, SerialState, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::kvm::control::{Control, Wanted};
use crate::machine::Event;

/// Longest line that is kept before it is written.
const LINE: usize = 512;
/// Most output kept while a paused machine's sink is full.
const BACKLOG: usize = 1 << 20;

/// An interrupt line.
#[derive(Debug)]
pub struct IrqLine(pub EventFd);

impl Trigger for IrqLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Where the output of a serial line goes.
#[derive(Debug)]
pub struct Sink {
    name: &'static str,
    file: Option<File>,
    pending: Vec<u8>,
    control: Arc<Control>,
}

impl Sink {
    /// Without a descriptor the output is dropped.
    pub fn new(name: &'static str, fd: Option<OwnedFd>, control: Arc<Control>) -> Self {
        Self { name, file: fd.map(File::from), pending: Vec::new(), control }
    }

    fn push(&mut self, byte: u8) {
        if self.file.is_none() {
            return;
        }
        self.pending.push(byte);
        if byte == b'\n' || self.pending.len() >= LINE {
            self.drain(|control| control.wanted() != Wanted::Run);
        }
    }

    /// Writes what is pending, waiting for room until `give_up` says otherwise.
    fn drain(&mut self, give_up: impl Fn(&Control) -> bool) {
        while let (Some(file), false) = (&mut self.file, self.pending.is_empty()) {
            let mut ready = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
            let wrote = match poll(&mut ready, PollTimeout::from(100u8)) {
                Ok(0) | Err(nix::Error::EINTR) => Ok(0),
                // A pipe that is ready takes at least 4096 bytes without blocking.
                Ok(_) => file.write(&self.pending[..self.pending.len().min(4096)]),
                Err(error) => Err(error.into()),
            };
            match wrote {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return self.fail(&format!("write its output: {error}; the rest is dropped")),
            }
            if !self.pending.is_empty() && give_up(&self.control) {
                break;
            }
        }
        if self.pending.len() > BACKLOG {
            self.fail(&format!("nobody reads its output ({BACKLOG} bytes wait); the rest is dropped"));
        }
    }

    fn fail(&mut self, detail: &str) {
        self.file = None;
        self.pending = Vec::new();
        self.control.send(Event::DeviceFailed { device: self.name, detail: detail.to_owned() });
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bytes.iter().for_each(|byte| self.push(*byte));
        Ok(bytes.len())
    }

    /// Called after every byte; lines are what is written.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The registers of a port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    /// Divisor low and high, interrupt enable and identification, line control and status, modem control and
    /// status, scratch.
    registers: [u8; 9],
    /// What the guest has not read yet.
    received: Vec<u8>,
}

/// One serial port.
pub struct Uart {
    serial: Serial<IrqLine, NoEvents, Sink>,
}

impl fmt::Debug for Uart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uart").field("sink", self.serial.writer()).finish_non_exhaustive()
    }
}

impl Uart {
    /// A port whose interrupts go to `irq` and whose output goes to `sink`.
    pub fn new(irq: EventFd, sink: Sink) -> Self {
        Self { serial: Serial::new(IrqLine(irq), sink) }
    }

    /// A port with these registers.
    pub fn from_state(state: &PortState, irq: EventFd, sink: Sink) -> Result<Self, String> {
        let [
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
        ] = state.registers;
        let state = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: state.received.clone(),
        };
        let serial = Serial::from_state(&state, IrqLine(irq), NoEvents, sink);
        serial.map(|serial| Self { serial }).map_err(|error| format!("{error:?}"))
    }

    /// Its registers.
    #[must_use]
    pub fn state(&self) -> PortState {
        let state = self.serial.state();
        let registers = [
            state.baud_divisor_low,
            state.baud_divisor_high,
            state.interrupt_enable,
            state.interrupt_identification,
            state.line_control,
            state.line_status,
            state.modem_control,
            state.modem_status,
            state.scratch,
        ];
        PortState { registers, received: state.in_buffer }
    }

    /// The guest reads a register.
    pub fn read(&mut self, offset: u8) -> u8 {
        self.serial.read(offset)
    }

    /// The guest writes a register.
    pub fn write(&mut self, offset: u8, value: u8) {
        if let Err(error) = self.serial.write(offset, value) {
            self.serial.writer_mut().fail(&format!("raise its interrupt: {error}"));
        }
    }

    /// Writes out an unfinished line if the sink takes it at once.
    pub fn flush_partial_line(&mut self) {
        self.serial.writer_mut().drain(|_| true);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::{Duration, Instant};

    use super::*;

    fn uart(fd: Option<OwnedFd>) -> (Uart, Arc<Control>, EventFd) {
        let control = Arc::new(Control::new(1).unwrap());
        let irq = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let uart = Uart::new(irq.try_clone().unwrap(), Sink::new("com1", fd, control.clone()));
        (uart, control, irq)
    }

    #[test]
    fn lines_arrive_whole_and_the_last_one_with_a_flush() {
        let (mut read, write) = io::pipe().unwrap();
        let (mut uart, _control, _irq) = uart(Some(write.into()));
        b"one\ntwo".iter().for_each(|b| uart.write(0, *b));
        let mut seen = [0; 16];
        assert_eq!(read.read(&mut seen).unwrap(), 4);
        uart.flush_partial_line();
        assert_eq!(read.read(&mut seen).unwrap(), 3);
        assert_eq!(&seen[..3], b"two");
    }

    #[test]
    fn the_transmit_interrupt_comes_when_enabled() {
        let (mut uart, _control, irq) = uart(None);
        uart.write(0, b'x');
        assert!(irq.read().is_err());
        uart.write(1, 2);
        assert_eq!(irq.read().unwrap(), 1);
        assert_eq!(uart.read(2) & 0xf, 2, "IIR names the empty transmitter");
        assert_eq!(uart.read(5) & 0x60, 0x60, "LSR says room");
    }

    #[test]
    fn a_port_goes_on_with_its_registers() {
        let (mut before, _control, _irq) = uart(None);
        // Divisor latch open, divisor, 8 bits, all interrupts, scratch.
        for (offset, value) in [(3, 0x80), (0, 0x0c), (1, 0x01), (3, 0x03), (1, 0x0f), (4, 0x0b), (7, 0x5a)] {
            before.write(offset, value);
        }
        let state = before.state();
        let irq = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let control = Arc::new(Control::new(1).unwrap());
        let mut after = Uart::from_state(&state, irq, Sink::new("com1", None, control)).unwrap();
        assert_eq!(after.state(), state);
        for offset in [1, 3, 4, 5, 6, 7] {
            assert_eq!(after.read(offset), before.read(offset), "register {offset}");
        }
        let long = PortState { received: vec![0; 4096], ..state };
        let sink = Sink::new("com1", None, Arc::new(Control::new(1).unwrap()));
        assert!(Uart::from_state(&long, EventFd::new(0).unwrap(), sink).is_err());
    }

    #[test]
    fn a_reader_that_left_is_reported_once() {
        let (read, write) = io::pipe().unwrap();
        drop(read);
        let (mut uart, control, _irq) = uart(Some(write.into()));
        b"a\nb\nc\n".iter().for_each(|b| uart.write(0, *b));
        assert!(matches!(control.next_event(), Some(Event::DeviceFailed { device: "com1", .. })));
        assert_eq!(control.next_event(), None);
    }

    #[test]
    fn a_full_sink_makes_the_guest_wait_until_there_is_room() {
        let (mut read, write) = io::pipe().unwrap();
        let (mut uart, _control, _irq) = uart(Some(write.into()));
        let line = [b'.'; 255].iter().chain(b"\n").copied().collect::<Vec<_>>();
        let total = line.len() * 1024;
        let writer =
            std::thread::spawn(move || (0..1024).for_each(|_| line.iter().for_each(|b| uart.write(0, *b))));
        let start = Instant::now();
        let mut seen = vec![0; total];
        read.read_exact(&mut seen).unwrap();
        writer.join().unwrap();
        assert!(start.elapsed() < Duration::from_secs(60));
        assert_eq!(seen.iter().filter(|b| **b == b'\n').count(), 1024);
    }
}

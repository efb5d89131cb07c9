//! The host's end of one port: two descriptors and what is on its way between them and the guest.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Output kept here before the guest has to wait.
const BACKLOG: usize = 64 << 10;
/// A terminal that is ready for writing takes this much without blocking.
const WRITE: usize = 512;

/// Which way bytes go, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the guest.
    In,
    /// From it.
    Out,
}

/// One port.
#[derive(Debug)]
pub struct Port {
    /// What it is called.
    pub name: &'static str,
    /// The driver has said that somebody reads it. Without several ports nobody says so.
    pub open: bool,
    /// The driver has been told that somebody is at this end.
    pub connected: bool,
    input: Option<File>,
    output: Option<File>,
    typed: Vec<u8>,
    printed: Vec<u8>,
}

impl Port {
    /// With somebody at the other end.
    pub fn new(name: &'static str, input: OwnedFd, output: OwnedFd) -> Self {
        Self { input: Some(input.into()), output: Some(output.into()), ..Self::unconnected(name) }
    }

    /// With nobody there.
    pub fn unconnected(name: &'static str) -> Self {
        let (typed, printed) = (Vec::new(), Vec::new());
        Self { name, open: false, connected: false, input: None, output: None, typed, printed }
    }

    /// The driver begins anew and has said nothing yet.
    pub fn forget_driver(&mut self) {
        self.open = false;
        self.connected = false;
    }

    /// Whether more may come from the host.
    pub fn has_input(&self) -> bool {
        self.input.is_some()
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

    /// Whether the guest may say more.
    pub fn has_room(&self) -> bool {
        self.printed.len() < BACKLOG
    }

    /// The guest says this.
    pub fn print(&mut self, bytes: &[u8]) {
        if self.output.is_some() {
            self.printed.extend_from_slice(bytes);
        }
    }

    /// Whether the guest has taken everything.
    pub fn is_empty(&self) -> bool {
        self.typed.is_empty()
    }

    /// What comes next for the guest, at most so many bytes.
    pub fn typed(&self, most: usize) -> &[u8] {
        &self.typed[..most.min(self.typed.len())]
    }

    /// The guest took so many of them.
    pub fn took(&mut self, count: usize) {
        self.typed.drain(..count);
    }
}

//! The thread that works for the devices: console queues, unfinished serial lines.
//!
//! It sleeps in `poll` on the doorbell, the console's descriptors and the stop signal.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::EventFd;

use super::control::Control;
use super::devices::Devices;
use super::devices::console::Console;
use crate::machine::Event;

/// An unfinished line reaches its sink after this many milliseconds at the latest.
const PARTIAL_LINE_MS: u8 = 50;

/// What the thread works on.
#[derive(Debug)]
pub struct IoThread {
    /// For events.
    pub control: Arc<Control>,
    /// The devices.
    pub devices: Arc<Devices>,
    /// The host's end of the console; it is the first virtio device.
    pub console: Option<Console>,
    /// Rung by guests and by whoever sets `stop`.
    pub doorbell: Arc<EventFd>,
    /// Set to end the thread.
    pub stop: Arc<AtomicBool>,
}

fn event(fd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor lives as long as `fd`, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

impl IoThread {
    /// Works until told to stop.
    pub fn run(mut self) {
        while !self.stop.load(Ordering::SeqCst) {
            let (input, output) = self.wait();
            let _ = self.doorbell.read();
            if let (Some(console), Some(device)) = (&mut self.console, self.devices.virtio.first()) {
                if input {
                    console.read_input();
                }
                if output && let Err(error) = console.write_output() {
                    let detail = format!("write its output: {error}; the rest is dropped");
                    self.control.send(Event::DeviceFailed { device: "console", detail });
                }
                console.work(device);
            }
            self.flush_partial_lines();
        }
        self.flush_console();
    }

    /// Whether the console's input and output are ready.
    fn wait(&self) -> (bool, bool) {
        let mut fds = vec![PollFd::new(event(&self.doorbell), PollFlags::POLLIN)];
        let input = self.console.as_ref().and_then(Console::wants_input);
        let output = self.console.as_ref().and_then(Console::wants_output);
        fds.extend(input.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        fds.extend(output.map(|fd| PollFd::new(fd, PollFlags::POLLOUT)));
        // EINTR is the only failure with valid descriptors; then nothing is ready.
        if poll(&mut fds, PollTimeout::from(PARTIAL_LINE_MS)).is_err() {
            return (false, false);
        }
        let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        match (input, output) {
            (Some(_), Some(_)) => (ready(&fds[1]), ready(&fds[2])),
            (Some(_), None) => (ready(&fds[1]), false),
            (None, Some(_)) => (false, ready(&fds[1])),
            (None, None) => (false, false),
        }
    }

    /// A vCPU that holds a port is writing a line to it right now: then there is nothing to do.
    fn flush_partial_lines(&self) {
        self.devices.catch_up_if_idle();
        for uart in [&self.devices.com1, &self.devices.com2] {
            if let Ok(mut uart) = uart.try_lock() {
                uart.flush_partial_line();
            }
        }
    }

    /// What the guest printed last must not be lost when it powers off right after.
    fn flush_console(&mut self) {
        let (Some(console), Some(device)) = (&mut self.console, self.devices.virtio.first()) else { return };
        loop {
            console.work(device);
            let Some(output) = console.wants_output() else { return };
            let mut ready = [PollFd::new(output, PollFlags::POLLOUT)];
            let room = poll(&mut ready, PollTimeout::from(PARTIAL_LINE_MS)).is_ok_and(|count| count > 0);
            if !room || console.write_output().is_err() {
                return;
            }
        }
    }
}

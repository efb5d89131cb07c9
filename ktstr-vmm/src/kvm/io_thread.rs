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
use super::devices::console::{Console, Direction};
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
            let ready = self.wait();
            let _ = self.doorbell.read();
            if let (Some(console), Some(device)) = (&mut self.console, self.devices.virtio.first()) {
                for (port, direction) in ready {
                    if let Err((name, error)) = console.serve(port, direction) {
                        let detail = format!("write its output: {error}; the rest is dropped");
                        self.control.send(Event::DeviceFailed { device: name, detail });
                    }
                }
                console.work(device);
            }
            self.flush_partial_lines();
        }
        self.flush_console();
    }

    /// What of the console's ports is ready.
    fn wait(&self) -> Vec<(usize, Direction)> {
        let mut fds = vec![PollFd::new(event(&self.doorbell), PollFlags::POLLIN)];
        let mut whose = Vec::new();
        for (port, direction, fd) in self.console.iter().flat_map(Console::wants) {
            let flags = if direction == Direction::In { PollFlags::POLLIN } else { PollFlags::POLLOUT };
            fds.push(PollFd::new(fd, flags));
            whose.push((port, direction));
        }
        // EINTR is the only failure with valid descriptors; then nothing is ready.
        if poll(&mut fds, PollTimeout::from(PARTIAL_LINE_MS)).is_err() {
            return Vec::new();
        }
        let ready = |(fd, who): (&PollFd<'_>, _)| fd.any().unwrap_or(false).then_some(who);
        fds[1..].iter().zip(whose).filter_map(ready).collect()
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
            let printing = |(port, direction, fd)| (direction == Direction::Out).then_some((port, fd));
            let (ports, fds): (Vec<_>, Vec<_>) = console.wants().filter_map(printing).unzip();
            let mut ready: Vec<_> = fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLOUT)).collect();
            if ready.is_empty() || !poll(&mut ready, PollTimeout::from(PARTIAL_LINE_MS)).is_ok_and(|n| n > 0)
            {
                return;
            }
            let room: Vec<_> = ready.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            for port in ports.into_iter().zip(room).filter_map(|(port, room)| room.then_some(port)) {
                // What fails is not asked again: it has no output any more.
                let _ = console.serve(port, Direction::Out);
            }
        }
    }
}

//! The user's terminal in raw mode, and back.
//!
//! Whoever holds a [`RawTerminal`] has raw mode; dropping it, unwinding
//! through it or panicking anywhere restores what was before. Signals are
//! turned into bytes on a socket ([`Signals`]), so that they, too, end in an
//! ordinary return. Only SIGKILL leaves a raw terminal (`stty sane` helps).

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use ktstr_proto::terminal::WindowSize;
use nix::sys::termios::{self, SetArg, Termios};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};

/// What to restore; read by the panic hook.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode on stdin, as long as it lives.
pub struct RawTerminal(());

impl RawTerminal {
    /// Switches stdin, which must be a terminal, to raw mode.
    pub fn enter() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        *SAVED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(before);
        // Made before the mode changes, so that nothing can come in between.
        let guard = Self(());
        static HOOK: std::sync::Once = std::sync::Once::new();
        HOOK.call_once(|| {
            let next = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                next(info);
            }));
        });
        termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(guard)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal, once.
fn restore() {
    let saved = SAVED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    if let Some(before) = saved {
        // A terminal that is gone needs no restoring.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &before);
    }
}

/// The size of the terminal on stdin.
pub fn window_size() -> Option<WindowSize> {
    let mut size = nix::libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, to a place that lives throughout the call.
    let result = unsafe { nix::libc::ioctl(0, nix::libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_row > 0 && size.ws_col > 0)
        .then_some(WindowSize { rows: size.ws_row, cols: size.ws_col })
}

/// Signals that ask to end, and the terminal's word that its size is another, as bytes to poll for.
pub struct Signals {
    receivers: Vec<(i32, UnixStream)>,
    resized: UnixStream,
    ids: Vec<signal_hook::SigId>,
}

impl Signals {
    /// Takes over SIGINT, SIGTERM, SIGHUP, SIGQUIT and SIGWINCH.
    pub fn take() -> io::Result<Self> {
        let (resized, id) = receive(SIGWINCH)?;
        let mut signals = Self { receivers: Vec::new(), resized, ids: vec![id] };
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
            let (receiver, id) = receive(signal)?;
            signals.ids.push(id);
            signals.receivers.push((signal, receiver));
        }
        Ok(signals)
    }

    /// What to poll for reading.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.receivers.iter().map(|(_, receiver)| receiver.as_fd()).chain([self.resized.as_fd()])
    }

    /// A signal that has come.
    pub fn pending(&mut self) -> Option<i32> {
        self.receivers.iter_mut().find_map(|(signal, receiver)| arrived(receiver).then_some(*signal))
    }

    /// Whether the terminal's size has changed since this was asked last.
    pub fn resized(&mut self) -> bool {
        arrived(&mut self.resized)
    }
}

fn receive(signal: i32) -> io::Result<(UnixStream, signal_hook::SigId)> {
    let (receiver, sender) = UnixStream::pair()?;
    receiver.set_nonblocking(true)?;
    Ok((receiver, signal_hook::low_level::pipe::register(signal, sender)?))
}

fn arrived(receiver: &mut UnixStream) -> bool {
    receiver.read(&mut [0; 64]).is_ok_and(|n| n > 0)
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}

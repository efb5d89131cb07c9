//! The terminal of an interactive shell: the virtio console.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use ktstr_proto::run::Term;
use nix::{fcntl::OFlag, pty::Winsize};

use super::{clock, spawn::SpawnError};

/// The virtio console.
const TERMINAL: &str = "/dev/hvc0";
/// How long its driver may take to show it.
const APPEAR_MS: u64 = 3_000;

/// Why there is no shell.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// No terminal appeared.
    #[error("{TERMINAL} did not appear within {APPEAR_MS} ms: the virtio console or its driver is missing")]
    Absent,
    /// It cannot be opened.
    #[error("cannot open {TERMINAL}")]
    Open {
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The shell does not start.
    #[error("cannot start it on {TERMINAL}")]
    Start(#[source] SpawnError),
}

nix::ioctl_write_ptr_bad!(set_window_size, nix::libc::TIOCSWINSZ, Winsize);

/// Opens the terminal and gives it the size of the user's.
pub fn open_terminal(term: Option<&Term>) -> Result<File, ShellError> {
    if !clock::wait_until(APPEAR_MS, || Path::new(TERMINAL).exists()) {
        return Err(ShellError::Absent);
    }
    let terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(TERMINAL)
        .map_err(|source| ShellError::Open { source })?;
    if let Some(Term { rows, cols, .. }) = term {
        let size = Winsize { ws_row: *rows, ws_col: *cols, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open and `size` outlives the call, which only reads it. A console
        // that has no size keeps none.
        let _ = unsafe { set_window_size(terminal.as_raw_fd(), &size) };
    }
    Ok(terminal)
}

/// Waits until the terminal has taken what was written to it.
pub fn flush_terminal() {
    if let Ok(terminal) = OpenOptions::new().write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(TERMINAL) {
        let _ = nix::sys::termios::tcdrain(&terminal);
    }
}

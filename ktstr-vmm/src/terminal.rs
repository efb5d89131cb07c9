//! The user's terminal in raw mode, and back again on every way out.
//!
//! Ways out: return and error ([`RawTerminal`] is dropped), panic (unwinding drops it; a panic
//! elsewhere runs the hook), SIGTERM, SIGINT and SIGHUP (the event loop sees them and returns). Only
//! SIGKILL cannot be answered.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, Once, PoisonError};

use nix::sys::termios::{LocalFlags, OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Why the terminal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// Standard input is something else.
    #[error(
        "standard input is no terminal: an interactive shell needs one; use --exec CMD to run a single command"
    )]
    NotATerminal,
    /// The mode could not be read or set.
    #[error("{action}")]
    Mode {
        /// What was done.
        action: &'static str,
        /// The operating system's reason.
        #[source]
        source: nix::Error,
    },
}

/// The terminal and its settings before raw mode; taken by whoever restores first.
static SAVED: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// While it lives, the terminal is raw.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Switches the terminal behind `fd` to raw mode, keeping output processing for our own lines.
    pub fn enter(fd: impl AsFd) -> Result<RawTerminal, TerminalError> {
        let mode = |action| move |source| TerminalError::Mode { action, source };
        let before = tcgetattr(&fd).map_err(|_| TerminalError::NotATerminal)?;
        let kept = fd
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| nix::Error::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
            .map_err(mode("keep the terminal for restoring it"))?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        raw.output_flags |= OutputFlags::OPOST | OutputFlags::ONLCR;
        debug_assert!(!raw.local_flags.contains(LocalFlags::ISIG));
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some((kept, before));
        HOOK.call_once(|| {
            let next = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                next(info);
            }));
        });
        let guard = RawTerminal(());
        tcsetattr(&fd, SetArg::TCSADRAIN, &raw).map_err(mode("switch the terminal to raw mode"))?;
        Ok(guard)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    // try_lock: a panic while the lock is held must not wait for itself.
    let saved = match SAVED.try_lock() {
        Ok(mut saved) => saved.take(),
        Err(_) => None,
    };
    if let Some((fd, before)) = saved {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(&fd, SetArg::TCSADRAIN, &before);
    }
}

#[cfg(test)]
mod tests {
    use nix::pty::openpty;

    use super::*;

    #[test]
    fn the_terminal_comes_back_after_return_and_after_panic() {
        let pty = openpty(None, None).unwrap();
        let flags = || tcgetattr(&pty.slave).unwrap().local_flags;
        let before = flags();
        {
            let _raw = RawTerminal::enter(&pty.slave).unwrap();
            assert!(!flags().contains(LocalFlags::ECHO));
        }
        assert_eq!(flags(), before);
        let panicked = std::panic::catch_unwind(|| {
            let _raw = RawTerminal::enter(&pty.slave).unwrap();
            assert!(!flags().contains(LocalFlags::ICANON));
            panic!("on purpose");
        });
        assert!(panicked.is_err());
        assert_eq!(flags(), before);
    }

    #[test]
    fn a_file_is_no_terminal() {
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(RawTerminal::enter(&file), Err(TerminalError::NotATerminal)));
    }
}

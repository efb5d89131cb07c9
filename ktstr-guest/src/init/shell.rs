//! The terminal of an interactive shell: the virtio console, and its size, which comes through a port of its own.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use ktstr_proto::{
    run::Term,
    terminal::{LONGEST_LINE, SIZE_PORT, WindowSize},
};
use nix::{fcntl::OFlag, pty::Winsize};

use super::{clock, spawn::SpawnError};

/// The virtio console.
const TERMINAL: &str = "/dev/hvc0";
/// How long its driver may take to show it.
const APPEAR_MS: u64 = 3_000;
/// Where the kernel lists the console's ports.
const PORTS: &str = "/sys/class/virtio-ports";

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
        resize(&terminal, WindowSize { rows: *rows, cols: *cols });
    }
    Ok(terminal)
}

fn resize(terminal: &File, WindowSize { rows, cols }: WindowSize) {
    let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open and `size` outlives the call, which only reads it. A console
    // that has no size keeps none.
    let _ = unsafe { set_window_size(terminal.as_raw_fd(), &size) };
}

/// Gives the terminal every size that the user's takes from now on, on a thread of its own. A shell whose size
/// never changes is worth having, so a machine without the port is no error.
pub fn follow_size(terminal: &File) {
    let Ok(terminal) = terminal.try_clone() else { return };
    let follow = move || {
        // The driver shows a port before it knows its name.
        let mut port = None;
        clock::wait_until(APPEAR_MS, || {
            port = size_port(Path::new(PORTS));
            port.is_some()
        });
        let Some(port) = port.and_then(|path| File::open(path).ok()) else { return };
        // Until the driver has heard that somebody is there, reading ends at once.
        for _ in 0..APPEAR_MS {
            sizes(&port, |size| resize(&terminal, size));
            clock::sleep_us(1000);
        }
    };
    // It reads until the machine ends.
    let _ = std::thread::Builder::new().name("terminal-size".into()).spawn(follow);
}

/// The device file of the port with that name.
fn size_port(ports: &Path) -> Option<PathBuf> {
    let named = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim_end() == SIZE_PORT)
    };
    let port = fs::read_dir(ports).ok()?.flatten().find(named)?;
    Some(Path::new("/dev").join(port.file_name()))
}

/// Every size that is read, to the end. A line that is none is passed over.
fn sizes(port: impl Read, mut take: impl FnMut(WindowSize)) {
    let mut port = BufReader::new(port);
    loop {
        let mut line = Vec::new();
        match port.by_ref().take(LONGEST_LINE as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if let Some(size) = str::from_utf8(&line).ok().and_then(|line| line.parse().ok()) {
            take(size);
        }
    }
}

/// Waits until the terminal has taken what was written to it.
pub fn flush_terminal() {
    if let Ok(terminal) = OpenOptions::new().write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(TERMINAL) {
        let _ = nix::sys::termios::tcdrain(&terminal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_line_by_line() {
        let mut seen = Vec::new();
        let said = "24 80\nnothing\n 1 2\n50 132\n0 0\nno line has as many characters as this one\n60 200\n";
        sizes(said.as_bytes(), |size| seen.push(size.to_string()));
        assert_eq!(seen, ["24 80", "50 132", "60 200"]);
    }

    #[test]
    fn a_port_is_found_by_its_name() {
        let ports = tempfile::tempdir().unwrap();
        assert_eq!(size_port(&ports.path().join("none")), None);
        for (port, name) in [("vport1p0", "org.example.agent\n"), ("vport1p1", "ktstr.size\n")] {
            fs::create_dir(ports.path().join(port)).unwrap();
            fs::write(ports.path().join(port).join("name"), name).unwrap();
        }
        fs::create_dir(ports.path().join("vport1p2")).unwrap();
        assert_eq!(size_port(ports.path()), Some("/dev/vport1p1".into()));
    }
}

//! A terminal of its own for a program, and the person who sits at it.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd},
    process::{Child, Command, Stdio},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    poll::{PollFd, PollFlags, poll},
    pty::{OpenptyResult, Winsize, openpty},
    sys::termios::{LocalFlags, tcgetattr},
};

/// A pseudoterminal, and the program that has it as its controlling terminal.
pub struct Terminal {
    pub child: Child,
    pty: OpenptyResult,
}

const fn winsize(rows: u16, cols: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Terminal {
    /// Starts `program` on a terminal of that size.
    pub fn start(program: &Command, rows: u16, cols: u16) -> Self {
        let pty = openpty(Some(&winsize(rows, cols)), None).unwrap();
        // Whoever sits there is gone with this process: the program hears that its terminal hangs up.
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        // It becomes the program, with a session of its own: the kernel tells it of keys and of the window's size.
        let mut own = Command::new("setsid");
        own.arg("--ctty").arg(program.get_program()).args(program.get_args());
        own.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let child = own.stdin(end()).stdout(end()).stderr(end()).spawn().expect("setsid of util-linux");
        Self { child, pty }
    }

    /// What was written to it since, or nothing after a while.
    pub fn read(&self) -> Vec<u8> {
        let mut fds = [PollFd::new(self.pty.master.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, 200u16).unwrap() == 0 {
            return Vec::new();
        }
        let mut bytes = vec![0; 4096];
        let n = File::from(self.pty.master.try_clone().unwrap()).read(&mut bytes).unwrap();
        bytes.truncate(n);
        bytes
    }

    pub fn type_keys(&self, keys: &str) {
        File::from(self.pty.master.try_clone().unwrap()).write_all(keys.as_bytes()).unwrap();
    }

    pub fn resize(&self, rows: u16, cols: u16) {
        let size = winsize(rows, cols);
        // SAFETY: the descriptor is open and `size` outlives the call, which only reads it.
        let set =
            unsafe { nix::libc::ioctl(self.pty.master.as_raw_fd(), nix::libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(set, 0);
    }

    /// Whether the terminal is as a person's shell wants it.
    pub fn is_cooked(&self) -> bool {
        tcgetattr(&self.pty.slave).unwrap().local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO)
    }
}

//! An interactive session as a person has it: `ktstr shell` on a terminal, keys typed, a real guest behind it.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd},
    process::{Child, Command, Stdio},
    time::Instant,
};

use nix::{
    poll::{PollFd, PollFlags, poll},
    pty::{OpenptyResult, Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{LocalFlags, tcgetattr},
    },
    unistd::Pid,
};

use crate::harness::PATIENCE;

/// A running `ktstr shell` and the terminal it is on.
struct OnTerminal {
    child: Child,
    pty: OpenptyResult,
    seen: String,
}

impl OnTerminal {
    fn start(args: &[&str]) -> Self {
        let size = Winsize { ws_row: 31, ws_col: 107, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let ktstr = ktstr::executables::find_own("ktstr").expect("ktstr is built");
        let child = Command::new(ktstr)
            .args(["shell", "--accel", "tcg", "--topology", "1n1l2c1t", "--memory-mb", "512"])
            .args(args)
            .env("TERM", "vt102")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        Self { child, pty, seen: String::new() }
    }

    /// Reads until the terminal has shown `needle`, and forgets what it showed up to there.
    fn until(&mut self, needle: &str) -> String {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.seen.find(needle) {
                let rest = self.seen.split_off(at + needle.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            assert!(begun.elapsed() < PATIENCE, "no `{needle}` in:\n{}", self.seen);
            let mut fds = [PollFd::new(self.pty.master.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, 200u16).unwrap() == 0 {
                assert!(self.child.try_wait().unwrap().is_none(), "ended early:\n{}", self.seen);
                continue;
            }
            let mut bytes = [0; 4096];
            let n = File::from(self.pty.master.try_clone().unwrap()).read(&mut bytes).unwrap();
            self.seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
        }
    }

    fn type_keys(&self, keys: &str) {
        File::from(self.pty.master.try_clone().unwrap()).write_all(keys.as_bytes()).unwrap();
    }

    fn resize(&self, rows: u16, cols: u16) {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open and `size` outlives the call, which only reads it.
        let set =
            unsafe { nix::libc::ioctl(self.pty.master.as_raw_fd(), nix::libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(set, 0);
        // The kernel tells those whose controlling terminal it is; ours is the test's own child.
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGWINCH).unwrap();
    }

    /// Whether the terminal is as a person's shell wants it.
    fn is_cooked(&self) -> bool {
        tcgetattr(&self.pty.slave).unwrap().local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO)
    }
}

#[test]
fn what_is_typed_is_carried_out_and_the_status_comes_back() {
    let mut terminal = OnTerminal::start(&[]);
    terminal.until("ktstr# ");
    assert!(!terminal.is_cooked(), "raw while the guest has it");
    // What is looked for is computed by the guest: the terminal echoes what was typed.
    terminal.type_keys("echo cpus=$(nproc) pid1=$(cat /proc/1/comm)\r");
    terminal.until("cpus=2 pid1=init");
    terminal.type_keys("stty size; echo $TERM-$((6*7))\r");
    let size = terminal.until("vt102-42");
    assert!(size.contains("31 107"), "{size}");
    terminal.resize(19, 83);
    // The guest hears of it through a port of its own, when it may.
    terminal.type_keys("while [ \"$(stty size)\" != '19 83' ]; do :; done; echo seen-$((2*50))\r");
    terminal.until("seen-100");
    // The key interrupts the guest's command, not ours.
    terminal.type_keys("echo begun-$((3*3)); sleep 10000\r");
    terminal.until("begun-9");
    terminal.type_keys("\x03");
    terminal.type_keys("echo status=$?\r");
    terminal.until("status=130");
    terminal.type_keys("exit 7\r");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(7));
    assert!(terminal.is_cooked(), "given back as it was");
}

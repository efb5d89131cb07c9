//! `ktstr-vmm shell` as a person uses it: status passed on, terminal given back.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ktstr_proto::guest::{GuestFrame, GuestMessage, Log, LogSource, ProcessEnd};
use ktstr_proto::ring::{self, Mode, encode_frame};
use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

use crate::guest::{Needs, initramfs, needs};
use crate::role::{RING, poke, ring_header};

const LIMIT: Duration = Duration::from_secs(120);

fn shell(needs: &Needs, directory: &Path, script: &str) -> Command {
    let initrd = directory.join("initrd");
    std::io::copy(&mut File::from(initramfs(script)), &mut File::create(&initrd).unwrap()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ktstr-vmm"));
    command.arg("shell").arg("--kernel").arg(&needs.kernels[0]).arg("--initrd").arg(initrd);
    command.args(["--memory-mb", "512"]);
    command
}

fn frames(bodies: &[GuestFrame]) -> Vec<u8> {
    let encode = |(n, body): (usize, &GuestFrame)| {
        encode_frame(n as u64, &GuestMessage { t_ns: 0, body: body.clone() }).unwrap()
    };
    bodies.iter().enumerate().flat_map(encode).collect()
}

#[test]
fn output_and_status_of_a_command_are_passed_on() {
    let Some(needs) = needs() else { return };
    let bytes = frames(&[
        GuestFrame::Log(Log { source: LogSource::Stdout, text: "to stdout\n".into() }),
        GuestFrame::Log(Log { source: LogSource::Stderr, text: "to stderr\n".into() }),
        GuestFrame::ExecEnded(ProcessEnd::Exited(7)),
    ]);
    for (accel, mode, len) in [("tcg", Mode::Wrap, 4 << 20), ("det", Mode::Linear, 16 << 20)] {
        assert_eq!(RING.gpa, 0x800_0000);
        let script = poke(ring::DATA, &bytes)
            + &ring_header(mode, len - ring::DATA, bytes.len() as u64)
            + "test -s /ktstr/job && poweroff -f";
        let directory = tempfile::tempdir().unwrap();
        let output = shell(&needs, directory.path(), &script)
            .args(["--exec", "x", "--accel", accel])
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(7), "{stderr}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "to stdout\n");
        assert_eq!(stderr, "to stderr\n");
    }
}

#[test]
fn a_machine_that_fails_shows_its_last_lines() {
    let Some(needs) = needs() else { return };
    let directory = tempfile::tempdir().unwrap();
    let output = shell(&needs, directory.path(), "echo c >/proc/sysrq-trigger")
        .args(["--exec", "x"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(stderr.contains("Kernel panic - not syncing"), "{stderr}");
}

#[test]
fn a_shell_without_a_terminal_or_under_det_is_refused() {
    let Some(needs) = needs() else { return };
    let directory = tempfile::tempdir().unwrap();
    let refused = |extra: &[&str]| {
        let output =
            shell(&needs, directory.path(), "poweroff -f").args(extra).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(4));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(refused(&[]).contains("standard input is no terminal"));
    assert!(refused(&["--accel", "det"]).contains("--exec"));
}

struct OnTerminal {
    child: Child,
    pty: OpenptyResult,
    seen: String,
}

impl OnTerminal {
    fn start(mut command: Command) -> OnTerminal {
        let pty = openpty(None, None).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        OnTerminal { child, pty, seen: String::new() }
    }

    fn until(&mut self, needle: &str) {
        let start = Instant::now();
        let mut master = File::from(self.pty.master.try_clone().unwrap());
        while !self.seen.contains(needle) {
            assert!(start.elapsed() < LIMIT, "no `{needle}` in:\n{}", self.seen);
            let mut fds = [nix::poll::PollFd::new(self.pty.master.as_fd(), nix::poll::PollFlags::POLLIN)];
            if nix::poll::poll(&mut fds, 200u16).unwrap() == 0 {
                assert!(self.child.try_wait().unwrap().is_none(), "ended early:\n{}", self.seen);
                continue;
            }
            let mut buffer = [0; 4096];
            let n = master.read(&mut buffer).unwrap();
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    }

    fn type_in(&mut self, text: &str) {
        File::from(self.pty.master.try_clone().unwrap()).write_all(text.as_bytes()).unwrap();
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.pty.slave).unwrap().local_flags.contains(LocalFlags::ICANON)
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const LISTENER: &str = "exec sh -c 'echo ready; while read line; do case $line in *quit*) poweroff -f;; esac; \
    echo \"heard $line\"; done' </dev/hvc0 >/dev/hvc0 2>&1";

#[test]
fn typing_reaches_the_guest_and_the_terminal_comes_back() {
    let Some(needs) = needs() else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut user = OnTerminal::start(shell(&needs, directory.path(), LISTENER));
    user.until("ready");
    assert!(user.is_raw());
    user.type_in("hello\r");
    user.until("heard hello");
    user.type_in("quit\r");
    // No status came from the guest, which is no ktstr-guest.
    assert_eq!(user.child.wait().unwrap().code(), Some(4));
    assert!(!user.is_raw());
}

#[test]
fn signals_and_hang_up_end_the_machine_and_restore_the_terminal() {
    let Some(needs) = needs() else { return };
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let directory = tempfile::tempdir().unwrap();
        let mut user = OnTerminal::start(shell(&needs, directory.path(), LISTENER));
        user.until("Ctrl-]");
        let start = Instant::now();
        while !user.is_raw() {
            assert!(start.elapsed() < LIMIT);
            std::thread::sleep(Duration::from_millis(5));
        }
        kill(Pid::from_raw(user.child.id() as i32), signal).unwrap();
        assert_eq!(user.child.wait().unwrap().code(), Some(128 + signal as i32));
        assert!(!user.is_raw(), "{signal}");
    }
    let directory = tempfile::tempdir().unwrap();
    let mut user = OnTerminal::start(shell(&needs, directory.path(), LISTENER));
    user.until("ready");
    user.type_in("\u{1d}");
    assert_eq!(user.child.wait().unwrap().code(), Some(0));
    assert!(!user.is_raw());
}

//! The confined process as the host sees it.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

use ktstr_jail::Role;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::child::{Outcome, outcome, start};

/// A pipe that the child reports on. Made before the fork, shared by number.
static READY: OnceLock<(OwnedFd, OwnedFd)> = OnceLock::new();

fn ready_then_wait() -> i32 {
    let (_, writer) = READY.get().expect("made before the fork");
    if nix::unistd::write(writer, b"x").is_err() {
        return 1;
    }
    loop {
        std::thread::park();
    }
}

pub fn status_of(pid: Pid) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("read the status");
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

pub fn assert_confined(pid: Pid, namespaces: &[&str]) {
    let status = status_of(pid);
    let none = "0000000000000000";
    for (key, value) in [
        ("Seccomp", "2"),
        ("NoNewPrivs", "1"),
        ("CapInh", none),
        ("CapPrm", none),
        ("CapEff", none),
        ("CapBnd", none),
        ("CapAmb", none),
    ] {
        assert_eq!(status[key], value, "{key}");
    }
    for name in namespaces {
        let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("read the namespace");
        assert_ne!(link("self"), link(&pid.to_string()), "{name}");
    }
}

#[test]
fn self_confined_processes_look_confined() {
    let (reader, _) = READY.get_or_init(|| nix::unistd::pipe().expect("pipe"));
    for role in [Role::Vmm, Role::Monitor, Role::Device] {
        let pid = start(role, ready_then_wait);
        let mut byte = [0];
        let mut poll =
            [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(reader), nix::poll::PollFlags::POLLIN)];
        let ready = nix::poll::poll(&mut poll, nix::poll::PollTimeout::from(20_000_u16)).expect("poll");
        assert_eq!(ready, 1, "{role:?} reports in time");
        nix::unistd::read(reader, &mut byte).expect("read");
        assert_confined(pid, &["user", "mnt", "net", "ipc", "uts", "cgroup"]);
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("read the mounts");
        assert_eq!(mounts.lines().count(), 1, "one mount, the empty root:\n{mounts}");
        assert!(mounts.contains(" ro,"), "{mounts}");
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("read the limits");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("core limit");
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
        kill(pid, Signal::SIGKILL).expect("kill");
        assert!(matches!(outcome(pid), Outcome::Other(_)));
    }
    assert!(reader.as_raw_fd() > 2);
}

//! The processes of a live run as the host sees them, and a host that forbids user namespaces.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::CommandExt,
    process::{Command, Output},
};

use ktstr::prelude::*;
use ktstr_proto::{
    Accel,
    device::{DiskConfig, NetConfig},
    run::RunSpec,
    verdict::Process,
};
use nix::{
    libc,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::{Live, reached, recorded, recorded_pid, spec};

/// It lasts until it is killed.
#[ktstr_test(duration_s = 60, ignore)]
fn watched(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

/// Of files that have a name, which each may hold beside its standard streams.
const HELD: [(Process, &[&str]); 4] = [
    (Process::Vmm, &[]),
    (Process::Emulator, &["vmlinux", ".cpio", "(deleted)"]),
    (Process::Monitor, &["vmlinux"]),
    (Process::Device, &["(deleted)"]),
];

#[test]
fn live_processes_are_confined() {
    let root = tempfile::tempdir().unwrap();
    let live = Live::start(
        RunSpec {
            disk: Some(DiskConfig::new().capacity_mib(1)),
            networks: vec![NetConfig::new()],
            ..spec("watched", Accel::Tcg)
        },
        root.path(),
    );
    let pids = ["vmm-pid", "emulator-pid", "monitor-pid", "device-pid"]
        .map(|event| recorded_pid(&live.dir, event, "/value"));
    assert!(reached(&live.dir, "ScenarioStarted"), "the run ended before its scenario");
    // Where the host forbids user namespaces, root's machines have all others, and say so.
    let walls = recorded(&live.dir, "vmm-started").and_then(|line| line.pointer("/value/walls").cloned());
    let own_user = walls != Some("NoUserNamespace".into());
    let found: Vec<Result<(), String>> =
        HELD.iter().zip(pids).map(|((process, held), pid)| confined(*process, pid, held, own_user)).collect();
    kill(Pid::from_raw(pids[0].cast_signed()), Signal::SIGKILL).unwrap();
    live.end().0.expect("the orchestrator lives and reports");
    for found in found {
        found.unwrap();
    }
}

fn confined(process: Process, pid: u32, held: &[&str], own_user: bool) -> Result<(), String> {
    let said = |what: String| format!("{process:?}, {pid}: {what}");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| said(e.to_string()))?;
    let status: BTreeMap<_, _> = status.lines().filter_map(|line| line.split_once(":\t")).collect();
    let none = "0000000000000000";
    let caps = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|name| (name, none));
    for (name, value) in caps.into_iter().chain([("Seccomp", "2"), ("NoNewPrivs", "1")]) {
        if status.get(name) != Some(&value) {
            return Err(said(format!("{name} is {:?}", status.get(name))));
        }
    }
    if status.get("NSpid").and_then(|ids| ids.rsplit('\t').next()) != Some("1") {
        return Err(said(format!("not the first of its namespace: {:?}", status.get("NSpid"))));
    }
    let link = |pid: &str, path: &str| {
        fs::read_link(format!("/proc/{pid}/{path}")).map_err(|e| said(format!("{path}: {e}")))
    };
    for name in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"].into_iter().skip(usize::from(!own_user))
    {
        let path = format!("ns/{name}");
        if link("self", &path)? == link(&pid.to_string(), &path)? {
            return Err(said(format!("it shares its {name} namespace with the host")));
        }
    }
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).map_err(|e| said(e.to_string()))?;
    for entry in entries.flatten() {
        let number = entry.file_name().to_string_lossy().into_owned();
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        let nameless =
            ["socket:", "pipe:", "anon_inode:", "/memfd:"].iter().any(|kind| target.starts_with(kind));
        // The place of a network's server, whose directory is gone.
        let socket = target.ends_with("/s (deleted)");
        let standard = number.parse::<u32>().is_ok_and(|number| number < 3);
        if !nameless && !standard && !socket && !held.iter().any(|end| target.ends_with(end)) {
            return Err(said(format!("descriptor {number} is {target}")));
        }
    }
    Ok(())
}

/// `ktstr shell` where no namespace can be made: user namespaces are used up and every capability is gone.
/// Nothing where this host does not let itself be limited so: `/proc/sys` may be read-only.
fn where_namespaces_are_forbidden(jail: &[&str]) -> Option<Output> {
    let ktstr = ktstr::executables::find_own("ktstr").expect("ktstr is built");
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let mut command = Command::new(ktstr);
    command.args(["shell", "--cold", "--accel", "tcg", "--exec", "echo it runs"]).args(jail);
    let forbid = move || -> std::io::Result<()> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
        fs::write("/proc/sys/user/max_user_namespaces", "0")?;
        // Root gets nothing back by executing something (SECBIT_NOROOT and its lock).
        // SAFETY: numbers, and two arrays of the sizes that version 3 of the header has.
        unsafe {
            let header = [0x2008_0522_u32, 0];
            let none = [0_u32; 6];
            if libc::prctl(libc::PR_SET_SECUREBITS, 3, 0, 0, 0) != 0
                || libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: a child of one thread; it writes files and changes itself. Allocation after the fork is glibc's
    // to keep possible.
    unsafe { command.pre_exec(forbid) };
    let outcome = command.output();
    if let Err(error) = &outcome
        && matches!(
            error.raw_os_error(),
            Some(libc::EPERM | libc::EACCES | libc::EROFS | libc::ENOSPC | libc::ENOENT)
        )
    {
        println!("NOT RUN: this host's namespaces cannot be limited: {error}");
        return None;
    }
    Some(outcome.expect("ktstr runs"))
}

#[test]
fn a_host_without_namespaces_is_told_what_to_allow_or_to_ask_for() {
    let Some(refused) = where_namespaces_are_forbidden(&[]) else { return };
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{said}");
    assert!(said.contains("user.max_user_namespaces") && said.contains("--jail=reduced"), "{said}");

    let Some(reduced) = where_namespaces_are_forbidden(&["--jail", "reduced"]) else { return };
    let said = String::from_utf8_lossy(&reduced.stderr).into_owned();
    assert_eq!(reduced.status.code(), Some(0), "{said}");
    assert!(String::from_utf8_lossy(&reduced.stdout).contains("it runs"), "{said}");
    assert!(said.contains("jail: reduced"), "{said}");
}

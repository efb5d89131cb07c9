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

use crate::harness::{Live, not_run, reached, recorded, recorded_pid, spec};

/// It lasts until it is killed.
#[ktstr_test(llcs = 1, cores = 2, threads = 1, duration_s = 60, ignore)]
fn watched(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

/// What each holds at most beside its standard streams, and how often; [`name_of`] says how they are called.
type Held = &'static [(&'static str, usize)];

/// For what gives nobody power over anything, and of which there are as many as queues or an emulator wants.
const ANY: usize = usize::MAX;

/// To the orchestrator, to the emulator's control and its debugger; both serial ports; guest RAM; the emulator's standard error.
const VMM: Held = &[
    ("socket", 3),
    ("memfd:console", 2),
    ("memfd:guest-ram", 2),
    ("pidfd", 1),
    ("pipe", 1),
    ("eventpoll", 2),
];
/// Control, debugger, disk, network (whose place is `s`); serial ports, RAM and initramfs as they were given and as it opened
/// them; the library that is preloaded, and what that reports by.
const EMULATOR: Held = &[
    ("socket", 4),
    ("s", 1),
    ("memfd:console", 4),
    ("memfd:guest-ram", 2),
    ("kernel", 1),
    ("unnamed file", 1),
    ("memfd:coherence", 1),
    ("pipe", 1),
    ("eventfd", ANY),
    ("eventpoll", ANY),
    ("signalfd", ANY),
    ("timerfd", ANY),
];
/// Kernel and RAM until they are mapped.
const MONITOR: Held = &[("socket", 1), ("kernel", 1), ("memfd:guest-ram", 1)];
/// To the orchestrator, of the disk, and of the network, between whose user and server messages are passed on; the disk's image.
const DEVICE: Held = &[
    ("socket", 8),
    ("memfd:guest-ram", 2),
    ("unnamed file", 1),
    ("timerfd", 1),
    ("eventpoll", 2),
    ("eventfd", ANY),
];

/// Under `kvm`: to the orchestrator, of the disk and of the network; both serial ports; guest RAM; the machine,
/// its two vCPUs and what KVM counts for them. `/dev/kvm` is closed by then.
const VMM_OF_KVM: Held = &[
    ("socket", 3),
    ("memfd:console", 4),
    ("memfd:guest-ram", 4),
    ("anon_inode:kvm-vm", 1),
    ("anon_inode:kvm-vcpu", 2),
    ("anon_inode:kvm-vcpu-stats", 2),
    ("eventpoll", 1),
    ("eventfd", ANY),
];

const OF_TCG: &[(Process, Held)] = &[
    (Process::Vmm, VMM),
    (Process::Emulator, EMULATOR),
    (Process::Monitor, MONITOR),
    (Process::Device, DEVICE),
];
const OF_KVM: &[(Process, Held)] =
    &[(Process::Vmm, VMM_OF_KVM), (Process::Monitor, MONITOR), (Process::Device, DEVICE)];

#[test]
fn live_processes_are_confined() {
    all_confined(Accel::Tcg, OF_TCG);
}

#[test]
fn on_kvm_live_processes_are_confined() {
    all_confined(Accel::Kvm, OF_KVM);
}

fn all_confined(accel: Accel, each: &[(Process, Held)]) {
    let root = tempfile::tempdir().unwrap();
    let live = Live::start(
        RunSpec {
            disk: Some(DiskConfig::new().capacity_mib(1)),
            networks: vec![NetConfig::new()],
            ..spec("watched", accel)
        },
        root.path(),
    );
    let reached = reached(&live.dir, "ScenarioStarted");
    // Where the host forbids user namespaces, root's machines have all others, and say so.
    let walls = recorded(&live.dir, "vmm-started").and_then(|line| line.pointer("/value/walls").cloned());
    let own_user = walls != Some("NoUserNamespace".into());
    let look = |(process, held): &(Process, Held)| {
        let event = format!("{process:?}-pid").to_lowercase();
        let pid = recorded_pid(&live.dir, &event, "/value");
        confined(*process, pid, held, own_user)
    };
    let found: Vec<Result<(), String>> = if reached { each.iter().map(look).collect() } else { vec![] };
    if let Some(vmm) = recorded(&live.dir, "vmm-pid").and_then(|line| line.pointer("/value")?.as_i64()) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(vmm as i32), Signal::SIGKILL);
    }
    let report = live.end().0.expect("the orchestrator lives and reports");
    if !reached && not_run(&report, accel) {
        return;
    }
    assert!(reached, "the run ended before its scenario: {:?}", report.cause);
    let wrong: Vec<String> = found.into_iter().filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a descriptor is, without numbers that differ from run to run.
fn name_of(target: &str) -> String {
    let target = target.trim_end_matches(" (deleted)");
    match target.split_once(":[") {
        // The number of the vCPU follows.
        _ if target.starts_with("anon_inode:kvm-vcpu") => {
            target.trim_end_matches(|digit: char| digit.is_ascii_digit()).trim_end_matches(':').to_owned()
        }
        Some((kind @ ("socket" | "pipe"), _)) => kind.to_owned(),
        Some(("anon_inode", kind)) => kind.trim_end_matches(']').to_owned(),
        _ => {
            let name = target.rsplit('/').next().unwrap_or(target);
            match name {
                // The store's, or one that was moved.
                "vmlinux" | "memfd:kernel" => "kernel".to_owned(),
                "memfd:ktstr-ram" => "memfd:guest-ram".to_owned(),
                name if name.ends_with(".cpio") || name.starts_with(".tmp") || name.starts_with('#') => {
                    "unnamed file".to_owned()
                }
                name => name.to_owned(),
            }
        }
    }
}

fn confined(process: Process, pid: u32, held: &[(&str, usize)], own_user: bool) -> Result<(), String> {
    let said = |what: String| format!("{process:?}, {pid}: {what}");
    let entries =
        |name: &str| fs::read_dir(format!("/proc/{pid}/{name}")).map_err(|e| said(format!("{name}: {e}")));
    let none = "0000000000000000";
    let caps = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|name| (name, none));
    for thread in entries("task")?.flatten() {
        // One that has just ended is confined enough.
        let Ok(status) = fs::read_to_string(thread.path().join("status")) else { continue };
        let status: BTreeMap<_, _> = status.lines().filter_map(|line| line.split_once(":\t")).collect();
        for (name, value) in caps.into_iter().chain([("Seccomp", "2"), ("NoNewPrivs", "1")]) {
            if status.get(name) != Some(&value) {
                return Err(said(format!("{name} of {:?} is {:?}", status.get("Name"), status.get(name))));
            }
        }
        let ids = status.get("NStgid").and_then(|ids| ids.rsplit('\t').next());
        if ids != Some("1") {
            return Err(said(format!("not the first of its namespace: {ids:?}")));
        }
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
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for entry in entries("fd")?.flatten() {
        let standard = entry.file_name().to_string_lossy().parse::<u32>().is_ok_and(|number| number < 3);
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        if !standard {
            *found.entry(name_of(&target.to_string_lossy())).or_default() += 1;
        }
    }
    let allowed =
        |(name, count): (&String, &usize)| held.iter().any(|(kind, most)| kind == name && count <= most);
    if found.iter().all(allowed) {
        Ok(())
    } else {
        Err(said(format!("it holds {found:?}, at most {held:?}")))
    }
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

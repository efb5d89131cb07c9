//! Each kind of bad input has an error of its own, and none of them hangs.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::{Command, Stdio},
};

use ktstr::client::Session;
use ktstr_proto::{
    Accel, VERSION,
    codec::{Header, Kind},
    run::{Job, RunSpec},
    verdict::{Cause, RunReport},
};

use crate::harness::{PATIENCE, SOON, alive, exec, run, spec, wait_for};

fn reason(report: &RunReport) -> String {
    match &report.cause {
        Some(Cause::BadRequest { reason } | Cause::Missing { reason } | Cause::Channel { reason }) => {
            reason.clone()
        }
        other => panic!("{other:?}"),
    }
}

fn refused(spec: RunSpec, expected: &[&str]) {
    let reason = reason(&run(spec));
    let missing: Vec<_> = expected.iter().filter(|word| !reason.contains(*word)).collect();
    assert!(missing.is_empty(), "`{reason}` does not say {missing:?}");
}

fn with_kernel(path: &std::path::Path) -> RunSpec {
    RunSpec { kernel: Some(path.to_str().expect("plain path").into()), ..exec("true") }
}

fn with_scheduler(path: &std::path::Path) -> RunSpec {
    let mut spec = spec("healthy", Accel::Tcg);
    if let Job::Test(test) = &mut spec.job {
        test.scheduler.as_mut().expect("the subject has a scheduler").source =
            ktstr_proto::run::SchedulerSource::Program(path.into());
    }
    spec
}

#[test]
fn a_kernel_that_is_not_there() {
    refused(with_kernel("/nonexistent/vmlinux".as_ref()), &["/nonexistent/vmlinux"]);
}

#[test]
fn a_kernel_that_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmlinux");
    fs::write(&path, "this is no kernel").unwrap();
    refused(with_kernel(&path), &["vmlinux"]);
}

#[test]
fn a_series_that_is_not_cached() {
    refused(RunSpec { kernel: Some("debian:4.19".into()), ..exec("true") }, &["4.19", "kernel pull"]);
}

#[test]
fn too_little_memory() {
    refused(RunSpec { memory_mb: Some(64), ..exec("true") }, &["64 MB", "--memory-mb"]);
}

#[test]
fn a_scheduler_that_is_no_elf() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scheduler");
    fs::write(&path, "#!/bin/sh\n").unwrap();
    refused(with_scheduler(&path), &["scheduler"]);
}

#[test]
fn a_library_that_is_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
    fs::write(at("lost.c"), "int lost(void) { return 0; }").unwrap();
    fs::write(at("main.c"), "int lost(void); int main(void) { return lost(); }").unwrap();
    let cc = |args: &[&str]| assert!(Command::new("cc").args(args).status().unwrap().success());
    cc(&["-shared", "-o", &at("liblost.so"), &at("lost.c")]);
    cc(&["-o", &at("scheduler"), &at("main.c"), "-L", dir.path().to_str().unwrap(), "-llost"]);
    fs::remove_file(at("liblost.so")).unwrap();
    refused(with_scheduler(at("scheduler").as_ref()), &["liblost.so"]);
}

#[test]
fn a_guest_kernel_that_panics() {
    let report = run(exec("echo c > /proc/sysrq-trigger; sleep 60"));
    assert!(
        matches!(&report.cause, Some(Cause::KernelPanic { message }) if message.contains("sysrq")),
        "{:?}",
        report.cause
    );
}

/// The decompressed image of some cached kernel.
fn any_vmlinux() -> std::path::PathBuf {
    let ktstr = ktstr::executables::find_own("ktstr").expect("ktstr is built");
    let listed = Command::new(ktstr).args(["kernel", "list", "--json"]).output().unwrap();
    let kernels: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let path = kernels.pointer("/0/path").and_then(serde_json::Value::as_str).expect("a kernel is cached");
    std::path::Path::new(path).join("vmlinux")
}

/// Where the emulator enters a kernel: the file offset of the address in its PVH note
/// (XEN_ELFNOTE_PHYS32_ENTRY of include/xen/interface/elfnote.h).
fn pvh_entry(image: &[u8]) -> usize {
    let field = |at: usize, size: usize| {
        let bytes = &image[at..at + size];
        bytes.iter().rev().fold(0usize, |value, byte| value << 8 | usize::from(*byte))
    };
    // type 4 in 4 bytes, offset, virtual and physical address, size: each 8 bytes from 8 on.
    let headers = |wanted: usize| {
        let (first, size, count) = (field(32, 8), field(54, 2), field(56, 2));
        let all = (0..count).map(move |n| first + n * size);
        all.filter(move |at| field(*at, 4) == wanted)
            .map(|at| (field(at + 8, 8), field(at + 24, 8), field(at + 32, 8)))
    };
    let name = [&4u32.to_le_bytes()[..], &8u32.to_le_bytes(), &18u32.to_le_bytes(), b"Xen\0"].concat();
    let short = [&4u32.to_le_bytes()[..], &4u32.to_le_bytes(), &18u32.to_le_bytes(), b"Xen\0"].concat();
    let note = headers(4).find_map(|(offset, _, size)| {
        let notes = &image[offset..offset + size];
        let at = notes.windows(name.len()).position(|w| w == name || w == short)?;
        Some(field(offset + at + name.len(), 4))
    });
    let entry = note.expect("the kernel has a PVH note");
    let inside =
        |(offset, start, size)| (start..start + size).contains(&entry).then(|| offset + entry - start);
    headers(1).find_map(inside).expect("the entry lies in a segment")
}

#[test]
fn a_kernel_that_hangs_before_init() {
    let mut image = fs::read(any_vmlinux()).unwrap();
    let entry = pvh_entry(&image);
    // A jump to itself.
    image[entry..entry + 2].copy_from_slice(&[0xeb, 0xfe]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmlinux");
    fs::write(&path, image).unwrap();
    // In a store of its own: nobody else is to find this kernel.
    let served = Served::start_with(&[("KTSTR_CACHE_DIR", &dir.path().join("store"))]);
    let mut session = Session::connect(served.socket.to_str().unwrap().into(), "e2e").unwrap();
    let spec = RunSpec { deadline_ms: Some(4000), ..with_kernel(&path) };
    let report = session.run(spec, PATIENCE, |_, _| ()).expect("a report");
    let Some(Cause::Deadline { phase, waited_ms }) = &report.cause else { panic!("{:?}", report.cause) };
    // Not the limit of a boot, which is minutes; a host that is stopped meanwhile makes it more than asked.
    assert!(phase.contains("boot") && (4000..60_000).contains(waited_ms), "{phase} {waited_ms}");
    assert!(report.infrastructure, "nothing can be said about a scheduler");
}

#[test]
fn an_initramfs_that_memory_does_not_hold() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large");
    fs::write(&path, vec![1; 100 << 20]).unwrap();
    let mut spec = exec("true");
    let Job::Shell(shell) = &mut spec.job else { unreachable!("exec makes a shell job") };
    shell.include.push(path);
    // Less than the machine was given for this load: the root file system may take half of it.
    spec.kernel_args = vec!["mem=256M".into()];
    let report = run(spec);
    let Some(Cause::GuestInit { reason, .. }) = &report.cause else { panic!("{:?}", report.cause) };
    assert!(reason.contains("unpack") && reason.contains("memory"), "{reason}");
}

#[test]
fn a_kernel_argument_that_would_cut_the_channel() {
    refused(RunSpec { kernel_args: vec!["memmap=1M$0".into()], ..exec("true") }, &["memmap=1M$0", "channel"]);
}

#[test]
fn a_guest_that_does_not_end() {
    let report = run(RunSpec { deadline_ms: Some(3000), ..exec("sleep 1000") });
    assert!(matches!(report.cause, Some(Cause::Deadline { .. })), "{:?}", report.cause);
}

#[test]
fn a_ring_full_of_garbage() {
    let find = "r=$(grep -o 'memmap=[0-9]*K.0x[0-9a-f]*' /proc/cmdline | sed 's/.*0x//')";
    let spoil = "dd if=/dev/urandom of=/dev/mem bs=4096 count=64 seek=$((0x$r / 4096)) conv=notrunc";
    // Whatever it said afterwards would put a sound index in the place of the garbage.
    let report = run(exec(&format!("{find}; {spoil} 2>/dev/null; sleep 60")));
    assert!(matches!(report.cause, Some(Cause::Channel { .. })), "{:?}", report.cause);
}

/// A running `ktstr-orch serve`, killed when dropped.
pub struct Served {
    process: std::process::Child,
    /// Where it listens.
    pub socket: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Served {
    fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more variables.
    pub fn start_with(env: &[(&str, &std::path::Path)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("orch");
        let orch = ktstr::executables::find_own("ktstr-orch").expect("ktstr-orch is built");
        let process = Command::new(orch)
            .arg("serve")
            .arg("--socket")
            .arg(&socket)
            .envs(env.iter().copied())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("socket", SOON, || UnixStream::connect(&socket).ok());
        Self { process, socket, _dir: dir }
    }

    /// Sends bytes and returns how many came back before the orchestrator hung up.
    fn answer(&self, bytes: &[u8]) -> usize {
        let mut client = UnixStream::connect(&self.socket).unwrap();
        client.set_read_timeout(Some(SOON)).unwrap();
        client.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).expect("the orchestrator hangs up instead of waiting");
        answer.len()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[test]
fn clients_that_talk_nonsense_are_hung_up_on_and_hurt_nobody() {
    let served = Served::start();
    let header = Header { version: VERSION, link: 1, kind: Kind::Request, length: 0, fds: 0 };
    let mut future = header.encode();
    future[4..6].copy_from_slice(&999u16.to_le_bytes());
    assert_eq!(served.answer(&future), 0);
    let mut gigabyte = header.encode();
    gigabyte[8..12].copy_from_slice(&(1u32 << 30).to_le_bytes());
    assert_eq!(served.answer(&gigabyte), 0);
    assert_eq!(served.answer(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), 0);
    let wrong_link = Header { link: 3, ..header };
    assert_eq!(served.answer(&wrong_link.encode()), 0);
    assert!(alive(served.process.id()));
    assert!(UnixStream::connect(&served.socket).is_ok());
}

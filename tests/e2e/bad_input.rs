//! Each kind of bad input has an error of its own, and none of them hangs.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::{Command, Stdio},
    time::Duration,
};

use ktstr_proto::{
    Accel, VERSION,
    codec::{Header, Kind},
    run::{Job, RunSpec},
    verdict::{Cause, RunReport},
};

use crate::harness::{alive, exec, run, spec, wait_for};

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
        test.scheduler.as_mut().expect("the subject has a scheduler").binary = path.into();
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

#[test]
fn a_guest_that_does_not_end() {
    let report = run(RunSpec { deadline_ms: Some(3000), ..exec("sleep 1000") });
    assert!(matches!(report.cause, Some(Cause::Deadline { .. })), "{:?}", report.cause);
}

#[test]
fn a_ring_full_of_garbage() {
    let find = "r=$(grep -o 'memmap=[0-9]*K.0x[0-9a-f]*' /proc/cmdline | sed 's/.*0x//')";
    let spoil = "dd if=/dev/urandom of=/dev/mem bs=4096 count=64 seek=$((0x$r / 4096)) conv=notrunc";
    let report = run(exec(&format!("{find}; {spoil}; sleep 60")));
    assert!(matches!(report.cause, Some(Cause::Channel { .. })), "{:?}", report.cause);
}

/// A running `ktstr-orch serve`, killed when dropped.
struct Served {
    process: std::process::Child,
    socket: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Served {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("orch");
        let orch = ktstr::executables::find_own("ktstr-orch").expect("ktstr-orch is built");
        let process = Command::new(orch)
            .arg("serve")
            .arg("--socket")
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("socket", Duration::from_secs(10), || UnixStream::connect(&socket).ok());
        Self { process, socket, _dir: dir }
    }

    /// Sends bytes and returns how many came back before the orchestrator hung up.
    fn answer(&self, bytes: &[u8]) -> usize {
        let mut client = UnixStream::connect(&self.socket).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
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

//! A program started in the emulator's jail: a shell stands in for the emulator.

use std::io::{PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use ktstr_jail::{JailError, JailSpec, Jailed, Program, killed_by_filter, spawn};
use nix::unistd::Pid;

use crate::child::assert_success;
use crate::outside::assert_confined;

const SHELL: &str = "/bin/sh";

/// A shell that reads `stdin` and has its standard output and error in one pipe.
fn shell_reading(stdin: BorrowedFd<'_>, script: &str) -> (Jailed, PipeReader) {
    let spec = JailSpec::emulator(&[]);
    start(&spec, Path::new(SHELL), stdin, script).expect("start the shell in the jail")
}

fn shell(script: &str) -> (Jailed, PipeReader) {
    shell_reading(null().as_fd(), script)
}

fn null() -> std::fs::File {
    std::fs::File::open("/dev/null").unwrap()
}

fn start(
    spec: &JailSpec,
    path: &Path,
    stdin: BorrowedFd<'_>,
    script: &str,
) -> Result<(Jailed, PipeReader), JailError> {
    let (reader, writer) = std::io::pipe().unwrap();
    let args = ["-c".to_owned(), script.to_owned()];
    let stdio = [stdin, writer.as_fd(), writer.as_fd()];
    let program = Program { path, args: &args, environment: &[], stdio, inherited: &[] };
    Ok((spawn(spec, &program)?, reader))
}

fn output(mut reader: PipeReader) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

/// What a shell says that holds `kept` under its number here, which the script calls `$0`.
fn said_with(spec: &JailSpec, kept: &std::fs::File, script: &str) -> (std::process::ExitStatus, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    let args = ["-c".to_owned(), script.to_owned(), kept.as_raw_fd().to_string()];
    let stdin = null();
    let stdio = [stdin.as_fd(), writer.as_fd(), writer.as_fd()];
    let inherited = [kept.as_fd()];
    let mut jailed = spawn(
        spec,
        &Program { path: Path::new(SHELL), args: &args, environment: &[], stdio, inherited: &inherited },
    )
    .unwrap();
    drop(writer);
    (jailed.wait(), output(reader))
}

/// Opened anew by its number, a descriptor is asked for anew: `landlock.rst`, where the kernel has it.
#[test]
fn what_it_holds_for_reading_it_cannot_write() {
    if !landlocked() {
        return println!("NOT RUN: this kernel has no Landlock");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let high = |file: std::fs::File| -> std::fs::File {
        let number = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(40)).unwrap();
        // SAFETY: made just now, for us.
        unsafe { std::os::fd::FromRawFd::from_raw_fd(number) }
    };
    let read_only = high(std::fs::File::open(&file).unwrap());
    let both = high(std::fs::File::options().read(true).write(true).open(&file).unwrap());
    for namespaces in [ktstr_jail::Namespaces::OfNewUser, ktstr_jail::Namespaces::Forgone] {
        let spec = JailSpec::emulator(&[]).with_namespaces(namespaces);
        std::fs::write(&file, "as it was").unwrap();
        // The lowest free number, so that the shell need not move what it opens, which the filter forbids.
        let script = "exec 3</proc/self/fd/$0; echo opened; exec 3>&-; exec 3>/proc/self/fd/$0; echo emptied";
        let (status, text) = said_with(&spec, &read_only, script);
        assert!(!status.success() && text.starts_with("opened\n"), "{namespaces:?}, {status}: {text}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "as it was", "{namespaces:?}");
        let (status, text) = said_with(&spec, &both, script);
        assert!(status.success() && text == "opened\nemptied\n", "{namespaces:?}, {status}: {text}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "", "{namespaces:?}");
    }
}

/// Without namespaces its files are what the host's are, and it reaches none of them.
#[test]
fn without_namespaces_landlock_and_the_filter_remain() {
    if !landlocked() {
        return println!("NOT RUN: this kernel has no Landlock");
    }
    let spec = JailSpec::emulator(&[]).with_namespaces(ktstr_jail::Namespaces::Forgone);
    let kept = null();
    let script = "read -r line </etc/passwd || read -r line </proc/self/status || echo closed";
    let (status, text) = said_with(&spec, &kept, script);
    assert!(status.success() && text.ends_with("closed\n"), "{status}: {text}");
    let (status, text) = said_with(&spec, &kept, "kill -0 1");
    assert!(killed_by_filter(status), "{status}: {text}");
    let (mut jailed, mut reader) =
        start(&spec, Path::new(SHELL), null().as_fd(), "echo up; kill -9 $$").unwrap();
    let mut up = [0; 3];
    reader.read_exact(&mut up).unwrap();
    assert!(killed_by_filter(jailed.wait()));
}

/// Whether the running kernel has Landlock: it tells the version of its interface.
fn landlocked() -> bool {
    // SAFETY: a null pointer, no size and the flag that asks for the version.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, 1) > 0 }
}

#[test]
fn it_runs_as_first_process_of_its_own_namespace() {
    let (mut jailed, reader) = shell("echo $$");
    let text = output(reader);
    assert_success(jailed.wait(), &text);
    assert_eq!(text, "1\n");
}

#[test]
fn it_looks_confined_and_dies_on_request() {
    let (silence, _open) = std::io::pipe().unwrap();
    let (mut jailed, mut reader) = shell_reading(silence.as_fd(), "echo up; read line");
    let mut up = [0; 3];
    reader.read_exact(&mut up).unwrap();
    let pid = Pid::from_raw(jailed.pid().cast_signed());
    assert_confined(pid, &["user", "mnt", "net", "ipc", "uts", "cgroup", "pid"]);
    assert_eq!(jailed.try_wait(), None);
    jailed.kill();
    assert!(jailed.try_wait().is_some());
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn it_sees_libraries_and_its_descriptors_but_no_secrets() {
    let script = "for p in /usr/lib /proc/self/fd /etc/passwd /root /home /dev /sys /proc/1 /proc/self/status /tmp; \
                  do [ -e $p ] && echo $p; done; [ -w / ] && echo writable; true";
    let (mut jailed, reader) = shell(script);
    let text = output(reader);
    assert_success(jailed.wait(), &text);
    assert_eq!(text, "/usr/lib\n/proc/self/fd\n");
}

/// The script must end by the filter, perhaps before its start is confirmed, which is the same end.
fn assert_killed_by_filter(script: &str) {
    let (status, text) = match start(&JailSpec::emulator(&[]), Path::new(SHELL), null().as_fd(), script) {
        Ok((mut jailed, reader)) => {
            let text = output(reader);
            (jailed.wait(), text)
        }
        Err(JailError::ChildEnded { status }) => (status, String::new()),
        Err(other) => panic!("{other}"),
    };
    assert!(killed_by_filter(status), "{status}: {text}");
}

#[test]
fn it_cannot_execute_anything_more() {
    assert_killed_by_filter("exec /usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --help");
}

#[test]
fn it_cannot_fork() {
    assert_killed_by_filter("(echo child); echo parent");
}

#[test]
fn descriptors_are_the_listed_ones() {
    let kept = std::fs::File::open("/dev/null").unwrap();
    let stray = std::fs::File::open("/dev/null").unwrap();
    // SAFETY: a number; the stray descriptor would survive an exec now.
    unsafe { libc::fcntl(stray.as_raw_fd(), libc::F_SETFD, 0) };
    let (mut reader, writer) = std::io::pipe().unwrap();
    // Its standard input stays silent and open for as long as this test holds the other end.
    let (silence, _open) = std::io::pipe().unwrap();
    let args = ["-c".to_owned(), "echo up; read line".to_owned()];
    let stdio = [silence.as_fd(), writer.as_fd(), writer.as_fd()];
    let inherited = [kept.as_fd()];
    let program =
        Program { path: Path::new(SHELL), args: &args, environment: &[], stdio, inherited: &inherited };
    let mut jailed = spawn(&JailSpec::emulator(&[]), &program).expect("start the shell");
    drop(writer);
    let mut up = [0; 3];
    reader.read_exact(&mut up).expect("the shell says that it runs");
    let mut open: Vec<i32> = std::fs::read_dir(format!("/proc/{}/fd", jailed.pid()))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().parse().unwrap())
        .collect();
    open.sort_unstable();
    let mut expected = vec![0, 1, 2, kept.as_raw_fd()];
    expected.sort_unstable();
    assert_eq!(open, expected);
    jailed.kill();
}

#[test]
fn a_missing_program_is_named() {
    let error =
        start(&JailSpec::emulator(&[]), Path::new("/no/such/emulator"), null().as_fd(), "").unwrap_err();
    assert!(
        matches!(&error, JailError::OpenProgram { path, .. } if path == Path::new("/no/such/emulator")),
        "{error:?}"
    );
}

#[test]
fn a_file_that_is_no_program_is_an_error_of_the_start() {
    let error = start(&JailSpec::emulator(&[]), Path::new("/etc/hostname"), null().as_fd(), "").unwrap_err();
    assert!(
        matches!(&error, JailError::Step { step, .. } if step.contains("start /etc/hostname")),
        "{error:?}"
    );
}

#[test]
fn a_failing_step_is_named() {
    let mut spec = JailSpec::emulator(&[]);
    // The parent of this mount point is a link that only the jail's root resolves, to nothing.
    spec.mounts.insert(0, ktstr_jail::Mount::Link("/dev".into(), "/nowhere".into()));
    spec.mounts.push(ktstr_jail::Mount::Device("/dev/null".into()));
    let error = start(&spec, Path::new(SHELL), null().as_fd(), "").unwrap_err();
    assert!(matches!(&error, JailError::Step { step, .. } if step.contains("/dev/null")), "{error:?}");
}

//! The emulator as a child process: started with named descriptors and nothing else, noticed when it
//! dies, ended together with us.
//!
//! It refuses to inherit: only the descriptors given cross the `exec`, the environment is empty,
//! standard input is `/dev/null`. The child's standard error is kept (its end only) for errors.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// How much of the child's complaints is kept, in bytes.
const STDERR_KEPT: usize = 8 << 10;

/// Why the emulator could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It could not be executed.
    #[error("start the emulator {program}")]
    Spawn {
        /// The executable.
        program: String,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It runs but cannot be watched.
    #[error("open a process descriptor of the emulator")]
    Pidfd {
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Its standard error cannot be read without blocking.
    #[error("make the emulator's standard error non-blocking")]
    Stderr {
        /// The operating system's reason.
        #[source]
        source: Errno,
    },
}

/// A running emulator. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Emulator {
    child: Child,
    pidfd: OwnedFd,
    stderr: ChildStderr,
    complaints: Vec<u8>,
    status: Option<ExitStatus>,
}

impl Emulator {
    /// Starts `program`; `inherited` keep their numbers in the child.
    ///
    /// The child dies with the *thread* that calls this, which must therefore live as long as the
    /// machine.
    pub fn spawn(program: &Path, args: &[String], inherited: &[BorrowedFd<'_>]) -> Result<Emulator, ChildError> {
        let numbers: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
        let parent = std::process::id();
        let mut command = Command::new(program);
        command.args(args).env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped());
        // SAFETY: between fork and exec the closure calls only async-signal-safe system calls and
        // does not allocate.
        unsafe {
            command.pre_exec(move || prepare(&numbers, parent));
        }
        let mut child = command
            .spawn()
            .map_err(|source| ChildError::Spawn { program: program.display().to_string(), source })?;
        let stderr = child.stderr.take();
        let mut emulator = match (pidfd_of(&child), stderr) {
            (Ok(pidfd), Some(stderr)) => {
                Emulator { child, pidfd, stderr, complaints: Vec::new(), status: None }
            }
            (pidfd, _) => {
                // Unwatched it must not run; the error to report is the first one.
                let _ = child.kill();
                let _ = child.wait();
                let source = pidfd.err().unwrap_or_else(|| std::io::ErrorKind::BrokenPipe.into());
                return Err(ChildError::Pidfd { source });
            }
        };
        if let Err(source) = set_nonblocking(emulator.stderr.as_fd()) {
            emulator.kill();
            return Err(ChildError::Stderr { source });
        }
        Ok(emulator)
    }

    /// Readable once the child has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The child's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child's standard error, for polling.
    #[must_use]
    pub fn stderr(&self) -> BorrowedFd<'_> {
        self.stderr.as_fd()
    }

    /// Takes what the child has written to its standard error so far. `false` at its end.
    pub fn read_complaints(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.stderr.read(&mut buffer) {
                Ok(0) => return false,
                Ok(n) => {
                    self.complaints.extend_from_slice(&buffer[..n]);
                    let excess = self.complaints.len().saturating_sub(STDERR_KEPT);
                    self.complaints.drain(..excess);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return e.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
    }

    /// The end of what the child complained about, without its harmless warnings.
    #[must_use]
    pub fn complaints(&self) -> String {
        let text = String::from_utf8_lossy(&self.complaints);
        let lines: Vec<&str> = text.lines().filter(|line| !line.contains(": warning: ")).collect();
        lines.join("; ")
    }

    /// How the child ended, if it has.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Kills the child and reaps it.
    pub fn kill(&mut self) {
        if self.try_wait().is_none() {
            // Both fail only for a child that is gone already.
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The end of a process in words.
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => match nix::sys::signal::Signal::try_from(signal) {
            Ok(name) => format!("killed by {name}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        (None, Some(code)) => format!("exit status {code}"),
        (None, None) => status.to_string(),
    }
}

fn prepare(numbers: &[RawFd], parent: u32) -> std::io::Result<()> {
    // SAFETY: plain system calls on numbers; no memory is passed.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // The parent may have died before the line above.
        if libc::getppid() as u32 != parent {
            return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
        }
        for number in numbers {
            if libc::fcntl(*number, libc::F_SETFD, 0) != 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

fn pidfd_of(child: &Child) -> std::io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers; its result is checked before it becomes an owner.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id() as libc::pid_t, 0) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a descriptor the kernel has just made for us, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use nix::poll::{PollFd, PollFlags, poll};

    use super::*;

    fn shell(script: &str, inherited: &[BorrowedFd<'_>]) -> Emulator {
        Emulator::spawn(Path::new("/bin/sh"), &["-c".into(), script.into()], inherited).unwrap()
    }

    fn wait(emulator: &mut Emulator) -> ExitStatus {
        poll(&mut [PollFd::new(emulator.pidfd(), PollFlags::POLLIN)], 10_000u16).unwrap();
        emulator.try_wait().expect("the process descriptor was readable")
    }

    #[test]
    fn the_end_and_the_complaints_are_known() {
        let mut emulator = shell("echo 'x: warning: harmless' >&2; echo broken >&2; exit 3", &[]);
        assert_eq!(describe(wait(&mut emulator)), "exit status 3");
        while emulator.read_complaints() {}
        assert_eq!(emulator.complaints(), "broken");
    }

    #[test]
    fn only_named_descriptors_cross_and_the_environment_is_empty() {
        let given = tempfile::tempfile().unwrap();
        let kept = tempfile::tempfile().unwrap();
        let script = format!(
            "test -e /proc/self/fd/{} || exit 1; test -e /proc/self/fd/{} && exit 2; test -z \"$HOME\" || exit 3",
            given.as_raw_fd(),
            kept.as_raw_fd()
        );
        let mut emulator = shell(&script, &[given.as_fd()]);
        assert_eq!(describe(wait(&mut emulator)), "exit status 0");
    }

    #[test]
    fn a_kill_is_noticed_at_once_and_named() {
        let mut emulator = shell("exec sleep 60", &[]);
        let start = Instant::now();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(emulator.pid() as i32), nix::sys::signal::SIGKILL).unwrap();
        assert_eq!(describe(wait(&mut emulator)), "killed by SIGKILL");
        assert!(start.elapsed() < Duration::from_millis(200));
    }

    #[test]
    fn endless_complaints_keep_their_end() {
        let mut emulator = shell("yes padding | head -c 300000 >&2; echo the end >&2", &[]);
        while emulator.try_wait().is_none() {
            emulator.read_complaints();
        }
        while emulator.read_complaints() {}
        assert!(emulator.complaints.len() <= STDERR_KEPT);
        assert!(emulator.complaints().ends_with("the end"));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Emulator::spawn(Path::new("/nonexistent/emulator"), &[], &[]).unwrap_err();
        assert_eq!(error.to_string(), "start the emulator /nonexistent/emulator");
    }
}

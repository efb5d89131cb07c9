//! The emulator as a child process: started with named descriptors and nothing else, noticed when it
//! dies, ended together with us.
//!
//! It runs in its jail from the first instruction. It refuses to inherit: only the descriptors given
//! cross the `exec`, the environment is what is given and empty but under `det`, standard input is `/dev/null`. The
//! child's standard error is kept (its end only) for errors.

use std::fs::File;
use std::io::{PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use ktstr_jail::{JailError, JailSpec, Jailed, Program};
use ktstr_proto::run::Jail;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::confine;

/// How much of the child's complaints is kept, in bytes.
const STDERR_KEPT: usize = 8 << 10;

/// Why the emulator could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It could not be executed in its jail.
    #[error("start the emulator {program}")]
    Spawn {
        /// The executable.
        program: String,
        /// The reason.
        #[source]
        source: JailError,
    },
    /// Its standard streams could not be made.
    #[error("make the emulator's standard streams")]
    Streams {
        /// The operating system's reason.
        #[from]
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

/// A running emulator in its jail. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Emulator {
    child: Jailed,
    stderr: PipeReader,
    complaints: Vec<u8>,
}

impl Emulator {
    /// Starts `program` in `jail` with `environment` (`NAME=value`); `inherited` keep their numbers in the
    /// child.
    ///
    /// The child dies with the *thread* that calls this, which must therefore live as long as the
    /// machine.
    pub fn spawn(
        jail: Jail,
        spec: JailSpec,
        program: &Path,
        args: &[String],
        environment: &[String],
        inherited: &[BorrowedFd<'_>],
    ) -> Result<Emulator, ChildError> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let (stderr, stderr_sink) = std::io::pipe()?;
        let stdio = [null.as_fd(), null.as_fd(), stderr_sink.as_fd()];
        let start = Program { path: program, args, environment, stdio, inherited };
        let child = confine::fitting(jail, spec, |spec| ktstr_jail::spawn(spec, &start))
            .map_err(|source| ChildError::Spawn { program: program.display().to_string(), source })?;
        set_nonblocking(stderr.as_fd()).map_err(|source| ChildError::Stderr { source })?;
        Ok(Emulator { child, stderr, complaints: Vec::new() })
    }

    /// Readable once the child has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd()
    }

    /// The child's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
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
        self.child.try_wait()
    }

    /// Stops all its threads where they are.
    pub fn freeze(&mut self, limit: Duration) -> std::io::Result<()> {
        self.child.freeze(limit)
    }

    /// Lets them go on.
    pub fn thaw(&mut self) -> std::io::Result<()> {
        self.child.thaw()
    }

    /// Kills the child and reaps it.
    pub fn kill(&mut self) {
        self.child.kill();
    }
}

/// The end of a process in words.
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    if ktstr_jail::killed_by_filter(status) {
        return "killed by its system call filter (SIGSYS)".to_owned();
    }
    match (status.signal(), status.code()) {
        (Some(signal), _) => match nix::sys::signal::Signal::try_from(signal) {
            Ok(name) => format!("killed by {name}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        (None, Some(code)) => format!("exit status {code}"),
        (None, None) => status.to_string(),
    }
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use ktstr_proto::vmm::VmExit;
    use nix::poll::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn who_was_ended_from_outside_is_told_from_who_ended_by_itself() {
        use std::os::unix::process::ExitStatusExt;
        let end =
            |raw| VmExit::EmulatorDied { how: describe(ExitStatus::from_raw(raw)), stderr: String::new() };
        assert!(!end(libc::SIGKILL).is_of_itself());
        for raw in [libc::SIGSEGV, libc::SIGABRT, libc::SIGSYS, 1 << 8, 0] {
            assert!(end(raw).is_of_itself(), "{:?}", end(raw));
        }
    }

    /// Small programs that do with the system calls an emulator may make.
    fn start(program: &str, args: &[&str], inherited: &[BorrowedFd<'_>]) -> Emulator {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        Emulator::spawn(Jail::Full, JailSpec::emulator(&[]), Path::new(program), &args, &[], inherited)
            .unwrap()
    }

    fn wait(emulator: &mut Emulator) -> ExitStatus {
        poll(&mut [PollFd::new(emulator.pidfd(), PollFlags::POLLIN)], 10_000u16).unwrap();
        emulator.try_wait().expect("the process descriptor was readable")
    }

    #[test]
    fn the_end_and_the_complaints_are_known() {
        let mut emulator = start("/bin/cat", &["/no/such: warning: harmless", "/no/such/file"], &[]);
        assert_eq!(describe(wait(&mut emulator)), "exit status 1");
        while emulator.read_complaints() {}
        assert!(emulator.complaints().contains("/no/such/file: No such file"), "{}", emulator.complaints());
        assert!(!emulator.complaints().contains("harmless"));
    }

    #[test]
    fn only_named_descriptors_cross() {
        let given = tempfile::tempfile().unwrap();
        let kept = tempfile::tempfile().unwrap();
        let path = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut emulator = start("/usr/bin/test", &["-e", &path(&given)], &[given.as_fd()]);
        assert_eq!(describe(wait(&mut emulator)), "exit status 0");
        let mut emulator = start("/usr/bin/test", &["-e", &path(&kept)], &[given.as_fd()]);
        assert_eq!(describe(wait(&mut emulator)), "exit status 1");
    }

    #[test]
    fn a_kill_is_noticed_and_named() {
        let mut emulator = start("/bin/sleep", &["60"], &[]);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(emulator.pid() as i32), nix::sys::signal::SIGKILL)
            .unwrap();
        assert_eq!(describe(wait(&mut emulator)), "killed by SIGKILL");
    }

    #[test]
    fn a_forbidden_system_call_is_named_as_the_end() {
        let mut emulator = start("/bin/mkdir", &["/directory"], &[]);
        assert_eq!(describe(wait(&mut emulator)), "killed by its system call filter (SIGSYS)");
    }

    #[test]
    fn endless_complaints_keep_their_end() {
        let mut paths = vec!["/no/such/file/anywhere"; 2000];
        paths.push("/the/end");
        let mut emulator = start("/bin/cat", &paths, &[]);
        while emulator.try_wait().is_none() {
            emulator.read_complaints();
        }
        while emulator.read_complaints() {}
        assert!(emulator.complaints.len() <= STDERR_KEPT);
        assert!(emulator.complaints().ends_with("/the/end: No such file or directory"));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Emulator::spawn(
            Jail::Full,
            JailSpec::emulator(&[]),
            Path::new("/nonexistent/emulator"),
            &[],
            &[],
            &[],
        )
        .unwrap_err();
        assert_eq!(error.to_string(), "start the emulator /nonexistent/emulator");
    }
}

//! The processes a session starts: found, spawned with one socket, watched by pidfd, always reaped.
//!
//! A [`Child`] that is dropped is killed and reaped; nothing else in the orchestrator touches a pid.

use std::{
    env, fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use ktstr_proto::{CHILD_SOCKET_FD, Channel, ChannelError, Link};

/// Why a child process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The executable is nowhere.
    #[error(
        "cannot find `{name}` beside {beside}, in KTSTR_BIN_DIR or on PATH: build it with `cargo build -p {name}` or install cargo-ktstr"
    )]
    NotFound {
        /// Its name.
        name: &'static str,
        /// The directory of the running executable.
        beside: PathBuf,
    },
    /// A system call failed.
    #[error("cannot start {name}: {action} failed")]
    System {
        /// Its name.
        name: &'static str,
        /// What was being done.
        action: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The channel could not be set up.
    #[error("cannot start {name}")]
    Channel {
        /// Its name.
        name: &'static str,
        /// The reason.
        #[source]
        source: ChannelError,
    },
}

/// Finds one of our executables: beside the running one (or beside its `deps` directory), in
/// `KTSTR_BIN_DIR`, on `PATH`.
pub fn find_executable(name: &'static str) -> Result<PathBuf, SpawnError> {
    let beside =
        env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf)).unwrap_or_default();
    let mut places = vec![beside.clone()];
    places.extend(beside.parent().filter(|_| beside.ends_with("deps")).map(Path::to_path_buf));
    places.extend(env::var_os("KTSTR_BIN_DIR").map(PathBuf::from));
    places.extend(env::var_os("PATH").iter().flat_map(env::split_paths).collect::<Vec<_>>());
    places
        .into_iter()
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .ok_or(SpawnError::NotFound { name, beside })
}

/// A running process with the socket to it.
pub struct Child<L: Link> {
    /// The conversation.
    pub channel: Channel<L>,
    /// Readable when the process has ended.
    pub pidfd: OwnedFd,
    process: std::process::Child,
    status: Option<ExitStatus>,
}

impl<L: Link> Child<L> {
    /// Starts `name` with stdio, one socket, and nothing else; its stderr goes to `log`.
    pub fn spawn(name: &'static str, args: &[&str], log: Option<fs::File>) -> Result<Self, SpawnError> {
        let system = |action| move |source: io::Error| SpawnError::System { name, action, source };
        let program = find_executable(name)?;
        let (ours, theirs) = UnixStream::pair().map_err(system("making a socket pair"))?;
        let raw = theirs.as_raw_fd();
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(log.map_or_else(Stdio::null, Stdio::from));
        // SAFETY: the closure runs between fork and exec and only makes async-signal-safe calls.
        unsafe { command.pre_exec(move || hand_over(raw)) };
        let process = command.spawn().map_err(system("exec"))?;
        drop(theirs);
        let pidfd = pidfd_open(process.id()).map_err(system("pidfd_open"))?;
        let channel = Channel::new(ours, name).map_err(|source| SpawnError::Channel { name, source })?;
        Ok(Self { channel, pidfd, process, status: None })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.process.try_wait().ok().flatten();
        }
        self.status
    }

    /// Ends the process at once and reaps it.
    pub fn kill(&mut self) -> Option<ExitStatus> {
        if self.ended().is_none() {
            // Killing fails only when it has ended, and then waiting returns at once.
            let _ = self.process.kill();
            self.status = self.process.wait().ok();
        }
        self.status
    }
}

impl<L: Link> Drop for Child<L> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// In the child: the socket becomes descriptor 3, and the child dies with its parent.
fn hand_over(socket: RawFd) -> io::Result<()> {
    // SAFETY: plain system calls on integers, async-signal-safe.
    let result = unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if socket == CHILD_SOCKET_FD {
            libc::fcntl(socket, libc::F_SETFD, 0)
        } else {
            libc::dup2(socket, CHILD_SOCKET_FD)
        }
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: a system call on integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::PIDFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// An exit status in words.
pub fn describe(status: Option<ExitStatus>) -> String {
    match status.map(|s| (s.code(), s.signal())) {
        Some((Some(code), _)) => format!("exited with status {code}"),
        Some((_, Some(libc::SIGSYS))) => "was killed by its seccomp filter (SIGSYS)".into(),
        Some((_, Some(signal))) => format!("was killed by signal {signal}"),
        _ => "ended in an unknown way".into(),
    }
}

//! The processes a session starts: found, spawned with one socket, watched by pidfd, always reaped.
//!
//! A [`Child`] that is dropped is killed and reaped; nothing else in the orchestrator touches a pid.

use std::{
    env, fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::ExitStatus,
};

use ktstr_jail::{Cell, JailError, Jailed};
use ktstr_proto::{Channel, ChannelError, Link, link::chain, run::Jail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A process whose socket is closed is about to end, if it has not; milliseconds.
const ENDING_MS: u16 = 1000;

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
    /// The process could not be made.
    #[error("cannot start {name}")]
    Start {
        /// Its name.
        name: &'static str,
        /// The reason.
        #[source]
        source: JailError,
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
    process: Jailed,
}

impl<L: Link> Child<L> {
    /// Starts `name` with stdio, one socket, and nothing else, in a process id namespace of its own where the
    /// host allows one; its stderr goes to `log`.
    pub fn spawn(
        name: &'static str,
        args: &[&str],
        log: Option<fs::File>,
        jail: Jail,
    ) -> Result<Self, SpawnError> {
        let reduced = jail == Jail::Reduced;
        let args: Vec<&str> = args.iter().copied().chain(reduced.then_some("--jail=reduced")).collect();
        Self::start(name, &args, log, !reduced)
    }

    /// Starts `name` likewise, as one who watches over the host's processes: an orchestrator.
    pub fn spawn_free(name: &'static str, args: &[&str], log: Option<fs::File>) -> Result<Self, SpawnError> {
        Self::start(name, args, log, false)
    }

    fn start(
        name: &'static str,
        args: &[&str],
        log: Option<fs::File>,
        namespace: bool,
    ) -> Result<Self, SpawnError> {
        let system = |action| move |source: io::Error| SpawnError::System { name, action, source };
        let program = find_executable(name)?;
        let (ours, theirs) = UnixStream::pair().map_err(system("making a socket pair"))?;
        let null = fs::File::options().read(true).write(true).open("/dev/null");
        let null = null.map_err(system("opening /dev/null"))?;
        let errors = log.as_ref().unwrap_or(&null).as_fd();
        let descriptors = [null.as_fd(), null.as_fd(), errors, theirs.as_fd()];
        let cell = Cell { path: &program, args, descriptors, namespace };
        let process = ktstr_jail::start(&cell).map_err(|source| SpawnError::Start { name, source })?;
        drop(theirs);
        let pidfd = process.pidfd().try_clone_to_owned().map_err(system("duplicating its pidfd"))?;
        let channel = Channel::new(ours, name).map_err(|source| SpawnError::Channel { name, source })?;
        Ok(Self { channel, pidfd, process })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait()
    }

    /// Why it cannot be talked to: that it ended, and how, where that is known within a second.
    pub fn why_silent(&mut self, error: &ChannelError) -> String {
        let gone = matches!(error, ChannelError::Closed { .. }) && {
            let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            matches!(poll(&mut fds, PollTimeout::from(ENDING_MS)), Ok(ready) if ready > 0)
        };
        match gone.then(|| self.ended()).flatten() {
            Some(status) => format!("{} before it was told anything", describe(Some(status))),
            None => chain(error),
        }
    }

    /// Ends the process at once and reaps it.
    pub fn kill(&mut self) -> Option<ExitStatus> {
        self.process.kill();
        self.process.try_wait()
    }
}

impl<L: Link> Drop for Child<L> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The process id in this process's own namespace that a pidfd stands for; nothing once it has ended.
pub fn pid_of(pidfd: &OwnedFd) -> Option<u32> {
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let line = about.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    line.trim().parse().ok().filter(|pid| *pid > 0)
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

#[cfg(test)]
mod tests {
    use ktstr_proto::vmm::VmmLink;

    use super::*;

    #[test]
    fn who_ends_before_he_is_told_anything_is_told_of_by_his_end() {
        let mut child = Child::<VmmLink>::spawn_free("false", &[], None).unwrap();
        let error = loop {
            child.channel.queue_hello("test").unwrap();
            match child.channel.flush() {
                Ok(_) => std::thread::yield_now(),
                Err(error) => break error,
            }
        };
        assert_eq!(child.why_silent(&error), "exited with status 1 before it was told anything");
    }
}

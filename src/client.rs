//! The connection to an orchestrator: one of our own, started for this session, or the running one that
//! `KTSTR_ORCH_SOCK` names.
//!
//! Holds no privilege and no path of a run. The orchestrator's death is seen at once (its socket closes)
//! and reported with its exit status and last words. See [`Session`].

use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ktstr_proto::{
    CHILD_SOCKET_FD, Channel, ChannelError,
    channel::Message,
    client::{Cancel, ClientEvent, ClientLink, Submit, Submitted},
    link::{Fds, chain},
    repro::AutoRepro,
    run::{RunId, RunSpec},
    verdict::RunReport,
};
use nix::libc;

use crate::executables::{NotFound, find_own};

/// Variable that names the socket of a running orchestrator.
pub const ORCH_SOCK: &str = "KTSTR_ORCH_SOCK";

/// How long an orchestrator may take to answer a request.
const ANSWER: Duration = Duration::from_secs(60);
/// How long our own orchestrator may take to leave once we are gone.
const FAREWELL: Duration = Duration::from_secs(5);
/// Lines of its standard error that are kept for the report of its death.
const LAST_WORDS: usize = 20;

/// Why there is no report of a run.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The orchestrator's executable is nowhere.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// It cannot be started.
    #[error("cannot start {path}")]
    Start {
        /// Its executable.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The running one cannot be reached.
    #[error(
        "cannot connect to the orchestrator at {path} ({ORCH_SOCK}): start it with `ktstr-orch serve --socket {path}`"
    )]
    Connect {
        /// Its socket.
        path: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The conversation failed.
    #[error("the orchestrator cannot be spoken to")]
    Channel(#[from] ChannelError),
    /// Our own orchestrator is gone.
    #[error("ktstr-orch {how} before the run was over{}", words(last_words))]
    Died {
        /// Exit status or signal in words.
        how: String,
        /// Its last lines.
        last_words: Vec<String>,
    },
}

/// A verdict that was out before the orchestrator went.
fn without_second(report: RunReport, error: &ClientError) -> RunReport {
    let why = AutoRepro::not_run(format!("lost with its orchestrator: {}", chain(error)));
    RunReport { auto_repro: Some(Box::new(why)), ..report }
}

fn words(lines: &[String]) -> String {
    if lines.is_empty() { String::new() } else { format!("; its last words:\n  {}", lines.join("\n  ")) }
}

/// One conversation with an orchestrator. Dropping it ends its runs and, if the orchestrator is our
/// own, waits for it to leave.
pub struct Session {
    channel: Option<Channel<ClientLink>>,
    own: Option<OwnOrchestrator>,
    /// Events that came before the answer to a request.
    early: VecDeque<(ClientEvent, Fds)>,
    /// The run that was asked for last.
    run_id: Option<RunId>,
}

struct OwnOrchestrator {
    child: Child,
    stderr: Option<JoinHandle<Vec<String>>>,
}

impl Session {
    /// Connects to the orchestrator that `KTSTR_ORCH_SOCK` names, or starts one. `who` is this program.
    pub fn start(who: &str) -> Result<Self, ClientError> {
        match std::env::var(ORCH_SOCK).ok().filter(|path| !path.is_empty()) {
            Some(path) => Self::connect(path, who),
            None => Self::spawn(&find_own("ktstr-orch")?)?.greeted(who),
        }
    }

    /// Connects to the orchestrator that listens at `path`.
    pub fn connect(path: String, who: &str) -> Result<Self, ClientError> {
        let socket = UnixStream::connect(&path).map_err(|source| ClientError::Connect { path, source })?;
        let channel = Some(Channel::new(socket, "ktstr-orch")?);
        Self { channel, own: None, early: VecDeque::new(), run_id: None }.greeted(who)
    }

    fn greeted(mut self, who: &str) -> Result<Self, ClientError> {
        match self.channel_mut()?.handshake(who, ANSWER) {
            Ok(_) => Ok(self),
            Err(error) => Err(self.explain(error)),
        }
    }

    /// Starts the orchestrator at `path` for this session alone.
    fn spawn(path: &Path) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Start { path: path.into(), source };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut command = Command::new(path);
        command.arg("run").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = spawn_with_socket(command, theirs.into()).map_err(failed)?;
        let stderr = child.stderr.take().map(|pipe| std::thread::spawn(move || listen(pipe)));
        let channel = Channel::new(ours, "ktstr-orch")?;
        Ok(Self {
            channel: Some(channel),
            own: Some(OwnOrchestrator { child, stderr }),
            early: VecDeque::new(),
            run_id: None,
        })
    }

    /// Asks for a run; events follow with [`Self::next_event`].
    pub fn submit(&mut self, spec: RunSpec) -> Result<Submitted, ClientError> {
        let mut early = std::mem::take(&mut self.early);
        let reply = self
            .channel_mut()?
            .call(Submit(spec), Fds::default(), ANSWER, |event, fds| early.push_back((event, fds)));
        self.early = early;
        match reply {
            Ok((submitted, _)) => {
                self.run_id = Some(submitted.run_id.clone());
                Ok(submitted)
            }
            Err(error) => Err(self.explain(error)),
        }
    }

    /// The run that was asked for last.
    pub fn run_id(&self) -> Option<&RunId> {
        self.run_id.as_ref()
    }

    /// Blocks for the next event of a submitted run, at most `timeout`.
    pub fn next_event(&mut self, timeout: Duration) -> Result<(ClientEvent, Fds), ClientError> {
        if let Some(early) = self.early.pop_front() {
            return Ok(early);
        }
        let peer = "ktstr-orch";
        match self.channel_mut()?.receive(timeout) {
            Ok((Message::Event(event), fds)) => Ok((event, fds)),
            Ok((Message::Reply(_), _)) => self.next_event(timeout),
            Ok((other, _)) => Err(ChannelError::Unexpected { peer, what: format!("{other:?}") }.into()),
            Err(error) => Err(self.explain(error)),
        }
    }

    /// Asks for a run and blocks until its report; all other events go to `on_event`. `silence` bounds
    /// the time between two events.
    pub fn run(
        &mut self,
        spec: RunSpec,
        silence: Duration,
        mut on_event: impl FnMut(ClientEvent, Fds),
    ) -> Result<RunReport, ClientError> {
        self.submit(spec)?;
        let mut held = None;
        loop {
            match self.next_event(silence) {
                Ok((ClientEvent::Finished(report), _)) => return Ok(report),
                Ok((ClientEvent::Held(report), _)) => held = Some(report),
                Ok((event, fds)) => on_event(event, fds),
                Err(error) => return held.map(|report| without_second(report, &error)).ok_or(error),
            }
        }
    }

    /// Asks to end a run early, without waiting; its report still comes.
    pub fn cancel(&mut self, submitted: &Submitted) -> Result<(), ClientError> {
        use ktstr_proto::Call;
        let channel = self.channel_mut()?;
        channel.queue_request(Cancel(submitted.run_id.clone()).into_request(), Fds::default())?;
        Ok(channel.drain(ANSWER)?)
    }

    fn channel_mut(&mut self) -> Result<&mut Channel<ClientLink>, ClientError> {
        self.channel.as_mut().ok_or(ClientError::Channel(ChannelError::Closed { peer: "ktstr-orch" }))
    }

    /// The death of our own orchestrator says more than a closed socket.
    fn explain(&mut self, error: ChannelError) -> ClientError {
        if !matches!(error, ChannelError::Closed { .. }) {
            return error.into();
        }
        self.channel = None;
        match self.own.take() {
            Some(own) => {
                let (how, last_words) = own.end();
                ClientError::Died { how, last_words }
            }
            None => error.into(),
        }
    }
}

impl AsFd for Session {
    /// Becomes readable when an event has arrived or the orchestrator is gone.
    ///
    /// # Panics
    /// After the orchestrator's death was reported.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_ref().expect("the session is over").as_fd()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It leaves when its only client is gone.
        self.channel = None;
        if let Some(own) = self.own.take() {
            own.end();
        }
    }
}

impl OwnOrchestrator {
    /// Waits for it, at most [`FAREWELL`], then kills it; how it ended and its last words.
    fn end(mut self) -> (String, Vec<String>) {
        let deadline = Instant::now() + FAREWELL;
        let how = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break describe(status),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
                Ok(None) => {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    break format!("closed its socket, did not leave within {FAREWELL:?} and was killed");
                }
                Err(e) => break format!("cannot be waited for ({e})"),
            }
        };
        // Its children hold the pipe too and are gone by now, or the thread is left behind.
        let ended = self.stderr.take().filter(|thread| {
            let deadline = Instant::now() + Duration::from_millis(200);
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            thread.is_finished()
        });
        (how, ended.and_then(|thread| thread.join().ok()).unwrap_or_default())
    }
}

fn describe(status: std::process::ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("exited with status {code}"),
        (None, None) => "ended".into(),
    }
}

/// Keeps the last lines; with `KTSTR_VERBOSE=1` passes all on.
fn listen(pipe: ChildStderr) -> Vec<String> {
    let verbose = std::env::var("KTSTR_VERBOSE").is_ok_and(|value| value == "1");
    let mut kept = VecDeque::new();
    for line in BufReader::new(pipe).lines().map_while(Result::ok) {
        if verbose {
            eprintln!("{line}");
        }
        if kept.len() == LAST_WORDS {
            kept.pop_front();
        }
        kept.push_back(line);
    }
    kept.into()
}

/// Starts `command` with `socket` as descriptor 3 and nothing above it.
fn spawn_with_socket(mut command: Command, socket: OwnedFd) -> io::Result<Child> {
    // The pipe on which the standard library learns of a failed exec must not lie on descriptor 3, which
    // the child overwrites: so 3 is occupied while it is made.
    let occupied = nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(CHILD_SOCKET_FD))?;
    let raw = socket.as_raw_fd();
    let prepare = move || {
        // SAFETY: plain system calls on descriptor numbers of the freshly forked child.
        let done = unsafe {
            let moved = if raw == CHILD_SOCKET_FD {
                libc::fcntl(raw, libc::F_SETFD, 0)
            } else {
                libc::dup2(raw, CHILD_SOCKET_FD)
            };
            moved >= 0
                && libc::syscall(
                    libc::SYS_close_range,
                    CHILD_SOCKET_FD as libc::c_uint + 1,
                    libc::c_uint::MAX,
                    libc::CLOSE_RANGE_CLOEXEC,
                ) == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec only system calls are made, no allocation, no lock.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn();
    // Only the child may hold this end, or its death would go unnoticed.
    // SAFETY: the number came from F_DUPFD just above and is owned by nothing else.
    drop(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(occupied) });
    drop(socket);
    child
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stand-in orchestrator that dies at once.
    fn stand_in(script: &str) -> Result<Session, ClientError> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null()).stderr(Stdio::piped());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut child = spawn_with_socket(command, theirs.into()).unwrap();
        let stderr = child.stderr.take().map(|pipe| std::thread::spawn(move || listen(pipe)));
        let channel = Some(Channel::new(ours, "ktstr-orch").unwrap());
        let mut session = Session {
            channel,
            own: Some(OwnOrchestrator { child, stderr }),
            early: VecDeque::new(),
            run_id: None,
        };
        match session.channel_mut()?.handshake("test", Duration::from_secs(10)) {
            Ok(_) => Ok(session),
            Err(error) => Err(session.explain(error)),
        }
    }

    #[test]
    fn a_dying_orchestrator_is_reported_with_its_status_and_last_words() {
        let error = stand_in("echo out of cheese >&2; exit 7").err().unwrap().to_string();
        assert!(error.contains("exited with status 7"), "{error}");
        assert!(error.contains("out of cheese"), "{error}");
        let error = stand_in("kill -9 $$").err().unwrap().to_string();
        assert!(error.contains("was killed by signal 9"), "{error}");
    }

    #[test]
    fn the_child_gets_stdio_and_the_socket_and_nothing_else() {
        let leak = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: clears close-on-exec of a descriptor this test owns.
        assert_eq!(unsafe { libc::fcntl(leak.as_raw_fd(), libc::F_SETFD, 0) }, 0);
        // `ls` itself opens one more: the directory. No shell in between, which opens its own.
        let error = stand_in("exec ls /proc/self/fd >&2").err().unwrap().to_string();
        let listed: Vec<&str> = error.lines().skip(1).map(str::trim).collect();
        assert_eq!(listed, ["0", "1", "2", "3", "4"], "{error}");
    }

    #[test]
    fn garbage_instead_of_a_hello_is_refused() {
        let error = stand_in("echo this is no frame at all >&3; cat <&3 >/dev/null").err().unwrap();
        let error = ktstr_proto::link::chain(&error);
        assert!(error.contains("does not speak this protocol"), "{error}");
    }
}

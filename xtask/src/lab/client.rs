//! One session with the agent: hello, push, run.
//!
//! Every wait ends when the lab dies, at a deadline, or on a signal. A lab that
//! dies or falls silent while it works for us is an error of the infrastructure
//! and says so, with the kernel's last words; a silent one is ended, so that
//! the next client meets a fresh one.

use super::closure::{FileSet, Item};
use super::exchange;
use super::state::{Pushed, StateDir};
use super::wire::{self, Decoder, Exit, Frame, Kind, RunRequest};
use anyhow::{Context, Result, bail};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// An agent silent for this long has hung: emulated SVM locks up a lab's kernel now and then.
pub const SILENCE: Duration = Duration::from_secs(45);
/// How often an agent that says nothing is asked whether it is there.
const ASK: Duration = Duration::from_secs(5);
/// How long a command may take to end after a signal, and after the SIGKILL that follows.
const LAST_WORDS: Duration = Duration::from_secs(6);

/// A connected lab.
pub struct Session<'a> {
    state: &'a StateDir,
    stream: UnixStream,
    signals: SignalFd,
    decoder: Decoder,
    nonce: u64,
    boot_id: String,
    /// When the agent was last heard.
    heard: Instant,
}

/// What woke the client up.
enum Event {
    Frame(Frame),
    Signal(i32),
    Stdin,
    Timeout,
}

/// What a push moved.
#[derive(Debug)]
pub struct PushReport {
    pub files: usize,
    pub bytes: u64,
}

impl<'a> Session<'a> {
    /// Connects and waits until the agent answers; `None` when it did not within `limit`.
    pub fn connect(state: &'a StateDir, limit: Duration) -> Result<Option<Self>> {
        let deadline = Instant::now() + limit;
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block().context("blocking signals")?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("signalfd")?;
        let Some(stream) = connect_socket(state, deadline)? else { return Ok(None) };
        stream.set_nonblocking(true).context("making the agent's socket non-blocking")?;
        let mut session = Self {
            state,
            stream,
            signals,
            decoder: Decoder::default(),
            nonce: fresh_nonce()?,
            boot_id: String::new(),
            heard: Instant::now(),
        };
        Ok(session.greet(deadline)?.then_some(session))
    }

    /// False when no answer came in time.
    fn greet(&mut self, deadline: Instant) -> Result<bool> {
        while Instant::now() < deadline {
            self.send(Kind::Hello, &[])?;
            match self.wait(Instant::now() + Duration::from_millis(500), false)? {
                Event::Frame(frame) if frame.kind == Kind::Ready => {
                    self.boot_id = String::from_utf8_lossy(&frame.body).into_owned();
                    return Ok(true);
                }
                Event::Signal(number) => bail!("interrupted by signal {number} while waiting for the lab"),
                _ => {}
            }
        }
        Ok(false)
    }

    /// Brings in what the lab does not hold yet.
    pub fn push(&mut self, set: &FileSet) -> Result<PushReport> {
        let mut pushed: Pushed = self.state.read("pushed.json").unwrap_or_default();
        if pushed.boot_id != self.boot_id {
            pushed = Pushed { boot_id: self.boot_id.clone(), ..Pushed::default() };
        }
        let mut changed: Vec<(&PathBuf, &Item)> = Vec::new();
        for (path, item) in set.items() {
            let print = fingerprint(item, pushed.files.get(path))?;
            if pushed.files.get(path) != Some(&print) {
                if pushed.files.get(path).is_none_or(|old| !same_contents(old, &print)) {
                    changed.push((path, item));
                }
                pushed.files.insert(path.clone(), print);
            }
        }
        let report =
            if changed.is_empty() { PushReport { files: 0, bytes: 0 } } else { self.transfer(&changed)? };
        self.state.write("pushed.json", &pushed)?;
        Ok(report)
    }

    fn transfer(&mut self, items: &[(&PathBuf, &Item)]) -> Result<PushReport> {
        let path = self.state.file("exchange.img");
        let mut image = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        let token = fresh_nonce()?;
        let bytes = exchange::pack(&mut image, token, items)?;
        self.send(Kind::Push, &token.to_le_bytes())?;
        let deadline = Instant::now() + Duration::from_secs(300);
        loop {
            match self.wait(deadline, false)? {
                Event::Frame(Frame { kind: Kind::Pushed, .. }) => break,
                Event::Frame(Frame { kind: Kind::Refused, body, .. }) => {
                    bail!("the lab could not take the files: {}", String::from_utf8_lossy(&body))
                }
                Event::Signal(number) => bail!("interrupted by signal {number} while bringing files in"),
                Event::Timeout => {
                    return Err(self.hung(&format!("did not take {bytes} bytes of files within 300 s")));
                }
                _ => {}
            }
        }
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        // Only gives disk space back; a filesystem that cannot do it may keep it.
        let _ = fallocate(&image, punch, 0, bytes.next_multiple_of(4096) as i64);
        Ok(PushReport { files: items.len(), bytes })
    }

    /// Runs a command to its end; its stdout goes to `stdout`, its stderr to
    /// ours, and what we can read to its stdin.
    pub fn run(&mut self, request: &RunRequest, limit: Duration, stdout: &mut dyn Write) -> Result<Exit> {
        let mut out = Vec::new();
        let body = serde_json::to_vec(request).context("encoding the run request")?;
        wire::encode_long(&mut out, self.nonce, Kind::Run, &body);
        self.write_all(&out)?;
        let mut ends = Ends { deadline: Instant::now() + limit, signalled: None, killed: None };
        let mut timed_out = false;
        let (mut credit, mut stdin_open) = (0u32, true);
        loop {
            let wake = ends.next().min(Instant::now() + ASK);
            match self.wait(wake, stdin_open && credit > 0)? {
                Event::Frame(frame) => match frame.kind {
                    Kind::Stdout => write_out(stdout, &frame.body)?,
                    Kind::Stderr => write_out(&mut std::io::stderr().lock(), &frame.body)?,
                    Kind::StdinCredit => {
                        let more: [u8; 4] = frame.body.as_slice().try_into().context("stdin credit")?;
                        credit = credit.saturating_add(u32::from_le_bytes(more));
                    }
                    Kind::Refused => {
                        bail!("the lab did not run the command: {}", String::from_utf8_lossy(&frame.body))
                    }
                    Kind::Exit if timed_out => {
                        bail!("the command ran longer than {} s in the lab and was killed", limit.as_secs())
                    }
                    Kind::Exit => return wire::json(&frame.body, "exit message"),
                    _ => {}
                },
                Event::Stdin => stdin_open = self.forward_stdin(&mut credit)?,
                // The second signal kills, and so does no end some seconds after the first.
                Event::Signal(number) => self.end(&mut ends, number)?,
                Event::Timeout if Instant::now() < ends.next() => self.ask()?,
                Event::Timeout if ends.killed.is_some() => {
                    return Err(self.hung("did not end a command that was sent SIGKILL"));
                }
                Event::Timeout => {
                    timed_out |= ends.signalled.is_none();
                    ends.signalled.get_or_insert_with(Instant::now);
                    self.end(&mut ends, Signal::SIGKILL as i32)?;
                }
            }
        }
    }

    /// Passes a signal on; SIGKILL when it is not the first.
    fn end(&mut self, ends: &mut Ends, number: i32) -> Result<()> {
        let now = Instant::now();
        let number = if ends.signalled.replace(now).is_some() {
            ends.killed.get_or_insert(now);
            Signal::SIGKILL as i32
        } else {
            number
        };
        self.send(Kind::Signal, &[number as u8])
    }

    /// Asks whether the agent is there; an error once it was silent for too long.
    fn ask(&mut self) -> Result<()> {
        if self.heard.elapsed() > SILENCE {
            return Err(self.hung(&format!("said nothing for {} s", SILENCE.as_secs())));
        }
        // Within a session a further hello only asks for the boot id.
        self.send(Kind::Hello, &[])
    }

    /// Ends a lab that hangs; the error says what it `did`, or did not.
    fn hung(&self, did: &str) -> anyhow::Error {
        let stopped = self.state.stop();
        let tail = self.state.console_tail(15);
        let fate = match stopped {
            Ok(_) => "it was ended; the next call boots a new one".to_owned(),
            Err(err) => format!("it could not be ended: {err:#}"),
        };
        anyhow::anyhow!("infrastructure, no test result: the lab {did} ({fate}); its console ends:\n{tail}")
    }

    fn forward_stdin(&mut self, credit: &mut u32) -> Result<bool> {
        let mut buffer = [0; 2048];
        let room = buffer.len().min(*credit as usize);
        let len = match nix::unistd::read(std::io::stdin(), &mut buffer[..room]) {
            Ok(len) => len,
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => return Ok(true),
            Err(_) => 0, // closed, or a terminal we may not read: the command sees its end
        };
        *credit -= len as u32;
        self.send(Kind::Stdin, &buffer[..len])?;
        Ok(len > 0)
    }

    fn send(&mut self, kind: Kind, body: &[u8]) -> Result<()> {
        let mut out = Vec::new();
        wire::encode(&mut out, self.nonce, kind, body);
        self.write_all(&out)
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> Result<()> {
        let deadline = Instant::now() + SILENCE;
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(len) => bytes = &bytes[len..],
                Err(err) if err.kind() == ErrorKind::WouldBlock => {
                    if Instant::now() > deadline {
                        return Err(self.hung(&format!("took no bytes for {} s", SILENCE.as_secs())));
                    }
                    let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)];
                    poll_once(&mut fds, 1000)?;
                }
                Err(err) if err.kind() == ErrorKind::Interrupted => {}
                Err(err) if err.kind() == ErrorKind::BrokenPipe => return Err(lab_died(self.state)),
                Err(err) => return Err(err).context("writing to the lab's agent"),
            }
        }
        Ok(())
    }

    /// The next event, at the latest at `until`.
    fn wait(&mut self, until: Instant, want_stdin: bool) -> Result<Event> {
        loop {
            while let Some(frame) = self.decoder.next_frame() {
                if frame.nonce == self.nonce {
                    return Ok(Event::Frame(frame));
                }
            }
            if let Some(info) = self.signals.read_signal().context("reading signals")? {
                return Ok(Event::Signal(info.ssi_signo as i32));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Event::Timeout);
            }
            let stdin = std::io::stdin();
            let mut fds = vec![
                PollFd::new(self.stream.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            if want_stdin {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            }
            poll_once(&mut fds, left.as_millis().clamp(1, 1000) as u16)?;
            let ready = |index: usize| {
                fds.get(index).and_then(PollFd::revents).is_some_and(|flags| !flags.is_empty())
            };
            let (agent_ready, stdin_ready) = (ready(0), ready(2));
            if agent_ready {
                self.receive()?;
            } else if stdin_ready {
                return Ok(Event::Stdin);
            }
        }
    }

    fn receive(&mut self) -> Result<()> {
        let mut buffer = [0; 64 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(lab_died(self.state)),
            Ok(len) => {
                self.heard = Instant::now();
                self.decoder.feed(&buffer[..len]);
                Ok(())
            }
            Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(err) if err.kind() == ErrorKind::ConnectionReset => Err(lab_died(self.state)),
            Err(err) => Err(err).context("reading from the lab's agent"),
        }
    }
}

/// When a command that does not end by itself is made to.
struct Ends {
    deadline: Instant,
    /// The last signal passed on.
    signalled: Option<Instant>,
    killed: Option<Instant>,
}

impl Ends {
    /// When to do more about it.
    fn next(&self) -> Instant {
        self.killed.or(self.signalled).map_or(self.deadline, |at| at + LAST_WORDS)
    }
}

fn poll_once(fds: &mut [PollFd<'_>], millis: u16) -> Result<()> {
    match poll(fds, PollTimeout::from(millis)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(err) => Err(err).context("waiting for the lab"),
    }
}

/// Connects by way of `/proc/self/fd`: socket paths are limited to 107 bytes.
/// `None` when it could not until `deadline`.
fn connect_socket(state: &StateDir, deadline: Instant) -> Result<Option<UnixStream>> {
    let dir = File::open(state.path()).with_context(|| format!("opening {}", state.path().display()))?;
    let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join("agent.sock");
    loop {
        match UnixStream::connect(&path) {
            Ok(stream) => return Ok(Some(stream)),
            Err(_) if !state.is_alive()? => return Err(lab_died(state)),
            Err(_) if Instant::now() > deadline => return Ok(None),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Why the lab is gone, as far as it left word.
fn lab_died(state: &StateDir) -> anyhow::Error {
    let console = state.file("console.log");
    if let Some(line) = state.kernel_death() {
        return anyhow::anyhow!(
            "infrastructure, no test result: the lab's kernel died: {line}\n(console: {}; the next call boots a new lab)",
            console.display()
        );
    }
    let log = |name: &str| fs::read_to_string(state.file(name)).unwrap_or_default().trim().to_owned();
    anyhow::anyhow!(
        "infrastructure, no test result: the lab ended.\nkeeper: {}\nemulator: {}\nconsole ({}):\n{}",
        log("keeper.log"),
        log("emulator.log"),
        console.display(),
        state.console_tail(10)
    )
}

fn fresh_nonce() -> Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("reading /dev/urandom")?;
    Ok(u64::from_le_bytes(bytes).max(1))
}

/// `identity contents` of an item. The contents part is computed only when the
/// identity (size, inode, time) differs from `known`.
fn fingerprint(item: &Item, known: Option<&String>) -> Result<String> {
    let Item::File { source, mode, .. } = item else {
        return Ok(format!("{item:?} -"));
    };
    let meta = fs::metadata(source).with_context(|| format!("looking at {}", source.display()))?;
    let identity =
        format!("{}:{}:{}:{}.{}", meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
    if let Some(known) = known.filter(|known| known.split(' ').next() == Some(&identity)) {
        return Ok(known.clone());
    }
    let mut hasher = DefaultHasher::new();
    let mut file = File::open(source).with_context(|| format!("opening {}", source.display()))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).with_context(|| format!("reading {}", source.display()))? {
            0 => break,
            len => hasher.write(&buffer[..len]),
        }
    }
    Ok(format!("{identity} {:016x}:{}:{mode:o}", hasher.finish(), meta.size()))
}

fn same_contents(old: &str, new: &str) -> bool {
    match (old.split_once(' '), new.split_once(' ')) {
        (Some((_, old)), Some((_, new))) => old == new && old != "-",
        _ => false,
    }
}

fn write_out(to: &mut dyn Write, bytes: &[u8]) -> Result<()> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Err(err) if err.kind() != ErrorKind::BrokenPipe => {
            Err(err).context("passing the command's output on")
        }
        _ => Ok(()), // a reader that went away wants no more; the command goes on
    }
}

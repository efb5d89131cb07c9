//! PID 1 of the lab: takes requests from the client, runs commands, reaps.
//!
//! One command at a time, in a cgroup of its own, so that whatever it leaves
//! behind can be counted and killed. All output goes out before the exit
//! message. A client that goes away ends its command.

use super::guest_setup::{CGROUP_ROOT, bring_up, find_port};
use super::wire::{self, Decoder, Exit, Frame, Kind, RunRequest};
use super::{INFRASTRUCTURE, boot, exchange, shutdowns};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Output waiting for the client; above it the command's pipes are not read.
const OUTPUT_HIGH_WATER: usize = 1 << 20;
/// Stdin bytes the client may have under way.
const STDIN_WINDOW: u32 = 16 * 1024;
/// How long processes of an ended command may take to follow it.
const AFTERMATH: Duration = Duration::from_millis(300);

/// Brings the lab up and serves until powered off.
pub fn agent_main() -> Result<u8> {
    if std::process::id() != 1 {
        bail!("lab-agent is PID 1 of the lab and nothing else");
    }
    let result = bring_up().and_then(|()| Agent::new()?.serve());
    if let Err(err) = &result {
        println!("lab: agent failed: {err:#}");
    }
    let _ = std::io::stdout().flush();
    let err = reboot(RebootMode::RB_POWER_OFF).unwrap_err();
    println!("lab: power-off failed: {err}");
    Ok(INFRASTRUCTURE)
}

struct Running {
    pid: Pid,
    cgroup: PathBuf,
    stdin: Option<ChildStdin>,
    pending_stdin: VecDeque<u8>,
    stdin_ends: bool,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    ended: Option<(WaitStatus, Instant)>,
    /// Known once its cgroup is empty.
    leftovers: Option<usize>,
}

struct Agent {
    port: File,
    signals: SignalFd,
    decoder: Decoder,
    out: Vec<u8>,
    nonce: u64,
    boot_id: String,
    request: Vec<u8>,
    running: Option<Running>,
    /// How many were started; each gets a cgroup with its number.
    commands: u64,
}

impl Agent {
    fn new() -> Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block().context("blocking SIGCHLD")?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("signalfd")?;
        let port = find_port(boot::PORT_NAME)?;
        set_nonblocking(port.as_fd()).context("making the port non-blocking")?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("reading the boot id")?;
        Ok(Self {
            port,
            signals,
            decoder: Decoder::default(),
            out: Vec::new(),
            nonce: 0,
            boot_id: boot_id.trim().to_owned(),
            request: Vec::new(),
            running: None,
            commands: 0,
        })
    }

    fn serve(&mut self) -> Result<u8> {
        println!("lab: ready");
        loop {
            self.wait()?;
            self.reap()?;
            self.sweep();
            self.read_output()?;
            self.write_stdin();
            self.finish_command();
            self.flush()?;
            if !self.read_port()? {
                self.client_left();
                // The port reports "no client" as readiness; look again later.
                std::thread::sleep(Duration::from_millis(20));
            }
            while let Some(frame) = self.decoder.next_frame() {
                if frame.kind == Kind::PowerOff {
                    return Ok(0);
                }
                self.handle(frame);
            }
        }
    }

    fn wait(&self) -> Result<()> {
        let port =
            if self.out.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT };
        let mut fds =
            vec![PollFd::new(self.port.as_fd(), port), PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if let Some(running) = &self.running {
            if self.out.len() < OUTPUT_HIGH_WATER {
                fds.extend(running.stdout.iter().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
                fds.extend(running.stderr.iter().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
            }
            if !running.pending_stdin.is_empty() {
                fds.extend(running.stdin.iter().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)));
            }
        }
        let sweeping = self
            .running
            .as_ref()
            .is_some_and(|running| running.ended.is_some() && running.leftovers.is_none());
        match poll(&mut fds, PollTimeout::from(if sweeping { 10u16 } else { 1000 })) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(err) => Err(err).context("waiting for events"),
        }
    }

    /// False when no client is there.
    fn read_port(&mut self) -> Result<bool> {
        let mut buffer = [0; 32 * 1024];
        match self.port.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(len) => {
                self.decoder.feed(&buffer[..len]);
                Ok(true)
            }
            Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(true),
            Err(err) => Err(err).context("reading the port"),
        }
    }

    fn flush(&mut self) -> Result<()> {
        while !self.out.is_empty() {
            let len = self.out.len().min(32 * 1024);
            match self.port.write(&self.out[..len]) {
                Ok(len) => drop(self.out.drain(..len)),
                Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => break,
                Err(err) => return Err(err).context("writing the port"),
            }
        }
        Ok(())
    }

    fn send(&mut self, kind: Kind, body: &[u8]) {
        wire::encode(&mut self.out, self.nonce, kind, body);
    }

    fn client_left(&mut self) {
        self.decoder.clear();
        self.out.clear();
        self.abandon_command();
    }

    fn abandon_command(&mut self) {
        if let Some(running) = self.running.take() {
            kill_cgroup(&running.cgroup);
            remove_cgroup(&running.cgroup);
            println!("lab: the client left, its command was killed");
        }
    }

    fn handle(&mut self, frame: Frame) {
        if frame.kind == Kind::Hello {
            if frame.nonce != self.nonce {
                self.out.clear();
                self.abandon_command();
                self.nonce = frame.nonce;
                self.request.clear();
            }
            let id = self.boot_id.clone();
            self.send(Kind::Ready, id.as_bytes());
            return;
        }
        if frame.nonce != self.nonce {
            return;
        }
        if let Err(err) = self.obey(frame) {
            let text = format!("{err:#}");
            let end = text.floor_char_boundary(wire::MAX_BODY);
            self.send(Kind::Refused, &text.as_bytes()[..end]);
        }
    }

    fn obey(&mut self, frame: Frame) -> Result<()> {
        match frame.kind {
            Kind::Push => {
                let token = u64::from_le_bytes(frame.body.as_slice().try_into().context("push token")?);
                // A fresh open: the last close dropped what the kernel had cached.
                let mut device = File::open(boot::EXCHANGE_DEVICE).context("opening the exchange device")?;
                exchange::unpack(&mut device, token, "/".as_ref())?;
                self.send(Kind::Pushed, &[]);
            }
            Kind::Run if !frame.body.is_empty() => self.request.extend_from_slice(&frame.body),
            Kind::Run => {
                let request = std::mem::take(&mut self.request);
                let request: RunRequest = wire::json(&request, "run request")?;
                self.commands += 1;
                let cgroup = Path::new(CGROUP_ROOT).join(format!("lab-command-{}", self.commands));
                self.running = Some(start(&request, cgroup)?);
                self.send(Kind::StdinCredit, &STDIN_WINDOW.to_le_bytes());
            }
            Kind::Signal => {
                let (Some(running), Some(number)) = (&self.running, frame.body.first()) else {
                    return Ok(());
                };
                let signal = Signal::try_from(i32::from(*number)).context("signal number")?;
                if signal == Signal::SIGKILL {
                    kill_cgroup(&running.cgroup);
                } else {
                    let _ = killpg(running.pid, signal); // it may have ended meanwhile
                }
            }
            Kind::Stdin => {
                if let Some(running) = &mut self.running {
                    running.stdin_ends |= frame.body.is_empty();
                    running.pending_stdin.extend(frame.body);
                }
            }
            kind => bail!("the client sent {kind:?}, which only the agent sends"),
        }
        Ok(())
    }

    fn write_stdin(&mut self) {
        let Some(running) = &mut self.running else { return };
        let mut credit = 0;
        while let Some(stdin) = running.stdin.as_mut().filter(|_| !running.pending_stdin.is_empty()) {
            match stdin.write(running.pending_stdin.as_slices().0) {
                Ok(len) => {
                    running.pending_stdin.drain(..len);
                    credit += len as u32;
                }
                Err(err) if err.kind() == ErrorKind::WouldBlock => break,
                Err(_) => running.stdin = None, // the command closed it
            }
        }
        if running.stdin_ends && running.pending_stdin.is_empty() {
            running.stdin = None;
        }
        if credit > 0 {
            self.send(Kind::StdinCredit, &credit.to_le_bytes());
        }
    }

    fn read_output(&mut self) -> Result<()> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let mut buffer = [0; wire::MAX_BODY];
        while self.out.len() < OUTPUT_HIGH_WATER {
            let out = read_pipe(&mut running.stdout, &mut buffer).context("reading stdout")?;
            if let Some(len) = out {
                wire::encode(&mut self.out, self.nonce, Kind::Stdout, &buffer[..len]);
            }
            let err = read_pipe(&mut running.stderr, &mut buffer).context("reading stderr")?;
            if let Some(len) = err {
                wire::encode(&mut self.out, self.nonce, Kind::Stderr, &buffer[..len]);
            }
            if out.is_none() && err.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn reap(&mut self) -> Result<()> {
        while self.signals.read_signal().context("reading signals")?.is_some() {}
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(status) => status,
                Err(err) => return Err(err).context("reaping"),
            };
            if let Some(running) = self.running.as_mut().filter(|running| status.pid() == Some(running.pid)) {
                running.ended = Some((status, Instant::now()));
            }
        }
    }

    /// Counts and kills what an ended command left; it would keep the pipes open.
    fn sweep(&mut self) {
        let Some(running) = self.running.as_mut().filter(|running| running.leftovers.is_none()) else {
            return;
        };
        let Some((_, at)) = running.ended else { return };
        let left = processes(&running.cgroup);
        if left == 0 || at.elapsed() > AFTERMATH {
            kill_cgroup(&running.cgroup);
            running.leftovers = Some(left);
        }
    }

    fn finish_command(&mut self) {
        let done = self.running.as_ref().is_some_and(|running| {
            running.leftovers.is_some() && running.stdout.is_none() && running.stderr.is_none()
        });
        if !done {
            return;
        }
        let Some(running) = self.running.take() else { return };
        remove_cgroup(&running.cgroup);
        for piece in shutdowns::take().as_bytes().chunks(wire::MAX_BODY) {
            self.send(Kind::Stderr, piece);
        }
        let (code, signal) = match running.ended {
            Some((WaitStatus::Exited(_, code), _)) => (Some(code), None),
            Some((WaitStatus::Signaled(_, signal, _), _)) => (None, Some(signal as i32)),
            _ => (None, None),
        };
        let leftovers = running.leftovers.unwrap_or(0);
        let body = serde_json::to_vec(&Exit { code, signal, leftovers }).expect("plain numbers encode");
        self.send(Kind::Exit, &body);
    }
}

/// `None`: nothing now. At the end of the stream the pipe is dropped.
fn read_pipe<P: Read>(pipe: &mut Option<P>, buffer: &mut [u8]) -> Result<Option<usize>> {
    let Some(open) = pipe else { return Ok(None) };
    match open.read(buffer) {
        Ok(0) => {
            *pipe = None;
            Ok(None)
        }
        Ok(len) => Ok(Some(len)),
        Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(err) => Err(err.into()),
    }
}

fn start(request: &RunRequest, cgroup: PathBuf) -> Result<Running> {
    let (program, args) = request.argv.split_first().context("no command given")?;
    fs::create_dir_all(&request.cwd).with_context(|| format!("creating {}", request.cwd.display()))?;
    fs::create_dir_all(&cgroup).context("creating the command's cgroup")?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(&request.env)
        .current_dir(&request.cwd)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // SAFETY: between fork and exec one async-signal-safe system call runs; it
    // allocates nothing and touches no lock of the parent.
    unsafe {
        // A child inherits what is blocked here, and the agent blocks SIGCHLD.
        command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?));
    }
    // The child inherits the cgroup, so the agent visits it for the fork.
    fs::write(cgroup.join("cgroup.procs"), "0").context("entering the command's cgroup")?;
    let child = command.spawn();
    fs::write(Path::new(CGROUP_ROOT).join("cgroup.procs"), "0").context("leaving the command's cgroup")?;
    let mut child =
        child.with_context(|| format!("starting {program} (is it, with its libraries, in the lab?)"))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    for fd in stdin
        .iter()
        .map(AsFd::as_fd)
        .chain(stdout.iter().map(AsFd::as_fd))
        .chain(stderr.iter().map(AsFd::as_fd))
    {
        set_nonblocking(fd).context("making a pipe non-blocking")?;
    }
    Ok(Running {
        pid: Pid::from_raw(child.id() as i32),
        cgroup,
        stdin,
        pending_stdin: VecDeque::new(),
        stdin_ends: false,
        stdout,
        stderr,
        ended: None,
        leftovers: None,
    })
}

/// Kills every process of a cgroup and of those below it.
fn kill_cgroup(cgroup: &Path) {
    if let Err(err) = fs::write(cgroup.join("cgroup.kill"), "1") {
        println!("lab: killing {}: {err}", cgroup.display());
    }
}

fn processes(cgroup: &Path) -> usize {
    let here = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default().lines().count();
    here + children(cgroup).iter().map(|child| processes(child)).sum::<usize>()
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// A cgroup that is not empty yet stays: each command gets a fresh one.
fn remove_cgroup(cgroup: &Path) {
    for child in children(cgroup) {
        remove_cgroup(&child);
    }
    let _ = fs::remove_dir(cgroup);
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

//! One machine for one person: boot, connect the terminal or run one command, pass the status on.
//!
//! The exit status is the command's own (128 + signal if one killed it); 4 says that the machine did
//! not get that far, with the end of its console on standard error. Ctrl-] ends an interactive machine.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ktstr_proto::AccelKind;
use ktstr_proto::guest::{GuestFrame, GuestJob, GuestTask, LogSource, ProcessEnd};
use ktstr_proto::ring::{FrameDecoder, FrameError, Mode as RingMode, RingRegion};
use ktstr_proto::run::{Jail, Term};
use ktstr_proto::terminal::WindowSize;
use nix::poll::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};

use super::archive::{ArchiveError, job_archive};
use super::options::ShellOptions;
use crate::backend::{Backend, Ready};
use crate::confine;
use crate::console::{ConsoleError, PortOutput};
use crate::emulator::version::VersionError;
use crate::emulator::{EmulatorSpec, Mode, Version};
use crate::machine::{ConsoleFds, Exit, Gpa, MachineError, MachineSpec, RingRegion as MachineRing};
use crate::ring::RingMapError;
use crate::session::{Output, Session};
use crate::terminal::{RawTerminal, TerminalError};

/// Exit status when the machine failed.
const INFRASTRUCTURE: u8 = 4;
/// Milliseconds between two looks at the machine's outlets.
const TICK_MS: u8 = 4;
/// Ctrl-].
const HANG_UP: u8 = 0x1d;
/// Console lines shown when the machine failed.
const TAIL_LINES: usize = 20;
/// Typed bytes that wait for the guest at most.
const TYPED_LIMIT: usize = 64 << 10;

/// Why there is no shell.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// A file cannot be opened.
    #[error("open {what} {path}")]
    Open {
        /// Its role.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A shell under `det`.
    #[error(
        "--accel det runs only --exec CMD: what is typed cannot be replayed; use --accel tcg for a shell"
    )]
    InteractiveDet,
    /// The emulator.
    #[error("use the emulator")]
    Emulator {
        /// The reason.
        #[from]
        source: VersionError,
    },
    /// The guest's job.
    #[error("prepare the guest's job")]
    Archive {
        /// The reason.
        #[from]
        source: ArchiveError,
    },
    /// A serial port.
    #[error("collect the machine's output")]
    Console {
        /// The reason.
        #[from]
        source: ConsoleError,
    },
    /// The machine.
    #[error("run the machine")]
    Machine {
        /// The reason.
        #[from]
        source: MachineError,
    },
    /// The jail.
    #[error("enter the jail")]
    Jail {
        /// The reason.
        #[from]
        source: ktstr_jail::JailError,
    },
    /// The ring.
    #[error("reach the guest channel")]
    Ring {
        /// The reason.
        #[from]
        source: RingMapError,
    },
    /// The terminal.
    #[error("use the terminal")]
    Terminal {
        /// The reason.
        #[from]
        source: TerminalError,
    },
    /// Standard streams, sockets, signals.
    #[error("{action}")]
    Io {
        /// What was done.
        action: &'static str,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
}

fn io<E: Into<std::io::Error>>(action: &'static str) -> impl FnOnce(E) -> ShellError {
    move |source| ShellError::Io { action, source: source.into() }
}

/// Runs the machine to its end and returns the exit status to pass on.
pub fn run(options: &ShellOptions, jail: Jail) -> Result<u8, ShellError> {
    let interactive = options.exec.is_none();
    let accel = AccelKind::from(options.accel);
    if interactive && accel == AccelKind::Det {
        return Err(ShellError::InteractiveDet);
    }
    if interactive && !std::io::stdin().is_terminal() {
        return Err(TerminalError::NotATerminal.into());
    }
    let signals = Signals::register()?;
    let (session, sockets) = boot(options, accel, jail)?;
    let (console, size) = sockets.map(|[console, size]| (console, size)).unzip();
    let terminal = match &console {
        Some(_) => {
            eprintln!("ktstr-vmm: Ctrl-] ends the machine");
            Some(RawTerminal::enter(std::io::stdin())?)
        }
        None => None,
    };
    let mut shell = Shell {
        session,
        console,
        size,
        typed: VecDeque::new(),
        frames: FrameDecoder::default(),
        channel_lost: None,
        status: None,
        tail: Tail::default(),
        dmesg: options.dmesg,
        trouble: Vec::new(),
    };
    let outcome = shell.until_end(&signals);
    shell.session.kill();
    drop(terminal);
    outcome.map(|end| shell.report(&end))
}

fn boot(
    options: &ShellOptions,
    accel: AccelKind,
    jail: Jail,
) -> Result<(Session, Option<[UnixStream; 2]>), ShellError> {
    let backend = backend(options, accel, jail)?;
    let mode = if accel == AccelKind::Det { RingMode::Linear } else { RingMode::Wrap };
    let ring =
        RingRegion { gpa: 0x800_0000, len: if mode == RingMode::Linear { 16 << 20 } else { 4 << 20 }, mode };
    // Ours lies below the middle of the smallest accepted RAM only if there is enough of it.
    let ring = if options.memory_mb < 256 { RingRegion { gpa: 0x600_0000, ..ring } } else { ring };
    let job = GuestJob {
        ring,
        topology: options.topology.topology,
        seed: 1,
        jitter_us: 0,
        env: Vec::new(),
        scheduler: None,
        task: match &options.exec {
            Some(command) => GuestTask::Exec(command.clone()),
            None => GuestTask::Shell(Some(term())),
        },
        disk: None,
        probing: None,
    };
    let console = options.exec.is_none().then(ConsoleFds::sockets).transpose();
    let (console, ours) = console.map_err(io("make the console's sockets"))?.unzip();
    let ours = ours.map(|sockets| sockets.map(UnixStream::from));
    for socket in ours.iter().flatten() {
        socket.set_nonblocking(true).map_err(io("make the console's sockets non-blocking"))?;
    }
    let (com1, com1_sink) = PortOutput::new("com1")?;
    let (com2, com2_sink) = PortOutput::new("com2")?;
    let loglevel = if options.dmesg { "loglevel=7" } else { "quiet" };
    let spec = MachineSpec {
        topology: options.topology.topology,
        numa: options.topology.numa.clone(),
        absent_llcs: 0,
        memory: u64::from(options.memory_mb) << 20,
        kernel: open("the kernel", &options.kernel)?.into(),
        initrd: vec![open("the initramfs", &options.initrd)?.into(), job_archive(&job)?],
        cmdline: format!(
            "console=ttyS0 {loglevel} panic=-1 mitigations=off memmap={}K${:#x}",
            ring.len >> 10,
            ring.gpa
        ),
        ring: Some(MachineRing { gpa: Gpa(ring.gpa), len: ring.len }),
        com1: com1_sink,
        com2: Some(com2_sink),
        console,
        devices: Default::default(),
        isolation: None,
    };
    let started = Ready::prepare(&backend, spec)?.start(&confine::this_process(jail)?)?;
    Ok((Session::new(started.machine, com1, com2, &ring)?, ours))
}

fn open(what: &'static str, path: &Path) -> Result<File, ShellError> {
    File::open(path).map_err(|source| ShellError::Open { what, path: path.to_owned(), source })
}

fn backend(options: &ShellOptions, accel: AccelKind, jail: Jail) -> Result<Backend, ShellError> {
    let mode = match accel {
        AccelKind::Kvm => return Ok(Backend::Kvm),
        AccelKind::Tcg => Mode::Tcg,
        AccelKind::Det => Mode::Det { seed: 1, shift: 2 },
    };
    Ok(Backend::Emulator(EmulatorSpec {
        program: options.emulator.clone(),
        version: Version::detect(&options.emulator)?,
        mode,
        files: Vec::new(),
        host_cpus: std::thread::available_parallelism().map_or(1, Into::into),
        jail,
    }))
}

/// The user's terminal as the guest's shell should know it.
fn term() -> Term {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call fills the struct whose address it gets, or fails and leaves it.
    unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCGWINSZ, &mut size) };
    let or = |value, default| if value == 0 { default } else { value };
    Term {
        term: std::env::var("TERM").unwrap_or_else(|_| "vt100".into()),
        colorterm: std::env::var("COLORTERM").ok(),
        rows: or(size.ws_row, 24),
        cols: or(size.ws_col, 80),
    }
}

/// The signals that end us, as the number that came last, and whether the terminal's size has changed.
struct Signals {
    last: Arc<AtomicUsize>,
    resized: Arc<AtomicBool>,
}

impl Signals {
    fn register() -> Result<Signals, ShellError> {
        let last = Arc::new(AtomicUsize::new(0));
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::flag::register_usize(signal, Arc::clone(&last), signal as usize)
                .map_err(io("handle signals"))?;
        }
        let resized = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGWINCH, Arc::clone(&resized)).map_err(io("handle signals"))?;
        Ok(Signals { last, resized })
    }

    fn arrived(&self) -> Option<usize> {
        Some(self.last.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
    }

    /// Since this was asked last.
    fn resized(&self) -> bool {
        self.resized.swap(false, Ordering::Relaxed)
    }
}

/// Why the loop ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Machine(Exit),
    Signal(usize),
    HungUp,
}

/// The last lines of the kernel console, and the line on which the kernel gave up.
#[derive(Debug, Default)]
struct Tail {
    panic: Option<String>,
    lines: VecDeque<String>,
    partial: Vec<u8>,
}

impl Tail {
    fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte != b'\n' {
                self.partial.push(*byte);
                continue;
            }
            let line = String::from_utf8_lossy(&std::mem::take(&mut self.partial)).trim_end().to_owned();
            if self.panic.is_none() && line.contains("Kernel panic - not syncing") {
                self.panic = Some(line.clone());
            }
            self.lines.push_back(line);
            if self.lines.len() > TAIL_LINES {
                self.lines.pop_front();
            }
        }
    }
}

struct Shell {
    session: Session,
    console: Option<UnixStream>,
    /// Takes the terminal's size.
    size: Option<UnixStream>,
    typed: VecDeque<u8>,
    frames: FrameDecoder,
    channel_lost: Option<String>,
    status: Option<ProcessEnd>,
    tail: Tail,
    dmesg: bool,
    trouble: Vec<String>,
}

impl Shell {
    fn until_end(&mut self, signals: &Signals) -> Result<End, ShellError> {
        loop {
            if let Some(signal) = signals.arrived() {
                return Ok(End::Signal(signal));
            }
            if signals.resized() {
                self.tell_size();
            }
            while let Some(output) = self.session.next_output()? {
                if let Some(exit) = self.handle(output)? {
                    self.pump_console()?;
                    return Ok(End::Machine(exit));
                }
            }
            let stdin = std::io::stdin();
            let mut fds = vec![PollFd::new(self.session.event_fd(), PollFlags::POLLIN)];
            if let Some(console) = &self.console {
                fds.push(PollFd::new(console.as_fd(), PollFlags::POLLIN));
                if self.typed.len() < TYPED_LIMIT {
                    fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
                }
            }
            match poll(&mut fds, TICK_MS) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(io("wait for events")(errno)),
            }
            let typed = fds.get(2).and_then(PollFd::any).unwrap_or(false);
            drop(fds);
            if typed && self.read_typed()? {
                return Ok(End::HungUp);
            }
            self.pump_console()?;
        }
    }

    /// Reads what was typed; `true` when the user hangs up.
    fn read_typed(&mut self) -> Result<bool, ShellError> {
        let mut buffer = [0; 4096];
        let n = match nix::unistd::read(std::io::stdin(), &mut buffer) {
            Ok(0) | Err(nix::Error::EIO) => return Ok(true),
            Ok(n) => n,
            Err(nix::Error::EINTR | nix::Error::EAGAIN) => 0,
            Err(errno) => return Err(io("read the terminal")(errno)),
        };
        let hang_up = buffer[..n].contains(&HANG_UP);
        self.typed.extend(&buffer[..n]);
        Ok(hang_up)
    }

    /// A guest that has not taken thousands of sizes does not need another.
    fn tell_size(&mut self) {
        let Some(socket) = &mut self.size else { return };
        let Term { rows, cols, .. } = term();
        let told = socket.write(WindowSize { rows, cols }.line().as_bytes());
        if told.is_err_and(|error| error.kind() != ErrorKind::WouldBlock) {
            self.size = None;
        }
    }

    /// Moves bytes between terminal and guest, as far as both sides go.
    fn pump_console(&mut self) -> Result<(), ShellError> {
        let Some(console) = &mut self.console else { return Ok(()) };
        while !self.typed.is_empty() {
            match console.write(self.typed.make_contiguous()) {
                Ok(n) => drop(self.typed.drain(..n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                // The machine is ending; its exit is told elsewhere.
                Err(_) => self.typed.clear(),
            }
        }
        let mut buffer = [0; 16 << 10];
        let mut stdout = std::io::stdout().lock();
        loop {
            match console.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => stdout.write_all(&buffer[..n]).map_err(io("write the terminal"))?,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        stdout.flush().map_err(io("write the terminal"))
    }

    fn handle(&mut self, output: Output) -> Result<Option<Exit>, ShellError> {
        match output {
            Output::Com1(bytes) => {
                if self.dmesg {
                    std::io::stderr().write_all(&bytes).map_err(io("write standard error"))?;
                }
                self.tail.feed(&bytes);
            }
            Output::Com2(bytes) => self.tail.feed(&bytes),
            Output::Ring(bytes) => {
                self.frames.push(&bytes);
                self.read_frames()?;
            }
            Output::RingBroken(reason) => self.channel_lost = Some(reason),
            Output::Exited(exit) => return Ok(Some(exit)),
            // None is asked for here.
            Output::Saved(_) | Output::Written { .. } | Output::Statistics(_) | Output::Station(..) => {}
        }
        Ok(None)
    }

    fn read_frames(&mut self) -> Result<(), ShellError> {
        while self.channel_lost.is_none() {
            let message = match self.frames.next_message() {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.channel_lost = Some(describe(&error));
                    return Ok(());
                }
            };
            match message.body {
                GuestFrame::Log(log) => match log.source {
                    LogSource::Stdout => {
                        let mut stdout = std::io::stdout().lock();
                        stdout.write_all(log.text.as_bytes()).map_err(io("write standard output"))?;
                        stdout.flush().map_err(io("write standard output"))?;
                    }
                    LogSource::Stderr => {
                        std::io::stderr()
                            .write_all(log.text.as_bytes())
                            .map_err(io("write standard error"))?;
                    }
                    LogSource::Init | LogSource::Scheduler => {}
                },
                GuestFrame::StepFailed { step, reason } => self.trouble.push(format!("{step}: {reason}")),
                GuestFrame::ExecEnded(end) => self.status = Some(end),
                _ => {}
            }
        }
        Ok(())
    }

    /// Says what went wrong, if anything, and chooses the exit status.
    fn report(&self, end: &End) -> u8 {
        for trouble in &self.trouble {
            eprintln!("ktstr-vmm: the guest failed at {trouble}");
        }
        if let Some(reason) = &self.channel_lost {
            eprintln!("ktstr-vmm: the guest channel is lost: {reason}");
        }
        match (end, &self.status) {
            (End::HungUp, _) => 0,
            (End::Signal(signal), _) => 128u8.saturating_add(*signal as u8),
            (End::Machine(_), Some(ProcessEnd::Exited(code))) => *code as u8,
            (End::Machine(_), Some(ProcessEnd::Signaled(signal))) => 128u8.saturating_add(*signal as u8),
            (End::Machine(exit), None) => {
                eprintln!("ktstr-vmm: the machine ended without a status of its command: {exit:?}");
                for line in self.tail.panic.iter().chain(&self.tail.lines) {
                    eprintln!("  {line}");
                }
                INFRASTRUCTURE
            }
        }
    }
}

fn describe(error: &FrameError) -> String {
    ktstr_proto::link::chain(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_last_lines() {
        let mut tail = Tail::default();
        for n in 0..100 {
            tail.feed(format!("line {n}\r\n").as_bytes());
        }
        assert_eq!(tail.lines.len(), TAIL_LINES);
        assert_eq!(tail.lines.back().map(String::as_str), Some("line 99"));
        assert_eq!(tail.panic, None);
    }
}

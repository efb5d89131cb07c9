//! `shell`: a virtual machine with a shell on the user's terminal, or one
//! command in it.
//!
//! The loop owns nothing but descriptors: the orchestrator's socket, the
//! guest's console, stdin, signals. Every way out of it drops the raw mode
//! before anything is printed.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use ktstr_proto::client::{ClientEvent, Submitted};
use ktstr_proto::device::NetConfig;
use ktstr_proto::guest::LogSource;
use ktstr_proto::run::{Job, RunSpec, ShellJob, Term};
use ktstr_proto::terminal::WindowSize;
use ktstr_proto::verdict::{Cause, RunReport};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cli::{ShellArgs, accel};
use crate::client::Orchestrator;
use crate::exit::Exit;
use crate::terminal::{self, RawTerminal, Signals};
use crate::{kernel, summary};

/// Ends the machine from the keyboard when the guest no longer listens: Ctrl-].
const ESCAPE: u8 = 0x1d;
/// How long a cancelled run may take to report.
const PARTING: Duration = Duration::from_secs(5);

/// Runs it.
pub fn run(args: ShellArgs) -> anyhow::Result<ExitCode> {
    let interactive = args.exec.is_none();
    if interactive && !io::stdin().is_terminal() {
        anyhow::bail!(
            "stdin is no terminal: an interactive shell needs one; to run a command give --exec CMD"
        );
    }
    let spec = spec(&args)?;
    // Before anything can be interrupted halfway.
    let mut signals = Signals::take().context("cannot take over signals")?;
    let mut orchestrator = Orchestrator::connect()?;
    let submitted = orchestrator.submit(spec)?;
    let mut session =
        Session { orchestrator, submitted, console: None, size: None, raw: None, stdin_open: interactive };
    let ended = session.until_finished(&mut signals);
    session.leave_raw();
    match ended? {
        Ended::Finished(report) => Ok(conclude(&report)),
        Ended::Signal(signal) => {
            session.cancel_and_wait();
            // As a shell reports a command that a signal ended.
            Ok(ExitCode::from(128 + signal.clamp(1, 64) as u8))
        }
        Ended::Escape => {
            session.cancel_and_wait();
            eprintln!("machine ended");
            Ok(Exit::Inconclusive.into())
        }
    }
}

fn spec(args: &ShellArgs) -> anyhow::Result<RunSpec> {
    let store = kernel::open_store()?;
    // Found here as well as by the orchestrator: the message is at hand at
    // once, and a file is imported under the user's eyes.
    let kernel = kernel::find(&store, args.kernel.as_deref())?;
    let include = args.include_files.iter().map(absolute).collect::<anyhow::Result<_>>()?;
    let term = args.exec.is_none().then(|| {
        let WindowSize { rows, cols } = terminal::window_size().unwrap_or(WindowSize { rows: 24, cols: 80 });
        let term = std::env::var("TERM").unwrap_or_else(|_| "vt100".to_owned());
        Term { term, colorterm: std::env::var("COLORTERM").ok(), rows, cols }
    });
    let (performance, cpu_budget) = args.host.resolve(args.perf_mode)?;
    let mut replay =
        format!("ktstr shell --kernel {{kernel}} --accel {{accel}} --topology {}", args.topology);
    if let Some(command) = &args.exec {
        replay.push_str(&format!(" --exec '{}'", command.replace('\'', r"'\''")));
    }
    Ok(RunSpec {
        name: "shell".to_owned(),
        job: Job::Shell(ShellJob { include, exec: args.exec.clone(), dmesg: args.dmesg, term }),
        kernel: Some(kernel.key().to_owned()),
        accel: accel(args.accel)?,
        topology: args.topology.topology,
        numa: args.topology.numa.clone(),
        absent_llcs: args.absent_llcs,
        memory_mb: args.memory_mb,
        seed: 0,
        deadline_ms: None,
        runs_root: summary::runs_root(store.root()),
        replay,
        vary: false,
        warm: args.begin.is_warm(),
        kernel_args: Vec::new(),
        observe: std::env::var_os("KTSTR_OBSERVE").is_some_and(|value| value == "1"),
        watchdog_ms: None,
        snapshots: 0,
        env: Vec::new(),
        disk: args.disk,
        networks: networks(&args.network),
        performance,
        cpu_budget,
        cleanup_budget_ms: None,
        watches: Vec::new(),
        jail: args.host.jail()?,
        auto_repro: false,
        probing: None,
    })
}

/// Interfaces with addresses of their own.
fn networks(pairs: &[u16]) -> Vec<NetConfig> {
    let numbered = pairs.iter().zip(0u8..).map(|(pairs, number)| {
        let mut config = NetConfig::new().queue_pairs(*pairs);
        config.mac[5] = config.mac[5].wrapping_add(number);
        config
    });
    numbered.collect()
}

/// The orchestrator may have another working directory. Bare names stay: they
/// are looked up in PATH.
fn absolute(path: &PathBuf) -> anyhow::Result<PathBuf> {
    if !path.exists() && path.components().count() == 1 {
        return Ok(path.clone());
    }
    std::path::absolute(path).with_context(|| format!("cannot find the absolute path of {}", path.display()))
}

/// How the loop ended.
enum Ended {
    Finished(Box<RunReport>),
    Signal(i32),
    Escape,
}

struct Session {
    orchestrator: Orchestrator,
    submitted: Submitted,
    console: Option<UnixStream>,
    /// Takes the terminal's size.
    size: Option<UnixStream>,
    raw: Option<RawTerminal>,
    stdin_open: bool,
}

impl Session {
    fn until_finished(&mut self, signals: &mut Signals) -> anyhow::Result<Ended> {
        loop {
            while let Some((event, mut fds)) = self.orchestrator.next_event()? {
                match event {
                    ClientEvent::Finished(report) => {
                        // The machine's last words may still lie in its console.
                        self.console_to_stdout()?;
                        return Ok(Ended::Finished(Box::new(report)));
                    }
                    ClientEvent::ConsoleReady(sockets) => {
                        self.console = Some(nonblocking(fds.take(sockets.terminal, "console")?)?);
                        self.size = Some(nonblocking(fds.take(sockets.size, "terminal size")?)?);
                        // It may be another than when the machine was asked for.
                        self.tell_size();
                        self.raw =
                            Some(RawTerminal::enter().context("cannot switch the terminal to raw mode")?);
                    }
                    ClientEvent::Notice(text) => self.say(&text),
                    ClientEvent::Console(bytes) => write_all(&mut io::stderr(), &bytes)?,
                    ClientEvent::Output { source: LogSource::Stdout, text } => {
                        write_all(&mut io::stdout(), text.as_bytes())?;
                    }
                    ClientEvent::Output { source: LogSource::Stderr, text } => {
                        write_all(&mut io::stderr(), text.as_bytes())?;
                    }
                    // PID 1's own words are in the run directory; and no scheduler of a shell is looked into.
                    ClientEvent::Output { .. } | ClientEvent::Held(_) => {}
                }
            }
            self.wait(signals)?;
            if let Some(signal) = signals.pending() {
                return Ok(Ended::Signal(signal));
            }
            if signals.resized() {
                self.tell_size();
            }
            self.console_to_stdout()?;
            if self.stdin_to_console()? {
                return Ok(Ended::Escape);
            }
        }
    }

    fn wait(&self, signals: &Signals) -> anyhow::Result<()> {
        let stdin = io::stdin();
        let mut fds = vec![PollFd::new(self.orchestrator.as_fd(), PollFlags::POLLIN)];
        fds.extend(signals.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        if let Some(console) = &self.console {
            fds.push(PollFd::new(console.as_fd(), PollFlags::POLLIN));
            if self.stdin_open {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("cannot wait for the machine"),
        }
    }

    /// A guest that has not taken thousands of sizes does not need another.
    fn tell_size(&mut self) {
        let size = terminal::window_size().zip(self.size.as_mut());
        let told = size.map(|(size, socket)| socket.write(size.line().as_bytes()));
        if matches!(told, Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock) {
            self.size = None;
        }
    }

    fn console_to_stdout(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; 16 << 10];
        while let Some(console) = &mut self.console {
            match console.read(&mut buffer) {
                Ok(0) => self.console = None,
                Ok(n) => write_all(&mut io::stdout(), &buffer[..n])?,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The machine is going down; the report tells how.
                Err(_) => self.console = None,
            }
        }
        Ok(())
    }

    /// Forwards what was typed; true when it was the escape key.
    fn stdin_to_console(&mut self) -> anyhow::Result<bool> {
        let stdin = io::stdin();
        let Some(console) = self.console.as_mut().filter(|_| self.stdin_open) else { return Ok(false) };
        let mut ready = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::ZERO).unwrap_or(0) == 0 {
            return Ok(false);
        }
        let mut buffer = [0; 4096];
        // Read past the library's buffer, which `poll` knows nothing of.
        let n = nix::unistd::read(stdin.as_fd(), &mut buffer).context("cannot read the terminal")?;
        if n == 0 {
            self.stdin_open = false;
            return Ok(false);
        }
        let typed = &buffer[..n];
        if typed.contains(&ESCAPE) {
            return Ok(true);
        }
        match write_all(console, typed) {
            Ok(()) => {}
            Err(_) => self.console = None,
        }
        Ok(false)
    }

    fn say(&self, text: &str) {
        let end = if self.raw.is_some() { "\r\n" } else { "\n" };
        eprint!("ktstr: {text}{end}");
    }

    fn leave_raw(&mut self) {
        self.raw = None;
    }

    /// Lets the run end in order; its directory is complete then. Gives up
    /// after a while: dropping the connection ends it, too.
    fn cancel_and_wait(&mut self) {
        if self.orchestrator.cancel(&self.submitted.run_id).is_err() {
            return;
        }
        let give_up = Instant::now() + PARTING;
        while let Some(left) = give_up.checked_duration_since(Instant::now()) {
            match self.orchestrator.next_event() {
                Ok(Some((ClientEvent::Finished(_), _))) | Err(_) => return,
                Ok(Some(_)) => continue,
                Ok(None) => {}
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let mut fds = [PollFd::new(self.orchestrator.as_fd(), PollFlags::POLLIN)];
            if !matches!(poll(&mut fds, timeout), Ok(n) if n > 0) {
                return;
            }
        }
    }
}

fn nonblocking(socket: OwnedFd) -> io::Result<UnixStream> {
    let socket = UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Writes everything, also to a descriptor that someone made non-blocking.
fn write_all<W: Write + AsFd>(out: &mut W, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(out.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(e) => return Err(e),
        }
    }
    out.flush()
}

/// The guest's status becomes ours; without one, the reason is told.
fn conclude(report: &RunReport) -> ExitCode {
    match report.exit_status {
        Some(status) => ExitCode::from(u8::try_from(status & 0xff).unwrap_or(1)),
        None => {
            eprint!("{}", summary::explain(report));
            match &report.cause {
                // The user shut the machine down.
                None => Exit::Pass.into(),
                // As other mistakes on the command line.
                Some(Cause::BadRequest { .. }) => Exit::Fail.into(),
                Some(_) => ExitCode::from(report.exit_code().max(1)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_names_stay_and_paths_become_absolute() {
        assert_eq!(absolute(&"no-such-tool-xyz".into()).unwrap(), PathBuf::from("no-such-tool-xyz"));
        assert!(absolute(&"./no-such-tool-xyz".into()).unwrap().is_absolute());
        assert!(absolute(&"Cargo.toml".into()).unwrap().is_absolute());
    }

    #[test]
    fn writing_survives_a_full_pipe() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let data: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
        let expected = data.clone();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).unwrap();
            all
        });
        write_all(&mut ours, &data).unwrap();
        drop(ours);
        assert!(reader.join().unwrap() == expected);
    }
}

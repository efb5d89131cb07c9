//! The detached process that owns the lab's emulator.
//!
//! Ends the emulator on SIGTERM, when nobody used the lab for its idle limit,
//! or when the state directory is gone; the emulator gets SIGKILL when this
//! process dies. Knows nothing of what runs in the lab.

use super::state::{Launch, StateDir};
use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

/// Runs until the emulator is gone.
pub fn keeper_main(dir: &Path) -> Result<u8> {
    let state = StateDir::open(dir)?;
    let alive = state.lock_file("alive.lock")?;
    take_over(&alive)?;
    let launch: Launch = state.read("launch.json").context("launch.json is missing or unreadable")?;
    state.write("keeper.pid", &std::process::id())?;

    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGCHLD, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("blocking signals")?;
    let signal_fd =
        SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("signalfd")?;

    let mut emulator = start(&state, &launch)?;
    let result = watch(&state, &launch, &mut emulator, &signal_fd);
    let _ = emulator.kill();
    let _ = emulator.wait();
    let _ = fs::remove_file(state.file("agent.sock"));
    result
}

/// Clients look whether the lock is held by taking it for a moment, so one
/// refusal does not mean a second keeper.
fn take_over(alive: &fs::File) -> Result<()> {
    for _ in 0..100 {
        match alive.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            Err(fs::TryLockError::Error(err)) => return Err(err).context("locking alive.lock"),
        }
    }
    bail!("another keeper owns this lab")
}

fn start(state: &StateDir, launch: &Launch) -> Result<Child> {
    let log = fs::File::create(state.file("emulator.log")).context("creating emulator.log")?;
    let (program, args) = launch.argv.split_first().context("launch.json names no emulator")?;
    let mut command = Command::new(program);
    command
        .args(args)
        .envs(launch.environment.iter().cloned())
        .current_dir(state.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("duplicating the log's descriptor")?)
        .stderr(log);
    // SAFETY: between fork and exec two async-signal-safe system calls run;
    // they allocate nothing and touch no lock of the parent.
    unsafe {
        command.pre_exec(|| {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            SigSet::empty().thread_set_mask()?; // a child inherits what is blocked here
            Ok(())
        });
    }
    command.spawn().with_context(|| format!("starting {program}"))
}

fn watch(state: &StateDir, launch: &Launch, emulator: &mut Child, signal_fd: &SignalFd) -> Result<u8> {
    loop {
        let mut fds = [PollFd::new(signal_fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(1000u16)).context("waiting")?;
        while let Some(info) = signal_fd.read_signal().context("reading signals")? {
            if info.ssi_signo != Signal::SIGCHLD as u32 {
                eprintln!("ending the lab on signal {}", info.ssi_signo);
                return Ok(0);
            }
        }
        if let Some(status) = emulator.try_wait().context("waiting for the emulator")? {
            eprintln!("the emulator ended: {status}");
            return Ok(0);
        }
        let Ok(used) = fs::metadata(state.file("last-used")).and_then(|meta| meta.modified()) else {
            eprintln!("the state directory is gone");
            return Ok(0);
        };
        let idle = SystemTime::now().duration_since(used).unwrap_or_default();
        if idle > Duration::from_secs(launch.idle_seconds) && !state.is_held("client.lock")? {
            eprintln!("nobody used the lab for {} s", idle.as_secs());
            return Ok(0);
        }
    }
}

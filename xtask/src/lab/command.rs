//! `cargo xtask lab`: options, and the order of things.

use super::boot::{self, Shape};
use super::client::{SILENCE, Session};
use super::closure::FileSet;
use super::kernel::LabKernel;
use super::state::{Launch, StateDir};
use super::wire::{Exit, RunRequest};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Exit code for "something was missing".
const NOT_RUN: u8 = 3;
/// How long a lab may take to boot, on a machine that is busy with other things.
const BOOT_LIMIT: Duration = Duration::from_secs(150);
/// How many labs are tried before there is none.
const LABS: u32 = 3;
/// Executables brought in when they lie beside this one (or in --bin-dir).
const OUR_BINARIES: [&str; 7] =
    ["ktstr", "cargo-ktstr", "ktstr-orch", "ktstr-vmm", "ktstr-monitor", "ktstr-guest", "scx-ktstr"];
/// Where an inner emulator finds its firmware.
const FIRMWARE: [&str; 10] = [
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/seabios/bios.bin",
    "/usr/share/seabios/bios-microvm.bin",
    "/usr/share/qemu/bios-256k.bin",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/linuxboot.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/pvh.bin",
    "/usr/share/qemu/qboot.rom",
    "/usr/share/qemu/keymaps/en-us",
];

/// Options of `cargo xtask lab`.
#[derive(Args, Debug)]
pub struct LabArgs {
    /// Boot the lab (or find it running) and return
    #[arg(long, conflicts_with_all = ["stop", "status"])]
    boot: bool,
    /// End the lab
    #[arg(long, conflicts_with = "status")]
    stop: bool,
    /// Say whether a lab runs; exit code 3 when none does
    #[arg(long)]
    status: bool,
    /// The lab's kernel: a directory with vmlinux and modules [env: KTSTR_LAB_KERNEL; else the newest in the kernel store]
    #[arg(long, value_name = "DIR")]
    kernel: Option<PathBuf>,
    /// vCPUs of the lab
    #[arg(long, default_value_t = 2, env = "KTSTR_LAB_VCPUS")]
    vcpus: u32,
    /// Memory of the lab, as the emulator spells it
    #[arg(long, default_value = "4G", env = "KTSTR_LAB_MEMORY")]
    memory: String,
    /// Bring a file or directory in, at the same path or at DST (repeatable)
    #[arg(long = "file", value_name = "SRC[:DST]")]
    files: Vec<String>,
    /// After the command, fetch a file or directory of the lab into DIR [default: `fetched` in the lab's state] (repeatable)
    #[arg(long, value_name = "PATH[:DIR]")]
    fetch: Vec<String>,
    /// Bring the workspace's executables from here [default: beside this executable]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Bring none of the workspace's executables
    #[arg(long, conflicts_with = "bin_dir")]
    no_bins: bool,
    /// Bring the emulator and its firmware, to compare with it
    #[arg(long)]
    qemu: bool,
    /// Set a variable for the command, or pass one on (KTSTR_*, NEXTEST*, RUST_*, CARGO_*, HOME and XDG_CACHE_HOME are passed on anyway)
    #[arg(long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// End the lab when the command fails, so that the next one meets a fresh machine
    #[arg(long)]
    end_on_failure: bool,
    /// Kill the command after this many seconds
    #[arg(long, default_value_t = 3600)]
    timeout: u64,
    /// Seconds without a command after which the lab ends by itself
    #[arg(long, default_value_t = 1800, env = "KTSTR_LAB_IDLE")]
    idle: u64,
    /// The lab's state [default: `lab` in the target directory]
    #[arg(long, value_name = "DIR", env = "KTSTR_LAB_DIR")]
    state_dir: Option<PathBuf>,
    /// Say what takes how long
    #[arg(long, short)]
    verbose: bool,
    /// Command to run in the lab
    #[arg(last = true)]
    argv: Vec<String>,
}

/// Entry point; the exit code is the command's.
pub fn command(args: LabArgs) -> Result<u8> {
    let state = StateDir::open(&state_path(&args)?)?;
    if args.status {
        return status(&state);
    }
    if args.stop {
        let _lock = state.lock_file("client.lock")?;
        println!("{}", if state.stop()? { "lab: stopped" } else { "lab: none was running" });
        return Ok(0);
    }
    if args.argv.is_empty() && !args.boot {
        bail!("name a command after `--`, or give one of --boot, --stop, --status");
    }
    let _lock = state.lock_for_client()?;
    touch(&state)?;
    let (kernel, emulator) = match (LabKernel::resolve(args.kernel.as_deref()), emulator()) {
        (Ok(kernel), Ok(emulator)) => (kernel, emulator),
        (Err(err), _) | (_, Err(err)) => {
            eprintln!("lab: NOT RUN: {err:#}");
            return Ok(NOT_RUN);
        }
    };
    let shape = Shape { vcpus: args.vcpus, memory: args.memory.clone(), idle_seconds: args.idle, emulator };
    let mut session = contact(&state, &kernel, &shape)?;
    if args.argv.is_empty() {
        return Ok(0);
    }
    let exit = push_and_run(&args, &mut session).and_then(|exit| {
        fetch(&args, &state, &mut session)?;
        Ok(exit)
    });
    touch(&state)?;
    let code = exit.map(|exit| exit_code(&exit));
    if args.end_on_failure && !matches!(code, Ok(0)) && state.stop()? {
        eprintln!("lab: ended after a failure");
    }
    code
}

/// A lab that answers: the running one, else a new one.
fn contact<'a>(state: &'a StateDir, kernel: &LabKernel, shape: &Shape) -> Result<Session<'a>> {
    for _ in 0..LABS {
        let start = Instant::now();
        let booted = boot::ensure(state, kernel, shape)?;
        let limit = if booted { BOOT_LIMIT } else { SILENCE };
        if let Some(session) = Session::connect(state, limit)? {
            if booted {
                eprintln!("lab: up after {:.1} s", start.elapsed().as_secs_f64());
            }
            return Ok(session);
        }
        eprintln!(
            "lab: no answer for {} s, ending it; its console ends:\n{}",
            limit.as_secs(),
            state.console_tail(15)
        );
        state.stop()?;
    }
    bail!("infrastructure, no test result: {LABS} labs in a row did not answer")
}

fn push_and_run(args: &LabArgs, session: &mut Session<'_>) -> Result<Exit> {
    let start = Instant::now();
    let bins = bin_dir(args)?;
    let mut set = FileSet::default();
    let program = collect(args, bins.as_deref(), &mut set)?;
    let collected = start.elapsed();
    let report = session.push(&set).context(
        "bringing files in (a lab that filled up over many builds is emptied by `cargo xtask lab --stop`)",
    )?;
    if args.verbose {
        eprintln!(
            "lab: {} items known in {:.2} s, pushed {} files, {:.1} MB in {:.2} s",
            set.items().len(),
            collected.as_secs_f64(),
            report.files,
            report.bytes as f64 / 1e6,
            (start.elapsed() - collected).as_secs_f64()
        );
    }
    let mut argv = args.argv.clone();
    argv[0] = program;
    let cwd = env::current_dir().context("finding the working directory")?;
    let request = RunRequest { argv, env: environment(args, bins.as_deref())?, cwd };
    session.run(&request, Duration::from_secs(args.timeout), &mut io::stdout().lock())
}

/// Brings results out, as a tar stream on the stdout of a second command.
fn fetch(args: &LabArgs, state: &StateDir, session: &mut Session<'_>) -> Result<()> {
    for spec in &args.fetch {
        let (path, dir) = match spec.split_once(':') {
            Some((path, dir)) => (path, PathBuf::from(dir)),
            None => (spec.as_str(), state.file("fetched")),
        };
        let path = absolute(Path::new(path))?;
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let (parent, name) =
            (path.parent().and_then(Path::to_str), path.file_name().and_then(|name| name.to_str()));
        let (Some(parent), Some(name)) = (parent, name) else {
            bail!("--fetch {spec}: no path of a file or directory")
        };
        let request = RunRequest {
            argv: ["/bin/busybox", "tar", "-c", "-f", "-", "-C", parent, name].map(str::to_owned).to_vec(),
            env: BTreeMap::new(),
            cwd: "/".into(),
        };
        let mut tar = Command::new("tar")
            .args(["-x", "-f", "-", "-C"])
            .arg(&dir)
            .stdin(Stdio::piped())
            .spawn()
            .context("starting `tar`")?;
        let exit =
            session.run(&request, Duration::from_secs(600), tar.stdin.as_mut().context("tar has no stdin")?);
        drop(tar.stdin.take());
        let unpacked = tar.wait().context("waiting for `tar`")?;
        if exit?.code != Some(0) || !unpacked.success() {
            eprintln!("lab: could not fetch {} whole", path.display());
        } else {
            eprintln!("lab: fetched {} into {}", path.display(), dir.display());
        }
    }
    Ok(())
}

/// Fills the file set; returns the program as the lab will find it.
fn collect(args: &LabArgs, bins: Option<&Path>, set: &mut FileSet) -> Result<String> {
    if let Some(dir) = bins {
        for name in OUR_BINARIES {
            let path = dir.join(name);
            if path.is_file() {
                set.add(&path, &path)?;
            }
        }
    }
    for spec in &args.files {
        let (source, destination) = spec.split_once(':').unwrap_or((spec, spec));
        set.add(Path::new(source), &absolute(Path::new(destination))?)?;
    }
    if args.qemu {
        let path = emulator()?;
        set.add(&path, Path::new("/usr/bin/qemu-system-x86_64"))?;
        for path in FIRMWARE.map(Path::new).into_iter().filter(|path| path.is_file()) {
            set.add(path, path)?;
        }
    }
    let program = &args.argv[0];
    // A bare name is looked up inside the lab: ours first, then busybox's.
    if program.contains('/') && Path::new(program).is_file() {
        let path = absolute(Path::new(program))?;
        set.add(&path, &path)?;
        return path.to_str().map(str::to_owned).context("the program's path is not UTF-8");
    }
    Ok(program.clone())
}

fn environment(args: &LabArgs, bins: Option<&Path>) -> Result<BTreeMap<String, String>> {
    let passed = |name: &str| {
        ["KTSTR_", "NEXTEST", "RUST_", "CARGO_"].iter().any(|prefix| name.starts_with(prefix))
            || ["HOME", "XDG_CACHE_HOME", "TERM"].contains(&name)
    };
    // The lab's own settings mean nothing inside it.
    let mut variables: BTreeMap<String, String> =
        env::vars().filter(|(name, _)| passed(name) && !name.starts_with("KTSTR_LAB_")).collect();
    variables.entry("HOME".into()).or_insert_with(|| "/root".into());
    variables.insert("KTSTR_LAB".into(), "1".into());
    let mut path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".to_owned();
    if let Some(bins) = bins.and_then(Path::to_str) {
        path = format!("{bins}:{path}");
        variables.insert("KTSTR_BIN_DIR".into(), bins.to_owned());
    }
    variables.insert("PATH".into(), path);
    for spec in &args.env {
        match spec.split_once('=') {
            Some((name, value)) => drop(variables.insert(name.to_owned(), value.to_owned())),
            None => match env::var(spec) {
                Ok(value) => drop(variables.insert(spec.clone(), value)),
                Err(_) => bail!("--env {spec}: no such variable here"),
            },
        }
    }
    Ok(variables)
}

fn exit_code(exit: &Exit) -> u8 {
    if exit.leftovers > 0 {
        eprintln!("lab: the command left {} processes behind, they were killed", exit.leftovers);
    }
    match (exit.code, exit.signal) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => {
            eprintln!("lab: the command was ended by signal {signal}");
            128u8.saturating_add(signal as u8)
        }
        (None, None) => super::INFRASTRUCTURE,
    }
}

fn status(state: &StateDir) -> Result<u8> {
    if !state.is_alive()? {
        println!("lab: none runs ({})", state.path().display());
        return Ok(NOT_RUN);
    }
    let pid: u32 = state.read("keeper.pid").unwrap_or_default();
    let release = state.read::<Launch>("launch.json").map(|launch| launch.kernel_release).unwrap_or_default();
    let busy = if state.is_held("client.lock")? { ", running a command" } else { "" };
    println!("lab: kernel {release}, keeper pid {pid}{busy}, state in {}", state.path().display());
    Ok(0)
}

fn touch(state: &StateDir) -> Result<()> {
    fs::write(state.file("last-used"), "").context("writing last-used")
}

/// `target/lab`, found from where this executable lies (`target/debug/xtask`).
fn state_path(args: &LabArgs) -> Result<PathBuf> {
    if let Some(dir) = &args.state_dir {
        return Ok(dir.clone());
    }
    let exe = env::current_exe().context("finding this executable")?;
    let target = exe
        .ancestors()
        .nth(2)
        .context("this executable does not lie in a target directory; give --state-dir")?;
    Ok(target.join("lab"))
}

fn bin_dir(args: &LabArgs) -> Result<Option<PathBuf>> {
    if args.no_bins {
        return Ok(None);
    }
    if let Some(dir) = &args.bin_dir {
        return dir.canonicalize().map(Some).with_context(|| format!("--bin-dir {}", dir.display()));
    }
    let exe = env::current_exe().context("finding this executable")?;
    Ok(exe.parent().map(Path::to_owned))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("resolving {}", path.display()))
}

fn emulator() -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|dir| dir.join("qemu-system-x86_64"))
        .find(|path| path.is_file())
        .context("qemu-system-x86_64 is not installed; `cargo xtask prereq` installs it")
}

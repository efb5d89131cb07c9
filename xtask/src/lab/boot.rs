//! Starting the lab: initrd, emulator command line, keeper, first contact.
//!
//! Reuses a running lab whose inputs (kernel, initrd, options) are the same
//! and reboots it otherwise.

use super::exchange::IMAGE_SIZE;
use super::kernel::LabKernel;
use super::state::{Launch, StateDir};
use super::{AGENT_COMMAND, KEEPER_COMMAND, initrd, shutdowns};
use crate::prereq::{SOUND, emulator_version};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Name of the virtio-serial port between client and agent.
pub const PORT_NAME: &str = "org.ktstr.lab";
/// The exchange image as the lab sees it.
pub const EXCHANGE_DEVICE: &str = "/dev/vda";
/// Without the claim of fast byte-wise string instructions: with it kernels and C libraries copy with them,
/// and emulated each byte costs as much as a word.
const CPU: &str = "max,-erms,-fsrm";

/// Source of the library that its emulator runs with.
const COHERENCE: &str = include_str!("../../../ktstr-vmm/src/emulator/coherence.c");

/// How the lab's machine looks.
pub struct Shape {
    pub vcpus: u32,
    pub memory: String,
    pub idle_seconds: u64,
    pub emulator: PathBuf,
}

/// Makes sure that a lab with these inputs runs; true when it was booted now.
pub fn ensure(state: &StateDir, kernel: &LabKernel, shape: &Shape) -> Result<bool> {
    let agent = std::env::current_exe().context("finding this executable")?;
    let inputs = fingerprint(&agent, kernel, shape)?;
    if state.is_alive()? && state.kernel_death().is_some() {
        state.stop()?; // it panicked and its emulator is on the way out
    }
    if state.is_alive()? {
        match state.read::<Launch>("launch.json") {
            Some(launch) if launch.inputs == inputs => return Ok(false),
            _ => {
                eprintln!("lab: kernel, agent or options changed, rebooting it");
                state.stop()?;
            }
        }
    }
    start(state, kernel, shape, &agent, inputs)?;
    Ok(true)
}

fn start(state: &StateDir, kernel: &LabKernel, shape: &Shape, agent: &Path, inputs: String) -> Result<()> {
    let begin = Instant::now();
    // Older ones emulate SVM with flaws that kill recent kernels.
    if let Some(version) = emulator_version().filter(|version| *version < SOUND) {
        bail!("the lab needs QEMU {}, this is {version}; `cargo xtask prereq` installs it", SOUND.0);
    }
    let archive = initrd::build(agent, &find_busybox()?, &kernel.modules_in_order()?)?;
    fs::write(state.file("initrd"), archive).context("writing the lab's initrd")?;
    for stale in ["agent.sock", "pushed.json", "console.log"] {
        let _ = fs::remove_file(state.file(stale));
    }
    let image = File::create(state.file("exchange.img")).context("creating the exchange image")?;
    image.set_len(IMAGE_SIZE).context("sizing the exchange image")?;
    fs::write(state.file("last-used"), "").context("writing last-used")?;
    let launch = Launch {
        argv: emulator_argv(kernel, shape)?,
        environment: coherent(state)?,
        idle_seconds: shape.idle_seconds,
        inputs,
        kernel_release: kernel.release.clone(),
    };
    state.write("launch.json", &launch)?;
    spawn_keeper(state, agent)?;
    eprintln!(
        "lab: booting {} on {} emulated vCPUs with SVM (prepared in {:.1} s)",
        kernel.release,
        shape.vcpus,
        begin.elapsed().as_secs_f64()
    );
    Ok(())
}

/// The keeper outlives this process, in a session of its own.
fn spawn_keeper(state: &StateDir, agent: &Path) -> Result<()> {
    let log = File::create(state.file("keeper.log")).context("creating keeper.log")?;
    let mut command = Command::new(agent);
    command
        .arg(KEEPER_COMMAND)
        .arg(state.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("duplicating the log's descriptor")?)
        .stderr(log);
    // SAFETY: setsid is async-signal-safe and touches only the child.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            Ok(())
        });
    }
    command.spawn().context("starting the lab's keeper")?;
    let begin = Instant::now();
    while !state.is_alive()? {
        if begin.elapsed().as_secs() > 10 {
            let log = fs::read_to_string(state.file("keeper.log")).unwrap_or_default();
            bail!("the lab's keeper did not come up: {}", log.trim());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Ok(())
}

fn emulator_argv(kernel: &LabKernel, shape: &Shape) -> Result<Vec<String>> {
    let path = |path: &Path| {
        path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
    };
    // After an oops or a lock-up (twice the threshold, seconds) nobody should trust the lab's verdicts.
    let mut append = "console=ttyS0 tsc=reliable no_timer_check panic=-1 oops=panic softlockup_panic=1 \
                      watchdog_thresh=20 loglevel=4 rdinit=/init"
        .to_owned();
    // What the kernel does not know is its init's environment.
    if std::env::var_os(shutdowns::ASKED).is_some() {
        append.push_str(&format!(" {}=1", shutdowns::ASKED));
    }
    append.push_str(&format!(" -- {AGENT_COMMAND}"));
    let vcpus = shape.vcpus.to_string();
    let port = format!("virtserialport,chardev=agent,name={PORT_NAME}");
    let args = [
        &path(&shape.emulator)?,
        // One thread per vCPU: with a single one a nested guest never gets to run.
        "-accel",
        "tcg,thread=multi",
        "-machine",
        "q35",
        "-cpu",
        CPU,
        "-smp",
        &vcpus,
        "-m",
        &shape.memory,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-kernel",
        &path(&kernel.vmlinux)?,
        "-initrd",
        "initrd",
        "-append",
        &append,
        "-chardev",
        "file,id=console,path=console.log",
        "-serial",
        "chardev:console",
        "-device",
        "virtio-serial-pci",
        "-chardev",
        "socket,id=agent,path=agent.sock,server=on,wait=off",
        "-device",
        &port,
        "-drive",
        "if=none,id=exchange,file=exchange.img,format=raw,readonly=on,file.locking=off",
        "-device",
        "virtio-blk-pci,drive=exchange",
    ];
    Ok(args.into_iter().map(str::to_owned).collect())
}

/// The library that keeps vCPUs on threads of their own from kernel text that is no more, built for the lab; it
/// reports with a `c` in `emulator.log`.
fn coherent(state: &StateDir) -> Result<Vec<(String, String)>> {
    let (source, library) = (state.file("coherence.c"), state.file("coherence.so"));
    fs::write(&source, COHERENCE).context("writing the source of the emulator's library")?;
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
    let status = compiler.status().context("starting the C compiler")?;
    if !status.success() {
        bail!("{compiler:?}: {status}");
    }
    let library = library.to_str().context("the lab's directory is not UTF-8")?.to_owned();
    Ok([("LD_PRELOAD", library), ("KTSTR_COHERENCE", "2".to_owned())]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec())
}

/// Changes when a boot with these inputs would differ.
fn fingerprint(agent: &Path, kernel: &LabKernel, shape: &Shape) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    for path in [agent, &kernel.vmlinux] {
        let meta = fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?;
        (path, meta.size(), meta.mtime(), meta.mtime_nsec()).hash(&mut hasher);
    }
    (kernel.release.as_str(), shape.vcpus, &shape.memory, shape.idle_seconds, &shape.emulator)
        .hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

fn find_busybox() -> Result<PathBuf> {
    let candidates = ["/bin/busybox", "/usr/bin/busybox", "/usr/local/bin/busybox"];
    candidates
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.is_file())
        .with_context(|| format!("no busybox at {candidates:?} (Debian: apt install busybox-static)"))
}

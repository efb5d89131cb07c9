//! The scx-ktstr executable: loads the scheduler of `bpf/main.bpf.c`, keeps it attached until a
//! signal comes or the kernel ends it, and says how it ended.
//!
//! There is no restart, for a test wants to see the first end; but what the kernel sends away and asks to start
//! anew, as at a hotplug with `--leave-at-hotplug`, starts anew. Command line in `cli.rs`, exit codes in
//! `exit.rs`, the names a monitor may look for in `bpf/intf.h`.

mod cli;
mod exit;
mod plant;
mod stats;

#[expect(
    clippy::allow_attributes,
    clippy::undocumented_unsafe_blocks,
    reason = "generated from the BPF object"
)]
mod bpf {
    include!(concat!(env!("OUT_DIR"), "/bpf_skel.rs"));
}

use std::io::PipeReader;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libbpf_rs::OpenObject;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::{SIGINT, SIGTERM};

use bpf::{MainSkel, MainSkelBuilder};
use cli::Args;
use exit::{ExitKind, ExitReport, code};
use stats::StatsServer;

/// The queue that orders tasks by virtual time.
const VTIME: &str = "vtime";

/// How often the exit record is looked at. Also what makes an idle machine call into the program,
/// so that a delayed stall or crash happens there too.
const LOOK_EVERY_MS: u8 = 50;

/// The kernel calls `exit` before it lets a detach return; more than this means that it hangs.
const EXIT_WITHIN: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let args = Args::read();
    let mut planted_storage = MaybeUninit::uninit();
    let _planted = match args.plant.then(|| plant::plant(&mut planted_storage)).transpose() {
        Ok(planted) => planted,
        Err(error) => return refuse("cannot plant", &error, code::LOAD),
    };
    let mut server = match StatsServer::bind(Path::new(stats::SOCKET), args.mute) {
        Ok(server) => Some(server),
        Err(error) => {
            eprintln!("scx-ktstr: no statistics: cannot listen at {}: {error}", stats::SOCKET);
            None
        }
    };
    loop {
        let mut storage = MaybeUninit::uninit();
        let skel = match load(&args, &mut storage) {
            Ok(skel) => skel,
            Err(error) => return refuse("cannot load", &error, code::LOAD),
        };
        match run(skel, &args, server.as_mut()) {
            Ok(report) => {
                println!("{report}");
                if !report.asks_to_start_anew() {
                    return report.code();
                }
            }
            Err(error) => return refuse("cannot attach", &error, code::ATTACH),
        }
    }
}

fn refuse(action: &str, error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("scx-ktstr: {action}: {error:#}");
    ExitCode::from(code)
}

/// Opens the object, writes the command line into its constants, has the kernel verify it.
fn load<'a>(args: &Args, storage: &'a mut MaybeUninit<OpenObject>) -> Result<MainSkel<'a>> {
    let mut open = MainSkelBuilder::default().open(storage).context("opening the BPF object")?;
    let rodata = open.maps.rodata_data.as_deref_mut().context("the BPF object has no .rodata")?;
    rodata.stall_after_ns = args.stall_after_ns();
    rodata.crash_after_ns = args.crash_after_ns();
    rodata.slow_ns = args.slow_ns();
    rodata.slice_ns = args.slice_ns();
    rodata.fail_verify = args.fail_verify.into();
    rodata.fail_init = args.fail_init.into();
    rodata.race = args.race.into();
    rodata.unfair_ns = if args.unfair { args.unfair_ms * 1_000_000 } else { 0 };
    rodata.wrong_cpu = args.wrong_cpu.into();
    let cpus = libbpf_rs::num_possible_cpus().context("counting the CPUs")?;
    rodata.nr_cpus = cpus.try_into().context("counting the CPUs")?;
    rodata.loader_tgid = std::process::id().try_into().context("own process id")?;
    let ops = open.struct_ops.ktstr_ops_mut();
    ops.timeout_ms = args.watchdog_ms;
    ops.exit_dump_len = args.exit_dump_len;
    if args.leave_at_hotplug {
        (ops.cpu_online, ops.cpu_offline) = (std::ptr::null_mut(), std::ptr::null_mut());
    }
    open.load().context(
        "the kernel did not accept the program (above: libbpf and the verifier); it needs \
         CONFIG_SCHED_CLASS_EXT, CONFIG_DEBUG_INFO_BTF and CAP_SYS_ADMIN",
    )
}

/// Attached from here to the end. Dropping the link detaches.
fn run(mut skel: MainSkel<'_>, args: &Args, mut server: Option<&mut StatsServer>) -> Result<ExitReport> {
    let signals = signal_pipe()?;
    let link = skel
        .maps
        .ktstr_ops
        .attach_struct_ops()
        .context("making the program the scheduler; is another one attached?")?;
    let queue = queue_name(&skel)?;
    anyhow::ensure!(
        !args.race || queue == VTIME,
        "--race needs the queue by virtual time, here it is {queue}"
    );
    println!("scx-ktstr: attached queue={queue}");
    let mut starved = 0;
    while exit_kind(&skel)?.is_none() {
        let pid = bss(&skel)?.unfair_pid;
        if pid != starved && pid != 0 {
            println!("scx-ktstr: starving pid={pid}");
        }
        starved = pid;
        if signalled(&signals, server.as_deref())? {
            break;
        }
        if let Some(server) = &mut server {
            let stats = statistics(bss(&skel)?);
            server.serve(|| stats.clone());
        }
    }
    drop(link);
    exit_report(&skel)
}

/// Waits a little for a signal, or for somebody who asks; whether it was a signal.
fn signalled(signals: &PipeReader, server: Option<&StatsServer>) -> Result<bool> {
    let asked = server.into_iter().flat_map(StatsServer::fds);
    let watched: Vec<BorrowedFd<'_>> = std::iter::once(signals.as_fd()).chain(asked).collect();
    let mut fds: Vec<_> = watched.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    match poll(&mut fds, PollTimeout::from(LOOK_EVERY_MS)) {
        Ok(_) => Ok(fds[0].any().unwrap_or(false)),
        Err(nix::Error::EINTR) => Ok(false),
        Err(error) => Err(error).context("waiting for a signal"),
    }
}

/// The counters of the BPF program.
fn statistics(bss: &bpf::types::bss) -> serde_json::Value {
    // SAFETY: valid, aligned references; volatile because the kernel writes them meanwhile.
    let read = |counter: &u64| unsafe { (&raw const *counter).read_volatile() };
    serde_json::json!({
        "nr_selected": read(&bss.nr_selected),
        "nr_local": read(&bss.nr_local),
        "nr_enqueued": read(&bss.nr_enqueued),
        "nr_dispatched": read(&bss.nr_dispatched),
        "nr_stalled": read(&bss.nr_stalled),
        "nr_running": read(&bss.nr_running),
        "vtime_now": read(&bss.vtime_now),
    })
}

/// A pipe that becomes readable with the first SIGTERM or SIGINT.
fn signal_pipe() -> Result<PipeReader> {
    let (reader, writer) = std::io::pipe().context("creating the signal pipe")?;
    for signal in [SIGTERM, SIGINT] {
        let writer = writer.try_clone().context("duplicating the signal pipe")?;
        signal_hook::low_level::pipe::register(signal, writer)
            .with_context(|| format!("catching signal {signal}"))?;
    }
    Ok(reader)
}

fn bss<'a>(skel: &'a MainSkel<'_>) -> Result<&'a bpf::types::bss> {
    skel.maps.bss_data.as_deref().context("the BPF object has no .bss")
}

fn queue_name(skel: &MainSkel<'_>) -> Result<&'static str> {
    Ok(match bss(skel)?.shared_queue {
        0 => VTIME,
        _ => {
            "global (this kernel's BTF lists scx_bpf_create_dsq with an argument that no program can \
             pass, so there is no queue by virtual time)"
        }
    })
}

fn exit_kind(skel: &MainSkel<'_>) -> Result<Option<ExitKind>> {
    // SAFETY: a valid, aligned reference; volatile because the kernel writes it meanwhile.
    let raw = unsafe { (&raw const bss(skel)?.exit_record.kind).read_volatile() };
    Ok(ExitKind::from_raw(raw))
}

fn exit_report(skel: &MainSkel<'_>) -> Result<ExitReport> {
    let deadline = Instant::now() + EXIT_WITHIN;
    let kind = loop {
        match exit_kind(skel)? {
            Some(kind) => break kind,
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            None => anyhow::bail!("detached, but the kernel did not call exit in {EXIT_WITHIN:?}"),
        }
    };
    let bss = bss(skel)?;
    let dump = skel.maps.bss_dump_data.as_deref().context("the BPF object has no .bss.dump")?;
    Ok(ExitReport::decode(
        kind,
        bss.exit_record.exit_code,
        bytes(&bss.exit_record.reason),
        bytes(&bss.exit_record.msg),
        bytes(&dump.exit_dump),
        bss.crash != 0,
    ))
}

fn bytes(chars: &[i8]) -> &[u8] {
    // SAFETY: i8 and u8 have the same size and alignment, every bit pattern is valid for both.
    unsafe { std::slice::from_raw_parts(chars.as_ptr().cast(), chars.len()) }
}

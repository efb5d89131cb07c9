//! Work that presses on devices, on a machine that has them: the kernel's counters say that it did.

use std::{fs, time::Instant};

use ktstr::prelude::*;
use ktstr_proto::{Accel, verdict::Outcome};

use crate::harness::{run, spec};

const DISK: DiskConfig = DiskConfig::new().capacity_mib(8);
const NET: NetConfig = NetConfig::new();

fn counter(path: &str) -> Result<u64> {
    fs::read_to_string(path).with_context(|| path.to_owned())?.trim().parse().context("a number")
}

/// Sectors written to the disk: the seventh number (Documentation/block/stat.rst).
fn sectors_written() -> Result<u64> {
    let stat = fs::read_to_string("/sys/block/vda/stat")?;
    stat.split_whitespace().nth(6).and_then(|word| word.parse().ok()).context("no seventh number")
}

/// Interrupts of all virtio devices on all CPUs.
fn interrupts() -> Result<u64> {
    let table = fs::read_to_string("/proc/interrupts")?;
    let lines = table.lines().filter(|line| line.contains("virtio"));
    let counts =
        lines.flat_map(|line| line.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok()));
    Ok(counts.sum())
}

/// Works until every worker did so much; how long that takes is the host's choice.
fn work(ctx: &Ctx, work_type: WorkType, rounds: u64) -> Result<Vec<WorkerReport>> {
    let workers = work_type.group_size();
    let config = WorkloadConfig { workers, work_type, seed: ctx.seed, ..WorkloadConfig::default() };
    let mut handle = WorkloadHandle::spawn(config)?;
    handle.start()?;
    let begun = Instant::now();
    while handle.snapshot().iter().any(|report| report.iterations < rounds && report.not_run.is_none()) {
        ensure!(begun.elapsed() < Duration::from_secs(60), "not done: {:?}", handle.snapshot());
        std::thread::sleep(Duration::from_millis(10));
    }
    let reports = handle.stop_and_collect();
    for report in &reports {
        ensure!(report.not_run.is_none() && report.exit == WorkerExit::Completed, "{report:?}");
    }
    Ok(reports)
}

#[ktstr_test(llcs = 1, cores = 2, threads = 1, duration_s = 5, disk = DISK, networks = [NET], ignore)]
fn work_on_devices(ctx: &Ctx) -> Result<AssertResult> {
    let before = sectors_written()?;
    let writer = work(ctx, WorkType::IoSyncWrite, 3)?.remove(0);
    let written = sectors_written()? - before;
    // Sixteen blocks of eight sectors a round, on the disk itself.
    ensure!(written >= writer.iterations * 16 * 8, "{written} sectors in {} rounds", writer.iterations);
    ensure!(writer.voluntary_switches > 0, "it never slept for the disk: {writer:?}");

    let up = std::process::Command::new("ip").args(["link", "set", "eth0", "up"]).status()?;
    ensure!(up.success(), "eth0 does not come up");
    let statistics = "/sys/class/net/eth0/statistics";
    let sent = || counter(&format!("{statistics}/tx_packets"));
    let before = sent()?;
    let traffic = work(ctx, WorkType::NetTraffic { interval_us: 1000, frame_bytes: 60 }, 20)?.remove(0);
    let packets = sent()? - before;
    ensure!(packets > 0, "no packet in {} rounds", traffic.iterations);

    let (before, interrupted) = (counter(&format!("{statistics}/rx_packets"))?, interrupts()?);
    let woken = work(ctx, WorkType::irq_wake(), 5)?.remove(1);
    let heard = counter(&format!("{statistics}/rx_packets"))? - before;
    let interrupted = interrupts()? - interrupted;
    ensure!(
        heard >= woken.iterations && interrupted > 0,
        "{heard} packets, {interrupted} interrupts: {woken:?}"
    );
    ensure!(woken.wake_latency.count() > 0, "it never slept for a frame: {woken:?}");
    println!("{written} sectors, {packets} packets sent, {heard} heard in {interrupted} interrupts");
    Ok(AssertResult::pass())
}

#[test]
fn work_on_devices_moves_the_kernels_counters() {
    let report = run(spec("work_on_devices", Accel::Tcg));
    assert!(
        !report.infrastructure && report.outcome == Outcome::Pass,
        "{:?} {:#?}",
        report.cause,
        report.result
    );
}

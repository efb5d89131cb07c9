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

/// Sectors read from the disk and written to it: the third and the seventh number
/// (Documentation/block/stat.rst).
fn sectors() -> Result<[u64; 2]> {
    let stat = fs::read_to_string("/sys/block/vda/stat")?;
    let mut words = stat.split_whitespace().map(|word| word.parse().ok());
    let read = words.nth(2).flatten().context("no third number")?;
    Ok([read, words.nth(3).flatten().context("no seventh number")?])
}

/// How often a task slept for I/O (`in_iowait`, which the block layer sets around its waiting); needs the
/// scheduler's statistics.
fn io_waits(tid: u32) -> Result<u64> {
    let figures = fs::read_to_string(format!("/proc/{tid}/sched"))?;
    let named = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.trim().ends_with("iowait_count").then(|| value.trim().parse().ok())?
    };
    figures.lines().find_map(named).with_context(|| format!("no iowait_count in {figures}"))
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
    work_until(ctx, work_type, rounds, |_| Ok(true))
}

/// As [`work`], and until what is looked for is seen of the workers.
fn work_until(
    ctx: &Ctx,
    work_type: WorkType,
    rounds: u64,
    mut seen: impl FnMut(&WorkloadHandle) -> Result<bool>,
) -> Result<Vec<WorkerReport>> {
    let workers = work_type.group_size();
    let config = WorkloadConfig { workers, work_type, seed: ctx.seed, ..WorkloadConfig::default() };
    let mut handle = WorkloadHandle::spawn(config)?;
    handle.start()?;
    let begun = Instant::now();
    let short = |report: &WorkerReport| report.iterations < rounds && report.not_run.is_none();
    while handle.snapshot().iter().any(short) || !seen(&handle)? {
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
    let before = sectors()?;
    let writer = work(ctx, WorkType::IoSyncWrite, 3)?.remove(0);
    let written = sectors()?[1] - before[1];
    // Sixteen blocks of eight sectors a round, on the disk itself.
    ensure!(written >= writer.iterations * 16 * 8, "{written} sectors in {} rounds", writer.iterations);
    ensure!(writer.voluntary_switches > 0, "it never slept for the disk: {writer:?}");

    fs::write("/proc/sys/kernel/sched_schedstats", "1")?;
    for (work_type, writes) in [(WorkType::IoRandRead, 0), (WorkType::IoConvoy, 1)] {
        let name = work_type.name();
        let (before, mut waits) = (sectors()?, 0);
        let worker = work_until(ctx, work_type, 20, |handle| {
            waits = io_waits(handle.tids()[0])?;
            Ok(waits >= 5)
        })?
        .remove(0);
        let after = sectors()?;
        let [read, written] = [after[0] - before[0], after[1] - before[1]];
        // A block of eight sectors a round, past every cache.
        let rounds = worker.iterations * 8;
        ensure!(read >= rounds, "{name}: {read} sectors read in {} rounds", worker.iterations);
        ensure!(written >= rounds * writes, "{name}: {written} sectors written, {worker:?}");
        ensure!(worker.voluntary_switches >= waits, "{name}: {waits} waits for I/O, {worker:?}");
        println!(
            "{name}: {} rounds, {read} sectors read, {written} written, {waits} waits for I/O",
            worker.iterations
        );
    }

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

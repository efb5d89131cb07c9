//! Disks and networks: mounted, written, of the speed asked for, heard; and a device process that dies.

use std::os::unix::fs::FileExt;

use ktstr::prelude::*;
use ktstr_proto::{
    Accel,
    device::{DiskConfig, NetConfig},
    run::{Performance, RunSpec},
    verdict::{Cause, Process, RunReport},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::{
    Live, SOON, alive, assert_sound, exec, not_run, reached, recorded_pid, run, run_with_output, spec,
    wait_for,
};

/// What a guest has flushed before its disk dies.
const FLUSHED: &[u8] = b"this has been flushed";

/// Bytes that a mounted disk takes in a second.
const RATE: u64 = 2_000_000;
const MOUNTED: DiskConfig = DiskConfig::new().bytes_per_sec(RATE);
const ON_EXT4: DiskConfig = MOUNTED.capacity_mib(16).filesystem(Filesystem::Ext4);
const ON_BTRFS: DiskConfig = MOUNTED.capacity_mib(128).filesystem(Filesystem::Btrfs);

#[ktstr_test(duration_s = 1, disk = ON_EXT4, ignore)]
fn on_ext4(ctx: &Ctx) -> Result<AssertResult> {
    on_a_file_system(ctx, "ext4")
}

#[ktstr_test(duration_s = 1, disk = ON_BTRFS, ignore)]
fn on_btrfs(ctx: &Ctx) -> Result<AssertResult> {
    on_a_file_system(ctx, "btrfs")
}

/// Writes a file, no faster than the disk is, and reads it back from the disk, not from memory.
fn on_a_file_system(ctx: &Ctx, kind: &str) -> Result<AssertResult> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    ensure!(mounts.contains(&format!("/dev/vda {DISK_MOUNT} {kind} ")), "{mounts}");
    let path = std::path::Path::new(DISK_MOUNT).join("file");
    let content: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let begun = std::time::Instant::now();
    std::fs::write(&path, &content)?;
    std::fs::File::open(&path)?.sync_all()?;
    // A tenth of a second's bytes may be in hand when it begins, and the guest's clock may be a slow one.
    let owed_us = (content.len() as u64 - RATE / 10) * 1_000_000 / RATE;
    let least = std::time::Duration::from_micros(owed_us * 3 / 4);
    ensure!(begun.elapsed() >= least, "{} bytes took {:?}", content.len(), begun.elapsed());
    std::fs::write("/proc/sys/vm/drop_caches", "3")?;
    ensure!(std::fs::read(&path)? == content, "another content came back");
    scenarios::steady(ctx)
}

/// Needs no program of the host, and lasts until it is killed, however late.
#[ktstr_test(llcs = 1, cores = 1, threads = 1, duration_s = 60, disk = DiskConfig::new().capacity_mib(2), ignore)]
fn on_a_disk(ctx: &Ctx) -> Result<AssertResult> {
    let disk = std::fs::File::options().write(true).open(DISK_DEVICE)?;
    disk.write_all_at(FLUSHED, 4096)?;
    disk.sync_all()?;
    scenarios::steady(ctx)
}

/// The test of that name, whose file system `program` makes.
fn mounted(name: &str, program: &str) {
    let report = run(spec(name, Accel::Tcg));
    let cause = format!("{:?}", report.cause);
    if report.outcome == Outcome::NotRun && cause.contains(program) {
        return println!("NOT RUN: {cause}");
    }
    assert_sound(&report);
}

#[test]
fn a_file_is_written_to_a_mounted_disk() {
    mounted("on_ext4", "mkfs.ext4");
}

#[test]
fn a_file_is_written_to_a_copy_of_a_btrfs() {
    mounted("on_btrfs", "mkfs.btrfs");
}

#[test]
fn det_has_no_disks_and_says_so() {
    let report = run(spec("on_a_disk", Accel::Det));
    assert_eq!(report.outcome, Outcome::NotRun);
    assert!(format!("{:?}", report.cause).contains("host's time"), "{:?}", report.cause);
}

#[test]
fn a_dead_device_process_is_named() {
    a_device_process_dies(Accel::Tcg);
}

#[test]
fn on_kvm_a_dead_device_process_is_named() {
    a_device_process_dies(Accel::Kvm);
}

fn a_device_process_dies(accel: Accel) {
    let root = tempfile::tempdir().unwrap();
    let live = Live::start(spec("on_a_disk", accel), root.path());
    if !reached(&live.dir, "ScenarioStarted") {
        let report = live.end().0.expect("the orchestrator lives and reports");
        assert!(not_run(&report, accel), "the run ended before its scenario: {:?}", report.cause);
        return;
    }
    let device = recorded_pid(&live.dir, "device-pid", "/value");
    let image = image_of(device);
    kill(Pid::from_raw(device.try_into().unwrap()), Signal::SIGKILL).unwrap();
    let (report, _) = live.end();
    let report = report.expect("the orchestrator lives and reports");
    assert!(report.infrastructure, "{:?}", report.cause);
    assert!(
        matches!(&report.cause, Some(Cause::ProcessDied { process: Process::Device, how }) if how.contains("signal 9")),
        "{:?}",
        report.cause
    );
    wait_for("end of the device process", SOON, || (!alive(device)).then_some(()));
    let Some(image) = image else { return println!("NOT RUN: the image is not ours to open") };
    let mut found = vec![0; FLUSHED.len()];
    image.read_exact_at(&mut found, 4096).expect("the image outlives its server");
    assert_eq!(found, FLUSHED);
}

/// The image that a device process holds, where this user may look into it.
fn image_of(device: u32) -> Option<std::fs::File> {
    let held = std::fs::read_dir(format!("/proc/{device}/fd")).ok()?.flatten();
    held.map(|entry| entry.path()).find_map(|path| {
        let about = std::fs::metadata(&path).ok()?;
        let is_image = about.is_file() && about.len() == DiskConfig::new().capacity_mib(2).bytes();
        is_image.then(|| std::fs::File::open(&path).ok()).flatten()
    })
}

/// Sixty requests at twenty a second, two of them at once, and a frame that comes back.
const SCRIPT: &str = "
uptime() { cut -d' ' -f1 /proc/uptime; }
a=$(uptime); dd if=/dev/zero of=/dev/vda bs=4k count=60 oflag=direct 2>/dev/null; echo wrote $? $a $(uptime)
cd /sys/class/net/eth0; ip link set eth0 up && ip addr add 10.9.9.1/24 dev eth0
for i in $(seq 20); do
  ping -c 1 -W 1 10.9.9.2 >/dev/null; [ $(cat statistics/rx_packets) -gt 0 ] && break; sleep 0.1
done
echo frames $(cat statistics/tx_packets) $(cat statistics/rx_packets)
echo interface $(cat address) $(ls -d queues/rx-* | wc -l)
";

#[test]
fn a_disk_is_as_slow_as_asked_for_and_a_network_answers_itself() {
    let report = devices_answer(Accel::Tcg, 2).expect("tcg needs nothing that is not here");
    let share = "cpu_budget: the machine runs on host CPUs ";
    assert!(report.notes.iter().any(|note| note.starts_with(share)), "{:?}", report.notes);
}

#[test]
fn on_kvm_a_disk_is_as_slow_as_asked_for_and_a_network_answers_itself() {
    devices_answer(Accel::Kvm, 2);
}

/// With a network of so many pairs of queues. Nothing where the accelerator cannot be had.
fn devices_answer(accel: Accel, queue_pairs: u16) -> Option<RunReport> {
    let (report, output) = run_with_output(RunSpec {
        accel,
        topology: Topology::new(1, 1, 2, 1).expect("two CPUs"),
        disk: Some(DiskConfig::new().capacity_mib(1).iops(20)),
        networks: vec![NetConfig::new().queue_pairs(queue_pairs)],
        // Two vCPUs on one CPU of the lab would be slower than a boot may be.
        performance: if accel == Accel::Tcg { Performance::Unassisted } else { Performance::Usual },
        cpu_budget: (accel == Accel::Tcg).then_some(1),
        ..exec(SCRIPT)
    });
    if not_run(&report, accel) {
        return None;
    }
    assert_eq!(report.outcome, Outcome::Pass, "{:?}\n{output}", report.cause);
    let words = |first: &str| -> Vec<String> {
        let line = output.lines().find(|line| line.starts_with(first));
        line.unwrap_or_else(|| panic!("no {first} in {output}")).split(' ').skip(1).map(Into::into).collect()
    };
    let [status, begun, ended] = &words("wrote")[..] else { panic!("{output}") };
    let took = ended.parse::<f64>().unwrap() - begun.parse::<f64>().unwrap();
    // The bucket holds two at the start, and the clock ticks in hundredths.
    assert!(status == "0" && took >= 2.8, "60 requests took {took:.2} s: {output}");
    assert!(report.notes.iter().all(|note| !note.contains("broke")), "{:?}", report.notes);
    let [sent, heard] = &words("frames")[..] else { panic!("{output}") };
    assert!(sent.parse::<u64>().unwrap() > 0 && heard.parse::<u64>().unwrap() > 0, "{output}");
    assert_eq!(words("interface"), ["52:54:00:6b:74:01", &queue_pairs.to_string()], "{output}");
    Some(report)
}

//! Figures of the KVM backend by itself, without an orchestrator or a jail: what a machine costs besides its RAM, what
//! an idle guest costs, how many machines a host can make. `cargo xtask bench --only figures` runs it.
//!
//! `figures KERNEL INITRD SECONDS`; the init says [`READY`] and then waits for ever. One line per figure: a name, a
//! number.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ktstr_vmm::kvm::KvmMachine;
use ktstr_vmm::machine::{Event, MachineSpec, Running, Topology};

const READY: &str = "bench-init: up";
const MEMORY: u64 = 128 << 20;
/// Machines made at the same time.
const AT_A_TIME: usize = 8;
/// What a kernel still does by itself after its init has begun.
const SETTLE: Duration = Duration::from_secs(3);

struct Guest<'a> {
    kernel: &'a str,
    initrd: &'a str,
}

impl Guest<'_> {
    fn start(&self, com1: OwnedFd) -> anyhow::Result<KvmMachine> {
        let open = |path: &str| File::open(path).with_context(|| format!("open {path}"));
        let spec = MachineSpec {
            topology: Topology { numa_nodes: 1, llcs: 1, cores: 1, threads: 1 },
            numa: Default::default(),
            absent_llcs: 0,
            memory: MEMORY,
            kernel: open(self.kernel)?.into(),
            initrd: vec![open(self.initrd)?.into()],
            cmdline: "console=ttyS0 tsc=reliable no_timer_check panic=-1".into(),
            ring: None,
            com1,
            com2: None,
            console: None,
            devices: Default::default(),
            isolation: None,
        };
        let kvm = File::options().read(true).write(true).open("/dev/kvm").context("open /dev/kvm")?;
        Ok(KvmMachine::start(kvm.into(), spec)?)
    }

    /// With the guest's init waiting.
    fn idle(&self) -> anyhow::Result<KvmMachine> {
        let (console, com1) = std::io::pipe()?;
        let mut machine = self.start(com1.into())?;
        for line in BufReader::new(console).lines() {
            if line?.contains(READY) {
                std::thread::sleep(SETTLE);
                return Ok(machine);
            }
            if let Some(Event::Exited(exit)) = machine.next_event() {
                bail!("the guest ended before its init was up: {exit:?}");
            }
        }
        bail!("the guest's console ended before its init was up")
    }

    /// How often a second the vCPU of an idle machine leaves the guest.
    fn exits(&self, idle: Duration) -> anyhow::Result<f64> {
        let machine = self.idle()?;
        let begun = Instant::now();
        let before = exits_so_far(&machine)?;
        std::thread::sleep(idle);
        Ok((exits_so_far(&machine)? - before) as f64 / begun.elapsed().as_secs_f64())
    }

    /// Machines made and unmade by this many threads, per second.
    fn made(&self, duration: Duration) -> anyhow::Result<f64> {
        let (made, begun) = (AtomicUsize::new(0), Instant::now());
        let one = || -> anyhow::Result<()> {
            while begun.elapsed() < duration {
                drop(self.start(File::options().write(true).open("/dev/null")?.into())?);
                made.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(one)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("making does not panic"))
        })?;
        Ok(made.into_inner() as f64 / begun.elapsed().as_secs_f64())
    }
}

fn exits_so_far(machine: &KvmMachine) -> anyhow::Result<u64> {
    let counters = machine.counted_so_far().into_iter().flat_map(|vcpu| vcpu.counters);
    let exits: Vec<u64> = counters.filter(|(name, _)| name == "exits").map(|(_, count)| count).collect();
    if exits.is_empty() {
        bail!("KVM on this host does not count exits");
    }
    Ok(exits.iter().sum())
}

/// Resident memory of this process without the guest's RAM, KiB.
fn resident() -> anyhow::Result<u64> {
    let maps = std::fs::read_to_string("/proc/self/smaps").context("read /proc/self/smaps")?;
    let (mut of_guest, mut sum) = (false, 0);
    for line in maps.lines() {
        let Some((field, value)) = line.split_once(':') else { continue };
        if field == "Rss" {
            let kib: u64 = value.trim().trim_end_matches(" kB").parse().context("read a size")?;
            sum += if of_guest { 0 } else { kib };
        } else if field.contains('-') {
            of_guest = line.contains("/memfd:ktstr-ram");
        }
    }
    Ok(sum)
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, seconds] = args.as_slice() else { bail!("usage: figures KERNEL INITRD SECONDS") };
    let duration = Duration::from_secs(seconds.parse().context("read the seconds")?);
    let guest = Guest { kernel, initrd };
    let machine = guest.idle()?;
    println!("resident_kib {}", resident()?);
    drop(machine);
    println!("idle_exits_per_second {:.1}", guest.exits(duration)?);
    let cpus = std::thread::available_parallelism()?.get();
    println!("machines_per_second_and_cpu {:.2}", guest.made(duration)? / cpus as f64);
    Ok(())
}

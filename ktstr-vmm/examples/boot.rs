//! Boots a kernel on the KVM backend with its console on standard output, without an orchestrator or
//! a jail: the shortest way to try the VMM by hand.
//!
//! `boot KERNEL INITRD NODES,LLCS,CORES,THREADS MEMORY_MIB [CMDLINE]`; with `KTSTR_CONSOLE=1` the
//! terminal is connected to `hvc0`.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use anyhow::{Context, bail};
use ktstr_vmm::kvm::KvmMachine;
use ktstr_vmm::machine::{ConsoleFds, Event, MachineSpec, Running, Topology};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

fn open(path: &str) -> anyhow::Result<OwnedFd> {
    Ok(File::open(path).with_context(|| format!("open {path}"))?.into())
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, shape, memory, rest @ ..] = args.as_slice() else {
        bail!("usage: boot KERNEL INITRD NODES,LLCS,CORES,THREADS MEMORY_MIB [CMDLINE]");
    };
    let numbers: Vec<u32> =
        shape.split(',').map(str::parse).collect::<Result<_, _>>().context("read the shape")?;
    let &[numa_nodes, llcs, cores, threads] = numbers.as_slice() else {
        bail!("the shape has four numbers: nodes,llcs,cores,threads");
    };
    let console = match std::env::var_os("KTSTR_CONSOLE") {
        Some(_) => Some(ConsoleFds {
            input: std::io::stdin().as_fd().try_clone_to_owned()?,
            output: std::io::stdout().as_fd().try_clone_to_owned()?,
            // Nobody tells the guest a size.
            size: File::options().read(true).write(true).open("/dev/null")?.into(),
        }),
        None => None,
    };
    let spec = MachineSpec {
        topology: Topology { numa_nodes, llcs, cores, threads },
        numa: Default::default(),
        absent_llcs: 0,
        memory: memory.parse::<u64>().context("read the memory size")? << 20,
        kernel: open(kernel)?,
        initrd: vec![open(initrd)?],
        cmdline: rest.first().map_or("console=ttyS0 panic=-1", String::as_str).to_owned(),
        ring: None,
        com1: std::io::stdout().as_fd().try_clone_to_owned()?,
        com2: None,
        console,
        devices: Default::default(),
        isolation: None,
    };
    let kvm = File::options().read(true).write(true).open("/dev/kvm").context("open /dev/kvm")?;
    let start = Instant::now();
    let mut machine = KvmMachine::start(kvm.into(), spec)?;
    let started = start.elapsed();
    loop {
        poll(&mut [PollFd::new(machine.event_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        while let Some(event) = machine.next_event() {
            eprintln!(
                "{event:?} after {:.3} s (set up in {:.3} s)",
                start.elapsed().as_secs_f64(),
                started.as_secs_f64()
            );
            if matches!(event, Event::Exited(_)) {
                return Ok(());
            }
        }
    }
}

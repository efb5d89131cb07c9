//! The emulator backend with a real emulator and real kernels.
//!
//! Needs `qemu-system-x86_64`, a static busybox and kernels (`KTSTR_KERNEL`, several separated by
//! `:`, or the kernel store); says NOT RUN otherwise, which `KTSTR_REQUIRE=tcg` makes a failure.

mod coherence;
mod guest;
#[path = "../../../tests/e2e/pulse.rs"]
mod pulse;
mod role;
mod shell;

use std::os::unix::fs::FileExt;
use std::time::Duration;

use guest::{Boot, FLAT, needs, text};
use ktstr_vmm::emulator::Mode;
use ktstr_vmm::machine::{Exit, Running, Topology};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pulse::Pulse;

#[test]
fn every_kernel_boots_to_power_off() {
    let Some(needs) = needs() else { return };
    for kernel in &needs.kernels {
        let script = "echo second port >/dev/ttyS1; echo user space is here; poweroff -f";
        let mut guest = Boot { kernel, ..Boot::new(&needs, script) }.start();
        assert_eq!(guest.exit(), Exit::PowerOff, "{}:\n{}", kernel.display(), text(&guest.com1));
        assert!(text(&guest.com1).contains("user space is here"), "{}", text(&guest.com1));
        assert_eq!(text(&guest.com2).trim(), "second port");
    }
}

#[test]
fn a_killed_emulator_is_noticed_at_once() {
    let Some(needs) = needs() else { return };
    let mut guest = Boot::new(&needs, "echo up; sleep 1000").start();
    guest.until("up");
    let pulse = Pulse::start();
    kill(Pid::from_raw(guest.machine.pid() as i32), Signal::SIGKILL).unwrap();
    let exit = role::noticed(&pulse, || guest.exit());
    assert!(matches!(&exit, Exit::BackendDied { how, .. } if how.contains("SIGKILL")), "{exit:?}");
}

#[test]
fn kill_ends_the_machine_and_says_so() {
    let Some(needs) = needs() else { return };
    let mut guest = Boot::new(&needs, "sleep 1000").start();
    guest.machine.kill();
    assert_eq!(guest.exit(), Exit::Killed);
    guest.machine.kill();
    assert_eq!(guest.machine.next_event(), None);
}

#[test]
fn a_guest_panic_is_a_reset() {
    let Some(needs) = needs() else { return };
    let mut guest = Boot::new(&needs, "echo c >/proc/sysrq-trigger").start();
    assert_eq!(guest.exit(), Exit::Reset, "{}", text(&guest.com1));
    assert!(text(&guest.com1).contains("Kernel panic - not syncing"), "{}", text(&guest.com1));
}

#[test]
fn a_paused_guest_stands_still() {
    let Some(needs) = needs() else { return };
    let script = "echo counting; for i in $(seq 100); do echo tick $i; sleep 0.05; done; poweroff -f";
    let mut guest = Boot::new(&needs, script).start();
    guest.until("tick 3");
    guest.machine.pause().unwrap();
    guest.machine.pause().unwrap();
    // What was written before may still be on its way, but it comes to an end before the guest does.
    let mut frozen = String::new();
    while text(&guest.com1) != frozen {
        frozen = text(&guest.com1);
        std::thread::sleep(Duration::from_millis(600));
    }
    assert!(!frozen.contains("tick 100"), "{frozen}");
    guest.machine.resume().unwrap();
    assert_eq!(guest.exit(), Exit::PowerOff);
    assert!(text(&guest.com1).contains("tick 100"));
}

#[test]
fn what_the_guest_writes_is_in_the_ram_file() {
    let Some(needs) = needs() else { return };
    let script = "printf pattern-from-guest | dd of=/dev/mem bs=4096 seek=32768 conv=notrunc 2>/dev/null; \
                  dd if=/dev/mem bs=4096 skip=32769 count=1 2>/dev/null | tr -d '\\000'; echo; poweroff -f";
    let mut guest = Boot { extra: "quiet memmap=1M$0x8000000", ..Boot::new(&needs, script) }.start();
    let ram = std::fs::File::from(guest.machine.ram().memfd.try_clone().unwrap());
    ram.write_all_at(b"pattern-from-host", 0x800_1000).unwrap();
    assert_eq!(guest.exit(), Exit::PowerOff);
    let mut found = [0; 18];
    ram.read_exact_at(&mut found, 0x800_0000).unwrap();
    assert_eq!(&found, b"pattern-from-guest", "{}", text(&guest.com1));
    assert!(text(&guest.com1).contains("pattern-from-host"), "{}", text(&guest.com1));
    assert!(ram.set_len(0).is_err(), "the RAM file must be sealed");
}

const SHAPE: &str = "cd /sys/devices/system/cpu; for c in cpu[0-9] cpu[0-9][0-9]; do test -d $c || continue; \
    echo $c smt=$(cat $c/topology/thread_siblings_list) l2=$(cat $c/cache/index2/shared_cpu_list) \
    llc=$(cat $c/cache/index3/shared_cpu_list); done; \
    for n in /sys/devices/system/node/node*; do echo ${n##*/} cpus=$(cat $n/cpulist); done; poweroff -f";

#[test]
fn the_guest_sees_the_requested_shape() {
    let Some(needs) = needs() else { return };
    let topology = Topology { numa_nodes: 2, llcs: 2, cores: 1, threads: 2 };
    let mut guest = Boot { topology, ..Boot::new(&needs, SHAPE) }.start();
    assert_eq!(guest.exit(), Exit::PowerOff);
    let console = text(&guest.com1);
    for line in [
        "cpu0 smt=0-1 l2=0-1 llc=0-1",
        "cpu1 smt=0-1 l2=0-1 llc=0-1",
        "cpu2 smt=2-3 l2=2-3 llc=2-3",
        "cpu3 smt=2-3 l2=2-3 llc=2-3",
        "node0 cpus=0-1",
        "node1 cpus=2-3",
    ] {
        assert!(console.contains(line), "`{line}` not in:\n{console}");
    }
}

#[test]
fn llcs_of_several_cores_without_threads() {
    let Some(needs) = needs() else { return };
    let topology = Topology { numa_nodes: 1, llcs: 2, cores: 2, threads: 1 };
    let mut guest = Boot { topology, ..Boot::new(&needs, SHAPE) }.start();
    assert_eq!(guest.exit(), Exit::PowerOff);
    let console = text(&guest.com1);
    for line in ["cpu0 smt=0 l2=0 llc=0-1", "cpu3 smt=3 l2=3 llc=2-3", "node0 cpus=0-3"] {
        assert!(console.contains(line), "`{line}` not in:\n{console}");
    }
}

#[test]
fn det_runs_are_equal_to_the_byte() {
    let Some(needs) = needs() else { return };
    let script = "(i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; cat /proc/self/sched) & \
                  cat /proc/self/sched /proc/sched_debug /proc/uptime /proc/interrupts 2>/dev/null; wait; poweroff -f";
    let console = || {
        let mode = Mode::Det { seed: 1, shift: 2 };
        let topology = Topology { cores: 4, ..FLAT };
        let mut guest = Boot { mode, topology, extra: "", ..Boot::new(&needs, script) }.start();
        assert_eq!(guest.exit(), Exit::PowerOff);
        text(&guest.com1)
    };
    let (first, second) = (console(), console());
    assert!(first.contains("se.sum_exec_runtime"), "{first}");
    let differing = first.lines().zip(second.lines()).find(|(a, b)| a != b);
    assert!(first == second, "first difference: {differing:?}");
}

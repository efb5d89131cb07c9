//! The KVM backend with real kernels on a real `/dev/kvm`; where hardware has none, in the KVM lab.
//!
//! Needs a usable KVM, a static busybox and kernels (`KTSTR_KERNEL`, several separated by `:`, or the
//! kernel store); says NOT RUN otherwise, which `KTSTR_REQUIRE=kvm` makes a failure.

#[path = "../emulator/guest.rs"]
#[expect(dead_code, reason = "only the initramfs and the sinks are used here")]
mod guest;
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use guest::text;
use ktstr_vmm::kvm::StartError;
use ktstr_vmm::machine::{ConsoleFds, Exit, Gpa, RingRegion, Running, Topology};
use ktstr_vmm::snapshot::{self, SnapshotFile};
use support::{Boot, ONE, archive_of, find_below, kernels};

const TOPOLOGY_SCRIPT: &str = "\
echo kernel $(cat /proc/sys/kernel/osrelease); \
for c in /sys/devices/system/cpu/cpu[0-9]*; do t=$c/topology; \
echo cpu pkg=$(cat $t/physical_package_id) core=$(cat $t/core_id) siblings=$(cat $t/thread_siblings_list) \
llc=$(cat $c/cache/index3/shared_cpu_list); done; \
for n in /sys/devices/system/node/node*; do echo node cpus=$(cat $n/cpulist) distance=$(cat $n/distance); done; \
echo fallback >/dev/ttyS1; poweroff -f";

fn list(first: u32, count: u32) -> String {
    if count == 1 { first.to_string() } else { format!("{first}-{}", first + count - 1) }
}

/// What the script prints on a machine of this shape.
fn expected(shape: Topology) -> Vec<String> {
    let Topology { numa_nodes, llcs, cores, threads } = shape;
    let mut lines = Vec::new();
    for cpu in 0..shape.cpus() {
        let (llc, core) = (cpu / (cores * threads), cpu / threads % cores);
        lines.push(format!(
            "cpu pkg={llc} core={core} siblings={} llc={}",
            list(cpu / threads * threads, threads),
            list(llc * cores * threads, cores * threads)
        ));
    }
    let per_node = llcs / numa_nodes * cores * threads;
    for node in 0..numa_nodes {
        let distances: Vec<_> =
            (0..numa_nodes).map(|other| if other == node { "10" } else { "20" }).collect();
        lines.push(format!("node cpus={} distance={}", list(node * per_node, per_node), distances.join(" ")));
    }
    lines
}

#[test]
fn kvm_boots_every_kernel_with_one_cpu() {
    boots_every_kernel(ONE);
}

#[test]
fn kvm_boots_every_kernel_with_two_caches() {
    boots_every_kernel(Topology { llcs: 2, ..ONE });
}

#[test]
fn kvm_boots_every_kernel_with_two_nodes_and_smt() {
    boots_every_kernel(Topology { numa_nodes: 2, llcs: 2, cores: 1, threads: 2 });
}

/// Each kernel sees the topology asked for, and com2.
fn boots_every_kernel(topology: Topology) {
    let Some(kernels) = kernels() else { return };
    for kernel in &kernels {
        let mut guest = Boot { topology, ..Boot::new(kernel, TOPOLOGY_SCRIPT) }.start();
        let exit = guest.exit();
        let seen = text(&guest.com1);
        assert_eq!(exit, Exit::PowerOff, "{}:\n{seen}", kernel.display());
        let lines: Vec<_> =
            seen.lines().map(str::trim).filter(|l| l.starts_with("cpu ") || l.starts_with("node ")).collect();
        assert_eq!(lines, expected(topology), "{}:\n{seen}", kernel.display());
        assert_eq!(text(&guest.com2).trim(), "fallback");
        println!("{} {topology:?}: {:.1} s", kernel.display(), guest.started.elapsed().as_secs_f64());
    }
}

#[test]
fn kvm_uses_memory_above_the_device_hole() {
    let Some(kernels) = kernels() else { return };
    let script = "cat /proc/meminfo | head -1; poweroff -f";
    let mut guest = Boot { memory_mib: 5120, topology: ONE, ..Boot::new(&kernels[0], script) }.start();
    assert_eq!(guest.exit(), Exit::PowerOff);
    let seen = text(&guest.com1);
    let line = seen.lines().find(|l| l.contains("MemTotal")).expect("a MemTotal line");
    let total: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(total > 4_900_000, "{line}");
    assert_eq!(guest.machine.ram().regions.len(), 2);
}

#[test]
fn kvm_reboot_and_panic_are_resets() {
    let Some(kernels) = kernels() else { return };
    for (script, sign) in
        [("echo b >/proc/sysrq-trigger", ""), ("echo c >/proc/sysrq-trigger", "Kernel panic")]
    {
        let mut guest = Boot::new(&kernels[0], script).start();
        assert_eq!(guest.exit(), Exit::Reset, "{}", text(&guest.com1));
        assert!(text(&guest.com1).contains(sign), "{}", text(&guest.com1));
    }
}

#[test]
fn kvm_triple_fault_is_its_own_exit() {
    let Some(kernels) = kernels() else { return };
    let script = "echo b >/proc/sysrq-trigger";
    let mut guest = Boot { cmdline: "reboot=t", topology: ONE, ..Boot::new(&kernels[0], script) }.start();
    let exit = guest.exit();
    let Exit::TripleFault(fault) = &exit else { panic!("{exit:?}: {}", text(&guest.com1)) };
    println!("{fault:x?}");
    let registers = fault.registers.as_ref().expect("all vCPUs tell theirs");
    assert_eq!((fault.cpu, registers.len()), (0, 1));
    let control = fault.control.expect("and this one more");
    // KVM for AMD's processors has put it back to where it began; the other's kernel has emptied its table.
    let initial = control.cr0 & 1 == 0 && registers[0].rip == 0xfff0;
    assert!(initial || (control.idt.limit == 0 && registers[0].rip >> 63 == 1), "{fault:x?}");
}

#[test]
fn kvm_pause_stops_every_cpu_and_resume_goes_on() {
    let Some(kernels) = kernels() else { return };
    let script = "(while :; do :; done) & for i in $(seq 60); do echo tick $i; sleep 0.05; done; poweroff -f";
    let mut guest = Boot::new(&kernels[0], script).start();
    guest.until("tick 3");
    let asked = Instant::now();
    guest.machine.pause().unwrap();
    println!("frozen in {:?}", asked.elapsed());
    guest.machine.pause().unwrap();
    let frozen = text(&guest.com1);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(text(&guest.com1), frozen);
    assert!(!frozen.contains("tick 60"), "{frozen}");
    for _ in 0..20 {
        guest.machine.resume().unwrap();
        guest.machine.pause().unwrap();
    }
    guest.machine.resume().unwrap();
    assert_eq!(guest.exit(), Exit::PowerOff);
    assert!(text(&guest.com1).contains("tick 60"));
}

#[test]
fn kvm_kill_leaves_no_thread_behind() {
    let Some(kernels) = kernels() else { return };
    // KVM keeps a worker of its own in the process for as long as the VM's descriptor is open.
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| !name.starts_with("kvm-nx-lpage")).count()
    };
    let before = threads();
    let mut guest = Boot::new(&kernels[0], "while :; do :; done").start();
    assert!(threads() >= before + 3, "two vCPUs and the device thread");
    let asked = Instant::now();
    guest.machine.kill();
    println!("killed in {:?}", asked.elapsed());
    // A joined thread leaves the list of tasks a moment after the join.
    while threads() != before {
        assert!(asked.elapsed() < Duration::from_secs(10), "{} threads, {before} before", threads());
        std::thread::yield_now();
    }
    assert_eq!(guest.exit(), Exit::Killed);
    guest.machine.kill();
    assert_eq!(guest.machine.next_event(), None);

    let mut paused = Boot::new(&kernels[0], "while :; do :; done").start();
    paused.machine.pause().unwrap();
    paused.machine.kill();
    assert_eq!(paused.exit(), Exit::Killed);
}

#[test]
fn kvm_ring_is_reserved_and_shared() {
    let Some(kernels) = kernels() else { return };
    let ring = RingRegion { gpa: Gpa(0x1000_0000), len: 4 << 20 };
    let script = "printf 'from the guest' | dd of=/dev/mem bs=4096 seek=65536 conv=notrunc 2>/dev/null; \
                  cat /proc/iomem; poweroff -f";
    let mut guest = Boot { ring: Some(ring), ..Boot::new(&kernels[0], script) }.start();
    assert_eq!(guest.exit(), Exit::PowerOff, "{}", text(&guest.com1));
    // How a reserved range is listed differs between kernels; that RAM ends before it and goes on after does not.
    for border in ["-0fffffff : System RAM", "10400000-1fffffff : System RAM"] {
        assert!(text(&guest.com1).contains(border), "{}", text(&guest.com1));
    }
    let mut seen = [0; 14];
    let ram = std::fs::File::from(guest.machine.ram().memfd.try_clone().unwrap());
    ram.read_exact_at(&mut seen, ring.gpa.0).unwrap();
    assert_eq!(&seen, b"from the guest");
}

#[test]
fn kvm_console_carries_both_directions() {
    let Some(kernels) = kernels() else { return };
    let modules = kernels[0].parent().expect("a kernel lies in a directory");
    let Some(module) = find_below(modules, "virtio_mmio.ko") else {
        println!("NOT RUN: no virtio_mmio module beside {}", kernels[0].display());
        return;
    };
    let packed = module.extension().is_some_and(|e| e == "xz");
    let name = if packed { "virtio_mmio.ko.xz" } else { "virtio_mmio.ko" };
    let script = format!(
        "cd /; {} busybox insmod /virtio_mmio.ko || poweroff -f; while [ ! -c /dev/hvc0 ]; do sleep 0.1; done; \
         until grep -q ktstr.size /sys/class/virtio-ports/*/name; do sleep 0.1; done; \
         port=/dev/$(grep -l ktstr.size /sys/class/virtio-ports/*/name | cut -d/ -f5); \
         exec 4<>$port; until read said <&4; do sleep 0.1; done; echo \"port $port said $said\" >&4; \
         exec 3<>/dev/hvc0; busybox stty raw -echo <&3; echo ready >&3; read line <&3; \
         echo \"heard $line\" >&3; seq 200 >&3; sleep 1; poweroff -f",
        if packed { "busybox unxz /virtio_mmio.ko.xz;" } else { "" }
    );
    let (guest_input, mut typing) = std::io::pipe().unwrap();
    let (mut printed, guest_output) = std::io::pipe().unwrap();
    let (mut size, guest_size) = UnixStream::pair().unwrap();
    let console =
        ConsoleFds { input: guest_input.into(), output: guest_output.into(), size: guest_size.into() };
    size.write_all(b"24 80\n").unwrap();
    let more = vec![archive_of(name, &std::fs::read(&module).unwrap())];
    let mut guest = Boot { more, console: Some(console), ..Boot::new(&kernels[0], &script) }.start();
    // A terminal that nobody has opened may lose what is typed, so typing waits for the guest.
    let reader = std::thread::spawn(move || {
        let mut seen = String::new();
        let mut typed = false;
        let mut chunk = [0; 256];
        while let Ok(count @ 1..) = printed.read(&mut chunk) {
            seen.push_str(&String::from_utf8_lossy(&chunk[..count]));
            if !typed && seen.contains("ready") {
                typing.write_all(b"every word\n").unwrap();
                typed = true;
            }
        }
        seen
    });
    assert_eq!(guest.exit(), Exit::PowerOff, "{}", text(&guest.com1));
    drop(guest.machine);
    let seen = reader.join().unwrap();
    assert!(seen.contains("ready") && seen.contains("heard every word"), "{seen}");
    assert!(seen.lines().any(|line| line.trim() == "200"), "{seen}");
    let mut line = String::new();
    BufReader::new(size).read_line(&mut line).unwrap();
    println!("{}", line.trim());
    assert!(line.starts_with("port /dev/vport") && line.ends_with("said 24 80\n"), "{line:?}");
}

/// Counts on one CPU while the other is busy; each line names the time on two clocks and who prints it.
const COUNT: &str = "(while :; do :; done) & for i in $(seq 16); do \
    echo tick $i $(cut -d. -f1 /proc/uptime) $(cat /proc/sys/kernel/random/uuid); sleep 0.05; done; \
    for c in 0 1; do grep -c \"^processor\" /proc/cpuinfo; done; poweroff -f";

#[test]
fn kvm_machines_go_on_from_where_one_stood() {
    let Some(kernels) = kernels() else { return };
    let boot = || Boot::new(&kernels[0], COUNT);
    let mut first = boot().start();
    first.until("tick 3 ");
    assert!(first.machine.device_state().is_err(), "only of vCPUs that stand");
    first.machine.pause().unwrap();
    let state = first.machine.device_state().unwrap();
    assert_eq!(first.machine.device_state().unwrap().len(), state.len(), "as often as one likes");
    let file = guest::sink();
    let ram = first.machine.ram();
    let bytes = ram.regions.iter().map(|region| region.len).sum();
    let kept = snapshot::write(&file, ram.memfd.as_fd(), bytes, &state, "a machine").unwrap();
    let before = text(&first.com1).lines().filter(|line| line.starts_with("tick ")).count();
    println!("booted in {:?}, {kept} bytes, {} of them devices", first.started.elapsed(), state.len());
    // Whoever is kept goes on as if nothing had been.
    first.machine.resume().unwrap();
    assert_eq!(first.exit(), Exit::PowerOff, "{}", text(&first.com1));
    let ticks = |seen: &str| -> Vec<u32> {
        let numbers = seen.lines().filter_map(|line| line.strip_prefix("tick ")?.split(' ').next());
        numbers.map(|number| number.parse().unwrap()).collect()
    };
    assert_eq!(ticks(&text(&first.com1)), (1..=16).collect::<Vec<_>>());
    for _ in 0..2 {
        let snapshot = SnapshotFile::open(file.try_clone().unwrap(), bytes).unwrap();
        let mut second = boot().start_from(Some(snapshot));
        assert_eq!(second.exit(), Exit::PowerOff, "{}", text(&second.com1));
        let seen = text(&second.com1);
        println!("went on to the end in {:?}", second.started.elapsed());
        // The line that was being written may have been cut.
        let numbers = ticks(&seen);
        assert!(numbers.len() + before >= 15 && numbers.len() < 16, "{numbers:?} after {before}:\n{seen}");
        assert_eq!(numbers.last(), Some(&16), "{seen}");
        for trouble in ["soft lockup", "rcu_", "Oops", "BUG", "unstable"] {
            assert!(!seen.contains(trouble), "{seen}");
        }
    }
    // Another shape is another machine, and what is of another accelerator is no machine.
    let refused = |state: &[u8], topology| {
        let file = guest::sink();
        snapshot::write(&file, ram_of(bytes).as_fd(), bytes, state, "").unwrap();
        let snapshot = SnapshotFile::open(file, bytes).unwrap();
        Boot { topology, ..boot() }.try_start_from(Some(snapshot)).err().expect("a refusal")
    };
    assert!(matches!(refused(&state, ONE), StartError::Restore(_)));
    assert!(matches!(refused(b"QEVM", support::TWO), StartError::Restore(_)));
}

fn ram_of(bytes: u64) -> std::fs::File {
    let file = guest::sink();
    file.set_len(bytes).unwrap();
    file
}

/// 135 CPUs whose APIC ids go up to 300. Nested in an emulated CPU already their memory takes minutes to
/// set up, and starting them all would take many more: the last one is enough.
#[test]
#[ignore = "minutes in the KVM lab: run it there by name"]
fn kvm_sends_interrupts_to_cpus_beyond_apic_id_254() {
    let Some(kernels) = kernels() else { return };
    let script = "cat /sys/devices/system/cpu/present; echo 1 >/sys/devices/system/cpu/cpu134/online; \
        echo cpu134 of $(cat /sys/devices/system/node/node2/cpulist); \
        i=$(sed -n 's/^ *\\([0-9]*\\):.*ttyS0.*/\\1/p' /proc/interrupts); echo 134 >/proc/irq/$i/smp_affinity_list; \
        n() { awk -v i=$i: '$1 == i { print $4 }' /proc/interrupts; }; \
        before=$(n); echo some words; sleep 1; \
        echo sent $before to $(n) on $(cat /proc/irq/$i/effective_affinity_list); poweroff -f";
    let topology = Topology { numa_nodes: 3, llcs: 3, cores: 9, threads: 5 };
    let boot = Boot::new(&kernels[0], script);
    let mut guest = Boot { topology, memory_mib: 1536, cmdline: "maxcpus=2", ..boot }.start();
    let exit = guest.exit_within(Duration::from_secs(1800));
    let seen = text(&guest.com1);
    assert_eq!(exit, Exit::PowerOff, "{seen}");
    let says = |line: &str| seen.lines().any(|seen| seen.trim() == line);
    assert!(says("0-134") && says("cpu134 of 134"), "{seen}");
    let sent = seen.lines().find_map(|line| line.trim().strip_prefix("sent ")).expect("a count");
    let words: Vec<&str> = sent.split(' ').collect();
    let [before, "to", after, "on", "134"] = words[..] else { panic!("{sent}") };
    let [before, after] = [before, after].map(|n| n.parse::<u64>().expect("a number"));
    assert!(after > before, "CPU 134 got no interrupts: {sent}\n{seen}");
    println!("{:.0} s; interrupts of CPU 134 (APIC id 300): {sent}", guest.started.elapsed().as_secs_f64());
}

//! The emulator's command line: a machine that shows the guest what our own KVM machine would.
//!
//! Everything is named by inherited descriptor; the only paths are `/proc/self/fd/N`. Nothing that
//! the host times may reach a guest under `det`: no clock of the host, no device with a far end.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use ktstr_proto::device::NetConfig;
use ktstr_proto::terminal::SIZE_PORT;

use super::version::Version;
use crate::machine::{Numa, Topology};
use crate::nodes::Node;

/// How the emulator runs the vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// For speed: one thread per vCPU where that is sound and of use.
    Tcg,
    /// For exact replay: one thread, time counted in instructions.
    Det {
        /// Seeds the emulator's own random numbers.
        seed: u64,
        /// One instruction takes 2 to the power of this, nanoseconds.
        shift: u8,
    },
}

/// Whether each vCPU gets a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// One thread takes turns.
    Single,
    /// One thread per vCPU.
    Multi,
}

impl Threads {
    /// Several threads where the version is sound with them, both sides have more than one CPU, and
    /// the host's are not shared by too many: a vCPU that waits for another one spins until the host
    /// happens to run that, where the one thread goes on to the next vCPU at once.
    #[must_use]
    pub fn choose(mode: Mode, version: Version, vcpus: u32, host_cpus: usize) -> Threads {
        let sound = version >= Version::THREADS_SOUND;
        let of_use = vcpus > 1 && host_cpus > 1 && vcpus as usize <= host_cpus * VCPUS_PER_HOST_CPU;
        match mode {
            Mode::Tcg if sound && of_use => Threads::Multi,
            Mode::Tcg | Mode::Det { .. } => Threads::Single,
        }
    }
}

/// From more vCPUs for each of the host's on, one thread does better than many.
const VCPUS_PER_HOST_CPU: usize = 8;

/// Kernel parameters that an emulated machine wants beside the caller's: its clock needs no checking
/// against timers that the host may delay, and the self-tests of the crypto library are a quarter of
/// the boot when every instruction is emulated (1.1 of 4.6 s of CPU time).
pub const KERNEL_PARAMETERS: [&str; 3] = ["tsc=reliable", "no_timer_check", "cryptomgr.notests"];

/// How the debugger's socket is called.
pub const GDB: &str = "gdb";

/// What goes into a command line.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Mode of execution.
    pub mode: Mode,
    /// Threads, as chosen.
    pub threads: Threads,
    /// CPUs and caches.
    pub topology: &'a Topology,
    /// CPUs it may have, at least those it has.
    pub possible: u32,
    /// Whether some CPU can only be reached in x2APIC mode.
    pub x2apic: bool,
    /// Distances and access figures.
    pub numa: &'a Numa,
    /// RAM in bytes.
    pub memory: u64,
    /// RAM and CPUs per node.
    pub nodes: &'a [Node],
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Whether it waits to be filled with the state of another instead of loading a kernel.
    pub incoming: bool,
    /// The descriptors the child inherits.
    pub fds: Inherited<'a>,
}

/// The descriptors the child inherits, under their own numbers.
#[derive(Clone, Copy, Debug)]
pub struct Inherited<'a> {
    /// The RAM file.
    pub ram: BorrowedFd<'a>,
    /// The decompressed kernel.
    pub kernel: BorrowedFd<'a>,
    /// The one initramfs.
    pub initrd: BorrowedFd<'a>,
    /// Sink of the kernel console.
    pub com1: BorrowedFd<'a>,
    /// Sink of the second serial port.
    pub com2: Option<BorrowedFd<'a>>,
    /// Our end's peer of the control socket.
    pub qmp: BorrowedFd<'a>,
    /// The interactive console and its size: stream sockets.
    pub console: Option<[BorrowedFd<'a>; 2]>,
    /// To the server of the disk: a stream socket.
    pub disk: Option<BorrowedFd<'a>>,
    /// The places of the networks' servers.
    pub networks: &'a [(OwnedFd, NetConfig)],
    /// Where the state of its devices goes to or comes from.
    pub state: Option<BorrowedFd<'a>>,
    /// The debugger's socket, which nobody serves until something is to be watched.
    pub gdb: Option<BorrowedFd<'a>>,
    /// What is preloaded: a library, and where it reports.
    pub preload: Option<[BorrowedFd<'a>; 2]>,
}

impl<'a> Inherited<'a> {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<BorrowedFd<'a>> {
        let mut fds = vec![self.ram, self.kernel, self.initrd, self.com1, self.qmp];
        fds.extend(self.com2);
        fds.extend(self.console.into_iter().flatten());
        fds.extend(self.disk);
        fds.extend(self.networks.iter().map(|(socket, _)| socket.as_fd()));
        fds.extend(self.state);
        fds.extend(self.gdb);
        fds.extend(self.preload.into_iter().flatten());
        fds
    }
}

/// How the child names a descriptor it inherited.
#[must_use]
pub fn path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Arguments without the program's name.
#[must_use]
pub fn compose(machine: &Machine<'_>) -> Vec<String> {
    let mut args: Vec<String> =
        ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"].map(String::from).to_vec();
    let mut push = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
    // Threads named after their vCPU: the orchestrator reads what each was given of the host's CPUs.
    push("-name", "ktstr,debug-threads=on".to_owned());
    push("-machine", board(machine));
    push("-cpu", cpu(machine));
    push("-smp", smp(machine.topology, machine.possible));
    push("-m", format!("size={}k", machine.memory >> 10));
    if machine.x2apic {
        // Without it a kernel that sees no known hypervisor starts no CPU with an id above 254.
        push("-device", "intel-iommu,intremap=on,eim=on".to_owned());
    }
    for (flag, value) in accelerator(machine).into_iter().chain(memory(machine)).chain(localities(machine)) {
        push(flag, value);
    }
    if machine.incoming {
        push("-incoming", "defer".to_owned());
    } else {
        push("-kernel", path(machine.fds.kernel));
        push("-initrd", path(machine.fds.initrd));
        push("-append", machine.cmdline.to_owned());
    }
    for (index, sink) in [Some(machine.fds.com1), machine.fds.com2].into_iter().enumerate() {
        let Some(sink) = sink else { continue };
        let port = index + 1;
        push("-chardev", format!("file,id=com{port},path={},append=on", path(sink)));
        push("-serial", format!("chardev:com{port}"));
    }
    push("-chardev", format!("socket,id=qmp,fd={}", machine.fds.qmp.as_raw_fd()));
    push("-mon", "chardev=qmp,mode=control".to_owned());
    if let Some(gdb) = machine.fds.gdb {
        push("-chardev", format!("socket,id={GDB},fd={}", gdb.as_raw_fd()));
    }
    if let Some([console, size]) = machine.fds.console {
        push("-chardev", format!("socket,id=hvc,fd={}", console.as_raw_fd()));
        push("-chardev", format!("socket,id=size,fd={}", size.as_raw_fd()));
        push("-device", "virtio-serial-pci,max_ports=2".to_owned());
        push("-device", "virtconsole,chardev=hvc,nr=0".to_owned());
        push("-device", format!("virtserialport,chardev=size,nr=1,name={SIZE_PORT}"));
    }
    if let Some(disk) = machine.fds.disk {
        push("-chardev", format!("socket,id=disk,fd={}", disk.as_raw_fd()));
        push("-device", "vhost-user-blk-pci,chardev=disk,num-queues=1,queue-size=256".to_owned());
    }
    for (index, (socket, config)) in machine.fds.networks.iter().enumerate() {
        network(index, socket.as_fd(), config, &mut push);
    }
    args
}

/// An interface, its address and its queues; a pair takes two interrupts, control and changes one each.
fn network(index: usize, socket: BorrowedFd<'_>, config: &NetConfig, push: &mut impl FnMut(&str, String)) {
    let (pairs, mac) = (config.queue_pairs, config.mac.map(|byte| format!("{byte:02x}")).join(":"));
    push("-chardev", format!("socket,id=net{index},path={}", path(socket)));
    push("-netdev", format!("vhost-user,id=loop{index},chardev=net{index},queues={pairs}"));
    let several = if pairs > 1 { format!(",mq=on,vectors={}", 2 * pairs + 2) } else { String::new() };
    push("-device", format!("virtio-net-pci,netdev=loop{index},mac={mac},romfile={several}"));
}

/// Nothing reads the HPET once the TSC is trusted, and looking for it costs boot time.
fn board(machine: &Machine<'_>) -> String {
    let mut board = "q35,hpet=off,vmport=off,smm=off,usb=off".to_owned();
    board.push_str(if machine.nodes.len() == 1 { ",memory-backend=ram0" } else { ",hmat=on" });
    board
}

/// The emulated AMD CPU lacks the leaf that says which CPUs share a cache, so a guest would number
/// last-level caches by CPU and see each thread with caches of its own; the Intel leaf says it.
///
/// A CPU that says its byte-wise string instructions are fast is believed, by kernel and C library: they
/// copy with them. Emulated, each byte costs as much as a word.
fn cpu(machine: &Machine<'_>) -> String {
    let cpu = "max,vendor=GenuineIntel";
    match machine.mode {
        Mode::Tcg => format!("{cpu},-erms,-fsrm"),
        Mode::Det { .. } => format!("{cpu},-rdrand,-rdseed"),
    }
}

/// One socket per LLC: the machine gives each socket one last-level cache.
fn smp(topology: &Topology, possible: u32) -> String {
    let (cpus, Topology { cores, threads, .. }) = (topology.cpus(), topology);
    let most = if possible > cpus { format!(",maxcpus={possible}") } else { String::new() };
    let sockets = possible / topology.cpus_per_llc();
    format!("{cpus}{most},sockets={sockets},cores={cores},threads={threads}")
}

fn accelerator(machine: &Machine<'_>) -> Vec<(&'static str, String)> {
    let thread = match machine.threads {
        Threads::Single => "single",
        Threads::Multi => "multi",
    };
    let mut args = vec![("-accel", format!("tcg,thread={thread}"))];
    if let Mode::Det { seed, shift } = machine.mode {
        args.push(("-icount", format!("shift={shift},sleep=off")));
        args.push(("-rtc", "base=2026-01-01T00:00:00,clock=vm".to_owned()));
        args.push(("-seed", seed.to_string()));
    }
    args
}

fn memory(machine: &Machine<'_>) -> Vec<(&'static str, String)> {
    let file = path(machine.fds.ram);
    let several = machine.nodes.len() > 1;
    let mut args = Vec::new();
    for (node, share) in machine.nodes.iter().enumerate() {
        let mut backend =
            format!("memory-backend-file,id=ram{node},mem-path={file},share=on,size={}", share.len);
        if share.file_offset > 0 {
            backend.push_str(&format!(",offset={}", share.file_offset));
        }
        args.push(("-object", backend));
        if several {
            // A node with CPUs is its own initiator; the emulator knows.
            let last = machine.topology.cpus() - 1;
            let place = match &share.cpus {
                // The emulator wants a node for CPUs that are not there, too.
                Some(cpus) if *cpus.end() == last => {
                    format!("cpus={}-{}", cpus.start(), machine.possible - 1)
                }
                Some(cpus) => format!("cpus={}-{}", cpus.start(), cpus.end()),
                None => format!("initiator={}", share.initiator),
            };
            args.push(("-numa", format!("node,nodeid={node},{place},memdev=ram{node}")));
        }
    }
    args
}

/// Distances (SLIT) and access figures (HMAT) of several nodes.
fn localities(machine: &Machine<'_>) -> Vec<(&'static str, String)> {
    let count = machine.nodes.len();
    let mut args = Vec::new();
    if count == 1 {
        return args;
    }
    for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
        if from != to {
            let distance = machine.numa.distance(from, to);
            args.push(("-numa", format!("dist,src={from},dst={to},val={distance}")));
        }
    }
    for from in (0..count).filter(|from| machine.nodes[*from].cpus.is_some()) {
        for to in 0..count {
            let access = machine.numa.access(machine.topology, from, to);
            let pair = format!("hmat-lb,initiator={from},target={to},hierarchy=memory");
            args.push(("-numa", format!("{pair},data-type=access-latency,latency={}", access.latency_ns)));
            // The emulator counts in MiB and tells the guest the bare number.
            let bandwidth = access.bandwidth_mbs;
            args.push(("-numa", format!("{pair},data-type=access-bandwidth,bandwidth={bandwidth}M")));
        }
    }
    args
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use ktstr_proto::topology::Shape;

    use super::*;
    use crate::apic::ApicIds;
    use crate::nodes;

    fn line(mode: Mode, topology: Topology, console: bool) -> String {
        compose_for(mode, &topology.into(), console)
    }

    fn compose_for(mode: Mode, shape: &Shape, console: bool) -> String {
        compose_with(mode, shape, 0, console)
    }

    fn compose_with(mode: Mode, shape: &Shape, absent_llcs: u32, console: bool) -> String {
        let Shape { topology, numa } = shape;
        let stdin = std::io::stdin();
        let fd = stdin.as_fd();
        let nodes = nodes::divide(topology, numa, 1 << 30).unwrap();
        let fds = Inherited {
            ram: fd,
            kernel: fd,
            initrd: fd,
            com1: fd,
            com2: Some(fd),
            qmp: fd,
            console: console.then_some([fd; 2]),
            disk: console.then_some(fd),
            networks: &[],
            state: None,
            gdb: console.then_some(fd),
            preload: None,
        };
        let threads = Threads::choose(mode, Version { major: 10, minor: 0, micro: 2 }, topology.cpus(), 2);
        let ids = ApicIds::new(*topology).unwrap().with_absent(absent_llcs).unwrap();
        let x2apic = ids.need_x2apic();
        let machine = Machine {
            mode,
            threads,
            topology,
            possible: ids.possible(),
            x2apic,
            numa,
            memory: 1 << 30,
            nodes: &nodes,
            cmdline: "quiet",
            incoming: false,
            fds,
        };
        compose(&machine).join(" ")
    }

    const SMT: Topology = Topology { numa_nodes: 1, llcs: 2, cores: 2, threads: 2 };

    #[test]
    fn tcg_shows_the_requested_shape() {
        let line = line(Mode::Tcg, SMT, false);
        for part in [
            "-smp 8,sockets=2,cores=2,threads=2",
            "-cpu max,vendor=GenuineIntel,-erms,-fsrm",
            "-accel tcg,thread=multi",
            "memory-backend=ram0",
            "-object memory-backend-file,id=ram0,mem-path=/proc/self/fd/0,share=on,size=1073741824",
            "-nodefaults",
            "-serial chardev:com1",
            "-serial chardev:com2",
        ] {
            assert!(line.contains(part), "{part} not in {line}");
        }
        for absent in ["-icount", "-numa", "-netdev", "virtio", "rdrand", "gdb"] {
            assert!(!line.contains(absent), "{absent} in {line}");
        }
    }

    #[test]
    fn det_counts_instructions_on_one_thread() {
        let flat = Topology { numa_nodes: 1, llcs: 1, cores: 4, threads: 1 };
        let line = line(Mode::Det { seed: 7, shift: 2 }, flat, false);
        for part in [
            "-accel tcg,thread=single",
            "-icount shift=2,sleep=off",
            "-cpu max,vendor=GenuineIntel,-rdrand,-rdseed",
            "-rtc base=2026-01-01T00:00:00,clock=vm",
            "-seed 7",
        ] {
            assert!(line.contains(part), "{part} not in {line}");
        }
    }

    #[test]
    fn nodes_get_their_part_of_the_one_ram_file() {
        let numa = Topology { numa_nodes: 2, ..SMT };
        let line = line(Mode::Tcg, numa, true);
        for part in [
            "id=ram1,mem-path=/proc/self/fd/0,share=on,size=536870912,offset=536870912",
            "-numa node,nodeid=0,cpus=0-3,memdev=ram0",
            "-numa node,nodeid=1,cpus=4-7,memdev=ram1",
            "-device virtio-serial-pci,max_ports=2 -device virtconsole,chardev=hvc,nr=0",
            "-device virtserialport,chardev=size,nr=1,name=ktstr.size",
            "-device vhost-user-blk-pci,chardev=disk",
            "-chardev socket,id=gdb,fd=0",
            "hmat=on",
            "-numa dist,src=1,dst=0,val=20",
        ] {
            assert!(line.contains(part), "{part} not in {line}");
        }
        assert!(!line.contains("memory-backend=ram0"), "{line}");
    }

    #[test]
    fn absent_llcs_are_sockets_that_could_be_filled() {
        let line = compose_with(Mode::Tcg, &SMT.into(), 1, false);
        assert!(line.contains("-smp 8,maxcpus=12,sockets=3,cores=2,threads=2"), "{line}");
        let line = compose_with(Mode::Tcg, &"2n2l1c1t".parse().unwrap(), 3, false);
        for part in ["-smp 2,maxcpus=5,sockets=5", "nodeid=0,cpus=0-0", "nodeid=1,cpus=1-4"] {
            assert!(line.contains(part), "{part} not in {line}");
        }
        let mut many = compose_with(Mode::Tcg, &"1n1l254c1t".parse().unwrap(), 1, false);
        assert!(many.contains("intel-iommu"), "ids of CPUs that are not there count: {many}");
        many = compose_with(Mode::Tcg, &"1n1l254c1t".parse().unwrap(), 0, false);
        assert!(!many.contains("intel-iommu"), "{many}");
    }

    #[test]
    fn many_cpus_need_interrupt_remapping() {
        let remapping = "-device intel-iommu,intremap=on,eim=on";
        assert!(compose_for(Mode::Tcg, &"max-cpu".parse().unwrap(), false).contains(remapping));
        assert!(!compose_for(Mode::Tcg, &"near-max-llc".parse().unwrap(), false).contains(remapping));
    }

    #[test]
    fn memory_alone_hangs_off_the_nearest_cpus() {
        let shape = "2n2l1c1t/mem=256,512/cxl=256@400@8000/dist=10,20,30:20,10,15:30,15,10".parse().unwrap();
        let line = compose_for(Mode::Tcg, &shape, false);
        for part in [
            "id=ram2,mem-path=/proc/self/fd/0,share=on,size=268435456,offset=805306368",
            "-numa node,nodeid=1,cpus=1-1,memdev=ram1",
            "-numa node,nodeid=2,initiator=1,memdev=ram2",
            "-numa dist,src=2,dst=1,val=15",
            "initiator=0,target=2,hierarchy=memory,data-type=access-latency,latency=1200",
            "initiator=1,target=2,hierarchy=memory,data-type=access-bandwidth,bandwidth=5333M",
        ] {
            assert!(line.contains(part), "{part} not in {line}");
        }
        assert!(!line.contains("hmat-lb,initiator=2"), "{line}");
    }

    #[test]
    fn several_threads_need_a_sound_version_and_two_cpus_on_both_sides() {
        let (old, new) =
            (Version { major: 7, minor: 2, micro: 0 }, Version { major: 10, minor: 0, micro: 0 });
        assert_eq!(Threads::choose(Mode::Tcg, new, 4, 2), Threads::Multi);
        assert_eq!(Threads::choose(Mode::Tcg, old, 4, 2), Threads::Single);
        assert_eq!(Threads::choose(Mode::Tcg, new, 1, 2), Threads::Single);
        assert_eq!(Threads::choose(Mode::Tcg, new, 4, 1), Threads::Single);
        assert_eq!(Threads::choose(Mode::Tcg, new, 16, 2), Threads::Multi);
        assert_eq!(Threads::choose(Mode::Tcg, new, 17, 2), Threads::Single);
        assert_eq!(Threads::choose(Mode::Det { seed: 1, shift: 2 }, new, 4, 8), Threads::Single);
    }
}

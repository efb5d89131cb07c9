//! The emulator's command line: a machine that shows the guest what our own KVM machine would.
//!
//! Everything is named by inherited descriptor; the only paths are `/proc/self/fd/N`. Nothing that
//! the host times may reach a guest under `det`: no clock of the host, no device with a far end.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::layout::NodeShare;
use super::version::Version;
use crate::machine::Topology;

/// How the emulator runs the vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// For speed: one thread per vCPU where that is sound and of use.
    Tcg,
    /// For exact replay: one thread, time counted in instructions.
    Det {
        /// Seeds the emulator's own random numbers.
        seed: u64,
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
    /// Several threads where the version is sound with them and both sides have more than one CPU.
    #[must_use]
    pub fn choose(mode: Mode, version: Version, vcpus: u32, host_cpus: usize) -> Threads {
        match mode {
            Mode::Det { .. } => Threads::Single,
            Mode::Tcg if version >= Version::THREADS_SOUND && vcpus > 1 && host_cpus > 1 => Threads::Multi,
            Mode::Tcg => Threads::Single,
        }
    }
}

/// Kernel parameters that an emulated machine wants beside the caller's: its clock needs no checking
/// against timers that the host may delay, and the self-tests of the crypto library are a quarter of
/// the boot when every instruction is emulated (1.1 of 4.6 s of CPU time).
pub const KERNEL_PARAMETERS: [&str; 3] = ["tsc=reliable", "no_timer_check", "cryptomgr.notests"];

/// What goes into a command line.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Mode of execution.
    pub mode: Mode,
    /// Threads, as chosen.
    pub threads: Threads,
    /// CPUs, caches, nodes.
    pub topology: &'a Topology,
    /// RAM in bytes.
    pub memory: u64,
    /// RAM and CPUs per node.
    pub nodes: &'a [NodeShare],
    /// Kernel command line.
    pub cmdline: &'a str,
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
    /// The interactive console: a stream socket.
    pub console: Option<BorrowedFd<'a>>,
}

impl<'a> Inherited<'a> {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<BorrowedFd<'a>> {
        let mut fds = vec![self.ram, self.kernel, self.initrd, self.com1, self.qmp];
        fds.extend(self.com2);
        fds.extend(self.console);
        fds
    }
}

fn path(fd: BorrowedFd<'_>) -> String {
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
    push("-smp", smp(machine.topology));
    push("-m", format!("size={}k", machine.memory >> 10));
    for (flag, value) in accelerator(machine).into_iter().chain(memory(machine)) {
        push(flag, value);
    }
    push("-kernel", path(machine.fds.kernel));
    push("-initrd", path(machine.fds.initrd));
    push("-append", machine.cmdline.to_owned());
    for (index, sink) in [Some(machine.fds.com1), machine.fds.com2].into_iter().enumerate() {
        let Some(sink) = sink else { continue };
        let port = index + 1;
        push("-chardev", format!("file,id=com{port},path={},append=on", path(sink)));
        push("-serial", format!("chardev:com{port}"));
    }
    push("-chardev", format!("socket,id=qmp,fd={}", machine.fds.qmp.as_raw_fd()));
    push("-mon", "chardev=qmp,mode=control".to_owned());
    if let Some(console) = machine.fds.console {
        push("-chardev", format!("socket,id=hvc,fd={}", console.as_raw_fd()));
        push("-device", "virtio-serial-pci,max_ports=1".to_owned());
        push("-device", "virtconsole,chardev=hvc".to_owned());
    }
    args
}

/// Nothing reads the HPET once the TSC is trusted, and looking for it costs boot time.
fn board(machine: &Machine<'_>) -> String {
    let mut board = "q35,hpet=off,vmport=off,smm=off,usb=off".to_owned();
    if machine.nodes.len() == 1 {
        board.push_str(",memory-backend=ram0");
    }
    board
}

/// The emulated AMD CPU lacks the leaf that says which threads share a cache, so a guest would see
/// each thread with caches of its own; the Intel leaf says it.
fn cpu(machine: &Machine<'_>) -> String {
    let mut cpu = "max".to_owned();
    if machine.topology.threads_per_core > 1 {
        cpu.push_str(",vendor=GenuineIntel");
    }
    if matches!(machine.mode, Mode::Det { .. }) {
        cpu.push_str(",-rdrand,-rdseed");
    }
    cpu
}

/// One socket per LLC: the machine gives each socket one last-level cache.
fn smp(topology: &Topology) -> String {
    format!(
        "{},sockets={},cores={},threads={}",
        topology.cpus(),
        topology.llcs,
        topology.cores_per_llc,
        topology.threads_per_core
    )
}

fn accelerator(machine: &Machine<'_>) -> Vec<(&'static str, String)> {
    let thread = match machine.threads {
        Threads::Single => "single",
        Threads::Multi => "multi",
    };
    let mut args = vec![("-accel", format!("tcg,thread={thread}"))];
    if let Mode::Det { seed } = machine.mode {
        args.push(("-icount", "shift=2,sleep=off".to_owned()));
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
            let (first, last) = (share.first_cpu, share.last_cpu);
            args.push(("-numa", format!("node,nodeid={node},cpus={first}-{last},memdev=ram{node}")));
        }
    }
    args
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::layout;
    use super::*;

    fn line(mode: Mode, topology: Topology, console: bool) -> String {
        let stdin = std::io::stdin();
        let fd = stdin.as_fd();
        let nodes = layout::nodes(&topology, 1 << 30).unwrap();
        let fds = Inherited {
            ram: fd,
            kernel: fd,
            initrd: fd,
            com1: fd,
            com2: Some(fd),
            qmp: fd,
            console: console.then_some(fd),
        };
        let threads = Threads::choose(mode, Version { major: 10, minor: 0, micro: 2 }, topology.cpus(), 2);
        let machine = Machine {
            mode,
            threads,
            topology: &topology,
            memory: 1 << 30,
            nodes: &nodes,
            cmdline: "quiet",
            fds,
        };
        compose(&machine).join(" ")
    }

    const SMT: Topology = Topology { numa_nodes: 1, llcs: 2, cores_per_llc: 2, threads_per_core: 2 };

    #[test]
    fn tcg_shows_the_requested_shape() {
        let line = line(Mode::Tcg, SMT, false);
        for part in [
            "-smp 8,sockets=2,cores=2,threads=2",
            "-cpu max,vendor=GenuineIntel",
            "-accel tcg,thread=multi",
            "memory-backend=ram0",
            "-object memory-backend-file,id=ram0,mem-path=/proc/self/fd/0,share=on,size=1073741824",
            "-nodefaults",
            "-serial chardev:com1",
            "-serial chardev:com2",
        ] {
            assert!(line.contains(part), "{part} not in {line}");
        }
        for absent in ["-icount", "-numa", "-netdev", "virtio", "rdrand"] {
            assert!(!line.contains(absent), "{absent} in {line}");
        }
    }

    #[test]
    fn det_counts_instructions_on_one_thread() {
        let flat = Topology { numa_nodes: 1, llcs: 1, cores_per_llc: 4, threads_per_core: 1 };
        let line = line(Mode::Det { seed: 7 }, flat, false);
        for part in [
            "-accel tcg,thread=single",
            "-icount shift=2,sleep=off",
            "-cpu max,-rdrand,-rdseed",
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
            "-device virtconsole,chardev=hvc",
        ] {
            assert!(line.contains(part), "{part} not in {line}");
        }
        assert!(!line.contains("memory-backend=ram0"), "{line}");
    }

    #[test]
    fn several_threads_need_a_sound_version_and_two_cpus_on_both_sides() {
        let (old, new) =
            (Version { major: 7, minor: 2, micro: 0 }, Version { major: 10, minor: 0, micro: 0 });
        assert_eq!(Threads::choose(Mode::Tcg, new, 4, 2), Threads::Multi);
        assert_eq!(Threads::choose(Mode::Tcg, old, 4, 2), Threads::Single);
        assert_eq!(Threads::choose(Mode::Tcg, new, 1, 2), Threads::Single);
        assert_eq!(Threads::choose(Mode::Tcg, new, 4, 1), Threads::Single);
        assert_eq!(Threads::choose(Mode::Det { seed: 1 }, new, 4, 8), Threads::Single);
    }
}

//! Entries for hostile bytes: what a guest, a kernel file or a request can make this process read.
//!
//! Each takes any bytes, does what the real machine would do with them, and panics only if an
//! invariant breaks. `fuzz/` beside this package feeds them from libFuzzer; the tests below feed them
//! fixed pseudo-random bytes and the committed seeds in every run of the suite (`KTSTR_FUZZ_ROUNDS`
//! says how many, `KTSTR_FUZZ_ONLY` to which). Nothing here is for any other use.

mod channel;
mod snapshot;

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use ktstr_proto::device::{DiskConfig, NetConfig};
use ktstr_proto::ring::{FrameDecoder, Mode, RingMemory, RingReader};
use ktstr_proto::topology::Topology;
use ktstr_proto::topology::numa::{Numa, NumaNode};
use vhost_user_backend::{VhostUserBackend, VringRwLock, VringT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::apic::ApicIds;
use crate::device::block::Block;
use crate::device::net::Net;
use crate::device::queues::{Disk, Faults};
use crate::kvm::control::Control;
use crate::kvm::devices::console::{self, Console, Direction, PORTS};
use crate::kvm::devices::control;
use crate::kvm::devices::ioapic::{Ioapic, PINS};
use crate::kvm::devices::serial::{Sink, Uart};
use crate::kvm::devices::virtio::MmioTransport;
use crate::kvm::devices::{COM1, COM2, Devices, lock};
use crate::kvm::memory::GuestRam;
use crate::kvm::x86_64::acpi::{self, Description};
use crate::kvm::x86_64::{boot, layout};
use crate::machine::{ConsoleFds, Gpa, MachineSpec, RamRegion};
use crate::nodes;

pub use self::channel::channel;
pub use self::snapshot::snapshot;

/// Bytes taken one after the other; at the end come zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let len = N.min(self.0.len());
        taken[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }
}

fn eventfd() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).expect("an event descriptor")
}

fn null() -> OwnedFd {
    File::options().read(true).write(true).open("/dev/null").expect("/dev/null").into()
}

/// Ports, device memory and queues: a guest that does as it likes.
pub fn devices(data: &[u8]) {
    let regions = vec![RamRegion { gpa: Gpa(0), file_offset: 0, len: 2 << 20 }];
    let ram = Arc::new(GuestRam::new(regions, None).expect("2 MiB of RAM").0);
    let control = Arc::new(Control::new(1).expect("an event descriptor"));
    let com = |name| Mutex::new(Uart::new(eventfd(), Sink::new(name, None, control.clone())));
    let transport = MmioTransport::new(console::KIND, ram.clone(), eventfd(), Arc::new(eventfd()));
    let virtio = vec![Mutex::new(transport.expect("the console's queues"))];
    let devices = Devices { com1: com("com1"), com2: com("com2"), virtio, ioapic: None, port_ring: None };
    let zeros = || File::options().read(true).write(true).open("/dev/zero").expect("/dev/zero").into();
    let mut host = Console::new(ConsoleFds { input: zeros(), output: null(), size: zeros() });
    let mut input = Input(data);
    while !input.0.is_empty() {
        let kind = input.byte();
        let len = [1, 2, 4, 8][usize::from(kind >> 4 & 3)];
        let at = input.short();
        let port = match at {
            near if kind & 0x80 == 0 => [COM1, COM2, 0x600, 0x64][usize::from(near & 3)] + (near >> 2 & 7),
            far => far,
        };
        let address = layout::VIRTIO_MMIO + u64::from(at & 0x1fff);
        let mut bytes = input.take::<8>();
        match kind & 7 {
            0 => devices.port_read(port, &mut bytes[..len]),
            1 => drop(devices.port_write(port, &bytes[..len])),
            2 => devices.mmio_read(address, &mut bytes[..len]),
            // Registers are words; other widths have to be survived, too.
            3 | 4 => drop(devices.mmio_write(address & !3, &bytes[..4])),
            5 => drop(devices.mmio_write(address, &bytes[..len])),
            // Descriptors and rings lie low.
            6 => drop(ram.memory.write_slice(&bytes, GuestAddress(u64::from(at) & 0x3ff8))),
            _ => {
                (0..PORTS).for_each(|port| drop(host.serve(port, Direction::In)));
                host.work(&devices.virtio[0]);
                (0..PORTS).for_each(|port| drop(host.serve(port, Direction::Out)));
            }
        }
    }
    lock(&devices.com1).flush_partial_line();
}

/// The I/O APIC of large machines: whatever is written, every line sends a message to local APICs.
pub fn ioapic(data: &[u8]) {
    let mut ioapic = Ioapic::default();
    let mut input = Input(data);
    while !input.0.is_empty() {
        let offset = u64::from(input.byte()) & 0x1f;
        let mut bytes = input.take::<4>();
        if ioapic.write(offset, &bytes) {
            let messages: Vec<_> = ioapic.messages().collect();
            assert!(messages.len() <= PINS);
            for message in messages {
                assert_eq!(message.address_lo & 0xfff0_0000, 0xfee0_0000);
                assert!(message.data < 0x800 && message.address_hi < 0x8000);
            }
            assert!(ioapic.routing().is_some());
        }
        ioapic.read(offset, &mut bytes);
    }
}

/// A request's shape: refused with a reason, or tables whose lengths and sums are right.
pub fn tables(data: &[u8]) {
    let mut input = Input(data);
    let [nodes, llcs, cores, threads] = input.take::<4>().map(u32::from);
    let topology = Topology { numa_nodes: nodes, llcs, cores, threads };
    let (alone, memory) = (usize::from(input.byte() & 3), u64::from(input.short()) * layout::RAM_STEP);
    let mut numa = Numa::default();
    if alone > 0 {
        numa.nodes.resize(nodes as usize, NumaNode::default());
        let memory_mb = || Some(u32::from(input.short()));
        numa.nodes.extend(
            std::iter::repeat_with(memory_mb)
                .take(alone)
                .map(|memory_mb| NumaNode { memory_mb, access: None }),
        );
    }
    if input.byte() & 1 == 1 {
        let count = numa.count(&topology);
        numa.distances = (0..count).map(|_| (0..count).map(|_| input.byte()).collect()).collect();
    }
    let (Ok(ids), Ok(ram)) = (ApicIds::new(topology), layout::ram_regions(memory)) else { return };
    let Ok(nodes) = nodes::divide(&topology, &numa, memory) else { return };
    assert_eq!(nodes.iter().map(|node| node.len).sum::<u64>(), memory);
    let description = Description { topology, numa: &numa, nodes: &nodes, ids: &ids, ram: &ram, virtio: 6 };
    let Ok(block) = acpi::tables(&description) else { return };
    let number = |at: usize, len: usize| {
        block[at..at + len].iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let table = |address: u64| {
        let at = (address - layout::ACPI_TABLES.0) as usize;
        let bytes = &block[at..at + number(at + 4, 4) as usize];
        assert_eq!(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        (at, bytes.len())
    };
    let (xsdt, len) = table(number(24, 8));
    for entry in (xsdt + 36..xsdt + len).step_by(8) {
        table(number(entry, 8));
    }
}

/// A kernel file: refused with a reason, or loaded where RAM is.
pub fn kernel(data: &[u8]) {
    let memory = 32 << 20;
    let ram = GuestRam::new(layout::ram_regions(memory).expect("32 MiB"), None).expect("32 MiB of RAM").0;
    let mut file = tempfile_of(data);
    std::io::Seek::rewind(&mut file).expect("a file");
    let spec = MachineSpec {
        topology: Topology { numa_nodes: 1, llcs: 1, cores: 1, threads: 1 },
        numa: Numa::default(),
        absent_llcs: 0,
        memory,
        kernel: file.into(),
        initrd: Vec::new(),
        cmdline: String::new(),
        ring: None,
        com1: null(),
        com2: None,
        console: None,
        devices: Default::default(),
        isolation: None,
    };
    if let Ok((_, end)) = boot::load_kernel(&spec, &ram, &layout::memory_map(&ram.regions, None)) {
        assert!(end <= memory);
    }
}

fn tempfile_of(data: &[u8]) -> File {
    let memfd = nix::sys::memfd::memfd_create(c"fuzz", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    let mut file = File::from(memfd.expect("a memory file"));
    file.write_all(data).expect("room");
    file
}

/// The guest channel as it lies in guest memory.
struct Memory(Vec<u8>);

impl RingMemory for Memory {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn load_u32(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn load_u64(&self, offset: u64) -> u64 {
        let mut word = [0; 8];
        self.read(offset, &mut word);
        u64::from_le_bytes(word)
    }

    fn store_u32(&mut self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    fn store_u64(&mut self, offset: u64, value: u64) {
        self.write(offset, &value.to_le_bytes());
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        let at = usize::try_from(offset).expect("inside");
        out.copy_from_slice(&self.0[at..at + out.len()]);
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let at = usize::try_from(offset).expect("inside");
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// The guest channel: never an access outside, never without end, and frames or an error come out.
pub fn ring(data: &[u8]) {
    let mut input = Input(data);
    let mode = if input.byte() & 1 == 0 { Mode::Wrap } else { Mode::Linear };
    let mut memory = input.0.to_vec();
    memory.resize(memory.len().next_multiple_of(4096).max(8192), 0);
    let len = memory.len() as u64;
    let mut reader = RingReader::new(Memory(memory), mode);
    let mut decoder = FrameDecoder::default();
    for _ in 0..64 {
        let Ok(Some(bytes)) = reader.take(4096) else { return };
        assert!(!bytes.is_empty() && bytes.len() as u64 <= len);
        decoder.push(&bytes);
        while let Ok(Some(_)) = decoder.next_message() {}
    }
}

/// Guest memory of a device process, with queues of 16 in it, 4 KiB from the start of the last one.
const QUEUE_SPACE: u64 = 0x1000;

/// Queues whose rings and descriptors lie in `data`, which fills memory from its start.
fn queues(data: &[u8], count: u64) -> (GuestMemoryAtomic<GuestMemoryMmap>, Vec<VringRwLock>) {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_000)]).expect("64 KiB");
    memory.write_slice(&data[..data.len().min(0x10_000)], GuestAddress(0)).expect("it fits");
    let memory = GuestMemoryAtomic::new(memory);
    let ring = |index: u64| {
        let ring = VringRwLock::new(memory.clone(), 256).expect("a queue");
        let at = index * QUEUE_SPACE;
        ring.set_queue_size(16);
        ring.set_queue_info(at, at + 0x100, at + 0x200).expect("aligned");
        ring.set_queue_ready(true);
        ring.set_enabled(true);
        ring
    };
    let rings = (0..count).map(ring).collect();
    (memory, rings)
}

/// A disk's queue: requests within and beyond the image, which keeps its size.
pub fn disk(data: &[u8]) {
    const MIB: u64 = 1 << 20;
    let image = tempfile_of(b"");
    image.set_len(MIB).expect("room");
    let config = DiskConfig::new().capacity_mib(1);
    let (memory, rings) = queues(data, 1);
    let block = Block::new(image.try_clone().expect("a descriptor"), &config).expect("a file");
    let faults = Faults::new().expect("an event descriptor");
    let disk = Disk::new(block, &config, memory, faults).expect("a timer");
    disk.handle_event(0, EventSet::IN, &rings, 0).expect("it never fails");
    assert_eq!(image.metadata().expect("its size").len(), MIB);
}

/// A network's queues, and the control queue that the front of one with two pairs has.
pub fn net(data: &[u8]) {
    let (memory, rings) = queues(data, 3);
    let (rings, control) = rings.split_at(2);
    let _ = control::answer(control[0].get_mut().get_queue_mut(), &memory.memory(), 2);
    let faults = Faults::new().expect("an event descriptor");
    let net = Net::new("net".to_owned(), NetConfig::new(), memory, faults);
    net.handle_event(1, EventSet::IN, rings, 0).expect("it never fails");
    net.handle_event(0, EventSet::IN, rings, 0).expect("it never fails");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ktstr_proto::guest::{GuestFrame, GuestMessage};
    use ktstr_proto::ring::{self, encode_frame};

    use super::*;

    type Entry = fn(&[u8]);
    const ENTRIES: [(&str, Entry); 9] = [
        ("devices", devices),
        ("ioapic", ioapic),
        ("tables", tables),
        ("kernel", kernel),
        ("ring", ring),
        ("channel", channel),
        ("disk", disk),
        ("net", net),
        ("snapshot", snapshot),
    ];

    /// SplitMix64: the same bytes in every run.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ z >> 31
        }

        fn below(&mut self, limit: usize) -> usize {
            (self.next() % limit as u64) as usize
        }
    }

    fn seeds(entry: &str) -> Vec<Vec<u8>> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(entry);
        let mut paths: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
    }

    /// A ring with two frames in it.
    fn sound_ring() -> Vec<u8> {
        let mut memory = vec![0; 8192];
        let frames: Vec<u8> = ["one", "two"]
            .iter()
            .zip(0..)
            .flat_map(|(text, sequence)| {
                let body = GuestFrame::StepFailed { step: (*text).into(), reason: (*text).into() };
                encode_frame(sequence, &GuestMessage { t_ns: 1, body }).unwrap()
            })
            .collect();
        memory[..8].copy_from_slice(&ring::MAGIC.to_le_bytes());
        memory[8] = ring::VERSION as u8;
        memory[16..24].copy_from_slice(&4096u64.to_le_bytes());
        memory[64..72].copy_from_slice(&(frames.len() as u64).to_le_bytes());
        memory[4096..4096 + frames.len()].copy_from_slice(&frames);
        memory.insert(0, 0);
        let mut reader = RingReader::new(Memory(memory[1..].to_vec()), Mode::Wrap);
        let mut decoder = FrameDecoder::default();
        decoder.push(&reader.take(4096).unwrap().unwrap());
        assert!(decoder.next_message().unwrap().is_some() && decoder.next_message().unwrap().is_some());
        memory
    }

    /// A seed with some of its bytes changed, or anything.
    fn bytes(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = match random.below(4) {
            0 => (0..random.below(600)).map(|_| random.next() as u8).collect(),
            _ => seeds[random.below(seeds.len())].clone(),
        };
        for _ in 0..random.below(12) {
            if !bytes.is_empty() {
                let at = random.below(bytes.len());
                bytes[at] = [0, 1, 0x7f, 0xff, random.next() as u8][random.below(5)];
            }
        }
        if random.below(8) == 0 {
            bytes.truncate(random.below(bytes.len() + 1));
        }
        bytes
    }

    #[test]
    fn hostile_bytes_break_nothing() {
        let rounds = std::env::var("KTSTR_FUZZ_ROUNDS").ok().map_or(1500, |rounds| rounds.parse().unwrap());
        let only = std::env::var("KTSTR_FUZZ_ONLY").ok();
        for (name, entry) in ENTRIES {
            if only.as_ref().is_some_and(|only| only != name) {
                continue;
            }
            let mut seeds = seeds(name);
            if name == "ring" {
                seeds.push(sound_ring());
            }
            assert!(!seeds.is_empty(), "{name} has seeds");
            seeds.iter().for_each(|seed| entry(seed));
            let mut random = Random(7);
            let started = std::time::Instant::now();
            for round in 0..rounds {
                let input = bytes(&mut random, &seeds);
                let run = std::panic::AssertUnwindSafe(|| entry(&input));
                if std::panic::catch_unwind(run).is_err() {
                    panic!("{name}, round {round}: {input:02x?}");
                }
            }
            println!("{name}: {rounds} inputs in {:.1} s", started.elapsed().as_secs_f64());
        }
    }
}

//! A driver's end of the console: queues in a small RAM, set up through the registers.

use std::cell::RefCell;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::kvm::memory::GuestRam;
use crate::machine::{Gpa, RamRegion};

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFER: u64 = 0x8000;
const WRITABLE: u16 = 2;
/// What belongs to one queue is this far from the same of the next.
const APART: u64 = 0x1_0000;

/// A driver's end.
struct Driver {
    device: Mutex<MmioTransport>,
    ram: Arc<GuestRam>,
    irq: EventFd,
    /// Of each queue, how many of the used buffers it has looked at.
    seen: RefCell<[u16; KIND.queues.len()]>,
}

impl Driver {
    fn new(queue: u32, addresses: [u64; 3]) -> Self {
        let regions = vec![RamRegion { gpa: Gpa(0), file_offset: 0, len: 2 << 20 }];
        let ram = Arc::new(GuestRam::new(regions, None).unwrap().0);
        let irq = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let doorbell = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let device = MmioTransport::new(KIND, ram.clone(), irq.try_clone().unwrap(), doorbell).unwrap();
        let driver = Self { device: Mutex::new(device), ram, irq, seen: RefCell::default() };
        driver.begin(0);
        driver.set_up(queue, addresses);
        driver.set(0x70, 15);
        driver
    }

    /// A driver that takes several ports and has all queues.
    fn of_ports() -> Self {
        let driver = Self::new(0, [DESC, AVAIL, USED]);
        driver.begin_with_ports();
        driver
    }

    fn begin_with_ports(&self) {
        self.set(0x70, 0);
        self.seen.take();
        self.begin(MULTIPORT as u32);
        for queue in 0..KIND.queues.len() as u32 {
            let addresses = [DESC, AVAIL, USED].map(|address| address + u64::from(queue) * APART);
            for ring in [addresses[1], addresses[2]] {
                self.ram.memory.write_obj(0u32, GuestAddress(ring)).unwrap();
            }
            self.set_up(queue, addresses);
        }
        self.set(0x70, 15);
    }

    fn begin(&self, features: u32) {
        self.set(0x70, 3);
        for (half, accepted) in [(0, features), (1, 1)] {
            self.set(0x24, half);
            self.set(0x20, accepted);
        }
        self.set(0x70, 11);
    }

    fn set_up(&self, queue: u32, addresses: [u64; 3]) {
        self.set(0x30, queue);
        self.set(0x38, 8);
        for (register, address) in [0x80, 0x90, 0xa0].into_iter().zip(addresses) {
            self.set(register, address as u32);
            self.set(register + 4, (address >> 32) as u32);
        }
        self.set(0x44, 1);
    }

    /// Sends bytes through a queue and lets the device work.
    fn send(&self, console: &mut Console, queue: usize, bytes: &[u8]) {
        let base = queue as u64 * APART;
        self.ram.memory.write_slice(bytes, GuestAddress(BUFFER + base)).unwrap();
        self.offer_in(queue, BUFFER + base, bytes.len() as u32, 0);
        console.work(&self.device);
    }

    /// Gives a queue a buffer, lets the device work and takes what is in it; nothing while it has nothing to say.
    fn take(&self, console: &mut Console, queue: usize) -> Vec<u8> {
        let base = queue as u64 * APART;
        let seen = self.seen.borrow()[queue];
        if self.offered_in(queue) == seen {
            self.offer_in(queue, BUFFER + base, 256, WRITABLE);
        }
        console.work(&self.device);
        if self.used_in(queue) == seen {
            return Vec::new();
        }
        self.seen.borrow_mut()[queue] += 1;
        let entry = GuestAddress(USED + base + 4 + 8 * u64::from(seen % 8) + 4);
        let mut bytes = vec![0; self.ram.memory.read_obj::<u32>(entry).unwrap() as usize];
        self.ram.memory.read_slice(&mut bytes, GuestAddress(BUFFER + base)).unwrap();
        bytes
    }

    /// Says something about a port.
    fn say(&self, console: &mut Console, port: u32, event: Event, value: u16) {
        self.send(console, CONTROL_TX, Message::new(port, event, value).bytes());
    }

    /// Everything the device says about ports.
    fn heard(&self, console: &mut Console) -> Vec<Message> {
        let mut heard = Vec::new();
        loop {
            let bytes = self.take(console, CONTROL_RX);
            let Some((port, rest)) = bytes.split_first_chunk() else { return heard };
            let [event, value] = [0, 2].map(|at| u16::from_le_bytes([rest[at], rest[at + 1]]));
            let port = u32::from_le_bytes(*port);
            heard.push(match (event, str::from_utf8(&rest[4..]).unwrap()) {
                (7, name) => Message::named(port, name),
                (1, "") => Message::new(port, Event::PortAdd, value),
                (4, "") => Message::new(port, Event::ConsolePort, value),
                (6, "") => Message::new(port, Event::PortOpen, value),
                other => panic!("{other:?}"),
            });
        }
    }

    fn offered_in(&self, queue: usize) -> u16 {
        self.ram.memory.read_obj(GuestAddress(AVAIL + queue as u64 * APART + 2)).unwrap()
    }

    fn used_in(&self, queue: usize) -> u16 {
        self.ram.memory.read_obj(GuestAddress(USED + queue as u64 * APART + 2)).unwrap()
    }

    /// Offers one buffer in the next of the eight descriptors.
    fn offer_in(&self, queue: usize, address: u64, len: u32, flags: u16) {
        let (base, offered) = (queue as u64 * APART, self.offered_in(queue));
        let index = offered % 8;
        let (at, memory) = (base + DESC + 16 * u64::from(index), &self.ram.memory);
        memory.write_obj(address, GuestAddress(at)).unwrap();
        memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        memory.write_obj(index, GuestAddress(base + AVAIL + 4 + 2 * u64::from(index))).unwrap();
        memory.write_obj(offered.wrapping_add(1), GuestAddress(base + AVAIL + 2)).unwrap();
    }

    fn set(&self, register: u64, value: u32) {
        lock(&self.device).write(register, &value.to_le_bytes());
    }

    fn get(&self, register: u64) -> u32 {
        let mut word = [0; 4];
        lock(&self.device).read(register, &mut word);
        u32::from_le_bytes(word)
    }

    /// Offers one descriptor as the next available one.
    fn offer(&self, index: u16, address: u64, len: u32, flags: u16) {
        let at = DESC + 16 * u64::from(index);
        let memory = &self.ram.memory;
        memory.write_obj(address, GuestAddress(at)).unwrap();
        memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        memory.write_obj(index, GuestAddress(AVAIL + 4 + 2 * u64::from(index))).unwrap();
        memory.write_obj(index + 1, GuestAddress(AVAIL + 2)).unwrap();
    }

    fn used(&self) -> u16 {
        self.ram.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }
}

fn console() -> (Console, io::PipeReader, io::PipeWriter) {
    let (console, printed, typing, _) = console_with_size();
    (console, printed, typing)
}

fn console_with_size() -> (Console, io::PipeReader, io::PipeWriter, UnixStream) {
    let (guest_input, typing) = io::pipe().unwrap();
    let (printed, guest_output) = io::pipe().unwrap();
    let (size, ours) = UnixStream::pair().unwrap();
    let fds = ConsoleFds { input: guest_input.into(), output: guest_output.into(), size: size.into() };
    (Console::new(fds), printed, typing, ours)
}

/// Whether it waits for this.
fn wants(console: &Console, port: usize, direction: Direction) -> Option<()> {
    console.wants().find(|(of, which, _)| (*of, *which) == (port, direction)).map(drop)
}

#[test]
fn what_the_guest_prints_comes_out() {
    let (mut console, mut printed, _typing) = console();
    let driver = Driver::new(1, [DESC, AVAIL, USED]);
    driver.ram.memory.write_slice(b"hello", GuestAddress(BUFFER)).unwrap();
    driver.offer(0, BUFFER, 5, 0);
    console.work(&driver.device);
    assert_eq!((driver.used(), driver.irq.read().unwrap(), driver.get(0x60)), (1, 1, 1));
    console.serve(0, Direction::Out).unwrap();
    let mut seen = [0; 5];
    printed.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"hello");
    assert!(wants(&console, 0, Direction::Out).is_none());
}

#[test]
fn typed_input_waits_for_a_buffer() {
    let (mut console, _printed, mut typing) = console();
    let driver = Driver::new(0, [DESC, AVAIL, USED]);
    typing.write_all(b"abc").unwrap();
    console.serve(0, Direction::In).unwrap();
    console.work(&driver.device);
    assert!(
        wants(&console, 0, Direction::In).is_none(),
        "nothing more is read while the guest has not taken the last"
    );
    driver.offer(0, BUFFER, 2, WRITABLE);
    driver.offer(1, BUFFER + 16, 64, WRITABLE);
    console.work(&driver.device);
    let mut seen = [0; 2];
    driver.ram.memory.read_slice(&mut seen, GuestAddress(BUFFER)).unwrap();
    assert_eq!((&seen, driver.ram.memory.read_obj::<u8>(GuestAddress(BUFFER + 16)).unwrap()), (b"ab", b'c'));
    assert_eq!(driver.used(), 2);
    assert!(wants(&console, 0, Direction::In).is_some());
}

#[test]
fn the_guest_waits_while_nobody_reads() {
    let (mut console, _printed, _typing) = console();
    let driver = Driver::new(1, [DESC, AVAIL, USED]);
    for index in 0..4 {
        driver.offer(index, 0x10_0000, 40 << 10, 0);
    }
    console.work(&driver.device);
    assert_eq!(driver.used(), 2, "64 KiB are kept, the rest stays in the queue");
}

#[test]
fn a_lying_driver_is_told_to_reset() {
    for (address, len) in [(0xffff_ffff_ffff_f000, 0x2000), (0x40_0000, 16), (0x1f_fff0, 0x1000)] {
        let (mut console, _printed, _typing) = console();
        let driver = Driver::new(1, [DESC, AVAIL, USED]);
        driver.offer(0, address, len, 0);
        console.work(&driver.device);
        assert_eq!(driver.get(0x70) & 64, 64, "buffer at {address:#x} of {len} bytes");
        assert!(wants(&console, 0, Direction::Out).is_none());
    }
}

#[test]
fn queues_outside_ram_are_never_served() {
    for addresses in [[0x40_0000, AVAIL, USED], [DESC, u64::MAX - 1, USED], [DESC, AVAIL, 0x1f_fff0]] {
        let (mut console, _printed, _typing) = console();
        let driver = Driver::new(1, addresses);
        console.work(&driver.device);
        assert!(lock(&driver.device).queue(1).is_none(), "{addresses:x?}");
    }
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let driver = Driver::new(1, [DESC, AVAIL, USED]);
    driver.set(0x70, 0);
    driver.set(0x24, 0);
    driver.set(0x20, 0xfd);
    driver.set(0x70, 11);
    assert_eq!(driver.get(0x70) & 8, 0);
    let mut config = [1; 8];
    lock(&driver.device).read(0x100 + 8, &mut config);
    assert_eq!(config, [0; 8], "behind the end reads as zero");
}

#[test]
fn ports_are_added_named_and_opened() {
    let (mut console, _printed, _typing, _size) = console_with_size();
    let driver = Driver::of_ports();
    assert_eq!(driver.get(0x100 + 4), PORTS as u32, "the configuration says how many");
    assert!(driver.heard(&mut console).is_empty(), "nothing before the driver is ready");
    driver.say(&mut console, 0, Event::DeviceReady, 1);
    let add = |port| Message::new(port, Event::PortAdd, 1);
    assert_eq!(driver.heard(&mut console), [add(0), add(1)]);
    driver.say(&mut console, 1, Event::PortReady, 1);
    let open = |port| Message::new(port, Event::PortOpen, 1);
    assert_eq!(driver.heard(&mut console), [Message::named(1, "ktstr.size"), open(1)]);
    driver.say(&mut console, 0, Event::PortReady, 1);
    assert_eq!(driver.heard(&mut console), [Message::new(0, Event::ConsolePort, 1), open(0)]);
}

#[test]
fn a_port_carries_bytes_both_ways_while_it_is_open() {
    let (mut console, _printed, _typing, mut size) = console_with_size();
    let driver = Driver::of_ports();
    let (rx, tx) = queues(1);
    assert_eq!([queues(0), (rx, tx)], [(0, 1), (4, 5)]);
    size.write_all(b"24 80\n").unwrap();
    console.serve(1, Direction::In).unwrap();
    assert!(driver.take(&mut console, rx).is_empty(), "nobody has it open");
    driver.say(&mut console, 1, Event::PortOpen, 1);
    assert_eq!(driver.take(&mut console, rx), b"24 80\n");
    driver.send(&mut console, tx, b"thanks");
    console.serve(1, Direction::Out).unwrap();
    let mut seen = [0; 6];
    size.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"thanks");
    driver.say(&mut console, 1, Event::PortOpen, 0);
    size.write_all(b"25 80\n").unwrap();
    console.serve(1, Direction::In).unwrap();
    assert!(driver.take(&mut console, rx).is_empty(), "closed again");
    driver.say(&mut console, 1, Event::PortOpen, 1);
    assert_eq!(driver.take(&mut console, rx), b"25 80\n", "kept for whoever opens it next");
}

#[test]
fn the_driver_hears_when_the_other_end_is_gone() {
    let (mut console, _printed, typing, mut size) = console_with_size();
    let driver = Driver::of_ports();
    for port in [0, 1] {
        driver.say(&mut console, port, Event::PortReady, 1);
        driver.say(&mut console, port, Event::PortOpen, 1);
    }
    driver.heard(&mut console);
    size.write_all(b"last").unwrap();
    drop((size, typing));
    for port in [0, 1] {
        console.serve(port, Direction::In).unwrap();
    }
    assert!(driver.heard(&mut console).is_empty(), "not before it has the last bytes");
    assert_eq!(driver.take(&mut console, queues(1).0), b"last");
    console.serve(1, Direction::In).unwrap();
    assert_eq!(driver.heard(&mut console), [Message::new(1, Event::PortOpen, 0)]);
    assert!(driver.heard(&mut console).is_empty(), "once");
}

#[test]
fn a_reset_forgets_what_the_driver_said() {
    let (mut console, _printed, _typing, mut size) = console_with_size();
    let driver = Driver::of_ports();
    driver.say(&mut console, 1, Event::PortOpen, 1);
    driver.say(&mut console, 0, Event::DeviceReady, 1);
    driver.begin_with_ports();
    size.write_all(b"24 80\n").unwrap();
    console.serve(1, Direction::In).unwrap();
    assert!(driver.take(&mut console, queues(1).0).is_empty());
    assert!(driver.heard(&mut console).is_empty());
    driver.say(&mut console, 0, Event::DeviceReady, 1);
    assert_eq!(driver.heard(&mut console).len(), PORTS);
}

#[test]
fn a_driver_that_does_not_listen_is_not_heard_for_ever() {
    let (mut console, _printed, _typing, _size) = console_with_size();
    let driver = Driver::of_ports();
    for _ in 0..200 {
        if driver.offered_in(CONTROL_TX).wrapping_sub(driver.used_in(CONTROL_TX)) < 8 {
            driver.say(&mut console, 0, Event::DeviceReady, 1);
        }
    }
    assert!(console.unsent.len() < UNSENT + PORTS, "{} answers wait", console.unsent.len());
    assert!(driver.used_in(CONTROL_TX) <= UNSENT as u16);
    assert!(driver.heard(&mut console).len() >= UNSENT, "then it is served again");
}

#[test]
fn senseless_messages_are_passed_over() {
    let (mut console, _printed, _typing, _size) = console_with_size();
    let driver = Driver::of_ports();
    let named = |port: u32, event: u16, value: u16| {
        [&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat()
    };
    let senseless = [
        Vec::new(),
        named(0, 0, 1)[..7].to_vec(),
        named(0, 0, 0),
        named(7, 3, 1),
        named(u32::MAX, 6, 1),
        named(1, 3, 0),
        named(0, 1, 1),
        named(0, 2, 1),
        named(0, 5, 1),
        named(0, 99, 1),
    ];
    for bytes in &senseless {
        driver.send(&mut console, CONTROL_TX, bytes);
        assert!(driver.heard(&mut console).is_empty(), "{bytes:x?}");
    }
    assert_eq!(usize::from(driver.used_in(CONTROL_TX)), senseless.len(), "all were taken");
    assert_eq!(driver.get(0x70) & 64, 0);
    driver.offer_in(CONTROL_RX, BUFFER, 4, WRITABLE);
    driver.say(&mut console, 0, Event::DeviceReady, 1);
    assert_eq!(driver.get(0x70) & 64, 64, "a buffer that holds no message");
}

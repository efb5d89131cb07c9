//! The executable as the orchestrator sees it: a socket on descriptor 3, a jail, samples, a summary.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ktstr_monitor::addr::CpuId;
use ktstr_proto::channel::{Channel, ChannelError};
use ktstr_proto::link::{ErrorCode, Fds};
use ktstr_proto::monitor::{
    Attach, Attached, CompareSymbols, Finish, MonitorEvent, MonitorLink, MonitorSummary, Sample,
};
use ktstr_proto::symbols::{COMPARED, SymbolDiffers, SymbolsCompared, SymbolsTold};
use ktstr_proto::vmm::RamRegion;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::guest::{Guest, PlantedRq, RAM, Shape, VARIABLES};
use crate::kernel_file::LINK;

const PATIENCE: Duration = Duration::from_secs(60);

/// A monitor process; killed when dropped.
struct Monitor {
    child: Child,
    channel: Option<Channel<MonitorLink>>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Monitor {
    fn start() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ktstr-monitor"));
        command.stdin(Stdio::null());
        let fd = theirs.as_raw_fd();
        // SAFETY: between fork and exec only dup2 and fcntl are called, both async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                let done =
                    if fd == 3 { nix::libc::fcntl(3, nix::libc::F_SETFD, 0) } else { nix::libc::dup2(fd, 3) };
                if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let child = command.spawn().unwrap();
        drop(theirs);
        Self { child, channel: Some(Channel::new(ours, "the monitor").unwrap()) }
    }

    fn greeted() -> Self {
        let mut monitor = Self::start();
        monitor.channel().handshake("test", PATIENCE).unwrap();
        monitor
    }

    fn channel(&mut self) -> &mut Channel<MonitorLink> {
        self.channel.as_mut().unwrap()
    }

    fn attach(&mut self, ram: OwnedFd, kernel: OwnedFd, len: u64) -> Result<Attached, ChannelError> {
        let mut fds = Fds::default();
        let attach = Attach {
            ram: fds.attach(ram),
            regions: vec![RamRegion { gpa: 0, len, offset: 0 }],
            kernel: fds.attach(kernel),
            cpus: 3,
            absent_cpus: 0,
            period_ms: 5,
            sustained_samples: 5,
            watchdog_ms: None,
            watches: Vec::new(),
        };
        self.channel().call(attach, fds, PATIENCE, |_, _| {}).map(|(attached, _)| attached)
    }

    fn finish(&mut self) -> (MonitorSummary, Vec<MonitorEvent>) {
        let mut events = Vec::new();
        let (summary, _) = self
            .channel()
            .call(Finish { registers: None }, Fds::default(), PATIENCE, |event, _| events.push(event))
            .unwrap();
        (summary, events)
    }

    /// Reads events until `enough` is true of one.
    fn watch(&mut self, mut enough: impl FnMut(&MonitorEvent) -> bool) {
        loop {
            let (message, _) = self.channel().receive(PATIENCE).unwrap();
            let ktstr_proto::channel::Message::Event(event) = message else { panic!("{message:?}") };
            if enough(&event) {
                return;
            }
        }
    }

    fn exit(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "still running after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Whether the monitor can be jailed here; says NOT RUN where it cannot.
fn jail_works() -> bool {
    let guest = Guest::new(Shape::default());
    let attached = Monitor::greeted().attach(ram(&guest), file(&guest.kernel), RAM);
    let Err(ChannelError::Refused { source, .. }) = attached else { return true };
    let required = std::env::var("KTSTR_REQUIRE").unwrap_or_default();
    if source.code != ErrorCode::Jail || required.split(',').any(|what| what == "jail") {
        return true;
    }
    eprintln!("NOT RUN: the monitor's jail cannot be entered here: {source}");
    false
}

fn ram(guest: &Guest) -> OwnedFd {
    guest.ram.try_clone().unwrap().into()
}

fn file(bytes: &[u8]) -> OwnedFd {
    let mut file = File::from(memfd_create("kernel", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    file.into()
}

fn refusal(attached: Result<Attached, ChannelError>) -> (ErrorCode, String) {
    match attached {
        Err(ChannelError::Refused { source, .. }) => (source.code, source.message),
        other => panic!("not refused: {other:?}"),
    }
}

fn clocks(guest: &Guest, base: u64) {
    for cpu in 0..guest.shape.cpus {
        let planted = PlantedRq { nr_running: 1 + cpu, clock: base + u64::from(cpu), ..Default::default() };
        guest.plant_rq(CpuId(cpu), planted);
    }
}

#[test]
fn a_guest_is_watched_from_boot_to_summary() {
    if !jail_works() {
        return;
    }
    let guest = Guest::new(Shape::default());
    clocks(&guest, 1000);
    let mask = guest.variable("__cpu_possible_mask");
    guest.write_u64(mask, 0);
    let mut monitor = Monitor::greeted();
    let attached = monitor.attach(ram(&guest), file(&guest.kernel), RAM).unwrap();
    assert_eq!(attached.symbols, crate::guest::VARIABLES.len() as u32);
    assert!(attached.btf_types > 10);
    assert!(attached.absent.contains(&"scx_event_stats.SCX_EV_REENQ_IMMED".to_owned()));

    guest.write_u64(mask, 0b111);
    monitor.watch(|event| *event == MonitorEvent::Ready);
    let mut first: Option<Sample> = None;
    monitor.watch(|event| {
        let MonitorEvent::Sample(sample) = event else { return false };
        first.get_or_insert(sample.clone());
        true
    });
    let first = first.unwrap();
    let seen: Vec<_> = first.cpus.iter().map(|c| (c.nr_running, c.clock)).collect();
    assert_eq!(seen, [(Some(1), Some(1000)), (Some(2), Some(1001)), (Some(3), Some(1002))]);
    assert_eq!(first.events, []);

    guest.load_scheduler(|_| [1, 2, 3]);
    clocks(&guest, 2000);
    monitor.watch(|event| matches!(event, MonitorEvent::Sample(s) if !s.events.is_empty()));
    let (summary, _) = monitor.finish();
    assert!(summary.samples >= 2, "{summary:?}");
    assert_eq!(summary.max_imbalance_ratio, 3.0);
    let fallback = ("SCX_EV_SELECT_CPU_FALLBACK".to_owned(), 3);
    assert!(summary.events.contains(&fallback), "{summary:?}");
    assert!(monitor.exit().success());
}

#[test]
fn a_guest_that_never_comes_up_is_summed_up_with_the_reason() {
    if !jail_works() {
        return;
    }
    let guest = Guest::new(Shape::default());
    guest.write_u64(guest.variable("linux_banner"), 0);
    let mut monitor = Monitor::greeted();
    monitor.attach(ram(&guest), file(&guest.kernel), RAM).unwrap();
    let (summary, events) = monitor.finish();
    assert_eq!((summary.samples, events), (0, vec![]));
    assert!(summary.unavailable[0].contains("the kernel image is not in guest memory"), "{summary:?}");
}

/// What an honest guest says of its symbols.
fn honest(guest: &Guest) -> [Option<u64>; COMPARED.len()] {
    let variable = |symbol: &str| VARIABLES.iter().find(|(name, _)| *name == symbol);
    COMPARED.map(|symbol| variable(symbol).map(|(_, into)| LINK + guest.shape.shift + into))
}

fn compared(guest: &Guest, told: SymbolsTold) -> (MonitorSummary, Vec<MonitorEvent>) {
    let mut monitor = Monitor::greeted();
    monitor.attach(ram(guest), file(&guest.kernel), RAM).unwrap();
    let mut events = Vec::new();
    let mut hear = |told| {
        let event = |event, _| events.push(event);
        monitor.channel().call(CompareSymbols(told), Fds::default(), PATIENCE, event).unwrap();
    };
    hear(told);
    // Only what is said first counts.
    hear(Ok([Some(1); COMPARED.len()]));
    let (summary, more) = monitor.finish();
    assert!(monitor.exit().success());
    events.extend(more);
    events.retain(|event| matches!(event, MonitorEvent::SymbolsCompared(_)));
    (summary, events)
}

#[test]
fn symbols_lie_where_an_honest_guest_says_and_lies_are_findings() {
    if !jail_works() {
        return;
    }
    let guest = Guest::new(Shape { moved: 2 << 20, shift: 6 << 20, ..Shape::default() });
    clocks(&guest, 1000);
    let told = honest(&guest);
    let known = told.iter().flatten().count() as u32;
    assert!(known >= 10, "{told:x?}");
    let (summary, events) = compared(&guest, Ok(told));
    let agreed = SymbolsCompared { agree: known, ..SymbolsCompared::default() };
    assert_eq!(summary.symbols.as_ref(), Some(&agreed));
    assert_eq!(events, [MonitorEvent::SymbolsCompared(agreed)], "said once");

    // Three lies: another address, none that could be one, a symbol that is not there; and one that is kept back.
    let mut lies = told;
    let place = |symbol: &str| COMPARED.iter().position(|name| *name == symbol).unwrap();
    let of = |symbol: &str| told[place(symbol)].unwrap();
    lies[place("runqueues")] = Some(of("runqueues") + 64);
    lies[place("scx_root")] = Some(u64::MAX);
    lies[place("psi_system")] = Some(0x1000);
    lies[place("init_task")] = None;
    let (lied, events) = compared(&guest, Ok(lies));
    let found = lied.symbols.clone().unwrap();
    let differs = |symbol: &str, guest, monitor| SymbolDiffers { symbol: symbol.into(), guest, monitor };
    assert_eq!(found.agree, known - 3);
    assert_eq!(found.untold, ["init_task"]);
    assert_eq!(
        found.differ,
        [
            differs("runqueues", of("runqueues") + 64, Some(of("runqueues"))),
            differs("psi_system", 0x1000, None),
            differs("scx_root", u64::MAX, Some(of("scx_root"))),
        ]
    );
    assert_eq!(events, [MonitorEvent::SymbolsCompared(found)]);
    // Nothing else of what is read changes.
    assert!(lied.samples > 0 && lied.failed_samples == 0, "{lied:?}");
    assert_eq!(lied.max_imbalance_ratio, summary.max_imbalance_ratio);

    let (silent, _) = compared(&guest, Err("x".repeat(1 << 16)));
    let impossible = silent.symbols.unwrap().impossible.unwrap();
    assert_eq!(impossible, "x".repeat(200));
}

#[test]
fn bad_attachments_are_refused_each_with_its_reason() {
    if !jail_works() {
        return;
    }
    let guest = Guest::new(Shape::default());
    let refused = |ram: OwnedFd, kernel: OwnedFd, len| refusal(Monitor::greeted().attach(ram, kernel, len));
    let (code, text) = refused(ram(&guest), file(b"#!/bin/sh"), RAM);
    assert_eq!(code, ErrorCode::BadInput, "{text}");
    let (code, text) = refused(ram(&guest), file(&guest.kernel[..0x3000]), RAM);
    assert_eq!(code, ErrorCode::BadInput, "{text}");
    let (code, text) = refused(file(&vec![0; RAM as usize]), file(&guest.kernel), RAM);
    assert!(code == ErrorCode::BadRequest && text.contains("F_SEAL_SHRINK"), "{text}");
    let (code, text) = refused(ram(&guest), file(&guest.kernel), RAM + 1);
    assert!(code == ErrorCode::BadRequest && text.contains("layout needs"), "{text}");
    let (code, text) = refused(ram(&guest), file(&guest.kernel), 0);
    assert!(code == ErrorCode::BadRequest && text.contains("length 0"), "{text}");
    let without_btf = crate::kernel_file::elf(&crate::guest::image(), &[], &[("_text", 0)]);
    let (code, text) = refused(ram(&guest), file(&without_btf), RAM);
    assert_eq!(code, ErrorCode::Unavailable, "{text}");
}

#[test]
fn finish_before_attach_is_refused() {
    let mut monitor = Monitor::greeted();
    let finished = monitor.channel().call(Finish { registers: None }, Fds::default(), PATIENCE, |_, _| {});
    let Err(ChannelError::Refused { source, .. }) = finished else { panic!("{finished:?}") };
    assert!(matches!(source.code, ErrorCode::BadRequest | ErrorCode::Jail), "{source:?}");
}

#[test]
fn it_ends_at_once_when_the_peer_does() {
    if !jail_works() {
        return;
    }
    let guest = Guest::new(Shape::default());
    clocks(&guest, 1000);
    let mut monitor = Monitor::greeted();
    monitor.attach(ram(&guest), file(&guest.kernel), RAM).unwrap();
    monitor.watch(|event| matches!(event, MonitorEvent::Sample(_)));
    monitor.channel = None;
    assert!(monitor.exit().success());
}

#[test]
fn a_peer_that_never_reads_does_not_stop_it() {
    if !jail_works() {
        return;
    }
    let guest = Guest::new(Shape::default());
    clocks(&guest, 1000);
    let mut monitor = Monitor::greeted();
    monitor.attach(ram(&guest), file(&guest.kernel), RAM).unwrap();
    // Long enough to fill the socket's buffer at 200 samples a second, were they all sent blocking.
    std::thread::sleep(Duration::from_millis(1500));
    monitor.channel = None;
    assert!(monitor.exit().success());
}

#[test]
fn nonsense_ends_it_with_a_message() {
    let (mut ours, mut monitor) = {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ktstr-monitor"));
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let fd = theirs.as_raw_fd();
        // SAFETY: only dup2 is called between fork and exec, which is async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                if nix::libc::dup2(fd, 3) < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        (ours, Monitor { child: command.spawn().unwrap(), channel: None })
    };
    ours.write_all(&[0xff; 64]).unwrap();
    let status = monitor.exit();
    assert_eq!(status.code(), Some(4), "{status:?}");
    let mut said = String::new();
    std::io::Read::read_to_string(&mut monitor.child.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.starts_with("ktstr-monitor: "), "{said}");
}

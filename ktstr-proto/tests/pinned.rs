//! The bytes of every variant on every link, pinned for this version in `pinned-v1.txt`.
//!
//! A variant without a sample does not compile or fails here; a changed encoding fails here. When a
//! change is meant, bump `VERSION`, keep the old file, and write a new one with `KTSTR_PIN=1`.

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf};

use ktstr_proto::{
    Accel, AccelKind, FdSlot, RunId, Topology, VERSION, capture::*, client::*, codec, device::*, guest::*,
    kernel_place::*, link::*, map_watch::*, monitor::*, registers::*, repro::*, ring::*, run::*,
    scx_stats::*, symbols::*, topology::numa::*, verdict::*, vmm::*,
};
use serde::Serialize;

/// For each enum: a match without wildcard that names each variant, and its samples in that order.
macro_rules! pins {
    ($($name:ident { $($pattern:pat => $variant:literal),* $(,)? } from $samples:expr;)*) => {
        fn pinned() -> BTreeMap<String, String> {
            let mut all = BTreeMap::new();
            $({
                let mut named: Vec<&str> = Vec::new();
                for sample in $samples {
                    let variant = match &sample { $($pattern => $variant),* };
                    named.push(variant);
                    all.insert(format!("{}::{variant}", stringify!($name)), hex(&sample));
                }
                let expected: &[&str] = &[$($variant),*];
                assert_eq!(named, expected, "one sample for each variant of {}", stringify!($name));
            })*
            all
        }
    };
}

fn hex<T: Serialize>(value: &T) -> String {
    codec::encode(value).unwrap().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn topology() -> Topology {
    Topology { numa_nodes: 1, llcs: 2, cores: 3, threads: 4 }
}

fn numa() -> Numa {
    let access = Some(Access { latency_ns: 400, bandwidth_mbs: 16_000 });
    Numa { nodes: vec![NumaNode { memory_mb: Some(64), access }], distances: vec![vec![10]] }
}

fn disk() -> DiskConfig {
    DiskConfig::new().filesystem(Filesystem::Ext4).iops(300).bytes_per_sec(1 << 20)
}

fn triple_fault() -> TripleFault {
    let control = ControlRegisters {
        cr0: 2,
        cr2: 3,
        cr4: 4,
        efer: 5,
        gdt: DescriptorTable { base: 6, limit: 7 },
        idt: DescriptorTable { base: 8, limit: 9 },
    };
    TripleFault { cpu: 1, control: Some(control), registers: Ok(vec![VcpuRegisters::default()]) }
}

fn region() -> RamRegion {
    RamRegion { gpa: 0, len: 1 << 20, offset: 0 }
}

fn spec() -> RunSpec {
    RunSpec {
        name: "n".into(),
        job: Job::Shell(ShellJob {
            include: vec!["/i".into()],
            exec: Some("e".into()),
            dmesg: true,
            term: None,
        }),
        kernel: Some("k".into()),
        accel: Accel::Det,
        topology: topology(),
        numa: numa(),
        absent_llcs: 3,
        memory_mb: Some(512),
        seed: 7,
        vary: true,
        deadline_ms: Some(9),
        runs_root: "/r".into(),
        replay: "line".into(),
        warm: true,
        kernel_args: vec!["nosmt".into()],
        observe: true,
        watchdog_ms: Some(3),
        snapshots: 2,
        env: vec![("A".into(), "B".into())],
        disk: Some(disk()),
        networks: vec![NetConfig::new()],
        jail: Jail::Reduced,
        performance: Performance::Unassisted,
        cpu_budget: Some(4),
        cleanup_budget_ms: Some(8),
        watches: vec![watch()],
        auto_repro: true,
        probing: Some(probing()),
    }
}

fn probing() -> Probing {
    Probing { stack: vec!["f".into()] }
}

fn probe_account() -> ProbeAccount {
    ProbeAccount {
        sites: vec![ProbeSite {
            name: "f".into(),
            of_stack: true,
            absent: vec!["a".into()],
            refused: Some("r".into()),
        }],
        unknown: vec!["u".into()],
        triggers: vec!["t".into()],
        impossible: Some("i".into()),
        buffer_kb: 2,
    }
}

fn probe_event() -> ProbeEvent {
    ProbeEvent { t_ns: 1, cpu: 2, pid: 3, comm: "c".into(), site: "s".into(), text: "a=1".into() }
}

fn probe_end() -> ProbeEnd {
    ProbeEnd { fired: true, recorded: 1, sent: 2, lost: vec![3], oldest_ns: 4, trouble: Some("t".into()) }
}

fn auto_repro() -> AutoRepro {
    let seen = Seen {
        at_us: -1,
        cpu: 2,
        task: "c[3]".into(),
        site: "s".into(),
        kind: SeenKind::Entry,
        args: vec![("a".into(), "1".into())],
    };
    AutoRepro {
        run: Some(RunId("id2".into())),
        run_dir: "/d2".into(),
        took_ms: 5,
        stack: vec!["f".into()],
        account: Some(probe_account()),
        end: Some(probe_end()),
        task: Some("c[3]".into()),
        cpu: Some(2),
        seen: vec![seen],
        left_out: 6,
        notes: vec!["n".into()],
        ..AutoRepro::not_run("why")
    }
}

fn kernel_write() -> KernelWrite {
    KernelWrite::new(KernelTarget::Symbol("s".into()), KernelValue::OrU32(4))
}

fn watch() -> MapWatch {
    MapWatch { map: "m".into(), path: "p".into(), aggregate: Aggregate::PerCpuCounter, label: "l".into() }
}

fn report() -> RunReport {
    RunReport {
        run_id: RunId("id".into()),
        run_dir: "/d".into(),
        name: "n".into(),
        outcome: Outcome::Fail,
        infrastructure: false,
        cause: Some(Cause::Assertion),
        result: Some(AssertResult::fail(DetailKind::Gap, "gap")),
        timeline: vec![ktstr_proto::verdict::TimelineMark {
            at_ms: -1,
            source: ktstr_proto::verdict::TimelineSource::Monitor,
            what: "w".into(),
            iterations: 2,
            phase: Some(1),
        }],
        captures: vec![ktstr_proto::verdict::CaptureMark {
            tag: "t".into(),
            why: "y".into(),
            at_ms: -1,
            boundary_ms: Some(2),
            stood_us: 3,
            file: Ok("f".into()),
            stats: Ok("s".into()),
        }],
        assert: Some(Assert::default_checks()),
        host: Some(ktstr_proto::host::HostTime {
            window_ms: 200,
            ran_ms: vec![150],
            waited_ms: vec![30],
            waits_ms: vec![vec![10, 20]],
            at_ms: vec![1000, 1100],
            period_ms: 100,
            pressure_ms: Some(180),
        }),
        monitor: Some(MonitorSummary { samples: 3, ..MonitorSummary::default() }),
        notes: vec![],
        scheduler_log: vec![],
        console_tail: vec![],
        accel: Some(AccelKind::Tcg),
        accel_detail: "q".into(),
        kernel: "k".into(),
        scheduler: "s".into(),
        topology: topology(),
        exit_status: None,
        seed: 1,
        replay: "r".into(),
        host_ms: (1, 2),
        boot: ktstr_proto::run::Boot::Kept,
        allow_inconclusive: true,
        auto_repro: Some(Box::new(auto_repro())),
    }
}

fn watch_point() -> WatchPoint {
    WatchPoint { kva: 0x1000, len: 4 }
}

fn registers() -> VcpuRegisters {
    VcpuRegisters {
        rax: 1,
        rbx: 2,
        rcx: 3,
        rdx: 4,
        rsi: 5,
        rdi: 6,
        rbp: 7,
        rsp: 8,
        r8_to_r15: [9, 10, 11, 12, 13, 14, 15, 16],
        rip: 17,
        rflags: 18,
        cs: 19,
        ss: 20,
        ds: 21,
        es: 22,
        fs: 23,
        gs: 24,
        fs_base: 25,
        gs_base: 26,
        cr3: 27,
    }
}

fn captured() -> Captured {
    Captured {
        read_us: 1,
        tasks: 2,
        dsqs: 3,
        copied_bytes: 5,
        vmcore_bytes: 4,
        no_core: None,
        no_registers: Some("n".into()),
        clock_ns: Some(6),
    }
}

fn structure() -> Structure {
    Structure { of: "m:t".into(), at: "s@1".into(), path: Some("p".into()), follow: 2 }
}

fn start() -> Start {
    Start {
        accel: AccelKind::Tcg,
        topology: topology(),
        numa: numa(),
        absent_llcs: 3,
        memory_mb: 512,
        cmdline: "c".into(),
        ring: RingRegion { gpa: 0x1000_0000, len: 0x40_0000, mode: Mode::Wrap },
        kernel: FdSlot(0),
        initrd: FdSlot(1),
        emulator: Some(Emulator { program: "/q".into(), version: (10, 0), files: vec![] }),
        interactive: false,
        seed: 5,
        instruction_shift: 2,
        disk: Some(AttachDisk { socket: FdSlot(2), config: disk() }),
        networks: vec![AttachNetwork { socket: FdSlot(3), config: NetConfig::new() }],
        input: Some(FdSlot(4)),
        snapshot: Snapshot::Save { file: FdSlot(5), description: "d".into() },
        isolation: Some(Isolation { nodes: vec![0, 1] }),
    }
}

pins! {
    ClientRequest {
        ClientRequest::Submit(_) => "Submit", ClientRequest::Cancel(_) => "Cancel",
        ClientRequest::Query(_) => "Query", ClientRequest::TakeCapture(_) => "TakeCapture",
        ClientRequest::SetNumber(_) => "SetNumber",
    } from [
        ClientRequest::Submit(Submit(spec())), ClientRequest::Cancel(Cancel(RunId("id".into()))),
        ClientRequest::Query(Query { run: None, question: Question::Tasks, freeze: true }),
        ClientRequest::TakeCapture(TakeCapture { run: Some(RunId("id".into())), vmcore: true }),
        ClientRequest::SetNumber(SetNumber { run: None, map: "m".into(), path: "p".into(), value: -1 }),
    ];
    ClientReply {
        ClientReply::Submit(_) => "Submit", ClientReply::Cancel(_) => "Cancel",
        ClientReply::Query(_) => "Query", ClientReply::TakeCapture(_) => "TakeCapture",
        ClientReply::SetNumber(_) => "SetNumber",
    } from [
        ClientReply::Submit(Submitted { run_id: RunId("id".into()), run_dir: "/d".into(), queued_behind: 2 }),
        ClientReply::Cancel(Cancelled),
        ClientReply::Query(QueryAnswer { json: "1".into(), text: "1".into(), read_us: 2, stood_us: Some(3) }),
        ClientReply::TakeCapture(CaptureTaken { path: "/p".into(), stood_us: 3, read: captured() }),
        ClientReply::SetNumber(NumberSet { what: "w".into(), stood_us: 3 }),
    ];
    Question {
        Question::Path(_) => "Path", Question::Tasks => "Tasks", Question::Task(_) => "Task",
        Question::Dsqs => "Dsqs", Question::Scx => "Scx", Question::Cgroups => "Cgroups",
        Question::Map(..) => "Map", Question::Bpf => "Bpf",
        Question::Structure(_) => "Structure", Question::Modules => "Modules", Question::Kernel(..) => "Kernel",
    } from [
        Question::Path("rq".into()), Question::Tasks, Question::Task(7), Question::Dsqs, Question::Scx,
        Question::Cgroups, Question::Map(".bss".into(), Some("x".into())), Question::Bpf,
        Question::Structure(structure()), Question::Modules,
        Question::Kernel(KernelTarget::Kva(3), KernelWidth::U64),
    ];
    ClientEvent {
        ClientEvent::Notice(_) => "Notice", ClientEvent::Output { .. } => "Output",
        ClientEvent::Console(_) => "Console", ClientEvent::ConsoleReady(_) => "ConsoleReady",
        ClientEvent::Finished(_) => "Finished", ClientEvent::Held(_) => "Held",
    } from [
        ClientEvent::Notice("n".into()),
        ClientEvent::Output { source: LogSource::Stderr, text: "t".into() },
        ClientEvent::Console(vec![1, 2]),
        ClientEvent::ConsoleReady(ConsoleSockets { terminal: FdSlot(0), size: FdSlot(1) }),
        ClientEvent::Finished(report()),
        ClientEvent::Held(report()),
    ];
    VmmRequest {
        VmmRequest::Probe(_) => "Probe", VmmRequest::Start(_) => "Start", VmmRequest::Pause(_) => "Pause",
        VmmRequest::Resume(_) => "Resume", VmmRequest::Shutdown(_) => "Shutdown", VmmRequest::Kill(_) => "Kill",
        VmmRequest::Tell(_) => "Tell", VmmRequest::Watch(_) => "Watch",
    } from [
        VmmRequest::Probe(Probe), VmmRequest::Start(start()), VmmRequest::Pause(Pause { registers: true }),
        VmmRequest::Resume(Resume), VmmRequest::Shutdown(Shutdown), VmmRequest::Kill(Kill),
        VmmRequest::Tell(Tell { id: 1, answer: vec![2] }),
        VmmRequest::Watch(Watch { places: vec![watch_point()] }),
    ];
    VmmReply {
        VmmReply::Probe(_) => "Probe", VmmReply::Start(_) => "Start", VmmReply::Pause(_) => "Pause",
        VmmReply::Resume(_) => "Resume", VmmReply::Shutdown(_) => "Shutdown", VmmReply::Kill(_) => "Kill",
        VmmReply::Tell(_) => "Tell",
        VmmReply::Watch(_) => "Watch",
    } from [
        VmmReply::Probe(ProbeReport { usable: true, detail: "d".into(), took_us: 3 }),
        VmmReply::Start(Started {
            ram: FdSlot(0), regions: vec![region()], console: None, emulator_pid: Some(4), emulator: Some(FdSlot(1)),
            walls: Walls::All, detail: "d".into(),
        }),
        VmmReply::Pause(Paused { took_us: 5, registers: Some(Ok(vec![registers()])) }), VmmReply::Resume(Resumed { stood_us: 6 }),
        VmmReply::Shutdown(Accepted), VmmReply::Kill(Accepted), VmmReply::Tell(Accepted),
        VmmReply::Watch(Watching),
    ];
    VmmEvent {
        VmmEvent::Console(_) => "Console", VmmEvent::Com2(_) => "Com2", VmmEvent::Ring(_) => "Ring",
        VmmEvent::RingBroken(_) => "RingBroken", VmmEvent::Exited(_) => "Exited",
        VmmEvent::Saved(_) => "Saved", VmmEvent::Written { .. } => "Written",
        VmmEvent::Statistics(_) => "Statistics", VmmEvent::Station { .. } => "Station",
    } from [
        VmmEvent::Console(vec![1]), VmmEvent::Com2(vec![2]), VmmEvent::Ring(vec![3]),
        VmmEvent::RingBroken("b".into()), VmmEvent::Exited(VmExit::PowerOff),
        VmmEvent::Saved(Ok(Saved { bytes: 6, stood_us: 7 })),
        VmmEvent::Written { place: watch_point(), cpu: 8 },
        VmmEvent::Statistics(vec![VcpuStatistics { counters: vec![("exits".into(), 8)] }]),
        VmmEvent::Station { what: "w".into(), at_us: 9 },
    ];
    VmExit {
        VmExit::PowerOff => "PowerOff", VmExit::Reset => "Reset", VmExit::TripleFault(_) => "TripleFault",
        VmExit::Killed => "Killed", VmExit::EmulatorDied { .. } => "EmulatorDied",
        VmExit::InternalError { .. } => "InternalError",
    } from [
        VmExit::PowerOff, VmExit::Reset, VmExit::TripleFault(Box::new(triple_fault())), VmExit::Killed,
        VmExit::EmulatorDied { how: "h".into(), stderr: "s".into() },
        VmExit::InternalError { detail: "d".into() },
    ];
    MonitorRequest {
        MonitorRequest::Attach(_) => "Attach", MonitorRequest::Finish(_) => "Finish",
        MonitorRequest::Window(_) => "Window", MonitorRequest::VcpuTime(_) => "VcpuTime",
        MonitorRequest::Ask(_) => "Ask", MonitorRequest::Capture(_) => "Capture",
        MonitorRequest::Thawed(_) => "Thawed", MonitorRequest::WriteMap(_) => "WriteMap",
        MonitorRequest::Locate(_) => "Locate", MonitorRequest::WriteKernel(_) => "WriteKernel",
        MonitorRequest::CompareSymbols(_) => "CompareSymbols",
    }
        from [
            MonitorRequest::Attach(Attach {
                ram: FdSlot(0), regions: vec![region()], kernel: FdSlot(1), cpus: 4, absent_cpus: 7, period_ms: 100,
                sustained_samples: 5, watchdog_ms: Some(6), watches: vec![watch()],
            }),
            MonitorRequest::Finish(Finish { registers: Some(Err("r".into())) }),
            MonitorRequest::Window(Window::Restart),
            MonitorRequest::VcpuTime(VcpuTime { ran_ns: vec![1, 2] }),
            MonitorRequest::Ask(Ask { question: Question::Scx, frozen: true }),
            MonitorRequest::Capture(Capture {
                why: "w".into(), json: FdSlot(0), text: FdSlot(1), vmcore: Some(FdSlot(2)),
                watched: Some(PlaceWritten { what: "x".into(), place: watch_point(), cpu: 3, nth: 1, last: true }),
                registers: Err("r".into()),
            }),
            MonitorRequest::Thawed(Thawed { stood_us: 5 }),
            MonitorRequest::WriteMap(WriteMap { ram: FdSlot(0), map: "m".into(), path: "p".into(), value: -1 }),
            MonitorRequest::Locate(Locate { what: "x".into() }),
            MonitorRequest::WriteKernel(WriteKernel {
                ram: FdSlot(0), writes: vec![kernel_write()], frozen: true,
            }),
            MonitorRequest::CompareSymbols(CompareSymbols(Err("e".into()))),
        ];
    MonitorReply {
        MonitorReply::Attach(_) => "Attach", MonitorReply::Finish(_) => "Finish",
        MonitorReply::Window(_) => "Window", MonitorReply::VcpuTime(_) => "VcpuTime",
        MonitorReply::Ask(_) => "Ask", MonitorReply::Capture(_) => "Capture",
        MonitorReply::Thawed(_) => "Thawed", MonitorReply::WriteMap(_) => "WriteMap",
        MonitorReply::Locate(_) => "Locate", MonitorReply::WriteKernel(_) => "WriteKernel",
        MonitorReply::CompareSymbols(_) => "CompareSymbols",
    }
        from [
            MonitorReply::Attach(Attached { symbols: 1, btf_types: 2, absent: vec!["a.b".into()] }),
            MonitorReply::Finish(MonitorSummary::default()),
            MonitorReply::Window(Windowed),
            MonitorReply::VcpuTime(VcpuTimeNoted),
            MonitorReply::Ask(Answer { json: "1".into(), text: "1".into(), read_us: 2 }),
            MonitorReply::Capture(captured()),
            MonitorReply::Thawed(ThawNoted),
            MonitorReply::WriteMap(MapWritten { what: "w".into() }),
            MonitorReply::Locate(Located { place: watch_point(), found: "f".into(), of_scheduler: true }),
            MonitorReply::WriteKernel(KernelWritten { what: "w".into() }),
            MonitorReply::CompareSymbols(SymbolsNoted),
        ];
    MonitorEvent {
        MonitorEvent::Ready => "Ready", MonitorEvent::Sample(_) => "Sample",
        MonitorEvent::Unavailable(_) => "Unavailable", MonitorEvent::Stalling(_) => "Stalling",
        MonitorEvent::SchedulerExiting { .. } => "SchedulerExiting",
        MonitorEvent::CaptureWritten(_) => "CaptureWritten",
        MonitorEvent::Watchdog { .. } => "Watchdog",
        MonitorEvent::SymbolsCompared(_) => "SymbolsCompared",
    } from [
        MonitorEvent::Ready,
        MonitorEvent::Sample(Sample {
            t_ns: 1, took_us: 2, cpus: vec![CpuSample::default()], events: vec![("E".into(), 3)],
        }),
        MonitorEvent::Unavailable("u".into()),
        MonitorEvent::Stalling(Stalling {
            pid: 1, comm: "c".into(), cpu: 2, age_jiffies: 3, limit_jiffies: 4,
        }),
        MonitorEvent::SchedulerExiting { kind: "k".into() },
        MonitorEvent::CaptureWritten(Err("e".into())),
        MonitorEvent::Watchdog { written: true, what: "w".into() },
        MonitorEvent::SymbolsCompared(SymbolsCompared {
            agree: 1,
            differ: vec![SymbolDiffers { symbol: "s".into(), guest: 2, monitor: Some(3) }],
            untold: vec!["u".into()],
            impossible: Some("i".into()),
        }),
    ];
    DeviceRequest { DeviceRequest::Serve(_) => "Serve" } from [DeviceRequest::Serve(Serve {
        disk: Some(ServeDisk { image: FdSlot(0), listener: FdSlot(1), config: disk() }),
        networks: vec![ServeNetwork {
            listener: FdSlot(2),
            inner: FdSlot(3),
            link: FdSlot(4),
            config: NetConfig::new(),
        }],
    })];
    DeviceReply { DeviceReply::Serve(_) => "Serve" } from [DeviceReply::Serve(Serving)];
    DeviceEvent { DeviceEvent::Broken { .. } => "Broken" } from [
        DeviceEvent::Broken { device: "d".into(), reason: "r".into() },
    ];
    StatsOf { StatsOf::Snapshot(_) => "Snapshot", StatsOf::Question(_) => "Question" } from [
        StatsOf::Snapshot(1), StatsOf::Question(2),
    ];
    MissingStatsReason {
        MissingStatsReason::NoScheduler => "NoScheduler", MissingStatsReason::NoSocket { .. } => "NoSocket",
        MissingStatsReason::Late { .. } => "Late", MissingStatsReason::SchedulerError { .. } => "SchedulerError",
        MissingStatsReason::MissingResp { .. } => "MissingResp", MissingStatsReason::Cancelled => "Cancelled",
        MissingStatsReason::TooLarge { .. } => "TooLarge", MissingStatsReason::DuringFreeze => "DuringFreeze",
        MissingStatsReason::NotHeard => "NotHeard", MissingStatsReason::NotKept { .. } => "NotKept",
    } from [
        MissingStatsReason::NoScheduler,
        MissingStatsReason::NoSocket { why: "w".into() },
        MissingStatsReason::Late { limit_ms: 1 },
        MissingStatsReason::SchedulerError { errno: 22, args: "a".into() },
        MissingStatsReason::MissingResp { why: "w".into() },
        MissingStatsReason::Cancelled,
        MissingStatsReason::TooLarge { limit: 2 },
        MissingStatsReason::DuringFreeze,
        MissingStatsReason::NotHeard,
        MissingStatsReason::NotKept { why: "w".into() },
    ];
    GuestFrame {
        GuestFrame::Hello { .. } => "Hello", GuestFrame::Phase(_) => "Phase", GuestFrame::Log(_) => "Log",
        GuestFrame::StepFailed { .. } => "StepFailed", GuestFrame::ScxDisabled { .. } => "ScxDisabled",
        GuestFrame::SchedulerEnded { .. } => "SchedulerEnded", GuestFrame::Stimulus { .. } => "Stimulus",
        GuestFrame::TestEnded(_) => "TestEnded", GuestFrame::TestProcessEnded(_) => "TestProcessEnded",
        GuestFrame::ExecEnded(_) => "ExecEnded", GuestFrame::Ask(_) => "Ask",
        GuestFrame::AskHost { .. } => "AskHost",
        GuestFrame::Watch(_) => "Watch", GuestFrame::Answered(_) => "Answered",
        GuestFrame::SchedulerStats { .. } => "SchedulerStats", GuestFrame::Probes(_) => "Probes",
        GuestFrame::Probed(_) => "Probed", GuestFrame::ProbesEnded(_) => "ProbesEnded",
        GuestFrame::Symbols(_) => "Symbols",
    } from [
        GuestFrame::Hello { release: "7".into(), cpus_online: 2 },
        GuestFrame::Phase(Phase::PoweringOff),
        GuestFrame::Log(Log { source: LogSource::Scheduler, text: "t".into() }),
        GuestFrame::StepFailed { step: "s".into(), reason: "r".into() },
        GuestFrame::ScxDisabled { reason: "r".into() },
        GuestFrame::SchedulerEnded { end: ProcessEnd::Signaled(9), expected: true },
        GuestFrame::Stimulus { what: "w".into(), iterations: 300 },
        GuestFrame::TestEnded(TestEnd::Error(vec!["e".into()])),
        GuestFrame::TestProcessEnded(ProcessEnd::Exited(1)),
        GuestFrame::ExecEnded(ProcessEnd::Exited(-1)),
        GuestFrame::Ask(ktstr_proto::guest::SchedulerRequest::Replace("s".into())),
        GuestFrame::AskHost { id: 1, request: HostRequest::Capture { name: "n".into() } },
        GuestFrame::Watch("w".into()),
        GuestFrame::Answered(Err("r".into())),
        GuestFrame::SchedulerStats { of: StatsOf::Question(1), stats: Ok("{}".into()) },
        GuestFrame::Probes(probe_account()), GuestFrame::Probed(vec![probe_event()]),
        GuestFrame::ProbesEnded(probe_end()),
        GuestFrame::Symbols(Ok(std::array::from_fn(|nth| (nth > 0).then_some(nth as u64)))),
    ];
    Recurrence {
        Recurrence::Again(_) => "Again", Recurrence::Otherwise(_) => "Otherwise",
        Recurrence::NotAgain => "NotAgain", Recurrence::NotRun(_) => "NotRun",
    } from [
        Recurrence::Again(Cause::Assertion), Recurrence::Otherwise(Cause::Assertion), Recurrence::NotAgain,
        Recurrence::NotRun("w".into()),
    ];
    SeenKind {
        SeenKind::Entry => "Entry", SeenKind::Return => "Return", SeenKind::Trace => "Trace",
        SeenKind::Exit => "Exit",
    } from [SeenKind::Entry, SeenKind::Return, SeenKind::Trace, SeenKind::Exit];
    HostRequest {
        HostRequest::Capture { .. } => "Capture", HostRequest::ReadMap { .. } => "ReadMap",
        HostRequest::WriteMap { .. } => "WriteMap", HostRequest::ReadKernel { .. } => "ReadKernel",
        HostRequest::WriteKernel { .. } => "WriteKernel",
    } from [
        HostRequest::Capture { name: "n".into() },
        HostRequest::ReadMap { map: "m".into(), path: "p".into() },
        HostRequest::WriteMap { map: "m".into(), path: "p".into(), value: -1 },
        HostRequest::ReadKernel {
            target: KernelTarget::TaskField { pid: 1, expected_start_time_ns: Some(2), field: "f".into() },
            width: KernelWidth::Bytes(16),
            cold: true,
        },
        HostRequest::WriteKernel { writes: vec![kernel_write()], cold: false },
    ];
    KernelTarget {
        KernelTarget::Symbol(_) => "Symbol", KernelTarget::Kva(_) => "Kva",
        KernelTarget::PerCpuField { .. } => "PerCpuField", KernelTarget::TaskField { .. } => "TaskField",
    } from [
        KernelTarget::Symbol("s".into()),
        KernelTarget::Kva(3),
        KernelTarget::PerCpuField { symbol: "s".into(), field: "f".into(), cpu: 1 },
        KernelTarget::TaskField { pid: -1, expected_start_time_ns: None, field: "f".into() },
    ];
    KernelWidth {
        KernelWidth::U32 => "U32", KernelWidth::U64 => "U64", KernelWidth::Bytes(_) => "Bytes",
    } from [KernelWidth::U32, KernelWidth::U64, KernelWidth::Bytes(300)];
    KernelValue {
        KernelValue::U32(_) => "U32", KernelValue::U64(_) => "U64", KernelValue::Bytes(_) => "Bytes",
        KernelValue::OrU32(_) => "OrU32",
    } from [
        KernelValue::U32(1), KernelValue::U64(1), KernelValue::Bytes(vec![1, 2]), KernelValue::OrU32(4),
    ];
    SchedulerRequest {
        SchedulerRequest::Attach => "Attach", SchedulerRequest::Detach => "Detach",
        SchedulerRequest::Restart => "Restart", SchedulerRequest::Replace(_) => "Replace",
        SchedulerRequest::PinMap(_) => "PinMap",
    } from [
        SchedulerRequest::Attach, SchedulerRequest::Detach, SchedulerRequest::Restart,
        SchedulerRequest::Replace("s".into()), SchedulerRequest::PinMap("m".into()),
    ];
    ErrorCode {
        ErrorCode::BadRequest => "BadRequest", ErrorCode::Unavailable => "Unavailable",
        ErrorCode::Infrastructure => "Infrastructure", ErrorCode::BadInput => "BadInput", ErrorCode::Jail => "Jail",
        ErrorCode::NotYet => "NotYet",
    } from [
        ErrorCode::BadRequest, ErrorCode::Unavailable, ErrorCode::Infrastructure, ErrorCode::BadInput, ErrorCode::Jail,
        ErrorCode::NotYet,
    ];
}

#[test]
fn every_encoding_is_the_pinned_one() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/pinned-v{VERSION}.txt"));
    let now = pinned().iter().fold(String::new(), |text, (name, bytes)| text + name + " " + bytes + "\n");
    if std::env::var_os("KTSTR_PIN").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let pinned = std::fs::read_to_string(&path).expect("the pins of this version");
    for (now, pinned) in now.lines().zip(pinned.lines()) {
        assert_eq!(now, pinned, "an encoding changed: bump VERSION and pin anew");
    }
    assert_eq!(now.lines().count(), pinned.lines().count());
}

//! What a report looks like, word for word where it matters.

use ktstr_proto::{
    RunId, Topology,
    monitor::MonitorSummary,
    run::AccelKind,
    verdict::{AssertResult, CgroupStats, DetailKind, Process, TimelineMark, TimelineSource},
};

use super::{text::coloured, *};

pub(crate) fn sample() -> RunReport {
    let mut result = AssertResult::fail(
        DetailKind::Gap,
        "tid 71 stuck 4210ms on cpu2 at +3000ms (threshold 3000ms) in cg_0",
    );
    result.stats.cgroups.push(CgroupStats {
        name: "cg_0".into(),
        workers: 2,
        cpus: 2,
        ..CgroupStats::default()
    });
    RunReport {
        run_id: RunId("r1".into()),
        run_dir: "/t/ktstr/runs/r1".into(),
        name: "demo".into(),
        outcome: Outcome::Fail,
        infrastructure: false,
        cause: Some(Cause::Assertion),
        result: Some(result),
        timeline: Vec::new(),
        captures: Vec::new(),
        assert: None,
        host: None,
        monitor: Some(MonitorSummary {
            samples: 50,
            events: vec![("SCX_EV_X".into(), 3)],
            ..MonitorSummary::default()
        }),
        notes: vec![
            "accelerator tcg, because this host's KVM cannot run a stock kernel at a useful speed".into(),
        ],
        scheduler_log: vec!["attached\x1b[2J".into()],
        console_tail: vec!["Linux version".into()],
        accel: Some(AccelKind::Tcg),
        accel_detail: "QEMU 10.0.2".into(),
        kernel: "7.2.12".into(),
        scheduler: "scx-ktstr".into(),
        topology: Topology { numa_nodes: 1, llcs: 2, cores: 2, threads: 1 },
        exit_status: None,
        seed: 7,
        replay:
            "KTSTR_KERNEL=7.2.12 KTSTR_ACCEL=tcg KTSTR_SEED=7 cargo nextest run -p ktstr -E 'test(=demo)'"
                .into(),
        host_ms: (3100, 9200),
        boot: Default::default(),
        allow_inconclusive: false,
        auto_repro: None,
    }
}

#[test]
fn a_failure_says_what_where_and_how_to_repeat_it() {
    let text = report(&sample());
    let expected = "\
ktstr_test 'demo' [sched=scx-ktstr] [topo=1n2l2c1t] FAILED: a check failed
  tid 71 stuck 4210ms on cpu2 at +3000ms (threshold 3000ms) in cg_0
  note: accelerator tcg, because this host's KVM cannot run a stock kernel at a
    useful speed
  kernel 7.2.12, tcg (QEMU 10.0.2), seed 7, boot 3.1 s, total 9.2 s
--- stats ---
2 workers, 0 cpus, 0 migrations, worst_spread=0.0%, worst_gap=0ms
  cg_0: workers=2 cpus=2 off_cpu=0.0-0.0% spread=0.0% gap=0ms migrations=0
    iter=0 run_delay=0us
--- monitor ---
samples=50 failed=0 max_imbalance=0.0 max_dsq_depth=0 (cpu0) stuck=none
events: SCX_EV_X=3
--- scheduler log ---
  attached
run directory: /t/ktstr/runs/r1
replay: KTSTR_KERNEL=7.2.12 KTSTR_ACCEL=tcg KTSTR_SEED=7 cargo nextest run -p ktstr -E 'test(=demo)'
";
    assert_eq!(text, expected);
}

#[test]
fn symbols_are_a_number_until_guest_and_monitor_differ() {
    use ktstr_proto::symbols::{SymbolDiffers, SymbolsCompared};
    let shown = |symbols| {
        let mut run = sample();
        run.monitor.as_mut().expect("a monitor").symbols = Some(symbols);
        let text = report(&run);
        let (_, rest) = text.split_once("events: SCX_EV_X=3\n").expect("the monitor's part");
        let (shown, _) = rest.split_once("---").expect("the next part");
        shown.to_owned()
    };
    let agreed = SymbolsCompared { agree: 23, ..SymbolsCompared::default() };
    assert_eq!(shown(agreed.clone()), "symbols: 23 lie where the guest says\n");
    let impossible = SymbolsCompared { impossible: Some("EPERM".into()), ..SymbolsCompared::default() };
    assert_eq!(shown(impossible), "symbols: the guest cannot say where they lie: EPERM\n");
    let differs = SymbolDiffers { symbol: "runqueues".into(), guest: 0x40, monitor: None };
    let untold = vec!["modules".into()];
    let text = shown(SymbolsCompared { differ: vec![differs], untold, ..agreed });
    let expected = "symbols: 23 lie where the guest says, of 1 it says nothing\n  \
                    the guest has `runqueues` at 0x40, its kernel file has no such symbol\n  \
                    what the monitor read in this run may come from the wrong places: either the\n";
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn a_failure_shows_what_happened_when_and_a_pass_does_not() {
    use ktstr_proto::stats::{PhaseBucket, PhaseCgroup, PhaseMonitor};
    let mut failed = sample();
    failed.timeline = (0..40)
        .map(|n| TimelineMark {
            at_ms: n * 100,
            source: TimelineSource::Stimulus,
            phase: None,
            what: format!("cpuset of cg_0 set to {n}"),
            iterations: 0,
        })
        .collect();
    let cgroup = PhaseCgroup {
        name: "cg_0".into(),
        workers: 2,
        iterations: 50,
        cpu_time_ns: 500_000_000,
        run_delay_ns: 90_000,
        pcount: 3,
        wakes: 9,
        median_wake_latency_ns: 12_000,
        p99_wake_latency_ns: 1_400_000,
        max_wake_latency_ns: 1_500_000,
        ..PhaseCgroup::default()
    };
    let phase = PhaseBucket {
        index: 1,
        label: "Step[0]".into(),
        start_ms: 10,
        end_ms: 900,
        hold: None,
        monitor: Some(PhaseMonitor {
            samples: 8,
            mean_nr_running: 2.25,
            max_imbalance_ratio: 3.0,
            max_local_dsq_depth: 1,
            events: vec![("SCX_EV_X".into(), 4)],
        }),
        ops: 3,
        cgroups: vec![cgroup],
    };
    if let Some(result) = &mut failed.result {
        result.stats.phases.push(phase);
    }
    let text = report(&failed);
    assert!(
        text.contains(
            "--- timeline ---\n  (35 of 40 marks and more: all are in timeline.jsonl)\n  +500ms cpuset"
        ),
        "{text}"
    );
    assert!(
        text.contains(
            "  Step[0] 10-900ms ops=3:\n    monitor: samples=8 running=2.2 max_imbalance=3.0 max_dsq_depth=1 \
             SCX_EV_X+4\n    cg_0: workers=2 iter=50 rate=100/cpu-s migrations=0 \
             run_delay=30us wake\n    p50=12us p99=1400us max=1500us\n"
        ),
        "{text}"
    );
    assert!(text.lines().filter(|l| !l.starts_with("replay")).all(|l| l.chars().count() <= 80), "{text}");
    let mut flooded = failed.clone();
    let says = |nth: i64| TimelineMark {
        at_ms: 4000 + nth,
        source: TimelineSource::Scheduler,
        what: format!("dump {nth}"),
        iterations: 0,
        phase: None,
    };
    flooded.timeline.extend((0..90).map(says));
    let text = report(&flooded);
    let end = "  +4001ms [scheduler] dump 1\n    [scheduler] … 87 more …\n  +4089ms [scheduler] dump 89\n";
    assert!(text.contains(end) && text.contains("+3900ms cpuset of cg_0"), "{text}");
    let passed = report(&RunReport { outcome: Outcome::Pass, cause: None, ..failed });
    assert!(!passed.contains("--- timeline ---"), "{passed}");
}

#[test]
fn colours_change_nothing_but_colours() {
    let text = report(&sample());
    let painted = coloured(&text);
    assert!(painted.contains("\x1b[1;31mFAILED\x1b[0m") && painted.contains("\x1b[1m--- stats ---\x1b[0m"));
    let stripped = ["\x1b[1;31m", "\x1b[1m", "\x1b[0m"].iter().fold(painted, |t, code| t.replace(code, ""));
    // The sample's log has an escape of its own, which is printed without its first byte.
    assert_eq!(stripped, text);
}

#[test]
fn infrastructure_is_never_called_a_scheduler_failure() {
    let cause = Cause::ProcessDied { process: Process::Vmm, how: "was killed by signal 9".into() };
    let text = report(&RunReport { infrastructure: true, cause: Some(cause), result: None, ..sample() });
    assert!(
        text.starts_with("ktstr_test 'demo' [sched=scx-ktstr] [topo=1n2l2c1t] FAILED: infrastructure\n"),
        "{text}"
    );
    assert!(text.contains("  ktstr-vmm was killed by signal 9\n"), "{text}");
    assert!(text.contains("--- console ---"), "{text}");
}

#[test]
fn a_pass_shows_figures_and_no_logs() {
    let text = report(&RunReport { outcome: Outcome::Pass, cause: None, ..sample() });
    assert!(text.contains("PASS\n") && text.contains("--- stats ---"), "{text}");
    assert!(!text.contains("scheduler log"), "{text}");
}

#[test]
fn prose_stays_within_the_width_and_keeps_its_line_ends() {
    let mut out = String::new();
    wrapped(&mut out, "  note: ", &format!("{}\nsecond", "word ".repeat(60)));
    assert!(out.lines().all(|l| l.len() <= WIDTH), "{out}");
    assert!(out.ends_with("    second\n"), "{out}");
}

#[test]
fn a_backtrace_is_cut_down_to_the_test() {
    let text = "   0: std::backtrace::x\n             at /r/std\n   1: core::panicking::panic_fmt\n             at /r/core\n   2: demo::my_test\n             at tests/demo.rs:3\n   3: ktstr::guest_entry::call\n   4: main\n";
    assert_eq!(trimmed_backtrace(text), ["   2: demo::my_test", "             at tests/demo.rs:3"]);
    assert_eq!(trimmed_backtrace("no frames"), ["no frames"]);
}

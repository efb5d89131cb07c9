//! Captures at a write: who wrote, what was there before and after, and the guest goes on.

use ktstr::prelude::*;
use ktstr_proto::{
    Accel,
    verdict::{CaptureMark, RunReport},
};
use serde_json::Value;

use crate::harness::{not_run, run, spec};

declare_scheduler!(WRITING, { name = "scx-ktstr", binary = "scx-ktstr", topology = (1, 1, 2, 1) });

/// A counter that the scheduler writes all the time, a word that its end writes once, and a name that is
/// nobody's. The time before the end is for the host to find and watch them.
#[ktstr_test(scheduler = WRITING, duration_s = 14, ignore)]
fn writing(ctx: &Ctx) -> Result<AssertResult> {
    let load = CgroupDef::named("load").workers(2).work_type(WorkType::YieldHeavy);
    let places = ["nr_selected", "scx_root->exit_kind", "no_such_variable"];
    let steps = vec![
        Step::hold(HoldSpec::frac(0.9)).extend_ops(places.map(Op::watch_snapshot)),
        Step::with_op(Op::DetachScheduler, HoldSpec::frac(0.1)),
    ];
    execute_scenario(ctx, Backdrop::new().push_cgroup(load), steps)
}

fn number(value: &Value, pointer: &str) -> u64 {
    let found = value.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}"));
    found.as_u64().unwrap_or_else(|| panic!("{pointer} is {found}"))
}

/// The captures of writes to `what`, in order.
fn written(report: &RunReport, what: &str) -> Vec<Value> {
    let marks = report.captures.iter().filter(|mark| mark.tag.starts_with("watched_"));
    let files = marks.filter_map(|mark| mark.file.as_ref().ok());
    let read = |file: &String| {
        let text = std::fs::read_to_string(report.run_dir.join(file)).expect("the capture is there");
        serde_json::from_str::<Value>(&text).expect("and it is JSON")
    };
    files.map(read).filter(|capture| capture["watched"]["what"] == what).collect()
}

/// The value of a global variable of the scheduler in a capture.
fn variable(capture: &Value, name: &str) -> u64 {
    let maps = capture.pointer("/bpf/maps").and_then(Value::as_array).expect("maps");
    let bss =
        maps.iter().find(|map| map["name"].as_str().is_some_and(|n| n.ends_with(".bss"))).expect(".bss");
    let text = bss.to_string();
    let value = text.split(&format!("\"{name}\":")).nth(1).expect("the variable");
    let digits: String =
        value.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

fn each_write_is_captured(accel: Accel) {
    let root = tempfile::tempdir().unwrap();
    let mut spec = spec("writing", accel);
    spec.runs_root = root.path().to_owned();
    let report = run(spec);
    if not_run(&report, accel) {
        return;
    }
    assert!(!report.infrastructure, "{:?}", report.cause);
    println!("{:#?}\n{:#?}", report.captures, report.notes);
    let counted = written(&report, "nr_selected");
    // The lab's emulated processor breaks on some of a nested guest's writes only.
    let lab = accel == Accel::Kvm && std::env::var_os("KTSTR_LAB").is_some();
    if lab && counted.is_empty() {
        return println!("NOT RUN: the lab's emulated SVM broke on none of the nested guest's writes");
    }
    assert!(!counted.is_empty(), "a counter that is written all the time was captured");
    assert!(counted.len() <= 16, "a busy place is watched no more after a while");
    assert!(number(&counted[0], "/watched/found") < number(&counted[0], "/watched/new"));
    for capture in &counted {
        let new = number(capture, "/watched/new");
        assert_eq!(variable(capture, "nr_selected"), new, "what was captured is what was written");
        assert!(number(capture, "/watched/cpu") < 2);
    }
    for pair in counted.windows(2) {
        assert_eq!(number(&pair[0], "/watched/new"), number(&pair[1], "/watched/old"), "nothing in between");
    }
    // Each write stops the guest. But two CPUs that write side by side may be told of as one stop, or as two of which
    // the second finds nothing new.
    let late =
        |mark: &CaptureMark| mark.why.ends_with("nr_selected (the guest went on before it was looked at)");
    let (first, newest) = (&counted[0], number(&counted[counted.len() - 1], "/watched/new"));
    let (more, stops) = (newest - number(first, "/watched/new"), counted.len() as u64 - 1);
    if !lab && !report.captures.iter().any(late) {
        assert!((stops.saturating_sub(1)..=2 * stops).contains(&more), "{more} in {stops} more stops");
    }
    let busy =
        report.monitor.iter().flat_map(|monitor| &monitor.busy_places).find(|p| p.what == "nr_selected");
    if let Some(busy) = busy {
        // Of two CPUs that stop at once, one is looked at later, and perhaps after all others.
        let nth = |capture: &&Value| number(capture, "/watched/nth") == 16;
        let sixteenth = counted.iter().find(nth).expect("it was captured");
        assert_eq!(sixteenth["watched"]["last"], true);
        assert_eq!((busy.captured, busy.last_captured), (16, Some(newest)));
        assert!(busy.last_read >= busy.last_captured, "a counter: {busy:?}");
        let told = |note: &String| note.starts_with("nr_selected was ");
        assert!(report.notes.iter().any(told), "{:?}", report.notes);
    } else {
        assert!(counted.len() < 16 || report.monitor.is_none(), "what became of it is told");
    }
    let vain = report.captures.iter().find(|mark| mark.why == "watch no_such_variable");
    let why = vain.expect("the name that is nobody's").file.as_ref().expect_err("cannot be watched");
    assert!(why.contains("no kernel symbol, BPF map or global variable `no_such_variable`"), "{why}");
    if accel == Accel::Kvm {
        // In the lab a capture takes so long that the scheduler may not live until it is detached.
        return;
    }
    let ends = written(&report, "scx_root->exit_kind");
    assert!(!ends.is_empty(), "the scheduler's end was written down");
    assert_eq!(number(&ends[0], "/watched/found"), 0, "SCX_EXIT_NONE");
    assert!(number(&ends[0], "/watched/new") > 0, "and why it ended");
    // The machine went on to its end.
    assert!(report.result.is_some(), "{:?}", report.cause);
}

#[test]
fn on_tcg_each_write_to_a_watched_place_is_captured() {
    each_write_is_captured(Accel::Tcg);
}

#[test]
fn on_kvm_each_write_to_a_watched_place_is_captured() {
    each_write_is_captured(Accel::Kvm);
}

#[test]
fn on_det_nothing_is_watched_and_the_report_says_why() {
    let report = run(spec("watching_under_det", Accel::Det));
    assert!(!report.infrastructure, "{:?}", report.cause);
    let mark = report.captures.iter().find(|mark| mark.why == "watch jiffies").expect("it is not forgotten");
    let why = mark.file.as_ref().expect_err("refused");
    assert!(why.contains("would not replay"), "{why}");
}

#[ktstr_test(llcs = 1, cores = 1, threads = 1, duration_s = 1, ignore)]
fn watching_under_det(ctx: &Ctx) -> Result<AssertResult> {
    let step = Step::with_defs(vec![CgroupDef::named("load").workers(1)], HoldSpec::frac(1.0));
    execute_scenario(ctx, Backdrop::new(), vec![step.push_op(Op::watch_snapshot("jiffies"))])
}

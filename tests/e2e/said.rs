//! What schedulers say of themselves: asked for before captures, a series of its own, and never an obstacle.

use std::fs;

use ktstr::prelude::*;
use ktstr_proto::{
    Accel,
    verdict::{Outcome, RunReport},
};

use crate::harness::{run, spec};

declare_scheduler!(TALKING, { name = "scx-ktstr", binary = "scx-ktstr", topology = (1, 1, 2, 1) });
declare_scheduler!(MUTE, {
    name = "scx-ktstr-mute",
    binary = "scx-ktstr",
    topology = (1, 1, 2, 1),
    sched_args = ["--mute"],
});

/// One that answers, one that hears and does not, and none.
#[ktstr_test(scheduler = TALKING, staged_schedulers = [MUTE], duration_s = 3, num_snapshots = 3, ignore)]
fn statistics(ctx: &Ctx) -> Result<AssertResult> {
    let load = Backdrop::new().push_cgroup(CgroupDef::named("load").workers(3).work_type(WorkType::bursty()));
    let after = vec![
        Op::capture_snapshot("talking"),
        Op::replace_scheduler("scx-ktstr-mute"),
        Op::capture_snapshot("mute"),
        Op::DetachScheduler,
        Op::capture_snapshot("none"),
    ];
    let steps = vec![Step::hold(HoldSpec::FULL), Step::new(after, HoldSpec::fixed(Duration::ZERO))];
    // What the workers got is another test's question.
    execute_scenario(ctx, load, steps).map(|_| AssertResult::pass())
}

/// The report of a run whose captures are all there.
fn captured(accel: Accel, snapshots: Option<u32>) -> RunReport {
    let mut spec = spec("statistics", accel);
    spec.snapshots = snapshots.unwrap_or(spec.snapshots);
    let report = run(spec);
    assert_eq!((report.outcome, &report.cause), (Outcome::Pass, &None), "{:?}", report.result);
    report
}

#[test]
fn the_scheduler_is_asked_before_captures_and_under_det_whether_or_not_they_are_taken() {
    let report = captured(Accel::Det, None);
    let vm = VmResult { report };
    let bridge = vm.snapshot_bridge();
    for entry in bridge.clone().drain_ordered_with_stats() {
        println!("{} at {} ms: {:?}", entry.tag, entry.elapsed_ms, entry.stats);
    }
    let series = vm.snapshots();
    assert_eq!(series.len(), 3);
    let said = series.stats_path("nr_running").field_u64("");
    assert_eq!(said.values().count(), 3, "{said:?}");
    let mut verdict = Verdict::new();
    said.strictly_increasing(&mut verdict);
    // It was asked before the machine stood.
    for (said, found) in said.points().iter().zip(series.var_u64("nr_running").points()) {
        let (said, found) = (said.value.as_ref().unwrap(), found.value.as_ref().unwrap());
        verdict.hold(said <= found, || format!("{said} were said, {found} found"));
    }
    let busy = series.host().cpu(0, "user");
    busy.nondecreasing(&mut verdict);
    verdict.hold(busy.values().any(|ns| *ns > 0), || format!("nothing ran: {busy:?}"));
    verdict.hold(series.monitor().is_some_and(|seen| seen.samples > 0), || "nobody looked on".into());
    let result = verdict.into_result();
    assert_eq!(result.outcome, Outcome::Pass, "{:?}", result.details);

    let of = |tag: &str| bridge.get(tag).unwrap().stats().map(drop);
    assert_eq!(of("talking"), Ok(()));
    for (tag, expected) in
        [("mute", MissingStatsReason::Late { limit_ms: 500 }), ("none", MissingStatsReason::NoScheduler)]
    {
        assert_eq!(of(tag), Err(SnapshotError::MissingStats { tag: tag.into(), why: expected }));
    }

    let trace = |report: &RunReport| {
        ["console.log", "guest.jsonl"].map(|name| fs::read(report.run_dir.join(name)).unwrap())
    };
    assert!(trace(&captured(Accel::Det, Some(0))) == trace(&vm.report), "the captures left a trace");
}

//! What a test asks of its host while it runs: numbers in the maps of a scheduler's programs, and captures.

use ktstr::prelude::*;
use ktstr_proto::{
    Accel,
    verdict::{Cause, Outcome},
};

use crate::harness::{run, spec};

declare_scheduler!(SCX, { name = "scx-ktstr", binary = "scx-ktstr", topology = (1, 1, 2, 1) });

/// A counter that this scheduler counts only with `--race`.
const COUNTER: &str = "nr_not_looked";
const PRESET: BpfMapWrite = BpfMapWrite::new(".bss", COUNTER, 4711);
const QUEUED: WatchBpfMap = WatchBpfMap::new(".bss", "nr_enqueued", Aggregate::ScalarCounter, "queued");
const ABI: WatchBpfMap = WatchBpfMap::new(".data", "ktstr_abi", Aggregate::Scalar, "abi");
const NOTHING: WatchBpfMap = WatchBpfMap::new(".bss", "nr_nothing", Aggregate::Scalar, "nothing");
/// What `--crash-after` does, from outside.
const CRASH: BpfMapWrite = BpfMapWrite::new(".bss", "crash", 1);
const NOWHERE: BpfMapWrite = BpfMapWrite::new(".bss", "nr_enqeued", 1);

#[ktstr_test(
    scheduler = SCX,
    bpf_map_write = PRESET,
    watch_bpf_maps = [QUEUED, ABI, NOTHING],
    duration_s = 2,
    post_vm = what_was_written_is_in_the_captures,
    ignore
)]
fn maps_from_outside(ctx: &Ctx) -> Result<AssertResult> {
    let preset = ctx.read_map(".bss", COUNTER)?.as_u64();
    let mut verdict = Verdict::new();
    claim!(verdict, preset.unwrap_or_default()).between(4711, 4711);
    let refused = ctx.write_map(".bss", "nr_enqeued", 1).unwrap_err().to_string();
    ensure!(refused.contains("nr_enqeued"), "{refused}");
    let refused = ctx.read_map("no_such_map", "x").unwrap_err().to_string();
    ensure!(refused.contains("main_bpf.bss"), "the maps there are: {refused}");
    let steps = vec![
        Step::new(
            vec![Op::capture_snapshot("counted"), Op::write_map(".bss", COUNTER, 7)],
            HoldSpec::frac(0.5),
        ),
        Step::new(
            vec![Op::capture_snapshot("counted"), Op::read_map("then", ".bss", COUNTER)],
            HoldSpec::frac(0.5),
        ),
    ];
    let load = Backdrop::new().push_cgroup(CgroupDef::named("load").workers(2));
    let mut result = execute_scenario(ctx, load, steps)?;
    result.merge(verdict.into_result());
    Ok(result)
}

fn what_was_written_is_in_the_captures(vm: &VmResult) -> Result<()> {
    let captures = vm.snapshot_bridge();
    let counted = |tag: &str| -> Result<u64> { Ok(captures.get(tag)?.var(COUNTER)?.as_u64()?) };
    ensure!(counted("counted")? == 4711, "before the step's write");
    ensure!(counted("counted_2")? == 7, "after it; a second one of a name has a number");
    let looked = captures.get("counted")?;
    ensure!(looked.mark().stood_us > 0, "the guest stood for it");
    let queued = vm.run_metric("main_bpf_queued").context("nr_enqueued was watched")?;
    ensure!(queued > 0.0, "a counter that was counting: {queued}");
    let abi = looked.var("ktstr_abi")?.as_u64()? as f64;
    ensure!(vm.run_metric("main_bpf_abi") == Some(abi), "a mean of equal values is the value");
    ensure!(vm.run_metric("main_bpf_nothing").is_none(), "what is not there is not 0");
    let remarks = vm.report.monitor.iter().flat_map(|monitor| &monitor.unavailable);
    ensure!(remarks.into_iter().any(|remark| remark.contains("nr_nothing")), "and it is said to be missing");
    ensure!(looked.at_ms() < captures.get("counted_2")?.at_ms());
    Ok(())
}

#[ktstr_test(scheduler = SCX, bpf_map_write = [CRASH], duration_s = 3, ignore)]
fn maps_crash_it(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

#[ktstr_test(scheduler = SCX, bpf_map_write = NOWHERE, duration_s = 1, ignore)]
fn maps_nowhere(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

#[test]
fn a_test_writes_and_reads_maps_and_captures_through_its_host() {
    let report = run(spec("maps_from_outside", Accel::Tcg));
    // A host without time may leave the workers' figures in doubt, never what was asked for here.
    let worst = report.outcome;
    assert!(matches!(worst, Outcome::Pass | Outcome::Inconclusive), "{}", ktstr::render::report(&report));
    let result = report.result.as_ref().unwrap();
    let then = format!("then: {COUNTER} in .bss is 7");
    assert!(result.details.iter().any(|detail| detail.message == then), "{:?}", result.details);
    what_was_written_is_in_the_captures(&VmResult { report: report.clone() }).unwrap();
    assert!(report.timeline.iter().any(|mark| mark.what.contains("state captured as counted")));
}

#[test]
fn a_scheduler_does_what_the_host_wrote_into_it() {
    let report = run(spec("maps_crash_it", Accel::Tcg));
    assert_eq!(report.outcome, Outcome::Fail, "{}", ktstr::render::report(&report));
    let said = format!("{:?}", report.cause);
    assert!(matches!(report.cause, Some(Cause::SchedulerError { .. })), "{said}");
    assert!(said.contains("crash requested"), "{said}");
}

#[test]
fn a_number_for_nobody_fails_before_the_workers_start() {
    let report = run(spec("maps_nowhere", Accel::Tcg));
    assert_eq!(report.outcome, Outcome::Fail, "{}", ktstr::render::report(&report));
    let text = ktstr::render::report(&report);
    assert!(text.contains("bpf_map_write") && text.contains("nr_enqeued"), "{text}");
}

#[test]
fn under_det_nobody_writes() {
    let report = run(spec("maps_crash_it", Accel::Det));
    assert_eq!(report.outcome, Outcome::NotRun, "{}", ktstr::render::report(&report));
}

//! What a test's attributes ask for, with the guest's kernel as witness.

use std::{fs, thread};

use ktstr::prelude::*;
use ktstr_proto::{
    Accel,
    verdict::{Outcome, RunReport},
};

use crate::{
    harness::{run, spec},
    operations::{look, stop, text},
};

declare_scheduler!(ASKED, {
    name = "scx-ktstr",
    binary = "scx-ktstr",
    topology = (1, 1, 1, 1),
    sched_args = ["--slice-us", "3000"],
    cgroup_parent = "/not/there",
});

/// Its figure is the size of a file that the test asked for.
const SIZE: Payload = Payload::binary("size", "sh")
    .with_default_args(&["-c", "echo '{\"bytes\": '$(wc -c < /include-files/prelude.rs)'}'"])
    .with_output(PayloadOutput::Json)
    .with_checks(&[MetricCheck::exists("bytes")]);

/// Ends as nothing else does.
const SEVEN: Payload = Payload::binary("seven", "sh")
    .with_default_args(&["-c", "exit 7"])
    .with_checks(&[MetricCheck::exit_code_eq(7)]);

const INCLUDED: &str = include_str!("../../src/prelude.rs");

fn enabled() -> Result<u64> {
    ensure!(text("/sys/kernel/sched_ext/state")? == "enabled", "no scheduler is enabled");
    Ok(text("/sys/kernel/sched_ext/enable_seq")?.parse()?)
}

#[ktstr_test(
    scheduler = ASKED,
    cores = 2,
    threads = 2,
    requires_smt,
    memory_mib = 1024,
    extra_sched_args = ["--slice-us", "7000"],
    workloads = [SIZE, SEVEN],
    extra_include_files = ["src/prelude.rs"],
    workload_root_cgroup = "/own.slice/of-the-test",
    survives_storm,
    cleanup_budget_ms = 900,
    duration_s = 1,
    ignore
)]
fn attributes_of_one_test(ctx: &Ctx) -> Result<AssertResult> {
    let pid = ctx.sched_pid().context("there is no scheduler")?;
    let told = fs::read(format!("/proc/{pid}/cmdline"))?;
    let words: Vec<_> = told.split(|byte| *byte == 0).skip(1).map(String::from_utf8_lossy).collect();
    ensure!(words.join(" ").trim() == "--slice-us 3000 --slice-us 7000", "it was told {words:?}");
    let slice = ctx.read_map(".rodata", "slice_ns")?;
    ensure!(slice.as_u64() == Some(7_000_000), "what stands last does not hold: {slice}");

    ensure!(text("/include-files/prelude.rs")? == INCLUDED.trim(), "the file is another");
    let siblings = text("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")?;
    ensure!(siblings == "0-1", "siblings {siblings}");
    let total = text("/proc/meminfo")?;
    let total: u64 = total.split_whitespace().nth(1).context("MemTotal")?.parse()?;
    // The kernel keeps some of it for itself.
    ensure!((768 << 10..=1024 << 10).contains(&total), "{total} KiB");

    let before = enabled()?;
    let backdrop = Backdrop::from_cgroups(vec![CgroupDef::named("cg_0").workers(1)]);
    let ops = [
        stop("placed").to_vec(),
        vec![Op::offline_cpu(3), Op::online_cpu(3), Op::offline_cpu(2), Op::online_cpu(2)],
    ];
    let result = thread::scope(|scope| {
        let scenario =
            scope.spawn(|| execute_scenario(ctx, backdrop, vec![Step::new(ops.concat(), HoldSpec::FULL)]));
        let seen = look(&[("placed", &|| {
            let pids = ctx.cgroups.processes("cg_0")?;
            let pid = pids.first().context("cg_0 is empty")?;
            let cgroup = text(format!("/proc/{pid}/cgroup"))?;
            Ok(ensure!(cgroup == "0::/own.slice/of-the-test/cg_0", "the worker is in {cgroup}"))
        })]);
        let result = scenario.join().map_err(|_| anyhow!("the scenario panicked"))?;
        // What the scenario says of its end goes first: it may be why there was nothing to see.
        let result = result?;
        seen.map(|()| result)
    })?;
    ensure!(enabled()? == before, "it did not stay attached");
    Ok(result)
}

/// The test function returned, and what it said was true; what its workers went through is the host's affair.
fn returned(name: &str) -> RunReport {
    let report = run(spec(name, Accel::Tcg));
    let errors: Vec<_> = report.result.iter().flat_map(|result| &result.details).collect();
    let settled = [Outcome::Pass, Outcome::Inconclusive].contains(&report.outcome);
    assert!(!report.infrastructure && settled, "{:?}: {errors:#?}", report.cause);
    assert!(report.result.is_some(), "it did not return: {:?}", report.cause);
    report
}

#[test]
fn attributes_of_a_test_reach_its_guest() {
    let report = returned("attributes_of_one_test");
    let stats = &report.result.as_ref().expect("it returned").stats;
    let size = stats.payload("size").expect("it ran beside the scenario");
    assert_eq!((size.exit_code, size.get("bytes")), (Some(0), Some(INCLUDED.len() as f64)));
    assert_eq!(stats.payload("seven").expect("so did this").exit_code, Some(7));
    let asked = fs::read(report.run_dir.join("spec.json")).expect("what was asked is recorded");
    let asked: serde_json::Value = serde_json::from_slice(&asked).expect("as JSON");
    assert_eq!(asked["cleanup_budget_ms"], 900);
}

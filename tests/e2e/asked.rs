//! What a test's attributes, a cgroup's limits and a worker's memory policy ask for, with the guest's kernel as
//! witness.

use std::{collections::BTreeSet, fs, thread};

use ktstr::prelude::*;
use ktstr_proto::{
    Accel,
    verdict::{Outcome, RunReport},
};

use crate::{
    harness::{run, spec},
    operations::{SLEEPER, look, stop, text},
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

#[ktstr_test(numa_nodes = 2, llcs = 2, cores = 1, threads = 1, memory_mib = 1024, duration_s = 1, ignore)]
fn memory_and_limits(ctx: &Ctx) -> Result<AssertResult> {
    let one = |name: &str| CgroupDef::named(name).workers(1).work_type(WorkType::bursty());
    let both = || BTreeSet::from([0, 1]);
    // Each with the words of `/proc/PID/numa_maps` (`mpol_to_str` in mm/mempolicy.c).
    let policies = [
        (one("prefer").mem_policy(MemPolicy::Preferred(1)), "prefer:1"),
        (one("interleave").mem_policy(MemPolicy::Interleave(both())), "interleave:0-1"),
        (one("local").mem_policy(MemPolicy::Local), "local"),
        (one("many").mem_policy(MemPolicy::PreferredMany(both())), "prefer (many):0-1"),
        (one("weighted").mem_policy(MemPolicy::WeightedInterleave(both())), "weighted interleave:0-1"),
        (
            one("static").mem_policy(MemPolicy::Bind([1].into())).mpol_flags(MpolFlags::STATIC_NODES),
            "bind=static:1",
        ),
        (
            // The first of the nodes that the cgroup may use.
            one("relative")
                .cpuset_mems([1])
                .mem_policy(MemPolicy::Bind([0].into()))
                .mpol_flags(MpolFlags::RELATIVE_NODES),
            "bind=relative:1",
        ),
        (
            one("balancing").mem_policy(MemPolicy::Bind(both())).mpol_flags(MpolFlags::NUMA_BALANCING),
            "bind=balancing:0-1",
        ),
    ];
    let expected: Vec<_> = policies.iter().map(|(def, words)| (def.name.clone(), *words)).collect();
    let mut defs: Vec<_> = policies.into_iter().map(|(def, _)| def).collect();
    defs.push(
        one("limited").memory_high(96 << 20).memory_low(8 << 20).memory_swap_max(16 << 20).io_weight(250),
    );
    defs.push(one("beside").workload(&SLEEPER));

    thread::scope(|scope| {
        let scenario = scope.spawn(|| {
            let step = Step::new(stop("settled").to_vec(), HoldSpec::FULL);
            execute_scenario(ctx, Backdrop::from_cgroups(defs), vec![step])
        });
        let seen = look(&[("settled", &|| settled(ctx, &expected))]);
        let result = scenario.join().map_err(|_| anyhow!("the scenario panicked"))??;
        seen.map(|()| result)
    })
}

/// Everything that is wrong, since a boot is not cheap.
fn settled(ctx: &Ctx, expected: &[(String, &str)]) -> Result<()> {
    let mut wrong = Vec::new();
    for (cgroup, words) in expected {
        let pid = *ctx.cgroups.processes(cgroup)?.first().with_context(|| format!("{cgroup} is empty"))?;
        let maps = text(format!("/proc/{pid}/numa_maps"))?;
        let stack = maps.lines().find(|line| line.contains(" stack")).context("no stack")?;
        let policy = stack.split_once(' ').map_or("", |(_, rest)| rest);
        if !policy.starts_with(&format!("{words} ")) {
            wrong.push(format!("{cgroup}: {words} is not what {stack} says"));
        }
    }
    let file = |cgroup: &str, name: &str| text(ctx.cgroups.path(cgroup).join(name));
    for (cgroup, name, wanted) in [
        ("relative", "cpuset.mems", "1"),
        ("limited", "memory.high", "100663296"),
        ("limited", "memory.low", "8388608"),
        ("limited", "memory.swap.max", "16777216"),
        ("limited", "io.weight", "default 250"),
    ] {
        let is = file(cgroup, name)?;
        if is != wanted {
            wrong.push(format!("{name} of {cgroup} is {is}, not {wanted}"));
        }
    }
    let pid = *ctx.cgroups.processes("relative")?.first().context("relative is empty")?;
    let status = text(format!("/proc/{pid}/status"))?;
    if !status.lines().any(|line| line == "Mems_allowed_list:\t1") {
        wrong.push(format!("memory of relative: {status}"));
    }
    let command = |pid: &u32| text(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let beside: Vec<_> = ctx.cgroups.processes("beside")?.iter().map(command).collect();
    if beside.len() != 2 || !beside.iter().any(|command| command.contains("sleep")) {
        wrong.push(format!("beside the worker: {beside:?}"));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
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

#[test]
fn memory_policies_and_limits_are_the_kernels() {
    returned("memory_and_limits");
}

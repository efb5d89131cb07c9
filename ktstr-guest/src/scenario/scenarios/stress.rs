//! Many cgroups, many workers, rapid change.

use std::time::Duration;

use super::{
    CgroupDef, Step, doing, execute_defs, execute_scenario, execute_scenario_with, execute_steps_with, pair,
    scenarios, spin,
};
use ktstr_proto::verdict::Assert;

use crate::{
    scenario::{Backdrop, CpusetSpec, Ctx, HoldSpec, Op},
    work::WorkType,
};

/// One kind of work in one cgroup, ordinary work in another.
fn beside(ctx: &Ctx, work: WorkType, workers: u32) -> anyhow::Result<ktstr_proto::verdict::AssertResult> {
    let half = (ctx.topo.total_cpus() / 2).max(1);
    Ok(execute_defs(ctx, vec![doing("stress", workers, work), spin("spin", half)])?)
}

/// As [`beside`], for work that makes its own share unequal.
fn beside_unfair(ctx: &Ctx, work: WorkType) -> anyhow::Result<ktstr_proto::verdict::AssertResult> {
    let cpus = ctx.topo.total_cpus();
    let defs = vec![doing("stress", cpus, work), spin("spin", (cpus / 2).max(1))];
    let assert = Assert { max_spread_pct: None, ..ctx.assert };
    Ok(execute_steps_with(ctx, vec![Step::with_defs(defs, HoldSpec::FULL)], Some(&assert))?)
}

/// Cgroups with as different work as there is.
fn variety(ctx: &Ctx) -> Vec<CgroupDef> {
    let cpus = ctx.topo.total_cpus();
    vec![
        spin("spin", cpus),
        doing("yield", 2, WorkType::YieldHeavy),
        doing("bursty", cpus, WorkType::bursty()),
        doing("pipe", 2, WorkType::pipe_io()),
        doing("io", 1, WorkType::IoSyncWrite),
    ]
}

/// How long a short sleeper may be kept waiting among many.
const CONTENDED_GAP_MS: u64 = 1500;

scenarios! { "stress":
    /// Can the scheduler keep one cgroup on each CPU apart?
    fn cgroup_per_cpu(ctx) {
        let cpus = ctx.topo.all_cpus().iter().take(64);
        let defs = cpus.map(|cpu| spin(&format!("cg_{cpu}"), 1).cpuset(CpusetSpec::exact([*cpu])));
        Ok(execute_defs(ctx, defs.collect())?)
    }

    /// Can the identifiers of removed cgroups be used again and again?
    fn cgroup_exhaust_reuse(ctx) {
        let names: Vec<String> = (0..16).map(|i| format!("reuse_{i}")).collect();
        let mut ops: Vec<Op> = names.iter().map(Op::add_cgroup).collect();
        ops.extend(names.iter().map(Op::remove_cgroup));
        let step = Step::new(ops, HoldSpec::loop_at(Duration::from_millis(50)));
        // Who makes the cgroups weighs as much as all workers of a cgroup, on one CPU.
        let loose = ctx.assert.max_spread_pct(75.0);
        Ok(execute_scenario_with(ctx, Backdrop::from_cgroups(pair(ctx)), vec![step], Some(&loose))?)
    }

    /// Is no worker left waiting long when many short sleepers contend for the queues?
    fn cgroup_dsq_contention(ctx) {
        let cpus = ctx.topo.total_cpus();
        let defs = (0..4).map(|i| doing(&format!("cg_{i}"), 2 * cpus, WorkType::idle_churn()));
        let limit_ms = ctx.assert.max_gap_ms.map_or(CONTENDED_GAP_MS, |limit| limit.min(CONTENDED_GAP_MS));
        let step = Step::with_defs(defs.collect(), HoldSpec::FULL);
        Ok(execute_steps_with(ctx, vec![step], Some(&ctx.assert.max_gap_ms(limit_ms)))?)
    }

    /// Do spinning, yielding, bursty, piping and writing workers all make progress together?
    fn cgroup_workload_variety(ctx) {
        Ok(execute_defs(ctx, variety(ctx))?)
    }

    /// Does a variety of work stay within the cpusets it is given?
    #[needs(cpus = 2)]
    fn cgroup_cpuset_workload_variety(ctx) {
        let defs = variety(ctx).into_iter().zip(0..).map(|(def, i)| def.cpuset(CpusetSpec::disjoint(i % 2, 2)));
        Ok(execute_defs(ctx, defs.collect())?)
    }

    /// Does a variety of work survive cgroups that come and go beside it?
    fn cgroup_dynamic_workload_variety(ctx) {
        let steps = vec![
            Step::with_defs(vec![doing("late_bursty", 2, WorkType::bursty())], HoldSpec::frac(0.5)),
            Step::with_defs(vec![doing("late_mixed", 2, WorkType::Mixed)], HoldSpec::frac(0.5)),
        ];
        Ok(execute_scenario(ctx, Backdrop::from_cgroups(variety(ctx)), steps)?)
    }

    /// Do cpusets that jump between last-level caches many times a second lose no task?
    #[needs(llcs = 2)]
    fn cgroup_cpuset_cross_llc_race(ctx) {
        let llc = ctx.topo.cpus_in_llc(0).len() as u32;
        let backdrop = Backdrop::from_cgroups(vec![
            spin("cg_0", llc).cpuset(CpusetSpec::llc(0)),
            spin("cg_1", llc).cpuset(CpusetSpec::llc(1)),
        ]);
        let race = vec![Op::swap_cpusets("cg_0", "cg_1")];
        let step = Step::new(race, HoldSpec::loop_at(Duration::from_millis(50)));
        Ok(execute_scenario(ctx, backdrop, vec![step])?)
    }

    /// Do two cgroups of 32 workers each leave nobody behind?
    fn cgroup_oversubscribed(ctx) {
        Ok(execute_defs(ctx, vec![doing("cg_0", 32, WorkType::Mixed), doing("cg_1", 32, WorkType::Mixed)])?)
    }

    /// Does the scheduler survive tasks that are born and die all the time?
    fn fork_exit_churn(ctx) {
        beside(ctx, WorkType::ForkExit, ctx.topo.total_cpus())
    }

    /// Do workers whose nice value sweeps over its whole range make progress?
    fn nice_sweep(ctx) {
        beside_unfair(ctx, WorkType::NiceSweep)
    }

    /// Do workers that change their own CPU mask all the time make progress?
    fn affinity_churn(ctx) {
        beside(ctx, WorkType::affinity_churn(), ctx.topo.total_cpus())
    }

    /// Do workers that change their scheduling policy all the time make progress?
    fn policy_churn(ctx) {
        beside_unfair(ctx, WorkType::policy_churn())
    }

    /// Do workers that fault pages in all the time make progress?
    fn page_fault_churn(ctx) {
        beside(ctx, WorkType::page_fault_churn(), ctx.topo.total_cpus())
    }

    /// Do a few workers that share one lock pass it on?
    fn mutex_contention_light(ctx) {
        beside(ctx, WorkType::mutex_contention(), 4)
    }

    /// Do many workers that share locks pass them on while the CPUs are busy?
    fn mutex_contention_heavy(ctx) {
        beside(ctx, WorkType::mutex_contention(), 4 * ctx.topo.total_cpus().max(2))
    }

    /// Do waiters that are all woken at once all get their turn?
    fn thundering_herd(ctx) {
        beside(ctx, WorkType::thundering_herd(), 8)
    }

    /// Do workers that signal each other all the time make progress?
    fn signal_storm(ctx) {
        beside(ctx, WorkType::signal_storm(), 2)
    }
}

//! The least any scheduler must do: share CPUs between cgroups, policies and kinds of work.

use super::{
    CgroupDef, DUE, ONLY, Step, WorkSpec, compared, doing, execute_defs, execute_scenario, execute_steps,
    execute_steps_with, half_of_due, machine, pair, promptly, scenarios, spin,
};
use crate::{
    attributes::SchedPolicy,
    scenario::{Backdrop, CpusetSpec, HoldSpec, Op},
    work::WorkType,
};

/// A cgroup for each policy but the last, beside ordinary ones.
fn with_policy(ctx: &super::Ctx, policy: SchedPolicy) -> anyhow::Result<ktstr_proto::verdict::AssertResult> {
    let half = (ctx.topo.total_cpus() / 2).max(1);
    let work = if policy.is_fair() { WorkType::SpinWait } else { WorkType::idle_churn() };
    let special = doing("special", half, work).sched_policy(policy);
    Ok(execute_defs(ctx, vec![spin("normal", half), special])?)
}

scenarios! { "basic":
    /// Do two cgroups of spinning workers share all CPUs without starvation while nothing changes?
    fn cgroup_steady(ctx) {
        let each = ctx.workers_per_cgroup;
        let result = execute_defs(ctx, vec![ctx.cgroup_def("cg_0"), ctx.cgroup_def("cg_1")])?;
        compared(ctx, result, |usage| {
            for cgroup in ["cg_0", "cg_1"] {
                usage.at_least(ONLY, &[cgroup], half_of_due(ctx, each, 2 * each, 2), DUE);
            }
        })
    }

    /// Do workers stay on the last-level cache that their cgroup's cpuset gives them?
    #[needs(llcs = 2)]
    fn cgroup_cpuset_llc_steady(ctx) {
        let each = ctx.topo.cpus_in_llc(0).len() as u32;
        Ok(execute_defs(ctx, vec![
            spin("cg_0", each).cpuset(CpusetSpec::llc(0)),
            spin("cg_1", each).cpuset(CpusetSpec::llc(1)),
        ])?)
    }

    /// Do workers stay within cpusets whose border runs through a last-level cache?
    #[needs(cpus = 4)]
    fn cgroup_cpuset_cross_llc_steady(ctx) {
        let all = ctx.topo.all_cpus();
        // One CPU of the first cache goes to the second cgroup.
        let border = (ctx.topo.cpus_in_llc(0).len().max(2) - 1).min(all.len() - 1);
        let (low, high) = all.split_at(border);
        Ok(execute_defs(ctx, vec![
            spin("cg_0", low.len() as u32).cpuset(CpusetSpec::exact(low.iter().copied())),
            spin("cg_1", high.len() as u32).cpuset(CpusetSpec::exact(high.iter().copied())),
        ])?)
    }

    /// Do cgroups get their share while as many workers as CPUs run outside of all cgroups?
    fn host_cgroup_contention(ctx) {
        let cpus = ctx.topo.total_cpus();
        let backdrop = Backdrop::from_cgroups(vec![spin("cg_0", cpus), spin("cg_1", cpus)])
            .push_op(Op::spawn_host(WorkSpec::default().workers(cpus)));
        let result = execute_scenario(ctx, backdrop, vec![Step::hold(HoldSpec::FULL)])?;
        compared(ctx, result, |usage| {
            // To the kernel each worker outside weighs as much as a whole cgroup.
            let floor = machine(ctx) / f64::from(cpus + 2) / 2.0;
            for cgroup in ["cg_0", "cg_1"] {
                usage.at_least(ONLY, &[cgroup], floor, DUE);
            }
        })
    }

    /// Do normal, batch, idle and short real-time workers all make progress beside each other?
    fn sched_mixed(ctx) {
        let mixed = |name: &str| {
            CgroupDef::named(name)
                .work(WorkSpec::new(WorkType::SpinWait).workers(1))
                .work(WorkSpec::new(WorkType::SpinWait).workers(1).sched_policy(SchedPolicy::Batch))
                .work(WorkSpec::new(WorkType::idle_churn()).workers(1).sched_policy(SchedPolicy::Idle))
                .work(WorkSpec::new(WorkType::idle_churn()).workers(1).sched_policy(SchedPolicy::Fifo(1)))
        };
        Ok(execute_defs(ctx, vec![mixed("cg_0"), mixed("cg_1")])?)
    }

    /// Does the scheduler survive a few workers that do nothing but yield?
    fn crash_light(ctx) {
        Ok(execute_defs(ctx, vec![doing("cg_0", 4, WorkType::YieldHeavy)])?)
    }

    /// Are partners that wake each other through pipes run promptly beside spinning workers?
    fn cgroup_pipe_io(ctx) {
        let cpus = ctx.topo.total_cpus();
        let defs = vec![doing("pipes", cpus, WorkType::pipe_io()), spin("spinners", (cpus / 2).max(1))];
        Ok(execute_steps_with(ctx, vec![Step::with_defs(defs, HoldSpec::FULL)], Some(&promptly(ctx)))?)
    }

    /// Do batch workers share fairly with ordinary ones?
    fn sched_batch(ctx) {
        let cpus = ctx.topo.total_cpus();
        let batch = spin("special", cpus).sched_policy(SchedPolicy::Batch);
        let result = execute_defs(ctx, vec![spin("normal", cpus), batch])?;
        compared(ctx, result, |usage| {
            for cgroup in ["normal", "special"] {
                usage.at_least(ONLY, &[cgroup], half_of_due(ctx, cpus, 2 * cpus, 2), DUE);
            }
        })
    }

    /// Do idle-policy workers that have CPUs to themselves make progress?
    #[needs(cpus = 2)]
    fn sched_idle(ctx) {
        with_policy(ctx, SchedPolicy::Idle)
    }

    /// Do ordinary workers keep going while short FIFO work comes in between?
    fn sched_fifo(ctx) {
        with_policy(ctx, SchedPolicy::Fifo(1))
    }

    /// Do ordinary workers keep going while short round-robin work comes in between?
    fn sched_rr(ctx) {
        with_policy(ctx, SchedPolicy::RoundRobin(1))
    }

    /// Do heavy, bursty and writing workers each get what they need from the same CPUs?
    fn mixed_workloads(ctx) {
        let cpus = ctx.topo.total_cpus();
        let result = execute_defs(ctx, vec![
            spin("heavy", cpus),
            doing("bursty", cpus, WorkType::bursty()),
            doing("io", 2, WorkType::IoSyncWrite),
        ])?;
        compared(ctx, result, |usage| {
            usage.at_least(ONLY, &["heavy"], machine(ctx) / 6.0, DUE);
            // Bursts take a third of the time at most, and longer where others run in between.
            usage.at_least(ONLY, &["bursty"], machine(ctx) / 16.0, "bursts of 50ms in every 150ms or longer");
        })
    }

    /// Is every runnable task run within the limit while all CPUs are busy?
    fn stall_detect(ctx) {
        Ok(execute_steps(ctx, vec![Step::with_defs(pair(ctx), HoldSpec::FULL)])?)
    }
}

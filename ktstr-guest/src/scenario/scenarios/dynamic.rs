//! Cgroups and CPUs that come and go while workers run.

use std::time::Duration;

use ktstr_proto::stats::Phase;

use super::{
    DUE, Setup, Step, compared, doing, execute_scenario, execute_steps, half_of_due, machine, pair,
    scenarios, spin,
};
use crate::{
    scenario::{Backdrop, CgroupDef, CpusetSpec, HoldSpec, Op},
    work::WorkType,
};

scenarios! { "dynamic":
    /// Do running cgroups keep their share when others are added?
    fn cgroup_add_midrun(ctx) {
        let each = ctx.workers_per_cgroup;
        let backdrop = Backdrop::from_cgroups(vec![spin("cg_0", each), spin("cg_1", each)]);
        let late = vec![spin("cg_2", each), spin("cg_3", each)];
        let steps = vec![Step::hold(HoldSpec::frac(0.5)), Step::with_defs(late, HoldSpec::frac(0.5))];
        let result = execute_scenario(ctx, backdrop, steps)?;
        compared(ctx, result, |usage| {
            for cgroup in ["cg_0", "cg_1"] {
                usage.at_least(Phase::step(0), &[cgroup], half_of_due(ctx, each, 2 * each, 2), DUE);
            }
            for cgroup in ["cg_0", "cg_1", "cg_2", "cg_3"] {
                usage.at_least(Phase::step(1), &[cgroup], half_of_due(ctx, each, 4 * each, 4), DUE);
            }
        })
    }

    /// Do the remaining cgroups go on undisturbed when some are removed?
    fn cgroup_remove_midrun(ctx) {
        let each = ctx.workers_per_cgroup;
        let all = (0..4).map(|i| spin(&format!("cg_{i}"), each)).collect();
        let remove = vec![Op::remove_cgroup("cg_2"), Op::remove_cgroup("cg_3")];
        let steps = vec![Step::hold(HoldSpec::frac(0.5)), Step::new(remove, HoldSpec::frac(0.5))];
        let result = execute_scenario(ctx, Backdrop::from_cgroups(all), steps)?;
        compared(ctx, result, |usage| {
            for cgroup in ["cg_0", "cg_1"] {
                let Some(before) = usage.cpus(Phase::step(0), cgroup) else { continue };
                let why = format!("three quarters of the {before:.2} it had before");
                usage.at_least(Phase::step(1), &[cgroup], 0.75 * before, &why);
                usage.at_least(Phase::step(1), &[cgroup], half_of_due(ctx, each, 2 * each, 2), DUE);
            }
        })
    }

    /// Does the scheduler survive cgroups that are made, filled and removed many times a second?
    fn cgroup_rapid_churn(ctx) {
        let backdrop = Backdrop::from_cgroups(pair(ctx));
        let churn = vec![
            Op::add_cgroup_def(spin("churn", 2)),
            Op::add_cgroup("empty"),
            Op::remove_cgroup("churn"),
            Op::remove_cgroup("empty"),
        ];
        let step = Step::new(churn, HoldSpec::loop_at(Duration::from_millis(100)));
        Ok(execute_scenario(ctx, backdrop, vec![step])?)
    }

    /// Do cpusets hold when cgroups that bring their own come and go?
    #[needs(cpus = 2)]
    fn cgroup_cpuset_add_remove(ctx) {
        let half = (ctx.topo.total_cpus() / 2).max(1);
        let backdrop = Backdrop::from_cgroups(vec![spin("cg_0", half).cpuset(CpusetSpec::disjoint(0, 2))]);
        let late = || vec![spin("cg_1", half).cpuset(CpusetSpec::disjoint(1, 2))];
        let steps = vec![
            Step::hold(HoldSpec::frac(0.25)),
            Step::with_defs(late(), HoldSpec::frac(0.25)),
            Step::hold(HoldSpec::frac(0.25)),
            Step::with_defs(late(), HoldSpec::frac(0.25)),
        ];
        Ok(execute_scenario(ctx, backdrop, steps)?)
    }

    /// Does a cgroup that is added while the load is uneven get its share at once?
    fn cgroup_add_during_imbalance(ctx) {
        let cpus = ctx.topo.total_cpus();
        let backdrop =
            Backdrop::from_cgroups(vec![spin("heavy", 2 * cpus), doing("light", 1, WorkType::bursty())]);
        let late = Setup::with_factory(|ctx| vec![ctx.cgroup_def("late")]);
        let steps = vec![
            Step::hold(HoldSpec::frac(0.4)),
            Step::hold(HoldSpec::frac(0.6)).set_setup(late),
        ];
        let each = ctx.workers_per_cgroup;
        let result = execute_scenario(ctx, backdrop, steps)?;
        compared(ctx, result, |usage| {
            let floor = half_of_due(ctx, each, 2 * cpus + 1 + each, 3);
            usage.at_least(Phase::step(1), &["late"], floor, DUE);
        })
    }

    /// Do workers leave CPUs that go offline and come back to them?
    #[needs(cpus = 2)]
    fn cpu_hotplug(ctx) {
        let last = ctx.topo.all_cpus().last().copied().unwrap_or(1);
        let backdrop = Backdrop::from_cgroups(pair(ctx));
        let third = HoldSpec::frac(1.0 / 3.0);
        let steps = vec![
            Step::hold(third),
            Step::with_op(Op::offline_cpu(last), third),
            Step::with_op(Op::online_cpu(last), third),
        ];
        let result = execute_scenario(ctx, backdrop, steps)?;
        compared(ctx, result, |usage| {
            let (all, both) = (machine(ctx), ["cg_0", "cg_1"]);
            usage.at_most(Phase::step(1), &both, all - 0.9, "a CPU is offline");
            usage.at_least(Phase::step(2), &both, all - 0.5, "half of the CPU that came back");
        })
    }

    /// Do workers that were frozen go on at once when they are thawed?
    fn stall_recovery(ctx) {
        let backdrop = Backdrop::from_cgroups(pair(ctx));
        let third = HoldSpec::frac(1.0 / 3.0);
        let steps = vec![
            Step::hold(third),
            Step::with_op(Op::freeze_cgroup("cg_0"), third),
            Step::with_op(Op::unfreeze_cgroup("cg_0"), third),
        ];
        let cpus = ctx.topo.total_cpus();
        let result = execute_scenario(ctx, backdrop, steps)?;
        compared(ctx, result, |usage| {
            usage.at_most(Phase::step(1), &["cg_0"], 0.05, "it is frozen");
            usage.at_least(Phase::step(1), &["cg_1"], 0.75 * machine(ctx), "the other one is frozen");
            let floor = half_of_due(ctx, cpus, 2 * cpus, 2);
            usage.at_least(Phase::step(2), &["cg_0"], floor, DUE);
        })
    }

    /// Do cgroups follow limits of CPU time that change while they run?
    fn cgroup_quota_change(ctx) {
        let cpus = ctx.topo.total_cpus();
        // A quarter of the machine, where half would be its share.
        let limited = CgroupDef::named("limited").workers(cpus).cpu_quota_pct(25 * cpus);
        let backdrop = Backdrop::from_cgroups(vec![limited.clone(), spin("free", cpus)]);
        let raised = limited.cpu_unlimited().limits;
        let steps = vec![
            Step::hold(HoldSpec::frac(0.5)),
            Step::with_op(Op::set_limits("limited", raised), HoldSpec::frac(0.5)),
        ];
        let result = execute_scenario(ctx, backdrop, steps)?;
        compared(ctx, result, |usage| {
            let all = machine(ctx);
            let quota = format!("its quota is {:.2} CPUs", all * 0.25);
            usage.at_most(Phase::step(0), &["limited"], 0.3 * all, &quota);
            usage.at_least(Phase::step(0), &["limited"], 0.15 * all, &quota);
            usage.at_least(Phase::step(1), &["limited"], 0.35 * all, "the quota was lifted, and half is its share");
        })
    }

    /// Does the scheduler end cleanly with each of several generations of cgroups?
    fn cgroup_generations(ctx) {
        let generation = |_| Step::with_defs(pair(ctx), HoldSpec::frac(0.25));
        Ok(execute_steps(ctx, (0..4).map(generation).collect())?)
    }
}

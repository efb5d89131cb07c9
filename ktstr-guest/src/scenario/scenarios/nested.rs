//! Cgroups within cgroups.

use std::time::Duration;

use super::{
    DUE, ONLY, Step, compared, execute_scenario, execute_scenario_with, half_of_due, machine, scenarios, spin,
};
use crate::scenario::{Backdrop, CgroupDef, CpusetSpec, HoldSpec, Op};

/// Two parents with two cgroups each.
fn tree(workers: u32) -> Backdrop {
    Backdrop::from_cgroups(vec![
        CgroupDef::empty("a"),
        spin("a/x", workers),
        spin("a/y", workers),
        CgroupDef::empty("b"),
        spin("b/x", workers),
        spin("b/y", workers),
    ])
}

scenarios! { "nested":
    /// Do workers three levels deep get their share?
    fn nested_cgroup_steady(ctx) {
        let each = ctx.workers_per_cgroup;
        let backdrop = Backdrop::from_cgroups(vec![
            CgroupDef::empty("top"),
            CgroupDef::empty("top/middle"),
            spin("top/middle/x", each),
            spin("top/middle/y", each),
            spin("top/side", each),
            spin("flat", each),
        ]);
        let result = execute_scenario(ctx, backdrop, vec![Step::hold(HoldSpec::FULL)])?;
        compared(ctx, result, |usage| {
            // By weight the first two have a half of a half of a half.
            for (cgroup, part) in [("top/middle/x", 8), ("top/middle/y", 8), ("top/side", 4), ("flat", 2)] {
                usage.at_least(ONLY, &[cgroup], half_of_due(ctx, each, 4 * each, part), DUE);
            }
        })
    }

    /// Do tasks survive being moved between branches of the tree?
    fn nested_cgroup_task_move(ctx) {
        let backdrop = Backdrop::from_cgroups(vec![
            CgroupDef::empty("a"),
            spin("a/x", ctx.workers_per_cgroup),
            CgroupDef::empty("b"),
            CgroupDef::empty("b/x"),
        ]);
        let quarter = HoldSpec::frac(0.25);
        let steps = vec![
            Step::hold(quarter),
            Step::with_op(Op::move_all_tasks("a/x", "b/x"), quarter),
            Step::with_op(Op::move_all_tasks("b/x", "a/x"), quarter),
            Step::with_op(Op::move_all_tasks("a/x", "b/x"), quarter),
        ];
        Ok(execute_scenario(ctx, backdrop, steps)?)
    }

    /// Does the scheduler survive branches that are made and removed many times a second?
    fn nested_cgroup_rapid_churn(ctx) {
        let churn = vec![
            Op::add_cgroup("branch"),
            Op::add_cgroup("branch/twig"),
            Op::add_cgroup_def(spin("branch/twig/leaf", 2)),
            Op::remove_cgroup("branch/twig/leaf"),
            Op::remove_cgroup("branch/twig"),
            Op::remove_cgroup("branch"),
        ];
        let step = Step::new(churn, HoldSpec::loop_at(Duration::from_millis(100)));
        Ok(execute_scenario(ctx, tree(1), vec![step])?)
    }

    /// Does a parent's cpuset bind the cgroups within it?
    #[needs(cpus = 2)]
    fn nested_cgroup_cpuset(ctx) {
        let each = ctx.topo.total_cpus();
        let backdrop = Backdrop::from_cgroups(vec![
            CgroupDef::empty("a").cpuset(CpusetSpec::disjoint(0, 2)),
            spin("a/x", each),
            CgroupDef::empty("b").cpuset(CpusetSpec::disjoint(1, 2)),
            spin("b/x", each),
        ]);
        Ok(execute_scenario(ctx, backdrop, vec![Step::hold(HoldSpec::FULL)])?)
    }

    /// Does a crowded branch leave a quiet one its share?
    fn nested_cgroup_imbalance(ctx) {
        let cpus = ctx.topo.total_cpus();
        let backdrop = Backdrop::from_cgroups(vec![
            CgroupDef::empty("a"),
            spin("a/x", 2 * cpus),
            spin("a/y", cpus),
            CgroupDef::empty("b"),
            spin("b/x", 1),
        ]);
        // Queues are balanced by weight: where b's one worker is, few of a's many are, who are then the lucky ones.
        let loose = ctx.assert.max_spread_pct(100.0);
        let steps = vec![Step::hold(HoldSpec::FULL)];
        let result = execute_scenario_with(ctx, backdrop, steps, Some(&loose))?;
        compared(ctx, result, |usage| {
            usage.at_least(ONLY, &["b/x"], half_of_due(ctx, 1, 3 * cpus + 1, 2), DUE);
            usage.at_least(ONLY, &["a", "b"], 0.75 * machine(ctx), "three quarters of the machine");
        })
    }

    /// Do branches without controllers of their own keep all workers going?
    fn nested_cgroup_no_ctrl(ctx) {
        Ok(execute_scenario(ctx, tree(ctx.workers_per_cgroup), vec![Step::hold(HoldSpec::FULL)])?)
    }
}

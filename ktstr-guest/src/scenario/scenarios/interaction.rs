//! Cgroups with unequal load, and what they do to each other.

use super::{Step, doing, execute_defs, execute_scenario, execute_steps, scenarios, spin};
use crate::{
    scenario::{Backdrop, CgroupDef, CpusetSpec, HoldSpec, Op},
    work::WorkType,
};

/// A parent that passes no controllers on, with two cgroups in it: only the tree, no limits or weights.
fn uncontrolled(first: CgroupDef, second: CgroupDef) -> Backdrop {
    let below = |mut def: CgroupDef| {
        def.name = format!("plain/{}", def.name);
        def
    };
    Backdrop::from_cgroups(vec![CgroupDef::empty("plain"), below(first), below(second)])
}

scenarios! { "interaction":
    /// Does a cgroup with sixteen workers that joins late leave the others their share?
    fn cgroup_add_load_imbalance(ctx) {
        let backdrop = Backdrop::from_cgroups(vec![ctx.cgroup_def("cg_0"), ctx.cgroup_def("cg_1")]);
        let steps = vec![
            Step::hold(HoldSpec::frac(0.5)),
            Step::with_defs(vec![spin("heavy", 16)], HoldSpec::frac(0.5)),
        ];
        Ok(execute_scenario(ctx, backdrop, steps)?)
    }

    /// Do spinning, bursty and mixed workers in unequal numbers all make progress?
    fn cgroup_imbalance_mixed_workload(ctx) {
        let cpus = ctx.topo.total_cpus();
        Ok(execute_defs(ctx, vec![
            spin("heavy", 2 * cpus),
            doing("bursty", cpus, WorkType::bursty()),
            doing("mixed", 2, WorkType::Mixed),
        ])?)
    }

    /// Does the scheduler follow load that swings between two cgroups?
    fn cgroup_load_oscillation(ctx) {
        let cpus = ctx.topo.total_cpus();
        let phase = |heavy: &str, light: &str| {
            Step::with_defs(vec![spin(heavy, 2 * cpus), spin(light, 1)], HoldSpec::frac(0.25))
        };
        let steps = vec![phase("cg_0", "cg_1"), phase("cg_1", "cg_0"), phase("cg_0", "cg_1"), phase("cg_1", "cg_0")];
        Ok(execute_steps(ctx, steps)?)
    }

    /// Do four cgroups of 16, 1, 8 and 4 workers each stay fair within themselves?
    fn cgroup_4way_load_imbalance(ctx) {
        let sizes = [16, 1, 8, 4];
        let defs = sizes.iter().enumerate().map(|(i, workers)| spin(&format!("cg_{i}"), *workers));
        Ok(execute_defs(ctx, defs.collect())?)
    }

    /// Does unequal load in disjoint cpusets beside load without one stay within bounds?
    #[needs(cpus = 4)]
    fn cgroup_cpuset_imbalance_combined(ctx) {
        let cpus = ctx.topo.total_cpus();
        Ok(execute_defs(ctx, vec![
            spin("crowded", 2 * cpus).cpuset(CpusetSpec::disjoint(0, 2)),
            spin("roomy", 1).cpuset(CpusetSpec::disjoint(1, 2)),
            doing("free", 2, WorkType::bursty()),
        ])?)
    }

    /// Does unequal load in overlapping cpusets stay within bounds?
    #[needs(cpus = 4)]
    fn cgroup_cpuset_overlap_imbalance_combined(ctx) {
        let cpus = ctx.topo.total_cpus();
        Ok(execute_defs(ctx, vec![
            spin("crowded", 2 * cpus).cpuset(CpusetSpec::overlap(0, 2, 0.5)),
            spin("roomy", 2).cpuset(CpusetSpec::overlap(1, 2, 0.5)),
        ])?)
    }

    /// Do tasks survive being moved back and forth between cgroups without controllers?
    fn cgroup_no_ctrl_task_migration(ctx) {
        let backdrop = uncontrolled(ctx.cgroup_def("cg_0"), CgroupDef::empty("cg_1"));
        let (a, b) = ("plain/cg_0", "plain/cg_1");
        let mut steps = vec![Step::hold(HoldSpec::frac(0.1))];
        steps.extend((0..9).map(|i| {
            let (from, to) = if i % 2 == 0 { (a, b) } else { (b, a) };
            Step::with_op(Op::move_all_tasks(from, to), HoldSpec::frac(0.1))
        }));
        Ok(execute_scenario(ctx, backdrop, steps)?)
    }

    /// Does unequal load in cgroups without controllers leave nobody behind?
    fn cgroup_no_ctrl_imbalance(ctx) {
        let backdrop = uncontrolled(spin("heavy", 2 * ctx.topo.total_cpus()), spin("light", 1));
        Ok(execute_scenario(ctx, backdrop, vec![Step::hold(HoldSpec::FULL)])?)
    }

    /// Do cgroups without controllers go on while a cpuset beside them changes?
    #[needs(cpus = 4)]
    fn cgroup_no_ctrl_cpuset_change(ctx) {
        let each = ctx.workers_per_cgroup;
        let backdrop = uncontrolled(spin("cg_0", each), spin("cg_1", each)).push_cgroup(spin("set", each));
        let half = |index| Step::with_op(Op::set_cpuset("set", CpusetSpec::disjoint(index, 2)), HoldSpec::frac(0.5));
        Ok(execute_scenario(ctx, backdrop, vec![half(0), half(1)])?)
    }

    /// Do cgroups without controllers keep going when a heavy one joins?
    fn cgroup_no_ctrl_load_imbalance(ctx) {
        let each = ctx.workers_per_cgroup;
        let backdrop = uncontrolled(spin("cg_0", each), spin("cg_1", each));
        let steps = vec![
            Step::hold(HoldSpec::frac(0.5)),
            Step::with_defs(vec![spin("heavy", 2 * ctx.topo.total_cpus())], HoldSpec::frac(0.5)),
        ];
        Ok(execute_scenario(ctx, backdrop, steps)?)
    }

    /// Do writing workers get the CPU back promptly beside computing ones?
    fn cgroup_io_compute_imbalance(ctx) {
        Ok(execute_defs(ctx, vec![
            doing("io", 2, WorkType::IoSyncWrite),
            spin("compute", 2 * ctx.topo.total_cpus()),
        ])?)
    }

    /// Do bursts of one cgroup get through beside steady load of another?
    fn cgroup_bursty_imbalance(ctx) {
        let cpus = ctx.topo.total_cpus();
        Ok(execute_defs(ctx, vec![doing("bursty", cpus, WorkType::bursty()), spin("steady", cpus)])?)
    }

    /// Does bursty load that moves from one cgroup to the other leave neither behind?
    fn cgroup_bursty_load_shift(ctx) {
        let cpus = ctx.topo.total_cpus();
        let phase = |bursty: &str, steady: &str| {
            let defs = vec![doing(bursty, cpus, WorkType::bursty()), spin(steady, cpus)];
            Step::with_defs(defs, HoldSpec::frac(0.5))
        };
        Ok(execute_steps(ctx, vec![phase("cg_0", "cg_1"), phase("cg_1", "cg_0")])?)
    }

    /// Does an overloaded cgroup use what an idle one leaves?
    fn cgroup_idle_overloaded(ctx) {
        Ok(execute_defs(ctx, vec![
            doing("idle", 1, WorkType::idle_churn()),
            spin("overloaded", 2 * ctx.topo.total_cpus()),
        ])?)
    }

    /// Do cgroups that all want the whole machine share it?
    fn cgroup_all_loaded(ctx) {
        let cpus = ctx.topo.total_cpus();
        Ok(execute_defs(ctx, (0..3).map(|i| spin(&format!("cg_{i}"), cpus)).collect())?)
    }

    /// Does load that overflows one last-level cache spread to the others?
    #[needs(llcs = 2)]
    fn cgroup_llc_overflow(ctx) {
        let llc = ctx.topo.cpus_in_llc(0).len() as u32;
        Ok(execute_defs(ctx, vec![
            spin("overflow", 2 * llc),
            spin("home", llc).cpuset(CpusetSpec::llc(0)),
        ])?)
    }

    /// Does a cgroup with three times the workers of another stay fair within itself?
    fn cgroup_load_imbalance(ctx) {
        let cpus = ctx.topo.total_cpus();
        Ok(execute_defs(ctx, vec![spin("heavy", 3 * cpus), spin("light", cpus)])?)
    }

    /// Do weights decide how much of the machine each cgroup gets without starving the lighter one?
    fn cgroup_weights(ctx) {
        let cpus = ctx.topo.total_cpus();
        Ok(execute_defs(ctx, vec![spin("heavy", cpus).cpu_weight(400), spin("light", cpus).cpu_weight(100)])?)
    }
}

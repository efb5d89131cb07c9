//! Cpusets that are set, cleared, resized and exchanged while workers run.

use ktstr_proto::stats::Phase;

use super::{
    Ctx, ONLY, Step, compared, doing, execute_defs, execute_scenario, execute_steps, machine, pair,
    scenarios, spin,
};
use crate::{
    check::usage::Usage,
    scenario::{Backdrop, CpusetSpec, HoldSpec, Op},
    work::WorkType,
};

/// The first part of the machine and the rest.
fn split(first: f64) -> (CpusetSpec, CpusetSpec) {
    (CpusetSpec::range(0.0, first), CpusetSpec::range(first, 1.0))
}

fn resize(first: f64, hold: f64) -> Step {
    let (low, high) = split(first);
    Step::new(vec![Op::set_cpuset("cg_0", low), Op::set_cpuset("cg_1", high)], HoldSpec::frac(hold))
}

/// CPUs of a cpuset.
fn size(ctx: &Ctx, set: &CpusetSpec) -> f64 {
    ctx.cpuset_cpus(set).map_or(0.0, |cpus| cpus.len() as f64)
}

/// A cgroup with at least as many workers as CPUs, which nobody else may use, keeps these busy.
fn fills(usage: &mut Usage<'_>, phase: Phase, cgroup: &str, cpus: f64) {
    let why = format!("three quarters of its own {cpus} CPUs");
    usage.at_least(phase, &[cgroup], 0.75 * cpus, &why);
}

scenarios! { "cpuset":
    /// Do running workers move to the CPUs of a cpuset that appears, and stay there?
    #[needs(cpus = 2)]
    fn cgroup_cpuset_apply_midrun(ctx) {
        let backdrop = Backdrop::from_cgroups(pair(ctx));
        Ok(execute_scenario(ctx, backdrop, vec![Step::hold(HoldSpec::frac(0.5)), resize(0.5, 0.5)])?)
    }

    /// Do workers use the whole machine again once their cpuset is cleared?
    #[needs(cpus = 2)]
    fn cgroup_cpuset_clear_midrun(ctx) {
        let (low, high) = split(0.5);
        let own = size(ctx, &low);
        // One crowds in its half, the other leaves most of the machine's rest idle.
        let backdrop = Backdrop::from_cgroups(vec![
            spin("cg_0", ctx.topo.total_cpus()).cpuset(low),
            doing("cg_1", 1, WorkType::bursty()).cpuset(high),
        ]);
        let clear = vec![Op::clear_cpuset("cg_0"), Op::clear_cpuset("cg_1")];
        let steps = vec![Step::hold(HoldSpec::frac(0.5)), Step::new(clear, HoldSpec::frac(0.5))];
        let result = execute_scenario(ctx, backdrop, steps)?;
        compared(ctx, result, |usage| {
            fills(usage, Phase::step(0), "cg_0", own);
            // Bursts take a third of one CPU at most.
            let spread = own + (machine(ctx) - own - 0.34) / 2.0;
            let why = format!("it had {own} CPUs, and half of the rest is to be used, too");
            usage.at_least(Phase::step(1), &["cg_0"], spread, &why);
        })
    }

    /// Do workers follow a cpuset that shrinks and then grows?
    #[needs(cpus = 4)]
    fn cgroup_cpuset_resize(ctx) {
        let backdrop = Backdrop::from_cgroups(pair(ctx));
        let steps = vec![resize(0.5, 0.3), resize(0.25, 0.35), resize(0.75, 0.35)];
        let result = execute_scenario(ctx, backdrop, steps)?;
        compared(ctx, result, |usage| {
            for (number, part) in [0.5, 0.25, 0.75].into_iter().enumerate() {
                let (low, high) = split(part);
                let phase = Phase::step(number as u32);
                fills(usage, phase, "cg_0", size(ctx, &low));
                fills(usage, phase, "cg_1", size(ctx, &high));
            }
        })
    }

    /// Do two cgroups survive it when their cpusets are exchanged, twice?
    #[needs(cpus = 2)]
    fn cgroup_cpuset_swap_disjoint(ctx) {
        let (low, high) = split(0.5);
        let cpus = ctx.topo.total_cpus();
        let backdrop =
            Backdrop::from_cgroups(vec![spin("cg_0", cpus).cpuset(low), spin("cg_1", cpus).cpuset(high)]);
        let swap = || Step::with_op(Op::swap_cpusets("cg_0", "cg_1"), HoldSpec::frac(1.0 / 3.0));
        let steps = vec![Step::hold(HoldSpec::frac(1.0 / 3.0)), swap(), swap()];
        Ok(execute_scenario(ctx, backdrop, steps)?)
    }

    /// Does a crowded half of the machine stay fair while the other half is nearly idle?
    #[needs(cpus = 2)]
    fn cgroup_cpuset_workload_imbalance(ctx) {
        let (low, high) = split(0.5);
        let cpus = ctx.topo.total_cpus();
        Ok(execute_defs(ctx, vec![
            spin("crowded", 2 * cpus).cpuset(low),
            doing("idle", 1, WorkType::bursty()).cpuset(high),
        ])?)
    }

    /// Does load that is uneven to begin with stay fair when the cpusets change under it?
    #[needs(cpus = 4)]
    fn cgroup_cpuset_change_imbalance(ctx) {
        let cpus = ctx.topo.total_cpus();
        let backdrop = Backdrop::from_cgroups(vec![
            spin("cg_0", 2 * cpus),
            doing("cg_1", cpus, WorkType::bursty()),
        ]);
        let steps = vec![resize(0.25, 0.3), resize(0.75, 0.35), resize(0.5, 0.35)];
        Ok(execute_scenario(ctx, backdrop, steps)?)
    }

    /// Does the scheduler follow load that moves from one half of the machine to the other?
    #[needs(cpus = 2)]
    fn cgroup_cpuset_load_shift(ctx) {
        let (low, high) = split(0.5);
        let cpus = ctx.topo.total_cpus();
        let step = |heavy: &str, set: &CpusetSpec, light: &str, other: &CpusetSpec| {
            let defs = vec![spin(heavy, cpus).cpuset(set.clone()), spin(light, 1).cpuset(other.clone())];
            Step::with_defs(defs, HoldSpec::frac(0.5))
        };
        let steps = vec![step("cg_0", &low, "cg_1", &high), step("cg_1", &high, "cg_0", &low)];
        let result = execute_steps(ctx, steps)?;
        compared(ctx, result, |usage| {
            let sides = [("cg_0", &low, "cg_1"), ("cg_1", &high, "cg_0")];
            for (number, (heavy, set, light)) in sides.into_iter().enumerate() {
                let phase = Phase::step(number as u32);
                fills(usage, phase, heavy, size(ctx, set));
                usage.at_least(phase, &[light], 0.75, "one worker with CPUs of its own");
            }
        })
    }

    /// Do three cgroups whose cpusets overlap by half share the common CPUs?
    #[needs(cpus = 3)]
    fn cgroup_cpuset_overlap_steady(ctx) {
        let each = (ctx.topo.total_cpus() / 3).max(1);
        let def = |index: u32| spin(&format!("cg_{index}"), each).cpuset(CpusetSpec::overlap(index, 3, 0.5));
        let result = execute_defs(ctx, (0..3).map(def).collect())?;
        compared(ctx, result, |usage| {
            for cgroup in ["cg_0", "cg_1", "cg_2"] {
                let why = format!("half of a CPU for each of its {each} workers");
                usage.at_least(ONLY, &[cgroup], f64::from(each) / 2.0, &why);
            }
        })
    }

    /// Do the CPUs that no cpuset names stay out of use?
    #[needs(cpus = 3)]
    fn cgroup_partial_cpus_steady(ctx) {
        let used = 2.0 / 3.0;
        let each = ctx.topo.total_cpus();
        Ok(execute_defs(ctx, vec![
            spin("cg_0", each).cpuset(CpusetSpec::range(0.0, used / 2.0)),
            spin("cg_1", each).cpuset(CpusetSpec::range(used / 2.0, used)),
        ])?)
    }

    /// Do cgroups with three quarters and one quarter of the machine each keep to their part?
    #[needs(cpus = 4)]
    fn cgroup_uneven_steady(ctx) {
        let (low, high) = split(0.75);
        let cpus = ctx.topo.total_cpus();
        let (own, others) = (size(ctx, &low), size(ctx, &high));
        let defs = vec![spin("cg_0", cpus).cpuset(low), spin("cg_1", cpus).cpuset(high)];
        let result = execute_defs(ctx, defs)?;
        compared(ctx, result, |usage| {
            fills(usage, ONLY, "cg_0", own);
            fills(usage, ONLY, "cg_1", others);
        })
    }
}

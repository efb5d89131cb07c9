//! CPUs that workers are restricted to themselves, within and without cpusets.

use super::{Step, execute_defs, execute_scenario_with, pair, scenarios, spin};
use crate::scenario::{AffinityIntent, Backdrop, CpusetSpec, Ctx, HoldSpec, Op};

/// Two cgroups of workers with this affinity. Workers with different CPUs are not compared, and those
/// that share may be unequally many on each CPU.
fn with_affinity(ctx: &Ctx, intent: AffinityIntent) -> anyhow::Result<ktstr_proto::verdict::AssertResult> {
    let defs = pair(ctx).into_iter().map(|def| def.affinity(intent.clone())).collect();
    Ok(execute_defs(ctx, defs)?)
}

scenarios! { "affinity":
    /// Do workers follow their own CPU masks when these change at random four times?
    #[needs(cpus = 2)]
    fn cgroup_affinity_change(ctx) {
        let half = (ctx.topo.total_cpus() / 2).max(1);
        let change = |_| {
            let ops = ["cg_0", "cg_1"].map(|name| Op::set_affinity(name, AffinityIntent::random_subset(half)));
            Step::new(ops.to_vec(), HoldSpec::frac(0.2))
        };
        let mut steps = vec![Step::hold(HoldSpec::frac(0.2))];
        steps.extend((0..4).map(change));
        let loose = ctx.assert.max_spread_pct(75.0);
        Ok(execute_scenario_with(ctx, Backdrop::from_cgroups(pair(ctx)), steps, Some(&loose))?)
    }

    /// Do workers pinned to two CPUs stay there and share them?
    #[needs(cpus = 2)]
    fn cgroup_multicpu_pin(ctx) {
        let two = ctx.topo.all_cpus()[..2].to_vec();
        let pinned = |name: &str| spin(name, 4).affinity(AffinityIntent::exact(two.iter().copied()));
        let loose = ctx.assert.max_spread_pct(75.0);
        let step = Step::with_defs(vec![pinned("cg_0"), pinned("cg_1")], HoldSpec::FULL);
        Ok(execute_scenario_with(ctx, Backdrop::new(), vec![step], Some(&loose))?)
    }

    /// Do pins within disjoint cpusets hold?
    #[needs(cpus = 4)]
    fn cgroup_cpuset_multicpu_pin(ctx) {
        let def = |index: u32| {
            spin(&format!("cg_{index}"), 4)
                .cpuset(CpusetSpec::disjoint(index, 2))
                .affinity(AffinityIntent::random_subset(2))
        };
        let loose = ctx.assert.max_spread_pct(75.0);
        let step = Step::with_defs(vec![def(0), def(1)], HoldSpec::FULL);
        Ok(execute_scenario_with(ctx, Backdrop::new(), vec![step], Some(&loose))?)
    }

    /// Do workers without masks of their own use what their cgroup allows?
    fn cgroup_affinity_inherit(ctx) {
        with_affinity(ctx, AffinityIntent::Inherit)
    }

    /// Do workers with random masks of half the machine stay within them?
    #[needs(cpus = 2)]
    fn cgroup_affinity_random(ctx) {
        let random = AffinityIntent::random_subset((ctx.topo.total_cpus() / 2).max(1));
        let defs: Vec<_> = pair(ctx).into_iter().map(|def| def.affinity(random.clone())).collect();
        let (backdrop, steps) = (Backdrop::from_cgroups(defs), vec![Step::hold(HoldSpec::FULL)]);
        // Two with the same mask may find unequally many others on its CPUs.
        let loose = ctx.assert.max_spread_pct(75.0);
        Ok(execute_scenario_with(ctx, backdrop, steps, Some(&loose))?)
    }

    /// Do masks that span all CPUs leave the cpuset in force?
    #[needs(cpus = 2)]
    fn cgroup_affinity_spanning(ctx) {
        let half = (ctx.topo.total_cpus() / 2).max(1);
        let def = |index: u32| {
            spin(&format!("cg_{index}"), half)
                .cpuset(CpusetSpec::disjoint(index, 2))
                .affinity(AffinityIntent::CrossCgroup)
        };
        Ok(execute_defs(ctx, vec![def(0), def(1)])?)
    }

    /// Do workers pinned to one CPU each stay there and get their turn?
    fn cgroup_affinity_pinned(ctx) {
        with_affinity(ctx, AffinityIntent::SingleCpu)
    }

    /// Do masks of one last-level cache each keep workers on it?
    #[needs(llcs = 2)]
    fn cgroup_cpuset_llc_affinity(ctx) {
        with_affinity(ctx, AffinityIntent::LlcAligned)
    }
}

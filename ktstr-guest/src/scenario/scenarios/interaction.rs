//! Cgroups with unequal load, and what they do to each other.

use ktstr_proto::stats::Phase;

use super::{
    DUE, ONLY, Step, compared, doing, execute_defs, execute_scenario, execute_steps, half_of_due, machine,
    scenarios, spin,
};
use crate::{
    check::usage::Usage,
    scenario::{AffinityIntent, Backdrop, CgroupDef, CpusetSpec, HoldSpec, Op},
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

/// Cgroups that have always more to do than CPUs leave hardly any of them idle.
fn busy(usage: &mut Usage<'_>, phase: Phase, cgroups: &[&str], cpus: f64) {
    usage.at_least(phase, cgroups, 0.75 * cpus, "three quarters of what their workers could use");
}

/// Bursts take a third of the time at most, and longer where others run in between.
const BURSTS: &str = "bursts of 50ms in every 150ms or longer";

scenarios! { "interaction":
    /// Does a cgroup with sixteen workers that joins late leave the others their share?
    fn cgroup_add_load_imbalance(ctx) {
        let backdrop = Backdrop::from_cgroups(vec![ctx.cgroup_def("cg_0"), ctx.cgroup_def("cg_1")]);
        let steps = vec![
            Step::hold(HoldSpec::frac(0.5)),
            Step::with_defs(vec![spin("heavy", 16)], HoldSpec::frac(0.5)),
        ];
        let each = ctx.workers_per_cgroup;
        let result = execute_scenario(ctx, backdrop, steps)?;
        compared(ctx, result, |usage| {
            for cgroup in ["cg_0", "cg_1"] {
                let floor = half_of_due(ctx, each, 16 + 2 * each, 3);
                usage.at_least(Phase::step(1), &[cgroup], floor, DUE);
            }
        })
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
        let result = execute_steps(ctx, steps)?;
        compared(ctx, result, |usage| {
            for number in 0..4 {
                let light = if number % 2 == 0 { "cg_1" } else { "cg_0" };
                busy(usage, Phase::step(number), &["cg_0", "cg_1"], machine(ctx));
                let floor = half_of_due(ctx, 1, 2 * cpus + 1, 2);
                usage.at_least(Phase::step(number), &[light], floor, DUE);
            }
        })
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
        let result = execute_defs(ctx, vec![
            doing("io", 2, WorkType::IoSyncWrite),
            spin("compute", 2 * ctx.topo.total_cpus()),
        ])?;
        compared(ctx, result, |usage| {
            usage.at_least(ONLY, &["compute"], machine(ctx) / 4.0, DUE);
            usage.at_least(ONLY, &["io"], 0.01, "writers that get the CPU back");
        })
    }

    /// Do bursts of one cgroup get through beside steady load of another?
    fn cgroup_bursty_imbalance(ctx) {
        let cpus = ctx.topo.total_cpus();
        let result = execute_defs(ctx, vec![doing("bursty", cpus, WorkType::bursty()), spin("steady", cpus)])?;
        compared(ctx, result, |usage| {
            usage.at_least(ONLY, &["bursty"], machine(ctx) / 16.0, BURSTS);
            usage.at_least(ONLY, &["steady"], machine(ctx) / 4.0, DUE);
        })
    }

    /// Does bursty load that moves from one cgroup to the other leave neither behind?
    fn cgroup_bursty_load_shift(ctx) {
        let cpus = ctx.topo.total_cpus();
        let phase = |bursty: &str, steady: &str| {
            let defs = vec![doing(bursty, cpus, WorkType::bursty()), spin(steady, cpus)];
            Step::with_defs(defs, HoldSpec::frac(0.5))
        };
        let result = execute_steps(ctx, vec![phase("cg_0", "cg_1"), phase("cg_1", "cg_0")])?;
        compared(ctx, result, |usage| {
            for (number, (bursty, steady)) in [("cg_0", "cg_1"), ("cg_1", "cg_0")].into_iter().enumerate() {
                let phase = Phase::step(number as u32);
                usage.at_least(phase, &[bursty], machine(ctx) / 16.0, BURSTS);
                usage.at_least(phase, &[steady], machine(ctx) / 4.0, DUE);
            }
        })
    }

    /// Does an overloaded cgroup use what an idle one leaves?
    fn cgroup_idle_overloaded(ctx) {
        let result = execute_defs(ctx, vec![
            doing("idle", 1, WorkType::idle_churn()),
            spin("overloaded", 2 * ctx.topo.total_cpus()),
        ])?;
        // The idle one works for 1 ms of each 6.
        compared(ctx, result, |usage| busy(usage, ONLY, &["overloaded"], machine(ctx) - 0.17))
    }

    /// Do cgroups that all want the whole machine share it?
    fn cgroup_all_loaded(ctx) {
        let cpus = ctx.topo.total_cpus();
        let result = execute_defs(ctx, (0..3).map(|i| spin(&format!("cg_{i}"), cpus)).collect())?;
        compared(ctx, result, |usage| {
            let all = ["cg_0", "cg_1", "cg_2"];
            busy(usage, ONLY, &all, machine(ctx));
            for cgroup in all {
                usage.share(ONLY, cgroup, &all, (100.0 / 3.0, 50.0 / 3.0), "three cgroups of equal weight");
            }
        })
    }

    /// Does load that overflows one last-level cache spread to the others?
    #[needs(llcs = 2)]
    fn cgroup_llc_overflow(ctx) {
        let llc = ctx.topo.cpus_in_llc(0).len() as u32;
        let result = execute_defs(ctx, vec![
            spin("overflow", 2 * llc),
            spin("home", llc).cpuset(CpusetSpec::llc(0)),
        ])?;
        compared(ctx, result, |usage| {
            // Nobody else may use the CPUs of the other caches.
            let free = (machine(ctx) - f64::from(llc)).min(f64::from(llc));
            busy(usage, ONLY, &["overflow"], free);
            busy(usage, ONLY, &["overflow", "home"], machine(ctx).min(f64::from(3 * llc)));
        })
    }

    /// Does a cgroup with three times the workers of another stay fair within itself?
    fn cgroup_load_imbalance(ctx) {
        let cpus = ctx.topo.total_cpus();
        Ok(execute_defs(ctx, vec![spin("heavy", 3 * cpus), spin("light", cpus)])?)
    }

    /// Do weights decide how much of the machine each cgroup gets without starving the lighter one?
    fn cgroup_weights(ctx) {
        let cpus = ctx.topo.total_cpus();
        // One worker of each on every CPU, so that balancing has no part in it.
        let weighing = |name, weight| spin(name, cpus).affinity(AffinityIntent::SingleCpu).cpu_weight(weight);
        let result = execute_defs(ctx, vec![weighing("heavy", 400), weighing("light", 100)])?;
        compared(ctx, result, |usage| {
            let both = ["heavy", "light"];
            busy(usage, ONLY, &both, machine(ctx));
            usage.share(ONLY, "heavy", &both, (80.0, 12.0), "weights of 400 and 100");
        })
    }
}

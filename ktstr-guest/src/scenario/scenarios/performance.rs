//! Work whose throughput depends on where it runs and when it is woken.

use super::{doing, execute_defs, execute_steps_with, promptly, scenarios, spin};
use crate::{
    scenario::{HoldSpec, Step},
    work::WorkType,
};

scenarios! { "performance":
    /// Do workers that live off their cache get equal work done in equal time?
    fn cache_pressure_imbalance(ctx) {
        let cpus = ctx.topo.total_cpus();
        let defs = vec![doing("cache", cpus, WorkType::cache_pressure()), spin("spin", (cpus / 2).max(1))];
        let assert = ctx.assert.max_throughput_cv(1.0);
        Ok(execute_steps_with(ctx, vec![Step::with_defs(defs, HoldSpec::FULL)], Some(&assert))?)
    }

    /// Do workers that yield after each pass over their cache come back promptly?
    fn cache_yield_wake_affine(ctx) {
        let cpus = ctx.topo.total_cpus();
        Ok(execute_defs(ctx, vec![
            doing("yielders", cpus, WorkType::cache_yield()),
            doing("pressers", cpus, WorkType::cache_pressure()),
        ])?)
    }

    /// Do partners with a warm cache find each other beside computing workers?
    fn cache_pipe_io_compute_imbalance(ctx) {
        let cpus = ctx.topo.total_cpus();
        let defs = vec![doing("pipes", cpus.max(2), WorkType::cache_pipe()), spin("compute", cpus)];
        Ok(execute_steps_with(ctx, vec![Step::with_defs(defs, HoldSpec::FULL)], Some(&promptly(ctx)))?)
    }

    /// Are several workers woken at once all run promptly?
    fn fan_out_wake(ctx) {
        let defs = vec![
            doing("fan_out", 5, WorkType::futex_fan_out()),
            spin("spin", (ctx.topo.total_cpus() / 2).max(1)),
        ];
        Ok(execute_steps_with(ctx, vec![Step::with_defs(defs, HoldSpec::FULL)], Some(&promptly(ctx)))?)
    }

    /// Do requests that are handed out to several workers get done beside other load?
    fn fan_out_compute(ctx) {
        Ok(execute_defs(ctx, vec![
            doing("requests", 5, WorkType::fan_out_compute()),
            spin("spin", (ctx.topo.total_cpus() / 2).max(1)),
        ])?)
    }

    /// Do chains of wakers and wakees keep moving while the CPUs are busy?
    fn wake_chain(ctx) {
        Ok(execute_defs(ctx, vec![
            doing("chain", 4, WorkType::wake_chain()),
            spin("spin", (ctx.topo.total_cpus() / 2).max(1)),
        ])?)
    }
}

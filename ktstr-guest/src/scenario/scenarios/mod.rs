//! Ready-made scenarios, each with the question it asks of a scheduler.
//!
//! Eight modules by what they press on; the most used ones are also here by short names. All take the
//! test's duration, choose worker numbers from the machine, and return errors as test functions do.
//! One that needs more than the machine has (a second last-level cache, say) is not run, with the
//! reason. [`catalogue`] lists them all for `ktstr list` and `ktstr run`.

mod names;
mod needs;

pub mod affinity;
pub mod basic;
pub mod cpuset;
pub mod dynamic;
pub mod interaction;
pub mod nested;
pub mod performance;
pub mod profile;
pub mod stress;

use anyhow::Result;
use ktstr_proto::{
    stats::Phase,
    verdict::{Assert, AssertResult, DetailKind, Outcome},
};

use super::{
    CgroupDef, Ctx, Setup, Step, WorkSpec, execute_defs, execute_scenario, execute_scenario_with,
    execute_steps, execute_steps_with,
};
use crate::{check::usage::Usage, work::WorkType};

pub use affinity::{cgroup_affinity_change as affinity_change, cgroup_multicpu_pin as affinity_pinned};
pub use basic::{
    cgroup_cpuset_llc_steady as steady_llc, cgroup_steady as steady,
    host_cgroup_contention as host_contention, mixed_workloads,
};
pub use cpuset::{
    cgroup_cpuset_apply_midrun as cpuset_apply, cgroup_cpuset_clear_midrun as cpuset_clear,
    cgroup_cpuset_resize as cpuset_resize,
};
pub use dynamic::{cgroup_add_midrun as cgroup_add, cgroup_remove_midrun as cgroup_remove};
pub use nested::{nested_cgroup_steady as nested_steady, nested_cgroup_task_move as nested_task_move};
pub use stress::cgroup_oversubscribed as oversubscribed;

pub use names::{find, others};

/// A ready-made scenario in the list of all.
#[derive(Debug, Clone, Copy)]
pub struct Canned {
    /// Its name, that of its function.
    pub name: &'static str,
    /// The module it is in.
    pub group: &'static str,
    /// What it asks of a scheduler.
    pub question: &'static str,
    /// The scenario.
    pub run: fn(&Ctx) -> Result<AssertResult>,
}

/// All ready-made scenarios, by module and in the order they stand there.
pub fn catalogue() -> impl Iterator<Item = &'static Canned> {
    let modules = [
        basic::ALL,
        cpuset::ALL,
        dynamic::ALL,
        affinity::ALL,
        interaction::ALL,
        nested::ALL,
        performance::ALL,
        stress::ALL,
    ];
    modules.into_iter().flatten()
}

/// Functions that are scenarios, and the list of them.
macro_rules! scenarios {
    ($group:literal: $(#[doc = $question:literal] $(#[needs($need:ident = $number:literal)])? fn $name:ident($ctx:ident) $body:block)*) => {
        $(#[doc = $question]
        pub fn $name($ctx: &super::Ctx) -> anyhow::Result<ktstr_proto::verdict::AssertResult> {
            $(if let Some(reason) = super::needs::$need($ctx, $number) {
                return Ok(ktstr_proto::verdict::AssertResult::skip(reason));
            })?
            $body
        })*

        /// The scenarios of this module.
        pub(super) const ALL: &[super::Canned] = &[$(super::Canned {
            name: stringify!($name),
            group: $group,
            question: $question.trim_ascii(),
            run: $name,
        }),*];
    };
}
use scenarios;

/// A cgroup of workers that spin.
fn spin(name: &str, workers: u32) -> CgroupDef {
    CgroupDef::named(name).workers(workers).swappable(true)
}

/// A cgroup of workers that do this.
fn doing(name: &str, workers: u32, work_type: WorkType) -> CgroupDef {
    CgroupDef::named(name).workers(workers.next_multiple_of(work_type.group_size())).work_type(work_type)
}

/// Two cgroups with two workers per CPU between them, so that every CPU has more than one to choose from.
fn pair(ctx: &Ctx) -> Vec<CgroupDef> {
    let cpus = ctx.topo.total_cpus();
    vec![spin("cg_0", cpus), spin("cg_1", cpus)]
}

/// The only step of a scenario that has one.
const ONLY: Phase = Phase::step(0);

/// Adds comparisons between cgroups to a scenario's result. They are about spinning workers, so they are left
/// out when the run has them do something else.
fn compared(
    ctx: &Ctx,
    mut result: AssertResult,
    compare: impl FnOnce(&mut Usage<'_>),
) -> Result<AssertResult> {
    if ctx.work_type_override.is_some() {
        let message = "shares of CPU time are not judged: the workers do not do what the scenario says";
        result.push(DetailKind::Note, Outcome::NotRun, message);
    } else if !result.is_skip() {
        compare(&mut Usage::of(&mut result));
    }
    Ok(result)
}

/// CPUs in the whole machine.
fn machine(ctx: &Ctx) -> f64 {
    f64::from(ctx.topo.total_cpus())
}

/// Half of what is due to a cgroup of `workers` spinning ones among `all` in `cgroups`, whether the scheduler
/// shares between tasks or between cgroups: the least it may get before it counts as left behind.
fn half_of_due(ctx: &Ctx, workers: u32, all: u32, cgroups: u32) -> f64 {
    let (cpus, workers) = (machine(ctx), f64::from(workers));
    let by_task = cpus * workers / f64::from(all).max(cpus);
    let by_cgroup = cpus / f64::from(cgroups);
    workers.min(by_task).min(by_cgroup) / 2.0
}

/// Why a floor of [`half_of_due`] is what it is.
const DUE: &str = "half of what is due";

/// A limit of the time from wake to run that no scheduler misses by being slow, for scenarios that ask
/// whether workers are run promptly; a limit of the run's own goes first.
fn promptly(ctx: &Ctx) -> Assert {
    const PROMPT_NS: u64 = 250_000_000;
    let limit = ctx.assert.max_p99_wake_latency_ns.unwrap_or(PROMPT_NS);
    match ctx.duration >= crate::check::usage::JUDGED_FROM {
        true => ctx.assert.max_p99_wake_latency_ns(limit),
        false => ctx.assert,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_scenario_has_a_name_of_its_own_and_asks_something() {
        let all: Vec<_> = catalogue().collect();
        let names: BTreeSet<_> = all.iter().map(|canned| canned.name).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.len() >= 50, "{} scenarios", all.len());
        for canned in &all {
            assert!(canned.question.ends_with('?'), "{}: {}", canned.name, canned.question);
        }
        let groups: BTreeSet<_> = all.iter().map(|canned| canned.group).collect();
        assert_eq!(groups.len(), 8);
    }
}

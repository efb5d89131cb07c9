//! Cgroups and workers that a test makes, ends and judges itself, without the engine.
//!
//! ```no_run
//! # use ktstr_guest::scenario::{Ctx, ScenarioError, collect_all, dfl_wl, setup_cgroups};
//! # fn test(ctx: &Ctx) -> Result<(), ScenarioError> {
//! let (handles, cgroups) = setup_cgroups(ctx, 3, &dfl_wl(ctx))?;
//! std::thread::sleep(ctx.duration);
//! let result = collect_all(handles, &ctx.assert);
//! cgroups.remove()?;
//! # drop(result);
//! # Ok(())
//! # }
//! ```

use ktstr_proto::verdict::{Assert, AssertResult};

use super::{Ctx, ScenarioError};
use crate::{
    cgroup::CgroupGroup,
    check::{Group, judge_groups},
    work::{WorkError, WorkType, WorkloadConfig, WorkloadHandle, now_ns},
};

/// What the workers of a cgroup definition that says nothing do: [`Ctx::workers_per_cgroup`] forked ones spin,
/// and their choices come from the test's seed.
pub fn dfl_wl(ctx: &Ctx) -> WorkloadConfig {
    WorkloadConfig { workers: ctx.workers_per_cgroup, seed: ctx.seed, ..WorkloadConfig::default() }
}

/// Makes `n` cgroups, `cg_0`, `cg_1` and so on, and starts the workers of `wl` in each. Workloads differ in their
/// seeds only. The cgroups are removed with their owner, and what still lives in them then is killed:
/// collect the workers first ([`collect_all`]).
pub fn setup_cgroups<'a>(
    ctx: &'a Ctx,
    n: usize,
    wl: &WorkloadConfig,
) -> Result<(Vec<WorkloadHandle>, CgroupGroup<'a>), ScenarioError> {
    let mut group = CgroupGroup::new(&ctx.cgroups);
    for index in 0..n {
        group.add(&format!("cg_{index}"))?;
    }
    let names: Vec<&str> = group.names().iter().map(String::as_str).collect();
    let handles = start_in(ctx, &names, |_| wl.clone())?;
    Ok((handles, group))
}

/// Starts a different kind of work in each of these cgroups, which are there already: spinning, bursts, synced writes,
/// a mixture, yields, and from the beginning again. Synced writes have two workers, the rest as [`dfl_wl`].
pub fn spawn_diverse(ctx: &Ctx, cgroups: &[&str]) -> Result<Vec<WorkloadHandle>, ScenarioError> {
    let kinds = [
        WorkType::SpinWait,
        WorkType::bursty(),
        WorkType::IoSyncWrite,
        WorkType::Mixed,
        WorkType::YieldHeavy,
    ];
    start_in(ctx, cgroups, |index| {
        let work_type = kinds[index % kinds.len()].clone();
        let workers = if work_type == WorkType::IoSyncWrite { 2 } else { ctx.workers_per_cgroup };
        WorkloadConfig { workers, work_type, ..dfl_wl(ctx) }
    })
}

/// Stops all workers at once and judges them by `assert`; each workload's workers are compared with each other.
/// Without workers nothing was tested.
pub fn collect_all(mut handles: Vec<WorkloadHandle>, assert: &Assert) -> AssertResult {
    if handles.is_empty() {
        return AssertResult::skip("there are no workers to judge");
    }
    let lived: Vec<_> = handles.iter().map(WorkloadHandle::lived).collect();
    handles.iter_mut().for_each(WorkloadHandle::request_stop);
    let ended_ns = Some(now_ns());
    let groups = handles.into_iter().zip(lived);
    let mut groups: Vec<Group> = groups
        .map(|(handle, lived)| Group {
            reports: handle.stop_and_collect(),
            lived,
            ended_ns,
            ..Group::default()
        })
        .collect();
    groups.sort_by(|a, b| cgroup_of(a).cmp(&cgroup_of(b)));
    judge_groups(assert, None, groups)
}

fn cgroup_of(group: &Group) -> Option<&str> {
    group.reports.first().map(|worker| worker.cgroup.as_str())
}

/// Starts what `workload` says of each cgroup, all of it once all of it is made.
fn start_in(
    ctx: &Ctx,
    cgroups: &[&str],
    workload: impl Fn(usize) -> WorkloadConfig,
) -> Result<Vec<WorkloadHandle>, ScenarioError> {
    let mut handles = Vec::new();
    for (index, cgroup) in cgroups.iter().enumerate() {
        let config = workload(index);
        let seed = config.seed.wrapping_add((index as u64) << 32);
        let config = WorkloadConfig { cgroup: (*cgroup).into(), seed, ..config };
        let handle = WorkloadHandle::spawn(config).map_err(refused(cgroup))?;
        for pid in handle.pids() {
            ctx.cgroups.move_process(cgroup, pid)?;
        }
        handles.push(handle);
    }
    for (handle, cgroup) in handles.iter_mut().zip(cgroups) {
        handle.start().map_err(refused(cgroup))?;
    }
    Ok(handles)
}

fn refused(cgroup: &str) -> impl Fn(WorkError) -> ScenarioError {
    move |source| ScenarioError::Work { cgroup: cgroup.into(), source }
}

//! Carries out cgroup definitions: create, fork, place, start, hold, stop, judge, remove.

use ktstr_proto::{guest::Phase, verdict::AssertResult};

use super::{CgroupDef, CpusetError, Ctx};
use crate::{
    cgroup::{CgroupError, CgroupGroup},
    check,
    report::ReportError,
    work::{WorkError, WorkloadConfig, WorkloadHandle},
};

/// Why a scenario could not be carried out; says nothing about the scheduler.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// Nothing to do.
    #[error("the scenario defines no cgroup")]
    NoCgroups,
    /// A cgroup without workers.
    #[error("cgroup `{cgroup}` has no workers")]
    NoWorkers {
        /// The cgroup.
        cgroup: String,
    },
    /// The machine has no such CPUs.
    #[error("cannot choose the CPUs of cgroup `{cgroup}`")]
    Cpuset {
        /// The cgroup.
        cgroup: String,
        /// Why.
        #[source]
        source: CpusetError,
    },
    /// The cgroups could not be set up or removed.
    #[error("cannot set up or remove the cgroups")]
    Cgroup(#[from] CgroupError),
    /// PID 1 does not listen.
    #[error("cannot tell PID 1 how far the scenario is")]
    Report(#[from] ReportError),
    /// The workers could not be had.
    #[error("cannot run the workers of cgroup `{cgroup}`")]
    Work {
        /// The cgroup.
        cgroup: String,
        /// Why.
        #[source]
        source: WorkError,
    },
}

/// Runs all cgroups at once for [`Ctx::duration`] and judges every worker by [`Ctx::assert`].
///
/// Workers are forked and placed in their cgroup before any of them starts.
pub fn execute_defs(ctx: &Ctx, defs: Vec<CgroupDef>) -> Result<AssertResult, ScenarioError> {
    let configs = plan(ctx, &defs)?;
    let mut group = CgroupGroup::new(&ctx.cgroups);
    let controllers: &[&'static str] =
        if defs.iter().any(|def| def.cpuset.is_some()) { &["cpu", "cpuset"] } else { &["cpu"] };
    ctx.cgroups.enable(controllers)?;
    let mut handles = Vec::new();
    for (def, config) in defs.iter().zip(configs) {
        group.add(&def.name)?;
        if def.cpuset.is_some() {
            ctx.cgroups.set_cpuset(&def.name, &config.cpus_allowed)?;
        }
        let handle = WorkloadHandle::spawn(config)
            .map_err(|source| ScenarioError::Work { cgroup: def.name.clone(), source })?;
        for pid in handle.pids() {
            ctx.cgroups.move_process(&def.name, pid)?;
        }
        handles.push(handle);
    }
    for (def, handle) in defs.iter().zip(&mut handles) {
        handle.start().map_err(|source| ScenarioError::Work { cgroup: def.name.clone(), source })?;
    }
    ctx.phase(Phase::ScenarioStarted)?;
    let workers: usize = handles.iter().map(|handle| handle.pids().len()).sum();
    ctx.stimulus(format!("{} cgroups with {workers} workers started", defs.len()), 0)?;
    std::thread::sleep(ctx.duration);
    for handle in &mut handles {
        handle.request_stop();
    }
    ctx.phase(Phase::ScenarioEnded)?;
    let iterations = handles.iter().map(WorkloadHandle::iterations).sum();
    ctx.stimulus(format!("{workers} workers told to stop"), iterations)?;
    let reports = handles.into_iter().flat_map(WorkloadHandle::stop_and_collect).collect();
    let result = check::judge(&ctx.assert, reports);
    group.remove()?;
    Ok(result)
}

/// Everything that can be refused before anything is created.
fn plan(ctx: &Ctx, defs: &[CgroupDef]) -> Result<Vec<WorkloadConfig>, ScenarioError> {
    if defs.is_empty() {
        return Err(ScenarioError::NoCgroups);
    }
    let mut configs: Vec<WorkloadConfig> = Vec::new();
    for (index, def) in defs.iter().enumerate() {
        let cpus_allowed = match &def.cpuset {
            Some(spec) => spec
                .resolve(&ctx.topology)
                .map_err(|source| ScenarioError::Cpuset { cgroup: def.name.clone(), source })?,
            None => Vec::new(),
        };
        let workers = def.workers.unwrap_or(ctx.workers_per_cgroup);
        if workers == 0 {
            return Err(ScenarioError::NoWorkers { cgroup: def.name.clone() });
        }
        configs.push(WorkloadConfig {
            workers,
            work_type: def.work_type,
            cgroup: def.name.clone(),
            cpus_allowed,
            seed: ctx.seed.wrapping_add((index as u64) << 32),
            attributes: Vec::new(),
        });
    }
    Ok(configs)
}

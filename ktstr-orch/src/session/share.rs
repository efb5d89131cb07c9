//! A run and the part of the host that it was granted: its processes are held to it, from before the
//! machine is built until it is gone.

use ktstr_proto::vmm::Isolation;

use super::{Session, State, Stopped};
use crate::{
    children::Child,
    host::{
        Share,
        effects::{self, Applied},
        placement,
        topology::{CpuSet, format_list},
    },
    plan::Plan,
};

/// What the VMM is to see to.
pub(super) fn isolation(plan: &Plan) -> Option<Isolation> {
    match &plan.grant.share {
        Share::Isolated(placement) => Some(Isolation { nodes: placement.nodes.clone() }),
        Share::Usual | Share::Budget(_) => None,
    }
}

/// Host CPUs that everything of a run is held to, if it is.
pub(super) fn cpus(plan: &Plan) -> Option<CpuSet> {
    match &plan.grant.share {
        Share::Usual => None,
        Share::Budget(budget) => Some(budget.cpus.clone()),
        Share::Isolated(placement) => {
            Some(placement.cpus.iter().copied().chain([placement.service]).collect())
        }
    }
}

/// Holds a process that has not begun to work, and what it will start, to them.
pub(super) fn hold(plan: &Plan, pid: u32) -> Result<(), String> {
    let Some(cpus) = cpus(plan) else { return Ok(()) };
    effects::confine_process(pid, &cpus)
        .map_err(|error| format!("the host does not hold processes to CPUs {}: {error}", format_list(&cpus)))
}

impl Session {
    /// Holds a process that has not begun to work, and what it will start, to the machine's host CPUs.
    pub(super) fn hold_to_share(&mut self, plan: &Plan, pid: u32) -> Result<(), Stopped> {
        hold(plan, pid).map_err(Stopped::Missing)?;
        if let Share::Budget(budget) = &plan.grant.share {
            let told = format!("cpu_budget: the machine runs on host CPUs {}", format_list(&budget.cpus));
            if !self.notes.contains(&told) {
                self.notice(told);
            }
        }
        Ok(())
    }

    /// Puts every vCPU on its own host CPU as soon as all have threads; what is to be measured must not
    /// begin before.
    pub(super) fn isolate(&mut self, at_once: bool) {
        let Some(Share::Isolated(placement)) = self.plan.as_ref().map(|plan| &plan.grant.share) else {
            return;
        };
        if self.isolated || self.state != State::Running {
            return;
        }
        let placement = placement.clone();
        let Some(vmm) = self.vmm.as_ref().map(Child::pid) else { return };
        match effects::apply(vmm, &placement) {
            Ok(Applied::Wholly) => self.isolated = true,
            Ok(Applied::Partly) if at_once => {
                return self.stop(Stopped::Missing("performance mode: not every vCPU has a thread".into()));
            }
            Ok(Applied::Partly) => return,
            Err(refusals) => return self.stop(Stopped::Missing(refusals.to_string())),
        }
        self.record("isolated", &placement.to_string());
        self.notice(format!("performance mode: {placement}"));
        let beside = [self.monitor.as_ref().map(Child::pid), self.device.as_ref().map(Child::pid)];
        let service = CpuSet::from([placement.service]);
        for pid in beside.into_iter().flatten() {
            if let Err(error) = effects::confine_process(pid, &service) {
                let cpus = placement::all_cpus(&placement);
                return self.stop(Stopped::Missing(format!("performance mode on CPUs {cpus}: {error}")));
            }
        }
    }

    /// Others may have it.
    pub(super) fn release_share(&mut self) {
        if let Some(plan) = &mut self.plan {
            plan.grant.release();
        }
    }
}

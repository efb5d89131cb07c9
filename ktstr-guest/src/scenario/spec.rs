//! What a group of workers does and how, as data.

use super::AffinityIntent;
use crate::{
    attributes::{MemPolicy, MpolFlags, SchedPolicy},
    work::WorkType,
};

/// A group of workers. What is not said is taken from the [`super::CgroupDef`] it stands in, then from
/// the defaults: [`super::Ctx::workers_per_cgroup`] workers that spin and change nothing.
#[derive(Debug, Clone, PartialEq, Default)]
#[must_use]
pub struct WorkSpec {
    /// What each worker does.
    pub work_type: Option<WorkType>,
    /// How many workers.
    pub workers: Option<u32>,
    /// How many workers, as a multiple of the cgroup's CPUs, rounded up; 1.0 is one for each.
    pub workers_pct: Option<f64>,
    /// Scheduling policy.
    pub sched_policy: Option<SchedPolicy>,
    /// CPUs of each worker.
    pub affinity: Option<AffinityIntent>,
    /// Where their memory comes from.
    pub mem_policy: Option<MemPolicy>,
    /// How the nodes of `mem_policy` are meant.
    pub mpol_flags: Option<MpolFlags>,
    /// Nice value.
    pub nice: Option<i32>,
    /// Name of each worker, `task->comm`.
    pub comm: Option<String>,
    /// Name of a process whose threads the workers are; groups of one cgroup
    /// with the same name share it.
    pub pcomm: Option<String>,
    /// User id.
    pub uid: Option<u32>,
    /// Group id.
    pub gid: Option<u32>,
    /// CPUs of this NUMA node only.
    pub numa_node: Option<u32>,
    /// Whether the scenario goes on only once each of them has done its first iteration.
    pub signal_first_iteration: Option<bool>,
    /// After how many iterations each of them parks: it sleeps until its end.
    pub park_after_iterations: Option<u64>,
}

macro_rules! setters {
    ($(#[doc = $doc:literal] $name:ident: $type:ty = $convert:expr;)*) => {
        $(#[doc = $doc]
        pub fn $name(mut self, value: $type) -> Self {
            self.$name = Some($convert(value));
            self
        })*
    };
}

impl WorkSpec {
    /// Workers that do this.
    pub fn new(work_type: WorkType) -> Self {
        Self { work_type: Some(work_type), ..Self::default() }
    }

    setters! {
        /// Sets what each worker does.
        work_type: WorkType = std::convert::identity;
        /// Sets the number of workers.
        workers: u32 = std::convert::identity;
        /// Sets the number of workers as a multiple of the cgroup's CPUs, rounded up.
        workers_pct: f64 = std::convert::identity;
        /// Sets the scheduling policy.
        sched_policy: SchedPolicy = std::convert::identity;
        /// Sets the CPUs of each worker.
        affinity: AffinityIntent = std::convert::identity;
        /// Sets where memory comes from.
        mem_policy: MemPolicy = std::convert::identity;
        /// Sets how the nodes of the memory policy are meant.
        mpol_flags: MpolFlags = std::convert::identity;
        /// Sets the nice value, −20 to 19.
        nice: i32 = std::convert::identity;
        /// Names each worker; the kernel keeps 15 bytes.
        comm: impl Into<String> = Into::into;
        /// Makes the workers threads of one process of this name.
        pcomm: impl Into<String> = Into::into;
        /// Sets the user id.
        uid: u32 = std::convert::identity;
        /// Sets the group id.
        gid: u32 = std::convert::identity;
        /// Restricts the workers to the CPUs of one NUMA node.
        numa_node: u32 = std::convert::identity;
        /// Lets the scenario go on only once each worker has done its first iteration.
        signal_first_iteration: bool = std::convert::identity;
        /// Parks each worker after so many iterations: it sleeps until its end.
        park_after_iterations: u64 = std::convert::identity;
    }

    /// `self`, completed from `outer` where it says nothing.
    pub(super) fn within(&self, outer: &Self) -> Self {
        let inner = self.clone();
        let counted = inner.workers.is_some() || inner.workers_pct.is_some();
        Self {
            work_type: inner.work_type.or_else(|| outer.work_type.clone()),
            workers: if counted { inner.workers } else { outer.workers },
            workers_pct: if counted { inner.workers_pct } else { outer.workers_pct },
            sched_policy: inner.sched_policy.or(outer.sched_policy),
            affinity: inner.affinity.or_else(|| outer.affinity.clone()),
            mem_policy: inner.mem_policy.or_else(|| outer.mem_policy.clone()),
            mpol_flags: inner.mpol_flags.or(outer.mpol_flags),
            nice: inner.nice.or(outer.nice),
            comm: inner.comm.or_else(|| outer.comm.clone()),
            pcomm: inner.pcomm.or_else(|| outer.pcomm.clone()),
            uid: inner.uid.or(outer.uid),
            gid: inner.gid.or(outer.gid),
            numa_node: inner.numa_node.or(outer.numa_node),
            park_after_iterations: inner.park_after_iterations.or(outer.park_after_iterations),
            signal_first_iteration: inner.signal_first_iteration.or(outer.signal_first_iteration),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_group_does_not_say_comes_from_its_cgroup() {
        let outer = WorkSpec::default().workers(4).nice(3).comm("outer");
        let inner = WorkSpec::new(WorkType::YieldHeavy).workers_pct(0.5).comm("inner").within(&outer);
        assert_eq!((inner.workers, inner.workers_pct), (None, Some(0.5)));
        assert_eq!((inner.nice, inner.comm.as_deref()), (Some(3), Some("inner")));
        assert_eq!(inner.work_type, Some(WorkType::YieldHeavy));
    }
}

//! A cgroup, the work done in it and its limits, as data.

use std::collections::BTreeSet;

use super::{AffinityIntent, CpusetSpec, Payload, WorkSpec};
use crate::{
    attributes::{MemPolicy, MpolFlags, SchedPolicy},
    cgroup::{CpuQuota, Limit, Limits},
    work::WorkType,
};

/// A cgroup with its workers.
///
/// Without [`Self::work`] it has one group of workers, made of what the other setters say; with it, the
/// setters complete each group where that says nothing.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct CgroupDef {
    /// Name: one path component, or several below each other (`outer/inner`).
    pub name: String,
    /// CPUs it may use; `None` is all.
    pub cpuset: Option<CpusetSpec>,
    /// NUMA nodes it may have memory from; `None` is all.
    pub cpuset_mems: Option<BTreeSet<u32>>,
    /// What all its workers have in common.
    pub base: WorkSpec,
    /// Its groups of workers; empty is one group made of `base`.
    pub works: Vec<WorkSpec>,
    /// Programs that run in it beside the workers.
    pub workloads: Vec<Payload>,
    /// Its limits.
    pub limits: Limits,
    /// Whether a run may replace what its workers do, see [`super::Ctx::work_type_override`].
    pub swappable: bool,
    /// Whether it has workers at all.
    pub populated: bool,
}

macro_rules! base_setters {
    ($(#[doc = $doc:literal] $name:ident: $type:ty;)*) => {
        $(#[doc = $doc]
        pub fn $name(mut self, value: $type) -> Self {
            self.base = self.base.$name(value);
            self
        })*
    };
}

macro_rules! limit_setters {
    ($(#[doc = $doc:literal] $name:ident($($argument:ident: $type:ty),*) $field:ident = $value:expr;)*) => {
        $(#[doc = $doc]
        pub fn $name(mut self, $($argument: $type),*) -> Self {
            self.limits.$field = Some($value);
            self
        })*
    };
}

impl CgroupDef {
    /// A cgroup with the default number of spinning workers on all CPUs.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            cpuset: None,
            cpuset_mems: None,
            base: WorkSpec::default(),
            works: Vec::new(),
            workloads: Vec::new(),
            limits: Limits::default(),
            swappable: false,
            populated: true,
        }
    }

    /// A cgroup without workers: a parent of others, or a place to move them to.
    pub fn empty(name: impl Into<String>) -> Self {
        Self { populated: false, ..Self::named(name) }
    }

    /// Restricts it to some CPUs.
    pub fn cpuset(mut self, cpuset: CpusetSpec) -> Self {
        self.cpuset = Some(cpuset);
        self
    }

    /// As [`Self::cpuset`].
    pub fn with_cpuset(self, cpuset: CpusetSpec) -> Self {
        self.cpuset(cpuset)
    }

    /// Restricts its memory to some NUMA nodes.
    pub fn cpuset_mems(mut self, nodes: impl IntoIterator<Item = u32>) -> Self {
        self.cpuset_mems = Some(nodes.into_iter().collect());
        self
    }

    /// Adds a group of workers.
    pub fn work(mut self, work: WorkSpec) -> Self {
        self.works.push(work);
        self
    }

    /// Runs a program in it, from its creation to its end.
    pub fn workload(mut self, payload: &Payload) -> Self {
        self.workloads.push(*payload);
        self
    }

    /// Lets a run replace what its workers do.
    pub fn swappable(mut self, swappable: bool) -> Self {
        self.swappable = swappable;
        self
    }

    base_setters! {
        /// Sets the number of workers.
        workers: u32;
        /// Sets the number of workers as a multiple of its CPUs, rounded up.
        workers_pct: f64;
        /// Sets what the workers do.
        work_type: WorkType;
        /// Sets the scheduling policy of its workers.
        sched_policy: SchedPolicy;
        /// Sets the CPUs of each worker.
        affinity: AffinityIntent;
        /// Sets where its workers' memory comes from.
        mem_policy: MemPolicy;
        /// Sets how the nodes of the memory policy are meant.
        mpol_flags: MpolFlags;
        /// Sets the nice value of its workers.
        nice: i32;
        /// Names its workers.
        comm: impl Into<String>;
        /// Makes its workers threads of one process of this name.
        pcomm: impl Into<String>;
        /// Sets the user id of its workers.
        uid: u32;
        /// Sets the group id of its workers.
        gid: u32;
        /// Restricts its workers to the CPUs of one NUMA node.
        numa_node: u32;
        /// Lets the scenario go on only once each worker has done its first iteration.
        signal_first_iteration: bool;
        /// Parks each worker after so many iterations: it sleeps until its end.
        park_after_iterations: u64;
    }

    limit_setters! {
        /// Limits CPU time to `pct` percent of one CPU.
        cpu_quota_pct(pct: u32) cpu = CpuQuota {
            quota: Limit::At(u64::from(pct) * CpuQuota::PERIOD_US / 100),
            period_us: CpuQuota::PERIOD_US,
        };
        /// Limits CPU time to `quota_us` in each `period_us`.
        cpu_quota(quota_us: u64, period_us: u64) cpu = CpuQuota { quota: Limit::At(quota_us), period_us };
        /// Lifts the limit of CPU time.
        cpu_unlimited() cpu = CpuQuota { quota: Limit::Unlimited, period_us: CpuQuota::PERIOD_US };
        /// Sets its share of CPU time, 1 to 10000; the kernel's default is 100.
        cpu_weight(weight: u32) cpu_weight = weight;
        /// Limits its memory, bytes.
        memory_max(bytes: u64) memory_max = Limit::At(bytes);
        /// Throttles it above so much memory, bytes.
        memory_high(bytes: u64) memory_high = Limit::At(bytes);
        /// Protects so much of its memory, bytes.
        memory_low(bytes: u64) memory_low = Limit::At(bytes);
        /// Lifts the limit of its memory.
        memory_unlimited() memory_max = Limit::Unlimited;
        /// Limits its swap space, bytes.
        memory_swap_max(bytes: u64) memory_swap_max = Limit::At(bytes);
        /// Lifts the limit of its swap space.
        memory_swap_unlimited() memory_swap_max = Limit::Unlimited;
        /// Sets its share of I/O, 1 to 10000; the kernel's default is 100.
        io_weight(weight: u32) io_weight = weight;
        /// Limits the number of its tasks.
        pids_max(tasks: u64) pids_max = Limit::At(tasks);
        /// Lifts the limit of its tasks.
        pids_unlimited() pids_max = Limit::Unlimited;
    }

    /// Its groups of workers, each complete.
    pub(super) fn groups(&self) -> Vec<WorkSpec> {
        match (self.populated, self.works.as_slice()) {
            (false, []) => Vec::new(),
            (true, []) => vec![self.base.clone()],
            (_, works) => works.iter().map(|work| work.within(&self.base)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_work_there_is_one_group_and_with_it_the_setters_complete_each() {
        let plain = CgroupDef::named("a").workers(3).nice(5);
        assert_eq!(plain.groups(), [WorkSpec::default().workers(3).nice(5)]);
        let several =
            plain.work(WorkSpec::new(WorkType::YieldHeavy)).work(WorkSpec::new(WorkType::SpinWait).nice(0));
        let nices: Vec<_> = several.groups().iter().map(|g| g.nice).collect();
        assert_eq!(nices, [Some(5), Some(0)]);
        assert!(CgroupDef::empty("p").groups().is_empty());
    }
}

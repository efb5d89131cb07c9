//! A cgroup and its workers, as data.

use super::CpusetSpec;
use crate::work::WorkType;

/// A cgroup, the CPUs it may use and the work done in it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct CgroupDef {
    /// Name, one path component.
    pub name: String,
    /// Number of workers; `None` is [`super::Ctx::workers_per_cgroup`].
    pub workers: Option<u32>,
    /// What the workers do.
    pub work_type: WorkType,
    /// CPUs it may use; `None` is all.
    pub cpuset: Option<CpusetSpec>,
}

impl CgroupDef {
    /// A cgroup with the default number of [`WorkType::SpinWait`] workers on all CPUs.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), workers: None, work_type: WorkType::SpinWait, cpuset: None }
    }

    /// Sets the number of workers.
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Sets what the workers do.
    pub fn work_type(mut self, work_type: WorkType) -> Self {
        self.work_type = work_type;
        self
    }

    /// Restricts it to some CPUs.
    pub fn cpuset(mut self, cpuset: CpusetSpec) -> Self {
        self.cpuset = Some(cpuset);
        self
    }
}

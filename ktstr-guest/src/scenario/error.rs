//! Why a scenario could not be carried out. None of it says anything about the scheduler.

use super::{AffinityError, CpusetError, HostError, PayloadError};
use crate::{
    attributes::{MemPolicyError, SchedPolicyError},
    cgroup::{CgroupError, LimitError},
    report::ReportError,
    work::WorkError,
};

/// Why a scenario could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// Nothing to do.
    #[error("the scenario has no steps")]
    NoSteps,
    /// No cgroup has workers.
    #[error("the scenario defines no cgroup")]
    NoCgroups,
    /// A cgroup without workers.
    #[error("cgroup `{cgroup}` has a group of no workers")]
    NoWorkers {
        /// The cgroup.
        cgroup: String,
    },
    /// Two ways to say how many.
    #[error("cgroup `{cgroup}` gives both `workers` and `workers_pct`: one of them must go")]
    WorkersTwice {
        /// The cgroup.
        cgroup: String,
    },
    /// A name is not known.
    #[error("{place} names {what} `{name}`, which is not there then{}", hint(near.as_deref(), known))]
    Unknown {
        /// Where it stands.
        place: String,
        /// Cgroup, payload or scheduler.
        what: &'static str,
        /// The name.
        name: String,
        /// The nearest known one.
        near: Option<String>,
        /// All known ones.
        known: Vec<String>,
    },
    /// A name is used twice.
    #[error("{place} creates {what} `{name}`, which is there already")]
    Exists {
        /// Where it stands.
        place: String,
        /// Cgroup or payload.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Removing it would strand others.
    #[error("{place}: {reason}")]
    Impossible {
        /// Where it stands.
        place: String,
        /// Why it cannot be done.
        reason: String,
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
    /// The cgroup allows no such CPUs.
    #[error("cannot choose the CPUs of a worker of cgroup `{cgroup}`")]
    Affinity {
        /// The cgroup.
        cgroup: String,
        /// Why.
        #[source]
        source: AffinityError,
    },
    /// No kernel takes the policy.
    #[error("the scheduling policy of cgroup `{cgroup}` is impossible")]
    SchedPolicy {
        /// The cgroup.
        cgroup: String,
        /// Why.
        #[source]
        source: SchedPolicyError,
    },
    /// An attribute of workers cannot be had.
    #[error("workers of cgroup `{cgroup}`: {reason}")]
    Attribute {
        /// The cgroup.
        cgroup: String,
        /// What was asked for and why it is refused.
        reason: String,
    },
    /// No kernel takes the memory policy.
    #[error("the memory policy of cgroup `{cgroup}` is impossible")]
    MemPolicy {
        /// The cgroup.
        cgroup: String,
        /// Why.
        #[source]
        source: MemPolicyError,
    },
    /// No kernel takes the limit.
    #[error("a limit of cgroup `{cgroup}` is impossible")]
    Limit {
        /// The cgroup.
        cgroup: String,
        /// Why.
        #[source]
        source: LimitError,
    },
    /// The cgroups could not be set up, changed or removed.
    #[error("cannot set up, change or remove the cgroups")]
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
    /// A program could not be run.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The system refused an operation.
    #[error("{place}: cannot write {path}")]
    File {
        /// The operation.
        place: String,
        /// The file.
        path: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The host did not do it.
    #[error("{place}: the host did not do it")]
    Host {
        /// The operation.
        place: String,
        /// Why.
        #[source]
        source: HostError,
    },
    /// PID 1 could not do it.
    #[error("{place}: {reason}")]
    Scheduler {
        /// The operation.
        place: String,
        /// What PID 1 said.
        reason: String,
    },
}

fn hint(near: Option<&str>, known: &[String]) -> String {
    match (near, known) {
        (Some(near), _) => format!("; did you mean `{near}`?"),
        (None, []) => "; there is none at all".into(),
        (None, known) => format!("; known are: {}", known.join(", ")),
    }
}

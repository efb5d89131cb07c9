//! What a test file needs: `use ktstr::prelude::*;`.

pub use std::time::Duration;

/// A result whose error is any error, as test functions return it.
pub use anyhow::{Context, Result, anyhow, bail, ensure};
pub use ktstr_guest::{
    cgroup::{CgroupGroup, Cgroups},
    scenario::{CgroupDef, CpusetSpec, Ctx},
    work::{WorkType, WorkloadConfig, WorkloadHandle},
};
pub use ktstr_macros::{declare_scheduler, ktstr_test};
pub use ktstr_proto::{
    Topology,
    verdict::{
        Assert, AssertResult, CgroupStats, DetailKind, Outcome, ScenarioStats, WorkerExit, WorkerReport,
    },
};

pub use crate::{
    Scheduler,
    scenario::{execute_defs, judge, scenarios},
};

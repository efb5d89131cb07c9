//! The engine of [`ktstr_guest`] with errors as test functions return them.

use anyhow::Result;
use ktstr_guest::scenario::{CgroupDef, Ctx};
use ktstr_proto::verdict::{AssertResult, WorkerReport};

/// Runs all cgroups at once for the test's duration and judges every worker by the test's thresholds.
pub fn execute_defs(ctx: &Ctx, defs: Vec<CgroupDef>) -> Result<AssertResult> {
    Ok(ktstr_guest::scenario::execute_defs(ctx, defs)?)
}

/// Judges workers that the test started by hand; `reports` are ordered by cgroup.
pub fn judge(ctx: &Ctx, reports: Vec<WorkerReport>) -> AssertResult {
    ktstr_guest::check::judge(&ctx.assert, reports)
}

/// Ready-made scenarios.
pub mod scenarios {
    use super::{AssertResult, Ctx, Result};

    /// Two cgroups of spinning workers on all CPUs, nothing changes: the least any scheduler must do.
    pub fn steady(ctx: &Ctx) -> Result<AssertResult> {
        Ok(ktstr_guest::scenario::scenarios::steady(ctx)?)
    }
}

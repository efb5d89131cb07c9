//! The engine of [`ktstr_guest`] with errors as test functions return them.

use anyhow::Result;
use ktstr_guest::scenario::{self as engine, Backdrop, CgroupDef, Ctx, Step};
use ktstr_proto::verdict::{Assert, AssertResult, WorkerReport};

pub use ktstr_guest::scenario::scenarios;

/// Runs all cgroups at once for the test's duration and judges every worker by the test's thresholds.
pub fn execute_defs(ctx: &Ctx, defs: Vec<CgroupDef>) -> Result<AssertResult> {
    Ok(engine::execute_defs(ctx, defs)?)
}

/// Runs steps one after the other.
pub fn execute_steps(ctx: &Ctx, steps: Vec<Step>) -> Result<AssertResult> {
    Ok(engine::execute_steps(ctx, steps)?)
}

/// As [`execute_steps`], judged by `assert` instead of the test's thresholds, if it is given.
pub fn execute_steps_with(ctx: &Ctx, steps: Vec<Step>, assert: Option<&Assert>) -> Result<AssertResult> {
    Ok(engine::execute_steps_with(ctx, steps, assert)?)
}

/// Runs steps one after the other before a backdrop that lasts through all of them.
pub fn execute_scenario(ctx: &Ctx, backdrop: Backdrop, steps: Vec<Step>) -> Result<AssertResult> {
    Ok(engine::execute_scenario(ctx, backdrop, steps)?)
}

/// As [`execute_scenario`], judged by `assert` instead of the test's thresholds, if it is given.
pub fn execute_scenario_with(
    ctx: &Ctx,
    backdrop: Backdrop,
    steps: Vec<Step>,
    assert: Option<&Assert>,
) -> Result<AssertResult> {
    Ok(engine::execute_scenario_with(ctx, backdrop, steps, assert)?)
}

/// Judges workers that the test started by hand; `reports` are ordered by cgroup.
pub fn judge(ctx: &Ctx, reports: Vec<WorkerReport>) -> AssertResult {
    ktstr_guest::check::judge(&ctx.assert, reports)
}

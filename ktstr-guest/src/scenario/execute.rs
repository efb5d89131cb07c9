//! The ways to run a scenario.

use ktstr_proto::verdict::{Assert, AssertResult};

use super::{Backdrop, CgroupDef, Ctx, HoldSpec, ScenarioError, Step, engine};

/// Runs all cgroups at once for [`Ctx::duration`] and judges every worker by [`Ctx::assert`].
pub fn execute_defs(ctx: &Ctx, defs: Vec<CgroupDef>) -> Result<AssertResult, ScenarioError> {
    if defs.is_empty() {
        return Err(ScenarioError::NoCgroups);
    }
    execute_steps(ctx, vec![Step::with_defs(defs, HoldSpec::FULL)])
}

/// Runs steps one after the other.
pub fn execute_steps(ctx: &Ctx, steps: Vec<Step>) -> Result<AssertResult, ScenarioError> {
    execute_scenario_with(ctx, Backdrop::new(), steps, None)
}

/// As [`execute_steps`], judged by `assert` instead of [`Ctx::assert`], if it is given.
pub fn execute_steps_with(
    ctx: &Ctx,
    steps: Vec<Step>,
    assert: Option<&Assert>,
) -> Result<AssertResult, ScenarioError> {
    execute_scenario_with(ctx, Backdrop::new(), steps, assert)
}

/// Runs steps one after the other before a backdrop that lasts through all of them.
pub fn execute_scenario(
    ctx: &Ctx,
    backdrop: Backdrop,
    steps: Vec<Step>,
) -> Result<AssertResult, ScenarioError> {
    execute_scenario_with(ctx, backdrop, steps, None)
}

/// As [`execute_scenario`], judged by `assert` instead of [`Ctx::assert`], if it is given.
pub fn execute_scenario_with(
    ctx: &Ctx,
    backdrop: Backdrop,
    steps: Vec<Step>,
    assert: Option<&Assert>,
) -> Result<AssertResult, ScenarioError> {
    engine::run(ctx, backdrop, steps, assert.unwrap_or(&ctx.assert))
}

//! Ready-made scenarios.

use ktstr_proto::verdict::AssertResult;

use super::{CgroupDef, Ctx, ScenarioError, execute_defs};

/// Two cgroups of spinning workers on all CPUs, nothing changes: the least any scheduler must do.
pub fn steady(ctx: &Ctx) -> Result<AssertResult, ScenarioError> {
    execute_defs(ctx, vec![CgroupDef::named("cg_0"), CgroupDef::named("cg_1")])
}

//! Ready-made scenarios. They return errors as test functions do.

use anyhow::Result;
use ktstr_proto::verdict::AssertResult;

use super::{Ctx, execute_defs};

/// Two cgroups of spinning workers on all CPUs, nothing changes: the least any scheduler must do.
pub fn steady(ctx: &Ctx) -> Result<AssertResult> {
    Ok(execute_defs(ctx, vec![ctx.cgroup_def("cg_0"), ctx.cgroup_def("cg_1")])?)
}

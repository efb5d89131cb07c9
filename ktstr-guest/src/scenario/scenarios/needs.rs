//! What a scenario needs of a machine; the reason when it is not there.

use super::Ctx;

/// At least so many CPUs.
pub fn cpus(ctx: &Ctx, needed: u32) -> Option<String> {
    lacks(ctx, ctx.topo.total_cpus(), needed, "CPUs")
}

/// At least so many last-level caches.
pub fn llcs(ctx: &Ctx, needed: u32) -> Option<String> {
    lacks(ctx, ctx.topo.num_llcs(), needed, "last-level caches")
}

fn lacks(ctx: &Ctx, has: u32, needed: u32, what: &str) -> Option<String> {
    (has < needed).then(|| format!("needs {needed} {what}, the machine ({}) has {has}", ctx.topo))
}

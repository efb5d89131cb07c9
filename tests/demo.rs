//! The demo: the fixture scheduler and the kernel's own, judged by the least any scheduler must do.

use ktstr::prelude::*;

declare_scheduler!(SCX_KTSTR, {
    name = "scx-ktstr",
    binary = "scx-ktstr",
    topology = (1, 2, 2, 1),
});

#[ktstr_test(scheduler = SCX_KTSTR, duration_s = 5)]
fn demo(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

#[ktstr_test(llcs = 1, cores = 2, threads = 1, duration_s = 5)]
fn eevdf(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

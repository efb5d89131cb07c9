//! The whole catalogue of ready-made scenarios on a real kernel: one boot, every scenario for a moment.
//!
//! `KTSTR_CATALOGUE_MS` changes the moment, `KTSTR_CATALOGUE` runs only scenarios whose name has that
//! text in it; both reach the guest through `KTSTR_GUEST_ENV`. Each scenario's outcome and time are printed.

use std::time::Instant;

use ktstr::prelude::*;

declare_scheduler!(SCX_KTSTR, { name = "scx-ktstr", binary = "scx-ktstr", topology = (1, 2, 2, 1) });
declare_scheduler!(SCX_BPFLAND, { name = "scx_bpfland", binary = "scx_bpfland", topology = (1, 2, 2, 1) });

/// How long each scenario runs when nothing is said.
const MOMENT: Duration = Duration::from_millis(400);

fn run_all(ctx: &Ctx) -> Result<AssertResult> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let moment = match set("KTSTR_CATALOGUE_MS") {
        Some(ms) => Duration::from_millis(ms.parse().context("KTSTR_CATALOGUE_MS")?),
        None => MOMENT,
    };
    let only = set("KTSTR_CATALOGUE").unwrap_or_default();
    let mut all = AssertResult::pass();
    let ctx = ctx.lasting(moment);
    for canned in scenarios::catalogue().filter(|canned| canned.name.contains(&only)) {
        let begun = Instant::now();
        let result = (canned.run)(&ctx).with_context(|| format!("{}::{}", canned.group, canned.name))?;
        println!(
            "{:12} {:45} {:12} {:6} ms",
            canned.group,
            canned.name,
            result.outcome.to_string(),
            begun.elapsed().as_millis()
        );
        for detail in result.details {
            println!("    {}", detail.message);
            all.push(detail.kind, detail.outcome, format!("{}: {}", canned.name, detail.message));
        }
    }
    Ok(all)
}

#[ktstr_test(llcs = 2, cores = 2, threads = 1, duration_s = 120)]
fn under_eevdf(ctx: &Ctx) -> Result<AssertResult> {
    run_all(ctx)
}

/// As [`under_eevdf`]; not part of every run, for its time.
#[ktstr_test(scheduler = SCX_KTSTR, duration_s = 120, ignore)]
fn under_scx_ktstr(ctx: &Ctx) -> Result<AssertResult> {
    run_all(ctx)
}

/// As [`under_eevdf`], under a scheduler that others publish; it has to be in `PATH` or `KTSTR_BIN_DIR`.
#[ktstr_test(scheduler = SCX_BPFLAND, duration_s = 120, ignore)]
fn under_scx_bpfland(ctx: &Ctx) -> Result<AssertResult> {
    run_all(ctx)
}

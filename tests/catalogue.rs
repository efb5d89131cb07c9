//! The whole catalogue of ready-made scenarios on a real kernel: one boot, every scenario for a moment.
//!
//! `KTSTR_CATALOGUE_MS` changes the moment, `KTSTR_CATALOGUE` runs only scenarios whose name has that
//! text in it; `KTSTR_CATALOGUE_AFTER` begins after the one of that name and `KTSTR_CATALOGUE_LIMIT_S` begins
//! none after so many seconds, which is how `cargo xtask scenarios` goes on in another boot. All reach the
//! guest through `KTSTR_GUEST_ENV`. Each scenario's begin, outcome and time are printed.

use std::time::Instant;

use ktstr::prelude::*;

declare_scheduler!(SCX_KTSTR, { name = "scx-ktstr", binary = "scx-ktstr", topology = (1, 2, 2, 1) });
declare_scheduler!(SCX_BPFLAND, { name = "scx_bpfland", binary = "scx_bpfland", topology = (1, 2, 2, 1) });
declare_scheduler!(SCX_LAVD, { name = "scx_lavd", binary = "scx_lavd", topology = (1, 2, 2, 1) });

/// How long each scenario runs when nothing is said.
const MOMENT: Duration = Duration::from_millis(400);

fn run_all(ctx: &Ctx) -> Result<AssertResult> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let moment = match set("KTSTR_CATALOGUE_MS") {
        Some(ms) => Duration::from_millis(ms.parse().context("KTSTR_CATALOGUE_MS")?),
        None => MOMENT,
    };
    let only = set("KTSTR_CATALOGUE").unwrap_or_default();
    let mut wanted: Vec<_> = scenarios::catalogue().filter(|canned| canned.name.contains(&only)).collect();
    if let Some(last) = set("KTSTR_CATALOGUE_AFTER") {
        let at = wanted.iter().position(|canned| format!("{}::{}", canned.group, canned.name) == last);
        wanted.drain(..=at.with_context(|| format!("KTSTR_CATALOGUE_AFTER: no scenario {last}"))?);
    }
    let limit = match set("KTSTR_CATALOGUE_LIMIT_S") {
        Some(s) => Duration::from_secs(s.parse().context("KTSTR_CATALOGUE_LIMIT_S")?),
        None => Duration::MAX,
    };
    let mut all = AssertResult::pass();
    let ctx = ctx.lasting(moment);
    let start = Instant::now();
    println!("catalogue: {} scenarios", wanted.len());
    for canned in wanted {
        if start.elapsed() >= limit {
            println!("catalogue: out of time");
            return Ok(all);
        }
        println!("catalogue: begins {}::{}", canned.group, canned.name);
        let begun = Instant::now();
        let result = (canned.run)(&ctx).with_context(|| format!("{}::{}", canned.group, canned.name))?;
        println!(
            "{:12} {:45} {:12} {:6} ms",
            canned.group,
            canned.name,
            result.outcome.to_string(),
            begun.elapsed().as_millis()
        );
        for mut detail in result.details {
            println!("    {}", detail.message);
            detail.message = format!("{}: {}", canned.name, detail.message);
            all.outcome = all.outcome.max(detail.outcome);
            // With its figures, by which the host's part in it is judged.
            all.details.push(detail);
        }
    }
    println!("catalogue: complete");
    Ok(all)
}

/// A host that withholds the vCPUs for seconds leaves some of it undecided.
#[ktstr_test(llcs = 2, cores = 2, threads = 1, duration_s = 120, allow_inconclusive)]
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

/// As [`under_scx_bpfland`], under another.
#[ktstr_test(scheduler = SCX_LAVD, duration_s = 120, ignore)]
fn under_scx_lavd(ctx: &Ctx) -> Result<AssertResult> {
    run_all(ctx)
}

//! Tests that run in this process, on this system: no machine, no orchestrator, and still a report and a
//! record like any other.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use ktstr_guest::scenario::Ctx;
use ktstr_proto::{
    Topology,
    verdict::{AssertResult, Cause, DetailKind, Outcome, RunReport},
};

use super::{KtstrTestEntry, Variant, everything_is_required, record, spec};
use crate::{guest_entry, render};

/// Runs the test function and prints its report; the error is the verdict in a few words.
pub fn run(entry: &KtstrTestEntry) -> Result<(), String> {
    let root = spec::own_runs_root();
    conclude(carry_out(entry, root), everything_is_required(std::env::var("KTSTR_REQUIRE").ok().as_deref()))
}

fn carry_out(entry: &KtstrTestEntry, runs_root: std::path::PathBuf) -> RunReport {
    let variant = Variant::of(entry);
    let mut report = record::blank(entry, &variant, runs_root, "host");
    report.kernel =
        nix::sys::utsname::uname().map_or(String::new(), |name| name.release().to_string_lossy().into());
    report.accel_detail = "this host".into();
    let started = Instant::now();
    let ctx = match context(entry, &mut report) {
        Ok(ctx) => ctx,
        Err(error) => {
            let cause = Cause::BadRequest { reason: format!("{error:#}") };
            (report.outcome, report.infrastructure, report.cause) = (Outcome::Fail, true, Some(cause));
            record::write(&mut report);
            return report;
        }
    };
    match catch_unwind(AssertUnwindSafe(|| (entry.run)(&ctx))) {
        Ok(Ok(result)) => {
            report.outcome = result.outcome;
            report.cause = (result.is_fail() || result.is_inconclusive()).then_some(Cause::Assertion);
            report.result = Some(result);
        }
        Ok(Err(error)) => {
            let text = format!("the test returned an error: {error:#}");
            (report.outcome, report.cause) = (Outcome::Fail, Some(Cause::Assertion));
            report.result = Some(AssertResult::fail(DetailKind::Claim, text));
        }
        Err(panic) => {
            let message = super::panic_text(&*panic);
            report.outcome = Outcome::Fail;
            report.cause = Some(Cause::TestPanic { message, backtrace: String::new() });
        }
    }
    report.host_ms = (0, u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
    record::write(&mut report);
    report
}

fn context(entry: &KtstrTestEntry, report: &mut RunReport) -> anyhow::Result<Ctx> {
    entry.validate()?;
    let seed = spec::seed(&report.name)?;
    let mut ctx = Ctx::on_host(&report.name, Duration::from_secs(entry.duration_s), seed)?;
    report.topology = shape(&ctx).unwrap_or(report.topology);
    ctx.assert = ctx.assert.merge(entry.assert);
    report.assert = Some(ctx.assert);
    guest_entry::prepare(&mut ctx, entry);
    Ok(ctx)
}

/// This host as far as four numbers can tell it: uneven hosts are told by their CPUs.
fn shape(ctx: &Ctx) -> Option<Topology> {
    let count = |groups: usize| u32::try_from(groups).ok();
    let (cpus, cores) = (ctx.topo.total_cpus(), count(ctx.topo.cores().len())?);
    let (nodes, llcs) = (ctx.topo.num_numa_nodes(), ctx.topo.num_llcs());
    let even = Topology::new(nodes, llcs, cores.checked_div(llcs)?, cpus.checked_div(cores)?);
    let even = even.ok().filter(|shape| shape.cpus() == cpus);
    even.or_else(|| Topology::new(1, 1, cpus, 1).ok())
}

fn conclude(report: RunReport, everything: bool) -> Result<(), String> {
    let text = render::on_host(&report);
    let why = match report.outcome {
        _ if report.infrastructure => Some("infrastructure failure".to_owned()),
        Outcome::Pass => None,
        Outcome::NotRun => everything.then(|| "not run, but KTSTR_REQUIRE demands all".to_owned()),
        Outcome::Inconclusive => report.undecided().then(|| "inconclusive".to_owned()),
        Outcome::Fail => Some("failed".to_owned()),
    };
    match why {
        Some(why) => {
            eprint!("{}", render::for_terminal(&text));
            Err(why)
        }
        None => {
            print!("{text}");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_host(run: fn(&Ctx) -> anyhow::Result<AssertResult>) -> (RunReport, RunReport) {
        let root = tempfile::tempdir().unwrap();
        let entry = KtstrTestEntry { name: "t", host_only: true, run, ..KtstrTestEntry::DEFAULT };
        let told = carry_out(&entry, root.path().into());
        let text = std::fs::read(told.run_dir.join("sidecar.json")).unwrap();
        (told, serde_json::from_slice(&text).unwrap())
    }

    #[test]
    fn an_error_is_told_and_recorded() {
        let (told, recorded) = on_host(|_| anyhow::bail!("the cheese is out"));
        assert_eq!((recorded.outcome, &recorded.cause), (Outcome::Fail, &Some(Cause::Assertion)));
        let text = render::on_host(&told);
        assert!(text.contains("[on this host] FAILED") && text.contains("the cheese is out"), "{text}");
        assert_eq!(conclude(told, false), Err("failed".into()));
    }

    #[test]
    fn a_panic_is_recorded() {
        let (told, recorded) = on_host(|_| panic!("no {}", "way"));
        let cause = Some(Cause::TestPanic { message: "no way".into(), backtrace: String::new() });
        assert_eq!((recorded.outcome, recorded.cause), (Outcome::Fail, cause));
        assert!(conclude(told, false).is_err());
    }

    #[test]
    fn what_passes_and_what_is_not_run_is_recorded_too() {
        let (_, passed) = on_host(|_| Ok(AssertResult::pass()));
        assert_eq!((passed.outcome, passed.cause), (Outcome::Pass, None));
        let (told, recorded) = on_host(|_| Ok(AssertResult::skip("no second node")));
        assert_eq!(recorded.outcome, Outcome::NotRun);
        assert_eq!(conclude(told.clone(), false), Ok(()));
        assert!(conclude(told, true).is_err(), "where everything is demanded");
    }

    #[test]
    fn inconclusive_is_a_failure_unless_the_test_allows_it() {
        let (mut told, _) = on_host(|_| {
            let mut result = AssertResult::pass();
            result.push(DetailKind::Gap, Outcome::Inconclusive, "who knows");
            Ok(result)
        });
        assert!(conclude(told.clone(), false).is_err());
        told.allow_inconclusive = true;
        assert_eq!(conclude(told, false), Ok(()));
    }
}

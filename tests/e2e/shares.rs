//! Scenarios that compare cgroups, on a real kernel: its own scheduler answers their questions with yes, and
//! one that knows neither weights nor quotas of cgroups is found by exactly these.

use ktstr::prelude::*;
use ktstr_proto::{
    Accel,
    verdict::{Detail, Outcome, RunReport},
};

use crate::harness::{run, spec};

declare_scheduler!(PLAIN, { name = "scx-ktstr", binary = "scx-ktstr", topology = (1, 1, 2, 1) });

/// Runs each scenario so long that all its steps are judged; findings say which one they are of.
fn all(ctx: &Ctx, names: &[(&str, u64)]) -> Result<AssertResult> {
    let mut all = AssertResult::pass();
    for (name, seconds) in names {
        let canned =
            scenarios::catalogue().find(|canned| canned.name == *name).context("no such scenario")?;
        let result = (canned.run)(&ctx.lasting(Duration::from_secs(*seconds)))?;
        println!("{name}: {}", result.outcome);
        for detail in &result.details {
            println!("    {}: {}", detail.outcome, detail.message);
        }
        for mut detail in result.details {
            detail.message = format!("{name}: {}", detail.message);
            all.outcome = all.outcome.max(detail.outcome);
            all.details.push(detail);
        }
    }
    Ok(all)
}

/// Scenarios with a length that gives each of their steps more than a second.
const COMPARED: &[(&str, u64)] = &[
    ("cgroup_weights", 3),
    ("cgroup_quota_change", 3),
    ("cgroup_cpuset_clear_midrun", 3),
    ("cgroup_add_midrun", 3),
    ("cgroup_remove_midrun", 3),
    ("cgroup_cpuset_load_shift", 3),
    ("cgroup_all_loaded", 2),
    ("stall_recovery", 4),
    ("cpu_hotplug", 4),
    ("nested_cgroup_imbalance", 2),
];

#[ktstr_test(llcs = 1, cores = 2, threads = 1, duration_s = 32, ignore)]
fn shares_eevdf(ctx: &Ctx) -> Result<AssertResult> {
    all(ctx, COMPARED)
}

#[ktstr_test(scheduler = PLAIN, duration_s = 6, ignore)]
fn shares_plain(ctx: &Ctx) -> Result<AssertResult> {
    all(ctx, &COMPARED[..2])
}

fn shares(report: &RunReport) -> Vec<&Detail> {
    let details = report.result.iter().flat_map(|result| &result.details);
    details.filter(|detail| detail.kind == DetailKind::Share).collect()
}

#[test]
fn the_kernels_own_scheduler_shares_as_the_scenarios_ask() {
    let report = run(spec("shares_eevdf", Accel::Tcg));
    let found = shares(&report);
    for (name, _) in COMPARED {
        assert!(found.iter().any(|detail| detail.message.starts_with(name)), "{name} compared nothing");
    }
    let wrong: Vec<_> = found.iter().filter(|detail| detail.outcome == Outcome::Fail).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_scheduler_without_weights_and_quotas_of_cgroups_is_found() {
    // Where there is no host to blame.
    let report = run(spec("shares_plain", Accel::Det));
    let found = shares(&report);
    let failed = |detail: &Detail| detail.outcome == Outcome::Fail;
    for broken in ["cgroup_weights: heavy got", "cgroup_quota_change: limited got"] {
        assert!(
            found.iter().any(|detail| detail.message.starts_with(broken) && failed(detail)),
            "{broken}: {found:#?}"
        );
    }
}

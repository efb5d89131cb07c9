//! Attributes that exclude or need each other, each refused where it stands.

use proc_macro2::Span;
use quote::ToTokens;
use syn::{Error, Expr, Result, spanned::Spanned};

use super::LIMITS;
use crate::{attributes::Attributes, cell_parent};

/// Pairs that cannot stand together, and why.
pub(super) const EXCLUDE: &[(&str, &str, &str)] = &[
    ("performance_mode", "no_perf_mode", "one asks for what the other forbids"),
    ("memory_mb", "memory_mib", "they are two names for the same"),
    ("survives_storm", "expect_err", "a scheduler cannot both survive and fail"),
    ("host_only", "scheduler", "no scheduler is started on the host"),
    ("host_only", "performance_mode", "there is no machine to isolate"),
    ("host_only", "expect_err", "there is no scheduler that could fail"),
    ("host_only", "post_vm", "there is no machine whose end it could look at"),
    ("host_only", "post_vm_unconditional", "there is no machine whose end it could look at"),
    ("host_only", "seeds", "a seed decides no interleaving on the host"),
    ("host_only", "num_snapshots", "there is no machine that could be captured"),
    ("host_only", "staged_schedulers", "no scheduler is started on the host"),
    ("performance_mode", "seeds", "seeds are run under `det`, which no host can speed up"),
    ("host_only", "cpu_budget", "there is no machine that could be held to it"),
    ("host_only", "cleanup_budget_ms", "there is no machine to put away"),
    ("host_only", "numa_nodes", "the host has the shape it has"),
    ("host_only", "llcs", "the host has the shape it has"),
    ("host_only", "cores", "the host has the shape it has"),
    ("host_only", "threads", "the host has the shape it has"),
    ("host_only", "absent_llcs", "the host has the shape it has"),
    ("host_only", "memory_mb", "the host has the memory it has"),
    ("host_only", "memory_mib", "the host has the memory it has"),
    ("host_only", "kaslr", "no kernel is booted"),
    ("host_only", "extra_include_files", "nothing is packed: the test sees the host's files"),
    ("host_only", "no_perf_mode", "there is no machine to isolate"),
    ("host_only", "requires_smt", "it is run on no preset"),
    ("host_only", "min_llcs", "it is run on no preset"),
    ("host_only", "max_llcs", "it is run on no preset"),
    ("host_only", "min_cpus", "it is run on no preset"),
    ("host_only", "max_cpus", "it is run on no preset"),
    ("host_only", "min_numa_nodes", "it is run on no preset"),
    ("host_only", "max_numa_nodes", "it is run on no preset"),
    ("host_only", "disk", "there is no machine that could have one"),
    ("host_only", "networks", "there is no machine that could have them"),
    ("expect_err", "auto_repro", "a failure that is meant to be is not looked into"),
    ("host_only", "auto_repro", "there is no machine that could run a second time"),
    ("expect_err", "expect_auto_repro", "a failure that is meant to be is not looked into; keep one of them"),
    ("host_only", "expect_auto_repro", "there is no machine that could run a second time"),
    ("survives_storm", "expect_auto_repro", "a scheduler cannot both survive and crash"),
    (
        "seeds",
        "expect_auto_repro",
        "of several seeds none is looked into; name the one that crashes by KTSTR_SEED",
    ),
    ("expect_err", "post_vm", "it is not called after a failure; use `post_vm_unconditional`"),
];

/// Each is a file of about a megabyte, and the guest stands for it.
const MAX_SNAPSHOTS: u64 = 64;
/// Between two of them the guest must run; they are spread over 80 % of the scenario.
const SNAPSHOT_SPACING_MS: u64 = 100;
/// Length of a scenario that does not say another, seconds; `ktstr::host::DEFAULT_DURATION_S`.
const DEFAULT_DURATION_S: u64 = 5;

/// What needs something else, and what for.
pub(super) const NEED: &[(&str, &str, &str)] = &[
    ("expect_scx_bpf_error_contains", "expect_err", "it is looked for in the error that is expected"),
    ("expect_scx_bpf_error_matches", "expect_err", "it is looked for in the error that is expected"),
    ("cpu_budget", "no_perf_mode", "otherwise the host decides where the vCPUs run"),
    ("watchdog_timeout_s", "scheduler", "there must be a scheduler that is watched"),
    ("bpf_map_write", "scheduler", "there must be a scheduler whose maps are written"),
    ("watch_bpf_maps", "scheduler", "there must be a scheduler whose maps are watched"),
    ("survives_storm", "scheduler", "there must be a scheduler that can survive"),
    ("auto_repro", "scheduler", "there must be a scheduler that can crash"),
    ("expect_auto_repro", "scheduler", "there must be a scheduler that can crash"),
    ("extra_sched_args", "scheduler", "there must be a scheduler that takes them"),
    ("staged_schedulers", "scheduler", "there must be a scheduler that they take over from"),
    ("config", "scheduler", "there must be a scheduler that reads it"),
];

pub fn contradictions(attributes: &Attributes) -> Result<()> {
    for (one, other, why) in EXCLUDE {
        if on(attributes, one)? && on(attributes, other)? {
            let message = format!("`{one}` and `{other}` cannot stand together: {why}");
            return Err(Error::new(key_span(attributes, other), message));
        }
    }
    for (one, needed, why) in NEED {
        if on(attributes, one)? && !on(attributes, needed)? {
            let message = format!("`{one}` needs `{needed}`: {why}");
            return Err(Error::new(key_span(attributes, one), message));
        }
    }
    for (min, max) in LIMITS {
        if let (Some(low), Some(high)) = (attributes.positive_u32(min)?, attributes.positive_u32(max)?)
            && low > high
        {
            let message = format!("`{min} = {low}` is above `{max} = {high}`: no machine fits");
            return Err(Error::new(key_span(attributes, max), message));
        }
    }
    if on(attributes, "expect_auto_repro")? && attributes.flag("auto_repro")? == Some(false) {
        let message = "`expect_auto_repro` and `auto_repro = false` cannot stand together: without a second run there \
                       is nothing to expect of it; remove `auto_repro = false`";
        return Err(Error::new(value_span(attributes, "auto_repro"), message));
    }
    snapshots(attributes)?;
    pattern(attributes)?;
    twice(attributes)?;
    // What its scheduler declares is not known here; `ktstr::host` compares them.
    attributes.texts("extra_sched_args")?;
    cell_parent::check("extra_sched_args", &attributes.text_literals("extra_sched_args")?, None)?;
    if let Some(root) = attributes.text("workload_root_cgroup")?
        && !cell_parent::below_the_root(&root)
    {
        let message = "`workload_root_cgroup` begins with `/`, is not `/` itself and has no `..` in it";
        return Err(Error::new(value_span(attributes, "workload_root_cgroup"), message));
    }
    Ok(())
}

/// As many captures as are kept, with time between them.
fn snapshots(attributes: &Attributes) -> Result<()> {
    let Some(count) = attributes.positive("num_snapshots")? else { return Ok(()) };
    let refuse = |message: String| Err(Error::new(value_span(attributes, "num_snapshots"), message));
    if count > MAX_SNAPSHOTS {
        return refuse(format!("`num_snapshots = {count}` is more than the {MAX_SNAPSHOTS} a run keeps"));
    }
    let seconds = attributes.positive("duration_s")?.unwrap_or(DEFAULT_DURATION_S);
    let window_ms = seconds.saturating_mul(800);
    let spacing_ms = window_ms / (count + 1);
    if spacing_ms < SNAPSHOT_SPACING_MS {
        let fit = (window_ms / SNAPSHOT_SPACING_MS).saturating_sub(1);
        return refuse(format!(
            "`num_snapshots = {count}` in {seconds} s are {spacing_ms} ms apart, less than {SNAPSHOT_SPACING_MS}: \
             take at most {fit}, or a longer `duration_s`"
        ));
    }
    Ok(())
}

/// Whether an attribute is there, and, if it is a flag, true.
fn on(attributes: &Attributes, key: &str) -> Result<bool> {
    const FLAGS: &[&str] = &[
        "performance_mode",
        "no_perf_mode",
        "survives_storm",
        "expect_err",
        "host_only",
        "auto_repro",
        "expect_auto_repro",
    ];
    if FLAGS.contains(&key) {
        return Ok(attributes.flag(key)?.unwrap_or(false));
    }
    Ok(attributes.find(key).is_some())
}

pub(super) fn key_span(attributes: &Attributes, key: &str) -> Span {
    attributes.find(key).map_or_else(Span::call_site, |attribute| attribute.key.span())
}

pub(super) fn value_span(attributes: &Attributes, key: &str) -> Span {
    let value = attributes.find(key).and_then(|attribute| attribute.value.as_ref());
    value.map_or_else(|| key_span(attributes, key), Spanned::span)
}

fn pattern(attributes: &Attributes) -> Result<()> {
    const KEY: &str = "expect_scx_bpf_error_matches";
    let Some(pattern) = attributes.text(KEY)? else { return Ok(()) };
    let refuse = |message: String| Err(Error::new(value_span(attributes, KEY), message));
    match regex_lite::Regex::new(&pattern) {
        Err(error) => refuse(format!("`{KEY}` is no regular expression: {error}")),
        Ok(regex) if regex.is_match("") => refuse(format!("`{KEY}` matches everything, even nothing at all")),
        Ok(_) => Ok(()),
    }
}

/// The same program in two slots would have one name for two.
fn twice(attributes: &Attributes) -> Result<()> {
    let mut seen: Vec<String> = Vec::new();
    if let Some(payload @ Expr::Path(_)) = attributes.value("payload")? {
        seen.push(payload.to_token_stream().to_string());
    }
    for workload in attributes.paths("workloads", "payloads")? {
        let name = workload.to_token_stream().to_string();
        if seen.contains(&name) {
            return Err(Error::new(workload.span(), format!("`{name}` is given twice")));
        }
        seen.push(name);
    }
    let mut schedulers: Vec<String> = Vec::new();
    if let Some(scheduler @ Expr::Path(_)) = attributes.value("scheduler")? {
        schedulers.push(scheduler.to_token_stream().to_string());
    }
    for staged in attributes.paths("staged_schedulers", "schedulers")? {
        let name = staged.to_token_stream().to_string();
        if schedulers.contains(&name) {
            return Err(Error::new(staged.span(), format!("`{name}` is given twice")));
        }
        schedulers.push(name);
    }
    Ok(())
}

//! The host half of a test: what the `#[test]` emitted by [`macro@crate::ktstr_test`] does.
//!
//! [`run`] asks an orchestrator to carry the test out, prints its report and decides what the test
//! harness sees: pass and not-run are success, everything else is failure. `KTSTR_REQUIRE` (a list of
//! accelerators, or `all`) turns not-run into failure where it must not happen, as in CI.

pub mod bpf_map;
mod constraints;
mod entry;
mod left_out;
mod seeds;
pub mod series;
pub mod snapshot;
mod spec;
pub mod temporal;
mod vm_result;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use ktstr_proto::{
    client::ClientEvent,
    guest::LogSource,
    run::{Accel, RunSpec},
    verdict::{AssertResult, Cause, DetailKind, Outcome, RunReport},
};

pub use constraints::Constraints;
pub use entry::{
    DEFAULT_DURATION_S, Expect, Invalid, KTSTR_TESTS, KtstrTestEntry, PostVm, Shape, config_gate, device_gate,
};
use ktstr_guest::scenario::Ctx;
pub(crate) use spec::state_dir;
pub use spec::{SpecError, Variant, spec_of, spec_of_variant};
pub use vm_result::VmResult;

use crate::{client::Session, guest_entry, render};

/// An orchestrator that says nothing for so long is given up; it has deadlines of its own.
const SILENCE: Duration = Duration::from_secs(1800);

/// Runs a registered test and fails the calling test unless it passed or was not run.
///
/// # Panics
/// When the verdict is fail or inconclusive, or the infrastructure failed; the report is printed before.
pub fn run(entry: &KtstrTestEntry) {
    if entry.host_only {
        return run_on_host(entry);
    }
    if let Err(why) = run_variant(entry, &Variant::of(entry)) {
        // The report is the message: a panic message with a location in ktstr would only distract.
        std::panic::resume_unwind(Box::new(format!("{}: {why}", entry.full_name())));
    }
}

/// Runs a test as `variant` says and prints its report; the error is the verdict in a few words.
pub fn run_variant(entry: &KtstrTestEntry, variant: &Variant) -> Result<(), String> {
    let judged = match carry_out(entry, variant) {
        Ok(Carried::LeftOut(report)) => Ok(render::report(&report)),
        Ok(Carried::Out { report, text, .. }) if entry.allow_inconclusive && inconclusive(&report) => {
            Ok(text)
        }
        Ok(Carried::Out { accel, report, text }) => {
            judge(accel, &report, text, std::env::var("KTSTR_REQUIRE").ok().as_deref())
        }
        Err(error) => Err((
            "infrastructure failure".to_owned(),
            render::infrastructure(&variant.name, &ktstr_proto::link::chain(&*error)),
        )),
    };
    match judged {
        Ok(text) => {
            print!("{text}");
            Ok(())
        }
        Err((why, text)) => {
            eprint!("{}", render::for_terminal(&text));
            Err(why)
        }
    }
}

fn inconclusive(report: &RunReport) -> bool {
    !report.infrastructure && report.outcome == Outcome::Inconclusive
}

/// Runs the test function in this process, on this system.
fn run_on_host(entry: &KtstrTestEntry) {
    let name = entry.full_name();
    let outcome = entry.validate().map_err(anyhow::Error::from).and_then(|()| {
        let mut ctx = Ctx::on_host(&name, Duration::from_secs(entry.duration_s), spec::seed_of(&name))?;
        ctx.assert = ctx.assert.merge(entry.assert);
        guest_entry::prepare(&mut ctx, entry);
        (entry.run)(&ctx)
    });
    let failed = match outcome {
        Ok(result) => {
            let text = render::on_host(&name, &result);
            let inconclusive = result.is_inconclusive() && !entry.allow_inconclusive;
            if result.is_fail() || inconclusive {
                eprint!("{}", render::for_terminal(&text));
                result.outcome.to_string().to_lowercase()
            } else {
                print!("{text}");
                return;
            }
        }
        Err(error) => format!("{error:#}"),
    };
    std::panic::resume_unwind(Box::new(format!("{name}: {failed}")));
}

/// What is looked at after a run that was to take snapshots, where the test does not look itself.
fn snapshots_are_there(vm: &VmResult) -> anyhow::Result<()> {
    let bridge = vm.snapshot_bridge();
    let (real, target) = (bridge.periodic_real(), bridge.periodic_target());
    anyhow::ensure!(real > 0, "none of the {target} snapshots was taken");
    Ok(())
}

/// Lets the test look at what came of its run; what it finds wrong is added to the report and to the
/// one in the run directory.
fn look_at(entry: &KtstrTestEntry, report: RunReport) -> RunReport {
    let mut vm = VmResult { report };
    let passed = !vm.report.infrastructure && vm.report.outcome != Outcome::Fail;
    // Snapshots that nobody looks at were meant to be there all the same.
    let own = [entry.post_vm_unconditional, entry.post_vm];
    let default = entry.num_snapshots > 0 && own.iter().all(Option::is_none);
    let usual: Option<PostVm> = default.then_some(snapshots_are_there);
    let wanted = [entry.post_vm_unconditional, entry.post_vm.or(usual).filter(|_| passed)];
    let mut wrong = Vec::new();
    for look in wanted.into_iter().flatten() {
        match catch_unwind(AssertUnwindSafe(|| look(&vm))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let open = error.downcast_ref::<crate::claims::Undecided>().is_some();
                let outcome = if open { Outcome::Inconclusive } else { Outcome::Fail };
                wrong.push((outcome, format!("after the run: {error:#}")));
            }
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("(no text)");
                wrong.push((Outcome::Fail, format!("after the run the test panicked: {text}")));
            }
        }
    }
    if !wrong.is_empty() {
        let report = &mut vm.report;
        let result = report.result.get_or_insert_with(AssertResult::pass);
        let outcomes: Vec<Outcome> = wrong.iter().map(|(outcome, _)| *outcome).collect();
        wrong.into_iter().for_each(|(outcome, text)| result.push(DetailKind::Claim, outcome, text));
        if !report.infrastructure {
            report.outcome = outcomes.into_iter().fold(report.outcome, Ord::max);
            report.cause.get_or_insert(Cause::Assertion);
        }
        // Whoever counts verdicts reads them there; that it could not be written is said by its absence.
        if let Ok(text) = serde_json::to_vec_pretty(&vm.report)
            && let Err(error) = std::fs::write(vm.report.run_dir.join("sidecar.json"), text)
        {
            vm.report.notes.push(format!("sidecar.json does not say so: {error}"));
        }
    }
    vm.report
}

/// What came of a request.
enum Carried {
    /// It was decided here that nothing runs.
    LeftOut(RunReport),
    /// It ran; of several runs the one that decides.
    Out {
        /// What was asked for.
        accel: Accel,
        report: RunReport,
        /// What is still to be said of it.
        text: String,
    },
}

fn carry_out(entry: &KtstrTestEntry, variant: &Variant) -> Result<Carried, Box<dyn std::error::Error>> {
    let spec = spec_of_variant(entry, variant)?;
    match seeds::Plan::of(&spec, entry.seeds)? {
        seeds::Plan::Once => {
            let accel = spec.accel;
            let report = run_once(entry, spec)?;
            Ok(Carried::Out { accel, text: render::report(&report), report })
        }
        seeds::Plan::Many(count, accel) => run_seeds(entry, RunSpec { accel, ..spec }, count),
        seeds::Plan::NotUnder(accel) => {
            let reason = format!(
                "seeds: under `{accel}` a seed does not decide how a run goes; leave KTSTR_ACCEL away or set it to \
                 `det`"
            );
            Ok(Carried::LeftOut(left_out::report(&spec, &reason)))
        }
    }
}

/// One run per seed; each new way to end other than in a pass is told when it is seen.
fn run_seeds(
    entry: &KtstrTestEntry,
    spec: RunSpec,
    count: u32,
) -> Result<Carried, Box<dyn std::error::Error>> {
    let accel = spec.accel;
    if accel != Accel::Det {
        eprintln!(
            "ktstr: under `{accel}` a seed decides the workload's choices, not how the CPUs interleave"
        );
    }
    let mut ends = seeds::Ends::default();
    for spec in seeds::requests(&spec, count) {
        let seed = spec.seed;
        let report = match run_once(entry, spec) {
            Ok(report) => report,
            Err(error) => {
                eprint!("{}", ends.summary());
                return Err(error);
            }
        };
        let text = render::report(&report);
        if ends.add(report) {
            eprintln!("seed {seed} ends in a new way:\n{}", render::for_terminal(&text));
        } else {
            eprintln!("seed {seed}: nothing new ({} of {count})", ends.runs());
        }
    }
    let report = ends.worst().ok_or("no seed was tried")?.clone();
    Ok(Carried::Out { accel, report, text: ends.summary() })
}

/// Has one run carried out.
fn run_once(entry: &KtstrTestEntry, spec: RunSpec) -> Result<RunReport, Box<dyn std::error::Error>> {
    let mut session = Session::start(&format!("test {}", spec.name))?;
    let report = session.run(spec.clone(), SILENCE, |event, _| match event {
        ClientEvent::Notice(line) => eprintln!("ktstr: {line}"),
        ClientEvent::Output { source: LogSource::Stdout, text } => print!("{text}"),
        ClientEvent::Output { source: LogSource::Stderr, text } => eprint!("{text}"),
        // The scheduler's and PID 1's words and the console are in the run directory; their last lines
        // are in the report when they matter.
        _ => {}
    })?;
    if let (false, Some(accel)) = (report.infrastructure, report.accel) {
        let took = Duration::from_millis(report.host_ms.1);
        crate::gauntlet::note(&state_dir(), &spec.name, &accel.to_string(), took);
    }
    Ok(look_at(entry, report))
}

/// What to print, and whether the test harness should see a failure.
fn judge(
    accel: Accel,
    report: &RunReport,
    text: String,
    require: Option<&str>,
) -> Result<String, (String, String)> {
    match (report.infrastructure, report.outcome) {
        (true, _) => Err(("infrastructure failure".into(), text)),
        (false, Outcome::Pass) => Ok(text),
        (false, Outcome::NotRun) if required(accel, require.unwrap_or_default()) => {
            let why =
                format!("not run, but KTSTR_REQUIRE={} demands it ({accel})", require.unwrap_or_default());
            Err((why.clone(), format!("{text}{why}\n")))
        }
        (false, Outcome::NotRun) => Ok(text),
        (false, Outcome::Inconclusive) => Err(("inconclusive".into(), text)),
        (false, Outcome::Fail) => Err(("failed".into(), text)),
    }
}

/// Whether a run with `accel` must not be left out; `auto` stands for whatever is required.
fn required(accel: Accel, list: &str) -> bool {
    list.split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .any(|word| word == "all" || accel == Accel::Auto || word.parse() == Ok(accel))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A test that is registered nowhere.
    pub(crate) fn entry(name: &'static str, constraints: Constraints) -> &'static KtstrTestEntry {
        let (modules, name) = name.rsplit_once("::").unwrap_or(("", name));
        let module_path: &'static str = match modules {
            "" => "krate",
            modules => Box::leak(format!("krate::{modules}").into_boxed_str()),
        };
        Box::leak(Box::new(KtstrTestEntry {
            name,
            module_path,
            package: "p",
            duration_s: 1,
            constraints,
            ..KtstrTestEntry::DEFAULT
        }))
    }

    #[test]
    fn what_is_required_is_chosen_by_accelerator() {
        assert!(!required(Accel::Kvm, ""));
        assert!(!required(Accel::Kvm, "tcg, det"));
        assert!(required(Accel::Det, "tcg, det"));
        assert!(required(Accel::Kvm, "all"));
        assert!(required(Accel::Auto, "tcg"));
        assert!(!required(Accel::Auto, " , "));
    }
}

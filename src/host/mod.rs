//! The host half of a test: what the `#[test]` emitted by [`macro@crate::ktstr_test`] does.
//!
//! [`run`] asks an orchestrator to carry the test out, prints its report and decides what the test
//! harness sees: pass and not-run are success, everything else is failure. `KTSTR_REQUIRE` (a list of
//! accelerators, or `all`) turns not-run into failure where it must not happen, as in CI. Whatever comes of
//! a test, a report is in its run directory: the orchestrator's, with what the test says of it here, or one
//! of our own (`record`).

pub mod bpf_map;
pub(crate) mod cell_parent;
mod constraints;
mod entry;
mod looked_into;
mod on_host;
mod record;
mod replay;
mod seeds;
pub mod series;
pub mod snapshot;
mod spec;
pub mod temporal;
mod validate;
mod vm_result;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use ktstr_proto::{
    client::ClientEvent,
    guest::LogSource,
    run::{Accel, RunId, RunSpec},
    verdict::{AssertResult, Cause, DetailKind, Outcome, Process, RunReport},
};

pub use constraints::Constraints;
pub use entry::{
    DEFAULT_DURATION_S, Expect, KTSTR_TESTS, KtstrTestEntry, PostVm, Shape, config_gate, device_gate,
};
pub(crate) use seeds::under;
pub use spec::{SpecError, Variant, spec_of, spec_of_variant};
pub(crate) use spec::{state_dir, target_of};
pub use validate::Invalid;
pub use vm_result::VmResult;

use crate::{
    client::{ClientError, Session},
    render,
};

/// An orchestrator that says nothing for so long is given up; it has deadlines of its own.
const SILENCE: Duration = Duration::from_secs(1800);

/// Runs a registered test and fails the calling test unless it passed or was not run.
///
/// # Panics
/// When the verdict is fail or inconclusive, or the infrastructure failed; the report is printed before.
pub fn run(entry: &KtstrTestEntry) {
    if let Err(why) = run_variant(entry, &Variant::of(entry)) {
        // The report is the message: a panic message with a location in ktstr would only distract.
        std::panic::resume_unwind(Box::new(format!("{}: {why}", entry.full_name())));
    }
}

/// Runs a test as `variant` says and prints its report; the error is the verdict in a few words.
pub fn run_variant(entry: &KtstrTestEntry, variant: &Variant) -> Result<(), String> {
    if entry.host_only {
        return on_host::run(entry);
    }
    let require = std::env::var("KTSTR_REQUIRE").ok();
    let judged = match carry_out(entry, variant) {
        Ok(Carried::LeftOut(report)) => {
            judge_left_out(render::report(&report), everything_is_required(require.as_deref()))
        }
        Ok(Carried::Out { accel, report, text, took }) => {
            if let Some(accel) = report.accel.filter(|_| ran_whole(&report)) {
                let key = crate::gauntlet::key(entry.crate_name(), &variant.name);
                crate::gauntlet::note(&state_dir(), &key, &accel.to_string(), took);
            }
            judge(accel, &report, text, require.as_deref())
        }
        Err(Broken { error, cause, run }) => {
            let root = spec::own_runs_root();
            let report = record::broken(entry, variant, root, cause, run.as_ref());
            let why = ktstr_proto::link::chain(&*error);
            let mut text = render::infrastructure(&variant.name, &why);
            text.push_str(&format!("run directory: {}\n", report.run_dir.display()));
            Err(("infrastructure failure".to_owned(), text))
        }
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

/// Whether how long it took says how long it takes.
fn ran_whole(report: &RunReport) -> bool {
    !report.infrastructure && report.outcome != Outcome::NotRun
}

/// What is looked at after a run that was to take snapshots, where the test does not look itself.
fn snapshots_are_there(vm: &VmResult) -> anyhow::Result<()> {
    let bridge = vm.snapshot_bridge();
    let (real, target) = (bridge.periodic_real(), bridge.periodic_target());
    anyhow::ensure!(real > 0, "none of the {target} snapshots was taken");
    Ok(())
}

/// Lets the test look at what came of its run; what it finds wrong is added to the report. Where nothing
/// ran there is nothing to look at, and what the test did not get to see it cannot find wrong.
fn look_at(entry: &KtstrTestEntry, report: RunReport) -> RunReport {
    let mut vm = VmResult { report };
    let nothing_ran = matches!(vm.report.cause, Some(Cause::Missing { .. } | Cause::BadRequest { .. }));
    let ended_well =
        !vm.report.infrastructure && matches!(vm.report.outcome, Outcome::Pass | Outcome::Inconclusive);
    // Snapshots that nobody looks at were meant to be there all the same.
    let own = [entry.post_vm_unconditional, entry.post_vm];
    let default = entry.num_snapshots > 0 && own.iter().all(Option::is_none);
    let usual: Option<PostVm> = default.then_some(snapshots_are_there);
    let wanted = [
        entry.post_vm_unconditional.filter(|_| !nothing_ran),
        entry.post_vm.or(usual).filter(|_| ended_well),
    ];
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
                let text = panic_text(&*panic);
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
    }
    vm.report
}

/// What a panic said.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("(no text)").into()
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
        /// How long a run took, where there were several the usual one.
        took: Duration,
    },
}

/// Why there is no report: what could not be done, and in which run.
struct Broken {
    error: Box<dyn std::error::Error>,
    cause: Cause,
    run: Option<RunId>,
}

impl Broken {
    /// What is asked for cannot be.
    fn request(error: impl Into<Box<dyn std::error::Error>>) -> Self {
        let error = error.into();
        let cause = Cause::BadRequest { reason: ktstr_proto::link::chain(&*error) };
        Self { error, cause, run: None }
    }

    /// The orchestrator cannot be started or spoken to, or is gone.
    fn orchestrator(error: ClientError, run: Option<RunId>) -> Self {
        let cause = match &error {
            ClientError::Died { how, .. } => {
                Cause::ProcessDied { process: Process::Orchestrator, how: how.clone() }
            }
            other => Cause::BadRequest { reason: ktstr_proto::link::chain(other) },
        };
        Self { error: error.into(), cause, run }
    }
}

fn carry_out(entry: &KtstrTestEntry, variant: &Variant) -> Result<Carried, Broken> {
    let left_out =
        |reason: &str| Ok(Carried::LeftOut(record::left_out(entry, variant, spec::own_runs_root(), reason)));
    let spec = spec_of_variant(entry, variant).map_err(Broken::request)?;
    match seeds::Plan::of(&spec, entry.seeds).map_err(Broken::request)? {
        seeds::Plan::Many(..) if entry.expect.auto_repro => {
            left_out("expect_auto_repro: of several seeds none is looked into; leave KTSTR_SEEDS away")
        }
        seeds::Plan::Once if entry.expect.auto_repro && !spec.auto_repro => left_out(
            "expect_auto_repro: KTSTR_AUTO_REPRO=0 (`--no-auto-repro`) forbids the second run that it demands",
        ),
        seeds::Plan::Once => {
            let accel = spec.accel;
            let report = run_once(entry, spec)?;
            let took = Duration::from_millis(report.host_ms.1);
            Ok(Carried::Out { accel, text: render::report(&report), report, took })
        }
        seeds::Plan::Many(count, accel) => run_seeds(entry, RunSpec { accel, ..spec }, count),
        seeds::Plan::NotUnder(accel) => left_out(&format!(
            "seeds: under `{accel}` a seed does not decide how a run goes; leave KTSTR_ACCEL away or set it to \
             `det`"
        )),
    }
}

/// One run per seed; each new way to end other than in a pass is told when it is seen.
fn run_seeds(entry: &KtstrTestEntry, spec: RunSpec, count: u32) -> Result<Carried, Broken> {
    let accel = spec.accel;
    if accel != Accel::Det {
        eprintln!(
            "ktstr: under `{accel}` a seed decides the workload's choices, not how the CPUs interleave"
        );
    }
    let mut ends = seeds::Ends::default();
    let mut took = Duration::ZERO;
    for spec in seeds::requests(&spec, count) {
        let seed = spec.seed;
        let report = match run_once(entry, spec) {
            Ok(report) => report,
            Err(broken) => {
                eprint!("{}", ends.summary());
                return Err(broken);
            }
        };
        took += Duration::from_millis(report.host_ms.1);
        let text = render::report(&report);
        if ends.add(report) {
            eprintln!("seed {seed} ends in a new way:\n{}", render::for_terminal(&text));
        } else {
            eprintln!("seed {seed}: nothing new ({} of {count})", ends.runs());
        }
    }
    let report = ends.worst().ok_or_else(|| Broken::request("no seed was tried"))?.clone();
    Ok(Carried::Out { accel, report, text: ends.summary(), took: took / count })
}

/// Has one run carried out.
fn run_once(entry: &KtstrTestEntry, spec: RunSpec) -> Result<RunReport, Broken> {
    let mut session =
        Session::start(&format!("test {}", spec.name)).map_err(|error| Broken::orchestrator(error, None))?;
    let ended = session.run(spec.clone(), SILENCE, |event, _| match event {
        ClientEvent::Notice(line) => eprintln!("ktstr: {line}"),
        ClientEvent::Output { source: LogSource::Stdout, text } => print!("{text}"),
        ClientEvent::Output { source: LogSource::Stderr, text } => eprint!("{text}"),
        // The scheduler's and PID 1's words and the console are in the run directory; their last lines
        // are in the report when they matter.
        _ => {}
    });
    let report = ended.map_err(|error| Broken::orchestrator(error, session.run_id().cloned()))?;
    let written = report.clone();
    let report = if entry.expect.auto_repro { looked_into::weighed(report) } else { report };
    let mut report = look_at(entry, RunReport { allow_inconclusive: entry.allow_inconclusive, ..report });
    if report != written {
        record::write(&mut report);
    }
    Ok(report)
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
        (false, Outcome::NotRun) if demanded(accel, report, require) => {
            let why =
                format!("not run, but KTSTR_REQUIRE={} demands it ({accel})", require.unwrap_or_default());
            Err((why.clone(), format!("{text}{why}\n")))
        }
        (false, Outcome::NotRun) => Ok(text),
        (false, Outcome::Inconclusive) if !report.undecided() => Ok(text),
        (false, Outcome::Inconclusive) => Err(("inconclusive".into(), text)),
        (false, Outcome::Fail) => Err(("failed".into(), text)),
    }
}

/// Whether a run that did not take place had to: where the machine was wanting, if its accelerator is
/// required; where the test left itself out, if everything is.
fn demanded(accel: Accel, report: &RunReport, require: Option<&str>) -> bool {
    let wanting = report.accel.is_none() || matches!(report.cause, Some(Cause::Missing { .. }));
    wanting && required(accel, require.unwrap_or_default()) || everything_is_required(require)
}

/// A test that is left out for what it asks is no want of an accelerator: only `all` demands it.
fn judge_left_out(text: String, everything: bool) -> Result<String, (String, String)> {
    if !everything {
        return Ok(text);
    }
    let why = "not run, but KTSTR_REQUIRE demands all".to_owned();
    Err((why.clone(), format!("{text}{why}\n")))
}

/// Whether `KTSTR_REQUIRE` wants no test left out for any reason.
fn everything_is_required(list: Option<&str>) -> bool {
    list.unwrap_or_default().split(',').any(|word| word.trim() == "all")
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

    fn ended(outcome: Outcome, cause: Option<Cause>) -> RunReport {
        RunReport { outcome, cause, result: None, ..render::tests::sample() }
    }

    const COMPLAINING: KtstrTestEntry = KtstrTestEntry {
        name: "t",
        post_vm: Some(|_| anyhow::bail!("I am never content")),
        ..KtstrTestEntry::DEFAULT
    };

    #[test]
    fn nobody_looks_at_a_run_that_was_none() {
        let missing = || Some(Cause::Missing { reason: "no emulator".into() });
        for entry in [
            COMPLAINING,
            KtstrTestEntry { post_vm: None, post_vm_unconditional: COMPLAINING.post_vm, ..COMPLAINING },
        ] {
            let looked_at = look_at(&entry, ended(Outcome::NotRun, missing()));
            assert_eq!((looked_at.outcome, looked_at.cause), (Outcome::NotRun, missing()));
            let looked_at = look_at(&entry, ended(Outcome::Pass, None));
            assert_eq!((looked_at.outcome, looked_at.cause), (Outcome::Fail, Some(Cause::Assertion)));
        }
        let skipped = look_at(&COMPLAINING, ended(Outcome::NotRun, None));
        assert_eq!(skipped.outcome, Outcome::NotRun, "the test function left it out itself");
    }

    #[test]
    fn an_inconclusive_run_that_is_allowed_is_judged_so_everywhere() {
        let report = |allow_inconclusive| RunReport {
            allow_inconclusive,
            ..ended(Outcome::Inconclusive, Some(Cause::Assertion))
        };
        assert!(judge(Accel::Tcg, &report(true), String::new(), None).is_ok());
        assert!(judge(Accel::Tcg, &report(false), String::new(), None).is_err());
        let broken = RunReport { infrastructure: true, ..report(true) };
        assert!(judge(Accel::Tcg, &broken, String::new(), None).is_err());
    }

    #[test]
    fn an_accelerator_is_no_demand_on_a_test_that_leaves_itself_out() {
        let skipped = RunReport { accel: Some(ktstr_proto::AccelKind::Tcg), ..ended(Outcome::NotRun, None) };
        let judged =
            |report: &RunReport, require| judge(Accel::Auto, report, String::new(), Some(require)).is_ok();
        assert!(judged(&skipped, "tcg,det") && !judged(&skipped, "all"));
        let missing = Some(Cause::Missing { reason: "no emulator".into() });
        assert!(!judged(&RunReport { cause: missing, accel: None, ..skipped }, "tcg"));
    }

    #[test]
    fn only_all_demands_what_a_test_leaves_out_itself() {
        assert!(judge_left_out(String::new(), everything_is_required(Some("tcg,det"))).is_ok());
        assert!(judge_left_out(String::new(), everything_is_required(None)).is_ok());
        assert!(judge_left_out(String::new(), everything_is_required(Some("tcg, all"))).is_err());
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

//! The host half of a test: what the `#[test]` emitted by [`macro@crate::ktstr_test`] does.
//!
//! [`run`] asks an orchestrator to carry the test out, prints its report and decides what the test
//! harness sees: pass and not-run are success, everything else is failure. `KTSTR_REQUIRE` (a list of
//! accelerators, or `all`) turns not-run into failure where it must not happen, as in CI.

mod constraints;
mod entry;
mod spec;

use std::time::Duration;

use ktstr_proto::{
    client::ClientEvent,
    guest::LogSource,
    run::{Accel, RunSpec},
    verdict::{Outcome, RunReport},
};

pub use constraints::Constraints;
pub use entry::{DEFAULT_DURATION_S, KTSTR_TESTS, KtstrTestEntry, Shape};
pub use spec::{SpecError, spec_of};

use crate::{client::Session, render};

/// An orchestrator that says nothing for so long is given up; it has deadlines of its own.
const SILENCE: Duration = Duration::from_secs(1800);

/// Runs a registered test and fails the calling test unless it passed or was not run.
///
/// # Panics
/// When the verdict is fail or inconclusive, or the infrastructure failed; the report is printed before.
pub fn run(entry: &KtstrTestEntry) {
    let judged = match carry_out(entry) {
        Ok((spec, report)) => judge(&spec, &report, std::env::var("KTSTR_REQUIRE").ok().as_deref()),
        Err(error) => Err((
            "infrastructure failure".to_owned(),
            render::infrastructure(&entry.full_name(), &ktstr_proto::link::chain(&*error)),
        )),
    };
    match judged {
        Ok(text) => print!("{text}"),
        Err((why, text)) => {
            eprint!("{text}");
            // The report is the message: a panic message with a location in ktstr would only distract.
            std::panic::resume_unwind(Box::new(format!("{}: {why}", entry.full_name())));
        }
    }
}

fn carry_out(entry: &KtstrTestEntry) -> Result<(RunSpec, RunReport), Box<dyn std::error::Error>> {
    let spec = spec_of(entry)?;
    let mut session = Session::start(&format!("test {}", entry.full_name()))?;
    let report = session.run(spec.clone(), SILENCE, |event, _| match event {
        ClientEvent::Notice(line) => eprintln!("ktstr: {line}"),
        ClientEvent::Output { source: LogSource::Stdout, text } => print!("{text}"),
        ClientEvent::Output { source: LogSource::Stderr, text } => eprint!("{text}"),
        // The scheduler's and PID 1's words and the console are in the run directory; their last lines
        // are in the report when they matter.
        _ => {}
    })?;
    Ok((spec, report))
}

/// What to print, and whether the test harness should see a failure.
fn judge(spec: &RunSpec, report: &RunReport, require: Option<&str>) -> Result<String, (String, String)> {
    let text = render::report(report);
    match (report.infrastructure, report.outcome) {
        (true, _) => Err(("infrastructure failure".into(), text)),
        (false, Outcome::Pass) => Ok(text),
        (false, Outcome::NotRun) if required(spec.accel, require.unwrap_or_default()) => {
            let accel = spec.accel;
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
mod tests {
    use super::*;

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

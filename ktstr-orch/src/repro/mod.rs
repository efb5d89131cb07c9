//! The second run of a crash: when there is one, what is asked of it, what is told of it.
//!
//! ```text
//! first run ──crash──▶ report held ──▶ second run, probed ──▶ its end ──▶ first report + AutoRepro ──▶ client
//!     └── anything else ──▶ report ──▶ client
//! ```
//!
//! The second run is the first's request again, with kernel and accelerator as they were chosen and
//! [`Probing`] in it; its directory lies in the first's. It changes nothing of the first's verdict, cause or
//! findings: a crash that does not come again is said not to. What the guest says of its probes is taken up to
//! fixed bounds ([`Gathered`]); `stack` finds functions in the crash's backtrace, `stitch` chooses
//! events, `decode` makes values readable.

mod decode;
mod stack;
mod stitch;

use std::path::PathBuf;

use ktstr_proto::{
    AccelKind,
    guest::GuestFrame,
    repro::{AutoRepro, MAX_EVENTS, ProbeAccount, ProbeEnd, ProbeEvent, Probing, Recurrence},
    run::{Accel, Job, RunSpec},
    verdict::{Cause, Outcome, RunReport},
};

pub use stack::crash_stack;

/// Name of the second run's directory in the first's.
const NAME: &str = "auto-repro";

/// What is kept of a run that is to be looked into.
#[derive(Debug)]
pub struct Held {
    /// What was found.
    pub report: RunReport,
    /// The request for the second run.
    pub second: RunSpec,
    /// Functions of the crash's backtrace.
    pub stack: Vec<String>,
}

/// Whether the kernel sent the scheduler away, or its process died.
fn is_crash(cause: &Cause) -> bool {
    matches!(cause, Cause::SchedulerStall { .. } | Cause::SchedulerError { .. } | Cause::SchedulerDied { .. })
}

/// What to hold of a finished run, if there is to be a second one. `logs` is where a backtrace may stand.
pub fn hold(
    spec: &RunSpec,
    report: &RunReport,
    chosen: Option<(&str, AccelKind)>,
    logs: [&[String]; 2],
) -> Option<Held> {
    let meant = matches!(&spec.job, Job::Test(test) if test.scheduler.is_some() && !test.expect.err);
    let failed = matches!(report.outcome, Outcome::Fail | Outcome::Inconclusive) && !report.infrastructure;
    let crashed = failed && report.cause.as_ref().is_some_and(is_crash);
    if !(spec.auto_repro && spec.probing.is_none() && meant && crashed) {
        return None;
    }
    let (kernel, accel) = chosen?;
    let stack = crash_stack(logs[0], logs[1]);
    let second = RunSpec {
        name: NAME.into(),
        kernel: Some(kernel.to_owned()),
        accel: match accel {
            AccelKind::Kvm => Accel::Kvm,
            AccelKind::Tcg => Accel::Tcg,
            AccelKind::Det => Accel::Det,
        },
        runs_root: report.run_dir.clone(),
        auto_repro: false,
        probing: Some(Probing { stack: stack.clone() }),
        ..spec.clone()
    };
    Some(Held { report: report.clone(), second, stack })
}

/// What the guest said of its probes, within bounds.
#[derive(Debug, Default)]
pub struct Gathered {
    account: Option<ProbeAccount>,
    events: Vec<ProbeEvent>,
    end: Option<ProbeEnd>,
    /// Events beyond the bound.
    refused: u64,
}

impl Gathered {
    /// Takes a frame, if it is about probes.
    pub fn take(&mut self, frame: &GuestFrame) -> bool {
        match frame {
            GuestFrame::Probes(account) => self.account = Some(stitch::bounded(account)),
            GuestFrame::Probed(events) => {
                let room = MAX_EVENTS.saturating_sub(self.events.len());
                self.events.extend(events.iter().take(room).map(stitch::plain));
                self.refused += events.len().saturating_sub(room) as u64;
            }
            GuestFrame::ProbesEnded(end) => self.end = Some(stitch::bounded_end(end)),
            _ => return false,
        }
        true
    }
}

/// How the second run ended, seen from the first.
fn recurrence(first: &RunReport, second: &RunReport) -> Recurrence {
    let kind = |cause: &Option<Cause>| cause.as_ref().map(std::mem::discriminant);
    match (&second.cause, second.outcome) {
        (cause, _) if second.infrastructure => Recurrence::NotRun(match cause {
            Some(Cause::ProcessDied { process, how }) => format!("{process} {how}"),
            Some(cause) => format!("{cause:?}"),
            None => "it did not end in order".into(),
        }),
        (Some(cause), Outcome::Fail | Outcome::Inconclusive) if kind(&first.cause) == kind(&second.cause) => {
            Recurrence::Again(cause.clone())
        }
        (Some(cause), Outcome::Fail | Outcome::Inconclusive) => Recurrence::Otherwise(cause.clone()),
        (Some(Cause::Missing { reason } | Cause::BadRequest { reason }), _) => {
            Recurrence::NotRun(reason.clone())
        }
        _ => Recurrence::NotAgain,
    }
}

/// What is told of the second run.
pub fn told(held: &Held, second: RunReport, gathered: Gathered) -> AutoRepro {
    let Gathered { account, events, end, refused } = gathered;
    let reason = match &second.cause {
        Some(Cause::SchedulerStall { reason } | Cause::SchedulerError { reason }) => reason.as_str(),
        _ => "",
    };
    let triggers = account.as_ref().map_or(&[][..], |account| &account.triggers);
    let stitched = stitch::stitch(&events, triggers, reason);
    let mut notes = stitched.notes;
    if second.accel == Some(AccelKind::Det) {
        notes.push(
            "under det the probes take instructions of their own: with the same seed the CPUs interleave \
             otherwise than in the first run"
                .to_owned(),
        );
    }
    if refused > 0 {
        notes.push(format!("{refused} events were more than a guest may send, and were not taken"));
    }
    if held.second.observe && second.monitor.is_none() {
        // What became of its monitor, and whatever else the first run had not to say.
        notes.extend(second.notes.iter().filter(|note| !held.report.notes.contains(note)).cloned());
    }
    if account.is_none() {
        notes.push("the guest did not say what became of its probes".to_owned());
    }
    AutoRepro {
        recurrence: recurrence(&held.report, &second),
        took_ms: second.host_ms.1,
        stack: held.stack.clone(),
        account,
        end,
        task: stitched.task,
        cpu: stitched.cpu,
        seen: stitched.seen,
        left_out: stitched.left_out,
        notes,
        run: Some(second.run_id),
        run_dir: second.run_dir,
    }
}

/// What is told where the second run could not even begin.
pub fn not_begun(held: &Held, why: String) -> AutoRepro {
    AutoRepro { stack: held.stack.clone(), run_dir: PathBuf::new(), ..AutoRepro::not_run(why) }
}

#[cfg(test)]
mod tests;

//! A run's report as text for people: plain, readable in 80 columns, the verdict first, the way to
//! repeat it last. Paths and command lines are never broken, so that they can be copied.

mod figures;
mod repro;
#[cfg(test)]
pub(crate) mod tests;
mod text;
mod timeline;

use ktstr_proto::{
    run::Boot,
    verdict::{AssertResult, Cause, Outcome, RunReport},
};

pub use self::text::for_terminal;
pub(crate) use self::text::wrapped;
use self::{
    figures::{host, monitor, stats},
    text::{WIDTH, line, printable},
    timeline::timeline,
};

/// Log lines shown; the run directory holds all.
const TAIL: usize = 25;
/// Of the scheduler's log, which comes as what is worth showing.
const LOG: usize = 40;

/// The whole report.
pub fn report(report: &RunReport) -> String {
    let mut out = String::new();
    header(&mut out, report);
    if let Some(result) = &report.result {
        findings(&mut out, result);
    }
    if let Some(cause) = &report.cause {
        particulars(&mut out, cause);
    }
    for note in &report.notes {
        wrapped(&mut out, "  note: ", note);
    }
    machine(&mut out, report);
    if let Some(result) = report.result.as_ref().filter(|result| !result.stats.cgroups.is_empty()) {
        stats(&mut out, &result.stats);
    }
    if !matches!(report.outcome, Outcome::Pass | Outcome::NotRun) {
        timeline(&mut out, report);
    }
    if let Some(summary) = &report.monitor {
        monitor(&mut out, summary);
    }
    if let Some(given) = &report.host {
        host(&mut out, given);
    }
    if report.infrastructure || !matches!(report.outcome, Outcome::Pass | Outcome::NotRun) {
        tail(&mut out, "scheduler log", &report.scheduler_log, LOG);
        if console_matters(report) {
            tail(&mut out, "console", &report.console_tail, TAIL);
        }
    }
    if let Some(repro) = &report.auto_repro {
        repro::section(&mut out, repro);
    }
    line(&mut out, format_args!("run directory: {}", report.run_dir.display()));
    if !report.replay.is_empty() {
        line(&mut out, format_args!("replay: {}", report.replay));
    }
    out
}

/// What is said when there was no run to report on.
pub fn infrastructure(test: &str, reason: &str) -> String {
    let mut out = String::new();
    line(&mut out, format_args!("ktstr_test '{test}' FAILED: infrastructure, nothing was tested"));
    wrapped(&mut out, "  ", reason);
    out
}

/// What is said of a test that ran on this host.
pub fn on_host(report: &RunReport) -> String {
    let mut out = String::new();
    verdict(&mut out, &format!("ktstr_test '{}' [on this host]", report.name), report);
    if let Some(result) = &report.result {
        findings(&mut out, result);
        if !result.stats.cgroups.is_empty() {
            stats(&mut out, &result.stats);
        }
    }
    for note in &report.notes {
        wrapped(&mut out, "  note: ", note);
    }
    wrapped(&mut out, "  ", &format!("kernel {}, seed {}", report.kernel, report.seed));
    line(&mut out, format_args!("run directory: {}", report.run_dir.display()));
    if !report.replay.is_empty() {
        line(&mut out, format_args!("replay: {}", report.replay));
    }
    out
}

fn header(out: &mut String, report: &RunReport) {
    let scheduler = if report.scheduler.is_empty() { "EEVDF" } else { &report.scheduler };
    let name = format!("ktstr_test '{}' [sched={scheduler}] [topo={}]", report.name, report.topology);
    verdict(out, &name, report);
}

/// The first line, or two: what was tested, and how it ended.
fn verdict(out: &mut String, name: &str, report: &RunReport) {
    let verdict = match (report.infrastructure, report.outcome) {
        (true, _) => "FAILED: infrastructure".to_owned(),
        (false, Outcome::Pass) => "PASS".into(),
        (false, Outcome::NotRun) => "NOT RUN".into(),
        (false, Outcome::Inconclusive) => "INCONCLUSIVE".into(),
        (false, Outcome::Fail) => "FAILED".into(),
    };
    match (&report.cause, report.infrastructure) {
        (None, _) => line(out, format_args!("{name} {verdict}")),
        (Some(cause), true) => {
            line(out, format_args!("{name} {verdict}"));
            wrapped(out, "  ", &headline(cause));
        }
        (Some(cause), false) => {
            let whole = format!("{name} {verdict}: {}", headline(cause));
            if whole.chars().count() <= WIDTH {
                line(out, format_args!("{whole}"));
            } else {
                wrapped(out, "", &format!("{name} {verdict}"));
                wrapped(out, "  ", &headline(cause));
            }
        }
    }
}

/// A cause in one sentence.
pub fn headline(cause: &Cause) -> String {
    match cause {
        Cause::Assertion => "a check failed".into(),
        Cause::TestPanic { message, .. } => format!("the test panicked: {message}"),
        Cause::TestDied { how } => format!("the test process {how} without a result"),
        Cause::SchedulerStall { reason } => format!("scheduler stall: {reason}"),
        Cause::SchedulerError { reason } => format!("the scheduler failed with an error: {reason}"),
        Cause::SchedulerNotAttached { reason } => format!("the scheduler did not attach: {reason}"),
        Cause::SchedulerDied { how } => format!("the scheduler process {how}"),
        Cause::KernelPanic { message } => format!("the guest kernel panicked: {message}"),
        Cause::GuestInit { step, reason } => format!("the guest could not be set up: {step}: {reason}"),
        Cause::Deadline { phase, waited_ms } => {
            format!(
                "nothing more was heard for {:.1} s; the last station was {phase}",
                *waited_ms as f64 / 1000.0
            )
        }
        Cause::GuestEnded { how } => format!("the guest ended before its result arrived: {how}"),
        Cause::Channel { reason } => format!("the guest sent what cannot be understood: {reason}"),
        Cause::ProcessDied { process, how } => format!("{process} {how}"),
        Cause::Missing { reason } | Cause::BadRequest { reason } => reason.clone(),
        Cause::Cancelled => "cancelled".into(),
    }
}

fn findings(out: &mut String, result: &AssertResult) {
    // What decided comes first.
    let mut details: Vec<_> = result.details.iter().collect();
    details.sort_by_key(|detail| std::cmp::Reverse(detail.outcome));
    for detail in details {
        let mark = match detail.outcome {
            Outcome::Fail => "  ",
            Outcome::Inconclusive => "  inconclusive: ",
            Outcome::Pass | Outcome::NotRun => "  note: ",
        };
        wrapped(out, mark, &detail.message);
    }
}

fn particulars(out: &mut String, cause: &Cause) {
    if let Cause::TestPanic { backtrace, .. } = cause
        && !backtrace.is_empty()
    {
        line(out, format_args!("--- backtrace ---"));
        for text in trimmed_backtrace(backtrace) {
            line(out, format_args!("  {text}"));
        }
    }
}

/// The frames between the panic machinery and ktstr's own call of the test.
fn trimmed_backtrace(backtrace: &str) -> Vec<&str> {
    let lines: Vec<&str> = backtrace.lines().map(str::trim_end).collect();
    let is_frame =
        |text: &str| text.trim_start().split_once(": ").is_some_and(|(n, _)| n.parse::<u32>().is_ok());
    let last_machinery = lines.iter().rposition(|l| {
        is_frame(l)
            && (l.contains("core::panicking::")
                || l.contains("rust_begin_unwind")
                || l.contains("begin_panic"))
    });
    let start = last_machinery
        .and_then(|at| lines[at + 1..].iter().position(|l| is_frame(l)).map(|next| at + 1 + next))
        .unwrap_or(0);
    let end = lines[start..]
        .iter()
        .position(|l| l.contains("ktstr::guest_entry"))
        .map_or(lines.len(), |n| start + n);
    let frames = if start < end { &lines[start..end] } else { &lines[..] };
    frames.iter().take(2 * TAIL).copied().collect()
}

fn machine(out: &mut String, report: &RunReport) {
    let mut parts = Vec::new();
    if report.accel.is_some() && !report.kernel.is_empty() {
        parts.push(format!("kernel {}", report.kernel));
    }
    if let Some(accel) = report.accel {
        let detail = if report.accel_detail.is_empty() {
            String::new()
        } else {
            format!(" ({})", report.accel_detail)
        };
        parts.push(format!("{accel}{detail}"));
    }
    parts.push(format!("seed {}", report.seed));
    let (boot, total) = report.host_ms;
    if boot > 0 {
        let how = match report.boot {
            Boot::Cold => String::new(),
            kept_or_warm => format!(" ({kept_or_warm})"),
        };
        let (boot, total) = (boot as f64 / 1000.0, total as f64 / 1000.0);
        parts.push(format!("boot {boot:.1} s{how}, total {total:.1} s"));
    }
    wrapped(out, "  ", &parts.join(", "));
}

/// The console says something when the machine or the scheduler's place in the kernel is the matter.
fn console_matters(report: &RunReport) -> bool {
    report.infrastructure
        || !matches!(report.cause, None | Some(Cause::Assertion | Cause::TestPanic { .. } | Cause::Cancelled))
}

fn tail(out: &mut String, title: &str, lines: &[String], most: usize) {
    if lines.is_empty() {
        return;
    }
    let skipped = lines.len().saturating_sub(most);
    line(out, format_args!("--- {title} ---"));
    if skipped > 0 {
        line(out, format_args!("  ({skipped} earlier lines are in the run directory)"));
    }
    for text in &lines[skipped..] {
        wrapped(out, "  ", &printable(text));
    }
}

//! Counts and explanations from run reports: what `test` prints at its end
//! and what `shell` says when a machine ended badly.

use std::fs;
use std::path::{Path, PathBuf};

use ktstr_proto::verdict::{Cause, Outcome, RunReport};

/// Where runs are kept when `KTSTR_RUNS_ROOT` does not say: beside the kernels.
pub fn runs_root(store: &Path) -> PathBuf {
    match std::env::var_os("KTSTR_RUNS_ROOT").filter(|value| !value.is_empty()) {
        Some(root) => PathBuf::from(root),
        None => store.parent().unwrap_or(store).join("runs"),
    }
}

/// The reports of all runs below a directory, by name.
#[derive(Debug, Default)]
pub struct Summary {
    reports: Vec<RunReport>,
    /// Run directories without a readable report, and why.
    unreadable: Vec<String>,
}

impl Summary {
    /// Reads `*/sidecar.json`. A directory that is not there holds no runs.
    pub fn read(root: &Path) -> Self {
        let mut summary = Self::default();
        for run in fs::read_dir(root).into_iter().flatten().flatten().filter(|run| run.path().is_dir()) {
            let path = run.path().join("sidecar.json");
            let report = fs::read(&path)
                .map_err(|e| e.to_string())
                .and_then(|text| serde_json::from_slice(&text).map_err(|e| e.to_string()));
            match report {
                Ok(report) => summary.reports.push(report),
                Err(reason) => summary.unreadable.push(format!("{}: {reason}", path.display())),
            }
        }
        summary.reports.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.run_id.0.cmp(&b.run_id.0)));
        summary.unreadable.sort();
        summary
    }

    /// How many runs had an outcome; runs that ktstr itself broke have none.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.reports.iter().filter(|r| !r.infrastructure && r.outcome == outcome).count()
    }

    /// How many runs say nothing about a scheduler because ktstr failed.
    pub fn infrastructure(&self) -> usize {
        self.reports.iter().filter(|r| r.infrastructure).count() + self.unreadable.len()
    }

    /// The four counts, what was not run and why, and what was left unclear.
    pub fn render(&self) -> String {
        let counts =
            [Outcome::Pass, Outcome::Fail, Outcome::Inconclusive, Outcome::NotRun].map(|o| self.count(o));
        let [pass, fail, inconclusive, not_run] = counts;
        let mut text =
            format!("ktstr: {pass} passed, {fail} failed, {inconclusive} inconclusive, {not_run} not run");
        if self.infrastructure() > 0 {
            text.push_str(&format!(", {} without a verdict (infrastructure)", self.infrastructure()));
        }
        text.push('\n');
        for report in &self.reports {
            match (report.infrastructure, report.outcome) {
                (true, _) => text.push_str(&line("no verdict", report)),
                (false, Outcome::NotRun) => text.push_str(&line("not run", report)),
                (false, Outcome::Inconclusive) => text.push_str(&line("inconclusive", report)),
                (false, Outcome::Fail) => {
                    text.push_str(&line("failed", report));
                    text.push_str(&format!("    {}\n    {}\n", report.run_dir.display(), report.replay));
                }
                (false, Outcome::Pass) => {}
            }
        }
        for reason in &self.unreadable {
            text.push_str(&format!("  no report: {reason}\n"));
        }
        text
    }
}

fn line(what: &str, report: &RunReport) -> String {
    format!("  {what}: {}: {}\n", report.name, reason(report))
}

/// Why a run ended as it did, in one line.
fn reason(report: &RunReport) -> String {
    let finding = || {
        let details = report.result.iter().flat_map(|r| &r.details);
        details.filter(|d| d.outcome == report.outcome).map(|d| d.message.clone()).next()
    };
    match &report.cause {
        None | Some(Cause::Assertion) => finding().unwrap_or_else(|| "no reason was recorded".to_owned()),
        Some(cause) => describe(cause),
    }
}

fn describe(cause: &Cause) -> String {
    match cause {
        Cause::Assertion => "a check failed".to_owned(),
        Cause::TestPanic { message, .. } => format!("the test panicked: {message}"),
        Cause::TestDied { how } => format!("the test process {how}"),
        Cause::SchedulerStall { reason } => format!("the scheduler stalled: {reason}"),
        Cause::SchedulerError { reason } => format!("the scheduler ended with an error: {reason}"),
        Cause::SchedulerNotAttached { reason } => format!("the scheduler did not attach: {reason}"),
        Cause::SchedulerDied { how } => format!("the scheduler process {how}"),
        Cause::KernelPanic { message } => format!("the guest kernel panicked: {message}"),
        Cause::GuestInit { step, reason } => format!("the guest could not be set up: {step}: {reason}"),
        Cause::Deadline { phase, waited_ms } => format!("nothing came after {phase} within {waited_ms} ms"),
        Cause::GuestEnded { how } => format!("the guest ended before its result: {how}"),
        Cause::Channel { reason } => format!("the guest sent what cannot be read: {reason}"),
        Cause::ProcessDied { process, how } => format!("{process} {how}"),
        Cause::Missing { reason } | Cause::BadRequest { reason } => reason.clone(),
        Cause::Cancelled => "it was cancelled".to_owned(),
    }
}

/// The end of a run without an exit status: reason, console, directory.
pub fn explain(report: &RunReport) -> String {
    let mut text = String::new();
    if let Some(cause) = &report.cause {
        text.push_str(&format!("error: {}\n", describe(cause)));
        let missing = matches!(cause, Cause::Missing { .. } | Cause::BadRequest { .. } | Cause::Cancelled);
        for line in report.console_tail.iter().rev().take(if missing { 0 } else { 12 }).rev() {
            text.push_str(&format!("  console: {line}\n"));
        }
        text.push_str(&format!("run directory: {}\n", report.run_dir.display()));
    }
    text
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use ktstr_proto::{RunId, Topology};

    /// A report as an orchestrator would write it.
    pub fn report(name: &str, outcome: Outcome, cause: Option<Cause>) -> RunReport {
        RunReport {
            run_id: RunId(format!("{name}-1")),
            run_dir: format!("/runs/{name}-1").into(),
            name: name.into(),
            outcome,
            infrastructure: false,
            cause,
            result: None,
            timeline: Vec::new(),
            captures: Vec::new(),
            assert: None,
            monitor: None,
            host: None,
            notes: Vec::new(),
            scheduler_log: Vec::new(),
            console_tail: vec!["last words".into()],
            accel: None,
            accel_detail: String::new(),
            kernel: "7.2".into(),
            scheduler: "EEVDF".into(),
            topology: Topology::new(1, 1, 2, 1).unwrap(),
            exit_status: None,
            seed: 0,
            replay: format!("cargo ktstr test -- {name}"),
            host_ms: (1, 2),
            boot: Default::default(),
        }
    }

    fn plant(root: &Path, report: &RunReport) {
        let dir = root.join(&report.run_id.0);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("sidecar.json"), serde_json::to_vec(report).unwrap()).unwrap();
    }

    #[test]
    fn counts_and_reasons() {
        let root = tempfile::tempdir().unwrap();
        let missing = Cause::Missing { reason: "no cached kernel matches 9.9".into() };
        let stall = Cause::SchedulerStall { reason: "runnable task stall".into() };
        plant(root.path(), &report("a", Outcome::Pass, None));
        plant(root.path(), &report("b", Outcome::Fail, Some(stall)));
        plant(root.path(), &report("c", Outcome::NotRun, Some(missing)));
        let died = Cause::Deadline { phase: "boot".into(), waited_ms: 5 };
        plant(root.path(), &RunReport { infrastructure: true, ..report("d", Outcome::Fail, Some(died)) });
        fs::create_dir(root.path().join("e-1")).unwrap();
        fs::write(root.path().join("README"), "").unwrap();
        let text = Summary::read(root.path()).render();
        let expected = format!(
            "ktstr: 1 passed, 1 failed, 0 inconclusive, 1 not run, 2 without a verdict (infrastructure)\n  \
             failed: b: the scheduler stalled: runnable task stall\n    /runs/b-1\n    cargo ktstr test -- b\n  \
             not run: c: no cached kernel matches 9.9\n  \
             no verdict: d: nothing came after boot within 5 ms\n  \
             no report: {}/e-1/sidecar.json: No such file or directory (os error 2)\n",
            root.path().display()
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn no_runs() {
        assert_eq!(
            Summary::read(Path::new("/nonexistent")).render(),
            "ktstr: 0 passed, 0 failed, 0 inconclusive, 0 not run\n"
        );
    }

    #[test]
    fn explanations_show_the_console_when_the_guest_is_to_blame() {
        let panic = Cause::KernelPanic { message: "VFS".into() };
        let text = explain(&report("shell", Outcome::Inconclusive, Some(panic)));
        assert_eq!(
            text,
            "error: the guest kernel panicked: VFS\n  console: last words\nrun directory: /runs/shell-1\n"
        );
        let missing =
            explain(&report("shell", Outcome::NotRun, Some(Cause::Missing { reason: "no".into() })));
        assert!(!missing.contains("console"), "{missing}");
    }
}

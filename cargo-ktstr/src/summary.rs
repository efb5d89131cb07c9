//! Counts and explanations from run reports: what `test` prints at its end
//! and what `shell` says when a machine ended badly.

use std::fs;
use std::path::{Path, PathBuf};

use ktstr_proto::verdict::{Cause, Outcome, RunReport};

/// Where the environment wants runs, and the reports in them, to be kept.
pub fn told_runs_root() -> Option<PathBuf> {
    let told = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    told("KTSTR_RUNS_ROOT").or_else(|| told("KTSTR_SIDECAR_DIR")).map(PathBuf::from)
}

/// Where runs are kept when the environment does not say: beside the kernels.
pub fn runs_root(store: &Path) -> PathBuf {
    told_runs_root().unwrap_or_else(|| store.parent().unwrap_or(store).join("runs"))
}

/// The reports of all runs below a directory, by name.
#[derive(Debug, Default)]
pub struct Summary {
    reports: Vec<RunReport>,
    /// Those that a later run of the same test made up for.
    made_up_for: Vec<RunReport>,
    /// Run directories without a readable report, and why.
    unreadable: Vec<String>,
}

impl Summary {
    /// Reads `*/sidecar.json`. A directory that is not there holds no runs.
    pub fn read(root: &Path) -> Self {
        let mut summary = Self::default();
        let is_run = |run: &fs::DirEntry| run.path().is_dir() && run.file_name() != crate::budget::DIRECTORY;
        for run in fs::read_dir(root).into_iter().flatten().flatten().filter(is_run) {
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

    /// Sets aside runs that did not pass where a later one of the same test and seed did: the harness retried them, and
    /// was content. They are told, and decide nothing.
    pub fn retried(&mut self) {
        let passed = |report: &RunReport| report.outcome == Outcome::Pass && !report.infrastructure;
        let ends: Vec<(String, u64, String)> = self
            .reports
            .iter()
            .filter(|report| passed(report))
            .map(|report| (report.name.clone(), report.seed, report.run_id.0.clone()))
            .collect();
        let made_up_for = |report: &mut RunReport| {
            let later = |(name, seed, id): &(String, u64, String)| {
                (name, *seed) == (&report.name, report.seed) && *id > report.run_id.0
            };
            !passed(report) && ends.iter().any(later)
        };
        self.made_up_for = self.reports.extract_if(.., made_up_for).collect();
    }

    /// How many runs had an outcome; runs that ktstr itself broke have none.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.reports.iter().filter(|r| !r.infrastructure && r.outcome == outcome).count()
    }

    /// How many runs say nothing about a scheduler because ktstr failed.
    pub fn infrastructure(&self) -> usize {
        self.reports.iter().filter(|r| r.infrastructure).count() + self.unreadable.len()
    }

    /// How many runs are inconclusive where their test does not allow that.
    pub fn undecided(&self) -> usize {
        self.reports.iter().filter(|report| report.undecided()).count()
    }

    /// The four counts, what was not run and why, and what was left unclear: each way in which a test
    /// ended once, however many seeds showed it.
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
        for same in self.endings() {
            let first = same[0];
            let (what, tell_how) = match (first.infrastructure, first.outcome) {
                (true, _) => ("no verdict", true),
                (false, Outcome::NotRun) => ("not run", false),
                (false, Outcome::Inconclusive) if !first.undecided() => ("inconclusive, allowed", false),
                (false, Outcome::Inconclusive) => ("inconclusive", true),
                (false, Outcome::Fail) => ("failed", true),
                (false, Outcome::Pass) => continue,
            };
            wrapped(&mut text, &format!("  {what}: {}{}: {}", first.name, times(&same), reason(first)));
            if tell_how {
                text.push_str(&format!("    {}\n", first.run_dir.display()));
                if !first.replay.is_empty() {
                    text.push_str(&format!("    {}\n", first.replay));
                }
            }
        }
        for report in &self.made_up_for {
            wrapped(
                &mut text,
                &format!("  passed when retried: {}; before: {}", report.name, reason(report)),
            );
            text.push_str(&format!("    {}\n", report.run_dir.display()));
        }
        for reason in &self.unreadable {
            text.push_str(&format!("  no report: {reason}\n"));
        }
        text
    }

    /// Runs of one test that ended in the same way, in the order of their seeds; by test.
    fn endings(&self) -> Vec<Vec<&RunReport>> {
        let mut endings: Vec<((&str, String), Vec<&RunReport>)> = Vec::new();
        for report in &self.reports {
            let key = (report.name.as_str(), report.ending());
            match endings.iter_mut().find(|(known, _)| *known == key) {
                Some((_, same)) => same.push(report),
                None => endings.push((key, vec![report])),
            }
        }
        let mut all = Vec::new();
        for (_, mut same) in endings {
            same.sort_by_key(|report| report.seed);
            all.push(same);
        }
        all
    }
}

/// Of several runs the seeds.
fn times(same: &[&RunReport]) -> String {
    const SHOWN: usize = 3;
    if same.len() < 2 {
        return String::new();
    }
    let seeds: Vec<String> = same.iter().take(SHOWN).map(|report| report.seed.to_string()).collect();
    let more = if same.len() > SHOWN { ", …" } else { "" };
    format!(" ({} runs, seeds {}{more})", same.len(), seeds.join(", "))
}

const WIDTH: usize = 80;

/// Adds a line, broken between words at the width and then indented. A word that is longer, a path for
/// instance, is not broken.
fn wrapped(out: &mut String, text: &str) {
    let indent = text.chars().take_while(|c| *c == ' ').count();
    let mut column = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > WIDTH {
            out.push('\n');
            column = 0;
        }
        let before = match column {
            0 if out.ends_with('\n') && !text.trim_start().starts_with(word) => indent + 2,
            0 => indent,
            _ => 1,
        };
        out.extend(std::iter::repeat_n(' ', before));
        out.push_str(word);
        column += before + length;
    }
    out.push('\n');
}

/// The summary in colours: the worst by its colour, names of verdicts in bold.
pub fn coloured(text: &str) -> String {
    const WORDS: [(&str, &str); 6] = [
        ("  failed:", "1;31"),
        ("  no verdict:", "1;31"),
        ("  no report:", "1;31"),
        ("  inconclusive:", "1;33"),
        ("  inconclusive, allowed:", "33"),
        ("  not run:", "1;36"),
    ];
    let mut out = String::new();
    for line in text.lines() {
        let word = WORDS.iter().find(|(word, _)| line.starts_with(word));
        match word {
            Some((word, colour)) => {
                out.push_str(&format!("\x1b[{colour}m{word}\x1b[0m{}", &line[word.len()..]));
            }
            None if line.starts_with("ktstr: ") => out.push_str(&format!("\x1b[1m{line}\x1b[0m")),
            None => out.push_str(line),
        }
        out.push('\n');
    }
    out
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
        let shape = Topology::new(1, 1, 2, 1).unwrap();
        RunReport {
            outcome,
            cause,
            console_tail: vec!["last words".into()],
            kernel: "7.2".into(),
            replay: format!("cargo ktstr test -- {name}"),
            host_ms: (1, 2),
            ..RunReport::blank(RunId(format!("{name}-1")), format!("/runs/{name}-1"), name, shape)
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
             no verdict: d: nothing came after boot within 5 ms\n    /runs/d-1\n    cargo ktstr test -- d\n  \
             no report: {}/e-1/sidecar.json: No such file or directory (os error 2)\n",
            root.path().display()
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn each_way_to_end_is_told_once_with_its_seeds() {
        let root = tempfile::tempdir().unwrap();
        let stall = |seed: u64, pid: u32| {
            let reason = format!("runnable task stall: test[{pid}] failed to run for 1.{seed}s");
            let report = report("ring", Outcome::Fail, Some(Cause::SchedulerStall { reason }));
            RunReport { seed, run_id: RunId(format!("ring-{seed}")), ..report }
        };
        [stall(9, 112), stall(7, 110), stall(8, 112), stall(10, 3)]
            .iter()
            .for_each(|r| plant(root.path(), r));
        let panic = Cause::TestPanic { message: "no token".into(), backtrace: String::new() };
        let other = RunReport {
            seed: 11,
            run_id: RunId("ring-11".into()),
            ..report("ring", Outcome::Fail, Some(panic))
        };
        plant(root.path(), &other);
        let text = Summary::read(root.path()).render();
        assert!(text.starts_with("ktstr: 0 passed, 5 failed"), "{text}");
        assert_eq!(text.matches("  failed: ring").count(), 2, "{text}");
        assert!(text.contains("  failed: ring (4 runs, seeds 7, 8, 9, …): the scheduler stalled:"), "{text}");
        assert!(text.contains("test[110] failed to run for 1.7s"), "{text}");
        assert!(text.contains("  failed: ring: the test panicked: no token\n"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn a_retry_that_passed_decides_and_what_was_before_is_told() {
        let run = |id: &str, outcome| RunReport { run_id: RunId(id.into()), ..report("a", outcome, None) };
        let of = |runs: &[RunReport]| {
            let root = tempfile::tempdir().unwrap();
            runs.iter().for_each(|run| plant(root.path(), run));
            let mut summary = Summary::read(root.path());
            summary.retried();
            summary
        };
        let (first, second) = (run("a-1", Outcome::Fail), run("a-2", Outcome::Pass));
        let summary = of(&[first.clone(), second.clone()]);
        assert_eq!((summary.count(Outcome::Pass), summary.count(Outcome::Fail)), (1, 0));
        let text = summary.render();
        assert!(text.contains("  passed when retried: a; before: ") && text.contains("/runs/a-1"), "{text}");
        // Another seed is another run, and a failure after a pass stays one.
        let other = RunReport { seed: 9, ..first };
        assert_eq!(of(&[other, second.clone()]).count(Outcome::Fail), 1);
        assert_eq!(of(&[second, run("a-3", Outcome::Fail)]).count(Outcome::Fail), 1);
    }

    #[test]
    fn what_a_test_allows_is_counted_and_does_not_decide() {
        let root = tempfile::tempdir().unwrap();
        let open = report("a", Outcome::Inconclusive, Some(Cause::Assertion));
        plant(root.path(), &RunReport { allow_inconclusive: true, ..open.clone() });
        let summary = Summary::read(root.path());
        assert_eq!((summary.count(Outcome::Inconclusive), summary.undecided()), (1, 0));
        assert!(summary.render().contains("  inconclusive, allowed: a: "), "{}", summary.render());
        plant(root.path(), &RunReport { run_id: RunId("b".into()), name: "b".into(), ..open });
        assert_eq!(Summary::read(root.path()).undecided(), 1);
    }

    #[test]
    fn lines_break_between_words_and_colours_change_nothing_else() {
        let mut text = String::new();
        wrapped(&mut text, &format!("  failed: a: {}/{}", "word ".repeat(30), "long".repeat(30)));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("  failed: a: word") && lines[1].starts_with("    word"), "{text}");
        assert!(lines.iter().filter(|line| line.chars().count() > 80).count() == 1, "{text}");
        let painted = coloured(&text);
        assert!(painted.starts_with("\x1b[1;31m  failed:\x1b[0m a: word"), "{painted}");
        assert_eq!(painted.replace("\x1b[1;31m", "").replace("\x1b[0m", ""), text);
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

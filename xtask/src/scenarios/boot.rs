//! One boot of the catalogue: what `tests/catalogue.rs` printed, and why the boot ended.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::ScenariosArgs;
use crate::workspace;

/// Last lines of a scheduler's output that are evidence.
const SCHEDULER_LINES: usize = 8;

/// How one scenario ended, and its milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub scenario: String,
    pub outcome: String,
    /// `None` when its boot ended before it did.
    pub ms: Option<u64>,
    /// What was found.
    pub details: Vec<String>,
}

/// Why a boot ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// Every scenario had its turn; what was found about the boot as a whole.
    Complete(Vec<String>),
    /// Others wait for another boot.
    OutOfTime(Vec<String>),
    /// Within the last scenario of its lines.
    Within,
    /// No scenario began, and why.
    Before(Vec<String>),
    /// Something is missing here.
    NotRun(String),
}

/// One boot.
#[derive(Debug)]
pub struct Boot {
    pub lines: Vec<Line>,
    pub ending: Ending,
}

/// What all boots of a column have in common.
pub struct Machine<'a> {
    pub executable: &'a Path,
    pub cell: &'a str,
    pub published: &'a Path,
    pub args: &'a ScenariosArgs,
}

impl Machine<'_> {
    /// Boots, begins after the scenario `after`, and keeps the run in `runs`.
    pub fn boot(&self, after: Option<&str>, runs: &Path) -> Result<Boot> {
        let args = self.args;
        let mut guest = vec![
            format!("KTSTR_CATALOGUE_MS={}", args.moment_ms),
            format!("KTSTR_CATALOGUE_LIMIT_S={}", args.boot_limit_s),
        ];
        if !args.only.is_empty() {
            guest.push(format!("KTSTR_CATALOGUE={}", args.only));
        }
        guest.extend(after.map(|name| format!("KTSTR_CATALOGUE_AFTER={name}")));
        let mut run = Command::new(self.executable);
        run.args(["--exact", self.cell, "--ignored", "--nocapture"]);
        run.env("NEXTEST", "1").env("KTSTR_ACCEL", &args.accel).env("KTSTR_BIN_DIR", workspace::bin_dir());
        run.env("KTSTR_GUEST_ENV", guest.join(",")).env("KTSTR_RUNS_ROOT", runs).env("KTSTR_AUTO_REPRO", "0");
        run.envs(args.kernel.iter().map(|kernel| ("KTSTR_KERNEL", kernel)));
        let path = std::env::var("PATH").unwrap_or_default();
        run.env("PATH", format!("{}:{path}", self.published.display()));
        // Its report is read from the run's directory.
        let output = run.stderr(Stdio::null()).output().context("cannot run the catalogue")?;
        Ok(read(&String::from_utf8_lossy(&output.stdout), report(runs).as_ref()))
    }
}

/// The report of the one run below a directory.
fn report(runs: &Path) -> Option<Value> {
    let mut dirs = fs::read_dir(runs).ok()?.flatten().map(|entry| entry.path().join("sidecar.json"));
    serde_json::from_slice(&fs::read(dirs.find(|path| path.is_file())?).ok()?).ok()
}

/// What a boot came to, from what it printed and its report.
fn read(said: &str, report: Option<&Value>) -> Boot {
    let mut lines: Vec<Line> = Vec::new();
    let mut begun = None::<&str>;
    let (mut complete, mut out_of_time) = (false, false);
    for text in said.lines() {
        let words: Vec<&str> = text.split_whitespace().collect();
        match words.as_slice() {
            ["catalogue:", "begins", scenario] => begun = Some(*scenario),
            ["catalogue:", "complete"] => complete = true,
            ["catalogue:", "out", "of", "time"] => out_of_time = true,
            // What follows the last scenario is the report.
            _ if complete || out_of_time => break,
            [group, name, outcome @ .., ms, "ms"]
                if !outcome.is_empty() && begun == Some(&format!("{group}::{name}")) =>
            {
                let Ok(ms) = ms.parse() else { continue };
                let scenario = format!("{group}::{name}");
                lines.push(Line { scenario, outcome: outcome.join(" "), ms: Some(ms), details: Vec::new() });
                begun = None;
            }
            _ if begun.is_none() && text.starts_with("    ") => {
                if let Some(last) = lines.last_mut() {
                    last.details.push(text.trim().to_owned());
                }
            }
            _ => {}
        }
    }
    lines.iter_mut().for_each(|line| weigh(line, report));
    let outcome = report.map_or("no report", outcome);
    let ending = match begun {
        Some(scenario) => {
            let details = report.map(evidence).unwrap_or_default();
            lines.push(Line { scenario: scenario.into(), outcome: outcome.into(), ms: None, details });
            Ending::Within
        }
        None if complete => Ending::Complete(beside(report)),
        None if out_of_time => Ending::OutOfTime(beside(report)),
        None if outcome == "NOT RUN" => Ending::NotRun(report.map(evidence).unwrap_or_default().join("; ")),
        // Between two scenarios it can only have ended as it does within one.
        None if !lines.is_empty() => {
            if let (Some(last), Some(report)) = (lines.last_mut(), report) {
                last.outcome = format!("{}, then {outcome}", last.outcome);
                last.details.extend(evidence(report));
            }
            Ending::Within
        }
        None => Ending::Before(report.map_or_else(|| vec!["no report".into()], evidence)),
    };
    Boot { lines, ending }
}

/// What the guest found a failure may be the host's doing, which the report says and the guest cannot know.
fn weigh(line: &mut Line, report: Option<&Value>) {
    if line.outcome != "FAIL" {
        return;
    }
    let Some((_, name)) = line.scenario.split_once("::") else { return };
    let details = report.and_then(|report| report.pointer("/result/details")?.as_array());
    let own = details.into_iter().flatten().filter_map(|detail| {
        let message = detail.get("message")?.as_str()?.strip_prefix(name)?.strip_prefix(": ")?;
        Some((outcome(detail), message.to_owned()))
    });
    let own: Vec<_> = own.collect();
    let has = |word: &str| own.iter().any(|(outcome, _)| *outcome == word);
    if !has("FAIL") && has("INCONCLUSIVE") {
        line.outcome = "INCONCLUSIVE".into();
        line.details = own.into_iter().map(|(_, message)| message).collect();
    }
}

/// The word for a report's judgement, or that of a finding in it.
fn outcome(report: &Value) -> &'static str {
    match report.get("outcome").and_then(Value::as_str) {
        _ if report.get("infrastructure").and_then(Value::as_bool) == Some(true) => "INFRASTRUCTURE",
        Some("Pass") => "PASS",
        Some("Fail") => "FAIL",
        Some("Inconclusive") => "INCONCLUSIVE",
        Some("NotRun") => "NOT RUN",
        _ => "no verdict",
    }
}

/// What ended a run, in the words of who ended it: the cause, and the last of what the scheduler said.
fn evidence(report: &Value) -> Vec<String> {
    let cause = match report.get("cause") {
        Some(Value::String(name)) => name.clone(),
        Some(Value::Object(named)) => named.iter().map(|(name, of)| format!("{name} {}", flat(of))).collect(),
        _ => format!("no cause is known, {}", outcome(report)),
    };
    let mut lines = vec![cause];
    let texts = |value: Option<&Value>| -> Vec<String> {
        let all = value.and_then(Value::as_array).into_iter().flatten();
        all.filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let kernel = texts(report.get("console_tail"));
    lines.extend(
        kernel.iter().filter(|line| line.contains("sched_ext:")).map(|line| format!("kernel: {line}")),
    );
    let log: Vec<String> = texts(report.get("scheduler_log")).iter().map(|line| plain(line)).collect();
    let log: Vec<&String> = log.iter().filter(|line| line.chars().any(char::is_alphanumeric)).collect();
    let from = log.len().saturating_sub(SCHEDULER_LINES);
    lines.extend(log[from..].iter().map(|line| format!("scheduler: {line}")));
    lines.extend(beside(Some(report)));
    lines
}

/// A line without what colours it on a terminal.
fn plain(line: &str) -> String {
    let mut pieces = line.split("\u{1b}[");
    let first = pieces.next().unwrap_or_default().to_owned();
    let rest = pieces.filter_map(|piece| piece.split_once(|c: char| c.is_ascii_alphabetic()));
    rest.fold(first, |text, (_, after)| text + after).trim_end().to_owned()
}

/// The fields of a cause as one text.
fn flat(of: &Value) -> String {
    let fields = of.as_object().into_iter().flatten();
    let text =
        |value: &Value| value.as_str().map_or_else(|| value.to_string(), |text| text.replace('\n', "; "));
    fields.map(|(name, value)| format!("{name}: {}", text(value))).collect::<Vec<_>>().join(", ")
}

/// What was found that belongs to no single scenario: the monitor's findings.
fn beside(report: Option<&Value>) -> Vec<String> {
    let details = report.and_then(|report| report.pointer("/result/details")?.as_array());
    let text = |detail: &Value, key: &str| detail.get(key).and_then(Value::as_str).map(str::to_owned);
    let monitors = details.into_iter().flatten().filter(|detail| {
        let worth = matches!(text(detail, "outcome").as_deref(), Some("Fail" | "Inconclusive"));
        worth && text(detail, "kind").as_deref() == Some("Monitor")
    });
    monitors
        .filter_map(|detail| Some(format!("{}: {}", text(detail, "outcome")?, text(detail, "message")?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "boot\ncatalogue: 3 scenarios\ncatalogue: begins basic::steady\n\
        basic        steady      PASS            437 ms\ncatalogue: begins nested::churn\n\
        nested       churn       NOT RUN            5 ms\n    no such thing\n";

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_boot_that_comes_to_its_end_is_complete_and_what_follows_is_not_read() {
        let said = format!("{TWO}catalogue: complete\nktstr_test 'gauntlet/x'\n    total 3 ms\n");
        let report = json(
            r#"{"outcome":"Fail","infrastructure":false,"cause":"Assertion","result":{"details":[
            {"kind":"Gap","outcome":"Fail","message":"one"},{"kind":"Monitor","outcome":"Fail","message":"two"}]}}"#,
        );
        let boot = read(&said, Some(&report));
        assert_eq!(boot.ending, Ending::Complete(vec!["Fail: two".into()]));
        assert_eq!(
            (boot.lines.len(), boot.lines[0].ms, boot.lines[1].outcome.as_str()),
            (2, Some(437), "NOT RUN")
        );
        assert_eq!(boot.lines[1].details, ["no such thing"]);
        let failed = format!("{}catalogue: complete\n", TWO.replace("PASS", "FAIL"));
        assert_eq!(read(&failed, Some(&report)).lines[0].outcome, "FAIL");
        let excused = json(
            r#"{"outcome":"Inconclusive","infrastructure":false,"result":{"details":[
            {"kind":"Spread","outcome":"Inconclusive","message":"steady: wide; the host's doing"}]}}"#,
        );
        let line = &read(&failed, Some(&excused)).lines[0];
        assert_eq!((line.outcome.as_str(), line.details.len()), ("INCONCLUSIVE", 1));
        let said = format!("{TWO}catalogue: out of time\n");
        assert_eq!(read(&said, None).ending, Ending::OutOfTime(Vec::new()));
    }

    #[test]
    fn the_scenario_in_which_a_boot_ends_gets_the_evidence() {
        let said =
            format!("{TWO}catalogue: begins dynamic::cpu_hotplug\nktstr_test 'x' FAILED\n    total 9 ms\n");
        let report = json(
            r#"{"outcome":"Fail","infrastructure":false,"cause":{"SchedulerStall":{"reason":"runnable task stall"}},
            "scheduler_log":["\u001b[0m\u001b[34m[INFO] a\n","====","EXIT: runnable task stall\n"],"console_tail":["x","sched_ext: disabled"],
            "result":null}"#,
        );
        let boot = read(&said, Some(&report));
        let last = boot.lines.last().unwrap();
        assert_eq!((boot.ending, boot.lines.len()), (Ending::Within, 3));
        assert_eq!(
            (last.scenario.as_str(), last.outcome.as_str(), last.ms),
            ("dynamic::cpu_hotplug", "FAIL", None)
        );
        let wanted = [
            "SchedulerStall reason: runnable task stall",
            "kernel: sched_ext: disabled",
            "scheduler: [INFO] a",
            "scheduler: EXIT: runnable task stall",
        ];
        assert_eq!(last.details, wanted);
    }

    #[test]
    fn a_boot_without_scenarios_says_why() {
        let missing =
            json(r#"{"outcome":"NotRun","infrastructure":false,"cause":{"Missing":{"reason":"no scx_x"}}}"#);
        assert_eq!(read("", Some(&missing)).ending, Ending::NotRun("Missing reason: no scx_x".into()));
        assert_eq!(read("", None).ending, Ending::Before(vec!["no report".into()]));
        let between =
            json(r#"{"outcome":"Fail","infrastructure":true,"cause":{"GuestEnded":{"how":"reset"}}}"#);
        let boot = read(TWO, Some(&between));
        assert_eq!(
            (boot.ending, boot.lines[1].outcome.as_str()),
            (Ending::Within, "NOT RUN, then INFRASTRUCTURE")
        );
    }
}

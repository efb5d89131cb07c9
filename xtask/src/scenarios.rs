//! `cargo xtask scenarios`: the whole catalogue of scenarios under each scheduler on each preset, and a
//! page that says how each ended and how long it took (`docs/scenarios.md`).
//!
//! The schedulers: the kernel's own, the fixture, and one that others publish where it was built before
//! (`cargo xtask published`). What was not run is said on the page, never left out.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use clap::Args;

use crate::workspace;

/// Options of `cargo xtask scenarios`.
#[derive(Args, Debug)]
pub struct ScenariosArgs {
    /// Machine shapes
    #[arg(long, default_values = ["4cpu-1llc-nosmt", "4cpu-2llc-nosmt"])]
    preset: Vec<String>,
    /// Schedulers, as the tests of tests/catalogue.rs are named after `under_`
    #[arg(long, default_values = ["eevdf", "scx_ktstr", "scx_bpfland"])]
    scheduler: Vec<String>,
    /// Directory with published schedulers [default: where `cargo xtask published` puts them]
    #[arg(long)]
    published: Option<PathBuf>,
    /// Kernel, as for `cargo ktstr test --kernel`
    #[arg(long)]
    kernel: Option<String>,
}

/// How one scenario ended, and its milliseconds.
#[derive(Debug, PartialEq)]
struct Line {
    scenario: String,
    outcome: String,
    ms: u64,
    /// What was found.
    details: Vec<String>,
}

/// One run of the catalogue.
struct Column {
    name: String,
    verdict: String,
    lines: Vec<Line>,
}

/// 0 when every run passed.
pub fn command(args: &ScenariosArgs) -> Result<u8> {
    workspace::build_executables()?;
    if args.kernel.is_none() {
        workspace::ensure_kernel(None)?;
    }
    let executable = workspace::test_executable("catalogue")?;
    let published = args.published.clone().unwrap_or_else(|| workspace::target_dir().join("published/bin"));
    let mut columns = Vec::new();
    for scheduler in &args.scheduler {
        for preset in &args.preset {
            let cell = format!("gauntlet/under_{scheduler}/{preset}");
            println!("==> {cell}");
            let mut run = Command::new(&executable);
            run.args(["--exact", &cell, "--ignored", "--nocapture"]);
            run.env("NEXTEST", "1").env("KTSTR_ACCEL", "tcg").env("KTSTR_BIN_DIR", workspace::bin_dir());
            run.envs(args.kernel.iter().map(|kernel| ("KTSTR_KERNEL", kernel)));
            let path = std::env::var("PATH").unwrap_or_default();
            run.env("PATH", format!("{}:{path}", published.display()));
            let output = run.stderr(Stdio::inherit()).output().context("cannot run the catalogue")?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let column = Column {
                name: format!("{scheduler}, {preset}"),
                verdict: verdict(&said),
                lines: lines(&said),
            };
            println!("    {} scenarios, {}", column.lines.len(), column.verdict);
            if !column.verdict.starts_with("PASS") {
                println!("{said}");
            }
            columns.push(column);
        }
    }
    let page = workspace::root().join("docs/scenarios.md");
    fs::write(&page, render(&columns)).with_context(|| format!("cannot write {}", page.display()))?;
    println!("written: {}", page.display());
    Ok(u8::from(columns.iter().any(|column| !column.verdict.starts_with("PASS"))))
}

/// The first word of judgement in what a run printed: in its report, or, since a failure's report goes to
/// standard error, in the harness's own line.
fn verdict(said: &str) -> String {
    let words = ["PASS", "FAILED", "INCONCLUSIVE", "NOT RUN", "INFRASTRUCTURE"];
    let from = |start: &str| {
        let found = said.lines().skip_while(|line| !line.contains(start));
        let text = found.take(4).collect::<Vec<_>>().join(" ");
        words.iter().filter_map(|word| text.find(word).map(|at| (at, *word))).min()
    };
    let first = from("ktstr_test '").or_else(|| from("test gauntlet/"));
    first.map_or_else(|| "no verdict".into(), |(_, word)| word.into())
}

/// `GROUP NAME OUTCOME N ms`, and the findings below it.
fn lines(said: &str) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for text in said.lines() {
        let words: Vec<&str> = text.split_whitespace().collect();
        match words.as_slice() {
            [group, name, outcome @ .., ms, "ms"] if !text.starts_with(' ') && !outcome.is_empty() => {
                let Ok(ms) = ms.parse() else { continue };
                let scenario = format!("{group}::{name}");
                lines.push(Line { scenario, outcome: outcome.join(" "), ms, details: Vec::new() });
            }
            _ if text.starts_with("    ") => {
                if let Some(last) = lines.last_mut() {
                    last.details.push(text.trim().to_owned());
                }
            }
            // What follows the last scenario is the report.
            _ if !lines.is_empty() => break,
            _ => {}
        }
    }
    lines
}

fn render(columns: &[Column]) -> String {
    let mut page = String::from(
        "# The scenario catalogue under several schedulers\n\nWritten by `cargo xtask scenarios`: every scenario \
         for 0.4 s, one boot for each column, emulated CPUs (`tcg`). Figures are wall time in the guest, \
         milliseconds, with the making and removing of its cgroups.\n\n| scenario |",
    );
    for column in columns {
        let _ = write!(page, " {} |", column.name);
    }
    let _ = writeln!(page, "\n|---|{}", "---:|".repeat(columns.len()));
    let mut rows: BTreeMap<&str, Vec<Option<&Line>>> = BTreeMap::new();
    for (nth, column) in columns.iter().enumerate() {
        for line in &column.lines {
            let row = rows.entry(&line.scenario).or_insert_with(|| vec![None; columns.len()]);
            row[nth] = Some(line);
        }
    }
    for (scenario, cells) in &rows {
        let _ = write!(page, "| {scenario} |");
        for cell in cells {
            let _ = match cell {
                Some(line) if line.outcome.eq_ignore_ascii_case("pass") => write!(page, " {} |", line.ms),
                Some(line) => write!(page, " {} ({}) |", line.ms, line.outcome),
                None => write!(page, " not run |"),
            };
        }
        page.push('\n');
    }
    let _ = write!(page, "| **all** ({}) |", rows.len());
    for column in columns {
        let sum: u64 = column.lines.iter().map(|line| line.ms).sum();
        let _ = write!(page, " {} scenarios, {} s: {} |", column.lines.len(), sum / 1000, column.verdict);
    }
    page.push('\n');
    for column in columns {
        for line in column.lines.iter().filter(|line| !line.details.is_empty()) {
            let _ = writeln!(page, "\n{} under {}:\n", line.scenario, column.name);
            for detail in &line.details {
                let _ = writeln!(page, "- {detail}");
            }
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_written() {
        let said = "boot\nbasic        steady      pass            437 ms\nnested       churn       not run            5 ms\n    no such thing\nktstr_test 'gauntlet/x' [sched=EEVDF] [topo=1n1l4c1t]\n  PASS\n    total 3 ms\n";
        let read = lines(said);
        assert_eq!((read.len(), read[0].ms, read[1].outcome.as_str()), (2, 437, "not run"));
        assert_eq!(read[1].details, ["no such thing"]);
        assert_eq!(verdict(said), "PASS");
        assert_eq!(verdict("basic steady pass 4 ms\ntest gauntlet/x ... FAILED (failed)\n"), "FAILED");
        let page = render(&[Column { name: "a".into(), verdict: verdict(said), lines: read }]);
        assert!(page.contains("| basic::steady | 437 |\n| nested::churn | 5 (not run) |"), "{page}");
        assert!(page.contains("| **all** (2) | 2 scenarios, 0 s: PASS |"), "{page}");
    }
}

//! `cargo xtask trust`: whether verdicts can be trusted, in numbers.
//!
//! Runs the subjects of `tests/e2e/trust.rs` many times: a healthy scheduler while every host CPU is kept
//! busy, which must never fail, and each mutation of it, which the check that is meant for it must find.
//! A mutation may also fail checks that what it does makes plausible, and no other. Prints a table of what
//! became of the runs; keeps the directory of every run that did not end as it should.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::workspace;

/// Options of `cargo xtask trust`.
#[derive(Args, Debug)]
pub struct TrustArgs {
    /// Runs of each mutation under each accelerator
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Seed of the first run of each; the next ones follow
    #[arg(long, default_value_t = 1)]
    first_seed: u32,
    /// Runs of the healthy scheduler with a busy host
    #[arg(long, default_value_t = 50)]
    healthy_runs: u32,
    /// Accelerators for the mutations
    #[arg(long, default_values = ["tcg", "det"])]
    accel: Vec<String>,
    /// Only subjects with this in their name
    #[arg(long, default_value = "")]
    only: String,
    /// Test executable with the subjects, built before; then nothing is built, and the tree may change
    /// meanwhile. Our executables are looked for in KTSTR_BIN_DIR
    #[arg(long)]
    subjects: Option<PathBuf>,
    /// Kernel, as for `cargo ktstr test --kernel`
    #[arg(long)]
    kernel: Option<String>,
}

impl TrustArgs {
    fn seeds(&self, runs: u32) -> std::ops::Range<u32> {
        self.first_seed..self.first_seed.saturating_add(runs)
    }
}

/// A way to misbehave.
struct Mutation {
    name: &'static str,
    /// The check that must fail.
    matching: &'static str,
    /// Checks that may fail, too.
    plausible: &'static [&'static str],
}

/// What a stalled or ended scheduler does to a test is called by its cause; the rest by kinds of findings.
const MUTATIONS: [Mutation; 4] = [
    Mutation { name: "stall", matching: "SchedulerStall", plausible: &[] },
    // Who waits for his first turn until the end has made no progress.
    Mutation {
        name: "slow",
        matching: "Benchmark",
        plausible: &["Gap", "Spread", "NoProgress", "Monitor", "Throughput"],
    },
    Mutation { name: "unfair", matching: "Spread", plausible: &["Gap", "NoProgress", "Monitor"] },
    Mutation { name: "wrong_cpu", matching: "SchedulerError", plausible: &[] },
];

/// What became of one run.
struct Verdict {
    outcome: String,
    infrastructure: bool,
    /// The cause, where it is not that a check failed; else the kinds of findings that failed.
    failed: Vec<String>,
    /// The kinds of findings that the host may have caused.
    doubted: Vec<String>,
}

/// What became of the runs of one subject.
#[derive(Default)]
struct Row {
    matched: u32,
    failed_otherwise: u32,
    inconclusive: u32,
    passed: u32,
    infrastructure: u32,
    doubts: BTreeMap<String, u32>,
    checks: BTreeMap<String, u32>,
}

impl Row {
    fn add(&mut self, verdict: &Verdict, matching: Option<&str>) {
        for check in &verdict.failed {
            *self.checks.entry(check.clone()).or_default() += 1;
        }
        for check in &verdict.doubted {
            *self.doubts.entry(check.clone()).or_default() += 1;
        }
        let matched = matching.is_some_and(|wanted| verdict.failed.iter().any(|check| check == wanted));
        *match verdict.outcome.as_str() {
            _ if verdict.infrastructure => &mut self.infrastructure,
            "Fail" if matched => &mut self.matched,
            "Fail" => &mut self.failed_otherwise,
            "Inconclusive" => &mut self.inconclusive,
            _ => &mut self.passed,
        } += 1;
    }

    fn print(&self, name: &str, accel: &str, matching: &str, holds: bool) {
        let listed = |checks: &BTreeMap<String, u32>| {
            let each: Vec<String> = checks.iter().map(|(check, times)| format!("{check} {times}")).collect();
            each.join(", ")
        };
        println!(
            "| {name} | {accel} | {matching} | {} | {} | {} | {} | {} | {} | {} | {} |",
            self.matched,
            self.failed_otherwise,
            self.inconclusive,
            self.passed,
            self.infrastructure,
            listed(&self.checks),
            listed(&self.doubts),
            if holds { "holds" } else { "DOES NOT HOLD" }
        );
    }
}

/// 0 when every criterion holds, 1 when one does not.
pub fn command(args: &TrustArgs) -> Result<u8> {
    let executable = match &args.subjects {
        Some(built) => built.clone(),
        None => {
            workspace::build_executables()?;
            if args.kernel.is_none() {
                workspace::ensure_kernel(None)?;
            }
            workspace::test_executable("e2e")?
        }
    };
    let which = format!("{}-{}", if args.only.is_empty() { "all" } else { &args.only }, args.accel.join("-"));
    let base = workspace::target_dir().join("trust").join(which);
    let bench = Bench { executable, base, args };
    if bench.base.exists() {
        fs::remove_dir_all(&bench.base).context("cannot clear the last runs")?;
    }
    let mut rows = Vec::new();
    if "sound".contains(args.only.as_str()) && args.healthy_runs > 0 {
        let load = Load::start()?;
        let mut row = Row::default();
        for n in args.seeds(args.healthy_runs) {
            bench.run("sound", "tcg", n, &mut row, None, &[])?;
        }
        drop(load);
        let holds = row.matched + row.failed_otherwise + row.infrastructure == 0;
        rows.push(("none, host busy", "tcg", "none", row, holds));
    }
    for accel in &args.accel {
        for mutation in MUTATIONS.iter().filter(|mutation| mutation.name.contains(args.only.as_str())) {
            let mut row = Row::default();
            for n in args.seeds(args.runs) {
                bench.run(mutation.name, accel, n, &mut row, Some(mutation.matching), mutation.plausible)?;
            }
            let plausible =
                |check: &String| check == mutation.matching || mutation.plausible.contains(&check.as_str());
            // Time is the host's under `tcg`: one in twenty may be spoiled. Under `det` nothing is.
            let spared = if accel == "det" { 0 } else { args.runs / 20 };
            let holds = row.matched + spared >= args.runs && row.checks.keys().all(plausible);
            rows.push((mutation.name, accel, mutation.matching, row, holds));
        }
    }
    println!(
        "| mutation | accelerator | matching check | it failed | only others failed | inconclusive | passed | infrastructure | checks that failed, times | in doubt, times | criterion |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for (name, accel, matching, row, holds) in &rows {
        row.print(name, accel, matching, *holds);
    }
    Ok(u8::from(rows.iter().any(|(.., holds)| !holds)))
}

struct Bench<'a> {
    executable: PathBuf,
    base: PathBuf,
    args: &'a TrustArgs,
}

impl Bench<'_> {
    /// One run, with a seed of its own.
    fn run(
        &self,
        name: &str,
        accel: &str,
        n: u32,
        row: &mut Row,
        matching: Option<&str>,
        plausible: &[&str],
    ) -> Result<()> {
        let runs = self.base.join(format!("{name}-{accel}-{n}"));
        let mut run = Command::new(&self.executable);
        run.args(["--ignored", "--exact", &format!("trust::trust_{name}")]);
        if self.args.subjects.is_none() {
            run.env("KTSTR_BIN_DIR", workspace::bin_dir());
        }
        run.env_remove("NEXTEST");
        run.envs([("KTSTR_ACCEL", accel), ("KTSTR_SEED", &n.to_string()), ("KTSTR_VARY", "1")]);
        run.env("KTSTR_RUNS_ROOT", &runs)
            .env("KTSTR_AUTO_REPRO", "0")
            .envs(self.args.kernel.iter().map(|k| ("KTSTR_KERNEL", k)));
        // Its status says less than the report.
        run.stdout(Stdio::null()).stderr(Stdio::null()).status().context("cannot run the subject")?;
        let verdict = verdict(&runs)?;
        let Verdict { outcome, failed, doubted, .. } = &verdict;
        println!("{name} {accel} seed {n}: {outcome} {failed:?}, in doubt {doubted:?}");
        let known = |check: &String| matching == Some(check) || plausible.contains(&check.as_str());
        let expected = match matching {
            Some(wanted) => {
                verdict.failed.iter().any(|check| check == wanted) && verdict.failed.iter().all(known)
            }
            None => verdict.outcome != "Fail",
        };
        row.add(&verdict, matching);
        if expected {
            fs::remove_dir_all(&runs).context("cannot remove the run's directory")?;
        }
        Ok(())
    }
}

fn verdict(runs: &Path) -> Result<Verdict> {
    let dirs: Vec<PathBuf> = fs::read_dir(runs)
        .with_context(|| format!("no run was recorded in {}", runs.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("sidecar.json").is_file())
        .collect();
    let [dir] = dirs.as_slice() else { bail!("{} runs in {} instead of one", dirs.len(), runs.display()) };
    let text =
        fs::read(dir.join("sidecar.json")).with_context(|| format!("no report in {}", dir.display()))?;
    Ok(read(&serde_json::from_slice(&text)?))
}

fn read(report: &Value) -> Verdict {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    // A variant with fields is an object with one key.
    let cause = report
        .get("cause")
        .and_then(|cause| text(cause).or_else(|| cause.as_object()?.keys().next().cloned()));
    let kinds = |outcome: &str| {
        let details = report.pointer("/result/details").and_then(Value::as_array).into_iter().flatten();
        let mut kinds: Vec<String> = details
            .filter(|detail| detail.get("outcome").and_then(Value::as_str) == Some(outcome))
            .filter_map(|detail| text(detail.get("kind")?))
            .collect();
        kinds.sort();
        kinds.dedup();
        kinds
    };
    let (mut failed, doubted) = (kinds("Fail"), kinds("Inconclusive"));
    let outcome = report.get("outcome").and_then(text).unwrap_or_default();
    if let Some(cause) = cause.filter(|cause| cause != "Assertion") {
        failed = vec![cause];
    }
    let infrastructure = report.get("infrastructure").and_then(Value::as_bool) == Some(true);
    Verdict { outcome, infrastructure, failed, doubted }
}

/// A busy loop per host CPU, in processes of their own, until dropped.
struct Load(Vec<Child>);

impl Load {
    fn start() -> Result<Self> {
        let cpus = std::thread::available_parallelism().map_or(2, usize::from);
        // It ends by itself once nobody is there to end it.
        let busy = format!("while [ -d /proc/{} ]; do :; done", std::process::id());
        let spin = || Command::new("sh").args(["-c", &busy]).spawn();
        let mut load = Self(Vec::new());
        for _ in 0..cpus {
            load.0.push(spin().context("cannot keep the host busy")?);
        }
        Ok(load)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_of_its_own_outweighs_findings() {
        let of = |text: &str| read(&serde_json::from_str(text).unwrap());
        let stalled =
            of(r#"{"outcome":"Fail","infrastructure":false,"cause":{"SchedulerStall":{"reason":"x"}},
            "result":{"details":[{"kind":"Gap","outcome":"Fail"}]}}"#);
        assert_eq!(stalled.failed, ["SchedulerStall"]);
        let checks = of(r#"{"outcome":"Fail","cause":"Assertion","result":{"details":[
            {"kind":"Spread","outcome":"Fail"},{"kind":"Gap","outcome":"Inconclusive"},
            {"kind":"Spread","outcome":"Fail"}]}}"#);
        assert_eq!(checks.failed, ["Spread"]);
        let mut row = Row::default();
        row.add(&stalled, Some("SchedulerStall"));
        row.add(&checks, Some("Gap"));
        assert_eq!((row.matched, row.failed_otherwise, row.checks.len()), (1, 1, 2));
        assert!(of(r#"{"outcome":"Pass","cause":null,"result":null}"#).failed.is_empty());
    }
}

//! `cargo xtask race`: the race planted in the fixture scheduler is found by seeds and repeated by its line.
//!
//! Runs the rare one of `tests/e2e/race.rs` under many seeds through `cargo ktstr test --seeds`, takes the
//! replay line of the first run that failed as a user would copy it, runs that line again and again,
//! and compares the guest's words and console of every run byte by byte.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::workspace;

/// Options of `cargo xtask race`.
#[derive(Args, Debug)]
pub struct RaceArgs {
    /// How many seeds to look under
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    seeds: u32,
    /// The first of them [default: the test's own]
    #[arg(long)]
    seed: Option<u64>,
    /// How often the line that was found is run
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    replays: u32,
    /// Kernel, as for `cargo ktstr test --kernel`
    #[arg(long)]
    kernel: Option<String>,
}

/// The test with the race in it.
const TEST: &str = "race::lost_wakeup";

/// 0 found and repeated every time, 1 not.
pub fn command(args: &RaceArgs) -> Result<u8> {
    workspace::build_executables()?;
    workspace::ensure_kernel(args.kernel.as_deref())?;
    let base = workspace::target_dir().join("race");
    if base.exists() {
        fs::remove_dir_all(&base).context("cannot clear the last search")?;
    }
    let (search, again) = (base.join("search"), base.join("again"));
    let mut seeds = Command::new(workspace::bin_dir().join("cargo-ktstr"));
    seeds.args(["ktstr", "test", "--seeds"]).arg(args.seeds.to_string());
    seeds.args(args.seed.iter().flat_map(|seed| ["--seed".to_owned(), seed.to_string()]));
    seeds.args(args.kernel.iter().flat_map(|kernel| ["--kernel", kernel]));
    seeds.args(["--", "-p", "ktstr", "--test", "e2e", "--run-ignored", "all"]);
    seeds
        .args(["-E", &format!("test(={TEST})")])
        .env("KTSTR_RUNS_ROOT", &search)
        .env("KTSTR_AUTO_REPRO", "0");
    // It fails when the race is found.
    workspace::timed(&format!("{} seeds", args.seeds), &mut seeds)?;
    let runs = reports(&search)?;
    let mut found: Vec<&Run> = runs.iter().filter(|run| run.text("outcome") == "Fail").collect();
    found.sort_by_key(|run| run.report["seed"].as_u64());
    let passed = runs.iter().filter(|run| run.text("outcome") == "Pass").count();
    println!("race: {} of {} seeds failed, {passed} passed", found.len(), runs.len());
    let Some(first) = found.first() else { bail!("no seed lost a wakeup") };
    let line = first.text("replay");
    println!("race: seed {} is repeated by\n  {line}", first.report["seed"]);
    let expected = first.guest()?;
    let mut same = 0;
    for n in 1..=args.replays {
        let root = again.join(n.to_string());
        let mut replay = Command::new("sh");
        replay
            .args(["-c", line])
            .env("KTSTR_AUTO_REPRO", "0")
            .env("KTSTR_RUNS_ROOT", &root)
            .env("KTSTR_BIN_DIR", workspace::bin_dir());
        let failed = !workspace::timed(&format!("replay {n} of {}", args.replays), &mut replay)?.success();
        let runs = reports(&root)?;
        let [run] = runs.as_slice() else { bail!("{} runs in {}", runs.len(), root.display()) };
        if failed && run.report["cause"] == first.report["cause"] && run.guest()? == expected {
            same += 1;
        } else {
            println!("DIFFERENT: {} and {}", first.dir.display(), run.dir.display());
        }
    }
    println!(
        "race: found under {} of {} seeds, repeated {same} of {} times, {} bytes each",
        found.len(),
        runs.len(),
        args.replays,
        expected.len()
    );
    Ok(u8::from(same != args.replays))
}

/// A run directory with its report.
struct Run {
    dir: PathBuf,
    report: Value,
}

impl Run {
    fn text(&self, field: &str) -> &str {
        self.report[field].as_str().unwrap_or_default()
    }

    /// All that the guest said, with the times.
    fn guest(&self) -> Result<String> {
        let read = |name: &str| {
            let file = self.dir.join(name);
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
        };
        Ok(read("guest.jsonl")? + &read("console.log")?)
    }
}

/// Every report at or below `root`: `cargo ktstr test` makes a directory of its own there.
fn reports(root: &Path) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for dir in fs::read_dir(root).with_context(|| format!("no run in {}", root.display()))?.flatten() {
        let dir = dir.path();
        match fs::read(dir.join("sidecar.json")) {
            Ok(text) => {
                let report = serde_json::from_slice(&text)
                    .with_context(|| format!("the report in {}", dir.display()))?;
                runs.push(Run { report, dir });
            }
            Err(_) if dir.is_dir() => runs.extend(reports(&dir)?),
            Err(_) => {}
        }
    }
    Ok(runs)
}

//! `cargo xtask fuzz`: looks for bytes that break what reads them, guided by coverage.
//!
//! Targets are entries that the suite also feeds with fixed bytes. They are built by the toolchain of
//! the workspace: libFuzzer is linked in, the compiler counts coverage, debug assertions and overflow
//! checks stay on. No nightly compiler, no address sanitizer (what reads is safe code, but for few
//! lines). The monitor's seeds are written by its tests, the VMM's are committed. What is found is kept: `<target dir>/fuzz/corpus`, findings in `<target dir>/fuzz/findings`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;

use crate::workspace;

/// What the compiler is asked for so that libFuzzer sees where an input got to.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Ccodegen-units=1 --cfg fuzzing";
/// Beside coverage, what is compared with what: a call for each comparison.
const COMPARES: &str = " -Cllvm-args=-sanitizer-coverage-trace-compares";
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Targets of the monitor, then of the VMM and its device process.
const TARGETS: [&str; 16] = [
    "btf", "kallsyms", "walk", "render", "cast", "maps", "tasks", "devices", "ioapic", "tables", "kernel",
    "ring", "channel", "disk", "net", "snapshot",
];
/// How many of them are the monitor's.
const OF_MONITOR: usize = 7;

/// Bytes that a target looks at, where it is less than the usual limit: what is behind them would only be mutated.
const READS_AT_MOST: [(&str, u32); 1] = [("cast", 800)];

/// Options of `cargo xtask fuzz`.
#[derive(Args, Debug)]
pub struct FuzzArgs {
    /// What reads the bytes [default: all of them]
    #[arg(value_parser = TARGETS)]
    targets: Vec<String>,
    /// Executions of each
    #[arg(long, default_value_t = 10_000_000)]
    executions: u64,
    /// Do not trace comparisons: finds fewer ways by itself, goes through those that are known in half
    /// the time
    #[arg(long)]
    fast: bool,
    /// Longest input, bytes
    #[arg(long, default_value_t = 6000)]
    max_len: u32,
}

/// Whose targets are built together, and where their seeds are.
struct Package {
    name: &'static str,
    targets: Vec<&'static str>,
    seeds: PathBuf,
}

impl Package {
    /// Builds all of its targets.
    fn build(&self, dir: &Path, fast: bool) -> Result<()> {
        if self.name == "ktstr-monitor" {
            let mut write = workspace::cargo();
            write.args(["test", "-q", "-p", "ktstr-monitor", "--test", "synthetic", "seeds_are_taken"]);
            workspace::step("write the seeds", write.env("KTSTR_FUZZ_SEEDS", &self.seeds))?;
        }
        let manifest = format!("{}/fuzz/Cargo.toml", self.name);
        let mut build = workspace::cargo();
        build.args(["build", "--release", "--target", TRIPLE, "--manifest-path", &manifest]);
        let flags = if fast { FLAGS.to_owned() } else { format!("{FLAGS}{COMPARES}") };
        build.env("CARGO_TARGET_DIR", dir).env("RUSTFLAGS", flags).env("CARGO_INCREMENTAL", "0");
        workspace::step(&format!("build the targets of {}", self.name), &mut build)
    }
}

/// Builds the targets and runs one after the other; the first finding ends it.
pub fn command(args: &FuzzArgs) -> Result<u8> {
    let dir = workspace::target_dir().join("fuzz");
    let wanted = |targets: &[&'static str]| -> Vec<&'static str> {
        let asked = |target: &str| args.targets.is_empty() || args.targets.iter().any(|t| t == target);
        targets.iter().copied().filter(|target| asked(target)).collect()
    };
    let (monitor, vmm) = TARGETS.split_at(OF_MONITOR);
    let packages = [
        Package { name: "ktstr-monitor", targets: wanted(monitor), seeds: dir.join("seeds") },
        Package {
            name: "ktstr-vmm",
            targets: wanted(vmm),
            seeds: workspace::root().join("ktstr-vmm/fuzz/seeds"),
        },
    ];
    for package in packages.iter().filter(|package| !package.targets.is_empty()) {
        package.build(&dir, args.fast)?;
        for target in &package.targets {
            run(target, &package.seeds.join(target), &dir, args)?;
        }
    }
    Ok(0)
}

/// Runs one target from what is known and its seeds on.
fn run(target: &str, seeds: &Path, dir: &Path, args: &FuzzArgs) -> Result<()> {
    let (corpus, findings) = (dir.join("corpus").join(target), dir.join("findings").join(target));
    for path in [&corpus, &findings] {
        std::fs::create_dir_all(path)?;
    }
    let mut run = std::process::Command::new(dir.join(TRIPLE).join("release").join(target));
    let reads = READS_AT_MOST.iter().find(|(name, _)| *name == target).map_or(u32::MAX, |(_, len)| *len);
    let max_len = args.max_len.min(reads);
    run.arg(format!("-runs={}", args.executions)).arg(format!("-max_len={max_len}"));
    run.args(["-timeout=60", "-rss_limit_mb=2048", "-print_final_stats=1"]);
    run.arg(format!("-artifact_prefix={}/", findings.display()));
    run.args([corpus.as_path(), seeds]);
    if !workspace::timed(&format!("{} executions of {target}", args.executions), &mut run)?.success() {
        bail!("{target} broke: the input is in {}", findings.display());
    }
    Ok(())
}

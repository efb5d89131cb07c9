//! `cargo xtask topologies`: boots every preset and says how each was shown.
//!
//! The table at its end is the one of docs/topologies.md. The comparison itself is a test
//! (`tests/e2e/topology.rs`); this runs the ignored ones, one at a time, because a machine of 250 CPUs takes
//! all of a small host. Larger presets than `--max-cpus` are left to table inspection, which the ordinary
//! tests of the VMM do for all of them.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use clap::Args;

use crate::{lab, workspace};

/// Options of `cargo xtask topologies`.
#[derive(Args, Debug)]
pub struct TopologiesArgs {
    /// Boot no preset with more CPUs than this
    #[arg(long, default_value_t = 512, value_name = "N")]
    max_cpus: u32,
}

/// 0 all shown, 1 some guest saw another machine, 4 no test ran.
pub fn command(args: &TopologiesArgs) -> Result<u8> {
    workspace::build_executables()?;
    workspace::ensure_kernel(None)?;
    let mut shown = BTreeMap::new();
    for (test, preset) in presets()? {
        let cpus: u32 = preset
            .split('-')
            .find_map(|word| word.strip_suffix("cpu")?.parse().ok())
            .with_context(|| format!("preset {preset} does not say how many CPUs it has"))?;
        let how = if cpus > args.max_cpus { inspect(&preset)? } else { boot(&test)? };
        println!("{preset}: {how}");
        shown.insert(preset, how);
    }
    println!("\n| name | shown by |\n|---|---|");
    for (preset, how) in &shown {
        println!("| {preset} | {how} |");
    }
    if shown.is_empty() {
        println!("no test of a preset was found");
        return Ok(lab::INFRASTRUCTURE);
    }
    Ok(u8::from(shown.values().any(|how| how.starts_with("NOT"))))
}

/// Tests and the presets they show, as the test file lists them.
fn presets() -> Result<Vec<(String, String)>> {
    let path = workspace::root().join("tests/e2e/topology.rs");
    let source = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let pair = |line: &str| {
        let (test, name) = line.trim().strip_suffix(',')?.split_once(" => ")?;
        Some((test.to_owned(), name.strip_prefix('"')?.strip_suffix('"')?.to_owned()))
    };
    Ok(source.lines().filter_map(pair).collect())
}

fn nextest(more: &[&str]) -> std::process::Command {
    let mut command = workspace::cargo();
    command.args(["nextest", "run", "--success-output", "immediate", "--color", "never"]).args(more);
    command.env("KTSTR_REQUIRE", "tcg,iasl");
    command
}

fn boot(test: &str) -> Result<String> {
    let filter = format!("test(=topology::preset::{test})");
    let mut command = nextest(&["-p", "ktstr", "--test", "e2e", "--run-ignored", "only", "-E", &filter]);
    let output = command.output().context("cannot run nextest")?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let said = text.lines().find_map(|line| line.trim().strip_prefix("SHOWN "));
    Ok(match said.and_then(|said| said.split_once(": ")) {
        Some((_, how)) if output.status.success() => how.to_owned(),
        _ => {
            println!("{text}");
            "NOT SHOWN, see above".to_owned()
        }
    })
}

/// The tests that read the KVM machine's tables of every preset.
fn inspect(preset: &str) -> Result<String> {
    const FILTER: &str =
        "test(the_acpi_compiler_can_read) or test(the_tables_of_all_presets) or test(nodes_cover)";
    let mut command = nextest(&["-p", "ktstr-vmm", "--lib", "-E", FILTER]);
    let passed = command.output().with_context(|| format!("cannot inspect {preset}"))?.status.success();
    Ok(if passed { "tables: iasl clean, CPUID decoded" } else { "NOT SHOWN: a table is wrong" }.to_owned())
}

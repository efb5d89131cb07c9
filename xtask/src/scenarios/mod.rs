//! `cargo xtask scenarios`: the whole catalogue of scenarios under each scheduler on each preset, and a
//! page that says how each ended and how long it took (`docs/scenarios.md`).
//!
//! The schedulers: the kernel's own, the fixture, and those that others publish where they were built before
//! (`cargo xtask published`). A boot that ends within a scenario, because the scheduler did, costs only
//! that scenario: the next boot begins with the one after it. Each boot's report is kept. What was not run is
//! said on the page, never left out.
//!
//! [`boot`] runs and reads one boot, [`page`] writes.

mod boot;
mod page;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::Args;

use self::{
    boot::{Boot, Ending, Machine},
    page::Column,
};
use crate::workspace;

/// Boots of one column that may end before any scenario began.
const FRUITLESS: u32 = 3;

/// Options of `cargo xtask scenarios`.
#[derive(Args, Debug)]
pub struct ScenariosArgs {
    /// Machine shapes
    #[arg(long, default_values = ["4cpu-1llc-nosmt", "4cpu-2llc-nosmt"])]
    preset: Vec<String>,
    /// Schedulers, as the tests of tests/catalogue.rs are named after `under_`
    #[arg(long, default_values = ["eevdf", "scx_ktstr", "scx_bpfland"])]
    scheduler: Vec<String>,
    /// Directory with published schedulers, or the one above its `bin` [default: where `cargo xtask
    /// published` puts them]
    #[arg(long)]
    published: Option<PathBuf>,
    /// Kernel, as for `cargo ktstr test --kernel`
    #[arg(long)]
    kernel: Option<String>,
    /// Only scenarios with this in their name
    #[arg(long, default_value = "")]
    only: String,
    /// How long each scenario runs, milliseconds; progress is judged from a second on
    #[arg(long, default_value_t = 1500)]
    moment_ms: u32,
    /// Seconds in the guest after which a boot begins no more scenarios; the next boot does
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    boot_limit_s: u32,
    /// Accelerator
    #[arg(long, default_value = "tcg")]
    accel: String,
    /// Where the page is written
    #[arg(long)]
    page: Option<PathBuf>,
}

/// 0 when every scenario passed or was not run for a reason of its own.
pub fn command(args: &ScenariosArgs) -> Result<u8> {
    workspace::build_executables()?;
    if args.kernel.is_none() {
        workspace::ensure_kernel(None)?;
    }
    let executable = workspace::test_executable("catalogue")?;
    let published = args.published.clone().unwrap_or_else(|| workspace::target_dir().join("published"));
    let below = published.join("bin");
    let published = if below.is_dir() { below } else { published };
    let mut columns = Vec::new();
    for scheduler in &args.scheduler {
        for preset in &args.preset {
            let cell = format!("gauntlet/under_{scheduler}/{preset}");
            let runs = workspace::target_dir().join("catalogue").join(format!("{scheduler}-{preset}"));
            if runs.exists() {
                fs::remove_dir_all(&runs).with_context(|| format!("cannot clear {}", runs.display()))?;
            }
            println!("==> {cell}, runs are kept in {}", runs.display());
            let machine = Machine { executable: &executable, cell: &cell, published: &published, args };
            let column = column(&machine, &runs, format!("{scheduler}, {preset}"))?;
            println!("    {} scenarios in {} boots: {}", column.lines.len(), column.boots, column.verdict());
            columns.push(column);
            // What is known so far outlives an interruption.
            let page = args.page.clone().unwrap_or_else(|| workspace::root().join("docs/scenarios.md"));
            let text = page::render(&columns, &args.accel, args.moment_ms);
            fs::write(&page, text).with_context(|| format!("cannot write {}", page.display()))?;
            println!("written: {}", page.display());
        }
    }
    Ok(u8::from(columns.iter().any(|column| column.verdict() != "PASS")))
}

/// Boots until every scenario had its turn.
fn column(machine: &Machine<'_>, runs: &Path, name: String) -> Result<Column> {
    let mut column = Column { name, ..Column::default() };
    let (mut after, mut fruitless) = (None::<String>, 0);
    loop {
        column.boots += 1;
        let boot = machine.boot(after.as_deref(), &runs.join(format!("boot-{}", column.boots)))?;
        let Boot { lines, ending } = boot;
        for line in &lines {
            let ms = line.ms.map_or_else(|| "ended its boot".into(), |ms| format!("{ms:6} ms"));
            println!("    {:50} {:14} {ms}", line.scenario, line.outcome);
            line.details.iter().for_each(|detail| println!("        {detail}"));
        }
        after = lines.last().map(|line| line.scenario.clone()).or(after);
        fruitless = if lines.is_empty() { fruitless + 1 } else { 0 };
        column.lines.extend(lines);
        match ending {
            Ending::Complete(findings) => {
                column.findings.extend(findings);
                return Ok(column);
            }
            Ending::OutOfTime(findings) => column.findings.extend(findings),
            Ending::Within => {}
            Ending::Before(why) => {
                println!("    boot {} ended before a scenario: {}", column.boots, why.join("; "));
                column.findings.extend(why.into_iter().map(|why| format!("boot {}: {why}", column.boots)));
                column.unfinished = fruitless >= FRUITLESS;
            }
            Ending::NotRun(why) => {
                column.findings.push(format!("not run: {why}"));
                column.unfinished = true;
            }
        }
        if column.unfinished {
            return Ok(column);
        }
    }
}

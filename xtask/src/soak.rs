//! `cargo xtask soak`: boots the same machine many times and reads its console for damage that a
//! healthy kernel does not show, to tell whether an emulator is sound.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::workspace;

/// Options of `cargo xtask soak`.
#[derive(Args, Debug)]
pub struct SoakArgs {
    /// How many boots
    #[arg(long, default_value_t = 100)]
    boots: u32,
    /// Machine shape
    #[arg(long, default_value = "1,1,4,1")]
    topology: String,
    /// Accelerator
    #[arg(long, default_value = "tcg")]
    accel: String,
}

/// Signs of a guest that was corrupted.
const DAMAGE: [&str; 6] =
    ["Oops", "BUG:", "general protection fault", "Kernel panic", "int3:", "stack segment"];

/// 0 all sound, 1 damage seen.
pub fn command(args: &SoakArgs) -> Result<u8> {
    workspace::build_executables()?;
    workspace::ensure_kernel(None)?;
    let base = workspace::target_dir().join("soak");
    if base.exists() {
        fs::remove_dir_all(&base).context("cannot clear the last soak")?;
    }
    let mut damaged = 0;
    for n in 1..=args.boots {
        let runs = base.join(n.to_string());
        let status = workspace::ours("ktstr")
            .args(["shell", "--accel", &args.accel, "--topology", &args.topology, "--exec", "true", "--cold"])
            .env("KTSTR_RUNS_ROOT", &runs)
            .env("KTSTR_AUTO_REPRO", "0")
            .status()
            .context("cannot run ktstr shell")?;
        let console = console(&runs)?;
        let signs: Vec<&str> = DAMAGE.into_iter().filter(|sign| console.contains(sign)).collect();
        if !signs.is_empty() || !status.success() {
            damaged += 1;
            println!("boot {n}: {status}, console shows {signs:?}: {}", runs.display());
        }
    }
    println!(
        "soak: {} of {} boots sound ({} {})",
        args.boots - damaged,
        args.boots,
        args.accel,
        args.topology
    );
    Ok(u8::from(damaged > 0))
}

fn console(runs: &Path) -> Result<String> {
    let run = fs::read_dir(runs).with_context(|| format!("no run in {}", runs.display()))?.flatten().next();
    let Some(run) = run else { bail!("no run in {}", runs.display()) };
    let bytes = fs::read(run.path().join("console.log")).context("the run has no console.log")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

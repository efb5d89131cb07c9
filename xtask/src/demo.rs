//! `cargo xtask demo`: from a fresh clone to a verdict on a real scheduler, in one command.

use std::time::Instant;

use anyhow::Result;
use clap::Args;

use crate::{
    prereq::{self, Group, Outcome},
    workspace,
};

/// Options of `cargo xtask demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Only print what is missing and what would be installed
    #[arg(long)]
    no_install: bool,
    /// Accelerator: auto, kvm, tcg or det
    #[arg(long, default_value = "auto")]
    accel: String,
    /// Kernel, as for `cargo ktstr test --kernel`
    #[arg(long)]
    kernel: Option<String>,
}

/// 0 pass, 1 fail, 3 something is missing.
pub fn command(args: &DemoArgs) -> Result<u8> {
    if let Outcome::Missing(missing) = prereq::ensure(&[Group::Demo], !args.no_install)? {
        println!("NOT RUN: missing {}", missing.join(", "));
        return Ok(3);
    }
    if args.no_install {
        println!("everything the demo needs is installed");
        return Ok(0);
    }
    workspace::build_executables()?;
    let test = ["test", "-q", "-p", "ktstr", "--test", "demo"];
    workspace::step("build the demo test", workspace::cargo().args(test).arg("--no-run"))?;
    if args.kernel.is_none() {
        workspace::ensure_kernel(None)?;
    }
    let start = Instant::now();
    let mut run = workspace::cargo();
    run.args(test).args(["--", "--exact", "demo", "--nocapture"]).env("KTSTR_ACCEL", &args.accel);
    run.envs(args.kernel.iter().map(|k| ("KTSTR_KERNEL", k)));
    let status = workspace::timed("run the demo test", &mut run)?;
    println!(
        "demo: {} after {:.1} s",
        if status.success() { "PASS" } else { "FAIL" },
        start.elapsed().as_secs_f64()
    );
    Ok(u8::from(!status.success()))
}

//! `cargo xtask test`: the whole suite on a machine nobody prepared: host tests, real kernels under
//! `tcg` and `det`, and under `kvm` in the KVM lab.

use std::{env, path::PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    book,
    prereq::{self, Group, Outcome},
    workspace,
};

/// Kernel series the suite runs on; the first is the default kernel.
const SERIES: [Option<&str>; 2] = [None, Some("6.18")];
/// What runs again in the lab: only these test executables are brought in.
const LAB_BINARIES: [&str; 8] = ["-p", "ktstr-vmm", "-p", "ktstr", "--test", "kvm", "--test", "e2e"];
/// Which of their tests.
const LAB_TESTS: &str = "binary(kvm) or (binary(e2e) and test(/::on_kvm/))";

/// Options of `cargo xtask test`.
#[derive(Args, Debug)]
pub struct TestArgs {
    /// Only print what is missing and what would be installed
    #[arg(long)]
    no_install: bool,
    /// Leave out the tests in the KVM lab
    #[arg(long)]
    no_lab: bool,
    /// Further arguments for nextest on the host
    #[arg(last = true)]
    nextest: Vec<String>,
}

/// 0 all green, 1 a test failed, 3 something is missing.
pub fn command(args: &TestArgs) -> Result<u8> {
    if let Outcome::Missing(missing) = prereq::ensure(&[Group::Test], !args.no_install)? {
        println!("NOT RUN: missing {}", missing.join(", "));
        return Ok(3);
    }
    if args.no_install {
        println!("everything the suite needs is installed");
        return Ok(0);
    }
    workspace::build_executables()?;
    for series in SERIES {
        workspace::ensure_kernel(series)?;
    }
    let mut host = nextest(&args.nextest);
    host.arg("--workspace");
    let on_host = workspace::timed("tests on this host", &mut host)?.success();
    book::compile()?;
    let in_lab = args.no_lab || lab()?;
    println!(
        "suite: host {}, lab {}",
        verdict(on_host),
        if args.no_lab { "not run (--no-lab)" } else { verdict(in_lab) }
    );
    Ok(u8::from(!(on_host && in_lab)))
}

fn verdict(passed: bool) -> &'static str {
    if passed { "passed" } else { "FAILED" }
}

fn nextest(more: &[String]) -> std::process::Command {
    let mut command = workspace::cargo();
    command.args(["nextest", "run", "--no-fail-fast"]).args(more);
    if env::var_os("KTSTR_REQUIRE").is_none() {
        command.env("KTSTR_REQUIRE", "tcg,det,iasl");
    }
    command
}

/// The kvm tests, each executed inside the lab through nextest's runner hook.
fn lab() -> Result<bool> {
    let xtask = env::current_exe().context("cannot name this executable")?;
    let store = kernel_store()?;
    let runner = format!(
        "{} lab --end-on-failure --file {} --bin-dir {} --",
        xtask.display(),
        store.display(),
        workspace::bin_dir().display()
    );
    let mut command = nextest(&[]);
    command
        .args(LAB_BINARIES)
        // The profile tries a test again and bounds the whole.
        .args(["--profile", "lab", "-j1", "-E", LAB_TESTS])
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", runner)
        .env("KTSTR_REQUIRE", "kvm")
        .env("KTSTR_ACCEL", "kvm");
    let ran = workspace::timed("kvm tests in the KVM lab", &mut command)?;
    let mut stop = std::process::Command::new(xtask);
    workspace::step("stop the lab", stop.args(["lab", "--stop"]))?;
    Ok(ran.success())
}

/// The store's directory by the same rule as everywhere (DESIGN section 5).
fn kernel_store() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("KTSTR_CACHE_DIR") {
        return Ok(dir.into());
    }
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    Ok(cache.context("HOME is not set")?.join("ktstr/kernels"))
}

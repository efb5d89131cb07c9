//! `cargo xtask published`: builds a scheduler that others publish, to test it as it is.

use anyhow::Result;
use clap::Args;

use crate::{
    prereq::{self, Group, Outcome},
    workspace,
};

/// Options of `cargo xtask published`.
#[derive(Args, Debug)]
pub struct PublishedArgs {
    /// The crate that holds the scheduler
    #[arg(default_value = "scx_bpfland")]
    scheduler: String,
    /// Series to judge it on, as 6.18 [default: the newest]
    #[arg(long)]
    kernel: Option<String>,
    /// Only print what is missing and what would be installed
    #[arg(long)]
    no_install: bool,
}

/// Builds the scheduler and runs the end-to-end case that takes it unpatched.
pub fn command(args: &PublishedArgs) -> Result<u8> {
    if let Outcome::Missing(missing) =
        prereq::ensure(&[Group::Demo, Group::PublishedSchedulers], !args.no_install)?
    {
        println!("NOT RUN: missing {}", missing.join(", "));
        return Ok(3);
    }
    let root = workspace::target_dir().join("published");
    let binary = root.join("bin").join(&args.scheduler);
    if !binary.is_file() {
        let mut install = workspace::cargo();
        install.args(["install", "--locked", &args.scheduler, "--root"]).arg(&root);
        if let Some(clang) = prereq::clang() {
            install.env("BPF_CLANG", clang);
        }
        workspace::step(&format!("build {}", args.scheduler), &mut install)?;
    }
    workspace::build_executables()?;
    workspace::ensure_kernel(args.kernel.as_deref())?;
    let mut test = workspace::cargo();
    test.args(["test", "-q", "-p", "ktstr", "--test", "e2e", "a_published_scheduler", "--", "--nocapture"])
        .env("KTSTR_PUBLISHED_SCHEDULER", &binary);
    if let Some(kernel) = &args.kernel {
        test.env("KTSTR_KERNEL", kernel);
    }
    Ok(u8::from(!workspace::timed(&format!("judge {}", args.scheduler), &mut test)?.success()))
}

//! What the machine must have before we build and run: checks, says what it
//! will install and why, installs it through the machine's own apt.
//!
//! Looks for files and executables, not for packages, so a machine set up
//! another way passes. Never touches the machine's apt configuration: the
//! emulator's backports source lives in a directory of ours (`emulator.rs`).
//! Refuses to guess package names of other distributions.

mod apt;
mod emulator;
mod needs;
mod sources;

pub use emulator::{SOUND, emulator_version};
pub use needs::{Group, clang};

use anyhow::{Context, Result, bail};
use clap::Args;
use std::path::PathBuf;
use std::process::Command;

/// Whether everything is there.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything asked for is there now.
    Ready,
    /// Not run: these are missing, and installing was not allowed or possible.
    Missing(Vec<String>),
}

/// Options of `cargo xtask prereq`.
#[derive(Args, Debug)]
pub struct PrereqArgs {
    /// For what
    #[arg(value_enum, default_values_t = [Group::Demo])]
    groups: Vec<Group>,
    /// Only print what is missing and what would be installed
    #[arg(long)]
    no_install: bool,
}

/// Entry point of the subcommand: 0 everything there, 3 something missing.
pub fn command(args: &PrereqArgs) -> Result<u8> {
    match ensure(&args.groups, !args.no_install)? {
        Outcome::Ready => {
            println!("prerequisites: all there");
            Ok(0)
        }
        Outcome::Missing(missing) => {
            println!("NOT RUN: missing {}", missing.join(", "));
            Ok(3)
        }
    }
}

/// One step of the installation: what runs, and why.
struct Step {
    reasons: Vec<String>,
    argv: Vec<String>,
    needs_root: bool,
}

/// Checks the needs of `groups` and, with `install`, installs what is missing.
pub fn ensure(groups: &[Group], install: bool) -> Result<Outcome> {
    let missing = needs::missing(groups);
    let emulator_too_old = emulator::is_missing(groups);
    let nextest = groups.contains(&Group::Test) && !needs::has_nextest();
    if missing.is_empty() && !emulator_too_old && !nextest {
        return Ok(Outcome::Ready);
    }
    let mut names: Vec<String> = missing.iter().map(|need| need.package.to_owned()).collect();
    names.extend(emulator_too_old.then(|| format!("qemu-system-x86 >= {}", emulator::SOUND.0)));
    names.extend(nextest.then(|| "cargo-nextest".to_owned()));

    let mut steps = Vec::new();
    if !missing.is_empty() || emulator_too_old {
        let release = apt::Release::of_this_machine()?;
        if !release.has_apt {
            bail!(
                "missing: {}. This is {}, which has no apt: install them with its package manager \
                 (Debian's names are given), then run this again",
                names.join(", "),
                release.name
            );
        }
        if install && !apt::is_root() {
            println!("Installing needs root, and this is user {}.", nix::unistd::geteuid());
        }
        let may_change = install && apt::is_root();
        if may_change {
            apt::update()?;
        }
        steps.extend(package_step(&missing)?);
        if emulator_too_old {
            steps.push(emulator::step(&release, may_change)?);
        }
    }
    if nextest {
        steps.push(Step {
            reasons: vec!["cargo-nextest: runs the test suite".into()],
            argv: ["cargo", "install", "cargo-nextest", "--locked"].map(str::to_owned).to_vec(),
            needs_root: false,
        });
    }
    if !carry_out(&steps, install)? {
        return Ok(Outcome::Missing(names));
    }
    verify(groups)
}

fn package_step(missing: &[&needs::Need]) -> Result<Option<Step>> {
    if missing.is_empty() {
        return Ok(None);
    }
    let mut packages = Vec::new();
    for need in missing {
        packages.push(apt::available(need.package, need.alternatives)?);
    }
    let reasons =
        missing.iter().zip(&packages).map(|(need, package)| format!("{package}: {}", need.why)).collect();
    Ok(Some(Step { reasons, argv: apt::install_argv(&[], &packages), needs_root: true }))
}

/// Prints the steps and runs them; false when it may only print.
fn carry_out(steps: &[Step], install: bool) -> Result<bool> {
    let blocked = steps.iter().any(|step| step.needs_root) && !apt::is_root();
    println!("{}", if install && !blocked { "Installing:" } else { "To install:" });
    for step in steps {
        for reason in &step.reasons {
            println!("  {reason}");
        }
    }
    if !install || blocked {
        println!("with:");
        for step in steps {
            let sudo = if step.needs_root && !apt::is_root() { "sudo " } else { "" };
            println!("  {sudo}{}", shell_line(&step.argv));
        }
        return Ok(false);
    }
    for step in steps {
        println!("+ {}", shell_line(&step.argv));
        run(&step.argv)?;
    }
    Ok(true)
}

fn verify(groups: &[Group]) -> Result<Outcome> {
    let mut still: Vec<String> = needs::missing(groups).iter().map(|need| need.package.to_owned()).collect();
    still.extend(emulator::is_missing(groups).then(|| "qemu-system-x86".to_owned()));
    if !still.is_empty() {
        bail!("installed, but still not found: {}. Is PATH unusual, or a package renamed?", still.join(", "));
    }
    Ok(Outcome::Ready)
}

fn run(argv: &[String]) -> Result<()> {
    let status = Command::new(&argv[0])
        .args(&argv[1..])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .with_context(|| format!("starting `{}`", argv[0]))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shell_line(argv));
    }
    Ok(())
}

/// As a person would type it.
fn shell_line(argv: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=+~,@%".contains(c);
    let quoted: Vec<String> = argv
        .iter()
        .map(|arg| {
            if !arg.is_empty() && arg.chars().all(plain) {
                arg.clone()
            } else {
                format!("'{}'", arg.replace('\'', r"'\''"))
            }
        })
        .collect();
    quoted.join(" ")
}

/// Where files of ours lie that apt reads: `target/apt`.
fn private_apt_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("finding this executable")?;
    Ok(exe.ancestors().nth(2).context("this executable does not lie in a target directory")?.join("apt"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_lines_can_be_pasted() {
        let argv = ["apt-get", "-o", "Dir::Cache::pkgcache=", "a b"].map(str::to_owned);
        assert_eq!(shell_line(&argv), "apt-get -o Dir::Cache::pkgcache= 'a b'");
    }
}

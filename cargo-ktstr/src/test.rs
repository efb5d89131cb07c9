//! `test`: `cargo nextest run` with the kernel and accelerator chosen here,
//! then the four counts from the run directories.
//!
//! A test process can only tell zero from non-zero; the reports tell failed,
//! inconclusive, not run and broken infrastructure apart, and decide the code.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use ktstr_proto::{run::Performance, verdict::Outcome};

use crate::budget::{self, Planned};
use crate::cli::{Deny, TestArgs};
use crate::exit::{Exit, coded};
use crate::kernel;
use crate::summary::{Summary, told_runs_root};

/// Runs it.
pub fn run(args: &TestArgs) -> anyhow::Result<ExitCode> {
    let mut command = nextest()?;
    command.arg("run").args(&args.nextest);
    choose_kernels(&mut command, &args.kernel)?;
    if let Some(accel) = args.accel {
        command.env("KTSTR_ACCEL", accel.to_string());
    }
    if let Some(seed) = args.seed {
        command.env("KTSTR_SEED", seed.to_string());
    }
    if let Some(seeds) = args.seeds {
        command.env("KTSTR_SEEDS", seeds.to_string());
    }
    if args.begin.cold {
        command.env("KTSTR_COLD", "1");
    }
    if args.begin.warm {
        command.env_remove("KTSTR_COLD");
    }
    if args.no_auto_repro {
        command.env("KTSTR_AUTO_REPRO", "0");
    }
    let (performance, cap) = args.host.resolve(false)?;
    if performance == Performance::Unassisted {
        command.env("KTSTR_NO_PERF_MODE", "1");
    }
    if let Some(jail) = args.host.jail {
        command.env("KTSTR_JAIL", jail.to_string());
    }
    if let Some(cap) = cap {
        command.env("KTSTR_CPU_CAP", cap.to_string());
    }
    let root = runs_root()?;
    command.env("KTSTR_RUNS_ROOT", &root);
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let colours = ktstr_proto::colour::wanted(set, std::io::stderr().is_terminal());
    // Nextest reads what tests say through pipes, so they cannot know.
    if set("KTSTR_COLOR").is_none() {
        command.env("KTSTR_COLOR", if colours { "always" } else { "never" });
    }
    let planned = match budget::limit()? {
        Some(limit) => Some(budget::plan(&mut command, nextest()?, &args.nextest, limit, &root)?),
        None => None,
    };
    let planned = planned.as_ref().map(Planned::render).unwrap_or_default();
    eprint!("{planned}");
    let status = command.status().context("cannot run cargo nextest")?;
    let mut summary = Summary::read(&root);
    if status.success() {
        summary.retried();
    }
    // It was said long ago by now.
    let text = summary.render() + &planned;
    eprint!("{}", if colours { crate::summary::coloured(&text) } else { text });
    eprintln!("runs: {}", root.display());
    Ok(conclude(&summary, status.success(), &args.deny).into())
}

/// One kernel is used for every test, several make each test one per kernel.
fn choose_kernels(command: &mut Command, selectors: &[String]) -> anyhow::Result<()> {
    if selectors.is_empty() {
        return Ok(());
    }
    let store = kernel::open_store()?;
    // All are looked up before the first test runs, and each test gets what was found: what is pulled
    // meanwhile changes nothing, and a path means the same wherever a test runs.
    let mut found: Vec<(String, String)> = Vec::new();
    for selector in selectors {
        let key = kernel::find(&store, Some(selector))?.key().to_owned();
        if !found.iter().any(|(_, known)| *known == key) {
            found.push((name_of(selector, &key), key));
        }
    }
    // It would win over the choice made here.
    command.env_remove("KTSTR_TEST_KERNEL");
    command.env("KTSTR_KERNEL", &found[0].1);
    match found.as_slice() {
        [_] => command.env_remove("KTSTR_KERNELS"),
        several => {
            let pairs: Vec<String> = several.iter().map(|(name, key)| format!("{name}={key}")).collect();
            command.env("KTSTR_KERNELS", pairs.join(","))
        }
    };
    Ok(())
}

/// What a kernel is called in the names of tests: as the user named it, a file by its whole path.
fn name_of(selector: &str, key: &str) -> String {
    let path = Path::new(selector);
    let named = match std::path::absolute(path) {
        Ok(whole) if selector.contains('/') || path.is_file() => whole.display().to_string(),
        _ => selector.to_owned(),
    };
    // They separate what stands in the variable.
    if named.contains([',', '=']) { key.to_owned() } else { named }
}

fn nextest() -> anyhow::Result<Command> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let known = Command::new(&cargo)
        .args(["nextest", "--version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|e| coded(Exit::NotRun, anyhow::Error::from(e).context("cannot run cargo")))?;
    if !known.success() {
        let hint = "cargo-nextest is not installed; install it with `cargo install --locked cargo-nextest`";
        return Err(coded(Exit::NotRun, anyhow::anyhow!(hint)));
    }
    let mut command = Command::new(cargo);
    command.arg("nextest");
    Ok(command)
}

/// A fresh directory for the runs of this invocation, below the workspace's
/// target directory, or where the environment wants runs to be.
fn runs_root() -> anyhow::Result<PathBuf> {
    let base = match told_runs_root() {
        Some(root) => root,
        None => target_directory()?.join("ktstr"),
    };
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    let root = std::path::absolute(base.join(format!("test-{millis:x}-{:x}", std::process::id())))?;
    fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    Ok(root)
}

fn target_directory() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .stdin(Stdio::null())
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("cannot read cargo metadata")?;
    let target = metadata["target_directory"].as_str().context("cargo metadata names no target directory")?;
    Ok(Path::new(target).to_owned())
}

/// Reports outrank the exit status of nextest, which knows no difference.
fn conclude(summary: &Summary, nextest_passed: bool, deny: &[Deny]) -> Exit {
    let any = |outcome| summary.count(outcome) > 0;
    if any(Outcome::Fail) {
        Exit::Fail
    } else if summary.infrastructure() > 0 {
        Exit::Infrastructure
    } else if summary.undecided() > 0 {
        Exit::Inconclusive
    } else if !nextest_passed {
        // An ordinary test failed, or the build did.
        Exit::Fail
    } else if any(Outcome::NotRun) && (deny.contains(&Deny::NotRun) || !any(Outcome::Pass)) {
        // Where nothing ran, nothing passed.
        Exit::NotRun
    } else {
        Exit::Pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::report;

    fn summary(outcomes: &[(Outcome, bool)]) -> Summary {
        let root = tempfile::tempdir().unwrap();
        for (n, (outcome, infrastructure)) in outcomes.iter().enumerate() {
            let mut report = report(&format!("t{n}"), *outcome, None);
            report.infrastructure = *infrastructure;
            let dir = root.path().join(n.to_string());
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("sidecar.json"), serde_json::to_vec(&report).unwrap()).unwrap();
        }
        Summary::read(root.path())
    }

    #[test]
    fn codes() {
        use Outcome::{Fail, Inconclusive, NotRun, Pass};
        let code = |outcomes: &[(Outcome, bool)], passed| conclude(&summary(outcomes), passed, &[]);
        assert_eq!(code(&[(Pass, false), (NotRun, false)], true), Exit::Pass);
        assert_eq!(code(&[(Pass, false), (Fail, false), (Fail, true)], false), Exit::Fail);
        assert_eq!(code(&[(Pass, false), (Inconclusive, false)], false), Exit::Inconclusive);
        assert_eq!(code(&[(Pass, false), (Fail, true)], false), Exit::Infrastructure);
        assert_eq!(code(&[], false), Exit::Fail, "an ordinary test failed");
        assert_eq!(code(&[(NotRun, false)], true), Exit::NotRun, "nothing ran");
        let denied = conclude(&summary(&[(Pass, false), (NotRun, false)]), true, &[Deny::NotRun]);
        assert_eq!(denied, Exit::NotRun);
    }

    #[test]
    fn a_kernel_is_called_what_the_user_called_it() {
        assert_eq!(name_of("6.18", "debian-6.18.15"), "6.18");
        assert!(name_of("b/linux", "image-1").ends_with("/b/linux"));
        assert!(name_of("b/linux", "image-1").starts_with('/'));
        assert_eq!(name_of("a.deb,b.deb", "deb-1"), "deb-1");
    }
}

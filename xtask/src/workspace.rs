//! Running cargo and our own executables from automation: where they are, what they are told.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

/// Packages whose executables a run needs.
pub const RUN_PACKAGES: [&str; 6] =
    ["ktstr-orch", "ktstr-vmm", "ktstr-monitor", "ktstr-guest", "scx-ktstr", "cargo-ktstr"];

/// Root of the workspace.
pub fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where the executables of the dev profile are.
pub fn bin_dir() -> PathBuf {
    target_dir().join("debug")
}

/// `cargo` in the workspace, finding our executables.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The fixture scheduler is built with the other executables, before any test.
    command.current_dir(root()).env("KTSTR_BIN_DIR", bin_dir()).env("KTSTR_NO_BUILD", "1");
    command
}

/// One of our executables.
pub fn ours(name: &str) -> Command {
    let mut command = Command::new(bin_dir().join(name));
    command.current_dir(root()).env("KTSTR_BIN_DIR", bin_dir()).env("KTSTR_NO_BUILD", "1");
    command
}

/// Runs a step, saying what it is and how long it took.
pub fn step(what: &str, command: &mut Command) -> Result<()> {
    let status = timed(what, command)?;
    if !status.success() {
        bail!("{what} failed ({status}): {command:?}");
    }
    Ok(())
}

/// Runs a step whose failure is a result, not an error.
pub fn timed(what: &str, command: &mut Command) -> Result<ExitStatus> {
    println!("==> {what}");
    let start = Instant::now();
    let status = command.status().with_context(|| format!("{what}: cannot run {command:?}"))?;
    println!("    {what}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(status)
}

/// Builds every executable a run needs and nothing heavier.
pub fn build_executables() -> Result<()> {
    let mut command = cargo();
    command.arg("build").args(RUN_PACKAGES.iter().flat_map(|p| ["-p", p]));
    step("build the executables", &mut command)
}

/// Builds a test executable of the root package and says where it is.
pub fn test_executable(name: &str) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["test", "-p", "ktstr", "--test", name, "--no-run", "--message-format", "json"]);
    println!("==> build the tests of {name}");
    let output = build.stderr(Stdio::inherit()).output().context("cannot build the tests")?;
    let built = String::from_utf8_lossy(&output.stdout);
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_it = message.pointer("/target/name")?.as_str()? == name;
        is_it.then(|| message.get("executable")?.as_str().map(PathBuf::from)).flatten()
    };
    built.lines().filter_map(executable).next_back().with_context(|| format!("cargo built no {name}"))
}

/// Pulls a kernel unless the store has one that matches; `series` as in `debian[:SERIES]`.
pub fn ensure_kernel(series: Option<&str>) -> Result<()> {
    let listed = ours("ktstr").args(["kernel", "list", "--json"]).output().context("cannot list kernels")?;
    if listed.status.success() && has_kernel(&listed.stdout, series)? {
        return Ok(());
    }
    let source = series.map_or_else(|| "debian".to_owned(), |s| format!("debian:{s}"));
    step(&format!("pull kernel {source}"), ours("ktstr").args(["kernel", "pull", &source]))
}

fn has_kernel(listing: &[u8], series: Option<&str>) -> Result<bool> {
    let listing: serde_json::Value = serde_json::from_slice(listing).context("`ktstr kernel list --json`")?;
    let entries =
        listing.as_array().or_else(|| listing.get("kernels")?.as_array()).map_or(&[][..], Vec::as_slice);
    Ok(entries.iter().any(|entry| {
        let release = entry.get("release").and_then(|r| r.as_str()).unwrap_or_default();
        let fits = series.is_none_or(|s| release == s || release.starts_with(&format!("{s}.")));
        fits && entry.get("sched_ext").and_then(serde_json::Value::as_bool) == Some(true)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_matches_whole_numbers_only() {
        let listing = br#"[{"key":"a","release":"7.21.1+deb13-cloud-amd64","sched_ext":true},
            {"key":"b","release":"6.18.15+deb13-cloud-amd64","sched_ext":true},
            {"key":"c","release":"6.1.0-9","sched_ext":false}]"#;
        let has = |series| has_kernel(listing, series).unwrap();
        assert!(has(None) && has(Some("6.18")) && has(Some("7.21")));
        assert!(!has(Some("7.2")) && !has(Some("6.1")));
    }
}

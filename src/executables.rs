//! Finding executables: beside the running one (and above it, when that is a `deps` directory), then in
//! `KTSTR_BIN_DIR`, then in `PATH`. A scheduler of the user's own workspace is built instead (`built`).
//!
//! Refuses to guess: what is not found is named with every place looked at and the command that makes it.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};

use crate::{NotBuilt, Scheduler, built};

/// An executable of ktstr or a scheduler is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("executable `{name}` not found (looked in {}); {hint}", looked.join(", "))]
pub struct NotFound {
    /// Its name.
    pub name: String,
    /// Where it was looked for.
    pub looked: Vec<String>,
    /// What makes it appear.
    pub hint: String,
}

/// Finds one of ktstr's own executables.
pub fn find_own(name: &str) -> Result<PathBuf, NotFound> {
    find(name).map_err(|looked| NotFound {
        name: name.into(),
        looked,
        hint: "run `cargo build -p ktstr-orch -p ktstr-vmm -p ktstr-monitor -p ktstr-guest` in ktstr's workspace, \
               or install them and set KTSTR_BIN_DIR to their directory"
            .into(),
    })
}

/// Why a scheduler cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoScheduler {
    /// It is nowhere.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// It is the workspace's own and does not build.
    #[error(transparent)]
    NotBuilt(#[from] NotBuilt),
}

/// What a scheduler is to a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It is under test.
    Tested,
    /// It may take over.
    Staged,
}

/// The executable of a scheduler, built first if it belongs to the workspace that declares it.
/// `KTSTR_SCHEDULER` stands for the one under test.
pub fn find_scheduler(scheduler: &Scheduler, part: Part) -> Result<PathBuf, NoScheduler> {
    let (binary, package) = (scheduler.binary, scheduler.package);
    let missing = |looked, hint| NoScheduler::from(NotFound { name: binary.into(), looked, hint });
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(given) = set("KTSTR_SCHEDULER").filter(|_| part == Part::Tested) {
        let path = PathBuf::from(&given);
        return runnable(&path).ok_or_else(|| {
            missing(
                vec![path.display().to_string()],
                "KTSTR_SCHEDULER must be the path of an executable".into(),
            )
        });
    }
    if binary.contains('/') {
        let hint =
            format!("package `{package}` declares it by this path: build it or correct the declaration");
        return runnable(Path::new(binary)).ok_or_else(|| missing(vec![binary.into()], hint));
    }
    if set("KTSTR_CARGO_TEST_MODE").is_some()
        && let Some(installed) =
            places(None, None, env::var_os("PATH")).iter().find_map(|d| runnable(&d.join(binary)))
    {
        return Ok(installed);
    }
    if let Some(built) = built::scheduler(binary, scheduler.manifest_dir)? {
        return Ok(built);
    }
    find(binary).map_err(|looked| {
        let hint = format!(
            "the workspace of package `{package}` has no executable of that name: install it into PATH, or set \
             KTSTR_SCHEDULER to its path"
        );
        missing(looked, hint)
    })
}

/// The absolute path of `name`, or where it was looked for.
pub fn find(name: &str) -> Result<PathBuf, Vec<String>> {
    let mut looked = Vec::new();
    for directory in places(env::current_exe().ok(), env::var_os("KTSTR_BIN_DIR"), env::var_os("PATH")) {
        if let Some(found) = runnable(&directory.join(name)) {
            return Ok(found);
        }
        looked.push(directory.display().to_string());
    }
    Err(looked)
}

fn places(exe: Option<PathBuf>, bin_dir: Option<OsString>, path: Option<OsString>) -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Some(beside) = exe.as_deref().and_then(Path::parent) {
        places.push(beside.to_path_buf());
        let in_deps = beside.file_name().is_some_and(|name| name == "deps" || name == "examples");
        places.extend(beside.parent().filter(|_| in_deps).map(Path::to_path_buf));
    }
    places.extend(bin_dir.filter(|dir| !dir.is_empty()).map(PathBuf::from));
    places.extend(path.iter().flat_map(env::split_paths).filter(|dir| dir.is_absolute()));
    places
}

fn runnable(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    (path.is_file() && access(&path, AccessFlags::X_OK).is_ok()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_beside_then_bin_dir_then_path() {
        let order =
            places(Some("/t/debug/deps/demo-1".into()), Some("/opt/k".into()), Some("/a:rel:/b".into()));
        let order: Vec<_> = order.iter().map(|p| p.to_str().unwrap()).collect();
        assert_eq!(order, ["/t/debug/deps", "/t/debug", "/opt/k", "/a", "/b"]);
    }

    #[test]
    fn outside_a_deps_directory_the_one_above_is_not_searched() {
        assert_eq!(places(Some("/usr/bin/x".into()), None, None), [PathBuf::from("/usr/bin")]);
    }

    #[test]
    fn what_is_missing_is_named_with_the_command_that_makes_it() {
        let error = find_own("ktstr-no-such-role").unwrap_err().to_string();
        assert!(
            error.contains("`ktstr-no-such-role` not found") && error.contains("cargo build -p ktstr-orch")
        );
        let nowhere = Scheduler::named("x").binary_path("/nonexistent/scx_x").package("pkg", "");
        let error = find_scheduler(&nowhere, Part::Staged).unwrap_err().to_string();
        assert!(error.contains("package `pkg` declares it by this path"), "{error}");
    }
}

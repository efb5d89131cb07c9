//! `list`, `run`, `cleanup`: the ready-made scenarios on this host.
//!
//! The scenarios themselves are in `ktstr-guest`, which runs one per process; this module chooses,
//! prints and sums up. It starts no scheduler: whatever is active is what is judged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use ktstr_orch::children::find_executable;
use ktstr_proto::verdict::{AssertResult, Outcome};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use serde::Deserialize;

use crate::cli::{CleanupArgs, ListArgs, RunArgs};
use crate::exit::{Exit, coded, print, print_json};

/// A scenario as `ktstr-guest list` names it.
#[derive(Debug, Deserialize)]
struct Scenario {
    name: String,
    group: String,
    question: String,
    /// Features of schedulers it presses on.
    flags: Vec<String>,
    /// Other names of it.
    #[serde(default)]
    aliases: Vec<String>,
}

impl Scenario {
    /// ` [llc+steal]`, or nothing.
    fn profile(&self) -> String {
        if self.flags.is_empty() { String::new() } else { format!(" [{}]", self.flags.join("+")) }
    }
}

fn guest(args: &[&str]) -> anyhow::Result<Command> {
    let program = find_executable("ktstr-guest").map_err(|e| coded(Exit::Infrastructure, e))?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    Ok(command)
}

impl Scenario {
    /// Whether a filter means it: by a part of its name, or by all of another name of it.
    fn is_meant(&self, filter: &str) -> bool {
        self.name.contains(filter) || self.aliases.iter().any(|alias| alias == filter)
    }
}

/// Those that fit, at least one: a name that fits none is a mistake, and not what "all passed" can be said of.
fn chosen(filter: &str, flags: Option<&str>) -> anyhow::Result<Vec<Scenario>> {
    let args: Vec<&str> =
        std::iter::once("list").chain(flags.into_iter().flat_map(|f| ["--flags", f])).collect();
    let output = guest(&args)?.output().context("cannot run ktstr-guest")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return match flags {
            Some(flags) => Err(anyhow::anyhow!("--flags {flags}: {}", said.trim())),
            None => Err(anyhow::anyhow!("ktstr-guest list failed: {}", said.trim())),
        };
    }
    let all: Vec<Scenario> =
        serde_json::from_slice(&output.stdout).context("ktstr-guest list printed what is no list")?;
    let chosen: Vec<Scenario> = all.into_iter().filter(|scenario| scenario.is_meant(filter)).collect();
    if chosen.is_empty() {
        let flags = flags.map_or(String::new(), |flags| format!(" and fits --flags {flags}"));
        bail!("no scenario has `{filter}` in its name{flags}; `ktstr list` shows all");
    }
    Ok(chosen)
}

/// Prints the catalogue.
pub fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let scenarios = chosen(&args.filter, args.flags.as_deref())?;
    if args.json {
        let all: Vec<_> = scenarios
            .iter()
            .map(|s| {
                serde_json::json!({
                    "name": s.name, "group": s.group, "question": s.question, "flags": s.flags,
                    "aliases": s.aliases,
                })
            })
            .collect();
        print_json(&all)?;
        return Ok(Exit::Pass.into());
    }
    let mut text = String::new();
    let mut group = "";
    for scenario in &scenarios {
        if scenario.group != group {
            group = &scenario.group;
            text.push_str(&format!("{group}:\n"));
        }
        text.push_str(&format!("  {}{}\n      {}\n", scenario.name, scenario.profile(), scenario.question));
    }
    text.push_str(&format!("{} scenarios\n", scenarios.len()));
    print(&text)?;
    Ok(Exit::Pass.into())
}

/// Runs scenarios one after the other.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let scenarios = chosen(&args.filter, args.flags.as_deref())?;
    if let Some(name) = &args.work_type {
        let checked = guest(&["work-type", name])?.output().context("cannot run ktstr-guest")?;
        if !checked.status.success() {
            bail!("--work-type {name}: {}", String::from_utf8_lossy(&checked.stderr).trim());
        }
    }
    let mut worst = Outcome::NotRun;
    let mut broken = 0_u32;
    let mut results = Vec::new();
    for scenario in &scenarios {
        let outcome = match carry_out(&scenario.name, args) {
            Ok(result) => {
                worst = worst.max(result.outcome);
                if !args.json {
                    report(scenario, &result);
                }
                serde_json::json!({
                    "name": scenario.name, "group": scenario.group, "flags": scenario.flags, "result": result,
                })
            }
            Err(error) => {
                broken += 1;
                eprintln!("{}: {error:#}", scenario.name);
                serde_json::json!({
                    "name": scenario.name, "group": scenario.group, "flags": scenario.flags,
                    "error": format!("{error:#}"),
                })
            }
        };
        results.push(outcome);
    }
    if args.json {
        print_json(&results)?;
    }
    Ok(match (broken, worst) {
        (_, Outcome::Fail) => Exit::Fail,
        (1.., _) => Exit::Infrastructure,
        (0, Outcome::Inconclusive) => Exit::Inconclusive,
        (0, Outcome::Pass) => Exit::Pass,
        (0, _) => Exit::NotRun,
    }
    .into())
}

fn carry_out(name: &str, args: &RunArgs) -> anyhow::Result<AssertResult> {
    let (duration, workers) = ((args.duration * 1000).to_string(), args.workers.to_string());
    let seed = args.seed.to_string();
    let mut command =
        guest(&["run", name, "--duration-ms", &duration, "--workers", &workers, "--seed", &seed])?;
    if let Some(work_type) = &args.work_type {
        command.args(["--work-type", work_type]);
    }
    let output = command.output().context("cannot run ktstr-guest")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("ktstr-guest printed what is no result")
}

fn report(scenario: &Scenario, result: &AssertResult) {
    let outcome = result.outcome.to_string();
    println!("{outcome:12} {}::{}{}", scenario.group, scenario.name, scenario.profile());
    for detail in &result.details {
        println!("    {}{}", mark(detail.outcome), detail.message);
    }
    let stats = &result.stats;
    if !stats.cgroups.is_empty() {
        println!(
            "    {} workers, worst_spread={:.1}%, worst_gap={}ms, iterations={}",
            stats.workers.len(),
            stats.worst_spread(),
            stats.worst_gap_ms(),
            stats.total_iterations()
        );
    }
}

/// What a finding says of the verdict, since one of several decides.
fn mark(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Fail => "failed: ",
        Outcome::Inconclusive => "inconclusive: ",
        Outcome::NotRun => "not run: ",
        Outcome::Pass => "note: ",
    }
}

/// Where runs on a host have their cgroups: this name, a dash, the process id.
const PREFIX: &str = "ktstr-";

/// Removes what earlier runs left.
pub fn cleanup(args: &CleanupArgs) -> anyhow::Result<ExitCode> {
    let mut failed = 0;
    let mut remove = |path: &Path| match remove_tree(path) {
        Ok(removed) => println!("{}: {removed} cgroups removed", path.display()),
        Err(error) => {
            failed += 1;
            eprintln!("{}: {error:#}", path.display());
        }
    };
    match &args.parent_cgroup {
        Some(parent) => {
            refuse_foreign(parent)?;
            below(parent)?.iter().for_each(|child| remove(child));
        }
        None => {
            for path in below(Path::new("/sys/fs/cgroup"))? {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let pid = name.strip_prefix(PREFIX).and_then(|pid| pid.parse::<u32>().ok());
                match pid {
                    Some(pid) if alive(pid) => eprintln!("{}: process {pid} still runs", path.display()),
                    Some(_) => remove(&path),
                    None if name == "ktstr" => remove(&path),
                    None => {}
                }
            }
        }
    }
    Ok(if failed > 0 { Exit::Fail } else { Exit::Pass }.into())
}

/// Whoever names a directory that is no cgroup, or the cgroup of the whole system, means another: what is below
/// it would be removed, and every process in it killed.
fn refuse_foreign(parent: &Path) -> anyhow::Result<()> {
    let shown = parent.display();
    let parent = parent.canonicalize().with_context(|| format!("cannot read {shown}"))?;
    let mounted = statfs(&parent).with_context(|| format!("cannot tell the file system of {shown}"))?;
    if mounted.filesystem_type() != CGROUP2_SUPER_MAGIC {
        bail!("{shown} is no cgroup (of cgroup2): nothing was removed");
    }
    // Every cgroup but the root has it (kernel: Documentation/admin-guide/cgroup-v2.rst).
    if !parent.join("cgroup.events").exists() {
        bail!("{shown} is the root of all cgroups, with every process of this host: nothing was removed");
    }
    for child in below(&parent)? {
        if let Some(own) = home_of(&child, std::process::id())? {
            bail!("{shown} holds this process itself, in {}: nothing was removed", own.display());
        }
    }
    Ok(())
}

/// The cgroup below `dir`, or that itself, which this process is in.
fn home_of(dir: &Path, pid: u32) -> anyhow::Result<Option<PathBuf>> {
    // Of a threaded cgroup the processes cannot be read; they are listed further up.
    let processes = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    if processes.lines().any(|line| line.parse() == Ok(pid)) {
        return Ok(Some(dir.to_owned()));
    }
    for child in below(dir)? {
        if let Some(found) = home_of(&child, pid)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Whether a process of ours has this id.
fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.contains("ktstr"))
}

fn below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut dirs: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    dirs.sort();
    Ok(dirs)
}

/// Kills what lives in a cgroup and removes it with all below it; how many were removed.
fn remove_tree(path: &Path) -> anyhow::Result<u32> {
    let kill = path.join("cgroup.kill");
    if kill.exists() {
        fs::write(&kill, "1").with_context(|| format!("cannot write {}", kill.display()))?;
    }
    let mut removed = 0;
    for child in below(path)? {
        removed += remove_tree(&child)?;
    }
    // The kernel needs a moment to see the killed ones gone.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(removed + 1),
            Err(error)
                if error.kind() == std::io::ErrorKind::ResourceBusy && std::time::Instant::now() < until =>
            {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Err(error) => return Err(error).with_context(|| format!("cannot remove {}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_removed_from_the_leaves() {
        let root = tempfile::tempdir().unwrap();
        let top = root.path().join("ktstr-1");
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::create_dir_all(top.join("c")).unwrap();
        assert_eq!(remove_tree(&top).unwrap(), 4);
        assert!(!top.exists());
        assert!(remove_tree(&top).is_err());
    }

    #[test]
    fn a_parent_that_is_no_cgroup_or_all_of_them_loses_nothing() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("empty")).unwrap();
        let refused = |path: &Path| {
            let args = CleanupArgs { parent_cgroup: Some(path.to_owned()) };
            format!("{:#}", cleanup(&args).unwrap_err())
        };
        assert!(refused(root.path()).contains("is no cgroup"), "{}", refused(root.path()));
        assert!(root.path().join("empty").exists());
        fs::write(root.path().join("empty/cgroup.procs"), "1\n77\n").unwrap();
        assert_eq!(home_of(root.path(), 77).unwrap(), Some(root.path().join("empty")));
        assert_eq!(home_of(root.path(), 7).unwrap(), None);
        let all = Path::new("/sys/fs/cgroup");
        if statfs(all).is_ok_and(|mounted| mounted.filesystem_type() == CGROUP2_SUPER_MAGIC)
            && !all.join("cgroup.events").exists()
        {
            // Asked without `cleanup`, which would carry it out if this were wrong.
            let said = format!("{:#}", refuse_foreign(all).unwrap_err());
            assert!(said.contains("is the root of all cgroups"), "{said}");
        }
    }

    #[test]
    fn a_living_process_of_another_name_protects_nothing() {
        assert!(!alive(1) || fs::read_to_string("/proc/1/comm").unwrap().contains("ktstr"));
        assert!(!alive(u32::MAX));
    }
}

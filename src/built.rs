//! Schedulers of the user's own workspace, built before they are tested: a binary from before the last
//! edit would be judged for what it no longer is.
//!
//! Only where the package that declares the scheduler still lies where it was compiled, in a workspace
//! with an executable of that name, and where there is a cargo. Then what cargo says is final: a build
//! that fails is an error, and nothing older is taken in its place. Everywhere else there is nothing to
//! build, and [`crate::executables`] looks for what is there. `KTSTR_NO_BUILD=1` says that it is done.
//!
//! A process builds a scheduler once; the processes of one nextest run do so once together: the first
//! that holds the lock builds and leaves a note under the run's id, the others read it.

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

use crate::host::{state_dir, target_of};

/// Says that whoever started the tests has built the schedulers.
const NO_BUILD: &str = "KTSTR_NO_BUILD";
/// Cargo profile of the scheduler; without it, the test executable's own.
const PROFILE: &str = "KTSTR_SCHEDULER_PROFILE";
/// Notes of runs older than this are removed.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Lines of the compiler that are shown.
const SHOWN: usize = 40;

/// A scheduler that should have been built was not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("scheduler `{binary}` of the workspace at {workspace} cannot be built: {reason}")]
pub struct NotBuilt {
    /// Its executable.
    pub binary: String,
    /// Where its workspace is.
    pub workspace: String,
    /// What cargo said.
    pub reason: String,
}

/// Builds `binary` if it belongs to the workspace of the package at `manifest_dir`; its path.
pub fn scheduler(binary: &str, manifest_dir: &str) -> Result<Option<PathBuf>, NotBuilt> {
    type Built = BTreeMap<(String, String), Result<Option<PathBuf>, NotBuilt>>;
    static DONE: Mutex<Built> = Mutex::new(BTreeMap::new());
    let Some(builder) = Builder::of_this_process(manifest_dir) else { return Ok(None) };
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (binary.to_owned(), manifest_dir.to_owned());
    done.entry(key).or_insert_with(|| builder.once_in_a_run(binary)).clone()
}

/// How to build.
struct Builder {
    cargo: PathBuf,
    manifest_dir: PathBuf,
    /// The target directory and the profile of the test executable.
    target: Option<PathBuf>,
    profile: String,
    /// The run this process belongs to, and where its notes are.
    run: Option<String>,
    notes: PathBuf,
}

/// An executable of the workspace.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    package_id: String,
}

impl Builder {
    /// None where nothing is to be built or nobody could.
    fn of_this_process(manifest_dir: &str) -> Option<Self> {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let fetched = manifest_dir.contains("/registry/src/") || manifest_dir.contains("/git/checkouts/");
        let here = !manifest_dir.is_empty() && Path::new(manifest_dir).join("Cargo.toml").is_file();
        if set(NO_BUILD).is_some_and(|value| value != "0") || fetched || !here {
            return None;
        }
        let exe = env::current_exe().unwrap_or_default();
        let target = target_of(&exe);
        Some(Self {
            cargo: set("CARGO").unwrap_or_else(|| "cargo".into()).into(),
            manifest_dir: manifest_dir.into(),
            profile: set(PROFILE).unwrap_or_else(|| profile_of(&exe, target.as_deref())),
            target,
            run: set("NEXTEST_RUN_ID"),
            notes: state_dir().join("built"),
        })
    }

    /// What another process of the run has found out, or what cargo says now.
    fn once_in_a_run(&self, binary: &str) -> Result<Option<PathBuf>, NotBuilt> {
        let Some((_lock, note)) = self.run.as_deref().and_then(|run| self.lock(run, binary).ok()) else {
            return self.build(binary);
        };
        match fs::read_to_string(&note).ok().and_then(|text| read_note(&text)) {
            Some(Ok(path)) => Ok(path),
            Some(Err(reason)) => Err(self.failed(binary, reason)),
            None => {
                let built = self.build(binary);
                // Without a note the next process builds again, which cargo finds done.
                let _ = write_note(&note, &built);
                built
            }
        }
    }

    /// Waits until no other process of the run builds it; where the note is.
    fn lock(&self, run: &str, binary: &str) -> io::Result<(Flock<fs::File>, PathBuf)> {
        let safe: String = run.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let dir = self.notes.join(safe);
        if !dir.exists() {
            forget_old(&self.notes);
        }
        fs::create_dir_all(&dir)?;
        let place = hash(&format!("{binary} {} {}", self.manifest_dir.display(), self.profile));
        let file = fs::File::create(dir.join(format!("{place}.lock")))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))?;
        Ok((lock, dir.join(format!("{place}.json"))))
    }

    fn build(&self, binary: &str) -> Result<Option<PathBuf>, NotBuilt> {
        let failed = |reason: String| self.failed(binary, reason);
        let Some(found) = self.find(binary)? else { return Ok(None) };
        eprintln!("ktstr: building scheduler `{binary}` ({} profile)", self.profile);
        let mut command = self.cargo();
        command.args(["build", "--message-format", "json-render-diagnostics", "--profile", &self.profile]);
        command.args(["-p", &found.package_id, "--bin", binary]);
        if let Some(target) = &self.target {
            command.arg("--target-dir").arg(target);
        }
        let output = command.output().map_err(|error| failed(format!("cannot run cargo: {error}")))?;
        if !output.status.success() {
            return Err(failed(format!(
                "cargo build failed ({})\n{}",
                output.status,
                last_lines(&output.stderr)
            )));
        }
        let said = String::from_utf8_lossy(&output.stdout);
        let executable = |line: &str| {
            let message: Value = serde_json::from_str(line).ok()?;
            let is_it = message.pointer("/target/name")?.as_str()? == binary;
            is_it.then(|| message.get("executable")?.as_str().map(PathBuf::from)).flatten()
        };
        let built = said.lines().filter_map(executable).next_back();
        built.map(Some).ok_or_else(|| failed("cargo names no executable of that name".into()))
    }

    /// The executable in the workspace. A cargo that cannot be run is none.
    fn find(&self, binary: &str) -> Result<Option<Found>, NotBuilt> {
        let mut command = self.cargo();
        command.args(["metadata", "--no-deps", "--format-version", "1"]);
        let output = match command.output() {
            Ok(output) => output,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed(binary, format!("cannot run cargo: {error}"))),
        };
        if !output.status.success() {
            let why = format!("cargo metadata failed ({})\n{}", output.status, last_lines(&output.stderr));
            return Err(self.failed(binary, why));
        }
        let metadata = serde_json::from_slice(&output.stdout)
            .map_err(|error| self.failed(binary, format!("cannot read cargo metadata: {error}")))?;
        Ok(executable_in(&metadata, binary))
    }

    /// Cargo where the declaring package is, so that its configuration holds. Flags of the user's that are
    /// in the environment (offline, wrappers, compiler flags) reach it, too.
    fn cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(&self.manifest_dir).stdin(Stdio::null());
        command
    }

    fn failed(&self, binary: &str, reason: String) -> NotBuilt {
        let workspace = self.manifest_dir.display().to_string();
        NotBuilt { binary: binary.into(), workspace, reason }
    }
}

/// The member of the workspace that has this executable; one that is called the same comes first.
fn executable_in(metadata: &Value, binary: &str) -> Option<Found> {
    let packages = metadata.get("packages")?.as_array()?;
    let has = |package: &&Value| {
        let targets = package.get("targets").and_then(Value::as_array);
        targets.is_some_and(|targets| {
            targets.iter().any(|target| {
                let kinds = target.get("kind").and_then(Value::as_array);
                let is_bin = kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == "bin"));
                is_bin && target.get("name").and_then(Value::as_str) == Some(binary)
            })
        })
    };
    let named = |package: &&&Value| package.get("name").and_then(Value::as_str) == Some(binary);
    let having: Vec<&Value> = packages.iter().filter(has).collect();
    let package = having.iter().find(named).or_else(|| having.first())?;
    Some(Found { package_id: package.get("id")?.as_str()?.to_owned() })
}

/// The profile that an executable was built with, by the directory it is in.
fn profile_of(exe: &Path, target: Option<&Path>) -> String {
    let directory = exe.parent().map(|dir| match dir.file_name().and_then(|name| name.to_str()) {
        Some("deps" | "examples") => dir.parent().unwrap_or(dir),
        _ => dir,
    });
    let name = directory.filter(|dir| target.is_some_and(|target| dir.starts_with(target)));
    match name.and_then(Path::file_name).and_then(|name| name.to_str()) {
        None | Some("debug") => "dev".into(),
        Some(other) => other.into(),
    }
}

fn last_lines(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(SHOWN)..].join("\n")
}

fn read_note(text: &str) -> Option<Result<Option<PathBuf>, String>> {
    let note: Value = serde_json::from_str(text).ok()?;
    if let Some(reason) = note.get("failed").and_then(Value::as_str) {
        return Some(Err(reason.to_owned()));
    }
    Some(Ok(note.get("executable")?.as_str().map(PathBuf::from)))
}

fn write_note(path: &Path, built: &Result<Option<PathBuf>, NotBuilt>) -> io::Result<()> {
    let note = match built {
        Ok(executable) => serde_json::json!({ "executable": executable }),
        Err(error) => serde_json::json!({ "failed": error.reason }),
    };
    let new = path.with_extension("new");
    fs::write(&new, note.to_string())?;
    fs::rename(new, path)
}

/// Removes the notes of runs that are long over.
fn forget_old(notes: &Path) {
    let old = |path: &Path| {
        let made = fs::metadata(path).and_then(|metadata| metadata.modified());
        made.is_ok_and(|made| SystemTime::now().duration_since(made).is_ok_and(|age| age > KEPT))
    };
    for run in fs::read_dir(notes).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if old(&run) {
            // Another process may do the same.
            let _ = fs::remove_dir_all(run);
        }
    }
}

/// FNV-1a.
fn hash(text: &str) -> String {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, mix))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A workspace whose member `tests` declares the scheduler of another member.
    struct Workspace(tempfile::TempDir);

    impl Workspace {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let write = |path: &str, text: &str| {
                let path = dir.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            };
            write("Cargo.toml", "[workspace]\nresolver = \"3\"\nmembers = [\"tests\", \"sched\"]\n");
            let package = |name: &str| format!("[package]\nname = \"{name}\"\nedition = \"2024\"\n");
            write("tests/Cargo.toml", &package("tests"));
            write("tests/src/lib.rs", "");
            write("sched/Cargo.toml", &package("scx_tiny"));
            Self(dir)
        }

        fn source(&self, text: &str) {
            fs::create_dir_all(self.0.path().join("sched/src")).unwrap();
            fs::write(self.0.path().join("sched/src/main.rs"), text).unwrap();
        }

        fn builder(&self, run: Option<&str>) -> Builder {
            Builder {
                cargo: env::var_os("CARGO").unwrap_or_else(|| "cargo".into()).into(),
                manifest_dir: self.0.path().join("tests"),
                target: Some(self.0.path().join("out")),
                profile: "dev".into(),
                run: run.map(str::to_owned),
                notes: self.0.path().join("notes"),
            }
        }
    }

    fn says(path: &Path) -> String {
        String::from_utf8(Command::new(path).output().unwrap().stdout).unwrap()
    }

    #[test]
    fn what_is_tested_is_what_is_written_now() {
        let workspace = Workspace::new();
        workspace.source("fn main() { print!(\"first\") }");
        let first = workspace.builder(Some("run-1")).once_in_a_run("scx_tiny").unwrap().unwrap();
        assert!(first.starts_with(workspace.0.path().join("out/debug")), "{first:?}");
        assert_eq!(says(&first), "first");
        workspace.source("fn main() { print!(\"second, and longer\") }");
        let within_the_run = workspace.builder(Some("run-1")).once_in_a_run("scx_tiny").unwrap().unwrap();
        assert_eq!(says(&within_the_run), "first", "a run tests one scheduler");
        let second = workspace.builder(Some("run-2")).once_in_a_run("scx_tiny").unwrap().unwrap();
        assert_eq!(says(&second), "second, and longer");
        workspace.source("fn main() { no_such_function() }");
        for _ in 0..2 {
            let error = workspace.builder(Some("run-3")).once_in_a_run("scx_tiny").unwrap_err();
            assert!(error.reason.contains("no_such_function"), "nothing older is taken: {error}");
        }
        assert!(workspace.builder(None).once_in_a_run("scx_tiny").is_err());
        assert_eq!(workspace.builder(None).once_in_a_run("scx_elsewhere"), Ok(None), "PATH may have it");
    }

    #[test]
    fn without_cargo_there_is_nothing_to_build() {
        let workspace = Workspace::new();
        let builder = Builder { cargo: "/nonexistent/cargo".into(), ..workspace.builder(None) };
        assert_eq!(builder.once_in_a_run("scx_tiny"), Ok(None));
        assert!(Builder::of_this_process("/nonexistent").is_none());
        assert!(Builder::of_this_process("").is_none());
    }

    #[test]
    fn the_package_of_the_same_name_comes_first() {
        let package = |name: &str, id: &str, kind: &str| serde_json::json!({"name": name, "id": id, "targets": [{"kind": [kind], "name": "scx_a"}]});
        let metadata = |packages: &[Value]| serde_json::json!({ "packages": packages });
        let found = |packages: &[Value]| executable_in(&metadata(packages), "scx_a").map(|f| f.package_id);
        let (other, same) = (package("tools", "1", "bin"), package("scx_a", "2", "bin"));
        assert_eq!(found(&[other.clone(), same]).as_deref(), Some("2"));
        assert_eq!(found(&[package("scx_a", "3", "lib"), other]).as_deref(), Some("1"));
        assert_eq!(found(&[package("scx_a", "3", "lib")]), None);
        assert_eq!(executable_in(&Value::Null, "scx_a"), None);
    }

    #[test]
    fn the_profile_is_the_test_s_own() {
        let target = Path::new("/t");
        let profile = |exe: &str| profile_of(Path::new(exe), Some(target));
        assert_eq!(profile("/t/debug/deps/x-1"), "dev");
        assert_eq!(profile("/t/x86_64-unknown-linux-gnu/release/deps/x-1"), "release");
        assert_eq!(profile("/t/fast/x"), "fast");
        assert_eq!(profile_of(Path::new("/usr/bin/x"), None), "dev");
    }

    #[test]
    fn a_note_that_cannot_be_read_is_none() {
        assert_eq!(read_note("{"), None);
        assert_eq!(read_note("{}"), None);
        assert_eq!(read_note("{\"executable\":null}"), Some(Ok(None)));
        assert_eq!(read_note("{\"failed\":\"x\"}"), Some(Err("x".into())));
    }
}

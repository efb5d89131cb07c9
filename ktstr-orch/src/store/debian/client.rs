//! Runs the host's apt with state of its own.
//!
//! Everything apt writes lies in `.apt/` of the store: lists, an empty package
//! status, downloads. Its progress comes over a status descriptor; its stderr
//! is kept and shown when it fails. One pull at a time works there.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::super::entry::{Store, StoreError};
use super::control::{Paragraph, paragraphs};
use super::offer::Package;
use super::sources::{self, Mirror};
use super::{Event, PullError};

/// Start of the names of download directories.
const DOWNLOAD: &str = "download-";

/// Why apt did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no apt here.
    #[error(
        "this host has no {program}: `kernel pull debian` needs a Debian host; name a kernel file instead \
         (`--kernel /path/to/vmlinuz` or vmlinux), import package files (`ktstr kernel pull FILE.deb…`), \
         or build a kernel from source"
    )]
    NoApt {
        /// What was looked for.
        program: String,
    },
    /// apt could not be run.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// apt failed.
    #[error("{command} failed ({status}): {said}")]
    Failed {
        /// What was run.
        command: String,
        /// How it ended.
        status: String,
        /// The end of its error output.
        said: String,
    },
    /// A file of the private state cannot be written.
    #[error("cannot {action} {path}")]
    State {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// apt said it was done, but a file is not there.
    #[error("apt downloaded no file for {package}")]
    NotDownloaded {
        /// The package.
        package: String,
    },
}

/// apt over a private state directory, which it holds locked.
pub(super) struct Client {
    dir: PathBuf,
    arch: String,
    mirror: Mirror,
    _lock: File,
}

/// Downloaded packages; the files vanish with this value.
pub(super) struct Downloads {
    _dir: tempfile::TempDir,
    paths: Vec<PathBuf>,
}

impl Downloads {
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }
}

impl Client {
    /// Finds the host's mirror and sets up the private state.
    pub fn prepare(
        store: &Store,
        suites: &[&str],
        lookup: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, PullError> {
        let path = lookup("PATH").unwrap_or_default();
        for program in ["apt-config", "apt-get", "apt-cache"] {
            if !std::env::split_paths(&path).any(|dir| dir.join(program).is_file()) {
                return Err(ClientError::NoApt { program: program.to_owned() }.into());
            }
        }
        let lock = store.lock_file("apt")?;
        lock.lock().map_err(|source| StoreError::Io {
            action: "lock",
            path: store.root().join(".locks/apt.lock"),
            source,
        })?;
        let host = HostConfig::read()?;
        let mirror = sources::mirror(&host.list, &host.parts)?;
        let root = fs::canonicalize(store.root()).unwrap_or_else(|_| store.root().to_owned());
        let client = Self { dir: root.join(".apt"), arch: host.arch, mirror, _lock: lock };
        client.write_state(suites)?;
        Ok(client)
    }

    /// The mirror's URI.
    pub fn mirror(&self) -> &str {
        &self.mirror.uri
    }

    /// Package architecture.
    pub fn arch(&self) -> &str {
        &self.arch
    }

    fn write_state(&self, suites: &[&str]) -> Result<(), ClientError> {
        for dir in ["lists/partial", "cache/archives/partial"] {
            let path = self.dir.join(dir);
            fs::create_dir_all(&path).map_err(|source| ClientError::State {
                action: "create",
                path,
                source,
            })?;
        }
        // Left by a pull that was killed: the lock is ours, so nobody uses them.
        for item in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if item.file_name().to_string_lossy().starts_with(DOWNLOAD) {
                let path = item.path();
                fs::remove_dir_all(&path).map_err(|source| ClientError::State {
                    action: "remove",
                    path,
                    source,
                })?;
            }
        }
        let write = |name: &str, text: &str| {
            let path = self.dir.join(name);
            fs::write(&path, text).map_err(|source| ClientError::State { action: "write", path, source })
        };
        write("status", "")?;
        write("kernels.sources", &self.mirror.source_for(suites, &self.arch))?;
        write("apt.conf", &configuration(&self.dir))
    }

    /// Fetches the package lists that changed.
    pub fn update(&self, progress: &mut dyn FnMut(Event)) -> Result<(), ClientError> {
        self.transfer(self.apt("apt-get").args(["update", "-q"]), progress)
    }

    /// The records of all kernel packages.
    pub fn kernel_packages(&self) -> Result<Vec<Paragraph>, ClientError> {
        let names = output(self.apt("apt-cache").args(["pkgnames", "linux-"]))?;
        let suffix = format!("-cloud-{}", self.arch);
        let kernels: Vec<&str> = names.lines().filter(|name| name.ends_with(&suffix)).collect();
        if kernels.is_empty() {
            return Ok(Vec::new());
        }
        Ok(paragraphs(&output(self.apt("apt-cache").arg("show").args(kernels))?))
    }

    /// Downloads packages, verified against the signed lists by apt.
    pub fn download(
        &self,
        packages: &[Package],
        progress: &mut dyn FnMut(Event),
    ) -> Result<Downloads, ClientError> {
        let dir = tempfile::Builder::new().prefix(DOWNLOAD).tempdir_in(&self.dir).map_err(|source| {
            ClientError::State { action: "create a directory in", path: self.dir.clone(), source }
        })?;
        let mut command = self.apt("apt-get");
        command.current_dir(dir.path()).args(["download", "-q"]);
        command.args(packages.iter().map(|p| format!("{}={}", p.name, p.version)));
        self.transfer(&mut command, progress)?;
        let files: Vec<PathBuf> =
            fs::read_dir(dir.path()).into_iter().flatten().flatten().map(|file| file.path()).collect();
        let paths = packages.iter().map(|package| {
            let prefix = format!("{}_", package.name);
            let found = files
                .iter()
                .find(|f| f.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix)));
            found.cloned().ok_or_else(|| ClientError::NotDownloaded { package: package.name.clone() })
        });
        let paths = paths.collect::<Result<_, _>>()?;
        Ok(Downloads { _dir: dir, paths })
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // apt's messages are matched by nobody, but a person may have to read
        // them in a report: one language.
        command.env("LC_ALL", "C").env("APT_CONFIG", self.dir.join("apt.conf")).stdin(Stdio::null());
        // SAFETY: between fork and exec only this one system call on an
        // integer is made. Without it apt would outlive a killed pull and keep
        // its lists locked.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)?))
        };
        command
    }

    /// Runs a transferring command; its status lines become events.
    fn transfer(&self, command: &mut Command, progress: &mut dyn FnMut(Event)) -> Result<(), ClientError> {
        let name = program(command);
        let errors = self.dir.join("errors");
        let stderr = File::create(&errors).map_err(|source| ClientError::State {
            action: "create",
            path: errors.clone(),
            source,
        })?;
        command.args(["-o", "APT::Status-Fd=1"]).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().map_err(|source| ClientError::Spawn { program: name, source })?;
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(percent) = status_percent(&line) {
                    progress(Event::Percent(percent));
                }
            }
        }
        let status =
            child.wait().map_err(|source| ClientError::Spawn { program: program(command), source })?;
        let mut said = String::new();
        if let Ok(mut file) = File::open(&errors) {
            // Only for the message of an error.
            let _ = file.read_to_string(&mut said);
        }
        finished(command, status, &said)
    }
}

/// Where the host keeps its sources.
struct HostConfig {
    list: PathBuf,
    parts: PathBuf,
    arch: String,
}

impl HostConfig {
    fn read() -> Result<Self, ClientError> {
        let mut command = Command::new("apt-config");
        command.args(["shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"]);
        command.args(["ARCH", "APT::Architecture"]);
        let text = output(command.env_remove("APT_CONFIG").stdin(Stdio::null()))?;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.map(|v| v.trim_matches('\'').to_owned())
        };
        Ok(Self {
            list: value("LIST").unwrap_or_else(|| "/etc/apt/sources.list".to_owned()).into(),
            parts: value("PARTS").unwrap_or_else(|| "/etc/apt/sources.list.d".to_owned()).into(),
            arch: value("ARCH").unwrap_or_else(|| "amd64".to_owned()),
        })
    }
}

/// Options that keep apt inside `dir`. As root it would drop to its own user,
/// who may not enter a home directory: the lists and packages are verified by
/// signature either way, so it stays who it is.
fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "Dir::Etc::SourceList \"{dir}/kernels.sources\";\n\
         Dir::Etc::SourceParts \"/dev/null\";\n\
         Dir::Etc::PreferencesParts \"/dev/null\";\n\
         Dir::Etc::Preferences \"/dev/null\";\n\
         Dir::State \"{dir}\";\n\
         Dir::State::Lists \"{dir}/lists\";\n\
         Dir::State::status \"{dir}/status\";\n\
         Dir::Cache \"{dir}/cache\";\n\
         APT::Default-Release \"\";\n\
         APT::Sandbox::User \"\";\n\
         APT::Update::Error-Mode \"any\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
         #clear APT::Update::Post-Invoke;\n\
         #clear APT::Update::Post-Invoke-Success;\n"
    )
}

/// `dlstatus:3:20.5823:Retrieving file 3 of 4` → 20.58.
fn status_percent(line: &str) -> Option<f32> {
    line.strip_prefix("dlstatus:")?.split(':').nth(1)?.parse().ok()
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn output(command: &mut Command) -> Result<String, ClientError> {
    let out = command.output().map_err(|source| ClientError::Spawn { program: program(command), source })?;
    finished(command, out.status, &String::from_utf8_lossy(&out.stderr))?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn finished(command: &Command, status: std::process::ExitStatus, said: &str) -> Result<(), ClientError> {
    if status.success() {
        return Ok(());
    }
    let verb = command.get_args().next().map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
    let mut last: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).rev().take(6).collect();
    last.reverse();
    let said = if last.is_empty() { "it gave no reason".to_owned() } else { last.join("; ") };
    Err(ClientError::Failed {
        command: format!("{} {verb}", program(command)),
        status: status.to_string(),
        said,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines() {
        assert_eq!(status_percent("dlstatus:3:20.5:Retrieving file 3 of 4"), Some(20.5));
        assert_eq!(status_percent("Get:1 http://m sid InRelease [193 kB]"), None);
        assert_eq!(status_percent("dlstatus:x"), None);
    }

    #[test]
    fn no_apt_names_the_alternatives() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let result = Client::prepare(&store, &["sid"], |_| Some("/nonexistent".into()));
        let error = result.err().unwrap().to_string();
        for part in ["apt-config", "--kernel", "FILE.deb", "source"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn a_failure_carries_what_was_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one >&2; echo two >&2; exit 3"]);
        let error = output(&mut command).unwrap_err().to_string();
        assert!(error.contains("sh -c failed (exit status: 3): one; two"), "{error}");
    }
}

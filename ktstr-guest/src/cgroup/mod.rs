//! Cgroup v2 for workloads: one parent under the mount, one child per [`crate::scenario::CgroupDef`].
//!
//! Controllers are enabled when first needed, and a kernel that lacks one is named in the error.
//! Refuses cgroup v1 and names that would leave the parent. What was created is removed again: the
//! tasks in it are killed, their end is awaited, then the directory goes. See [`CgroupGroup`].

mod group;
mod limits;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

pub use group::CgroupGroup;
pub use limits::{CpuQuota, Limit, LimitError, Limits};
use nix::libc;

/// How long the tasks of a removed cgroup may take to die, in guest time.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a write may take, guest time, in pieces: those in which the waiting thread itself was not run do not count.
const WRITE_TICK: Duration = Duration::from_millis(100);
/// So many pieces, which is two seconds.
const WRITE_TICKS: u32 = 20;

/// How often a cgroup is emptied before it is given up.
const MOVE_ROUNDS: u32 = 50;

/// Why a cgroup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// There is no cgroup v2 hierarchy.
    #[error(
        "{path} is not in a cgroup v2 file system: mount one there, `mount -t cgroup2 cgroup2 /sys/fs/cgroup`"
    )]
    NotMounted {
        /// Directory that should be inside the hierarchy.
        path: PathBuf,
    },
    /// The kernel or the parent cgroup does not offer a controller.
    #[error(
        "cgroup controller `{controller}` is missing in {path} (offered: {offered}): the kernel must be configured with it"
    )]
    ControllerMissing {
        /// The controller.
        controller: &'static str,
        /// Cgroup that does not offer it.
        path: PathBuf,
        /// What it offers.
        offered: String,
    },
    /// A name is no plain file name.
    #[error(
        "`{name}` is no cgroup name: use letters, digits, `_`, `-` and `.` (not at its beginning, and not as `cpu.x`), and `/` between levels"
    )]
    Name {
        /// The name given.
        name: String,
    },
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel does not come back.
    #[error("a write to {path} hangs: the kernel has not come back from it for {waited:?}")]
    Hung {
        /// On which file.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
    },
    /// The freezer does not get there.
    #[error("cgroup {path} did not say `{wanted}` within {waited:?}")]
    NotFrozen {
        /// The cgroup.
        path: PathBuf,
        /// What was waited for.
        wanted: &'static str,
        /// How long was waited.
        waited: Duration,
    },
    /// Tasks are forked faster than they can be moved.
    #[error("cgroup {path} is never empty: its tasks fork faster than they can be moved")]
    NeverEmpty {
        /// The cgroup.
        path: PathBuf,
    },
    /// Tasks survive being killed.
    #[error("cgroup {path} still has tasks {waited:?} after they were killed")]
    Busy {
        /// The cgroup.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
    },
}

/// [`Cgroups`] by the name that other documents have for it.
pub type CgroupManager = Cgroups;

/// The parent of all workload cgroups.
#[derive(Debug, Clone)]
pub struct Cgroups {
    root: PathBuf,
}

impl Cgroups {
    /// Where workload cgroups live in the guest.
    pub const ROOT: &str = "/sys/fs/cgroup/ktstr";

    /// Workload cgroups below `root`, whose parent directory must be a cgroup v2 directory. Nothing
    /// is created before the first cgroup is.
    pub fn under(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The parent directory of all workload cgroups.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where cgroup `name` lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes sure that children of the root have `controllers`, e.g. `["cpu", "cpuset"]`.
    pub fn enable(&self, controllers: &[&'static str]) -> Result<(), CgroupError> {
        let inside = |path: &Path| path.join("cgroup.controllers").exists();
        let mut levels: Vec<&Path> =
            self.root.ancestors().take_while(|path| inside(path) || !path.exists()).collect();
        levels.reverse();
        let Some((first, below)) = levels.split_first().filter(|(first, _)| inside(first)) else {
            let above = self.root.parent().unwrap_or(Path::new("/"));
            return Err(CgroupError::NotMounted { path: above.into() });
        };
        enable_at(first, controllers)?;
        for level in below {
            if !level.exists() {
                make(level)?;
            }
            enable_at(level, controllers)?;
        }
        Ok(())
    }

    /// Makes sure that cgroup `name` itself has `controllers`; its parents must be without tasks.
    pub fn enable_for(&self, name: &str, controllers: &[&'static str]) -> Result<(), CgroupError> {
        self.enable(controllers)?;
        for (at, _) in name.match_indices('/') {
            enable_at(&self.path(&name[..at]), controllers)?;
        }
        Ok(())
    }

    /// Creates an empty cgroup; the one above it must be there.
    pub fn create(&self, name: &str) -> Result<(), CgroupError> {
        check_name(name)?;
        make(&self.path(name))
    }

    /// Restricts a cgroup to `cpus`; none lifts the restriction.
    pub fn set_cpuset(&self, name: &str, cpus: &[u32]) -> Result<(), CgroupError> {
        // An empty write would change nothing, an empty line does.
        let list = format!("{}\n", crate::scenario::cpu_list(cpus));
        write(&self.path(name).join("cpuset.cpus"), &list)
    }

    /// Restricts a cgroup's memory to NUMA `nodes`; none lifts the restriction.
    pub fn set_cpuset_mems(&self, name: &str, nodes: &[u32]) -> Result<(), CgroupError> {
        write(&self.path(name).join("cpuset.mems"), &format!("{}\n", crate::scenario::cpu_list(nodes)))
    }

    /// Sets the limits that are given.
    pub fn set_limits(&self, name: &str, limits: &Limits) -> Result<(), CgroupError> {
        for (file, text) in limits.files() {
            write(&self.path(name).join(file), &text)?;
        }
        Ok(())
    }

    /// Freezes or thaws a cgroup and waits until it is so.
    pub fn freeze(&self, name: &str, frozen: bool) -> Result<(), CgroupError> {
        let path = self.path(name);
        write(&path.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
        let wanted = if frozen { "frozen 1" } else { "frozen 0" };
        let start = Instant::now();
        while !event(&path, wanted)? {
            if start.elapsed() > DRAIN_TIMEOUT {
                return Err(CgroupError::NotFrozen { path, wanted, waited: DRAIN_TIMEOUT });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Processes of a cgroup.
    pub fn processes(&self, name: &str) -> Result<Vec<u32>, CgroupError> {
        let text = read(&self.path(name).join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Moves all processes from one cgroup to another, those that are forked meanwhile too.
    pub fn move_all(&self, from: &str, to: &str) -> Result<u32, CgroupError> {
        let mut moved = 0;
        for _ in 0..MOVE_ROUNDS {
            let pids = self.processes(from)?;
            if pids.is_empty() {
                return Ok(moved);
            }
            for pid in pids {
                match self.move_process(to, pid) {
                    // It ended in between.
                    Err(CgroupError::Io { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => {}
                    other => other.map(|()| moved += 1)?,
                }
            }
        }
        Err(CgroupError::NeverEmpty { path: self.path(from) })
    }

    /// Moves a process into a cgroup.
    pub fn move_process(&self, name: &str, pid: u32) -> Result<(), CgroupError> {
        write(&self.path(name).join("cgroup.procs"), &pid.to_string())
    }

    /// Kills what lives in a cgroup, waits for its end and removes the cgroup.
    pub fn remove(&self, name: &str) -> Result<(), CgroupError> {
        let path = self.path(name);
        let start = Instant::now();
        let kill = path.join("cgroup.kill");
        loop {
            if populated(&path)? && kill.exists() {
                write(&kill, "1")?;
            }
            match fs::remove_dir(&path) {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {}
                Err(source) => return Err(CgroupError::Io { action: "remove", path, source }),
            }
            if start.elapsed() > DRAIN_TIMEOUT {
                return Err(CgroupError::Busy { path, waited: DRAIN_TIMEOUT });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Refuses what is no path of plain names below the root.
pub fn check_name(name: &str) -> Result<(), CgroupError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let component = |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(plain);
    // Files of the kernel have the names of their controllers.
    let reserved = |part: &str| {
        let controllers =
            ["cgroup", "cpu", "cpuset", "memory", "io", "pids", "hugetlb", "rdma", "misc", "irq"];
        part.split_once('.').is_some_and(|(first, _)| controllers.contains(&first))
    };
    if !name.split('/').all(|part| component(part) && !reserved(part)) {
        return Err(CgroupError::Name { name: name.into() });
    }
    Ok(())
}

fn enable_at(level: &Path, controllers: &[&'static str]) -> Result<(), CgroupError> {
    let offered = read(&level.join("cgroup.controllers"))?;
    let passed_on = fs::read_to_string(level.join("cgroup.subtree_control")).unwrap_or_default();
    for controller in controllers {
        if passed_on.split_whitespace().any(|name| name == *controller) {
            continue;
        }
        if !offered.split_whitespace().any(|name| name == *controller) {
            return Err(CgroupError::ControllerMissing {
                controller,
                path: level.into(),
                offered: offered.trim().into(),
            });
        }
        write(&level.join("cgroup.subtree_control"), &format!("+{controller}"))?;
    }
    Ok(())
}

fn populated(path: &Path) -> Result<bool, CgroupError> {
    event(path, "populated 1")
}

/// Whether a line stands in `cgroup.events`; a cgroup that is gone has none.
fn event(path: &Path, wanted: &str) -> Result<bool, CgroupError> {
    match fs::read_to_string(path.join("cgroup.events")) {
        Ok(text) => Ok(text.lines().any(|line| line == wanted)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(CgroupError::Io { action: "read", path: path.join("cgroup.events"), source }),
    }
}

fn make(path: &Path) -> Result<(), CgroupError> {
    fs::create_dir(path).map_err(|source| CgroupError::Io { action: "create", path: path.into(), source })
}

fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::Io { action: "read", path: path.into(), source })
}

/// Writes, and gives up what the kernel does not come back from: the test shall end, and say where it hung.
fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::Io { action: "write", path: path.into(), source };
    let (file, content) = (path.to_owned(), text.to_owned());
    let (done, wait) = mpsc::channel();
    let write = move || {
        // Nobody hears of it where it was given up.
        let _ = done.send(fs::write(file, content));
    };
    let Ok(writer) = std::thread::Builder::new().name("cgroup-write".into()).spawn(write) else {
        return fs::write(path, text).map_err(failed);
    };
    let mut ticks = 0;
    loop {
        let began = Instant::now();
        match wait.recv_timeout(WRITE_TICK) {
            Ok(written) => {
                // No thread of ours is about when workers are forked next.
                let _ = writer.join();
                return written.map_err(failed);
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(failed(io::Error::other("the thread that writes is gone")));
            }
            // One that took much longer says that nobody was run meanwhile.
            Err(RecvTimeoutError::Timeout) => ticks += u32::from(began.elapsed() < WRITE_TICK * 2),
        }
        if ticks >= WRITE_TICKS {
            return Err(CgroupError::Hung { path: path.into(), waited: WRITE_TICK * WRITE_TICKS });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_parent_are_refused() {
        let cgroups = Cgroups::under("/nonexistent/ktstr");
        for name in ["", "..", "a/../b", "a//b", "/a", ".hidden", "a b", "cpu.max"] {
            assert!(matches!(cgroups.create(name), Err(CgroupError::Name { .. })), "{name:?}");
        }
    }

    #[test]
    fn a_missing_controller_is_named() {
        let dir = std::env::temp_dir().join(format!("ktstr-cgroup-{}", std::process::id()));
        fs::create_dir_all(dir.join("ktstr")).unwrap();
        fs::write(dir.join("cgroup.controllers"), "cpu io\n").unwrap();
        fs::write(dir.join("ktstr/cgroup.controllers"), "cpu\n").unwrap();
        let cgroups = Cgroups::under(dir.join("ktstr"));
        cgroups.enable(&["cpu"]).unwrap();
        let error = cgroups.enable(&["cpu", "cpuset"]).unwrap_err().to_string();
        assert!(error.contains("`cpuset` is missing") && error.contains("offered: cpu io"), "{error}");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_write_that_hangs_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("cgroup.procs");
        // Opening it for writing waits for a reader.
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = write(&pipe, "1").unwrap_err();
        assert!(matches!(&error, CgroupError::Hung { waited, .. } if waited.as_secs() == 2), "{error}");
        // Lets the thread go.
        drop(fs::File::open(&pipe).unwrap());
    }

    #[test]
    fn a_directory_outside_cgroup2_is_refused() {
        let error = Cgroups::under("/proc/ktstr").enable(&[]).unwrap_err();
        assert!(matches!(error, CgroupError::NotMounted { .. }), "{error}");
    }
}

//! Work that moves tasks between cgroups: siblings of the worker's own, made and removed by the parent.
//!
//! Siblings, since a cgroup with tasks in it cannot hand controllers down: a child cgroup would share its
//! scheduler's group, and moving there would be no work. A sibling gets the CPUs of the worker's own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction},
        wait::waitpid,
    },
};

use crate::work::{
    Reap, WorkType,
    not_run::{Missing, NotRun},
    sys::{fork_and_exit, now_ns},
    worker::{Done, Worker},
};

const MOUNT: &str = "/sys/fs/cgroup";
/// Between two tries to remove a cgroup whose last task is just leaving.
const RETRY: Duration = Duration::from_millis(5);
const RETRIES: usize = 200;

/// The cgroup of a process, `self` for the calling one; `None` for the root and without cgroup v2.
fn cgroup_of(pid: &str) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let below = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    (!below.is_empty()).then(|| Path::new(MOUNT).join(below))
}

/// Where the siblings of a cgroup that a work type needs lie.
fn siblings_of(own: &Path, work_type: &WorkType) -> Vec<PathBuf> {
    let name = own.file_name().unwrap_or_default().to_string_lossy();
    match work_type {
        WorkType::CgroupChurn { groups, .. } => {
            (0..*groups).map(|group| own.with_file_name(format!("wt-cgroup-churn-{name}-{group}"))).collect()
        }
        WorkType::CgroupAttachStorm { dest, .. } => vec![own.with_file_name(format!("{dest}-{name}"))],
        _ => Vec::new(),
    }
}

/// Sibling cgroups of a workload; dropping it removes them.
#[derive(Debug)]
pub(in crate::work) struct Siblings {
    paths: Vec<PathBuf>,
}

impl Siblings {
    /// Makes what workers in the cgroup of `pid` need; nothing where that is the root.
    pub fn make(work_type: &WorkType, pid: u32) -> io::Result<Self> {
        let Some(own) = cgroup_of(&pid.to_string()) else { return Ok(Self { paths: Vec::new() }) };
        let siblings = Self { paths: siblings_of(&own, work_type) };
        for path in &siblings.paths {
            match fs::create_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(cpus) = fs::read_to_string(own.join(file)) {
                    fs::write(path.join(file), cpus.trim())?;
                }
            }
        }
        Ok(siblings)
    }
}

impl Drop for Siblings {
    fn drop(&mut self) {
        for path in &self.paths {
            for _ in 0..RETRIES {
                match fs::remove_dir(path) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(RETRY),
                    // Gone, or not ours to remove.
                    _ => break,
                }
            }
        }
    }
}

fn refused(error: &io::Error) -> NotRun {
    NotRun { missing: Missing::Cgroup, errno: error.raw_os_error().map(Errno::from_raw) }
}

/// The files through which tasks enter the siblings.
fn entrances(work_type: &WorkType) -> Result<Vec<PathBuf>, NotRun> {
    let own = cgroup_of("self").ok_or(Missing::Cgroup)?;
    Ok(siblings_of(&own, work_type).iter().map(|path| path.join("cgroup.procs")).collect())
}

pub(super) fn churn(w: &mut Worker<'_>, groups: u32, cycle_ms: u64) -> Done {
    let entrances = entrances(&WorkType::CgroupChurn { groups, cycle_ms })?;
    for entrance in entrances.iter().cycle().skip(w.place.index % entrances.len().max(1)) {
        if w.stopped() {
            break;
        }
        // 0 is the process that writes.
        match fs::write(entrance, "0") {
            Ok(()) => w.meter.did(0, 1),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(refused(&error)),
        }
        w.burst(Duration::from_millis(cycle_ms));
    }
    Ok(())
}

/// A child that exits at once is moved meanwhile; one that was faster is counted by what is missing in the
/// iterations.
pub(super) fn attach_storm(w: &mut Worker<'_>, dest: &str, reap: Reap) -> Done {
    let entrances = entrances(&WorkType::CgroupAttachStorm { dest: dest.into(), reap })?;
    let entrance = entrances.first().ok_or(Missing::Cgroup)?;
    if reap == Reap::SigIgn {
        let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        // SAFETY: this worker is a process of its own and waits for no child in this mode.
        unsafe { sigaction(Signal::SIGCHLD, &ignore) }.map_err(|errno| Missing::Process.because(errno))?;
    }
    let mut late = 0u64;
    while !w.stopped() {
        let child = match fork_and_exit(|| {}) {
            Ok(child) => child,
            Err(Errno::EAGAIN | Errno::EINTR) => {
                w.sleep(Duration::from_millis(1));
                continue;
            }
            Err(errno) => return Err(Missing::Process.because(errno)),
        };
        let start = now_ns();
        match fs::write(entrance, child.to_string()) {
            Ok(()) => w.meter.did(0, 1),
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => late += 1,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(refused(&error)),
        }
        w.meter.record(crate::work::board::Series::Iteration, now_ns().saturating_sub(start));
        if reap == Reap::Waitpid {
            while matches!(w.meter.blocking(|| waitpid(child, None)), Err(Errno::EINTR)) {
                if w.stopped() {
                    // One that does not come to run is not waited for without bound.
                    let _ = kill(child, Signal::SIGKILL);
                }
            }
        }
        w.meter.did(1, 0);
        w.meter.metric(0, late as f64);
        w.meter.checkpoint();
    }
    Ok(())
}

/// Directory of the calling process's cgroup.
pub(in crate::work) fn own_cgroup() -> Option<PathBuf> {
    cgroup_of("self")
}

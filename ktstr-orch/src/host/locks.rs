//! Locks on last-level caches, so that runs on one host know of each other.
//!
//! One file per LLC, `ktstr-llc-N.lock` in `KTSTR_LOCK_DIR` (else the directory for temporary files), held
//! with flock(2): exclusively by a machine that has the LLC for itself, shared by those with a budget of
//! CPUs there. `ktstr-cpu-N.lock` says which CPUs of an LLC such a budget has, so that the next one takes
//! others first. The kernel drops a lock when its holder ends, however it ends. Who holds an LLC is read
//! from `/proc/locks` and never needed to decide.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fmt, fs, io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;

use super::topology::CpuSet;

/// Names the directory of the lock files.
pub const DIR: &str = "KTSTR_LOCK_DIR";
/// `1` takes no locks.
pub const BYPASS: &str = "KTSTR_BYPASS_LLC_LOCKS";

/// For itself, or with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Claim {
    /// Nobody else.
    Exclusive,
    /// Others with budgets, too.
    Shared,
}

/// Someone who holds an LLC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Number of the LLC.
    pub llc: usize,
    /// How.
    pub claim: Claim,
    /// Process id.
    pub pid: u32,
    /// Its command line; empty where it may not be read.
    pub command: String,
}

/// A lock file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("lock {path} (another directory for locks is given with {DIR})")]
pub struct LockError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// LLCs that are held until this is dropped.
#[derive(Debug)]
pub struct Held {
    files: Vec<Flock<fs::File>>,
}

impl Held {
    /// Both.
    pub fn and(mut self, other: Self) -> Self {
        self.files.extend(other.files);
        self
    }
}

/// Where the lock files are.
#[derive(Debug, Clone)]
pub struct LockDir(PathBuf);

impl LockDir {
    /// As the environment says.
    pub fn of_environment() -> Self {
        Self(env::var_os(DIR).map_or_else(env::temp_dir, PathBuf::from))
    }

    /// This directory.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Takes them all, or says which of them is held by others.
    pub fn take(&self, llcs: &BTreeSet<usize>, claim: Claim) -> Result<Result<Held, usize>, LockError> {
        let how = match claim {
            Claim::Exclusive => FlockArg::LockExclusiveNonblock,
            Claim::Shared => FlockArg::LockSharedNonblock,
        };
        self.lock("llc", llcs.iter().copied(), how)
    }

    /// Takes these CPUs of LLCs that are shared, or says which of them is in another's budget.
    pub fn take_cpus(&self, cpus: &CpuSet) -> Result<Result<Held, u32>, LockError> {
        self.lock("cpu", cpus.iter().copied(), FlockArg::LockExclusiveNonblock)
    }

    /// Locks one file for each, or says for which that is not possible now.
    fn lock<N: Copy + fmt::Display>(
        &self,
        kind: &str,
        numbers: impl Iterator<Item = N>,
        how: FlockArg,
    ) -> Result<Result<Held, N>, LockError> {
        let mut files = Vec::new();
        for number in numbers {
            let path = self.0.join(format!("ktstr-{kind}-{number}.lock"));
            let file = open(&path).map_err(|source| LockError { path: path.clone(), source })?;
            match Flock::lock(file, how) {
                Ok(locked) => files.push(locked),
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(Err(number)),
                Err((_, errno)) => return Err(LockError { path, source: errno.into() }),
            }
        }
        Ok(Ok(Held { files }))
    }

    /// Who holds which LLC, as far as this process may see.
    pub fn holders(&self) -> Vec<Holder> {
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        let mut files = BTreeMap::new();
        for item in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let name = item.file_name();
            let number =
                name.to_str().and_then(|name| name.strip_prefix("ktstr-llc-")?.strip_suffix(".lock"));
            if let (Some(Ok(llc)), Ok(metadata)) = (number.map(str::parse::<usize>), item.metadata()) {
                files.insert(metadata.ino(), (llc, item.path()));
            }
        }
        let mut holders: Vec<Holder> = parse(&locks)
            .filter_map(|(claim, pid, inode)| {
                let (llc, path) = files.get(&inode)?;
                // Numbers of inodes are unique within one file system only.
                has_open(pid, path).then(|| Holder { llc: *llc, claim, pid, command: command(pid) })
            })
            .collect();
        holders.sort_by_key(|holder| (holder.llc, holder.pid));
        holders
    }

    /// How many hold each LLC.
    pub fn shared(&self) -> BTreeMap<usize, usize> {
        let mut count = BTreeMap::new();
        for holder in self.holders() {
            *count.entry(holder.llc).or_insert(0) += 1;
        }
        count
    }
}

/// A file that whoever uses this host may lock.
fn open(path: &Path) -> io::Result<fs::File> {
    match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut options = fs::File::options();
            options.write(true).create(true).truncate(false).mode(0o644).open(path)
        }
        other => other,
    }
}

/// `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`, see proc_locks(5); `->` marks those who wait.
fn parse(locks: &str) -> impl Iterator<Item = (Claim, u32, u64)> {
    locks.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, "FLOCK", _, how, pid, place, ..] = words[..] else { return None };
        let claim = if how == "WRITE" { Claim::Exclusive } else { Claim::Shared };
        Some((claim, pid.parse().ok()?, place.rsplit(':').next()?.parse().ok()?))
    })
}

fn has_open(pid: u32, path: &Path) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return true };
    descriptors.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == path))
}

fn command(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).escape_debug().to_string()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_wants_an_llc_for_itself_keeps_others_away() {
        let dir = tempfile::tempdir().unwrap();
        let locks = LockDir::at(&dir.path().canonicalize().unwrap());
        let (first, both) = (BTreeSet::from([0]), BTreeSet::from([0, 1]));
        let shared = locks.take(&first, Claim::Shared).unwrap().unwrap();
        let other = locks.take(&both, Claim::Shared).unwrap().unwrap();
        assert_eq!(locks.take(&both, Claim::Exclusive).unwrap().unwrap_err(), 0);
        drop(shared);
        assert_eq!(locks.take(&both, Claim::Exclusive).unwrap().unwrap_err(), 0);
        drop(other);
        let alone = locks.take(&first, Claim::Exclusive).unwrap().unwrap();
        assert_eq!(locks.take(&both, Claim::Shared).unwrap().unwrap_err(), 0);
        // The second was free and is so again: nothing is held by who did not get all.
        let second = locks.take(&BTreeSet::from([1]), Claim::Exclusive).unwrap().unwrap();
        drop((alone, second));
    }

    #[test]
    fn lines_of_the_kernel_are_read() {
        let text = "1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF\n1: -> FLOCK  ADVISORY  READ 9 08:01:5678 0 EOF\n\
                    2: POSIX  ADVISORY  READ 7 00:19:1 128 128\n3: FLOCK  ADVISORY  READ 8 fe:00:99 0 EOF\n";
        let read: Vec<_> = parse(text).collect();
        assert_eq!(read, [(Claim::Exclusive, 1234, 5678), (Claim::Shared, 8, 99)]);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let locks = LockDir::at(Path::new("/proc/nowhere"));
        let error = locks.take(&BTreeSet::from([3]), Claim::Shared).unwrap_err();
        assert!(error.to_string().contains("/proc/nowhere/ktstr-llc-3.lock"), "{error}");
        assert_eq!(locks.holders(), []);
    }
}

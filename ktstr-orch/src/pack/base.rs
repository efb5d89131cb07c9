//! The part of the initramfs that is the same for every job: written once, kept by content.
//!
//! Its name is made of what is in it, host files by path, length, time of change and inode. It lies
//! uncompressed in a file that is only ever read, so machines that run at the same time share it in the
//! page cache. It appears under its name when it is complete and on the disk.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::initramfs::{Initramfs, PackError};

/// What nobody has used for so long goes when another is made.
const STALE: Duration = Duration::from_secs(14 * 24 * 3600);
/// What is kept when another is made, bytes; beyond it goes what was used longest ago.
const LIMIT: u64 = 1 << 30;

/// Why there is no base archive.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// It cannot be packed.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// It cannot be kept.
    #[error("keep the base initramfs at {path}")]
    Keep {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// A base archive.
#[derive(Debug)]
pub struct Base {
    /// Its bytes, to be read only.
    pub file: File,
    /// How many.
    pub size: u64,
    /// What it is named by.
    pub digest: String,
}

/// The archive of `content` below `dir`, written unless it is there.
pub fn base(content: &Initramfs, dir: &Path) -> Result<Base, BaseError> {
    let digest = content.digest();
    let path = dir.join(format!("{digest}.cpio"));
    let keeping = |source| BaseError::Keep { path: path.clone(), source };
    let file = match File::open(&path) {
        Ok(file) => {
            // So that it is not stale.
            let _ = file.set_modified(SystemTime::now());
            file
        }
        Err(_) => {
            fs::create_dir_all(dir).map_err(keeping)?;
            remove_unused(dir, LIMIT);
            let mut unfinished = tempfile::Builder::new().suffix(".tmp").tempfile_in(dir).map_err(keeping)?;
            content.write(&mut unfinished)?;
            unfinished.as_file().sync_all().map_err(keeping)?;
            unfinished.persist(&path).map_err(|error| keeping(error.error))?;
            File::open(&path).map_err(keeping)?
        }
    };
    let size = file.metadata().map_err(keeping)?.len();
    Ok(Base { file, size, digest })
}

/// What cannot be removed stays. Whoever has a removed one open reads on.
fn remove_unused(dir: &Path, limit: u64) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut entries: Vec<_> = entries
        .filter_map(|entry| {
            let meta = entry.metadata().ok()?;
            Some((meta.modified().ok()?, meta.len(), entry.path()))
        })
        .collect();
    // Latest first.
    entries.sort_by(|a, b| b.cmp(a));
    let mut kept = 0;
    for (used, len, path) in entries {
        let stale = SystemTime::now().duration_since(used).is_ok_and(|age| age > STALE);
        // One that is being written by somebody else is the latest.
        if stale || kept + len > limit {
            let _ = fs::remove_file(path);
        } else {
            kept += len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let ages = [("old", 30 * 24 * 3600), ("third", 300), ("second", 200), ("first", 100)];
        for (name, age) in ages {
            let path = dir.path().join(name);
            fs::write(&path, [0; 100]).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        let left = |limit| {
            remove_unused(dir.path(), limit);
            let names = ages.map(|(name, _)| name);
            names.into_iter().filter(|name| dir.path().join(name).exists()).collect::<Vec<_>>()
        };
        assert_eq!(left(1000), ["third", "second", "first"]);
        assert_eq!(left(250), ["second", "first"]);
    }
}

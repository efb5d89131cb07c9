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
            remove_stale(dir);
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

/// What cannot be removed stays.
fn remove_stale(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let used = entry.metadata().and_then(|meta| meta.modified());
        let age = used.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        if age.is_some_and(|age| age > STALE) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

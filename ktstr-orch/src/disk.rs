//! The image of a machine's disk: a file of its own for each machine, without a name.
//!
//! A file system is made once per kind, size and program by the host's `mkfs`, and kept in the cache
//! under a name that says all three; a machine gets a copy that shares its blocks with the template
//! where the host's file system can, else one of the blocks that hold something. A template appears
//! under its name when it is complete, so a half-made one is never used.

use std::{
    env, fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use ktstr_proto::device::{DiskConfig, Filesystem};

use crate::pack;

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The program that makes the file system is not there.
    #[error("a {kind} disk needs `{program}` on the host (Debian: apt install {package})")]
    NoProgram {
        /// The file system.
        kind: &'static str,
        /// The program.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
    },
    /// It failed.
    #[error("`{program}` could not make a file system of {capacity_mib} MiB: {said}")]
    Program {
        /// The program.
        program: &'static str,
        /// The size, MiB.
        capacity_mib: u32,
        /// What it complained about.
        said: String,
    },
    /// A file cannot be made, read or written.
    #[error("{action} {path}")]
    File {
        /// What was done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl DiskError {
    /// Whether something is missing that can be installed.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::NoProgram { .. })
    }
}

fn file<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DiskError + 'a {
    move |source| DiskError::File { action, path: path.into(), source }
}

/// A new image for one machine; `cache` is where templates are kept.
pub fn image(config: &DiskConfig, cache: &Path) -> Result<OwnedFd, DiskError> {
    fs::create_dir_all(cache).map_err(file("create", cache))?;
    let image = tempfile::tempfile_in(cache).map_err(file("create a disk image in", cache))?;
    if let Some(maker) = Maker::of(config.filesystem) {
        let template = template(config, &maker, cache)?;
        let from = fs::File::open(&template).map_err(file("open", &template))?;
        copy(&from, &image).map_err(file("copy", &template))?;
    }
    image.set_len(config.bytes()).map_err(file("size a disk image in", cache))?;
    Ok(image.into())
}

/// The program that makes a file system.
struct Maker {
    kind: &'static str,
    program: &'static str,
    package: &'static str,
    args: &'static [&'static str],
}

impl Maker {
    fn of(filesystem: Filesystem) -> Option<Maker> {
        match filesystem {
            Filesystem::Raw => None,
            Filesystem::Btrfs => Some(Maker {
                kind: "btrfs",
                program: "mkfs.btrfs",
                package: "btrfs-progs",
                args: &["-q", "-f"],
            }),
            // Complete at once: what is left for the kernel to do later would disturb a measurement.
            Filesystem::Ext4 => Some(Maker {
                kind: "ext4",
                program: "mkfs.ext4",
                package: "e2fsprogs",
                args: &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
            }),
        }
    }
}

/// The path of a complete template, which is made if there is none.
fn template(config: &DiskConfig, maker: &Maker, cache: &Path) -> Result<PathBuf, DiskError> {
    let program = find(maker)?;
    // Another version of the program may make another file system.
    let made =
        fs::metadata(&program).and_then(|found| found.modified()).map_err(file("look at", &program))?;
    let stamp = made.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let path = cache.join(format!("{}-{}M-{stamp:x}.img", maker.kind, config.capacity_mib));
    // One of another size was cut short when the host went down.
    if fs::metadata(&path).is_ok_and(|found| found.is_file() && found.len() == config.bytes()) {
        return Ok(path);
    }
    let unfinished =
        tempfile::NamedTempFile::new_in(cache).map_err(file("create a disk template in", cache))?;
    unfinished.as_file().set_len(config.bytes()).map_err(file("size", unfinished.path()))?;
    let output = Command::new(&program)
        .args(maker.args)
        .arg(unfinished.path())
        .output()
        .map_err(file("run", &program))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        let said = if said.is_empty() { output.status.to_string() } else { said };
        return Err(DiskError::Program { program: maker.program, capacity_mib: config.capacity_mib, said });
    }
    unfinished.as_file().sync_all().map_err(file("keep", &path))?;
    // Whoever was faster has made the same.
    unfinished.persist(&path).map_err(|e| file("keep", &path)(e.error))?;
    Ok(path)
}

/// Administrators' programs are often not in a user's `PATH`.
fn find(maker: &Maker) -> Result<PathBuf, DiskError> {
    let mut places = env::var_os("PATH").unwrap_or_default();
    places.push(":/usr/sbin:/sbin");
    let Maker { kind, program, package, .. } = *maker;
    pack::in_path(program, &places).ok_or(DiskError::NoProgram { kind, program, package })
}

/// The same content in another file: shared where the file system can, else what is not zero.
fn copy(from: &fs::File, to: &fs::File) -> io::Result<()> {
    // linux/fs.h: FICLONE = _IOW(0x94, 9, int).
    const FICLONE: libc::Ioctl = 0x4004_9409;
    // SAFETY: the request takes a descriptor's number.
    if unsafe { libc::ioctl(to.as_raw_fd(), FICLONE, from.as_raw_fd()) } == 0 {
        return Ok(());
    }
    let len = from.metadata()?.len();
    to.set_len(len)?;
    let mut at = 0;
    let mut piece = vec![0; PIECE];
    while let Some((start, end)) = next_data(from, at, len)? {
        at = start;
        while at < end {
            let size = (end - at).min(PIECE as u64) as usize;
            from.read_exact_at(&mut piece[..size], at)?;
            if piece[..size].iter().any(|byte| *byte != 0) {
                to.write_all_at(&piece[..size], at)?;
            }
            at += size as u64;
        }
    }
    Ok(())
}

/// The next range at or after `at` that is no hole.
fn next_data(from: &fs::File, at: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |at: u64, whence| {
        // SAFETY: numbers only.
        let found = unsafe { libc::lseek(from.as_raw_fd(), at as libc::off_t, whence) };
        if found < 0 { Err(io::Error::last_os_error()) } else { Ok(found as u64) }
    };
    if at >= len {
        return Ok(None);
    }
    match seek(at, libc::SEEK_DATA) {
        Ok(start) => Ok(Some((start, seek(start, libc::SEEK_HOLE)?.min(len)))),
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_has_the_content_and_not_the_holes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(64 << 20).unwrap();
        for at in [0, (5 << 20) + 123, (64 << 20) - 4] {
            from.write_all_at(b"here", at).unwrap();
        }
        copy(&from, &to).unwrap();
        assert_eq!(to.metadata().unwrap().len(), 64 << 20);
        for at in [0, (5 << 20) + 123, (64 << 20) - 4] {
            let mut word = [0; 4];
            to.read_exact_at(&mut word, at).unwrap();
            assert_eq!(&word, b"here", "{at}");
        }
        assert!(to.metadata().unwrap().blocks() * 512 < 16 << 20, "holes stay holes");
    }

    #[test]
    fn each_machine_has_an_image_of_its_own() {
        let cache = tempfile::tempdir().unwrap();
        let config = DiskConfig::new().capacity_mib(1);
        let images = [(); 2].map(|()| fs::File::from(image(&config, cache.path()).unwrap()));
        images[0].write_all_at(b"mine", 0).unwrap();
        let mut word = [1; 4];
        images[1].read_exact_at(&mut word, 0).unwrap();
        assert_eq!(word, [0; 4]);
        assert_eq!(images[1].metadata().unwrap().len(), 1 << 20);
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0, "images have no names");
    }

    #[test]
    fn a_template_is_made_once_and_not_changed_by_its_copies() {
        let cache = tempfile::tempdir().unwrap();
        let config = DiskConfig::new().capacity_mib(16).filesystem(Filesystem::Ext4);
        let first = match image(&config, cache.path()) {
            Ok(first) => fs::File::from(first),
            Err(missing) if missing.is_missing() => return eprintln!("NOT RUN: {missing}"),
            Err(error) => panic!("{error}"),
        };
        let magic = |file: &fs::File| {
            let mut word = [0; 2];
            file.read_exact_at(&mut word, 1024 + 56).unwrap();
            u16::from_le_bytes(word)
        };
        assert_eq!(magic(&first), 0xef53, "the superblock of ext4");
        first.write_all_at(&[0; 4096], 0).unwrap();
        let second = fs::File::from(image(&config, cache.path()).unwrap());
        assert_eq!(magic(&second), 0xef53);
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1, "one template");
    }
}

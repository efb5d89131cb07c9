//! Unpacks an archive that comes in pieces: the "newc" format of an initramfs
//! (Documentation/driver-api/early-userspace/buffer-format.rst), as ktstr-orch writes it.
//!
//! Directories, files and links; anything else, and a name that leads out of the root, is refused. An
//! archive is whole when its end marker has been seen.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

const HEADER: usize = 110;
const TRAILER: &str = "TRAILER!!!";
/// Longest name or link target that Linux knows, with its end.
const MAX_NAME: usize = 4096;

/// Longest entry that is kept instead of written.
const MAX_KEPT: usize = 4096;

/// Why an archive cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// No header where one must be.
    #[error("no entry at byte {at} of the archive")]
    Header {
        /// Position in the archive.
        at: u64,
    },
    /// A name that leads elsewhere.
    #[error("`{name}` in the archive is no name below the root")]
    Name {
        /// The name.
        name: String,
    },
    /// A kind of entry that never belongs to a job.
    #[error("`{name}` in the archive has mode {mode:o}: neither directory, file nor link")]
    Kind {
        /// The name.
        name: String,
        /// Its mode.
        mode: u32,
    },
    /// The file system refuses.
    #[error("cannot unpack {path}, almost always because the guest has too little memory")]
    Write {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It ended too early.
    #[error("the archive ended after {bytes} bytes, before its end marker")]
    Cut {
        /// How much came.
        bytes: u64,
    },
}

/// What the bytes that come next are.
#[derive(Debug)]
enum Next {
    /// A header with its name.
    Entry,
    /// A link's target of so many bytes.
    Target(PathBuf, usize),
    /// So many bytes of a file.
    Content(PathBuf, File, u64),
    /// So many bytes of the entry that is kept.
    Kept(u64),
    /// Nothing that counts.
    End,
}

/// An archive under way.
#[derive(Debug)]
pub struct Unpacker {
    root: PathBuf,
    next: Next,
    /// What has come of a header or target that is not complete yet.
    held: Vec<u8>,
    /// Bytes up to the next multiple of four.
    padding: usize,
    consumed: u64,
    /// An entry that becomes no file, and what it holds.
    keeps: PathBuf,
    kept: Option<Vec<u8>>,
}

impl Unpacker {
    /// Unpacks below `root`; the file `keeps` is handed out at the end instead of written.
    pub fn new(root: &Path, keeps: &Path) -> Self {
        Self {
            root: root.to_owned(),
            next: Next::Entry,
            held: Vec::new(),
            padding: 0,
            consumed: 0,
            keeps: keeps.to_owned(),
            kept: None,
        }
    }

    /// Takes the next bytes.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), UnpackError> {
        while !bytes.is_empty() {
            let skipped = self.padding.min(bytes.len());
            self.padding -= skipped;
            self.consumed += skipped as u64;
            bytes = &bytes[skipped..];
            bytes = match &mut self.next {
                Next::End => return Ok(()),
                Next::Content(path, file, left) => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    let written = file.write_all(&bytes[..n]);
                    written.map_err(|source| UnpackError::Write { path: path.clone(), source })?;
                    *left -= n as u64;
                    self.consumed += n as u64;
                    if *left == 0 {
                        self.next = Next::Entry;
                        self.pad();
                    }
                    &bytes[n..]
                }
                Next::Kept(left) => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    self.kept.get_or_insert_default().extend_from_slice(&bytes[..n]);
                    *left -= n as u64;
                    self.consumed += n as u64;
                    if *left == 0 {
                        self.next = Next::Entry;
                        self.pad();
                    }
                    &bytes[n..]
                }
                Next::Entry | Next::Target(..) => self.hold(bytes)?,
            };
        }
        Ok(())
    }

    /// All has come. Returns what the kept entry held, if there was one.
    pub fn finish(self) -> Result<Option<Vec<u8>>, UnpackError> {
        match self.next {
            Next::End => Ok(self.kept),
            _ => Err(UnpackError::Cut { bytes: self.consumed + self.held.len() as u64 }),
        }
    }

    /// Everything but the content of files has a known, small length.
    fn hold<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], UnpackError> {
        let wanted = match &self.next {
            Next::Target(_, length) => *length,
            _ if self.held.len() < HEADER => HEADER,
            _ => HEADER + self.field(11)? as usize,
        };
        let (part, rest) = bytes.split_at(bytes.len().min(wanted - self.held.len()));
        self.held.extend_from_slice(part);
        if self.held.len() < wanted || (wanted == HEADER && matches!(self.next, Next::Entry)) {
            return Ok(rest);
        }
        let held = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.next, Next::Entry) {
            Next::Target(path, _) => {
                let target = String::from_utf8_lossy(&held).into_owned();
                let made = match symlink(&target, &path) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                    other => other,
                };
                made.map_err(|source| UnpackError::Write { path, source })?;
            }
            _ => self.begin(&held)?,
        }
        self.consumed += held.len() as u64;
        self.pad();
        Ok(rest)
    }

    fn begin(&mut self, held: &[u8]) -> Result<(), UnpackError> {
        let field = |index| hex(held, index).ok_or(UnpackError::Header { at: self.consumed });
        let (mode, size) = (field(1)?, field(6)?);
        let name = String::from_utf8_lossy(&held[HEADER..held.len().saturating_sub(1)]).into_owned();
        if name == TRAILER {
            self.next = Next::End;
            return Ok(());
        }
        let plain = !name.is_empty() && name.split('/').all(|part| !["", ".", ".."].contains(&part));
        if !plain {
            return Err(UnpackError::Name { name });
        }
        let path = self.root.join(&name);
        let failed = |source| UnpackError::Write { path: path.clone(), source };
        match mode & 0o170_000 {
            0o040_000 if path.is_dir() => {}
            0o040_000 => fs::create_dir(&path).map_err(failed)?,
            0o100_000 if path == self.keeps && size as usize <= MAX_KEPT => {
                self.kept = Some(Vec::with_capacity(size as usize));
                if size > 0 {
                    self.next = Next::Kept(size.into());
                }
            }
            0o100_000 => {
                let file = File::create(&path).map_err(failed)?;
                file.set_permissions(Permissions::from_mode(mode & 0o777)).map_err(failed)?;
                if size > 0 {
                    self.next = Next::Content(path, file, size.into());
                }
            }
            0o120_000 if size as usize <= MAX_NAME => self.next = Next::Target(path, size as usize),
            _ => return Err(UnpackError::Kind { name, mode }),
        }
        Ok(())
    }

    /// Length of the held entry's name, once its header is there.
    fn field(&self, index: usize) -> Result<u32, UnpackError> {
        hex(&self.held, index)
            .filter(|length| self.held.starts_with(b"070701") && (1..=MAX_NAME as u32).contains(length))
            .ok_or(UnpackError::Header { at: self.consumed })
    }

    fn pad(&mut self) {
        self.padding = (self.consumed.next_multiple_of(4) - self.consumed) as usize;
    }
}

/// The eight hexadecimal digits of a header's field.
fn hex(header: &[u8], index: usize) -> Option<u32> {
    let digits = header.get(6 + index * 8..14 + index * 8)?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(out: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
        let mut fields = [0u32; 13];
        (fields[1], fields[6], fields[11]) = (mode, content.len() as u32, name.len() as u32 + 1);
        out.extend_from_slice(b"070701");
        fields.iter().for_each(|field| out.extend_from_slice(format!("{field:08x}").as_bytes()));
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(4), 0);
    }

    fn archive() -> Vec<u8> {
        let mut out = Vec::new();
        entry(&mut out, "ktstr", 0o040_755, b"");
        entry(&mut out, "ktstr/job", 0o100_444, b"what to do");
        entry(&mut out, "ktstr/empty", 0o100_755, b"");
        entry(&mut out, "link", 0o120_777, b"ktstr/job");
        entry(&mut out, TRAILER, 0, b"");
        out
    }

    #[test]
    fn the_tree_appears_however_the_bytes_are_cut() {
        let archive = archive();
        for step in [1, 2, 3, 7, 64, 109, 110, 111, archive.len()] {
            let dir = tempfile::tempdir().unwrap();
            // It may be there already.
            fs::create_dir(dir.path().join("ktstr")).unwrap();
            let mut unpacker = Unpacker::new(dir.path(), Path::new(""));
            archive.chunks(step).for_each(|piece| unpacker.push(piece).unwrap());
            unpacker.finish().unwrap();
            assert_eq!(fs::read(dir.path().join("link")).unwrap(), b"what to do", "step {step}");
            let mode = fs::metadata(dir.path().join("ktstr/empty")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o755);
        }
    }

    #[test]
    fn one_entry_may_be_kept_instead_of_written() {
        let archive = archive();
        for step in [1, 7, 111, archive.len()] {
            let dir = tempfile::tempdir().unwrap();
            let place = dir.path().join("ktstr/job");
            let mut unpacker = Unpacker::new(dir.path(), &place);
            archive.chunks(step).for_each(|piece| unpacker.push(piece).unwrap());
            assert_eq!(unpacker.finish().unwrap().as_deref(), Some(&b"what to do"[..]), "step {step}");
            assert!(!place.exists() && dir.path().join("ktstr/empty").exists());
        }
    }

    #[test]
    fn a_cut_archive_is_never_whole() {
        let archive = archive();
        let end = archive.len() - 124;
        for cut in [0, 1, 50, 130, 200, end] {
            let dir = tempfile::tempdir().unwrap();
            let mut unpacker = Unpacker::new(dir.path(), Path::new(""));
            unpacker.push(&archive[..cut]).unwrap();
            let Err(UnpackError::Cut { .. }) = unpacker.finish() else { panic!("cut at {cut}") };
        }
    }

    #[test]
    fn what_does_not_belong_there_is_refused() {
        let unpack =
            |archive: &[u8]| Unpacker::new(tempfile::tempdir().unwrap().path(), Path::new("")).push(archive);
        for name in ["../x", "/etc", "a/../../b", "a//b"] {
            let mut out = Vec::new();
            entry(&mut out, name, 0o100_644, b"");
            assert!(matches!(unpack(&out), Err(UnpackError::Name { .. })), "{name}");
        }
        let mut device = Vec::new();
        entry(&mut device, "null", 0o020_666, b"");
        assert!(matches!(unpack(&device), Err(UnpackError::Kind { .. })));
        assert!(matches!(unpack(&[b'x'; 200]), Err(UnpackError::Header { at: 0 })));
    }
}

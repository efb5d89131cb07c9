//! Reads Debian package files: an `ar` archive with a compressed tar inside.
//!
//! Streams the data member once and hands each regular file to a callback; it
//! unpacks nothing to disk, runs no maintainer script, follows no link and
//! checks no signature (the package client did, or the user chose the file).

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Largest single file that is read out of a package.
const LARGEST_FILE: u64 = 1 << 30;

/// Why a package file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// The file cannot be opened.
    #[error("cannot open package {path}")]
    Open {
        /// The package.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is no package or is damaged.
    #[error("{path} is not a readable Debian package: {member}")]
    Damaged {
        /// The package.
        path: PathBuf,
        /// Which part.
        member: String,
        /// What the reader said.
        #[source]
        source: io::Error,
    },
    /// There is no data member.
    #[error("{path} is not a Debian package: it has no data.tar member")]
    NoData {
        /// The package.
        path: PathBuf,
    },
    /// The data member's compression is unknown.
    #[error("{path}: member {member} has a compression that is not supported (gz, xz, zst are)")]
    Compression {
        /// The package.
        path: PathBuf,
        /// Its name.
        member: String,
    },
}

/// Calls `visit(path, size, reader)` for every regular file in the package;
/// the path has no leading `./`.
pub(super) fn for_each_file(
    package: &Path,
    mut visit: impl FnMut(&str, &mut dyn Read) -> io::Result<()>,
) -> Result<(), DebError> {
    let file = File::open(package).map_err(|source| DebError::Open { path: package.to_owned(), source })?;
    let damaged = |member: &str, source| DebError::Damaged {
        path: package.to_owned(),
        member: member.to_owned(),
        source,
    };
    let mut archive = ar::Archive::new(io::BufReader::new(file));
    while let Some(member) = archive.next_entry() {
        let member = member.map_err(|e| damaged("ar archive", e))?;
        let name = String::from_utf8_lossy(member.header().identifier()).trim_end_matches('/').to_owned();
        let Some(suffix) = name.strip_prefix("data.tar") else { continue };
        let data: Box<dyn Read> = match suffix {
            "" => Box::new(member),
            ".gz" => Box::new(flate2::read::GzDecoder::new(member)),
            ".xz" => Box::new(liblzma::read::XzDecoder::new(member)),
            ".zst" => Box::new(zstd::stream::read::Decoder::new(member).map_err(|e| damaged(&name, e))?),
            _ => return Err(DebError::Compression { path: package.to_owned(), member: name }),
        };
        return visit_tar(data, &mut visit).map_err(|e| damaged(&name, e));
    }
    Err(DebError::NoData { path: package.to_owned() })
}

fn visit_tar(
    data: impl Read,
    visit: &mut impl FnMut(&str, &mut dyn Read) -> io::Result<()>,
) -> io::Result<()> {
    let mut archive = tar::Archive::new(data);
    for entry in archive.entries()? {
        let entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path()?.to_string_lossy().into_owned();
        visit(path.trim_start_matches("./"), &mut entry.take(LARGEST_FILE))?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Writes a package holding `files`, its data member compressed by `suffix`.
    pub(in crate::store) fn write_deb(path: &Path, suffix: &str, files: &[(&str, &[u8])]) {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, data) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("./{name}"), *data).unwrap();
        }
        let plain = tar.into_inner().unwrap();
        let data = match suffix {
            ".zst" => zstd::encode_all(plain.as_slice(), 1).unwrap(),
            _ => plain,
        };
        let mut deb = ar::Builder::new(File::create(path).unwrap());
        for (name, bytes) in [("debian-binary", b"2.0\n".as_slice()), (&format!("data.tar{suffix}"), &data)] {
            deb.append(&ar::Header::new(name.as_bytes().to_vec(), bytes.len() as u64), bytes).unwrap();
        }
    }

    #[test]
    fn files_come_out() {
        let dir = tempfile::tempdir().unwrap();
        for suffix in ["", ".zst"] {
            let path = dir.path().join("a.deb");
            write_deb(&path, suffix, &[("boot/config-1", b"one"), ("usr/x", b"two")]);
            let mut seen = Vec::new();
            for_each_file(&path, |name, reader| {
                let mut text = String::new();
                reader.read_to_string(&mut text)?;
                seen.push((name.to_owned(), text));
                Ok(())
            })
            .unwrap();
            assert_eq!(seen, [("boot/config-1".into(), "one".into()), ("usr/x".into(), "two".to_string())]);
        }
    }

    #[test]
    fn what_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.deb");
        let read = |path: &Path| for_each_file(path, |_, _| Ok(())).unwrap_err();
        assert!(matches!(read(&path), DebError::Open { .. }));
        std::fs::write(&path, "no package at all").unwrap();
        assert!(matches!(read(&path), DebError::Damaged { .. }));
        write_deb(&path, ".bz2", &[("x", b"1")]);
        assert!(matches!(read(&path), DebError::Compression { .. }));
        write_deb(&path, ".zst", &[("x", &[7; 4096])]);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 20]).unwrap();
        assert!(matches!(read(&path), DebError::Damaged { .. }));
    }
}

//! File contents on their way into the lab, through a raw disk image.
//!
//! The host writes a payload into the image file, the agent reads it from the
//! block device: faster than a serial port, and nothing is parsed in between.
//! Layout: magic, token, manifest length, manifest (JSON), contents one after
//! the other, token again. The token comes with the `Push` request, so a stale
//! or short read is noticed.

use super::closure::Item;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const MAGIC: u64 = 0x3143_5845_424c_544b;
/// Size of the (sparse) image: the most one push can carry.
pub const IMAGE_SIZE: u64 = 8 << 30;
const MAX_MANIFEST: u64 = 64 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    path: PathBuf,
    kind: EntryKind,
}

#[derive(Debug, Serialize, Deserialize)]
enum EntryKind {
    File { mode: u32, size: u64 },
    Symlink { target: PathBuf },
    Directory { mode: u32 },
}

/// Writes a payload at the start of `image`; returns its length.
pub fn pack(image: &mut File, token: u64, items: &[(&PathBuf, &Item)]) -> Result<u64> {
    let manifest: Vec<Entry> = items
        .iter()
        .map(|(path, item)| Entry {
            path: (*path).clone(),
            kind: match item {
                Item::File { mode, size, .. } => EntryKind::File { mode: *mode, size: *size },
                Item::Symlink { target } => EntryKind::Symlink { target: target.clone() },
                Item::Directory { mode } => EntryKind::Directory { mode: *mode },
            },
        })
        .collect();
    let manifest = serde_json::to_vec(&manifest).context("encoding the push manifest")?;
    let contents: u64 =
        items.iter().map(|(_, item)| if let Item::File { size, .. } = item { *size } else { 0 }).sum();
    let total = 24 + manifest.len() as u64 + contents + 8;
    if total > IMAGE_SIZE {
        bail!("{total} bytes to bring into the lab, more than the {IMAGE_SIZE} one push can carry");
    }
    image.seek(SeekFrom::Start(0)).context("rewinding the exchange image")?;
    for word in [MAGIC, token, manifest.len() as u64] {
        image.write_all(&word.to_le_bytes()).context("writing the exchange image")?;
    }
    image.write_all(&manifest).context("writing the exchange image")?;
    for (path, item) in items {
        if let Item::File { source, size, .. } = item {
            let file = File::open(source).with_context(|| format!("opening {}", source.display()))?;
            let copied = io::copy(&mut file.take(*size), image)
                .with_context(|| format!("copying {}", source.display()))?;
            if copied != *size {
                bail!(
                    "{} shrank while it was being brought into the lab as {}",
                    source.display(),
                    path.display()
                );
            }
        }
    }
    image.write_all(&token.to_le_bytes()).context("writing the exchange image")?;
    Ok(total)
}

/// Places a payload below `root`; returns how many items it had.
pub fn unpack(device: &mut (impl Read + Seek), token: u64, root: &Path) -> Result<usize> {
    device.seek(SeekFrom::Start(0)).context("rewinding the exchange device")?;
    let (magic, found, len) = (read_word(device)?, read_word(device)?, read_word(device)?);
    if magic != MAGIC || found != token || len > MAX_MANIFEST {
        bail!(
            "the exchange device does not hold the announced payload (magic {magic:#x}, token {found:#x}, manifest {len})"
        );
    }
    let mut manifest = vec![0; len as usize];
    device.read_exact(&mut manifest).context("reading the push manifest")?;
    let entries: Vec<Entry> = serde_json::from_slice(&manifest).context("decoding the push manifest")?;
    for entry in &entries {
        let path = root.join(entry.path.strip_prefix("/").unwrap_or(&entry.path));
        place(device, &path, &entry.kind).with_context(|| format!("placing {}", path.display()))?;
    }
    if read_word(device)? != token {
        bail!("the payload on the exchange device is cut short");
    }
    Ok(entries.len())
}

fn place(device: &mut impl Read, path: &Path, kind: &EntryKind) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).context("creating its directory")?;
    }
    match kind {
        EntryKind::Directory { mode } => {
            fs::create_dir_all(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(*mode))?;
        }
        EntryKind::Symlink { target } => {
            let _ = fs::remove_file(path);
            symlink(target, path)?;
        }
        EntryKind::File { mode, size } => {
            // A new inode: the old one may be running.
            let mut name = path.file_name().context("no file name")?.to_owned();
            name.push(".lab-new");
            let temporary = path.with_file_name(name);
            let mut file = File::create(&temporary)?;
            let copied = io::copy(&mut device.take(*size), &mut file)
                .context("copying (is the lab's memory full?)")?;
            if copied != *size {
                bail!("{copied} of {size} bytes");
            }
            file.set_permissions(fs::Permissions::from_mode(*mode))?;
            fs::rename(&temporary, path)?;
        }
    }
    Ok(())
}

fn read_word(device: &mut impl Read) -> Result<u64> {
    let mut word = [0; 8];
    device.read_exact(&mut word).context("reading the exchange device")?;
    Ok(u64::from_le_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::closure::FileSet;

    #[test]
    fn a_tree_arrives_as_it_left() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("sub/empty")).unwrap();
        fs::write(from.join("sub/data"), vec![7; 100_000]).unwrap();
        symlink("data", from.join("sub/link")).unwrap();
        let mut set = FileSet::default();
        set.add(&from, Path::new("/dst")).unwrap();
        let items: Vec<_> = set.items().iter().collect();
        let mut image = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(dir.path().join("img"))
            .unwrap();
        pack(&mut image, 5, &items).unwrap();
        assert!(unpack(&mut image, 6, &to).is_err(), "another token is another payload");
        assert_eq!(unpack(&mut image, 5, &to).unwrap(), 5);
        assert_eq!(fs::read(to.join("dst/sub/link")).unwrap(), vec![7; 100_000]);
        assert!(to.join("dst/sub/empty").is_dir());
        assert!(fs::read_link(to.join("dst/sub/link")).is_ok());
    }

    #[test]
    fn a_payload_cut_short_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), b"0123456789").unwrap();
        let mut set = FileSet::default();
        set.add(&dir.path().join("f"), Path::new("/f")).unwrap();
        let items: Vec<_> = set.items().iter().collect();
        let mut image = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(dir.path().join("img"))
            .unwrap();
        let total = pack(&mut image, 5, &items).unwrap();
        image.set_len(total - 12).unwrap();
        assert!(unpack(&mut image, 5, &dir.path().join("to")).is_err());
    }
}

//! The lab's initramfs: this executable as `/init`, busybox, the modules.
//!
//! An uncompressed `newc` archive; everything else is brought in later through
//! the exchange image, so the initramfs changes only with this program.

use super::closure::{FileSet, Item};
use super::kernel::Module;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the initramfs keeps modules; names sort in load order.
pub const MODULES: &str = "/lab-modules";

/// Builds the archive.
pub fn build(agent: &Path, busybox: &Path, modules: &[Module]) -> Result<Vec<u8>> {
    let mut set = FileSet::default();
    set.add(agent, Path::new("/init"))?;
    set.add(busybox, Path::new("/bin/busybox"))?;
    let mut archive = Archive::default();
    archive.console();
    for (path, item) in set.items() {
        if let Item::File { source, .. } = item {
            let bytes = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
            archive.file(path, &bytes);
        }
    }
    for (index, module) in modules.iter().enumerate() {
        archive.file(&Path::new(MODULES).join(format!("{index:02}-{}.ko", module.name)), &module.bytes);
    }
    Ok(archive.finish())
}

/// A `newc` archive being written.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<PathBuf>,
    inode: u32,
}

impl Archive {
    /// Adds an executable file, and its directories when they are new.
    pub fn file(&mut self, path: &Path, bytes: &[u8]) {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let mut parents: Vec<_> = relative.ancestors().skip(1).filter(|dir| *dir != Path::new("")).collect();
        parents.reverse();
        for parent in parents {
            if self.directories.insert(parent.to_owned()) {
                self.entry(&parent.to_string_lossy(), 0o040_755, (0, 0), &[]);
            }
        }
        self.entry(&relative.to_string_lossy(), 0o100_755, (0, 0), bytes);
    }

    /// Adds `/dev/console`, which PID 1 gets as its standard streams.
    pub fn console(&mut self) {
        self.entry("dev", 0o040_755, (0, 0), &[]);
        self.entry("dev/console", 0o020_600, (5, 1), &[]);
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), bytes: &[u8]) {
        self.inode += 1;
        self.bytes.extend_from_slice(b"070701");
        let name_size = name.len() as u32 + 1;
        // inode mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        for field in
            [self.inode, mode, 0, 0, 1, 0, bytes.len() as u32, 0, 0, device.0, device.1, name_size, 0]
        {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_parents_come_first() {
        let mut archive = Archive::default();
        archive.file(Path::new("/a/b/c"), b"hello");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let positions: Vec<_> =
            ["a\0", "a/b\0", "a/b/c\0", "hello"].iter().map(|needle| text.find(needle).unwrap()).collect();
        assert!(positions.is_sorted(), "{positions:?}");
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(text.matches("070701").count(), 4);
    }
}

//! What has to lie in the lab: files by destination path, and for every
//! dynamic ELF file among them the libraries its loader would take here.
//!
//! Asks `ldd`, so only for files the caller is ready to run.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// One thing to place in the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// Contents and mode of a host file.
    File { source: PathBuf, mode: u32, size: u64 },
    /// A symbolic link.
    Symlink { target: PathBuf },
    /// An empty directory.
    Directory { mode: u32 },
}

/// Items by absolute destination path.
#[derive(Debug, Default)]
pub struct FileSet {
    items: BTreeMap<PathBuf, Item>,
}

impl FileSet {
    /// The items, parents before children.
    pub fn items(&self) -> &BTreeMap<PathBuf, Item> {
        &self.items
    }

    /// Adds a file, a link's target under the link's name, or a directory with
    /// all it holds; executables bring their libraries.
    pub fn add(&mut self, source: &Path, destination: &Path) -> Result<()> {
        let meta = fs::metadata(source)
            .with_context(|| format!("cannot bring {} into the lab", source.display()))?;
        if meta.is_dir() {
            self.items
                .insert(destination.to_owned(), Item::Directory { mode: meta.permissions().mode() & 0o7777 });
            for entry in fs::read_dir(source).with_context(|| format!("listing {}", source.display()))? {
                let entry = entry.with_context(|| format!("listing {}", source.display()))?;
                let destination = destination.join(entry.file_name());
                if entry
                    .file_type()
                    .with_context(|| format!("looking at {}", entry.path().display()))?
                    .is_symlink()
                {
                    let target = fs::read_link(entry.path())
                        .with_context(|| format!("reading {}", entry.path().display()))?;
                    self.items.insert(destination, Item::Symlink { target });
                } else {
                    self.add(&entry.path(), &destination)?;
                }
            }
            return Ok(());
        }
        if !meta.is_file() {
            return Ok(()); // sockets, pipes and devices have nothing to bring
        }
        let mode = meta.permissions().mode() & 0o7777;
        let item = Item::File { source: source.to_owned(), mode, size: meta.size() };
        if self.items.insert(destination.to_owned(), item).is_none() && mode & 0o111 != 0 && is_elf(source)? {
            for library in libraries(source)? {
                let meta =
                    fs::metadata(&library).with_context(|| format!("library {}", library.display()))?;
                let item = Item::File { source: library.clone(), mode: 0o755, size: meta.size() };
                self.items.entry(library).or_insert(item);
            }
        }
        Ok(())
    }
}

fn is_elf(path: &Path) -> Result<bool> {
    let mut magic = Vec::new();
    File::open(path)
        .and_then(|file| file.take(4).read_to_end(&mut magic))
        .with_context(|| format!("reading {}", path.display()))?;
    Ok(magic == *b"\x7fELF")
}

/// Paths of the libraries (and the loader) of a dynamic executable.
fn libraries(path: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(path).env("LC_ALL", "C").output().context("starting `ldd`")?;
    // `ldd` fails for static executables, which need nothing.
    parse_ldd(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("libraries of {}", path.display()))
}

fn parse_ldd(text: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        if let Some((name, rest)) = line.split_once(" => ") {
            if rest.starts_with("not found") {
                bail!("shared library {name} is not found on this machine");
            }
            found.push(PathBuf::from(rest.split(" (").next().unwrap_or(rest)));
        } else if line.starts_with('/') {
            found.push(PathBuf::from(line.split(" (").next().unwrap_or(line)));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_output_gives_libraries_and_loader() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibelf.so.1 => /lib/x/libelf.so.1 (0x0000)\n\t/lib64/ld-linux-x86-64.so.2 (0x0000)\n";
        assert_eq!(
            parse_ldd(text).unwrap(),
            [PathBuf::from("/lib/x/libelf.so.1"), PathBuf::from("/lib64/ld-linux-x86-64.so.2")]
        );
        assert!(parse_ldd("\tstatically linked\n").unwrap().is_empty());
        assert!(parse_ldd("\tliba.so => not found\n").unwrap_err().to_string().contains("liba.so"));
    }

    #[test]
    fn an_executable_brings_its_loader() {
        let mut set = FileSet::default();
        set.add(&std::env::current_exe().unwrap(), Path::new("/x/test")).unwrap();
        assert!(set.items().keys().any(|path| path.to_string_lossy().contains("ld-linux")), "{set:?}");
    }
}

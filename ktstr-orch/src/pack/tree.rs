//! The guest's root directory before it is written: paths and what is there.
//!
//! Parent directories appear by themselves. `/bin`, `/sbin`, `/lib` and
//! `/lib64` are links into `/usr`, and paths through them land there, so that
//! a library found under either name on the host exists once. Two different
//! things at one path are an error, the same thing twice is not.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::cpio::{Archive, Kind};

/// Directories that live in `/usr`.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Why the tree could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Two different things want one path.
    #[error("{path} in the guest is wanted twice: for {first} and for {second}")]
    Conflict {
        /// Path in the guest.
        path: String,
        /// What is there.
        first: String,
        /// What also wants to be.
        second: String,
    },
    /// A path that cannot be an archive name.
    #[error("{path:?} cannot be a path in the guest: it is not absolute, not UTF-8 or has '..' in it")]
    BadPath {
        /// The path.
        path: PathBuf,
    },
    /// A host file cannot be read.
    #[error("cannot pack {path}")]
    Read {
        /// The host file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("cannot write the initramfs")]
    Write(
        /// What the system said.
        #[source]
        io::Error,
    ),
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    Directory,
    /// A copy of a host file, its mode's execute bit kept.
    HostFile(PathBuf),
    /// Content and mode.
    Bytes(Vec<u8>, u32),
    Symlink(String),
    CharDevice(u32, u32),
}

impl Node {
    fn describe(&self) -> String {
        match self {
            Node::Directory => "a directory".to_owned(),
            Node::HostFile(path) => path.display().to_string(),
            Node::Bytes(..) => "a generated file".to_owned(),
            Node::Symlink(target) => format!("a link to {target}"),
            Node::CharDevice(..) => "a device".to_owned(),
        }
    }
}

/// Paths (without leading slash) and what is there.
#[derive(Debug, Default, Clone)]
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// The merged-usr links and nothing else.
    pub(super) fn new() -> Self {
        let mut tree = Self::default();
        for dir in MERGED {
            tree.nodes.insert(dir.to_owned(), Node::Symlink(format!("usr/{dir}")));
            tree.nodes.insert(format!("usr/{dir}"), Node::Directory);
        }
        tree.nodes.insert("usr".to_owned(), Node::Directory);
        tree
    }

    /// Puts `node` at an absolute guest path.
    pub(super) fn put(&mut self, path: impl AsRef<Path>, node: Node) -> Result<(), TreeError> {
        let name = archive_name(path.as_ref())?;
        for (at, _) in name.match_indices('/') {
            self.insert(&name[..at], Node::Directory)?;
        }
        self.insert(&name, node)
    }

    fn insert(&mut self, name: &str, node: Node) -> Result<(), TreeError> {
        match self.nodes.get(name) {
            Some(there) if *there != node => Err(TreeError::Conflict {
                path: format!("/{name}"),
                first: there.describe(),
                second: node.describe(),
            }),
            Some(_) => Ok(()),
            None => {
                self.nodes.insert(name.to_owned(), node);
                Ok(())
            }
        }
    }

    /// What is here and not, the same, in `other`.
    pub(super) fn without(&self, other: &Tree) -> Tree {
        let new = |(name, node): &(&String, &Node)| other.nodes.get(*name) != Some(*node);
        let nodes = self.nodes.iter().filter(new).map(|(name, node)| (name.clone(), node.clone()));
        Tree { nodes: nodes.collect() }
    }

    /// Every path with what is there: the same text, the same archive.
    pub(super) fn inventory(&self) -> String {
        let mut text = String::new();
        for (name, node) in &self.nodes {
            let what = match node {
                Node::HostFile(path) => crate::warm::identity(path),
                Node::Bytes(bytes, mode) => {
                    format!("{mode:o} {}", crate::store::digest::of_parts([&bytes[..]]))
                }
                Node::Directory | Node::Symlink(_) | Node::CharDevice(..) => format!("{node:?}"),
            };
            text.push_str(&format!("{name}: {what}\n"));
        }
        text
    }

    /// What is at an absolute guest path.
    pub(super) fn get(&self, path: impl AsRef<Path>) -> Option<&Node> {
        self.nodes.get(&archive_name(path.as_ref()).ok()?)
    }

    /// Writes everything sorted by path, then `last` as the final file.
    pub(super) fn write(&self, out: impl Write, last: &str) -> Result<u64, TreeError> {
        let mut archive = Archive::new(BufWriter::with_capacity(1 << 20, out));
        for (name, node) in &self.nodes {
            match node {
                Node::Directory => archive.entry(name, Kind::Directory, 0o755, b""),
                Node::Bytes(bytes, mode) => archive.entry(name, Kind::File, *mode, bytes),
                Node::Symlink(target) => archive.entry(name, Kind::Symlink, 0o777, target.as_bytes()),
                Node::CharDevice(major, minor) => {
                    archive.entry(name, Kind::CharDevice(*major, *minor), 0o600, b"")
                }
                Node::HostFile(path) => {
                    write_host_file(&mut archive, name, path)?;
                    Ok(())
                }
            }
            .map_err(TreeError::Write)?;
        }
        let last = archive_name(Path::new(last))?;
        archive.entry(&last, Kind::File, 0o444, b"").map_err(TreeError::Write)?;
        archive.finish().map_err(TreeError::Write)
    }
}

fn write_host_file<W: Write>(archive: &mut Archive<W>, name: &str, path: &Path) -> Result<(), TreeError> {
    let read = |source| TreeError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(read)?;
    let meta = file.metadata().map_err(read)?;
    // Only whether it can be executed matters: owners and modes of the host
    // mean nothing in the guest, where everything runs as root.
    let mode = if meta.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
    archive.stream(name, Kind::File, mode, meta.len(), &mut file).map_err(read)
}

/// `/lib/x` → `usr/lib/x`; what is not a plain absolute path is refused.
fn archive_name(path: &Path) -> Result<String, TreeError> {
    let bad = || TreeError::BadPath { path: path.to_owned() };
    let text = path.to_str().ok_or_else(bad)?;
    let parts: Vec<&str> =
        text.strip_prefix('/').ok_or_else(bad)?.split('/').filter(|p| !p.is_empty()).collect();
    if parts.is_empty() || parts.contains(&"..") || text.contains('\0') {
        return Err(bad());
    }
    let parts: Vec<&str> = parts.into_iter().filter(|p| *p != ".").collect();
    let merged = parts.len() > 1 && MERGED.contains(&parts[0]);
    Ok(if merged { format!("usr/{}", parts.join("/")) } else { parts.join("/") })
}

#[cfg(test)]
mod tests {
    use super::super::cpio::tests::read;
    use super::*;

    #[test]
    fn sorted_with_parents_first_and_the_last_file_last() {
        let mut tree = Tree::new();
        tree.put("/z/b/c", Node::Bytes(b"x".to_vec(), 0o600)).unwrap();
        tree.put("/lib/a.so", Node::Bytes(b"y".to_vec(), 0o644)).unwrap();
        tree.put("/a", Node::Symlink("z".into())).unwrap();
        let mut out = Vec::new();
        let size = tree.write(&mut out, "/.done").unwrap();
        assert_eq!(size, out.len() as u64);
        let names: Vec<String> = read(&out).into_iter().map(|e| e.name).collect();
        let expected = [
            "a",
            "bin",
            "lib",
            "lib64",
            "sbin",
            "usr",
            "usr/bin",
            "usr/lib",
            "usr/lib/a.so",
            "usr/lib64",
            "usr/sbin",
            "z",
            "z/b",
            "z/b/c",
            ".done",
        ];
        assert_eq!(names, expected);
        let mut again = Vec::new();
        tree.write(&mut again, "/.done").unwrap();
        assert!(out == again, "same tree, same bytes");
    }

    #[test]
    fn conflicts_name_both() {
        let mut tree = Tree::new();
        tree.put("/x", Node::HostFile("/a".into())).unwrap();
        tree.put("/x", Node::HostFile("/a".into())).unwrap();
        let error = tree.put("/x", Node::HostFile("/b".into())).unwrap_err().to_string();
        assert_eq!(error, "/x in the guest is wanted twice: for /a and for /b");
        assert!(matches!(tree.put("/x/y", Node::Directory), Err(TreeError::Conflict { .. })));
    }

    #[test]
    fn bad_paths() {
        let mut tree = Tree::new();
        for path in ["", "/", "x", "/a/../b", "/a\0b"] {
            assert!(matches!(tree.put(path, Node::Directory), Err(TreeError::BadPath { .. })), "{path:?}");
        }
    }

    #[test]
    fn host_files_keep_the_execute_bit_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "hello").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o4711)).unwrap();
        let mut tree = Tree::new();
        tree.put("/f", Node::HostFile(path.clone())).unwrap();
        let mut out = Vec::new();
        tree.write(&mut out, "/.done").unwrap();
        let entry = read(&out).into_iter().find(|e| e.name == "f").unwrap();
        assert_eq!((entry.mode, entry.content.as_slice()), (0o100_755, b"hello".as_slice()));
        std::fs::remove_file(&path).unwrap();
        let error = tree.write(Vec::new(), "/.done").unwrap_err();
        assert!(matches!(error, TreeError::Read { path: p, .. } if p == path));
    }
}

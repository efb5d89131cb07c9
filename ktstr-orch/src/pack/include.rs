//! The user's files: what `-i PATH` puts below `/include-files`.
//!
//! A bare name is looked up in `PATH`, a directory is walked and keeps its
//! layout, a file that is not ELF is copied as it is. FIFOs, devices, sockets
//! and links to directories are left out with a warning; so is, as a name, an
//! empty directory. Two includes with one name are an error.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Why an include could not be placed.
#[derive(Debug, thiserror::Error)]
pub enum IncludeError {
    /// A bare name that PATH does not have.
    #[error("include {name:?} is neither a file here nor in PATH ({path})")]
    NotInPath {
        /// The name.
        name: PathBuf,
        /// The variable's value.
        path: String,
    },
    /// It cannot be read.
    #[error("cannot include {path}")]
    Read {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is neither file nor directory.
    #[error("cannot include {path}: it is a {kind}; give a file or a directory")]
    Special {
        /// The path.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// Two includes with the same name.
    #[error(
        "includes {first} and {second} would both be /include-files/{name}; rename one or include their directory"
    )]
    SameName {
        /// The name.
        name: String,
        /// One path.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A name the archive cannot hold.
    #[error("cannot include {path}: its name is not UTF-8")]
    Name {
        /// The path.
        path: PathBuf,
    },
}

/// A file to place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed {
    /// Below `/include-files/`.
    pub name: String,
    /// On the host.
    pub source: PathBuf,
    /// Named by the user, not met in a directory.
    pub named: bool,
}

/// All includes: files in order, directories that hold nothing, warnings.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Includes {
    pub files: Vec<Placed>,
    pub empty: Vec<String>,
    pub warnings: Vec<String>,
}

/// Finds everything `paths` name; `path_variable` is the value of `PATH`.
pub(super) fn gather(paths: &[PathBuf], path_variable: &OsStr) -> Result<Includes, IncludeError> {
    let mut includes = Includes::default();
    let mut slots: Vec<(String, PathBuf)> = Vec::new();
    for path in paths {
        let source = locate(path, path_variable)?;
        let name = slot_name(&source)?;
        match slots.iter().find(|(slot, _)| *slot == name) {
            Some((_, first)) if *first == source => continue,
            Some((_, first)) => {
                return Err(IncludeError::SameName { name, first: first.clone(), second: source });
            }
            None => slots.push((name.clone(), source.clone())),
        }
        place(&source, name, true, &mut includes)?;
    }
    Ok(includes)
}

fn locate(path: &Path, path_variable: &OsStr) -> Result<PathBuf, IncludeError> {
    let bare = path.components().count() == 1 && !path.as_os_str().as_encoded_bytes().contains(&b'/');
    if path.exists() || !bare {
        return Ok(path.to_owned());
    }
    std::env::split_paths(path_variable)
        .map(|dir| dir.join(path))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| IncludeError::NotInPath {
            name: path.to_owned(),
            path: path_variable.to_string_lossy().into_owned(),
        })
}

/// The last component; of `.` and `..`, that of the directory they stand for.
fn slot_name(source: &Path) -> Result<String, IncludeError> {
    let whole = match source.file_name() {
        Some(_) => source.to_owned(),
        None => {
            fs::canonicalize(source).map_err(|e| IncludeError::Read { path: source.to_owned(), source: e })?
        }
    };
    let name = whole.file_name().and_then(OsStr::to_str);
    name.map(str::to_owned).ok_or_else(|| IncludeError::Name { path: source.to_owned() })
}

fn place(source: &Path, name: String, named: bool, into: &mut Includes) -> Result<(), IncludeError> {
    let read = |e| IncludeError::Read { path: source.to_owned(), source: e };
    let meta = fs::metadata(source).map_err(read)?;
    if meta.is_file() {
        into.files.push(Placed { name, source: source.to_owned(), named });
        return Ok(());
    }
    if !meta.is_dir() {
        return Err(IncludeError::Special { path: source.to_owned(), kind: kind_of(meta.file_type()) });
    }
    let mut items = fs::read_dir(source).map_err(read)?.collect::<Result<Vec<_>, _>>().map_err(read)?;
    items.sort_by_key(fs::DirEntry::file_name);
    if items.is_empty() {
        into.warnings.push(format!("included directory {} is empty", source.display()));
        into.empty.push(name);
        return Ok(());
    }
    for item in items {
        let path = item.path();
        let item_name =
            item.file_name().into_string().map_err(|_| IncludeError::Name { path: path.clone() })?;
        let kind = item.file_type().map_err(read)?;
        if let Some(reason) = left_out(&path, kind) {
            into.warnings.push(format!("not included: {} is a {reason}", path.display()));
        } else {
            place(&path, format!("{name}/{item_name}"), false, into)?;
        }
    }
    Ok(())
}

/// Why an item of a walked directory is left out.
fn left_out(path: &Path, kind: fs::FileType) -> Option<&'static str> {
    if !kind.is_symlink() {
        return (!kind.is_file() && !kind.is_dir()).then(|| kind_of(kind));
    }
    match fs::metadata(path) {
        // Following these could walk in circles or out of the tree.
        Ok(meta) if meta.is_dir() => Some("link to a directory"),
        Ok(meta) if meta.is_file() => None,
        Ok(meta) => Some(kind_of(meta.file_type())),
        Err(_) => Some("dangling link"),
    }
}

fn kind_of(kind: fs::FileType) -> &'static str {
    if kind.is_fifo() {
        "FIFO"
    } else if kind.is_socket() {
        "socket"
    } else {
        "device"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn names(includes: &Includes) -> Vec<&str> {
        includes.files.iter().map(|f| f.name.as_str()).collect()
    }

    #[test]
    fn directories_keep_their_layout_and_specials_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("release");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::create_dir_all(root.join("none")).unwrap();
        fs::write(root.join("sub/a"), "").unwrap();
        fs::write(root.join("b"), "").unwrap();
        symlink("b", root.join("link")).unwrap();
        symlink("..", root.join("up")).unwrap();
        symlink("nowhere", root.join("void")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("sock")).unwrap();
        let includes = gather(std::slice::from_ref(&root), OsStr::new("")).unwrap();
        assert_eq!(names(&includes), ["release/b", "release/link", "release/sub/a"]);
        assert_eq!(includes.empty, ["release/none"]);
        let text = includes.warnings.join("\n");
        for part in
            ["none is empty", "sock is a socket", "up is a link to a directory", "void is a dangling link"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        let dots = gather(&[root.join("sub/..")], OsStr::new("")).unwrap();
        assert_eq!(names(&dots), names(&includes));
    }

    #[test]
    fn bare_names_come_from_path() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("my-tool-xyz"), "").unwrap();
        let path = dir.path().as_os_str();
        let includes = gather(&["my-tool-xyz".into()], path).unwrap();
        assert_eq!(includes.files[0].source, dir.path().join("my-tool-xyz"));
        let error = gather(&["no-tool-xyz".into()], path).unwrap_err();
        assert!(matches!(error, IncludeError::NotInPath { .. }));
        let error = gather(&["./my-tool-xyz".into()], path).unwrap_err();
        assert!(matches!(error, IncludeError::Read { .. }), "a path is not looked up");
    }

    #[test]
    fn one_name_for_two_files_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["a", "b"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
            fs::write(dir.path().join(sub).join("f"), "").unwrap();
        }
        let (a, b) = (dir.path().join("a/f"), dir.path().join("b/f"));
        let error = gather(&[a.clone(), b], OsStr::new("")).unwrap_err();
        assert!(error.to_string().contains("/include-files/f"), "{error}");
        assert_eq!(gather(&[a.clone(), a], OsStr::new("")).unwrap().files.len(), 1);
    }

    #[test]
    fn a_device_by_name_is_an_error() {
        let error = gather(&["/dev/null".into()], OsStr::new("")).unwrap_err();
        assert!(error.to_string().contains("is a device"), "{error}");
    }
}

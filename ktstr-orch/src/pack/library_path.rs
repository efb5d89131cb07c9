//! The directories the host's dynamic loader searches after a binary's own
//! RPATH and RUNPATH: `LD_LIBRARY_PATH`, `/etc/ld.so.conf` with its includes,
//! and the built-in ones.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the loaders in use (glibc's, with and without Debian's multiarch
/// directories, and musl's) look without any configuration.
fn built_in() -> Vec<PathBuf> {
    let arch = std::env::consts::ARCH;
    let multiarch = [format!("/lib/{arch}-linux-gnu"), format!("/usr/lib/{arch}-linux-gnu")];
    let plain = ["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(str::to_owned);
    multiarch.into_iter().chain(plain).map(PathBuf::from).collect()
}

/// An ordered list of directories to search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibraryPath {
    /// Searched before the configured ones.
    first: Vec<PathBuf>,
    configured: Vec<PathBuf>,
    built_in: Vec<PathBuf>,
}

impl LibraryPath {
    /// This host's, with `ld_library_path` as the variable of that name.
    pub fn of_host(ld_library_path: Option<&str>) -> Self {
        let split =
            |list: &str| list.split([':', ';']).filter(|p| !p.is_empty()).map(PathBuf::from).collect();
        Self {
            first: ld_library_path.map(split).unwrap_or_default(),
            configured: read_conf(Path::new("/etc/ld.so.conf"), 8),
            built_in: built_in(),
        }
    }

    /// Only these directories, for tests and foreign roots.
    pub fn only(dirs: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { first: dirs.into_iter().collect(), configured: Vec::new(), built_in: Vec::new() }
    }

    /// All directories, in order, without repetition.
    pub(super) fn dirs(&self) -> Vec<&Path> {
        let mut dirs: Vec<&Path> = Vec::new();
        for dir in self.first.iter().chain(&self.configured).chain(&self.built_in) {
            if !dirs.contains(&dir.as_path()) {
                dirs.push(dir);
            }
        }
        dirs
    }
}

/// Whether a loader without configuration, as in the guest, looks in `dir`.
pub(super) fn is_built_in(dir: &Path) -> bool {
    built_in().iter().any(|known| known == dir)
}

/// Directories of a configuration file; `depth` bounds its includes.
fn read_conf(path: &Path, depth: u32) -> Vec<PathBuf> {
    let Ok(text) = fs::read_to_string(path) else { return Vec::new() };
    let mut dirs = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        match line.strip_prefix("include").filter(|rest| rest.starts_with(char::is_whitespace)) {
            Some(pattern) if depth > 0 => {
                let base = path.parent().unwrap_or(Path::new("/"));
                dirs.extend(
                    matching(&base.join(pattern.trim())).iter().flat_map(|file| read_conf(file, depth - 1)),
                );
            }
            Some(_) => {}
            None if line.starts_with('/') => dirs.push(PathBuf::from(line)),
            None => {}
        }
    }
    dirs
}

/// Files that match a pattern with at most one `*`, in its last component.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (pattern.parent(), pattern.file_name().and_then(|n| n.to_str())) else {
        return Vec::new();
    };
    let Some((head, tail)) = name.split_once('*') else { return vec![pattern.to_owned()] };
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|item| {
            let name = item.file_name();
            let name = name.to_string_lossy();
            name.len() >= head.len() + tail.len() && name.starts_with(head) && name.ends_with(tail)
        })
        .map(|item| item.path())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_with_includes() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        write("ld.so.conf", "# c\n/first\ninclude d/*.conf\n/last # c\nrelative\n");
        write("d/b.conf", "/b\ninclude ../ld.so.conf\n");
        write("d/a.conf", "/a\n");
        write("d/a.txt", "/no\n");
        let dirs = read_conf(&dir.path().join("ld.so.conf"), 1);
        assert_eq!(dirs, ["/first", "/a", "/b", "/last"].map(PathBuf::from));
        assert!(read_conf(&dir.path().join("none"), 8).is_empty());
    }

    #[test]
    fn order_without_repetition() {
        let mut path = LibraryPath::only(["/x".into(), "/y".into()]);
        path.configured = vec!["/y".into(), "/z".into()];
        assert_eq!(path.dirs(), ["/x", "/y", "/z"].map(Path::new));
        let host = LibraryPath::of_host(Some("/one:/two"));
        assert_eq!(host.dirs()[..2], [Path::new("/one"), Path::new("/two")]);
        assert!(host.dirs().contains(&Path::new("/usr/lib")));
        assert!(is_built_in(Path::new("/lib")) && !is_built_in(Path::new("/usr/local/lib")));
    }
}

//! Kernel modules from the list in the initramfs: plain `.ko` files, in the order given.

use std::{ffi::CString, fs::File, io, path::Path};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
};

/// Why a module is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The list cannot be read.
    #[error("cannot read the module list {list}")]
    List {
        /// Path of the list.
        list: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A line of the list names no module.
    #[error("line {line} of the module list is `{text}`: expected an absolute path that ends in .ko")]
    Line {
        /// Line number, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// The module's file cannot be opened.
    #[error("cannot open module {path}")]
    Open {
        /// Path of the module.
        path: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel refuses the module.
    #[error(
        "cannot load module {path}: it must be uncompressed, of the running kernel, and come after the modules it needs"
    )]
    Load {
        /// Path of the module.
        path: String,
        /// The system's reason.
        #[source]
        source: Errno,
    },
}

/// Loads every module of the list, in order; no list means none. Already loaded is fine.
pub fn load_listed(list: &Path) -> Result<usize, ModuleError> {
    let text = match std::fs::read_to_string(list) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(source) => return Err(ModuleError::List { list: list.display().to_string(), source }),
    };
    let paths = parse_list(&text)?;
    paths.iter().try_for_each(|path| load(path))?;
    Ok(paths.len())
}

/// The paths in a list; empty lines and lines that begin with `#` are skipped.
fn parse_list(text: &str) -> Result<Vec<&str>, ModuleError> {
    let mut paths = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if !line.starts_with('/') || !line.ends_with(".ko") {
            return Err(ModuleError::Line { line: index + 1, text: line.into() });
        }
        paths.push(line);
    }
    Ok(paths)
}

fn load(path: &str) -> Result<(), ModuleError> {
    let file = File::open(path).map_err(|source| ModuleError::Open { path: path.into(), source })?;
    match finit_module(&file, &CString::default(), ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(source) => Err(ModuleError::Load { path: path.into(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_keeps_its_order_and_skips_comments() {
        let text = "# for the console\n/lib/b.ko\n\n  /lib/a.ko  \r\n";
        assert_eq!(parse_list(text).unwrap(), ["/lib/b.ko", "/lib/a.ko"]);
        assert_eq!(parse_list("").unwrap(), Vec::<&str>::new());
    }

    #[test]
    fn a_line_that_is_no_module_is_named_by_number() {
        for bad in ["lib/a.ko", "/lib/a.ko.xz", "/lib/a.ko param=1"] {
            let text = format!("/lib/x.ko\n{bad}\n");
            match parse_list(&text) {
                Err(ModuleError::Line { line: 2, text }) => assert_eq!(text, bad),
                other => panic!("{bad}: {other:?}"),
            }
        }
    }

    #[test]
    fn no_list_means_no_modules_and_an_absent_module_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load_listed(&dir.path().join("absent")).unwrap(), 0);
        let list = dir.path().join("list");
        let module = dir.path().join("none.ko");
        std::fs::write(&list, format!("{}\n", module.display())).unwrap();
        match load_listed(&list) {
            Err(ModuleError::Open { path, .. }) => assert_eq!(path, module.display().to_string()),
            other => panic!("{other:?}"),
        }
    }
}

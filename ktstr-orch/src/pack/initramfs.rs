//! What a guest's initramfs consists of.
//!
//! ```text
//! /init                     ktstr-guest
//! /usr/bin/busybox, applets
//! /ktstr/job                what PID 1 shall do
//! /ktstr/test, scheduler    executables; their libraries at their host paths
//! /ktstr/modules            list in loading order; files in /ktstr/ko/
//! /boot/config-RELEASE      libbpf reads it
//! /include-files/NAME       the user's
//! /.ktstr-complete          written last
//! ```
//!
//! The guest has no `ld.so.cache`: a library the loader would not find at its
//! host path gets a link in `/usr/lib` under its name.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ktstr_proto::guest::{
    COMPLETE_PATH, JOB_PATH, MODULES_PATH, ON_DEMAND_PATH, SCHEDULER_PATH, TEST_PATH, staged_path,
};

use super::closure::{self, Closure, ClosureError, ElfError};
use super::include::{self, IncludeError, Placed};
use super::library_path::{self, LibraryPath};
use super::tree::{Node, Tree, TreeError};
use crate::known::Known;

/// Last file of what comes after the base.
const INPUT_COMPLETE: &str = "/ktstr/.complete";

/// Why no initramfs could be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// An executable cannot run in the guest.
    #[error("cannot pack the {role}")]
    Executable {
        /// What it is for.
        role: &'static str,
        /// Why.
        #[source]
        source: ClosureError,
    },
    /// An included executable cannot run in the guest.
    #[error("cannot include {path}")]
    Included {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ClosureError,
    },
    /// A library name stands for two files.
    #[error("{library} is needed as {first} and as {second}; the guest's loader can find only one of them")]
    TwoLibraries {
        /// The name.
        library: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// An include cannot be placed.
    #[error(transparent)]
    Include(#[from] IncludeError),
    /// The tree cannot be made or written.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// A finished archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Its bytes.
    pub size: u64,
    /// What was left out or looks odd.
    pub warnings: Vec<String>,
}

/// The content of a guest's initramfs.
#[derive(Debug, Clone)]
pub struct Initramfs {
    tree: Tree,
    path: LibraryPath,
    libraries: Vec<(String, PathBuf)>,
    warnings: Vec<String>,
}

impl Initramfs {
    /// Directories, devices and `/init` from the executable `guest`.
    pub fn new(guest: &Path, path: LibraryPath) -> Result<Self, PackError> {
        let mut packed = Self { tree: Tree::new(), path, libraries: Vec::new(), warnings: Vec::new() };
        for dir in
            ["/dev", "/proc", "/sys", "/tmp", "/run", "/root", "/etc", "/boot", "/include-files", "/ktstr"]
        {
            packed.tree.put(dir, Node::Directory)?;
        }
        // The kernel opens this one before PID 1 can mount devtmpfs.
        packed.tree.put("/dev/console", Node::CharDevice(5, 1))?;
        packed.tree.put("/dev/null", Node::CharDevice(1, 3))?;
        packed.executable("/init", guest, "guest program (ktstr-guest)")?;
        Ok(packed)
    }

    /// Busybox as shell and tools.
    pub fn busybox(&mut self, busybox: &Path, known: &Known) -> Result<(), PackError> {
        self.executable("/bin/busybox", busybox, "busybox")?;
        for applet in applets(busybox, known) {
            let path = format!("/bin/{applet}");
            if self.tree.get(&path).is_none() {
                self.tree.put(path, Node::Symlink("busybox".to_owned()))?;
            }
        }
        Ok(())
    }

    /// The encoded job for PID 1.
    pub fn job(&mut self, encoded: Vec<u8>) -> Result<(), PackError> {
        Ok(self.tree.put(JOB_PATH, Node::Bytes(encoded, 0o444))?)
    }

    /// The user's test executable.
    pub fn test(&mut self, binary: &Path) -> Result<(), PackError> {
        self.executable(TEST_PATH, binary, "test executable")
    }

    /// The scheduler under test.
    pub fn scheduler(&mut self, binary: &Path) -> Result<(), PackError> {
        self.executable(SCHEDULER_PATH, binary, "scheduler")
    }

    /// A scheduler that may take over during the test.
    pub fn staged(&mut self, index: usize, binary: &Path) -> Result<(), PackError> {
        self.executable(&staged_path(index), binary, "staged scheduler")
    }

    /// A file made for this run.
    pub fn file(&mut self, guest_path: &str, content: Vec<u8>) -> Result<(), PackError> {
        Ok(self.tree.put(guest_path, Node::Bytes(content, 0o444))?)
    }

    /// Modules in loading order, as [`crate::store::Kernel::modules`] gives them.
    pub fn modules(&mut self, modules: &[(&str, PathBuf)]) -> Result<(), PackError> {
        let mut list = String::new();
        for (name, file) in modules {
            let path = format!("{ON_DEMAND_PATH}/{name}.ko");
            self.tree.put(&path, Node::HostFile(file.clone()))?;
            list.push_str(&path);
            list.push('\n');
        }
        Ok(self.tree.put(MODULES_PATH, Node::Bytes(list.into_bytes(), 0o444))?)
    }

    /// Modules that are not loaded at boot but may be needed later.
    pub fn modules_on_demand(&mut self, modules: &[(&str, PathBuf)]) -> Result<(), PackError> {
        for (name, file) in modules {
            self.tree.put(format!("{ON_DEMAND_PATH}/{name}.ko"), Node::HostFile(file.clone()))?;
        }
        Ok(())
    }

    /// The kernel's configuration.
    pub fn kernel_config(&mut self, release: &str, config: &Path) -> Result<(), PackError> {
        Ok(self.tree.put(format!("/boot/config-{release}"), Node::HostFile(config.to_owned()))?)
    }

    /// The user's files; `path_variable` is the value of `PATH`.
    pub fn includes(&mut self, paths: &[PathBuf], path_variable: &OsStr) -> Result<(), PackError> {
        let includes = include::gather(paths, path_variable)?;
        self.warnings.extend(includes.warnings);
        for name in includes.empty {
            self.tree.put(format!("/include-files/{name}"), Node::Directory)?;
        }
        for placed in includes.files {
            self.include(placed)?;
        }
        Ok(())
    }

    fn include(&mut self, placed: Placed) -> Result<(), PackError> {
        let Placed { name, source, named } = placed;
        let elf =
            closure::is_elf(&source).map_err(|e| IncludeError::Read { path: source.clone(), source: e })?;
        if elf {
            match closure::of(&source, &self.path) {
                Ok(closure) => self.libraries_of(closure)?,
                Err(ClosureError::Elf(ElfError::WrongMachine { .. })) => {
                    self.warnings
                        .push(format!("{} is for another machine; copied as it is", source.display()));
                }
                // In a directory lie things that nobody means to run.
                Err(error) if !named => self.warnings.push(format!("{}: {error}", source.display())),
                Err(error) => return Err(PackError::Included { path: source, source: error }),
            }
        }
        Ok(self.tree.put(format!("/include-files/{name}"), Node::HostFile(source))?)
    }

    /// Writes the archive.
    pub fn write(&self, out: impl Write) -> Result<Packed, PackError> {
        let size = self.tree.write(out, COMPLETE_PATH)?;
        Ok(Packed { size, warnings: self.warnings.clone() })
    }

    /// Writes what a guest that already has `base` lacks of this, as an archive of its own.
    pub fn write_beyond(&self, base: &Initramfs, out: impl Write) -> Result<Packed, PackError> {
        let size = self.tree.without(&base.tree).write(out, INPUT_COMPLETE)?;
        Ok(Packed { size, warnings: self.warnings.clone() })
    }

    /// Names the content: the same name, the same archive.
    pub fn digest(&self) -> String {
        crate::store::digest::of_parts([self.tree.inventory().as_bytes()])[..32].to_owned()
    }

    fn executable(&mut self, guest_path: &str, file: &Path, role: &'static str) -> Result<(), PackError> {
        let closure =
            closure::of(file, &self.path).map_err(|source| PackError::Executable { role, source })?;
        self.tree.put(guest_path, Node::HostFile(file.to_owned()))?;
        self.libraries_of(closure)
    }

    fn libraries_of(&mut self, closure: Closure) -> Result<(), PackError> {
        if let Some(interpreter) = closure.interpreter {
            self.tree.put(&interpreter, Node::HostFile(real(&interpreter)))?;
        }
        for (name, found) in closure.libraries {
            let file = real(&found);
            match self.libraries.iter().find(|(known, _)| *known == name) {
                Some((_, first)) if *first == file => continue,
                Some((_, first)) => {
                    return Err(PackError::TwoLibraries {
                        library: name,
                        first: first.clone(),
                        second: file,
                    });
                }
                None => self.libraries.push((name.clone(), file.clone())),
            }
            self.place_library(&name, &found, file)?;
        }
        Ok(())
    }

    /// At the path where the loader found it, unless the guest's would not.
    fn place_library(&mut self, name: &str, found: &Path, file: PathBuf) -> Result<(), PackError> {
        let built_in = found.parent().is_some_and(library_path::is_built_in);
        let path = if built_in { found.to_owned() } else { Path::new("/usr/lib").join(name) };
        // The interpreter is often needed as a library, too, under a second path.
        if self.tree.get(&path).is_none() {
            self.tree.put(path, Node::HostFile(file))?;
        }
        Ok(())
    }
}

/// The file behind links, so that one file is known by one path.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// The names busybox answers to; a shell at least, should it not tell.
fn applets(busybox: &Path, known: &Known) -> Vec<String> {
    let ask = || {
        let mut command = Command::new(busybox);
        command.arg("--list").env_clear().stdin(Stdio::null()).stderr(Stdio::null());
        let listed = command.output().ok().filter(|output| output.status.success()).ok_or(())?;
        Ok::<_, ()>(String::from_utf8_lossy(&listed.stdout).into_owned())
    };
    let listed = known.answer(busybox, "--list", ask).unwrap_or_default();
    let plain = |name: &&str| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.[".contains(c))
    };
    let mut names: Vec<String> = listed.lines().map(str::trim).filter(plain).map(str::to_owned).collect();
    names.retain(|name| name != "busybox");
    if names.is_empty() { vec!["sh".to_owned()] } else { names }
}

/// Finds an executable by name in a `PATH` value.
pub fn in_path(name: &str, path_variable: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path_variable).map(|dir| dir.join(name)).find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::super::closure::tests::dynamic_elf;
    use super::super::cpio::tests::{Entry, read};
    use super::*;
    use object::elf;
    use std::fs;

    fn host() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("lib")).unwrap();
        fs::write(root.join("guest"), dynamic_elf("/proc/self/exe", &[(elf::DT_NEEDED, "liba.so.1")]))
            .unwrap();
        fs::write(root.join("lib/liba.so.1.0"), dynamic_elf("/proc/self/exe", &[])).unwrap();
        std::os::unix::fs::symlink("liba.so.1.0", root.join("lib/liba.so.1")).unwrap();
        (dir, root)
    }

    fn start(root: &Path) -> Initramfs {
        Initramfs::new(&root.join("guest"), LibraryPath::only([root.join("lib")])).unwrap()
    }

    fn entries(initramfs: &Initramfs) -> Vec<Entry> {
        let mut out = Vec::new();
        let packed = initramfs.write(&mut out).unwrap();
        assert_eq!(packed.size, out.len() as u64);
        read(&out)
    }

    fn content(entries: &[Entry], name: &str) -> Vec<u8> {
        let entry = entries.iter().find(|e| e.name == name);
        entry.unwrap_or_else(|| panic!("no {name} in the archive")).content.clone()
    }

    #[test]
    fn the_whole_layout() {
        let (_dir, root) = host();
        for (name, text) in
            [("m1.ko", "one"), ("m2.ko", "two"), ("config", "CONFIG_X=y"), ("script", "#!/bin/sh")]
        {
            fs::write(root.join(name), text).unwrap();
        }
        let mut packed = start(&root);
        packed.job(b"job".to_vec()).unwrap();
        packed.test(&root.join("guest")).unwrap();
        packed.scheduler(&root.join("guest")).unwrap();
        packed.modules(&[("b", root.join("m2.ko")), ("a", root.join("m1.ko"))]).unwrap();
        packed.kernel_config("7.2.9-x", &root.join("config")).unwrap();
        packed.includes(&[root.join("script")], OsStr::new("")).unwrap();
        let all = entries(&packed);
        assert_eq!(content(&all, "ktstr/modules"), b"/ktstr/ko/b.ko\n/ktstr/ko/a.ko\n");
        assert_eq!(content(&all, "ktstr/ko/b.ko"), b"two");
        assert_eq!(content(&all, "boot/config-7.2.9-x"), b"CONFIG_X=y");
        assert_eq!(content(&all, "include-files/script"), b"#!/bin/sh");
        assert_eq!(content(&all, "ktstr/job"), b"job");
        for name in ["init", "ktstr/test", "ktstr/scheduler", "usr/lib/liba.so.1", "dev/console", "proc"] {
            content(&all, name);
        }
        assert_eq!(all.last().unwrap().name, ".ktstr-complete");
        assert_eq!(all.iter().filter(|e| e.name.contains("liba")).count(), 1);
    }

    #[test]
    fn a_scheduler_that_is_no_executable() {
        let (_dir, root) = host();
        fs::write(root.join("sched"), "#!/bin/sh\n").unwrap();
        let error = start(&root).scheduler(&root.join("sched")).unwrap_err();
        assert_eq!(error.to_string(), "cannot pack the scheduler");
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("is no ELF executable"), "{source}");
    }

    #[test]
    fn includes_bring_their_libraries_and_directories_forgive() {
        let (_dir, root) = host();
        let needy = dynamic_elf("/proc/self/exe", &[(elf::DT_NEEDED, "libgone.so")]);
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/needy"), &needy).unwrap();
        let mut packed = start(&root);
        packed.includes(&[root.join("d")], OsStr::new("")).unwrap();
        let mut out = Vec::new();
        assert!(packed.write(&mut out).unwrap().warnings[0].contains("libgone.so"));
        let error = start(&root).includes(&[root.join("d/needy")], OsStr::new("")).unwrap_err();
        assert!(matches!(error, PackError::Included { .. }));
    }

    #[test]
    fn one_library_name_for_two_files_is_an_error() {
        let (_dir, root) = host();
        fs::create_dir(root.join("other")).unwrap();
        fs::copy(root.join("lib/liba.so.1"), root.join("other/liba.so.1")).unwrap();
        let tags = [(elf::DT_NEEDED, "liba.so.1"), (elf::DT_RUNPATH, "$ORIGIN/other")];
        fs::write(root.join("app"), dynamic_elf("/proc/self/exe", &tags)).unwrap();
        let error = start(&root).test(&root.join("app")).unwrap_err();
        assert!(matches!(error, PackError::TwoLibraries { .. }), "{error}");
    }

    #[test]
    fn same_inputs_same_bytes() {
        let (_dir, root) = host();
        let bytes = || {
            let mut out = Vec::new();
            start(&root).write(&mut out).unwrap();
            out
        };
        assert!(bytes() == bytes());
    }
}

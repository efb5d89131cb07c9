//! Finds every shared library a dynamic executable needs, as the loader would:
//! transitive DT_NEEDED through DT_RPATH (own and the users'), DT_RUNPATH
//! (own), `$ORIGIN`, and the [`LibraryPath`]. Candidates for another machine
//! are passed over.
//!
//! Nothing is executed (`ldd` runs what it inspects). Libraries that a program
//! opens by itself at run time cannot be seen here.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use object::elf;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, ReadCache, ReadRef};

use super::library_path::LibraryPath;

type Header = elf::FileHeader64<Endianness>;

/// Machine of the executables we can pack.
const MACHINE: u16 = if cfg!(target_arch = "aarch64") { elf::EM_AARCH64.0 } else { elf::EM_X86_64.0 };

/// Why a file is no executable for the guest.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It does not start like an ELF file.
    #[error("{path} is no ELF executable: it starts with {start:?}")]
    NotElf {
        /// The file.
        path: PathBuf,
        /// Its first bytes.
        start: String,
    },
    /// It is for another machine.
    #[error("{path} is an executable for another machine ({found}); the guest is {}", std::env::consts::ARCH)]
    WrongMachine {
        /// The file.
        path: PathBuf,
        /// Class and machine number.
        found: String,
    },
    /// Its tables cannot be read.
    #[error("{path} is a damaged ELF file: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
}

/// Why the libraries could not be gathered.
#[derive(Debug, thiserror::Error)]
pub enum ClosureError {
    /// The executable or a library is unusable.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// A library was not found.
    #[error("library {library}, needed by {needed_by}, was not found; searched: {}", list(searched))]
    NotFound {
        /// Its name.
        library: String,
        /// Who needs it.
        needed_by: PathBuf,
        /// Directories that were searched, in order.
        searched: Vec<PathBuf>,
    },
    /// The program interpreter is not there.
    #[error("program interpreter {interpreter}, needed by {needed_by}, does not exist")]
    NoInterpreter {
        /// Its path.
        interpreter: PathBuf,
        /// Who needs it.
        needed_by: PathBuf,
    },
}

fn list(dirs: &[PathBuf]) -> String {
    dirs.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// What an executable needs besides itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Closure {
    /// Program interpreter, as the executable names it.
    pub interpreter: Option<PathBuf>,
    /// Libraries: name and where it was found.
    pub libraries: BTreeMap<String, PathBuf>,
}

/// What one ELF file says.
#[derive(Debug, Default)]
struct Needs {
    interpreter: Option<PathBuf>,
    needed: Vec<String>,
    rpath: Vec<PathBuf>,
    runpath: Option<Vec<PathBuf>>,
}

/// Whether a file starts with the ELF magic.
pub(super) fn is_elf(path: &Path) -> io::Result<bool> {
    use io::Read;
    let mut start = Vec::new();
    File::open(path)?.take(4).read_to_end(&mut start)?;
    Ok(start == b"\x7fELF")
}

/// The interpreter and all libraries of `executable`.
pub(super) fn of(executable: &Path, path: &LibraryPath) -> Result<Closure, ClosureError> {
    let first = read(executable)?;
    let mut closure = Closure { interpreter: first.interpreter.clone(), ..Closure::default() };
    if let Some(interpreter) = closure.interpreter.clone().filter(|i| !i.exists()) {
        return Err(ClosureError::NoInterpreter { interpreter, needed_by: executable.to_owned() });
    }
    // A DT_RPATH holds for everything that is loaded on its owner's behalf.
    let inherited = first.rpath.clone();
    let mut queue = VecDeque::from([(executable.to_owned(), first, inherited)]);
    while let Some((user, needs, rpaths)) = queue.pop_front() {
        for library in &needs.needed {
            if closure.libraries.contains_key(library) {
                continue;
            }
            let (found, its_needs) = find(library, &user, &needs, &rpaths, path)?;
            let mut inherited = its_needs.rpath.clone();
            inherited.extend(rpaths.iter().cloned());
            closure.libraries.insert(library.clone(), found.clone());
            queue.push_back((found, its_needs, inherited));
        }
    }
    Ok(closure)
}

fn find(
    library: &str,
    user: &Path,
    needs: &Needs,
    rpaths: &[PathBuf],
    path: &LibraryPath,
) -> Result<(PathBuf, Needs), ClosureError> {
    if library.contains('/') {
        let found = PathBuf::from(library);
        let its_needs = read(&found)?;
        return Ok((found, its_needs));
    }
    let own: Vec<&Path> = match &needs.runpath {
        // A DT_RUNPATH switches every DT_RPATH off.
        Some(dirs) => dirs.iter().map(PathBuf::as_path).collect(),
        None => rpaths.iter().map(PathBuf::as_path).collect(),
    };
    let mut searched: Vec<PathBuf> = Vec::new();
    for dir in own.into_iter().chain(path.dirs()) {
        let candidate = dir.join(library);
        match read(&candidate) {
            Ok(its_needs) => return Ok((candidate, its_needs)),
            Err(ElfError::Damaged { path, reason }) => return Err(ElfError::Damaged { path, reason }.into()),
            Err(_) => searched.push(dir.to_owned()),
        }
    }
    Err(ClosureError::NotFound { library: library.to_owned(), needed_by: user.to_owned(), searched })
}

fn read(path: &Path) -> Result<Needs, ElfError> {
    let file = File::open(path).map_err(|source| ElfError::Read { path: path.to_owned(), source })?;
    let cache = ReadCache::new(file);
    let start = cache.read_bytes_at(0, 20).unwrap_or_default();
    if !start.starts_with(b"\x7fELF") {
        let head = cache.read_bytes_at(0, cache.len().unwrap_or(0).min(12)).unwrap_or_default();
        let start = String::from_utf8_lossy(head).into_owned();
        return Err(ElfError::NotElf { path: path.to_owned(), start });
    }
    let machine = u16::from_le_bytes([start[18], start[19]]);
    if start[4] != 2 || start[5] != 1 || machine != MACHINE {
        let bits = if start[4] == 2 { 64 } else { 32 };
        let found = format!("{bits}-bit, machine number {machine}");
        return Err(ElfError::WrongMachine { path: path.to_owned(), found });
    }
    needs(path, &cache).map_err(|reason| ElfError::Damaged { path: path.to_owned(), reason })
}

fn needs<'a, R: ReadRef<'a>>(path: &Path, data: R) -> Result<Needs, String> {
    let text = |e: object::read::Error| e.to_string();
    let header = Header::parse(data).map_err(text)?;
    let endian = header.endian().map_err(text)?;
    let segments = header.program_headers(endian, data).map_err(text)?;
    let mut needs = Needs::default();
    for segment in segments {
        if let Some(interpreter) = segment.interpreter(endian, data).map_err(text)? {
            needs.interpreter = Some(PathBuf::from(String::from_utf8_lossy(interpreter).into_owned()));
        }
        if let Some(entries) = segment.dynamic(endian, data).map_err(text)? {
            read_dynamic(path, data, endian, segments, entries, &mut needs)?;
        }
    }
    Ok(needs)
}

fn read_dynamic<'a, R: ReadRef<'a>>(
    path: &Path,
    data: R,
    endian: Endianness,
    segments: &[elf::ProgramHeader64<Endianness>],
    entries: &[elf::Dyn64<Endianness>],
    needs: &mut Needs,
) -> Result<(), String> {
    let entries: Vec<(elf::DynamicTag, u64)> = entries
        .iter()
        .map(|entry| (entry.d_tag.get(endian), entry.d_val.get(endian)))
        .take_while(|(tag, _)| *tag != elf::DT_NULL)
        .collect();
    let value =
        |wanted: elf::DynamicTag| entries.iter().find(|(tag, _)| *tag == wanted).map(|(_, value)| *value);
    let (Some(address), Some(size)) = (value(elf::DT_STRTAB), value(elf::DT_STRSZ)) else {
        return if value(elf::DT_NEEDED).is_some() {
            Err("no dynamic string table".to_owned())
        } else {
            Ok(())
        };
    };
    let strings = segments
        .iter()
        .find_map(|segment| segment.data_range(endian, data, address, size).ok().flatten())
        .ok_or("the dynamic string table lies outside the file")?;
    let string = |at: u64| -> Result<String, String> {
        let rest = usize::try_from(at)
            .ok()
            .and_then(|at| strings.get(at..))
            .ok_or("a name lies outside its table")?;
        let end = rest.iter().position(|&b| b == 0).ok_or("a name does not end")?;
        Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
    };
    for (tag, value) in &entries {
        match *tag {
            elf::DT_NEEDED => needs.needed.push(string(*value)?),
            elf::DT_RPATH => needs.rpath = expand(&string(*value)?, path),
            elf::DT_RUNPATH => needs.runpath = Some(expand(&string(*value)?, path)),
            _ => {}
        }
    }
    Ok(())
}

/// Splits a search path and replaces the loader's variables in it.
fn expand(list: &str, owner: &Path) -> Vec<PathBuf> {
    let owner = owner.canonicalize().unwrap_or_else(|_| owner.to_owned());
    let origin = owner.parent().map(|dir| dir.display().to_string()).unwrap_or_default();
    let platform = std::env::consts::ARCH;
    let multiarch = format!("lib/{platform}-linux-gnu");
    let lib = if Path::new("/usr").join(&multiarch).is_dir() { multiarch.as_str() } else { "lib64" };
    list.split(':')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let mut text = part.to_owned();
            for (name, value) in [("ORIGIN", origin.as_str()), ("LIB", lib), ("PLATFORM", platform)] {
                text = text.replace(&format!("${{{name}}}"), value).replace(&format!("${name}"), value);
            }
            PathBuf::from(text)
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::fs;

    /// A dynamic executable or library for this machine: one loadable segment
    /// over the whole file, an interpreter and a dynamic section.
    pub(in crate::pack) fn dynamic_elf(interpreter: &str, tags: &[(elf::DynamicTag, &str)]) -> Vec<u8> {
        let mut strings = vec![0u8];
        let mut dynamic: Vec<(i64, u64)> = Vec::new();
        for (tag, text) in tags {
            dynamic.push((tag.0, strings.len() as u64));
            strings.extend(text.as_bytes());
            strings.push(0);
        }
        let headers = 64 + 3 * 56u64;
        let strings_at = headers + interpreter.len() as u64 + 1;
        let dynamic_at = strings_at + strings.len() as u64;
        dynamic.extend([(5, strings_at), (10, strings.len() as u64), (0, 0)]);
        let dynamic_size = dynamic.len() as u64 * 16;
        let total = dynamic_at + dynamic_size;
        let mut out = b"\x7fELF\x02\x01\x01".to_vec();
        out.resize(16, 0);
        out.extend([3, 0, MACHINE as u8, 0, 1, 0, 0, 0]);
        out.extend(0u64.to_le_bytes());
        out.extend(64u64.to_le_bytes());
        out.extend(0u64.to_le_bytes());
        out.extend([0, 0, 0, 0, 64, 0, 56, 0, 3, 0, 64, 0, 0, 0, 0, 0]);
        for (kind, at, size) in
            [(1u32, 0, total), (3, headers, interpreter.len() as u64 + 1), (2, dynamic_at, dynamic_size)]
        {
            out.extend(kind.to_le_bytes());
            out.extend(4u32.to_le_bytes());
            for word in [at, at, at, size, size, 1] {
                out.extend(word.to_le_bytes());
            }
        }
        out.extend(interpreter.as_bytes());
        out.push(0);
        out.extend(strings);
        for (tag, value) in dynamic {
            out.extend(tag.to_le_bytes());
            out.extend(value.to_le_bytes());
        }
        out
    }

    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }
        fn path(&self, name: &str) -> PathBuf {
            self.0.path().canonicalize().unwrap().join(name)
        }
        fn put(&self, name: &str, tags: &[(elf::DynamicTag, &str)]) -> PathBuf {
            let path = self.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, dynamic_elf("/proc/self/exe", tags)).unwrap();
            path
        }
        fn closure(&self, name: &str) -> Result<Vec<(String, String)>, ClosureError> {
            let path = LibraryPath::only([self.path("lib"), self.path("lib2")]);
            let root = self.path("");
            let short = |p: PathBuf| p.strip_prefix(&root).unwrap().display().to_string();
            of(&self.path(name), &path).map(|c| c.libraries.into_iter().map(|(n, p)| (n, short(p))).collect())
        }
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn transitive_and_circular() {
        let host = Host::new();
        host.put("app", &[(elf::DT_NEEDED, "liba.so"), (elf::DT_NEEDED, "libb.so")]);
        host.put("lib/liba.so", &[(elf::DT_NEEDED, "libc.so")]);
        host.put("lib2/libb.so", &[(elf::DT_NEEDED, "liba.so")]);
        host.put("lib2/libc.so", &[(elf::DT_NEEDED, "libb.so")]);
        let expected = [("liba.so", "lib/liba.so"), ("libb.so", "lib2/libb.so"), ("libc.so", "lib2/libc.so")];
        assert_eq!(host.closure("app").unwrap(), pairs(&expected));
    }

    #[test]
    fn runpath_is_the_owners_alone_and_rpath_is_inherited() {
        let host = Host::new();
        host.put("bin/app", &[(elf::DT_NEEDED, "liba.so"), (elf::DT_RUNPATH, "$ORIGIN/../own")]);
        host.put("own/liba.so", &[(elf::DT_NEEDED, "libb.so")]);
        host.put("own/libb.so", &[]);
        let error = host.closure("bin/app").unwrap_err();
        assert!(matches!(&error, ClosureError::NotFound { library, .. } if library == "libb.so"), "{error}");

        host.put("bin/app", &[(elf::DT_NEEDED, "liba.so"), (elf::DT_RPATH, "${ORIGIN}/../own")]);
        let found = host.closure("bin/app").unwrap();
        assert_eq!(found.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["liba.so", "libb.so"]);
    }

    #[test]
    fn a_missing_library_names_itself_its_user_and_the_places() {
        let host = Host::new();
        let app = host.put("app", &[(elf::DT_NEEDED, "libgone.so.9"), (elf::DT_RUNPATH, "/opt/x")]);
        let text = host.closure("app").unwrap_err().to_string();
        let expected = format!(
            "library libgone.so.9, needed by {}, was not found; searched: /opt/x, {}, {}",
            app.display(),
            host.path("lib").display(),
            host.path("lib2").display()
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn libraries_of_another_machine_are_passed_over() {
        let host = Host::new();
        host.put("app", &[(elf::DT_NEEDED, "liba.so")]);
        let other = host.put("lib/liba.so", &[]);
        let mut bytes = fs::read(&other).unwrap();
        bytes[18] = 8;
        fs::write(&other, bytes).unwrap();
        host.put("lib2/liba.so", &[]);
        assert_eq!(host.closure("app").unwrap(), pairs(&[("liba.so", "lib2/liba.so")]));
    }

    #[test]
    fn what_is_no_executable() {
        let host = Host::new();
        let path = host.path("x");
        let refuse = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            of(&path, &LibraryPath::only([])).unwrap_err().to_string()
        };
        assert!(refuse(b"#!/bin/sh\n").contains("is no ELF executable: it starts with \"#!/bin/sh\\n\""));
        assert!(refuse(b"").contains("is no ELF executable"));
        let mut elf = dynamic_elf("/proc/self/exe", &[]);
        elf[18] = 8;
        assert!(refuse(&elf).contains("for another machine (64-bit, machine number 8)"));
        let mut outside = dynamic_elf("/proc/self/exe", &[(elf::DT_NEEDED, "x")]);
        let at = outside.len() - 48 + 8;
        outside[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(refuse(&outside).contains("damaged"));
        assert!(refuse(&dynamic_elf("/no/loader.so", &[])).contains("program interpreter /no/loader.so"));
    }

    #[test]
    fn every_truncation_ends_in_a_value() {
        let host = Host::new();
        let whole = dynamic_elf("/proc/self/exe", &[(elf::DT_NEEDED, "liba.so")]);
        host.put("lib/liba.so", &[]);
        for end in 0..whole.len() {
            fs::write(host.path("app"), &whole[..end]).unwrap();
            // Every cut is an error, except where only unused headers are lost.
            if let Ok(libraries) = host.closure("app") {
                assert!(libraries.is_empty(), "{end}");
            }
        }
        fs::write(host.path("app"), &whole).unwrap();
        assert_eq!(host.closure("app").unwrap().len(), 1);
    }

    #[test]
    fn programs_of_this_host() {
        let closure = of(Path::new("/bin/ls"), &LibraryPath::of_host(None)).unwrap();
        assert!(closure.interpreter.is_some());
        assert!(closure.libraries.keys().any(|name| name.starts_with("libc.")), "{closure:?}");
        assert!(closure.libraries.values().all(|path| path.is_file()));
        // This test executable is what gets packed in earnest.
        let own = of(&std::env::current_exe().unwrap(), &LibraryPath::of_host(None)).unwrap();
        assert!(own.libraries.keys().any(|name| name.starts_with("libgcc_s") || name.starts_with("libc.")));
    }
}

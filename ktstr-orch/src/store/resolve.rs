//! What a user may write after `--kernel`, and the kernel it names.
//!
//! A path (something with `/`, a `.deb`, or an existing file) is imported into
//! the store once and used from there; everything else must be cached already:
//! `debian`, `debian:7.2`, a series or version prefix, an entry's key. Nothing
//! here downloads; the error for a missing kernel names the command that does.
//! Without a selector: `KTSTR_TEST_KERNEL`, `KTSTR_KERNEL`, then the newest
//! cached kernel with sched_ext.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use super::entry::{EntryState, Metadata, ModuleRecord, Store, StoreError};
use super::import::{ImportError, import_image, import_packages};
use super::version::KernelVersion;

/// A kernel as the user named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelRef {
    /// `vmlinuz`, `bzImage` or `vmlinux` file.
    Image(PathBuf),
    /// Package files, comma-separated on the command line.
    Packages(Vec<PathBuf>),
    /// `debian` or `debian:SERIES`.
    Debian(Option<String>),
    /// A version, a prefix of one, or a key.
    Cached(String),
}

/// Why a text is no kernel selector.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// Nothing was given.
    #[error(
        "the kernel selector is empty; give a path, a version such as 7.2, debian:7.2 or a key from `ktstr kernel list`"
    )]
    Empty,
    /// A series that does not start with a number.
    #[error("{series:?} is no kernel series; write for example debian:7.2")]
    Series {
        /// What followed `debian:`.
        series: String,
    },
}

impl FromStr for KernelRef {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ParseError::Empty);
        }
        if text.split(',').all(|part| part.ends_with(".deb")) {
            return Ok(Self::Packages(text.split(',').map(PathBuf::from).collect()));
        }
        if let Some(series) = text.strip_prefix("debian:") {
            return match KernelVersion::parse(series) {
                Some(_) => Ok(Self::Debian(Some(series.to_owned()))),
                None => Err(ParseError::Series { series: series.to_owned() }),
            };
        }
        if text == "debian" {
            return Ok(Self::Debian(None));
        }
        if text.contains('/') || Path::new(text).is_file() {
            return Ok(Self::Image(PathBuf::from(text)));
        }
        Ok(Self::Cached(text.to_owned()))
    }
}

impl fmt::Display for KernelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(path) => path.display().fmt(f),
            Self::Packages(paths) => {
                let names: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
                f.write_str(&names.join(","))
            }
            Self::Debian(None) => f.write_str("debian"),
            Self::Debian(Some(series)) => write!(f, "debian:{series}"),
            Self::Cached(name) => f.write_str(name),
        }
    }
}

/// Why no kernel could be given.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The selector makes no sense.
    #[error("{from}: {source}")]
    Selector {
        /// The variable or option it came from.
        from: &'static str,
        /// Why.
        source: ParseError,
    },
    /// The selector's file is not there.
    #[error("kernel {path} does not exist")]
    NoFile {
        /// The path.
        path: PathBuf,
    },
    /// A directory was named.
    #[error(
        "kernel {path} is a directory; name the image in it, such as \
         {path}/arch/x86/boot/bzImage or {path}/vmlinux"
    )]
    Directory {
        /// The path.
        path: PathBuf,
    },
    /// The cache has no such kernel.
    #[error("no cached kernel matches {wanted}; {cached}. Fetch one with `ktstr kernel pull {pull}`")]
    NotCached {
        /// The selector.
        wanted: String,
        /// What the cache holds, as a phrase.
        cached: String,
        /// Argument of the pull command.
        pull: String,
    },
    /// No selector, and no cached kernel has sched_ext.
    #[error(
        "no kernel was named (--kernel, KTSTR_TEST_KERNEL, KTSTR_KERNEL) and the cache has none with \
         sched_ext; {cached}. Fetch one with `ktstr kernel pull`"
    )]
    Nothing {
        /// What the cache holds, as a phrase.
        cached: String,
    },
    /// A file could not be imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a kernel cannot run sched_ext schedulers.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "kernel {kernel} cannot run sched_ext schedulers: {reason}; use one from 6.12 on that was built with it (`ktstr kernel pull`)"
)]
pub struct KernelUnfit {
    /// The entry.
    pub kernel: String,
    /// What it lacks.
    pub reason: &'static str,
}

/// A kernel to boot. While it lives, its entry cannot be removed.
#[derive(Debug, Clone)]
pub struct Kernel {
    dir: PathBuf,
    metadata: Metadata,
    _lease: Arc<File>,
}

impl Kernel {
    /// What the store knows about it.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The entry's key.
    pub fn key(&self) -> &str {
        &self.metadata.key
    }

    /// `uname -r`.
    pub fn release(&self) -> &str {
        &self.metadata.release
    }

    /// The decompressed ELF image: PVH boot, BTF.
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// The boot image as shipped; absent when a bare `vmlinux` was imported.
    pub fn image(&self) -> Option<PathBuf> {
        self.file("image")
    }

    /// The configuration, when known.
    pub fn config(&self) -> Option<PathBuf> {
        self.file("config")
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        self.metadata.files.contains_key(name).then(|| self.dir.join(name))
    }

    /// The wanted modules this kernel has and all they depend on, in loading
    /// order: name and file. What is built in or absent is left out.
    pub fn modules(&self, wanted: &[&str]) -> Vec<(&str, PathBuf)> {
        let mut needed: Vec<&str> = wanted.to_vec();
        // Dependencies come before their users, so one walk from the end
        // meets every user before what it needs.
        let mut chosen: Vec<&ModuleRecord> = Vec::new();
        for module in self.metadata.modules.iter().rev() {
            if needed.contains(&module.name.as_str()) {
                needed.extend(module.depends.iter().map(String::as_str));
                chosen.push(module);
            }
        }
        chosen.reverse();
        chosen.into_iter().map(|m| (m.name.as_str(), self.dir.join(&m.file))).collect()
    }

    /// Refuses kernels that no sched_ext scheduler can run on.
    pub fn require_sched_ext(&self) -> Result<(), KernelUnfit> {
        let unfit = |reason| Err(KernelUnfit { kernel: self.metadata.key.clone(), reason });
        match (self.metadata.sched_ext, self.metadata.btf) {
            (Some(false), _) => unfit("it was built without CONFIG_SCHED_CLASS_EXT"),
            (_, false) => unfit("its image has no BTF (CONFIG_DEBUG_INFO_BTF)"),
            (None, true) => unfit("neither a configuration nor its BTF tells whether sched_ext is built in"),
            (Some(true), true) => Ok(()),
        }
    }
}

impl Store {
    /// The kernel a selector names, imported first when it is a file.
    pub fn resolve(&self, wanted: &KernelRef) -> Result<Kernel, ResolveError> {
        match wanted {
            KernelRef::Image(path) => {
                check_file(path)?;
                self.hold(import_image(self, path)?)
            }
            KernelRef::Packages(paths) => {
                paths.iter().try_for_each(|path| check_file(path))?;
                self.hold(import_packages(self, paths)?)
            }
            KernelRef::Debian(series) => {
                let series = series.as_deref().unwrap_or("");
                self.newest(|m| m.source.kind() == "debian" && matches_series(m, series))?
                    .ok_or_else(|| self.not_cached(wanted))
                    .and_then(|m| self.hold(m))
            }
            KernelRef::Cached(name) => {
                match self.load(name) {
                    Ok(metadata) => return self.hold(metadata),
                    Err(StoreError::NoEntry { .. } | StoreError::BadKey { .. }) => {}
                    Err(other) => return Err(other.into()),
                }
                self.newest(|m| matches_series(m, name))?
                    .ok_or_else(|| self.not_cached(wanted))
                    .and_then(|m| self.hold(m))
            }
        }
    }

    /// The kernel to use when `selector` (an option's value) may be absent:
    /// then `KTSTR_TEST_KERNEL`, `KTSTR_KERNEL`, the newest cached kernel with
    /// sched_ext. A variable that is set but empty is an error.
    pub fn discover(
        &self,
        selector: Option<&str>,
        lookup: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Kernel, ResolveError> {
        let variable = |name: &'static str| lookup(name).map(|v| (name, v.to_string_lossy().into_owned()));
        let named = selector
            .map(|text| ("--kernel", text.to_owned()))
            .or_else(|| variable("KTSTR_TEST_KERNEL"))
            .or_else(|| variable("KTSTR_KERNEL"));
        if let Some((from, text)) = named {
            return self.resolve(&text.parse().map_err(|source| ResolveError::Selector { from, source })?);
        }
        match self.newest(|m| m.sched_ext == Some(true) && m.btf)? {
            Some(metadata) => self.hold(metadata),
            None => Err(ResolveError::Nothing { cached: self.phrase() }),
        }
    }

    /// An image given by path is some kernel under work: only its path or key names it.
    fn newest(&self, fits: impl Fn(&Metadata) -> bool) -> Result<Option<Metadata>, StoreError> {
        let fits = |metadata: &Metadata| metadata.source.kind() != "image" && fits(metadata);
        // `list_quick` sorts the newest kernel first and damaged ones last.
        Ok(self.list_quick()?.into_iter().find_map(|entry| match entry.state {
            EntryState::Valid(metadata) if metadata.arch == std::env::consts::ARCH && fits(&metadata) => {
                Some(*metadata)
            }
            _ => None,
        }))
    }

    fn hold(&self, metadata: Metadata) -> Result<Kernel, ResolveError> {
        let lease = Arc::new(self.lease(&metadata.key)?);
        // Between the first look and the lock someone may have removed it.
        let metadata = self.load(&metadata.key)?;
        Ok(Kernel { dir: self.path(&metadata.key), metadata, _lease: lease })
    }

    fn not_cached(&self, wanted: &KernelRef) -> ResolveError {
        let pull = match wanted {
            KernelRef::Cached(name) if KernelVersion::parse(name).is_some() => format!("debian:{name}"),
            KernelRef::Debian(Some(series)) => format!("debian:{series}"),
            _ => "debian".to_owned(),
        };
        ResolveError::NotCached { wanted: wanted.to_string(), cached: self.phrase(), pull }
    }

    /// "cached are a, b" or "the cache at … is empty".
    fn phrase(&self) -> String {
        let keys: Vec<String> = self
            .list_quick()
            .into_iter()
            .flatten()
            .map(|entry| match entry.state {
                EntryState::Valid(_) => entry.key,
                EntryState::Corrupt(_) => format!("{} (damaged)", entry.key),
            })
            .collect();
        match keys.as_slice() {
            [] => format!("the cache at {} is empty", self.root().display()),
            keys => format!("cached are {}", keys.join(", ")),
        }
    }
}

fn matches_series(metadata: &Metadata, series: &str) -> bool {
    series.is_empty() || KernelVersion::parse(&metadata.release).is_some_and(|v| v.matches(series))
}

fn check_file(path: &Path) -> Result<(), ResolveError> {
    match path.metadata() {
        Ok(meta) if meta.is_dir() => Err(ResolveError::Directory { path: path.to_owned() }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(ResolveError::NoFile { path: path.to_owned() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::{
        Source,
        tests::{plant, plant_from},
    };
    use super::*;

    fn store(entries: &[(&str, &str, Option<bool>)]) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("k")).unwrap();
        for (key, release, sched_ext) in entries {
            plant(&store, key, release, *sched_ext);
        }
        (dir, store)
    }

    const TWO: &[(&str, &str, Option<bool>)] = &[
        ("a-7.2.9", "7.2.9+deb13", Some(true)),
        ("b-7.2.12", "7.2.12+deb13", Some(true)),
        ("c-6.12", "6.12.1", Some(false)),
        ("d-8.0", "8.0.0", Some(false)),
    ];

    fn resolved(store: &Store, text: &str) -> Result<String, String> {
        let wanted: KernelRef = text.parse().map_err(|e: ParseError| e.to_string())?;
        store.resolve(&wanted).map(|k| k.key().to_owned()).map_err(|e| e.to_string())
    }

    #[test]
    fn selectors_parse() {
        let parse = |text: &str| text.parse::<KernelRef>();
        assert_eq!(parse("debian"), Ok(KernelRef::Debian(None)));
        assert_eq!(parse("debian:7.2"), Ok(KernelRef::Debian(Some("7.2".into()))));
        assert_eq!(parse("debian:sid"), Err(ParseError::Series { series: "sid".into() }));
        assert_eq!(parse("7.2"), Ok(KernelRef::Cached("7.2".into())));
        assert_eq!(parse("./bzImage"), Ok(KernelRef::Image("./bzImage".into())));
        assert_eq!(parse("a.deb,/b.deb"), Ok(KernelRef::Packages(vec!["a.deb".into(), "/b.deb".into()])));
        assert_eq!(parse("  "), Err(ParseError::Empty));
        for text in ["debian", "debian:7.2", "7.2", "./bzImage", "a.deb,/b.deb"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn newest_match_wins() {
        let (_dir, store) = store(TWO);
        assert_eq!(resolved(&store, "7.2").unwrap(), "b-7.2.12");
        assert_eq!(resolved(&store, "7.2.9").unwrap(), "a-7.2.9");
        assert_eq!(resolved(&store, "c-6.12").unwrap(), "c-6.12");
        let image = Source::Image { path: "/work/vmlinux".into() };
        plant_from(&store, "image-7.2.13", "7.2.13", Some(true), image);
        assert_eq!(resolved(&store, "7.2").unwrap(), "b-7.2.12");
        assert_eq!(resolved(&store, "image-7.2.13").unwrap(), "image-7.2.13");
    }

    #[test]
    fn a_missing_kernel_lists_what_is_there_and_how_to_get_it() {
        let (_dir, cached) = store(TWO);
        let error = resolved(&cached, "7.3").unwrap_err();
        for part in ["7.3", "a-7.2.9, c-6.12", "ktstr kernel pull debian:7.3"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let (_dir, empty) = store(&[]);
        assert!(resolved(&empty, "debian").unwrap_err().contains("is empty"));
        assert!(resolved(&empty, "/nowhere/vmlinuz").unwrap_err().contains("does not exist"));
        assert!(resolved(&empty, "/tmp/").unwrap_err().contains("is a directory"));
    }

    #[test]
    fn discovery_order() {
        let (_dir, store) = store(TWO);
        let env = |vars: &'static [(&'static str, &'static str)]| {
            move |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v))
        };
        let found = |selector, vars| store.discover(selector, env(vars)).map(|k| k.key().to_owned());
        let both: &[_] = &[("KTSTR_TEST_KERNEL", "7.2.9"), ("KTSTR_KERNEL", "6.12")];
        assert_eq!(found(Some("7.2"), both).unwrap(), "b-7.2.12");
        assert_eq!(found(None, both).unwrap(), "a-7.2.9");
        assert_eq!(found(None, &[("KTSTR_KERNEL", "6.12")]).unwrap(), "c-6.12");
        assert_eq!(found(None, &[]).unwrap(), "b-7.2.12", "8.0 is newer but lacks sched_ext");
        let empty = found(None, &[("KTSTR_TEST_KERNEL", "")]).unwrap_err().to_string();
        assert!(empty.starts_with("KTSTR_TEST_KERNEL: the kernel selector is empty"), "{empty}");
    }

    #[test]
    fn nothing_cached_says_so() {
        let (_dir, store) = store(&TWO[2..]);
        let error = store.discover(None, |_| None).unwrap_err().to_string();
        assert!(error.contains("c-6.12") && error.contains("ktstr kernel pull"), "{error}");
    }

    #[test]
    fn sched_ext_is_required_with_the_reason() {
        let (_dir, store) =
            store(&[("no", "6.12.1", Some(false)), ("dark", "6.13", None), ("yes", "6.14", Some(true))]);
        let require = |key: &str| store.resolve(&KernelRef::Cached(key.into())).unwrap().require_sched_ext();
        assert!(require("no").unwrap_err().to_string().contains("CONFIG_SCHED_CLASS_EXT"));
        assert!(require("dark").unwrap_err().to_string().contains("neither"));
        assert_eq!(require("yes"), Ok(()));
    }

    #[test]
    fn damaged_entries_are_not_used() {
        let (_dir, store) = store(TWO);
        std::fs::write(store.path("b-7.2.12").join("vmlinux"), "x").unwrap();
        assert_eq!(resolved(&store, "7.2").unwrap(), "a-7.2.9");
        assert!(resolved(&store, "b-7.2.12").unwrap_err().contains("damaged"));
    }

    #[test]
    fn modules_bring_their_dependencies() {
        let (_dir, store) = store(TWO);
        let kernel = store.resolve(&KernelRef::Cached("7.2".into())).unwrap();
        let found = kernel.modules(&["virtio_blk", "virtio_pci"]);
        assert_eq!(found, [("virtio_blk", store.path("b-7.2.12").join("modules/virtio_blk.ko"))]);
        assert!(kernel.modules(&[]).is_empty());
    }
}

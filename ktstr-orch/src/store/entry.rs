//! The store on disk: entries, their metadata, locks and atomic installation.
//!
//! ```text
//! <root>/<key>/metadata.json vmlinux image config modules/<name>.ko
//! <root>/.staging/<key>/     being written, under the key's exclusive lock
//! <root>/.locks/<key>.lock   exclusive: install, remove; shared: in use
//! ```
//!
//! Loading an entry checks that every recorded file is there with its
//! recorded size; [`Store::list`] also compares digests. Damaged entries are
//! listed with the reason and refused by [`Store::load`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::digest;
use super::version::KernelVersion;

/// Raised when old readers would misread a new entry.
const FORMAT: u32 = 1;
const METADATA: &str = "metadata.json";

/// Where an entry's kernel came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Source {
    /// Packages fetched by the host's package client.
    Debian {
        /// Suite names that were asked.
        suites: Vec<String>,
        /// `name=version` of each package.
        packages: Vec<String>,
    },
    /// Package files the user named.
    PackageFiles {
        /// Their paths.
        paths: Vec<PathBuf>,
    },
    /// An image the user named.
    Image {
        /// Its path.
        path: PathBuf,
    },
}

impl Source {
    /// One word for listings.
    pub fn kind(&self) -> &'static str {
        match self {
            Source::Debian { .. } => "debian",
            Source::PackageFiles { .. } => "deb",
            Source::Image { .. } => "image",
        }
    }
}

/// Size and digest of a file of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Bytes.
    pub size: u64,
    /// Lower-case hexadecimal SHA-256.
    pub sha256: String,
}

/// A module of an entry; the list is in loading order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleRecord {
    /// The kernel's name for it, with underscores.
    pub name: String,
    /// File below the entry.
    pub file: String,
    /// Modules to load before it.
    pub depends: Vec<String>,
}

/// What `metadata.json` of an entry says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Layout version of this file.
    pub format: u32,
    /// The entry's name.
    pub key: String,
    /// `uname -r` of the kernel.
    pub release: String,
    /// Upstream version: `7.2.12`.
    pub version: String,
    /// `7.2`.
    pub series: String,
    /// `x86_64`.
    pub arch: String,
    /// Where it came from.
    pub source: Source,
    /// Whether sched_ext is compiled in; absent when the kernel does not tell.
    pub sched_ext: Option<bool>,
    /// Whether the image carries BTF.
    pub btf: bool,
    /// Every file, by its path below the entry.
    pub files: BTreeMap<String, FileRecord>,
    /// Modules in loading order.
    pub modules: Vec<ModuleRecord>,
    /// When the entry was made, RFC 3339.
    pub created: String,
    /// Version of ktstr that made it.
    pub ktstr: String,
}

/// Why the store could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An entry is not what its record says.
    #[error(
        "kernel {key} in the cache is damaged: {reason}; remove it with `ktstr kernel clean --corrupt-only`"
    )]
    Corrupt {
        /// The entry.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// There is no such entry.
    #[error("no kernel {key} in the cache at {root}")]
    NoEntry {
        /// The wanted key.
        key: String,
        /// The store.
        root: PathBuf,
    },
    /// A key that is no plain directory name.
    #[error("{key:?} is no kernel key")]
    BadKey {
        /// The key.
        key: String,
    },
    /// Someone is using the entry.
    #[error("kernel {key} is in use by a running test or shell")]
    InUse {
        /// The entry.
        key: String,
    },
}

/// State of a listed entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryState {
    /// Usable.
    Valid(Box<Metadata>),
    /// Not usable, and why.
    Corrupt(String),
}

/// An entry as [`Store::list`] reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedEntry {
    /// Directory name.
    pub key: String,
    /// What was found there.
    pub state: EntryState,
}

/// How closely an entry is compared with its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Sizes,
    Digests,
}

/// The kernel store of one directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store, creating its directories when absent.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let root: PathBuf = root.into();
        for dir in [root.clone(), root.join(".locks"), root.join(".staging")] {
            fs::create_dir_all(&dir).map_err(|source| StoreError::Io {
                action: "create directory",
                path: dir,
                source,
            })?;
        }
        Ok(Self { root })
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Directory of an entry, whether it exists or not.
    pub fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// All entries, newest kernel first, damaged ones last. Reads every byte.
    pub fn list(&self) -> Result<Vec<ListedEntry>, StoreError> {
        self.scan(Check::Digests)
    }

    /// As [`Store::list`], but compares sizes only.
    pub fn list_quick(&self) -> Result<Vec<ListedEntry>, StoreError> {
        self.scan(Check::Sizes)
    }

    fn scan(&self, check: Check) -> Result<Vec<ListedEntry>, StoreError> {
        let failed = |source| StoreError::Io { action: "read directory", path: self.root.clone(), source };
        let mut entries = Vec::new();
        for dir in fs::read_dir(&self.root).map_err(failed)? {
            let dir = dir.map_err(failed)?;
            let key = dir.file_name().to_string_lossy().into_owned();
            if key.starts_with('.') || !dir.path().is_dir() {
                continue;
            }
            let state = match self.inspect(&key, check) {
                Ok(metadata) => EntryState::Valid(Box::new(metadata)),
                Err(reason) => EntryState::Corrupt(reason),
            };
            entries.push(ListedEntry { key, state });
        }
        entries.sort_by(|a, b| rank(b).cmp(&rank(a)).then_with(|| a.key.cmp(&b.key)));
        Ok(entries)
    }

    /// An entry's metadata, its files present with the recorded sizes.
    pub fn load(&self, key: &str) -> Result<Metadata, StoreError> {
        check_key(key)?;
        if !self.path(key).is_dir() {
            return Err(StoreError::NoEntry { key: key.to_owned(), root: self.root.clone() });
        }
        self.inspect(key, Check::Sizes).map_err(|reason| StoreError::Corrupt { key: key.to_owned(), reason })
    }

    fn inspect(&self, key: &str, check: Check) -> Result<Metadata, String> {
        let dir = self.path(key);
        let text = fs::read(dir.join(METADATA)).map_err(|e| format!("{METADATA}: {e}"))?;
        let metadata: Metadata = serde_json::from_slice(&text).map_err(|e| format!("{METADATA}: {e}"))?;
        if metadata.format != FORMAT {
            return Err(format!("{METADATA} has format {}, this version reads {FORMAT}", metadata.format));
        }
        if metadata.key != key {
            return Err(format!("{METADATA} is of entry {}", metadata.key));
        }
        for needed in ["vmlinux"].into_iter().chain(metadata.modules.iter().map(|m| m.file.as_str())) {
            if !metadata.files.contains_key(needed) {
                return Err(format!("{METADATA} records no file {needed}"));
            }
        }
        for (name, record) in &metadata.files {
            if Path::new(name).components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
                return Err(format!("{METADATA} records the path {name:?}"));
            }
            check_file(&dir.join(name), record, check).map_err(|e| format!("{name}: {e}"))?;
        }
        Ok(metadata)
    }

    /// Takes the exclusive lock of a key and gives a directory to fill.
    pub(super) fn stage(&self, key: &str) -> Result<Staging<'_>, StoreError> {
        check_key(key)?;
        let lock = self.lock_file(key)?;
        lock.lock().map_err(|source| StoreError::Io { action: "lock", path: self.lock_path(key), source })?;
        let dir = self.root.join(".staging").join(key);
        // Whatever lies there was left by a process that died holding this lock.
        remove_tree(&dir)?;
        fs::create_dir_all(dir.join("modules")).map_err(|source| StoreError::Io {
            action: "create directory",
            path: dir.clone(),
            source,
        })?;
        Ok(Staging { store: self, key: key.to_owned(), dir, _lock: lock })
    }

    /// Holds an entry so that nobody removes it while it is booted.
    pub(super) fn lease(&self, key: &str) -> Result<File, StoreError> {
        let lock = self.lock_file(key)?;
        lock.lock_shared().map_err(|source| StoreError::Io {
            action: "lock",
            path: self.lock_path(key),
            source,
        })?;
        Ok(lock)
    }

    /// Removes an entry that nobody is using.
    pub fn remove(&self, key: &str) -> Result<(), StoreError> {
        check_key(key)?;
        let lock = self.lock_file(key)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(StoreError::InUse { key: key.to_owned() }),
            Err(fs::TryLockError::Error(source)) => {
                return Err(StoreError::Io { action: "lock", path: self.lock_path(key), source });
            }
        }
        self.displace(key)
    }

    /// Takes the name away first, then the files: nobody sees half an entry.
    fn displace(&self, key: &str) -> Result<(), StoreError> {
        let (from, to) = (self.path(key), self.root.join(".staging").join(format!("{key}.old")));
        remove_tree(&to)?;
        match fs::rename(&from, &to) {
            Ok(()) => remove_tree(&to),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(StoreError::Io { action: "rename", path: from, source }),
        }
    }

    fn lock_path(&self, key: &str) -> PathBuf {
        self.root.join(".locks").join(format!("{key}.lock"))
    }

    pub(super) fn lock_file(&self, key: &str) -> Result<File, StoreError> {
        let path = self.lock_path(key);
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|source| StoreError::Io { action: "open lock file", path, source })
    }
}

/// Damaged entries sort below all versions; of one version, what came as a
/// whole package set is newest, since a bare image lacks modules.
fn rank(entry: &ListedEntry) -> Option<(KernelVersion, u8, String)> {
    match &entry.state {
        EntryState::Valid(m) => {
            let whole = match m.source {
                Source::Debian { .. } => 2,
                Source::PackageFiles { .. } => 1,
                Source::Image { .. } => 0,
            };
            KernelVersion::parse(&m.release).map(|v| (v, whole, m.created.clone()))
        }
        EntryState::Corrupt(_) => None,
    }
}

fn check_key(key: &str) -> Result<(), StoreError> {
    let plain = key.chars().all(|c| c.is_ascii_alphanumeric() || "+-._~".contains(c));
    if plain && !key.is_empty() && !key.starts_with('.') && key.len() < 200 {
        Ok(())
    } else {
        Err(StoreError::BadKey { key: key.to_owned() })
    }
}

fn check_file(path: &Path, record: &FileRecord, check: Check) -> Result<(), String> {
    let size = fs::symlink_metadata(path).map_err(|e| e.to_string())?;
    if !size.is_file() {
        return Err("is no regular file".to_owned());
    }
    if size.len() != record.size {
        return Err(format!("has {} bytes, recorded are {}", size.len(), record.size));
    }
    if check == Check::Digests && digest::of_file(path).map_err(|e| e.to_string())?.0 != record.sha256 {
        return Err("content differs from the recorded digest".to_owned());
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::Io { action: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// What an installer knows about its kernel besides the files.
pub(super) struct Description {
    pub release: String,
    pub arch: String,
    pub source: Source,
    pub sched_ext: Option<bool>,
    pub btf: bool,
    pub modules: Vec<ModuleRecord>,
}

/// A directory being filled; dropped without [`Staging::install`] it vanishes.
pub(super) struct Staging<'a> {
    store: &'a Store,
    key: String,
    dir: PathBuf,
    _lock: File,
}

impl Staging<'_> {
    /// Writes one file of the entry.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        fs::write(&path, bytes).map_err(|source| StoreError::Io { action: "write", path, source })
    }

    /// Records what was written and gives the entry its name.
    pub(super) fn install(self, about: Description) -> Result<Metadata, StoreError> {
        let mut files = BTreeMap::new();
        record_files(&self.dir, "", &mut files)?;
        let version = KernelVersion::parse(&about.release);
        let metadata = Metadata {
            format: FORMAT,
            key: self.key.clone(),
            version: version.as_ref().map_or_else(|| about.release.clone(), KernelVersion::upstream),
            series: version.as_ref().map_or_else(String::new, KernelVersion::series),
            release: about.release,
            arch: about.arch,
            source: about.source,
            sched_ext: about.sched_ext,
            btf: about.btf,
            files,
            modules: about.modules,
            created: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            ktstr: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let path = self.dir.join(METADATA);
        let written = serde_json::to_vec_pretty(&metadata).map_err(io::Error::from).and_then(|mut text| {
            text.push(b'\n');
            fs::write(&path, text)?;
            File::open(&path)?.sync_all()
        });
        written.map_err(|source| StoreError::Io { action: "write", path, source })?;
        self.store.displace(&self.key)?;
        let target = self.store.path(&self.key);
        fs::rename(&self.dir, &target).map_err(|source| StoreError::Io {
            action: "rename the finished entry to",
            path: target,
            source,
        })?;
        Ok(metadata)
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        // After a successful install the directory has another name. What
        // cannot be removed now is removed by the next one to stage this key.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn record_files(dir: &Path, below: &str, files: &mut BTreeMap<String, FileRecord>) -> Result<(), StoreError> {
    let failed = |source| StoreError::Io { action: "read back", path: dir.to_owned(), source };
    for item in fs::read_dir(dir).map_err(failed)? {
        let item = item.map_err(failed)?;
        let name = format!("{below}{}", item.file_name().to_string_lossy());
        if item.path().is_dir() {
            record_files(&item.path(), &format!("{name}/"), files)?;
        } else {
            let (sha256, size) = digest::of_file(&item.path()).map_err(failed)?;
            files.insert(name, FileRecord { size, sha256 });
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Installs a small entry and gives its metadata.
    pub(in crate::store) fn plant(
        store: &Store,
        key: &str,
        release: &str,
        sched_ext: Option<bool>,
    ) -> Metadata {
        plant_from(store, key, release, sched_ext, Source::PackageFiles { paths: vec!["/x.deb".into()] })
    }

    pub(in crate::store) fn plant_from(
        store: &Store,
        key: &str,
        release: &str,
        sched_ext: Option<bool>,
        source: Source,
    ) -> Metadata {
        let staging = store.stage(key).unwrap();
        staging.write("vmlinux", b"\x7fELF kernel").unwrap();
        staging.write("config", b"CONFIG_X=y\n").unwrap();
        staging.write("modules/virtio_blk.ko", b"module").unwrap();
        let module = ModuleRecord {
            name: "virtio_blk".into(),
            file: "modules/virtio_blk.ko".into(),
            depends: Vec::new(),
        };
        let about = Description {
            release: release.into(),
            arch: "x86_64".into(),
            source,
            sched_ext,
            btf: true,
            modules: vec![module],
        };
        staging.install(about).unwrap()
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("k")).unwrap();
        (dir, store)
    }

    fn states(store: &Store) -> Vec<(String, bool)> {
        let listed = store.list().unwrap();
        listed.into_iter().map(|e| (e.key, matches!(e.state, EntryState::Valid(_)))).collect()
    }

    #[test]
    fn install_load_list_remove() {
        let (_dir, store) = store();
        let metadata = plant(&store, "old", "6.18.1", Some(true));
        plant(&store, "new", "7.2.0", Some(true));
        assert_eq!(store.load("old").unwrap(), metadata);
        assert_eq!(metadata.series, "6.18");
        assert_eq!(states(&store), [("new".into(), true), ("old".into(), true)]);
        store.remove("new").unwrap();
        assert_eq!(states(&store), [("old".into(), true)]);
        assert!(matches!(store.load("new"), Err(StoreError::NoEntry { .. })));
    }

    #[test]
    fn reinstalling_replaces() {
        let (_dir, store) = store();
        plant(&store, "a", "6.18.1", Some(true));
        fs::write(store.path("a").join("vmlinux"), "damaged").unwrap();
        assert!(matches!(store.load("a"), Err(StoreError::Corrupt { .. })));
        plant(&store, "a", "6.18.1", Some(true));
        store.load("a").unwrap();
    }

    #[test]
    fn an_abandoned_staging_has_no_name_and_is_cleared() {
        let (_dir, store) = store();
        drop(store.stage("a").unwrap());
        let staging = store.stage("b").unwrap();
        staging.write("vmlinux", b"x").unwrap();
        // As if the process had died here: no destructor, the lock is gone.
        let (left, lock) = (staging.dir.clone(), staging._lock.try_clone().unwrap());
        std::mem::forget(staging);
        lock.unlock().unwrap();
        assert!(states(&store).is_empty());
        let again = store.stage("b").unwrap();
        assert!(!left.join("vmlinux").exists());
        drop(again);
        assert!(!left.exists());
    }

    #[test]
    fn damage_is_reported_with_its_reason() {
        type Damage = fn(&Path);
        let damages: [(&str, Damage); 6] = [
            ("vmlinux: content differs", |dir| fs::write(dir.join("vmlinux"), "\x7fELF kernxl").unwrap()),
            ("vmlinux: has 3 bytes", |dir| fs::write(dir.join("vmlinux"), "abc").unwrap()),
            ("config: No such file", |dir| fs::remove_file(dir.join("config")).unwrap()),
            ("metadata.json: No such file", |dir| fs::remove_file(dir.join(METADATA)).unwrap()),
            ("metadata.json: expected", |dir| fs::write(dir.join(METADATA), "junk").unwrap()),
            ("format 99", |dir| {
                let text = fs::read_to_string(dir.join(METADATA)).unwrap();
                fs::write(dir.join(METADATA), text.replace("\"format\": 1", "\"format\": 99")).unwrap();
            }),
        ];
        for (wanted, damage) in damages {
            let (_dir, store) = store();
            plant(&store, "a", "6.18.1", Some(true));
            damage(&store.path("a"));
            let listed = store.list().unwrap();
            match &listed[0].state {
                EntryState::Corrupt(reason) => assert!(reason.contains(wanted), "{wanted}: {reason}"),
                EntryState::Valid(_) => panic!("{wanted}: not noticed"),
            }
        }
    }

    #[test]
    fn paths_that_leave_the_entry_are_damage() {
        let (_dir, store) = store();
        plant(&store, "a", "6.18.1", Some(true));
        let path = store.path("a").join(METADATA);
        let text = fs::read_to_string(&path).unwrap().replace("\"config\"", "\"../../config\"");
        fs::write(&path, text).unwrap();
        assert!(matches!(store.load("a"), Err(StoreError::Corrupt { .. })));
    }

    #[test]
    fn an_entry_in_use_stays() {
        let (_dir, store) = store();
        plant(&store, "a", "6.18.1", Some(true));
        let lease = store.lease("a").unwrap();
        assert!(matches!(store.remove("a"), Err(StoreError::InUse { .. })));
        drop(lease);
        store.remove("a").unwrap();
    }

    #[test]
    fn keys_are_plain_names() {
        let (_dir, store) = store();
        for key in ["", "..", ".staging", "a/b", "a b", "ä"] {
            assert!(matches!(store.load(key), Err(StoreError::BadKey { .. })), "{key}");
        }
        assert!(matches!(store.load("debian-7.2.12+deb13"), Err(StoreError::NoEntry { .. })));
    }
}

//! The store of snapshots: machines that stood ready, each found by what it is.
//!
//! A [`Likeness`] names everything that a machine depends on, one thing per line: what has the same text
//! may begin from the same snapshot. It stands in the file's header and gives the file its name, so an
//! entry that is damaged, from another version or of another machine is seen before its body is read;
//! it is then removed, and the machine boots. A file appears under its name only when it is complete and
//! on the disk. The store is bounded: what was used longest ago goes first.

use std::{
    fmt::Write as _,
    fs::{self, File, FileTimes, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

use ktstr_proto::{
    link::chain,
    snapshot::{Header, SnapshotError},
};

use crate::store::digest;

/// Variable for the store's directory.
pub const DIR: &str = "KTSTR_WARM_DIR";
/// Variable for how much the store may hold, MiB.
pub const LIMIT: &str = "KTSTR_WARM_MB";
const DEFAULT_LIMIT_MB: u64 = 4096;
/// A file that is still being written after this long has no writer any more.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Everything that a machine is made of.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Likeness(String);

impl Likeness {
    /// Adds one thing.
    pub fn add(&mut self, what: &str, value: impl std::fmt::Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{what}: {value}");
    }

    /// Adds a file: another one, or the same changed, is another machine.
    pub fn add_file(&mut self, what: &str, path: &Path) {
        self.add(what, identity(path));
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// A file's path, length and time of change.
pub fn identity(path: &Path) -> String {
    match fs::metadata(path) {
        Ok(meta) => {
            let changed = (meta.mtime(), meta.mtime_nsec());
            format!("{} {} {}.{:09} {}", path.display(), meta.len(), changed.0, changed.1, meta.ino())
        }
        Err(_) => format!("{} absent", path.display()),
    }
}

/// Where the snapshots are.
#[derive(Debug, Clone)]
pub struct WarmStore {
    dir: PathBuf,
    limit: u64,
}

/// A snapshot being written; removed unless it is kept.
#[derive(Debug)]
pub struct Unfinished {
    /// The file, empty at first.
    pub file: File,
    path: PathBuf,
    place: PathBuf,
    store: WarmStore,
}

impl WarmStore {
    /// Below `dir`, which need not exist.
    pub fn new(dir: PathBuf, limit_mb: Option<u64>) -> Self {
        Self { dir, limit: limit_mb.unwrap_or(DEFAULT_LIMIT_MB) << 20 }
    }

    fn place(&self, likeness: &Likeness) -> PathBuf {
        let name = digest::of_parts([likeness.text().as_bytes()]);
        self.dir.join(format!("{}.snapshot", &name[..32]))
    }

    /// The snapshot of such a machine, and what was wrong with it if it had to be removed.
    pub fn find(&self, likeness: &Likeness) -> (Option<File>, Option<String>) {
        let place = self.place(likeness);
        let Ok(mut file) = File::open(&place) else { return (None, None) };
        let sound = Header::read(&mut file).and_then(|header| {
            if header.description != likeness.text() {
                return Err(SnapshotError::Damaged { part: "it is of another machine" });
            }
            if file.metadata()?.len() != header.file_len() {
                return Err(SnapshotError::Damaged { part: "its length" });
            }
            Ok(())
        });
        match sound {
            Ok(()) => {
                // For the order in which they go.
                let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
                (Some(file), None)
            }
            Err(error) => (None, Some(self.discard(likeness, &chain(&error)))),
        }
    }

    /// Removes the snapshot of such a machine; returns the line that says so.
    pub fn discard(&self, likeness: &Likeness, why: &str) -> String {
        let place = self.place(likeness);
        // Somebody else may have done it.
        let _ = fs::remove_file(&place);
        format!("warning: snapshot {} discarded, the guest boots cold: {why}", place.display())
    }

    /// A file to write the snapshot of such a machine to.
    pub fn begin(&self, likeness: &Likeness) -> io::Result<Unfinished> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        fs::create_dir_all(&self.dir)?;
        let place = self.place(likeness);
        let ending = format!("{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = place.with_extension(ending);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok(Unfinished { file, path, place, store: self.clone() })
    }

    /// Removes what nobody finishes and, beyond the limit, what was used longest ago.
    fn prune(&self) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.dir)?.flatten() {
            let (path, Ok(meta)) = (entry.path(), entry.metadata()) else { continue };
            let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let age = SystemTime::now().duration_since(used).unwrap_or_default();
            match path.extension().and_then(|e| e.to_str()) {
                Some("snapshot") => entries.push((used, meta.len(), path)),
                Some("tmp") if age > ABANDONED => fs::remove_file(path)?,
                _ => {}
            }
        }
        entries.sort();
        let mut total: u64 = entries.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in entries {
            if total <= self.limit {
                break;
            }
            fs::remove_file(path)?;
            total -= len;
        }
        Ok(())
    }
}

impl Unfinished {
    /// What was written becomes the snapshot of its machine, once it is on the disk.
    pub fn keep(self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, &self.place)?;
        File::open(&self.store.dir)?.sync_all()?;
        self.store.prune()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Not there any more when it was kept.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::FileExt};

    use super::*;

    fn likeness(text: &str) -> Likeness {
        let mut likeness = Likeness::default();
        likeness.add("machine", text);
        likeness
    }

    fn header(likeness: &Likeness) -> Vec<u8> {
        let description = likeness.text().to_owned();
        let header =
            Header { description, ram: 0, content: 0, state: 0, state_crc: 0, pieces: 0, table_crc: 0 };
        header.encode().unwrap()
    }

    fn keep(store: &WarmStore, likeness: &Likeness) {
        let mut unfinished = store.begin(likeness).unwrap();
        unfinished.file.write_all(&header(likeness)).unwrap();
        unfinished.keep().unwrap();
    }

    #[test]
    fn what_was_kept_is_found_and_nothing_half_written_is() {
        let dir = tempfile::tempdir().unwrap();
        let store = WarmStore::new(dir.path().join("warm"), None);
        let one = likeness("1");
        assert!(matches!(store.find(&one), (None, None)));
        let mut unfinished = store.begin(&one).unwrap();
        unfinished.file.write_all(&header(&one)).unwrap();
        assert!(matches!(store.find(&one), (None, None)), "not before it is kept");
        drop(unfinished);
        assert_eq!(fs::read_dir(dir.path().join("warm")).unwrap().count(), 0);
        keep(&store, &one);
        assert!(matches!(store.find(&one), (Some(_), None)));
        assert!(matches!(store.find(&likeness("2")), (None, None)));
    }

    #[test]
    fn a_damaged_one_is_removed_with_a_word() {
        let dir = tempfile::tempdir().unwrap();
        let store = WarmStore::new(dir.path().to_owned(), None);
        let one = likeness("1");
        for damage in [
            |file: &File| file.write_all_at(b"x", 100).unwrap(),
            |file: &File| file.write_all_at(&2u32.to_le_bytes(), 8).unwrap(),
            |file: &File| file.set_len(4095).unwrap(),
            |file: &File| file.set_len(4097).unwrap(),
            |file: &File| file.write_all_at(&header(&likeness("2")), 0).unwrap(),
        ] {
            keep(&store, &one);
            damage(&OpenOptions::new().write(true).open(store.place(&one)).unwrap());
            let (None, Some(why)) = store.find(&one) else { panic!("it is used") };
            assert!(why.contains("discarded") && why.contains("cold"), "{why}");
            assert!(!store.place(&one).exists());
        }
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = WarmStore::new(dir.path().to_owned(), None);
        let all: Vec<Likeness> = ["1", "2", "3"].map(likeness).to_vec();
        for (age, one) in all.iter().enumerate() {
            keep(&store, one);
            let at = SystemTime::now() - Duration::from_secs(100 - age as u64);
            let file = File::open(store.place(one)).unwrap();
            file.set_times(FileTimes::new().set_modified(at)).unwrap();
        }
        store.find(&all[0]);
        store.limit = 2 * 4096;
        store.prune().unwrap();
        let left: Vec<bool> = all.iter().map(|one| store.find(one).0.is_some()).collect();
        assert_eq!(left, [true, false, true]);
    }
}

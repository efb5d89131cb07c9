//! The store of snapshots: machines that stood ready, each found by what it is.
//!
//! A [`Likeness`] names everything that a machine depends on, one thing per line: what has the same text
//! may begin from the same snapshot. It stands in the file's header and gives the file its name, so an
//! entry that is damaged, from another version or of another machine is seen before its body is read;
//! it is then removed, and the machine boots. A file appears under its name only when it is complete, and
//! of those that could write it at the same time one does. Nothing waits for the disk: a snapshot serves
//! during the host's present boot only, and what is torn all the same is seen by its checksums. The store
//! is bounded: what was used longest ago goes first.

use std::{
    fmt::Write as _,
    fs::{self, File, FileTimes, OpenOptions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use ktstr_proto::{
    link::chain,
    snapshot::{Header, SnapshotError},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statvfs::fstatvfs,
    unistd::geteuid,
};

use crate::store::digest;

/// Variable for the store's directory.
pub const DIR: &str = "KTSTR_WARM_DIR";
/// Variable for how much the store may hold, MiB.
pub const LIMIT: &str = "KTSTR_WARM_MB";
const DEFAULT_LIMIT_MB: u64 = 4096;
/// Without a limit of the user's, the store takes at most one part in so many of what is free or its own.
const SHARE_OF_FREE: u64 = 4;
/// Less is not worth a snapshot, bytes: the smallest machines take about as much.
const SMALLEST: u64 = 128 << 20;
/// In place of a snapshot that is larger than the store may be: its length.
const TOO_LARGE: &str = "too-large";
/// What nobody has used for so long goes.
const STALE: Duration = Duration::from_secs(14 * 24 * 3600);

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
        // A file may be written anew where it is.
        let mut inside: Vec<String> =
            fs::read_dir(path).into_iter().flatten().flatten().map(|entry| identity(&entry.path())).collect();
        if !inside.is_empty() {
            inside.sort();
            let digest = digest::of_parts(inside.iter().map(String::as_bytes));
            self.add(what, &digest[..32]);
        }
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
    /// Bytes, where the user has said so.
    limit: Option<u64>,
}

/// A snapshot being written, by nobody else at the same time; removed unless it is kept.
#[derive(Debug)]
pub struct Unfinished {
    file: Flock<File>,
    path: PathBuf,
    place: PathBuf,
    kept: bool,
    store: WarmStore,
}

impl WarmStore {
    /// Below `dir`, which need not exist.
    pub fn new(dir: PathBuf, limit_mb: Option<u64>) -> Self {
        Self { dir, limit: limit_mb.map(|mb| mb.saturating_mul(1 << 20)) }
    }

    fn place(&self, likeness: &Likeness) -> PathBuf {
        let name = digest::of_parts([likeness.text().as_bytes()]);
        self.dir.join(format!("{}.snapshot", &name[..32]))
    }

    /// The snapshot of such a machine, and what was wrong with it if it had to be removed.
    pub fn find(&self, likeness: &Likeness) -> (Option<File>, Option<String>) {
        let place = self.place(likeness);
        let opened = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(&place);
        let Ok(mut file) = opened else { return (None, None) };
        if file.metadata().map_or(true, |meta| meta.uid() != geteuid().as_raw()) {
            return (None, Some(self.discard(likeness, "it belongs to another user")));
        }
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

    /// A file to write the snapshot of such a machine to; `None` when somebody is writing it, or when there is
    /// no room for one.
    pub fn begin(&self, likeness: &Likeness) -> io::Result<Option<Unfinished>> {
        // What guests had in memory is nobody else's to read.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let limit = self.limit(0)?;
        if limit < SMALLEST {
            return Ok(None);
        }
        let place = self.place(likeness);
        // One like it had no room.
        let large = fs::read_to_string(place.with_extension(TOO_LARGE)).ok().and_then(|len| len.parse().ok());
        if large.is_some_and(|len: u64| len > limit) {
            return Ok(None);
        }
        let path = place.with_extension("tmp");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(0o600).custom_flags(libc::O_NOFOLLOW).open(&path)?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(errno.into()),
        };
        // Whoever held it may have finished, and then the file has the other name.
        let own = file.metadata()?;
        let same =
            fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino()));
        if !same || place.exists() {
            if same {
                fs::remove_file(&path)?;
            }
            return Ok(None);
        }
        // What a dead writer left.
        file.set_len(0)?;
        Ok(Some(Unfinished { file, path, place, kept: false, store: self.clone() }))
    }

    /// Bytes that it may hold, which are `held` now.
    fn limit(&self, held: u64) -> io::Result<u64> {
        if let Some(limit) = self.limit {
            return Ok(limit);
        }
        let disk = fstatvfs(File::open(&self.dir)?)?;
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        Ok((DEFAULT_LIMIT_MB << 20).min((free + held) / SHARE_OF_FREE))
    }

    /// Removes what nobody uses and, beyond the limit, what was used longest ago.
    fn prune(&self) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.dir)?.flatten() {
            let (path, Ok(meta)) = (entry.path(), entry.metadata()) else { continue };
            let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let age = SystemTime::now().duration_since(used).unwrap_or_default();
            match path.extension().and_then(|e| e.to_str()) {
                Some("snapshot" | TOO_LARGE) if age > STALE => removed(&path)?,
                Some("tmp") => remove_unowned(&path)?,
                Some("snapshot") => entries.push((used, meta.len(), path)),
                _ => {}
            }
        }
        entries.sort();
        let mut total: u64 = entries.iter().map(|(_, len, _)| len).sum();
        let limit = self.limit(total)?;
        for (_, len, path) in entries {
            if total <= limit {
                break;
            }
            removed(&path)?;
            total -= len;
        }
        Ok(())
    }
}

/// Removes it, unless somebody else just did.
fn removed(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes an unfinished file whose writer is dead.
fn remove_unowned(path: &Path) -> io::Result<()> {
    let Ok(file) = File::open(path) else { return Ok(()) };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        // Under the lock, so that nobody who just began loses the name.
        Ok(_held) => removed(path),
        Err(_) => Ok(()),
    }
}

impl Unfinished {
    /// The file, empty at first. What is given away holds on to the lock.
    pub fn file(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// What was written becomes the snapshot of its machine. Returns a line if there is something to be said
    /// all the same.
    pub fn keep(mut self) -> io::Result<Option<String>> {
        let (len, limit) = (self.file.metadata()?.len(), self.store.limit(0)?);
        if len > limit {
            // The next one of its kind need not try.
            fs::write(self.place.with_extension(TOO_LARGE), len.to_string())?;
            let [len, limit] = [len, limit].map(|bytes| bytes >> 20);
            return Err(io::Error::other(format!(
                "it has {len} MiB, and the store may hold {limit} ({LIMIT})"
            )));
        }
        fs::rename(&self.path, &self.place)?;
        self.kept = true;
        let pruned = self.store.prune().err();
        Ok(pruned.map(|error| format!("old snapshots could not be removed: {error}")))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // The name is ours as long as the lock is.
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
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
        let unfinished = store.begin(likeness).unwrap().unwrap();
        File::from(unfinished.file().unwrap()).write_all(&header(likeness)).unwrap();
        unfinished.keep().unwrap();
    }

    #[test]
    fn what_was_kept_is_found_and_nothing_half_written_is() {
        let dir = tempfile::tempdir().unwrap();
        let store = WarmStore::new(dir.path().join("warm"), None);
        let one = likeness("1");
        assert!(matches!(store.find(&one), (None, None)));
        let unfinished = store.begin(&one).unwrap().unwrap();
        File::from(unfinished.file().unwrap()).write_all(&header(&one)).unwrap();
        assert!(matches!(store.find(&one), (None, None)), "not before it is kept");
        drop(unfinished);
        assert_eq!(fs::read_dir(dir.path().join("warm")).unwrap().count(), 0);
        keep(&store, &one);
        assert!(matches!(store.find(&one), (Some(_), None)));
        assert!(matches!(store.find(&likeness("2")), (None, None)));
    }

    #[test]
    fn of_two_at_once_one_writes_and_what_a_dead_one_left_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let store = WarmStore::new(dir.path().to_owned(), None);
        let one = likeness("1");
        fs::write(store.place(&one).with_extension("tmp"), vec![7; 1 << 20]).unwrap();
        let first = store.begin(&one).unwrap().unwrap();
        assert!(store.begin(&one).unwrap().is_none(), "somebody is at it");
        assert!(store.begin(&likeness("2")).unwrap().is_some(), "of another machine");
        // It is the writer's process that is slow to go, not the orchestrator's.
        let given = first.file().unwrap();
        drop(first);
        let second = store.begin(&one).unwrap().expect("the name is free");
        let mut file = File::from(second.file().unwrap());
        assert_eq!(file.metadata().unwrap().len(), 0);
        file.write_all(&header(&one)).unwrap();
        File::from(given).set_len(1).unwrap();
        second.keep().unwrap();
        assert!(matches!(store.find(&one), (Some(_), None)));
        assert!(store.begin(&one).unwrap().is_none(), "it is there");
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.path()).collect();
        assert_eq!(left, [store.place(&one)]);
    }

    #[test]
    fn what_dead_writers_left_goes_and_what_is_being_written_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = WarmStore::new(dir.path().to_owned(), None);
        let dead = store.place(&likeness("dead")).with_extension("tmp");
        fs::write(&dead, [7; 4096]).unwrap();
        let writing = store.begin(&likeness("alive")).unwrap().unwrap();
        keep(&store, &likeness("done"));
        assert!(!dead.exists() && writing.path.exists());
        removed(&dead).unwrap();
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
    fn one_that_is_larger_than_the_store_is_not_tried_twice() {
        let dir = tempfile::tempdir().unwrap();
        let store = WarmStore::new(dir.path().to_owned(), Some(SMALLEST >> 20));
        let one = likeness("1");
        let unfinished = store.begin(&one).unwrap().unwrap();
        File::from(unfinished.file().unwrap()).set_len(SMALLEST + 1).unwrap();
        let why = unfinished.keep().unwrap_err().to_string();
        assert!(why.contains("128") && why.contains(LIMIT), "{why}");
        assert!(store.begin(&one).unwrap().is_none() && store.find(&one).0.is_none());
        let larger = WarmStore { limit: Some(SMALLEST + 1), ..store.clone() };
        let unfinished = larger.begin(&one).unwrap().expect("there is room now");
        File::from(unfinished.file().unwrap()).write_all(&header(&one)).unwrap();
        assert_eq!(unfinished.keep().unwrap(), None);
        assert_eq!(fs::metadata(store.place(&one)).unwrap().mode() & 0o777, 0o600);
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
        store.limit = Some(2 * 4096);
        store.prune().unwrap();
        let left: Vec<bool> = all.iter().map(|one| store.find(one).0.is_some()).collect();
        assert_eq!(left, [true, false, true]);
    }
}

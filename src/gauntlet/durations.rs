//! How long tests took in earlier runs: a line `MILLISECONDS ACCELERATOR CRATE TEST` of each in
//! `durations.txt`, so that a budget can be planned by what was seen instead of guessed.
//!
//! Lines are short and appended in one write; a line that cannot be read is passed over, since a
//! missing figure only makes a plan coarser.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::Path,
    time::Duration,
};

const FILE: &str = "durations.txt";
/// Runs that count for a test: its latest.
const LATEST: usize = 5;

/// What a test is called here: other crates may have tests of the same name.
pub fn key(krate: &str, test: &str) -> String {
    format!("{krate} {test}")
}

/// Notes how long a run took. Best effort: a run is not worth less for not being noted.
pub fn note(dir: &Path, test: &str, accel: &str, took: Duration) {
    let line = format!("{} {accel} {test}\n", took.as_millis());
    let _ = std::fs::create_dir_all(dir);
    let file = OpenOptions::new().append(true).create(true).open(dir.join(FILE));
    if let Ok(mut file) = file {
        let _ = file.write_all(line.as_bytes());
    }
}

/// What was noted.
pub struct History {
    /// Milliseconds by test and accelerator, in the order in which they were noted.
    seen: BTreeMap<String, Vec<(String, u64)>>,
}

impl History {
    /// Reads it; none is as good as an empty one.
    pub fn read(dir: &Path) -> Self {
        let mut seen: BTreeMap<String, Vec<(String, u64)>> = BTreeMap::new();
        let lines = File::open(dir.join(FILE)).ok().map(|file| BufReader::new(file).lines());
        for text in lines.into_iter().flatten().map_while(Result::ok) {
            let mut parts = text.splitn(3, ' ');
            let (ms, with, test) = (parts.next().and_then(|ms| ms.parse().ok()), parts.next(), parts.next());
            if let (Some(ms), Some(with), Some(test)) = (ms, with, test) {
                seen.entry(test.to_owned()).or_default().push((with.to_owned(), ms));
            }
        }
        Self { seen }
    }

    /// Median time of a test's latest runs under `accel`; `auto` is any.
    pub fn usual(&self, accel: &str, test: &str) -> Option<Duration> {
        let with_it = |(with, _): &&(String, u64)| with == accel || accel == "auto";
        let of_test = self.seen.get(test)?.iter().rev().filter(with_it);
        let mut latest: Vec<u64> = of_test.take(LATEST).map(|(_, ms)| *ms).collect();
        latest.sort_unstable();
        latest.get(latest.len() / 2).map(|ms| Duration::from_millis(*ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_runs_count_and_damage_does_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(History::read(dir.path()).usual("tcg", "t"), None);
        for ms in [90_000, 1, 2, 3, 4, 5] {
            note(dir.path(), "t", "tcg", Duration::from_millis(ms));
        }
        note(dir.path(), "t", "det", Duration::from_secs(60));
        std::fs::OpenOptions::new()
            .append(true)
            .open(dir.path().join(FILE))
            .unwrap()
            .write_all(b"12 tc")
            .unwrap();
        let usual = |accel, test| History::read(dir.path()).usual(accel, test);
        assert_eq!(usual("tcg", "t"), Some(Duration::from_millis(3)));
        assert_eq!(usual("det", "t"), Some(Duration::from_secs(60)));
        assert_eq!(usual("auto", "t"), Some(Duration::from_millis(4)));
        assert_eq!(usual("kvm", "t").or(usual("tcg", "tc")), None);
    }
}

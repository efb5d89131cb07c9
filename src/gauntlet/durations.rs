//! How long tests took in earlier runs: a line `MILLISECONDS ACCELERATOR TEST` of each in
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

/// Notes how long a run took. Best effort: a run is not worth less for not being noted.
pub fn note(dir: &Path, test: &str, accel: &str, took: Duration) {
    let line = format!("{} {accel} {test}\n", took.as_millis());
    let _ = std::fs::create_dir_all(dir);
    let file = OpenOptions::new().append(true).create(true).open(dir.join(FILE));
    if let Ok(mut file) = file {
        let _ = file.write_all(line.as_bytes());
    }
}

/// Median time of each test's latest runs under `accel`.
pub fn learned(dir: &Path, accel: &str) -> BTreeMap<String, Duration> {
    let Ok(file) = File::open(dir.join(FILE)) else { return BTreeMap::new() };
    let mut seen: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for text in BufReader::new(file).lines().map_while(Result::ok) {
        let mut parts = text.splitn(3, ' ');
        let (ms, with, test) = (parts.next().and_then(|ms| ms.parse().ok()), parts.next(), parts.next());
        if let (Some(ms), Some(with), Some(test)) = (ms, with, test)
            && (with == accel || accel == "auto")
        {
            seen.entry(test.to_owned()).or_default().push(ms);
        }
    }
    let median = |all: Vec<u64>| {
        let mut latest = all[all.len().saturating_sub(LATEST)..].to_vec();
        latest.sort_unstable();
        Duration::from_millis(latest[latest.len() / 2])
    };
    seen.into_iter().map(|(test, all)| (test, median(all))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_runs_count_and_damage_does_not() {
        let dir = tempfile::tempdir().unwrap();
        assert!(learned(dir.path(), "tcg").is_empty());
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
        assert_eq!(learned(dir.path(), "tcg")["t"], Duration::from_millis(3));
        assert_eq!(learned(dir.path(), "det")["t"], Duration::from_secs(60));
    }
}

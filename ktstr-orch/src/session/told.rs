//! What the scheduler says of itself before captures, as PID 1 sends it: kept in the run's directory, unread.
//!
//! A planned capture waits a little for it, and no longer: [`WAIT`]. The guest is trusted for nothing; what it
//! sends unasked, twice, or too long is not kept. Why there is none stands in the capture's mark.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use ktstr_proto::scx_stats::{ANSWER_LIMIT_MS, MAX_STATS, MissingStatsReason, Stats, StatsOf};

/// How long after its time a capture waits at most, of the host's time, or the guest's where that counts: what the
/// scheduler may take to answer, and a second for the answer to come here.
pub(super) const WAIT: Duration = Duration::from_millis(ANSWER_LIMIT_MS + 1000);
/// Answers kept beside those for snapshots.
const MAX_QUESTIONS: u32 = 256;

/// Names of files with statistics, or why there are none, until a capture takes them.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Snapshots for which the guest asks.
    snapshots: u32,
    kept: u32,
    known: BTreeMap<StatsOf, Stats>,
}

impl Told {
    /// The guest will ask for so many snapshots.
    pub(super) fn expect(&mut self, snapshots: u32) {
        self.snapshots = snapshots;
    }

    /// Whether something may still come for this one.
    pub(super) fn awaits(&self, of: StatsOf) -> bool {
        matches!(of, StatsOf::Snapshot(nth) if nth < self.snapshots) && !self.known.contains_key(&of)
    }

    /// What belongs to a capture.
    pub(super) fn take(&mut self, of: StatsOf) -> Stats {
        let there = match of {
            // Once taken it is not waited for again, and what comes late is nobody's.
            StatsOf::Snapshot(nth) if nth < self.snapshots => {
                self.known.insert(of, Err(MissingStatsReason::NotHeard))
            }
            StatsOf::Snapshot(_) => None,
            StatsOf::Question(_) => self.known.remove(&of),
        };
        there.unwrap_or(Err(MissingStatsReason::NotHeard))
    }

    /// The guest sends some.
    pub(super) fn hear(&mut self, of: StatsOf, stats: &Stats, dir: &Path) {
        let is_wanted = match of {
            StatsOf::Snapshot(_) => self.awaits(of),
            // Under `det` the test does not wait for its captures: those of several questions may be to come.
            StatsOf::Question(_) => self.questions() < MAX_QUESTIONS as usize,
        };
        if !is_wanted {
            return;
        }
        let kept = stats.clone().and_then(|text| self.keep(&text, dir));
        self.known.insert(of, kept);
    }

    fn questions(&self) -> usize {
        self.known.keys().filter(|of| matches!(of, StatsOf::Question(_))).count()
    }

    fn keep(&mut self, text: &str, dir: &Path) -> Stats {
        let not_kept = |why: String| MissingStatsReason::NotKept { why };
        if text.len() > MAX_STATS {
            return Err(MissingStatsReason::TooLarge { limit: MAX_STATS });
        }
        if self.kept >= self.snapshots.saturating_add(MAX_QUESTIONS) {
            return Err(not_kept(format!("a run keeps {} of them", self.kept)));
        }
        let name = format!("stats-{}.json", self.kept);
        fs::write(dir.join(&name), text).map_err(|error| not_kept(format!("{name}: {error}")))?;
        self.kept += 1;
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_HEARD: Stats = Err(MissingStatsReason::NotHeard);

    #[test]
    fn each_capture_gets_its_own_and_late_ones_are_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let mut told = Told::default();
        told.expect(2);
        let [first, second] = [0, 1].map(StatsOf::Snapshot);
        assert!(told.awaits(first) && told.awaits(second) && !told.awaits(StatsOf::Snapshot(2)));
        told.hear(second, &Ok("{\"n\":2}".into()), dir.path());
        assert!(told.awaits(first) && !told.awaits(second));
        assert_eq!(told.take(first), NOT_HEARD);
        assert!(!told.awaits(first));
        told.hear(first, &Ok("{}".into()), dir.path());
        assert_eq!(told.take(first), NOT_HEARD);
        let name = told.take(second).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(name)).unwrap(), "{\"n\":2}");
        assert_eq!(told.take(second), NOT_HEARD);
    }

    #[test]
    fn what_was_not_asked_for_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut told = Told::default();
        told.hear(StatsOf::Snapshot(0), &Ok("{}".into()), dir.path());
        assert_eq!(told.take(StatsOf::Snapshot(0)), NOT_HEARD);
        told.hear(StatsOf::Question(1), &Ok("x".repeat(MAX_STATS + 1)), dir.path());
        assert_eq!(told.take(StatsOf::Question(1)), Err(MissingStatsReason::TooLarge { limit: MAX_STATS }));
        for id in 0..MAX_QUESTIONS + 10 {
            told.hear(StatsOf::Question(id), &Ok("{}".into()), dir.path());
        }
        assert_eq!(told.known.len(), MAX_QUESTIONS as usize, "nobody takes them");
        assert_eq!(told.take(StatsOf::Question(0)), Ok("stats-0.json".into()));
        assert_eq!(told.take(StatsOf::Question(1)), Ok("stats-1.json".into()), "in whatever order they come");
        told.hear(StatsOf::Question(0), &Ok("{}".into()), dir.path());
        let why = format!("a run keeps {MAX_QUESTIONS} of them");
        assert_eq!(told.take(StatsOf::Question(0)), Err(MissingStatsReason::NotKept { why }));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), MAX_QUESTIONS as usize);
    }
}

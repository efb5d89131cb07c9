//! What a capture holds, for tests: the scheduler's variables and maps by name, the kernel's state by path.
//!
//! ```no_run
//! # use ktstr::prelude::*;
//! fn look(vm: &VmResult) -> Result<()> {
//!     let bridge = vm.snapshot_bridge();
//!     let last = bridge.snapshots().last().expect("snapshots were asked for");
//!     let enqueued = last.var("nr_enqueued")?.as_u64()?;
//!     let waiting = last.kernel("rq[0].nr_running")?.as_u64()?;
//!     println!("{}: {enqueued} enqueued, {waiting} on CPU 0", last.tag());
//!     Ok(())
//! }
//! ```
//!
//! Whatever is not there is a [`SnapshotError`] that says what is; nothing is ever 0 for lack of a value.
//! The JSON itself is described in `docs/bpf-state.md`. Series over several captures: [`super::series`].

mod error;
mod value;

use std::path::Path;

use ktstr_proto::{
    scx_stats::{MAX_STATS, MissingStatsReason},
    verdict::{CaptureMark, RunReport},
};
use serde_json::Value as Json;

pub use error::SnapshotError;
pub use value::{Entry, Field, MapView};

/// A larger file is not read: a capture of 100,000 tasks has a tenth of it.
const MAX_FILE: u64 = 1 << 30;
/// Maps that hold global variables.
const SECTIONS: [&str; 3] = [".bss", ".data", ".rodata"];

/// All captures of a run.
#[derive(Debug, Clone)]
pub struct SnapshotBridge {
    snapshots: Vec<Snapshot>,
}

/// One capture, or the place of one that could not be taken.
#[derive(Debug, Clone)]
pub struct Snapshot {
    mark: CaptureMark,
    /// When, milliseconds after the scenario's start.
    at_ms: f64,
    step: Option<u32>,
    content: Result<Json, SnapshotError>,
    /// What the scheduler said of itself right before.
    stats: Result<Json, MissingStatsReason>,
}

/// One capture with all that belongs to it.
#[derive(Debug, Clone)]
pub struct DrainedEntry {
    /// What it is called.
    pub tag: String,
    /// What was captured.
    pub report: Snapshot,
    /// What the scheduler said of itself right before, or why it did not.
    pub stats: Result<Json, MissingStatsReason>,
    /// When: milliseconds after the scenario's start, without the time in which the guest stood.
    pub elapsed_ms: f64,
    /// When it was to be taken, in the same time.
    pub boundary_offset_ms: Option<u64>,
    /// The phase of the scenario.
    pub step_index: Option<u32>,
}

impl SnapshotBridge {
    /// The captures that `report` names, from its run's directory.
    pub fn of(report: &RunReport) -> Self {
        let snapshots = report.captures.iter().map(|mark| Snapshot::load(&report.run_dir, mark, report));
        let mut snapshots: Vec<_> = snapshots.collect();
        if report.accel == Some(ktstr_proto::run::AccelKind::Det) {
            count_guest_time(&mut snapshots);
        }
        Self { snapshots }
    }

    /// In the order in which they were taken.
    pub fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }

    /// The one of that tag.
    pub fn get(&self, tag: &str) -> Result<&Snapshot, SnapshotError> {
        let tags = self.snapshots.iter().map(Snapshot::tag);
        self.snapshots
            .iter()
            .find(|snapshot| snapshot.tag() == tag)
            .ok_or_else(|| SnapshotError::TagNotFound { tag: tag.to_owned(), there: error::near(tag, tags) })
    }

    /// Those taken at a write to the place that `Op::watch_snapshot` named so, and why there are none, if
    /// it was never found.
    pub fn watched(&self, what: &str) -> Vec<&Snapshot> {
        let in_vain = format!("watch {what}");
        let of_it = |snapshot: &&Snapshot| match snapshot.content.as_ref().ok().and_then(|c| c.get("watched"))
        {
            Some(watched) => watched.get("what").and_then(Json::as_str) == Some(what),
            None => snapshot.tag().starts_with("watched_") && snapshot.mark.why.starts_with(&in_vain),
        };
        self.snapshots.iter().filter(of_it).collect()
    }

    /// How many snapshots the test asked for.
    pub fn periodic_target(&self) -> usize {
        self.periodic().count()
    }

    /// How many of them were taken.
    pub fn periodic_real(&self) -> usize {
        self.periodic().filter(|snapshot| snapshot.content.is_ok()).count()
    }

    /// All captures in the order of time, each beside what the scheduler said of itself right before.
    pub fn drain_ordered_with_stats(self) -> Vec<DrainedEntry> {
        let mut snapshots = self.snapshots;
        snapshots.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
        let entry = |snapshot: Snapshot| DrainedEntry {
            tag: snapshot.tag().to_owned(),
            stats: snapshot.stats.clone(),
            elapsed_ms: snapshot.at_ms,
            boundary_offset_ms: snapshot.mark.boundary_ms,
            step_index: snapshot.step,
            report: snapshot,
        };
        snapshots.into_iter().map(entry).collect()
    }

    fn periodic(&self) -> impl Iterator<Item = &Snapshot> {
        self.snapshots.iter().filter(|snapshot| snapshot.is_periodic())
    }
}

/// Under `det` marks are in the guest's milliseconds: the run queues' clocks tell what lies between them finer.
fn count_guest_time(snapshots: &mut [Snapshot]) {
    let clocks: Vec<Option<f64>> = snapshots.iter().map(Snapshot::guest_clock_ms).collect();
    let Some((first, began)) = clocks.iter().enumerate().find_map(|(nth, ms)| Some((nth, (*ms)?))) else {
        return;
    };
    let base = snapshots[first].at_ms;
    for (snapshot, clock) in snapshots.iter_mut().zip(clocks) {
        if let Some(clock) = clock {
            snapshot.at_ms = base + clock - began;
        }
    }
}

impl Snapshot {
    fn load(dir: &Path, mark: &CaptureMark, report: &RunReport) -> Self {
        let placeholder = |why: String| SnapshotError::PlaceholderSample { tag: mark.tag.clone(), why };
        let content = mark.file.clone().and_then(|name| read(&dir.join(name), MAX_FILE)).map_err(placeholder);
        let kept = |name| read(&dir.join(name), MAX_STATS as u64);
        let stats =
            mark.stats.clone().and_then(|name| kept(name).map_err(|why| MissingStatsReason::NotKept { why }));
        let phases = report.result.as_ref().map(|result| result.stats.phases.as_slice()).unwrap_or_default();
        // Both in the guest's time, under `det` too.
        let is_then = |start: u64, end: u64| (start as i64..end as i64).contains(&mark.at_ms);
        let step = phases.iter().find(|phase| is_then(phase.start_ms, phase.end_ms)).map(|phase| phase.index);
        Self { mark: mark.clone(), at_ms: mark.at_ms as f64, step, content, stats }
    }

    /// A snapshot of a capture's JSON.
    pub fn new(tag: &str, at_ms: i64, content: Json) -> Self {
        let mark = CaptureMark {
            tag: tag.to_owned(),
            why: String::new(),
            at_ms,
            boundary_ms: None,
            stood_us: 0,
            file: Ok(String::new()),
            stats: Err(MissingStatsReason::NotHeard),
        };
        let stats = mark.stats.clone().map(Json::String);
        Self { mark, at_ms: at_ms as f64, step: None, content: Ok(content), stats }
    }

    /// The same with what the scheduler said of itself, or why it did not.
    #[must_use]
    pub fn with_stats(mut self, stats: Result<Json, MissingStatsReason>) -> Self {
        self.stats = stats;
        self
    }

    /// The place of a capture that could not be taken.
    pub fn placeholder(tag: &str, at_ms: i64, why: &str) -> Self {
        let mut snapshot = Self::new(tag, at_ms, Json::Null);
        snapshot.content = Err(SnapshotError::PlaceholderSample { tag: tag.to_owned(), why: why.to_owned() });
        snapshot
    }

    /// What it is called.
    pub fn tag(&self) -> &str {
        &self.mark.tag
    }

    /// When it was taken: milliseconds after the scenario's start, without the time in which the guest
    /// stood for captures; under `det` the guest's own time.
    pub fn at_ms(&self) -> f64 {
        self.at_ms
    }

    /// When it was to be taken, and how long the guest stood for it.
    pub fn mark(&self) -> &CaptureMark {
        &self.mark
    }

    /// The phase of the scenario in which it was taken, as [`ktstr_proto::stats::PhaseBucket::index`].
    pub fn step_index(&self) -> Option<u32> {
        self.step
    }

    /// Whether the test asked for it with `num_snapshots`.
    pub fn is_periodic(&self) -> bool {
        self.mark.tag.starts_with("periodic_")
    }

    /// All of it.
    pub fn json(&self) -> Result<&Json, SnapshotError> {
        self.content.as_ref().map_err(SnapshotError::clone)
    }

    /// What the scheduler said of itself right before: the answer of its `scx_stats` socket. Of counters that it
    /// gives as differences those since the answer before, the first since the scenario's start.
    pub fn stats(&self) -> Result<Field<'_>, SnapshotError> {
        let missing = |why: &MissingStatsReason| SnapshotError::MissingStats {
            tag: self.tag().to_owned(),
            why: why.clone(),
        };
        Ok(Field::plain(self.stats.as_ref().map_err(missing)?))
    }

    fn guest_clock_ms(&self) -> Option<f64> {
        let queues = self.content.as_ref().ok()?.get("rq")?.as_array()?;
        let newest = queues.iter().filter_map(|rq| rq.get("clock")?.as_u64()).max()?;
        Some(newest as f64 / 1e6)
    }

    /// The kernel's state by path, the names being the kernel's: `rq[0].nr_running`, `scx.events`.
    pub fn kernel(&self, path: &str) -> Result<Field<'_>, SnapshotError> {
        Field::new(String::new(), self.json()?).get(path)
    }

    fn maps(&self) -> Result<Vec<(&str, &Json)>, SnapshotError> {
        let maps = self.json()?.pointer("/bpf/maps").and_then(Json::as_array);
        let named = maps.into_iter().flatten().filter_map(|map| Some((map.get("name")?.as_str()?, map)));
        Ok(named.collect())
    }

    /// The BPF map of that name, or whose name ends in it (`.bss`); of several the one that the running
    /// scheduler's programs use.
    pub fn map(&self, name: &str) -> Result<MapView<'_>, SnapshotError> {
        let maps = self.maps()?;
        // The kernel keeps 15 characters of a name.
        let is_it = |own: &str| {
            (name.starts_with('.') && own.ends_with(name)) || (own.len() == 15 && name.starts_with(own))
        };
        let exact: Vec<_> = maps.iter().filter(|(own, _)| *own == name).collect();
        let called = || maps.iter().filter(|(own, _)| is_it(own)).collect();
        let meant = if exact.is_empty() { called() } else { exact };
        match the_schedulers(meant, |(_, map)| map)[..] {
            [(own, map)] => Ok(MapView::new(own, map)),
            ref several @ [_, ..] => {
                let maps = several.iter().map(|(own, _)| (*own).to_owned()).collect();
                Err(SnapshotError::AmbiguousMap { name: name.to_owned(), maps })
            }
            [] => {
                let there = error::near(name, maps.iter().map(|(own, _)| *own));
                Err(SnapshotError::MapNotFound { name: name.to_owned(), there })
            }
        }
    }

    /// A global variable of the scheduler's programs, or a part of one: `nr_enqueued`, `record.at[1].x`.
    pub fn var(&self, path: &str) -> Result<Field<'_>, SnapshotError> {
        let end = path.find(['.', '[']).unwrap_or(path.len());
        let (name, rest) = path.split_at(end);
        let rest = rest.strip_prefix('.').unwrap_or(rest);
        let mut found = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        let maps = self.maps()?;
        for (map, json) in maps.iter().filter(|(own, _)| SECTIONS.iter().any(|s| own.contains(s))) {
            let variables = json.pointer("/entries/0/value").and_then(Json::as_object);
            for (own, value) in variables.into_iter().flatten() {
                names.push(own);
                if own == name {
                    found.push((*map, value, *json));
                }
            }
        }
        let found = the_schedulers(found, |(.., json)| json);
        let (map, value, _) = match found[..] {
            [one] => one,
            [] => {
                let there = error::near(name, names.into_iter());
                return Err(SnapshotError::VarNotFound { name: name.to_owned(), there });
            }
            _ => {
                let maps = found.iter().map(|(map, ..)| (*map).to_owned()).collect();
                return Err(SnapshotError::AmbiguousVar { name: name.to_owned(), maps });
            }
        };
        let field = Field::new(format!("{map}:{name}"), value);
        if rest.is_empty() { Ok(field) } else { field.get(rest) }
    }
}

/// The one of several that is a map of the running scheduler's; all, where that does not tell.
fn the_schedulers<'j, T: Copy>(found: Vec<T>, map: impl Fn(T) -> &'j Json) -> Vec<T> {
    let is_own = |one: &T| map(*one).get("of_scheduler") == Some(&Json::Bool(true));
    let own: Vec<T> = found.iter().copied().filter(is_own).collect();
    if found.len() > 1 && own.len() == 1 { own } else { found }
}

fn read(path: &Path, limit: u64) -> Result<Json, String> {
    let unreadable = |e: &dyn std::fmt::Display| format!("{} cannot be read: {e}", path.display());
    let len = std::fs::metadata(path).map_err(|e| unreadable(&e))?.len();
    if len > limit {
        return Err(unreadable(&format!("it has {len} bytes")));
    }
    let bytes = std::fs::read(path).map_err(|e| unreadable(&e))?;
    serde_json::from_slice(&bytes).map_err(|e| unreadable(&e))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) fn capture() -> Snapshot {
        let bss = json!({
            "nr": 7, "bad": {"unreadable": "torn"}, "neg": -3, "name": "spin", "on": true,
            "list": {"address": "0xffff1", "to": "struct node", "value": {"id": 9, "next": null}},
            "at": [{"x": 1}, {"x": 2}], "long": {"[0..99]": 4, "[100]": 5}, "cb": "0xffffffff81000000",
        });
        let map = |name: &str, entries: Json| json!({"name": name, "type": "array", "entries": entries});
        Snapshot::new(
            "periodic_000",
            120,
            json!({
                "rq": [{"nr_running": 3, "cfs": {"nr": 1}}, {"nr_running": 0, "dl": {"absent": "no such member"}}],
                "bpf": {"maps": [
                    map("sched.bss", json!([{"key": "[0]", "value": bss}])),
                    map("sched.data", json!([{"key": "[0]", "value": {"nr_cpus": 4}}])),
                    map("other.bss", json!([{"key": "[0]", "value": {"nr_cpus": 8}}])),
                    map("stats", json!([
                        {"key": "[0]", "cpu": 0, "value": 5}, {"key": "[0]", "cpu": 1, "value": 6},
                        {"key": "[1]", "cpu": 0, "value": 50}, {"key": "[1]", "cpu": 1, "value": 60},
                    ])),
                    map("tasks", json!([
                        {"key": "[12] \"a\"", "value": {"vtime": 30, "pid": 12}},
                        {"key": "[13] \"b\"", "value": {"vtime": 40, "pid": 13}},
                    ])),
                ]},
            }),
        )
    }

    #[test]
    fn values_are_found_by_name_and_path() {
        let snap = capture();
        assert_eq!(snap.var("nr").unwrap().as_u64(), Ok(7));
        assert_eq!(snap.var("neg").unwrap().as_i64(), Ok(-3));
        assert_eq!(snap.var("name").unwrap().as_str(), Ok("spin"));
        assert_eq!(snap.var("on").unwrap().as_bool(), Ok(true));
        assert_eq!(snap.var("list.id").unwrap().as_u64(), Ok(9), "pointers are followed");
        assert_eq!(snap.var("list").unwrap().as_u64(), Ok(0xffff1), "and have an address");
        assert_eq!(snap.var("cb").unwrap().as_u64(), Ok(0xffff_ffff_8100_0000));
        assert_eq!(snap.var("at[1].x").unwrap().as_u64(), Ok(2));
        assert_eq!(snap.var("long[42]").unwrap().as_u64(), Ok(4), "runs of equal elements");
        assert_eq!(snap.var("long[100]").unwrap().as_u64(), Ok(5));
        assert_eq!(snap.kernel("rq[0].cfs.nr").unwrap().as_f64(), Ok(1.0));
        let stats = snap.map("stats").unwrap();
        assert_eq!(stats.at(1).unwrap().cpu(1).unwrap().as_u64(), Ok(60));
        let tasks = snap.map("tasks").unwrap();
        let has = |pid: u64| move |e: &Entry<'_>| e.get("pid").and_then(|f| f.as_u64()) == Ok(pid);
        assert_eq!(tasks.find(has(13)).unwrap().get("vtime").unwrap().as_u64(), Ok(40));
        assert_eq!(tasks.max_by(|e| e.get("vtime")?.as_f64()).unwrap().key(), "[13] \"b\"");
        assert_eq!(tasks.filter(has(12)).unwrap().len(), 1);
    }

    #[test]
    fn what_the_scheduler_says_means_only_what_it_says() {
        let said = json!({
            "nr": 7, "none": null, "hex": "0x10", "gone": {"absent": "today"}, "to": {"address": "0x1", "to": "x", "value": 3},
            "layers": [{"a.b[0]": {"util": 1.5}}], "[0..9]": 1,
        });
        let snap = Snapshot::placeholder("periodic_000", 5, "the run ended").with_stats(Ok(said));
        let stats = snap.stats().unwrap();
        let at = |path: &str| stats.get(path).unwrap();
        assert_eq!(at("nr").as_u64(), Ok(7));
        assert_eq!(at("layers[0]").key("a.b[0]").unwrap().get("util").unwrap().as_f64(), Ok(1.5));
        assert_eq!(at("gone.absent").as_str(), Ok("today"));
        assert_eq!(at("to.value").as_u64(), Ok(3));
        for no_number in ["none", "hex", "to"] {
            let error = at(no_number).as_u64().unwrap_err();
            assert!(matches!(error, SnapshotError::TypeMismatch { .. }), "{no_number}: {error}");
        }
        assert!(matches!(stats.get("none.x").unwrap_err(), SnapshotError::NotAStruct { .. }));
        assert!(matches!(stats.get("[3]").unwrap_err(), SnapshotError::TypeMismatch { .. }));
        let error = stats.get("nr_x").unwrap_err().to_string();
        assert!(error.starts_with("no member `nr_x` in ``; nearest: nr"), "{error}");
        let silent = Snapshot::new("asked", 5, json!({})).with_stats(Err(MissingStatsReason::NoScheduler));
        assert_eq!(
            silent.stats().unwrap_err().to_string(),
            "asked has no statistics of the scheduler: no sched_ext scheduler was in charge"
        );
    }

    #[test]
    fn of_several_maps_the_running_schedulers_is_meant() {
        let mut json = capture().content.unwrap();
        json["bpf"]["maps"][2]["of_scheduler"] = Json::Bool(true);
        let snap = Snapshot::new("periodic_000", 120, json);
        assert_eq!(snap.map(".bss").unwrap().at(0).unwrap().get("nr_cpus").unwrap().as_u64(), Ok(8));
        assert_eq!(snap.var("nr_cpus").unwrap().as_u64(), Ok(8));
        assert_eq!(snap.map("sched.bss").unwrap().at(0).unwrap().get("nr").unwrap().as_u64(), Ok(7));
    }

    #[test]
    fn what_is_not_there_says_what_is() {
        let snap = capture();
        let said = |error: SnapshotError| error.to_string();
        assert_eq!(
            said(snap.var("nr_runing").unwrap_err()),
            "no variable `nr_runing` in .bss, .data or .rodata; nearest: nr_cpus, long, neg"
        );
        let error = snap.var("nr_cpus").unwrap_err();
        assert!(matches!(&error, SnapshotError::AmbiguousVar { maps, .. } if maps.len() == 2), "{error}");
        let error = said(snap.var("list.ids").unwrap_err());
        assert_eq!(error, "no member `ids` in `sched.bss:list`; nearest: id, next");
        assert!(matches!(snap.var("nr.x").unwrap_err(), SnapshotError::NotAStruct { .. }));
        assert!(matches!(snap.var("at[2]").unwrap_err(), SnapshotError::IndexOutOfRange { len: 2, .. }));
        assert!(matches!(snap.var("list..id").unwrap_err(), SnapshotError::EmptyPathComponent { .. }));
        let error = said(snap.var("bad").unwrap().as_u64().unwrap_err());
        assert_eq!(error, "`sched.bss:bad` has no value: torn");
        let error = said(snap.kernel("rq[1].dl.nr").unwrap_err());
        assert_eq!(error, "`rq[1].dl` has no value: no such member");
        let error = said(snap.var("name").unwrap().as_u64().unwrap_err());
        assert_eq!(error, "`sched.bss:name` is \"spin\", which is no u64");
        assert!(matches!(snap.map("stat").unwrap_err(), SnapshotError::MapNotFound { .. }));
        let error = said(snap.map(".bss").unwrap_err());
        assert!(error.starts_with("`.bss` is the name of several maps (sched.bss, other.bss)"), "{error}");
        let stats = snap.map("stats").unwrap();
        let error = stats.at(0).unwrap().as_u64().unwrap_err();
        assert!(matches!(error, SnapshotError::PerCpuNotNarrowed { .. }), "{error}");
        assert!(matches!(stats.at(0).unwrap().cpu(2).unwrap_err(), SnapshotError::PerCpuSlot { .. }));
        assert!(matches!(stats.find(|_| false).unwrap_err(), SnapshotError::NoMatch { .. }));
        let gone = Snapshot::placeholder("periodic_001", 5, "the run ended before");
        assert!(matches!(gone.var("nr").unwrap_err(), SnapshotError::PlaceholderSample { .. }));
    }
}

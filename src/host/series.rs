//! Values over the captures of one run.
//!
//! ```no_run
//! # use ktstr::prelude::*;
//! fn rises(vm: &VmResult) -> Result<()> {
//!     let series = vm.snapshots();
//!     let mut verdict = Verdict::new();
//!     series.var_u64("nr_enqueued").strictly_increasing(&mut verdict);
//!     series.bpf("waiting", |snap| snap.kernel("rq[0].nr_running")?.as_u64()).each(&mut verdict).at_most(8);
//!     verdict.into_anyhow_or_log()
//! }
//! ```
//!
//! What a projection finds wrong with one sample stays with that sample; the patterns in
//! [`super::temporal`] say what they make of it.

use ktstr_proto::{monitor::MonitorSummary, stats::Phase};

use super::snapshot::{DrainedEntry, Field, Snapshot, SnapshotBridge, SnapshotError};

/// Captures in the order of time.
#[derive(Debug, Clone)]
pub struct SampleSeries {
    snapshots: Vec<Snapshot>,
    monitor: Option<MonitorSummary>,
}

/// One value of each sample.
#[derive(Debug, Clone)]
pub struct SeriesField<T> {
    label: String,
    points: Vec<Point<T>>,
}

/// One sample of a field.
#[derive(Debug, Clone)]
pub struct Point<T> {
    /// The capture's tag.
    pub tag: String,
    /// When, milliseconds after the scenario's start.
    pub at_ms: f64,
    /// The scenario's phase then, see [`Snapshot::step_index`].
    pub step: Option<u32>,
    /// The value, or why there is none.
    pub value: Result<T, SnapshotError>,
}

impl<T> Point<T> {
    /// The sample as failure texts name it.
    pub fn place(&self) -> String {
        format!("{} ({:+.0} ms)", self.tag, self.at_ms)
    }
}

impl SampleSeries {
    /// All captures of `bridge`.
    pub fn of(bridge: &SnapshotBridge) -> Self {
        Self::from_snapshots(bridge.snapshots().to_vec())
    }

    /// These, sorted by time.
    pub fn from_snapshots(mut snapshots: Vec<Snapshot>) -> Self {
        snapshots.sort_by(|a, b| a.at_ms().total_cmp(&b.at_ms()));
        Self { snapshots, monitor: None }
    }

    /// What [`SnapshotBridge::drain_ordered_with_stats`] gives, and what the monitor saw between.
    pub fn from_drained_typed(drained: Vec<DrainedEntry>, monitor: Option<MonitorSummary>) -> Self {
        let whole = |entry: DrainedEntry| entry.report.with_stats(entry.stats);
        Self { monitor, ..Self::from_snapshots(drained.into_iter().map(whole).collect()) }
    }

    /// Only those that the test asked for with `num_snapshots`.
    pub fn periodic_only(mut self) -> Self {
        self.snapshots.retain(Snapshot::is_periodic);
        self
    }

    /// The captures.
    pub fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }

    /// How many there are, those that could not be taken too.
    pub fn len(&self) -> usize {
        self.snapshots.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.snapshots.is_empty()
    }

    /// What `project` finds in each capture.
    pub fn bpf<T>(
        &self,
        label: &str,
        project: impl Fn(&Snapshot) -> Result<T, SnapshotError>,
    ) -> SeriesField<T> {
        self.project(label, |snapshot| snapshot.json().and_then(|_| project(snapshot)))
    }

    /// What `project` finds in what the scheduler said of itself before each capture, whatever became of the
    /// capture itself.
    pub fn stats<T>(
        &self,
        label: &str,
        project: impl Fn(&Field<'_>) -> Result<T, SnapshotError>,
    ) -> SeriesField<T> {
        self.project(label, |snapshot| project(&snapshot.stats()?))
    }

    /// A place in what the scheduler said of itself: `nr_migrations`, `layers[0].util`.
    pub fn stats_path(&self, path: &str) -> StatsPath<'_> {
        StatsPath { series: self, path: path.to_owned(), keys: Vec::new() }
    }

    /// What the monitor made of all its samples, which are many more than captures.
    pub fn monitor(&self) -> Option<&MonitorSummary> {
        self.monitor.as_ref()
    }

    /// What each CPU of the machine did with its time.
    pub fn host(&self) -> CpuTimes<'_> {
        CpuTimes { series: self }
    }

    fn project<T>(
        &self,
        label: &str,
        project: impl Fn(&Snapshot) -> Result<T, SnapshotError>,
    ) -> SeriesField<T> {
        let point = |snapshot: &Snapshot| Point {
            tag: snapshot.tag().to_owned(),
            at_ms: snapshot.at_ms(),
            step: snapshot.step_index(),
            value: project(snapshot),
        };
        SeriesField { label: label.to_owned(), points: self.snapshots.iter().map(point).collect() }
    }

    /// A global variable of the scheduler, see [`Snapshot::var`].
    pub fn var_u64(&self, path: &str) -> SeriesField<u64> {
        self.bpf(path, |snapshot| snapshot.var(path)?.as_u64())
    }

    /// The same as a floating-point number.
    pub fn var_f64(&self, path: &str) -> SeriesField<f64> {
        self.bpf(path, |snapshot| snapshot.var(path)?.as_f64())
    }

    /// A value of the kernel, see [`Snapshot::kernel`].
    pub fn kernel_u64(&self, path: &str) -> SeriesField<u64> {
        self.bpf(path, |snapshot| snapshot.kernel(path)?.as_u64())
    }
}

/// The kernel's account of its CPUs' time (`kernel_cpustat`), capture by capture.
#[derive(Debug, Clone, Copy)]
pub struct CpuTimes<'s> {
    series: &'s SampleSeries,
}

impl CpuTimes<'_> {
    /// Nanoseconds since boot that a CPU spent on `what`, by the kernel's name (`enum cpu_usage_stat`, without
    /// `CPUTIME_`): `user`, `system`, `idle`, `steal`. The kernel adds to it at its ticks: an idle CPU's is old.
    pub fn cpu(&self, cpu: u32, what: &str) -> SeriesField<u64> {
        let what = what.to_ascii_uppercase();
        self.series.kernel_u64(&format!("rq[{cpu}].cpustat.CPUTIME_{what}"))
    }
}

/// A place in what schedulers say of themselves.
#[derive(Debug, Clone)]
pub struct StatsPath<'s> {
    series: &'s SampleSeries,
    path: String,
    keys: Vec<String>,
}

impl StatsPath<'_> {
    /// The member of that name there, in which dots and brackets mean nothing.
    #[must_use]
    pub fn key(mut self, name: &str) -> Self {
        self.keys.push(name.to_owned());
        self
    }

    /// A number there, at `path` from there (the place itself, if it is empty).
    pub fn field_u64(&self, path: &str) -> SeriesField<u64> {
        self.field(path, |field| field.as_u64())
    }

    /// The same as a floating-point number.
    pub fn field_f64(&self, path: &str) -> SeriesField<f64> {
        self.field(path, |field| field.as_f64())
    }

    fn field<T>(&self, path: &str, read: impl Fn(&Field<'_>) -> Result<T, SnapshotError>) -> SeriesField<T> {
        let mut parts = vec![self.path.as_str()];
        parts.extend(self.keys.iter().map(String::as_str));
        parts.push(path);
        parts.retain(|part| !part.is_empty());
        self.series.stats(&format!("stats:{}", parts.join(".")), |stats| {
            let mut here = stats.clone();
            if !self.path.is_empty() {
                here = here.get(&self.path)?;
            }
            for key in &self.keys {
                here = here.key(key)?;
            }
            if path.is_empty() { read(&here) } else { read(&here.get(path)?) }
        })
    }
}

impl<T> SeriesField<T> {
    /// A series made otherwise.
    pub fn new(label: &str, points: Vec<Point<T>>) -> Self {
        Self { label: label.to_owned(), points }
    }

    /// What it is called in reports.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Its samples, in the order of time.
    pub fn points(&self) -> &[Point<T>] {
        &self.points
    }

    /// The values that are there.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.points.iter().filter_map(|point| point.value.as_ref().ok())
    }
}

impl<T: Copy> SeriesField<T> {
    fn of_phase(&self, phase: Phase) -> impl DoubleEndedIterator<Item = T> + '_ {
        let wanted = Some(phase.index());
        self.points
            .iter()
            .filter(move |point| point.step == wanted)
            .filter_map(|p| p.value.as_ref().ok().copied())
    }

    /// Its first value in a phase.
    pub fn first_of_phase(&self, phase: Phase) -> Option<T> {
        self.of_phase(phase).next()
    }

    /// What it was at a phase: its last value there or, where the phase has no sample, the last one before it.
    pub fn value_at_phase(&self, phase: Phase) -> Option<T> {
        let until = |point: &&Point<T>| point.step.is_some_and(|step| step <= phase.index());
        self.points.iter().filter(until).filter_map(|point| point.value.as_ref().ok().copied()).next_back()
    }

    /// Its last value in a phase.
    pub fn last_of_phase(&self, phase: Phase) -> Option<T> {
        self.of_phase(phase).next_back()
    }
}

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

use ktstr_proto::stats::Phase;

use super::snapshot::{Snapshot, SnapshotBridge, SnapshotError};

/// Captures in the order of time.
#[derive(Debug, Clone)]
pub struct SampleSeries {
    snapshots: Vec<Snapshot>,
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
        Self { snapshots }
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
        let point = |snapshot: &Snapshot| Point {
            tag: snapshot.tag().to_owned(),
            at_ms: snapshot.at_ms(),
            step: snapshot.step_index(),
            value: snapshot.json().and_then(|_| project(snapshot)),
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

    /// Its last value in a phase.
    pub fn last_of_phase(&self, phase: Phase) -> Option<T> {
        self.of_phase(phase).next_back()
    }
}

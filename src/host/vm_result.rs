//! What came of a run, as `post_vm` functions see it on the host.

use std::{fs, io, path::Path};

use super::{series::SampleSeries, snapshot::SnapshotBridge};
use ktstr_proto::{
    monitor::MonitorSummary,
    verdict::{AssertResult, Outcome, RunReport, ScenarioStats},
};

/// A finished run: its report and its directory.
#[derive(Debug, Clone, PartialEq)]
pub struct VmResult {
    /// Everything that is known of it.
    pub report: RunReport,
}

impl VmResult {
    /// Whether every check held.
    pub fn success(&self) -> bool {
        !self.report.infrastructure && self.report.outcome == Outcome::Pass
    }

    /// The judgement.
    pub fn outcome(&self) -> Outcome {
        self.report.outcome
    }

    /// What the test function returned, with what was found outside of the guest.
    pub fn result(&self) -> Option<&AssertResult> {
        self.report.result.as_ref()
    }

    /// The figures of the test function's result.
    pub fn stats(&self) -> Option<&ScenarioStats> {
        self.report.result.as_ref().map(|result| &result.stats)
    }

    /// What the monitor saw.
    pub fn monitor(&self) -> Option<&MonitorSummary> {
        self.report.monitor.as_ref()
    }

    /// The captures of the guest's state, read from the run's directory.
    pub fn snapshot_bridge(&self) -> SnapshotBridge {
        SnapshotBridge::of(&self.report)
    }

    /// Those that the test asked for with `num_snapshots`, as a series.
    pub fn snapshots(&self) -> SampleSeries {
        let drained = self.snapshot_bridge().drain_ordered_with_stats();
        SampleSeries::from_drained_typed(drained, self.report.monitor.clone()).periodic_only()
    }

    /// A metric that came of `watch_bpf_maps`, as `MAP_LABEL`, `MAP_LABEL_avg` or `MAP_LABEL_max`.
    pub fn run_metric(&self, name: &str) -> Option<f64> {
        let monitor = self.report.monitor.as_ref()?;
        monitor.watched.iter().find(|metric| metric.name == name).map(|metric| metric.value)
    }

    /// The directory with everything that was written during the run.
    pub fn run_dir(&self) -> &Path {
        &self.report.run_dir
    }

    /// The whole console of the guest's kernel.
    pub fn console(&self) -> io::Result<String> {
        let bytes = fs::read(self.report.run_dir.join("console.log"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Last lines of the scheduler's output.
    pub fn scheduler_log(&self) -> &[String] {
        &self.report.scheduler_log
    }
}

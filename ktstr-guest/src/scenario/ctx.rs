//! What a test function is given.

use std::time::Duration;

use ktstr_proto::{
    Topology,
    guest::{GuestFrame, GuestJob, GuestTest, Phase},
    verdict::Assert,
};

use crate::{
    cgroup::Cgroups,
    report::{ReportError, Reporter},
};

/// The machine, the limits and the means of one test.
#[derive(Debug)]
pub struct Ctx {
    /// Name of the test.
    pub name: String,
    /// Shape of the machine.
    pub topology: Topology,
    /// How long the scenario runs, in guest time.
    pub duration: Duration,
    /// Thresholds: defaults, then the scheduler's, then the test's.
    pub assert: Assert,
    /// Seed of every random choice.
    pub seed: u64,
    /// Workers of a cgroup that does not say how many.
    pub workers_per_cgroup: u32,
    /// Where workload cgroups are created.
    pub cgroups: Cgroups,
    /// The way to PID 1.
    pub reporter: Reporter,
}

impl Ctx {
    /// Workers of a cgroup that does not say how many.
    pub const WORKERS_PER_CGROUP: u32 = 2;

    /// The context of `test` in the guest of `job`.
    pub fn of_job(job: &GuestJob, test: &GuestTest, reporter: Reporter) -> Self {
        Self {
            name: test.test.clone(),
            topology: job.topology,
            duration: Duration::from_millis(test.duration_ms),
            assert: test.assert,
            seed: job.seed,
            workers_per_cgroup: Self::WORKERS_PER_CGROUP,
            cgroups: Cgroups::under(Cgroups::ROOT),
            reporter,
        }
    }

    /// Marks a station of the run.
    pub(crate) fn phase(&self, phase: Phase) -> Result<(), ReportError> {
        self.reporter.send(&GuestFrame::Phase(phase))
    }

    /// Notes something the scenario did, for the timeline.
    pub(crate) fn stimulus(&self, what: String, iterations: u64) -> Result<(), ReportError> {
        self.reporter.send(&GuestFrame::Stimulus { what, iterations })
    }
}

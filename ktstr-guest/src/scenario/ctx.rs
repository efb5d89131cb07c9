//! What a test function is given.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use ktstr_proto::{
    guest::{GuestFrame, GuestJob, GuestTest, Phase, SCHEDULER_PATH, staged_path},
    verdict::{Assert, AssertResult, DetailKind, Outcome},
};

use super::{CgroupDef, CpusetError, CpusetSpec, Payload, PayloadRun, TestTopology};
use crate::{
    cgroup::Cgroups,
    report::{ReportError, Reporter},
    work::WorkType,
};

/// The machine, the limits and the means of one test.
#[derive(Debug, Clone)]
pub struct Ctx {
    /// Name of the test.
    pub name: String,
    /// The machine.
    pub topo: TestTopology,
    /// How long the scenario runs, in guest time.
    pub duration: Duration,
    /// How long what a step starts runs before the step begins to hold; none unless a test says so.
    pub settle: Duration,
    /// Thresholds: defaults, then the scheduler's, then the test's.
    pub assert: Assert,
    /// Seed of every random choice.
    pub seed: u64,
    /// Workers of a cgroup that does not say how many.
    pub workers_per_cgroup: u32,
    /// What the workers of cgroups that allow it do instead, see [`CgroupDef::swappable`].
    pub work_type_override: Option<WorkType>,
    /// Name of the scheduler under test; `None` is the kernel's own.
    pub scheduler: Option<String>,
    /// Names of the schedulers packed beside it, for [`super::Op::ReplaceScheduler`].
    pub staged_schedulers: Vec<String>,
    /// Programs that run beside every scenario.
    pub payloads: Vec<Payload>,
    /// Where workload cgroups are created.
    pub cgroups: Cgroups,
    /// The way to PID 1.
    pub reporter: Reporter,
    step: Arc<AtomicU32>,
    began_ns: Arc<OnceLock<u64>>,
    /// What failed of the scenarios that are over.
    failed: Arc<Mutex<AssertResult>>,
    /// Numbers of pinned BPF maps, by the names they were pinned by.
    pinned: Arc<Mutex<BTreeMap<String, u32>>>,
}

impl Ctx {
    /// Workers of a cgroup that does not say how many.
    pub const WORKERS_PER_CGROUP: u32 = 2;

    /// The context of `test` in the guest of `job`.
    pub fn of_job(job: &GuestJob, test: &GuestTest, reporter: Reporter) -> Self {
        Self {
            name: test.test.clone(),
            topo: TestTopology::from_vm_topology(job.topology),
            duration: Duration::from_millis(test.duration_ms),
            settle: Duration::ZERO,
            assert: test.assert,
            seed: job.seed,
            workers_per_cgroup: Self::WORKERS_PER_CGROUP,
            work_type_override: None,
            scheduler: job.scheduler.as_ref().map(|scheduler| scheduler.name.clone()),
            staged_schedulers: test.staged.iter().map(|scheduler| scheduler.name.clone()).collect(),
            payloads: Vec::new(),
            cgroups: Cgroups::under(Cgroups::ROOT),
            reporter,
            step: Arc::default(),
            began_ns: Arc::default(),
            failed: Arc::new(Mutex::new(AssertResult::nothing())),
            pinned: Arc::default(),
        }
    }

    /// The same context with another scenario length, for a part of a test.
    #[must_use]
    pub fn lasting(&self, duration: Duration) -> Self {
        Self { duration, ..self.clone() }
    }

    /// The same context with other time for what each step starts to settle.
    #[must_use]
    pub fn settling(&self, settle: Duration) -> Self {
        Self { settle, ..self.clone() }
    }

    /// The scheduler's process, in a guest while one is attached that has a process.
    pub fn sched_pid(&self) -> Option<u32> {
        let pids = std::fs::read_dir("/proc").ok()?.flatten();
        let mut pids: Vec<u32> = pids.filter_map(|item| item.file_name().to_str()?.parse().ok()).collect();
        pids.sort_unstable();
        let staged = staged_path(0);
        let staged = staged.trim_end_matches('0');
        pids.into_iter().find(|pid| {
            let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            exe == Path::new(SCHEDULER_PATH) || exe.to_string_lossy().starts_with(staged)
        })
    }

    /// A context on the running system, whatever schedules it: nothing is told to anybody, and cgroups
    /// lie below one of this process's own.
    pub fn on_host(name: &str, duration: Duration, seed: u64) -> std::io::Result<Self> {
        Ok(Self {
            name: name.into(),
            topo: TestTopology::from_system(Path::new("/sys/devices/system"))?,
            duration,
            settle: Duration::ZERO,
            // Nobody looks at the kernel.
            assert: Assert::default_checks().without_monitor(),
            seed,
            workers_per_cgroup: Self::WORKERS_PER_CGROUP,
            work_type_override: None,
            scheduler: None,
            staged_schedulers: Vec::new(),
            payloads: Vec::new(),
            cgroups: Cgroups::under(format!("{}-{}", Cgroups::ROOT, std::process::id())),
            reporter: Reporter::nobody(),
            step: Arc::default(),
            began_ns: Arc::default(),
            failed: Arc::new(Mutex::new(AssertResult::nothing())),
            pinned: Arc::default(),
        })
    }

    /// A cgroup of this test's default size.
    pub fn cgroup_def(&self, name: impl Into<String>) -> CgroupDef {
        CgroupDef::named(name).workers(self.workers_per_cgroup)
    }

    /// The CPUs that a cpuset means on this machine, ascending.
    pub fn cpuset_cpus(&self, spec: &CpusetSpec) -> Result<Vec<u32>, CpusetError> {
        spec.resolve(&self.topo)
    }

    /// Prepares to run a program.
    pub fn payload(&self, payload: &Payload) -> PayloadRun<'_> {
        PayloadRun::new(self, *payload)
    }

    /// The step that runs: 0 before the first, which is 1.
    pub fn current_step(&self) -> u32 {
        self.step.load(Relaxed)
    }

    pub(super) fn enter_step(&self, step: u32) {
        self.step.store(step, Relaxed);
    }

    /// The first scenario begins, from which the run's timeline counts.
    pub(crate) fn begin(&self) {
        self.began_ns.get_or_init(crate::work::now_ns);
    }

    /// When the first scenario began, guest `CLOCK_MONOTONIC`, nanoseconds.
    pub(crate) fn began(&self) -> Option<u64> {
        self.began_ns.get().copied()
    }

    /// Keeps what failed, for a test that ends without returning it.
    pub(crate) fn remember(&self, result: &AssertResult) {
        if result.is_fail() {
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).merge(result.clone());
        }
    }

    /// What a test comes to that meets something no run like this one can do: not run, unless a scenario of it
    /// had failed before.
    pub fn not_here(&self, reason: String) -> AssertResult {
        let mut result = self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        result.push(DetailKind::Note, Outcome::NotRun, reason);
        result
    }

    pub(super) fn keep_pinned(&self, name: &str, id: u32) {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into(), id);
    }

    pub(super) fn pinned_as(&self, name: &str) -> Option<u32> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }

    /// Marks a station of the run.
    pub(crate) fn phase(&self, phase: Phase) -> Result<(), ReportError> {
        self.reporter.send(&GuestFrame::Phase(phase))
    }

    /// Asks the host to capture each write to a place.
    pub(crate) fn watch(&self, what: String) -> Result<(), ReportError> {
        self.reporter.send(&GuestFrame::Watch(what))
    }

    /// Notes something the scenario did, for the timeline.
    pub(crate) fn stimulus(&self, what: String, iterations: u64) -> Result<(), ReportError> {
        self.reporter.send(&GuestFrame::Stimulus { what, iterations })
    }
}

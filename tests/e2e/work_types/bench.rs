//! Runs one kind of work in the guest for a moment and gathers what the kernel says about it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ktstr::prelude::*;
use ktstr_guest::attributes::Attributes;

use super::trace::{Counts, Event, Stat, Tracer, file_flags, stat, vmstat};

/// How long each kind of work runs, guest time.
const RUN: Duration = Duration::from_millis(400);
/// How often it is looked at meanwhile.
const LOOKS: u32 = 8;
/// On a host that is kept busy, or a guest that is by its own workers, there are more looks.
const MOST_LOOKS: u32 = 4 * LOOKS;

/// How to run it.
#[derive(Debug, Clone)]
pub struct Run {
    pub work_type: WorkType,
    pub groups: u32,
    pub mode: CloneMode,
    /// CPUs of all workers; empty is all.
    pub cpus: Vec<u32>,
    pub time: Duration,
}

impl Run {
    pub fn of(work_type: WorkType) -> Self {
        Self { work_type, groups: 1, mode: CloneMode::Fork, cpus: Vec::new(), time: RUN }
    }

    pub fn on(mut self, cpus: &[u32]) -> Self {
        self.cpus = cpus.to_vec();
        self
    }

    pub fn groups(mut self, groups: u32) -> Self {
        self.groups = groups;
        self
    }

    pub fn mode(mut self, mode: CloneMode) -> Self {
        self.mode = mode;
        self
    }

    /// The work type with what sets this run apart.
    pub fn label(&self) -> String {
        let name = self.work_type.name();
        let apart = match (&self.work_type, &self.mode) {
            (_, CloneMode::Thread) => "threads".into(),
            (_, CloneMode::Pcomm(_)) => "one process".into(),
            (WorkType::AluHot { width }, _) => format!("{width:?}"),
            (WorkType::WakeChain { wake, .. }, _) => format!("{wake:?}"),
            (WorkType::PriorityInversion { pi_mode, .. }, _) => format!("{pi_mode:?}"),
            (WorkType::CgroupAttachStorm { reap, .. }, _) => format!("{reap:?}"),
            _ if !self.cpus.is_empty() => format!("CPUs {:?}", self.cpus),
            _ => return name.into(),
        };
        format!("{name} ({apart})")
    }

    pub fn lasting(mut self, time: Duration) -> Self {
        self.time = time;
        self
    }
}

/// What was seen.
pub struct Seen {
    pub run: Run,
    pub reports: Vec<WorkerReport>,
    pub counts: Counts,
    /// What `/proc` said at each look, by worker.
    pub stats: Vec<BTreeSet<Stat>>,
    /// Cgroups the first worker was found in.
    pub cgroups: BTreeSet<String>,
    /// Open flags of the first worker's files.
    pub flags: Vec<i32>,
    /// Pages the kernel migrated meanwhile.
    pub pages_migrated: u64,
}

/// A worker's processes live in this cgroup.
pub const CGROUP: &str = "work";

/// Runs it and gathers.
pub fn run(
    ctx: &Ctx,
    tracer: &Tracer,
    run: Run,
    mut look: impl FnMut(&WorkloadHandle) -> Result<()>,
) -> Result<Seen> {
    let name = run.work_type.name();
    let workers = run.work_type.group_size() * run.groups;
    let attributes = (0..workers).map(|_| Attributes { affinity: run.cpus.clone(), ..Attributes::default() });
    let config = WorkloadConfig {
        workers,
        work_type: run.work_type.clone(),
        cgroup: CGROUP.into(),
        seed: ctx.seed,
        attributes: attributes.collect(),
        mode: run.mode.clone(),
        ..WorkloadConfig::default()
    };
    let mut handle = WorkloadHandle::spawn(config).with_context(|| name.to_owned())?;
    for pid in handle.pids() {
        ctx.cgroups.move_process(CGROUP, pid)?;
    }
    handle.await_ready()?;
    tracer.clear()?;
    let migrated = vmstat("pgmigrate_success ");
    handle.start().with_context(|| name.to_owned())?;
    let tids = handle.tids();
    let mut stats = vec![BTreeSet::new(); tids.len()];
    let (mut cgroups, mut flags) = (BTreeSet::new(), Vec::new());
    let (mut counted, mut looks) = (0, 0);
    let glances = if matches!(run.work_type, WorkType::CgroupChurn { .. }) { 16 } else { 1 };
    while counted < LOOKS && looks < MOST_LOOKS {
        let slept = std::time::Instant::now();
        // Who moves on sooner than looks come might be found in the same place by all of them.
        for _ in 0..glances {
            std::thread::sleep(run.time / LOOKS / glances);
            cgroups.extend(std::fs::read_to_string(format!("/proc/{}/cgroup", tids[0])));
        }
        // One that took twice its time says that the host did something else meanwhile.
        counted += u32::from(slept.elapsed() < run.time / LOOKS * 2);
        looks += 1;
        for (tid, seen) in tids.iter().zip(&mut stats) {
            seen.extend(stat(*tid));
        }
        flags.extend(file_flags(tids[0]));
        look(&handle)?;
    }
    let reports = handle.stop_and_collect();
    let counts = tracer.read()?;
    for report in &reports {
        ensure!(report.exit == WorkerExit::Completed, "{name}: a worker ended as {:?}", report.exit);
    }
    let pages_migrated = vmstat("pgmigrate_success ") - migrated;
    Ok(Seen { run, reports, counts, stats, cgroups, flags, pages_migrated })
}

impl Seen {
    pub fn tid(&self, worker: usize) -> i64 {
        i64::from(self.reports[worker].tid)
    }

    pub fn iterations(&self) -> u64 {
        self.reports.iter().map(|report| report.iterations).sum()
    }

    pub fn not_run(&self) -> Option<&str> {
        self.reports.iter().find_map(|report| report.not_run.as_deref())
    }

    /// How often all workers made a system call.
    pub fn syscalls(&self, number: i64) -> u64 {
        (0..self.reports.len()).map(|worker| self.syscalls_of(worker, number)).sum()
    }

    pub fn syscalls_of(&self, worker: usize, number: i64) -> u64 {
        self.counts.of(Event::Syscall, &[self.tid(worker), number])
    }

    /// How often one worker set out to wake another.
    pub fn wakes(&self, waker: usize, wakee: usize) -> u64 {
        self.counts.of(Event::Waking, &[self.tid(waker), self.tid(wakee)])
    }

    /// Calls of `try_to_wake_up` by workers, with and without `WF_SYNC`.
    pub fn wakeups(&self) -> (u64, u64) {
        let tids: Vec<i64> = (0..self.reports.len()).map(|worker| self.tid(worker)).collect();
        let (mut sync, mut plain) = (0, 0);
        for (keys, count) in self.counts.all(Event::Wakeup).filter(|(keys, _)| tids.contains(&keys[0])) {
            if keys[1] & super::trace::WF_SYNC != 0 { sync += count } else { plain += count }
        }
        (sync, plain)
    }

    /// Values of a field of `stat` that were seen of a worker.
    pub fn seen<T: Ord>(&self, worker: usize, field: impl Fn(&Stat) -> T) -> BTreeSet<T> {
        self.stats[worker].iter().map(field).collect()
    }

    /// Wake latencies of all workers together.
    pub fn wake_latency(&self) -> ktstr_proto::histogram::Histogram {
        let mut all = ktstr_proto::histogram::Histogram::default();
        self.reports.iter().for_each(|report| all.merge(&report.wake_latency));
        all
    }

    /// A row of the table.
    pub fn row(&self, evidence: &str) -> String {
        let name = self.run.label();
        let workers = self.reports.len();
        if let Some(reason) = self.not_run() {
            return format!("| {name} | {workers} | | | | | | not run: {reason} |");
        }
        let seconds = self.reports.iter().map(|r| r.wall_time_ns).max().unwrap_or(1) as f64 / 1e9;
        let sum = |figure: fn(&WorkerReport) -> u64| {
            let all: u64 = self.reports.iter().map(figure).sum();
            per_second(all as f64 / seconds)
        };
        let wake = self.wake_latency();
        let latency = match (wake.quantile(0.5), wake.quantile(0.99)) {
            (Some(p50), Some(p99)) => format!("{} / {}", p50 / 1000, p99 / 1000),
            _ => String::new(),
        };
        format!(
            "| {name} | {workers} | {} | {} | {} | {} | {latency} | {evidence} |",
            sum(|r| r.iterations),
            sum(|r| r.voluntary_switches),
            sum(|r| r.involuntary_switches),
            sum(|r| r.kernel_migrations.unwrap_or(r.migrations)),
        )
    }
}

fn per_second(rate: f64) -> String {
    if rate >= 10.0 { format!("{rate:.0}") } else { format!("{rate:.1}") }
}

/// CPUs of the machine as its devices say: SMT siblings and nodes.
pub fn cpu_lists(pattern: &str, cpus: std::ops::Range<u32>) -> BTreeMap<u32, String> {
    cpus.filter_map(|cpu| {
        let path = pattern.replace("{}", &cpu.to_string());
        Some((cpu, std::fs::read_to_string(path).ok()?.trim().to_owned()))
    })
    .collect()
}

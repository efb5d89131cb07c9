//! From a worker's slot to its report.

use std::sync::atomic::Ordering::{Acquire, Relaxed};

use ktstr_proto::{
    histogram::Histogram,
    verdict::{DutyCycle, Moment, PhaseSlice, WorkerExit, WorkerReport},
};

use super::{
    WorkloadConfig,
    board::{Counter, PhaseSlot, Series, Slot},
    not_run::NotRun,
    worker::Place,
};

/// The metric of a worker that has parked: iterations it had done then.
const PARKED: &str = "parked_after_iterations";

/// The report of a worker that ended, or works still, as `exit` says; `waited_ns` is the wall time of one
/// that did not live to write it down. With distributions it holds histograms and phases, too.
pub(super) fn report(
    slot: &Slot,
    place: Place,
    config: &WorkloadConfig,
    exit: WorkerExit,
    waited_ns: u64,
    with_distributions: bool,
) -> WorkerReport {
    let histogram = |series| if with_distributions { slot.histogram(series) } else { Histogram::default() };
    let cpu_time_ns = slot.total(Counter::CpuNs);
    let wall_time_ns = match exit {
        WorkerExit::Completed => slot.total(Counter::WallNs),
        _ => waited_ns,
    };
    let duty_ppm = slot.duty_ppm.load(Relaxed);
    let position = place.position as u32;
    let parked_after = slot.parked_after.load(Acquire);
    let parked = (parked_after > 0).then(|| (PARKED.to_owned(), parked_after as f64));
    WorkerReport {
        tid: slot.tid.load(Relaxed),
        cgroup: config.cgroup.clone(),
        work_type: config.work_type.name().into(),
        work_units: slot.total(Counter::WorkUnits),
        iterations: slot.total(Counter::Iterations),
        cpu_time_ns,
        wall_time_ns,
        migrations: slot.total(Counter::Migrations),
        cpus_used: slot.cpus_used(),
        cpus_allowed: config.cpus_allowed.clone(),
        cpus_outside: Vec::new(),
        voluntary_off_cpu_ns: slot.total(Counter::VoluntaryNs),
        max_gap_ns: slot.greatest(Counter::MaxGapNs),
        max_gap_cpu: slot.max_gap_cpu.load(Relaxed),
        max_gap_at_ns: slot.max_gap_at_ns.load(Relaxed),
        max_gap_moment: gap_of(slot),
        run_delay_ns: slot.total(Counter::RunDelayNs),
        pcount: slot.total(Counter::Pcount),
        exit,
        group: place.group as u32,
        position,
        role: config.work_type.role(position),
        is_messenger: config.work_type.is_messenger(position),
        voluntary_switches: slot.total(Counter::VoluntarySwitches),
        involuntary_switches: slot.total(Counter::InvoluntarySwitches),
        minor_faults: slot.total(Counter::MinorFaults),
        major_faults: slot.total(Counter::MajorFaults),
        kernel_migrations: slot.kernel_migrations.load(Relaxed).checked_sub(1),
        wake_latency: histogram(Series::Wake),
        block_time: histogram(Series::Block),
        iteration_cost: histogram(Series::Iteration),
        timer_latency: histogram(Series::Timer),
        duty: (duty_ppm > 0).then(|| DutyCycle {
            requested_pct: duty_ppm as f64 / 10_000.0,
            achieved_pct: cpu_time_ns as f64 * 100.0 / wall_time_ns.max(1) as f64,
        }),
        numa_pages: (0..)
            .zip(&slot.numa_pages)
            .map(|(node, pages)| (node, pages.load(Relaxed)))
            .filter(|(_, pages)| *pages > 0)
            .collect(),
        numa_pages_migrated: slot.numa_pages_migrated.load(Relaxed),
        phases: slot
            .phases()
            .filter(|_| with_distributions)
            .map(|(phase, figures)| slice(phase, figures))
            .filter(|s| s.wall_time_ns > 0)
            .collect(),
        not_run: NotRun::noted(slot),
        metrics: config
            .work_type
            .metric_names()
            .iter()
            .zip(&slot.metrics)
            .map(|(name, bits)| ((*name).into(), f64::from_bits(bits.load(Relaxed))))
            .chain(parked)
            .collect(),
    }
}

fn slice(phase: u32, figures: &PhaseSlot) -> PhaseSlice {
    PhaseSlice {
        phase,
        work_units: figures.get(Counter::WorkUnits),
        iterations: figures.get(Counter::Iterations),
        cpu_time_ns: figures.get(Counter::CpuNs),
        wall_time_ns: figures.get(Counter::WallNs),
        voluntary_off_cpu_ns: figures.get(Counter::VoluntaryNs),
        max_gap_ns: figures.get(Counter::MaxGapNs),
        migrations: figures.get(Counter::Migrations),
        run_delay_ns: figures.get(Counter::RunDelayNs),
        pcount: figures.get(Counter::Pcount),
        voluntary_switches: figures.get(Counter::VoluntarySwitches),
        involuntary_switches: figures.get(Counter::InvoluntarySwitches),
        minor_faults: figures.get(Counter::MinorFaults),
        major_faults: figures.get(Counter::MajorFaults),
        wake_latency: figures.histogram(Series::Wake),
        timer_latency: figures.histogram(Series::Timer),
        iteration_cost: figures.histogram(Series::Iteration),
        block_time: figures.histogram(Series::Block),
    }
}

/// When its longest gap lay, and where it was before and after.
fn gap_of(slot: &Slot) -> Moment {
    let mut cpus = vec![slot.max_gap_from_cpu.load(Relaxed), slot.max_gap_cpu.load(Relaxed)];
    cpus.sort_unstable();
    cpus.dedup();
    Moment { from_ns: slot.max_gap_from_ns.load(Relaxed), to_ns: slot.max_gap_to_ns.load(Relaxed), cpus }
}

//! The section `--- timeline ---`: what the scenario did and what was said when, and what each phase was like.

use std::fmt::Write;

use ktstr_proto::{
    stats::PhaseMonitor,
    verdict::{RunReport, TimelineMark, TimelineSource},
};

use super::{
    TAIL,
    text::{line, printable, wrapped},
};

/// Marks of the scenario shown before the last marks of all kinds.
const EARLIER: usize = 10;

/// A line of the timeline.
enum Shown<'m> {
    Mark(&'m TimelineMark),
    /// So many more of the same source between two that are shown.
    More(usize, TimelineSource),
}

/// The last of all marks, and before them the last of those that say what the scenario did. What one
/// source says at a stretch, a scheduler's dump for instance, is shown by its beginning and its end.
fn marks(all: &[TimelineMark]) -> Vec<Shown<'_>> {
    let did = |source: TimelineSource| matches!(source, TimelineSource::Stimulus | TimelineSource::Capture);
    let mut lines = Vec::new();
    for stretch in all.chunk_by(|a, b| a.source == b.source && !did(a.source)) {
        match stretch {
            [first, second, between @ .., last] if between.len() > 1 => {
                let more = Shown::More(between.len(), last.source);
                lines.extend([Shown::Mark(first), Shown::Mark(second), more, Shown::Mark(last)]);
            }
            few => lines.extend(few.iter().map(Shown::Mark)),
        }
    }
    let last = lines.split_off(lines.len().saturating_sub(TAIL));
    lines.retain(|line| matches!(line, Shown::Mark(mark) if did(mark.source)));
    let mut shown = lines.split_off(lines.len().saturating_sub(EARLIER));
    shown.extend(last);
    shown
}

/// What the monitor saw of a phase.
fn of_phase(seen: &PhaseMonitor) -> String {
    let mut text = format!(
        "  monitor: samples={} running={:.1} max_imbalance={:.1} max_dsq_depth={}",
        seen.samples, seen.mean_nr_running, seen.max_imbalance_ratio, seen.max_local_dsq_depth
    );
    for (name, rose) in &seen.events {
        let _ = write!(text, " {}+{rose}", printable(name));
    }
    text
}

/// Operations of the scenario, and what each of its phases was like.
pub(super) fn timeline(out: &mut String, report: &RunReport) {
    let phases = report.result.as_ref().map(|result| result.stats.phases.as_slice()).unwrap_or_default();
    if report.timeline.is_empty() && phases.is_empty() {
        return;
    }
    line(out, format_args!("--- timeline ---"));
    let shown = marks(&report.timeline);
    if shown.len() < report.timeline.len() {
        let (some, all) = (shown.len(), report.timeline.len());
        line(out, format_args!("  ({some} of {all} marks and more: all are in timeline.jsonl)"));
    }
    for shown in shown {
        let text = match shown {
            Shown::More(count, source) => format!("  [{source}] … {count} more …"),
            Shown::Mark(mark) => {
                let what = printable(&mark.what);
                match mark.source {
                    TimelineSource::Stimulus => format!("{:+}ms {what}", mark.at_ms),
                    source => format!("{:+}ms [{source}] {what}", mark.at_ms),
                }
            }
        };
        wrapped(out, "  ", &text);
    }
    let workers = report.result.as_ref().map(|result| result.stats.workers.as_slice()).unwrap_or_default();
    for phase in phases.iter().filter(|phase| !phase.cgroups.is_empty()) {
        let (start, end) = (phase.start_ms, phase.end_ms);
        line(out, format_args!("  {} {start}-{end}ms ops={}:", phase.label, phase.ops));
        if let Some(seen) = &phase.monitor {
            wrapped(out, "  ", &of_phase(seen));
        }
        for cgroup in phase.cgroups.iter().filter(|cgroup| cgroup.workers > 0) {
            let of_cgroup = workers.iter().filter(|worker| worker.cgroup == cgroup.name);
            let slices = of_cgroup.flat_map(|worker| &worker.phases).filter(|s| s.phase == phase.index);
            let gap_ms = slices.map(|slice| slice.max_gap_ns / 1_000_000).max();
            let gap = gap_ms.map_or(String::new(), |gap| format!(" gap={gap}ms"));
            let us = |ns: u64| ns as f64 / 1000.0;
            let wakes = if cgroup.wakes > 0 {
                let (median, p99, max) =
                    (cgroup.median_wake_latency_ns, cgroup.p99_wake_latency_ns, cgroup.max_wake_latency_ns);
                format!(" wake p50={:.0}us p99={:.0}us max={:.0}us", us(median), us(p99), us(max))
            } else {
                String::new()
            };
            let delay = cgroup.mean_run_delay_ns();
            let delay = delay.map_or(String::new(), |ns| format!(" run_delay={:.0}us", us(ns)));
            let used =
                phase.cpus_of(&cgroup.name).map_or(String::new(), |cpus| format!(" used={cpus:.2}cpus"));
            let throttled = cgroup.usage.filter(|usage| usage.throttled > 0);
            let throttled = throttled
                .map_or(String::new(), |usage| format!(" throttled={}ms", usage.throttled_ns / 1_000_000));
            let text = format!(
                "  {}: workers={}{used}{throttled} iter={} rate={:.0}/cpu-s migrations={}{gap}{delay}{wakes}",
                cgroup.name,
                cgroup.workers,
                cgroup.iterations,
                cgroup.iteration_rate(),
                cgroup.migrations
            );
            wrapped(out, "  ", &text);
        }
    }
}

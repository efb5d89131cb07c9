//! What the monitor saw, against the limits that only a monitor can judge.

use ktstr_proto::{
    host::HostTime,
    monitor::MonitorSummary,
    symbols::ADVICE,
    verdict::{Assert, AssertResult, DetailKind, Outcome},
};

/// Adds what the monitor saw. A run-queue clock that stands still is the guest's doing only where
/// the vCPU is known to have run meanwhile.
pub(super) fn add_monitor_findings(result: &mut AssertResult, monitor: &MonitorSummary, assert: &Assert) {
    let samples = assert.sustained_samples.unwrap_or(5);
    let mut add = |outcome, message: String| result.push(DetailKind::Monitor, outcome, message);
    if let Some(limit) = assert.max_imbalance_ratio
        && let Some(seen) = monitor.sustained_imbalance_ratio
        && seen > limit
    {
        add(
            Outcome::Fail,
            format!(
                "run queues differ by a factor of {seen:.1} over {samples} samples (threshold {limit:.1})"
            ),
        );
    }
    if let Some(limit) = assert.max_local_dsq_depth
        && let Some(seen) = monitor.sustained_local_dsq_depth
        && seen > limit
    {
        let cpu = monitor.sustained_local_dsq_cpu;
        add(
            Outcome::Fail,
            format!("local DSQ of cpu{cpu} held {seen} tasks over {samples} samples (threshold {limit})"),
        );
    }
    if assert.fail_on_rq_clock_stuck == Some(true) && !monitor.stuck_cpus.is_empty() {
        let cpus = &monitor.stuck_cpus;
        let (outcome, why) = match monitor.vcpu_time_known {
            true => (Outcome::Fail, "their vCPUs ran meanwhile"),
            false => (Outcome::Inconclusive, "the host may have withheld the vCPU"),
        };
        add(
            outcome,
            format!("rq clock stood still over {samples} samples with tasks waiting on CPUs {cpus:?}; {why}"),
        );
    }
}

/// Adds where guest and monitor differ about the kernel's symbols: what the monitor read is in doubt then, and so is
/// what it found.
pub(super) fn add_symbols(result: &mut AssertResult, monitor: &MonitorSummary) {
    let differ = monitor.symbols.iter().flat_map(|symbols| &symbols.differ);
    for (nth, differs) in differ.enumerate() {
        let advice = if nth == 0 { format!("; {ADVICE}") } else { String::new() };
        result.push(DetailKind::Symbols, Outcome::Inconclusive, format!("{differs}{advice}"));
    }
}

/// Limits that nothing was measured for: in doubt where the test asked for them, else only said.
pub(super) fn add_unmeasured(
    result: &mut AssertResult,
    monitor: &MonitorSummary,
    assert: &Assert,
    defaults: &Assert,
) {
    let needed = assert.sustained_samples.unwrap_or(5);
    let limits = [
        (
            "max_imbalance_ratio",
            assert.max_imbalance_ratio.is_some() && monitor.sustained_imbalance_ratio.is_none(),
            assert.max_imbalance_ratio != defaults.max_imbalance_ratio,
        ),
        (
            "max_local_dsq_depth",
            assert.max_local_dsq_depth.is_some() && monitor.sustained_local_dsq_depth.is_none(),
            assert.max_local_dsq_depth != defaults.max_local_dsq_depth,
        ),
    ];
    for (name, unmeasured, asked) in limits {
        if unmeasured {
            let outcome = if asked { Outcome::Inconclusive } else { Outcome::NotRun };
            let counted = monitor.samples;
            let message =
                format!("{name} not judged: {counted} samples were counted, {needed} in a row are needed");
            result.push(DetailKind::Note, outcome, message);
        }
    }
}

/// The limits that only a monitor can judge, with their values where they are set.
pub(super) fn monitor_limits(assert: &Assert) -> Vec<(&'static str, String)> {
    let stuck = assert.fail_on_rq_clock_stuck.filter(|fails| *fails);
    let limits = [
        ("max_imbalance_ratio", assert.max_imbalance_ratio.map(|limit| limit.to_string())),
        ("max_local_dsq_depth", assert.max_local_dsq_depth.map(|limit| limit.to_string())),
        ("fail_on_rq_clock_stuck", stuck.map(|fails| fails.to_string())),
        ("max_fallback_rate", assert.max_fallback_rate.map(|limit| limit.to_string())),
        ("max_keep_last_rate", assert.max_keep_last_rate.map(|limit| limit.to_string())),
    ];
    limits.into_iter().filter_map(|(name, limit)| Some((name, limit?))).collect()
}

/// Names the limits that only a monitor can judge and that nobody judged.
pub(super) fn add_unjudged(result: &mut AssertResult, assert: &Assert, outcome: Outcome, why: &str) {
    let names: Vec<&str> = monitor_limits(assert).into_iter().map(|(name, _)| name).collect();
    if !names.is_empty() {
        let message = format!("not judged, because {why}: {}", names.join(", "));
        result.push(DetailKind::Note, outcome, message);
    }
}

/// Adds what sched_ext's event counters say about rates, which only tests that ask for them are judged
/// by. A rate is per second that the vCPUs really ran; what was not measured is inconclusive.
pub(super) fn add_event_findings(
    result: &mut AssertResult,
    monitor: &MonitorSummary,
    host: Option<&HostTime>,
    assert: &Assert,
) {
    let wanted = [
        (
            "SCX_EV_SELECT_CPU_FALLBACK",
            "falls back to the kernel's choice of a CPU",
            assert.max_fallback_rate,
        ),
        ("SCX_EV_DISPATCH_KEEP_LAST", "slices extended for want of another task", assert.max_keep_last_rate),
    ];
    for (event, what, limit) in wanted {
        let Some(limit) = limit else { continue };
        let count = monitor.events.iter().find(|(name, _)| name == event).map(|(_, n)| *n);
        let ran_s = host.map(|host| host.ran_ms.iter().sum::<u64>() as f64 / 1000.0).filter(|s| *s > 0.0);
        let (Some(count), Some(ran_s)) = (count, ran_s) else {
            let message = format!("{what} cannot be judged: {event} or the vCPUs' run time was not measured");
            result.push(DetailKind::Monitor, Outcome::Inconclusive, message);
            continue;
        };
        let rate = count.max(0) as f64 / ran_s;
        if rate > limit {
            let message = format!("{count} {what}, {rate:.1}/vcpu-s (threshold {limit:.1})");
            result.push(DetailKind::Monitor, Outcome::Fail, message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_rates_are_judged_when_asked_for() {
        let monitor = MonitorSummary {
            events: vec![("SCX_EV_SELECT_CPU_FALLBACK".into(), 300)],
            ..MonitorSummary::default()
        };
        let host = HostTime { ran_ms: vec![1000, 2000], ..HostTime::default() };
        let judged = |assert: Assert, host: Option<&HostTime>| {
            let mut result = AssertResult::pass();
            add_event_findings(&mut result, &monitor, host, &assert);
            (result.outcome, result.details.first().map(|d| d.message.clone()).unwrap_or_default())
        };
        let limits = Assert::NO_OVERRIDES;
        assert_eq!(judged(limits, Some(&host)).0, Outcome::Pass);
        assert_eq!(judged(limits.max_fallback_rate(200.0), Some(&host)).0, Outcome::Pass);
        let (outcome, message) = judged(limits.max_fallback_rate(50.0), Some(&host));
        assert!(outcome == Outcome::Fail && message.contains("100.0/vcpu-s (threshold 50.0)"), "{message}");
        assert_eq!(judged(limits.max_fallback_rate(50.0), None).0, Outcome::Inconclusive);
        assert_eq!(judged(limits.max_keep_last_rate(50.0), Some(&host)).0, Outcome::Inconclusive);
    }
}

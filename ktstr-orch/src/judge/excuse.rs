//! What the host's scheduling may have caused: such findings are inconclusive, with the figures.
//!
//! A guest cannot see that its vCPU waits for a host CPU, so a task then looks stuck that its
//! scheduler treated well. A finding about time is excused only as far as the wait that was measured
//! explains it: the gap less the longest wait within such a gap must be within the limit. Nothing
//! here turns a failure into a pass, and nothing is excused without figures.
//!
//! The kernel's watchdog knows nothing of the host either: see [`stall`].

use ktstr_proto::{
    histogram::Histogram,
    host::HostTime,
    verdict::{Assert, AssertResult, Cause, CgroupStats, DetailKind, Outcome, ScenarioStats},
};

use super::Judgement;

/// A vCPU kept waiting for this share of the window, percent, explains a worker that did nothing.
const HARDLY_RAN_PCT: f64 = 90.0;

/// Reconsiders the failed findings of `result`.
pub fn by_host(result: &mut AssertResult, assert: &Assert, host: &HostTime) {
    let worst_gap = result.stats.worst_gap_ms();
    let unfair = spread(&result.stats, assert, host);
    let worst_wake_ms = worst_p99_wake_ms(&result.stats);
    for detail in result.details.iter_mut().filter(|d| d.outcome == Outcome::Fail) {
        let excuse = match detail.kind {
            DetailKind::Gap => gap(worst_gap, assert, host),
            DetailKind::Spread => unfair.clone(),
            DetailKind::NoProgress => no_progress(&result.stats, assert, host),
            DetailKind::Benchmark => wake(worst_wake_ms, assert, host),
            _ => None,
        };
        if let Some(excuse) = excuse {
            detail.outcome = Outcome::Inconclusive;
            detail.message = format!("{}; {excuse}", detail.message);
        }
    }
    let outcomes = result.details.iter().map(|d| d.outcome);
    if result.outcome == Outcome::Fail && result.details.iter().any(|d| d.outcome == Outcome::Inconclusive) {
        result.outcome = outcomes.max().unwrap_or(Outcome::Fail);
    }
}

/// Judged by the longest gap: where that one is explained, so is every shorter one.
fn gap(seen_ms: u64, assert: &Assert, host: &HostTime) -> Option<String> {
    let limit = assert.max_gap_ms?;
    let (waited, thread) = host.worst_wait_within(seen_ms);
    (seen_ms.saturating_sub(waited) <= limit).then(|| {
        format!("but the host kept vCPU thread {thread} waiting for {waited} ms of such a stretch, so this may be the host's doing")
    })
}

/// The 99th percentile of wake latencies of the cgroup where it is longest.
fn worst_p99_wake_ms(stats: &ScenarioStats) -> u64 {
    let p99 = |cgroup: &CgroupStats| {
        let mut all = Histogram::default();
        let members = stats.workers.iter().filter(|worker| worker.cgroup == cgroup.name);
        members.filter(|worker| !worker.is_messenger).for_each(|worker| all.merge(&worker.wake_latency));
        all.quantile(0.99).unwrap_or(0) / 1_000_000
    };
    stats.cgroups.iter().map(p99).max().unwrap_or(0)
}

/// As for a gap: what is left of the wake's time when the longest wait in such a time is taken away.
fn wake(seen_ms: u64, assert: &Assert, host: &HostTime) -> Option<String> {
    let limit_ms = assert.max_p99_wake_latency_ns?.div_ceil(1_000_000);
    let (waited, thread) = host.worst_wait_within(seen_ms);
    // Within the limit it is another benchmark that failed.
    let explained = seen_ms > limit_ms && seen_ms.saturating_sub(waited) <= limit_ms;
    explained.then(|| {
        format!("but the host kept vCPU thread {thread} waiting for {waited} ms of such a time, so this may be the host's doing")
    })
}

/// Judged by all cgroups together: explained only when in each what exceeds its limit is.
fn spread(stats: &ScenarioStats, assert: &Assert, host: &HostTime) -> Option<String> {
    let limit = assert.max_spread_pct?;
    let unequal = host.inequality_pct();
    let mut most: Option<f64> = None;
    for cgroup in &stats.cgroups {
        let members = stats.workers.iter().filter(|worker| worker.cgroup == cgroup.name);
        let lives = members.map(|worker| worker.wall_time_ns).filter(|lived| *lived > 0);
        // What the guest allowed for balancing is not allowed twice; the shortest life gives chance the most
        // room.
        let lived_ms = lives.min().map_or(host.window_ms, |lived| lived / 1_000_000).max(1);
        let chance = host.chance_within(lived_ms) * 100.0 / lived_ms as f64;
        if cgroup.spread_pct <= limit {
            continue;
        }
        if cgroup.spread_pct - unequal - chance > limit {
            return None;
        }
        most = Some(most.map_or(chance, |most| most.max(chance)));
    }
    let chance = most?;
    Some(format!(
        "but the host withheld {unequal:.0}% more of the time from one vCPU than from another, and whom it \
         stopped there may by chance make {chance:.0}% more, so this may be the host's doing"
    ))
}

/// What is left of the time in which it should have worked is not more than a worker may have to wait.
fn no_progress(stats: &ScenarioStats, assert: &Assert, host: &HostTime) -> Option<String> {
    let waited = host.worst_waited_pct();
    let lived_ms = stats.workers.iter().map(|worker| worker.wall_time_ns / 1_000_000).max().unwrap_or(0);
    let left_ms = lived_ms.saturating_sub(host.worst_wait_within(lived_ms).0);
    let waits = lived_ms > 0 && assert.max_gap_ms.is_some_and(|limit| lived_ms > limit && left_ms <= limit);
    (waited >= HARDLY_RAN_PCT || waits).then(|| {
        format!(
            "but the host kept a vCPU waiting for {waited:.0}% of the time, so this may be the host's doing"
        )
    })
}

/// Reconsiders a stall that the kernel's watchdog reported.
///
/// The watchdog gives a task so many seconds, by a clock that goes on while the host withholds every vCPU. Where
/// it withheld more than three quarters of them, the scheduler had less than a quarter of its time, and
/// nobody can tell. With more than that it has to run every task, on however slow a machine.
pub fn stall(mut judgement: Judgement, host: Option<&HostTime>) -> Judgement {
    if let (Some(Cause::SchedulerStall { reason }), Some(host)) = (&mut judgement.cause, host)
        && let Some(stalled_ms) = stalled_ms(reason)
    {
        let (waited, thread) = host.worst_wait_within(stalled_ms);
        if waited * 4 > stalled_ms * 3 {
            judgement.outcome = Outcome::Inconclusive;
            reason.push_str(&format!(
                "; but the host kept vCPU thread {thread} waiting for {waited} ms of such a stretch, so this may be the host's doing"
            ));
        }
    }
    judgement
}

/// How long nothing ran, from the kernel's words (kernel/sched/ext.c, `check_rq_for_timeouts()` and
/// `scx_tick()`): `… failed to run for 5.272s`, `watchdog failed to check in for 5.272s`.
fn stalled_ms(reason: &str) -> Option<u64> {
    let (_, time) = reason.rsplit_once(" for ")?;
    let seconds: f64 = time.trim_end_matches(')').strip_suffix('s')?.parse().ok()?;
    (seconds.is_finite() && seconds > 0.0).then_some((seconds * 1000.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ktstr_proto::{histogram::bucket_of, verdict::WorkerReport};

    fn result(kind: DetailKind, max_gap_ms: u64, spread_pct: f64) -> AssertResult {
        let mut result = AssertResult::fail(kind, "finding");
        result.stats.cgroups.push(CgroupStats { max_gap_ms, spread_pct, ..CgroupStats::default() });
        result
    }

    fn host(waits_ms: Vec<Vec<u32>>) -> HostTime {
        let total = |waits: &Vec<u32>| waits.iter().copied().map(u64::from).sum();
        let waited_ms: Vec<u64> = waits_ms.iter().map(total).collect();
        let window_ms = waits_ms[0].len() as u64 * 100;
        let ran_ms = waited_ms.iter().map(|waited| window_ms - waited).collect();
        HostTime { window_ms, ran_ms, waited_ms, waits_ms, period_ms: 100 }
    }

    #[test]
    fn a_gap_is_excused_as_far_as_the_wait_explains_it() {
        let assert = Assert::default_checks();
        let busy = host(vec![vec![50; 60], vec![0; 60]]);
        let mut explained = result(DetailKind::Gap, 4000, 0.0);
        by_host(&mut explained, &assert, &busy);
        assert_eq!(explained.outcome, Outcome::Inconclusive);
        assert!(explained.details[0].message.contains("vCPU thread 0 waiting for 2050 ms"), "{explained:?}");
        let mut too_long = result(DetailKind::Gap, 5900, 0.0);
        by_host(&mut too_long, &assert, &host(vec![vec![40; 60]]));
        assert_eq!((too_long.outcome, too_long.details[0].message.as_str()), (Outcome::Fail, "finding"));
    }

    #[test]
    fn a_stall_is_in_doubt_only_where_the_host_withheld_almost_everything() {
        let judged = |reason: &str, host: Option<&HostTime>| {
            let cause = Some(Cause::SchedulerStall { reason: reason.into() });
            let judgement = Judgement {
                outcome: Outcome::Fail,
                infrastructure: false,
                cause,
                result: None,
                exit_status: None,
            };
            let judgement = stall(judgement, host);
            (judgement.outcome, format!("{:?}", judgement.cause))
        };
        let starved = host(vec![vec![10; 60], vec![90; 60]]);
        let late = "runnable task stall: watchdog failed to check in for 5.272s";
        let (outcome, cause) = judged(late, Some(&starved));
        assert!(
            outcome == Outcome::Inconclusive && cause.contains("vCPU thread 1 waiting for 4860 ms"),
            "{cause}"
        );
        let task = "runnable task stall (worker[123] failed to run for 5.120s)";
        assert_eq!(judged(task, Some(&starved)).0, Outcome::Inconclusive);
        assert_eq!(judged(task, Some(&host(vec![vec![60; 60]]))).0, Outcome::Fail, "a busy host");
        assert_eq!(judged(task, None).0, Outcome::Fail);
        assert_eq!(judged("runnable task stall", Some(&starved)).0, Outcome::Fail, "no time was named");
    }

    #[test]
    fn unequal_vcpus_excuse_a_spread_and_an_idle_host_nothing() {
        let assert = Assert::default_checks();
        let mut unfair = result(DetailKind::Spread, 0, 60.0);
        by_host(&mut unfair, &assert, &host(vec![vec![30; 10], vec![0; 10]]));
        assert_eq!(unfair.outcome, Outcome::Inconclusive);
        for kind in [DetailKind::Spread, DetailKind::Gap, DetailKind::NoProgress] {
            let mut own_fault = result(kind, 5000, 60.0);
            by_host(&mut own_fault, &assert, &host(vec![vec![0; 60], vec![1; 60]]));
            assert_eq!(own_fault.outcome, Outcome::Fail, "{kind:?}");
        }
    }

    #[test]
    fn a_spread_is_excused_as_far_as_chance_explains_it() {
        let assert = Assert::default_checks();
        let judged = |spread_pct, waits: Vec<u32>| {
            let mut unfair = result(DetailKind::Spread, 0, spread_pct);
            unfair
                .stats
                .workers
                .push(WorkerReport { wall_time_ns: 2_500_000_000, ..WorkerReport::default() });
            by_host(&mut unfair, &assert, &host(vec![waits.clone(), waits]));
            unfair.outcome
        };
        // Limit for 2.5 s: 35 and 20 for balancing.
        assert_eq!(judged(57.0, vec![85; 50]), Outcome::Inconclusive);
        assert_eq!(judged(57.0, vec![0; 50]), Outcome::Fail);
        assert_eq!(judged(77.0, vec![30; 50]), Outcome::Fail, "a starved worker on a busy host");
    }

    #[test]
    fn a_late_wake_is_excused_as_far_as_the_wait_explains_it() {
        let assert = Assert { max_p99_wake_latency_ns: Some(100_000_000), ..Assert::default_checks() };
        let judged = |wake_ms: u64, waits: Vec<Vec<u32>>| {
            let mut late = result(DetailKind::Benchmark, 0, 0.0);
            let mut worker = WorkerReport::default();
            let (wake_ns, bucket) = (wake_ms * 1_000_000, bucket_of(wake_ms * 1_000_000));
            let counts = (0..=bucket).map(|n| if n == bucket { 100 } else { 0 });
            worker.wake_latency = Histogram::from_counts(counts, wake_ns);
            late.stats.workers.push(worker);
            by_host(&mut late, &assert, &host(waits));
            late.outcome
        };
        assert_eq!(judged(300, vec![vec![0; 20]]), Outcome::Fail);
        assert_eq!(judged(300, vec![vec![60; 20]]), Outcome::Inconclusive);
        assert_eq!(judged(900, vec![vec![60; 20]]), Outcome::Fail, "more than the wait explains");
    }

    #[test]
    fn what_time_cannot_explain_stays_failed() {
        let starved = host(vec![vec![100; 10], vec![0; 10]]);
        let mut mixed = result(DetailKind::NoProgress, 0, 0.0);
        mixed.push(DetailKind::Isolation, Outcome::Fail, "ran outside");
        by_host(&mut mixed, &Assert::default_checks(), &starved);
        let outcomes: Vec<Outcome> = mixed.details.iter().map(|d| d.outcome).collect();
        assert_eq!(outcomes, [Outcome::Inconclusive, Outcome::Fail]);
        assert_eq!(mixed.outcome, Outcome::Fail);
    }
}

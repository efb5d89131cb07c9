//! What the host's scheduling may have caused: such findings are inconclusive, with the figures.
//!
//! A guest cannot see that its vCPU waits for a host CPU, so a task then looks stuck that its
//! scheduler treated well. A finding about time is excused only as far as the wait that was measured
//! explains it: the gap less the longest wait within such a gap must be within the limit. Nothing
//! here turns a failure into a pass, and nothing is excused without figures.
//!
//! The kernel's watchdog knows nothing of the host either: see [`stall`].

use ktstr_proto::{
    host::HostTime,
    verdict::{Assert, AssertResult, Cause, DetailKind, Outcome, ScenarioStats, TimeFigures},
};

use super::Judgement;

/// A vCPU kept waiting for this share of the window, percent, explains a worker that did nothing.
const HARDLY_RAN_PCT: f64 = 90.0;

/// Reconsiders the failed findings of `result`.
pub fn by_host(result: &mut AssertResult, assert: &Assert, host: &HostTime) {
    let unfair = spread(&result.stats, assert, host);
    for detail in result.details.iter_mut().filter(|d| d.outcome == Outcome::Fail) {
        let excuse = match detail.kind {
            DetailKind::Gap | DetailKind::Benchmark => detail.time.and_then(|time| length(time, host)),
            DetailKind::Spread => unfair.clone(),
            DetailKind::Share => detail.time.and_then(|time| share(time, host)),
            DetailKind::NoProgress => no_progress(&result.stats, assert, host),
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

/// A gap or a wake that took too long: explained when what is left of it, less the longest wait in such a
/// time, is within its limit.
fn length(time: TimeFigures, host: &HostTime) -> Option<String> {
    let TimeFigures { seen_ms, limit_ms } = time;
    let (waited, thread) = host.worst_wait_within(seen_ms);
    (waited > 0 && seen_ms.saturating_sub(waited) <= limit_ms).then(|| {
        format!("but the host kept vCPU thread {thread} waiting for {waited} ms of such a time, so this may be the host's doing")
    })
}

/// A cgroup that got another amount of CPU time: the guest counts each stop of a vCPU as time of whoever was
/// there, and its scheduler makes up for that as for any other time, so what remains is a matter of chance
/// on each vCPU.
fn share(time: TimeFigures, host: &HostTime) -> Option<String> {
    let TimeFigures { seen_ms, limit_ms } = time;
    let chance = host.chance_within(host.window_ms) * host.waits_ms.len() as f64;
    (seen_ms > limit_ms && (seen_ms - limit_ms) as f64 <= chance).then(|| {
        let over = seen_ms - limit_ms;
        format!(
            "but that is {over} ms of CPU time, and by stopping vCPUs the host may by chance make a difference of              {chance:.0} ms, so this may be the host's doing"
        )
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

/// A worker may wait as long as the largest gap; one that was given less must still run within a second.
const FIRST_RUN_MS: u64 = 1000;

/// What is left of the time in which it should have worked is not more than a worker may have to wait.
fn no_progress(stats: &ScenarioStats, assert: &Assert, host: &HostTime) -> Option<String> {
    let waited = host.worst_waited_pct();
    let lived_ms = stats.workers.iter().map(|worker| worker.wall_time_ns / 1_000_000).max().unwrap_or(0);
    let left_ms = lived_ms.saturating_sub(host.worst_wait_within(lived_ms).0);
    let patience_ms = assert.max_gap_ms.filter(|limit| lived_ms > *limit).unwrap_or(FIRST_RUN_MS);
    (waited >= HARDLY_RAN_PCT || (lived_ms > patience_ms && left_ms <= patience_ms)).then(|| {
        format!(
            "but the host kept a vCPU waiting for {waited:.0}% of the time, so this may be the host's doing"
        )
    })
}

/// Reconsiders a stall that the kernel's watchdog reported, and a test that did not come to its end.
///
/// The watchdog gives a task so many seconds, by a clock that goes on while the host withholds every vCPU. Where
/// it withheld more than three quarters of them, the scheduler had less than a quarter of its time, and
/// nobody can tell. With more than that it has to run every task, on however slow a machine. The same
/// share of its time excuses a test that did not end before the run's deadline.
pub fn stall(mut judgement: Judgement, host: Option<&HostTime>) -> Judgement {
    let Some(host) = host.filter(|_| !judgement.infrastructure) else { return judgement };
    let (words, lasted_ms) = match &mut judgement.cause {
        Some(Cause::SchedulerStall { reason }) => {
            let lasted_ms = stalled_ms(reason);
            (reason, lasted_ms)
        }
        Some(Cause::Deadline { phase, waited_ms }) => (phase, Some(*waited_ms)),
        _ => return judgement,
    };
    let Some(lasted_ms) = lasted_ms else { return judgement };
    // What was measured of it may be less; only that excuses.
    let (waited, thread) = host.worst_wait_within(lasted_ms);
    if waited * 4 > lasted_ms * 3 {
        judgement.outcome = Outcome::Inconclusive;
        words.push_str(&format!(
            "; but the host kept vCPU thread {thread} waiting for {waited} ms of such a time, so this may be the host's doing"
        ));
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
    use ktstr_proto::verdict::{CgroupStats, WorkerReport};

    fn result(kind: DetailKind, spread_pct: f64) -> AssertResult {
        let mut result = AssertResult::fail(kind, "finding");
        result.stats.cgroups.push(CgroupStats { spread_pct, ..CgroupStats::default() });
        result
    }

    fn too_long(kind: DetailKind, seen_ms: u64, limit_ms: u64) -> AssertResult {
        let mut result = AssertResult::pass();
        result.fail_time(kind, TimeFigures { seen_ms, limit_ms }, "finding");
        result
    }

    fn host(waits_ms: Vec<Vec<u32>>) -> HostTime {
        let total = |waits: &Vec<u32>| waits.iter().copied().map(u64::from).sum();
        let waited_ms: Vec<u64> = waits_ms.iter().map(total).collect();
        let window_ms = waits_ms[0].len() as u64 * 100;
        let ran_ms = waited_ms.iter().map(|waited| window_ms - waited).collect();
        HostTime { window_ms, ran_ms, waited_ms, waits_ms, period_ms: 100, pressure_ms: None }
    }

    #[test]
    fn a_gap_and_a_late_wake_are_excused_as_far_as_the_wait_explains_them() {
        let judged = |kind, seen_ms, limit_ms, waits| {
            let mut found = too_long(kind, seen_ms, limit_ms);
            by_host(&mut found, &Assert::default_checks(), &host(waits));
            (found.outcome, found.details[0].message.clone())
        };
        let (outcome, message) = judged(DetailKind::Gap, 4000, 3000, vec![vec![50; 60], vec![0; 60]]);
        assert_eq!(outcome, Outcome::Inconclusive);
        assert!(message.contains("vCPU thread 0 waiting for 2050 ms"), "{message}");
        let own_fault = (Outcome::Fail, "finding".to_owned());
        assert_eq!(judged(DetailKind::Gap, 5900, 3000, vec![vec![40; 60]]), own_fault);
        assert_eq!(
            judged(DetailKind::Gap, 800, 50, vec![vec![0; 60]]),
            own_fault,
            "a limit of the test's own"
        );
        assert_eq!(judged(DetailKind::Benchmark, 300, 100, vec![vec![0; 20]]), own_fault);
        assert_eq!(judged(DetailKind::Benchmark, 300, 100, vec![vec![80; 20]]).0, Outcome::Inconclusive);
        assert_eq!(judged(DetailKind::Benchmark, 900, 100, vec![vec![60; 20]]), own_fault);
    }

    #[test]
    fn a_share_is_in_doubt_as_far_as_stopped_vcpus_explain_it() {
        let judged = |seen_ms, limit_ms, waits| {
            let mut found = too_long(DetailKind::Share, seen_ms, limit_ms);
            by_host(&mut found, &Assert::default_checks(), &host(waits));
            found.outcome
        };
        // Two vCPUs that were stopped for 40 of each 100 ms: 3·√(50·40²) = 849 ms each.
        let busy = || vec![vec![40; 50], vec![40; 50]];
        assert_eq!(judged(2400, 800, busy()), Outcome::Inconclusive);
        assert_eq!(judged(3000, 800, busy()), Outcome::Fail, "more than chance can do");
        assert_eq!(judged(850, 800, vec![vec![0; 50], vec![0; 50]]), Outcome::Fail, "an idle host");
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
    fn a_deadline_is_in_doubt_where_the_host_withheld_almost_everything() {
        let judged = |host: &HostTime, infrastructure| {
            let cause = Some(Cause::Deadline { phase: "TestStarted".into(), waited_ms: 6000 });
            let outcome = Outcome::Fail;
            stall(Judgement { outcome, infrastructure, cause, result: None, exit_status: None }, Some(host))
                .outcome
        };
        assert_eq!(judged(&host(vec![vec![90; 60]]), false), Outcome::Inconclusive);
        assert_eq!(judged(&host(vec![vec![40; 60]]), false), Outcome::Fail);
        assert_eq!(judged(&host(vec![vec![90; 60]]), true), Outcome::Fail, "the kernel never came up");
        assert_eq!(judged(&host(vec![vec![99; 40]]), false), Outcome::Fail, "then it hung on an idle host");
    }

    #[test]
    fn unequal_vcpus_excuse_a_spread_and_an_idle_host_nothing() {
        let assert = Assert::default_checks();
        let mut unfair = result(DetailKind::Spread, 60.0);
        by_host(&mut unfair, &assert, &host(vec![vec![30; 10], vec![0; 10]]));
        assert_eq!(unfair.outcome, Outcome::Inconclusive);
        for kind in [DetailKind::Spread, DetailKind::NoProgress] {
            let mut own_fault = result(kind, 60.0);
            by_host(&mut own_fault, &assert, &host(vec![vec![0; 60], vec![1; 60]]));
            assert_eq!(own_fault.outcome, Outcome::Fail, "{kind:?}");
        }
    }

    #[test]
    fn a_spread_is_excused_as_far_as_chance_explains_it() {
        let assert = Assert::default_checks();
        let judged = |spread_pct, waits: Vec<u32>| {
            let mut unfair = result(DetailKind::Spread, spread_pct);
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
    fn what_time_cannot_explain_stays_failed() {
        let starved = host(vec![vec![100; 10], vec![0; 10]]);
        let mut mixed = result(DetailKind::NoProgress, 0.0);
        mixed.push(DetailKind::Isolation, Outcome::Fail, "ran outside");
        by_host(&mut mixed, &Assert::default_checks(), &starved);
        let outcomes: Vec<Outcome> = mixed.details.iter().map(|d| d.outcome).collect();
        assert_eq!(outcomes, [Outcome::Inconclusive, Outcome::Fail]);
        assert_eq!(mixed.outcome, Outcome::Fail);
    }
}

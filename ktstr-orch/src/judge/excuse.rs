//! What the host's scheduling may have caused: such findings are inconclusive, with the figures.
//!
//! A guest cannot see that its vCPU waits for a host CPU, so a task then looks stuck that its
//! scheduler treated well. A finding about time is excused only as far as the wait that was measured
//! explains it: what is left of it, less the wait, must be within the limit. Where the guest says when
//! a worker was off its CPU and which CPU that was, only the wait of that CPU at that time counts (under a
//! sched_ext scheduler that of any CPU, since any may have to decide), else the longest in any such
//! time. Nothing here turns a failure into a pass, and nothing is excused without figures.
//!
//! The kernel's watchdog knows nothing of the host either: see [`stall`].

use ktstr_proto::verdict::{AssertResult, Cause, Detail, DetailKind, Outcome, TimeFigures};

use super::{Judgement, clock::Given};

/// A vCPU kept waiting for this share of a worker's life, percent, explains a worker that did nothing.
const HARDLY_RAN_PCT: f64 = 90.0;

/// A stop that the guest's scheduler counted against somebody shortly before a step is made up for within it,
/// nanoseconds.
const MADE_UP_FOR_NS: u64 = 1_000_000_000;

/// Reconsiders the failed findings of `result`.
pub fn by_host(result: &mut AssertResult, given: Given<'_>) {
    for detail in result.details.iter_mut().filter(|d| d.outcome == Outcome::Fail) {
        let excuse = match detail.kind {
            DetailKind::Gap | DetailKind::Benchmark => length(detail, given),
            DetailKind::Spread => spread(detail, given),
            DetailKind::Share => share(detail, given),
            DetailKind::NoProgress => no_progress(detail, given),
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

/// A gap or a wake that took too long: explained when what is left of it, less the wait, is within its limit.
fn length(detail: &Detail, given: Given<'_>) -> Option<String> {
    let TimeFigures { seen_ms, limit_ms } = detail.time?;
    let explains = |waited: u64| waited > 0 && seen_ms.saturating_sub(waited) <= limit_ms;
    let when = detail.when.as_ref();
    let at = when.and_then(|when| Some((when, given.clock.on_host(when.from_ns, when.to_ns)?)));
    let Some((when, between)) = at else {
        let (waited, thread) = given.time.worst_wait_within(seen_ms);
        return explains(waited).then(|| {
            format!("but the host kept vCPU thread {thread} waiting for {waited} ms of such a time, so this may be the host's doing")
        });
    };
    // Between the two checkpoints it may lie anywhere.
    let length_ms = (when.to_ns.saturating_sub(when.from_ns) / 1_000_000).max(seen_ms);
    let waited = |cpus: &[u32]| {
        let (waited, thread) = given.time.waited_between(cpus, between, length_ms);
        (waited.min(seen_ms), thread)
    };
    let (own, thread) = waited(&when.cpus);
    if explains(own) {
        return Some(format!(
            "but the host kept vCPU {thread}, where it was, waiting for {own} ms of that time, so this may be the host's doing"
        ));
    }
    let all: Vec<u32> = (0u32..).take(given.time.waits_ms.len()).collect();
    let (any, thread) = waited(&all);
    (given.any_cpu && explains(any)).then(|| {
        format!(
            "but the host kept vCPU {thread}, where its scheduler may have had to decide, waiting for {any} ms of that \
             time, so this may be the host's doing"
        )
    })
}

/// A cgroup that got another amount of CPU time: the guest counts each stop of a vCPU as time of whoever was
/// there, and its scheduler makes up for that as for any other time, so what remains is a matter of chance
/// on each vCPU. What counts is the time in which the step held, and a little before.
fn share(detail: &Detail, given: Given<'_>) -> Option<String> {
    let TimeFigures { seen_ms, limit_ms } = detail.time?;
    let when = detail.when.as_ref();
    let before = |from_ns: u64| from_ns.saturating_sub(MADE_UP_FOR_NS);
    let between = when.and_then(|when| given.clock.on_host(before(when.from_ns), when.to_ns));
    let host = between.map_or_else(|| given.time.clone(), |between| given.time.between(between));
    let chance = host.chance_of_share();
    (seen_ms > limit_ms && (seen_ms - limit_ms) as f64 <= chance).then(|| {
        let over = seen_ms - limit_ms;
        format!(
            "but that is {over} ms of CPU time, and by stopping vCPUs the host may by chance make a difference of \
             {chance:.0} ms, so this may be the host's doing"
        )
    })
}

/// CPU time that one worker of a cgroup got more than another, of the shortest life among them: explained when
/// what exceeds the limit is not more than the host withheld from one vCPU rather than from another and than
/// chance makes of it. What the guest allowed for balancing is not allowed twice.
fn spread(detail: &Detail, given: Given<'_>) -> Option<String> {
    let TimeFigures { seen_ms, limit_ms } = detail.time?;
    let when = detail.when.as_ref();
    let between = when.and_then(|when| given.clock.on_host(when.from_ns, when.to_ns));
    let host = between.map_or_else(|| given.time.clone(), |between| given.time.between(between));
    let lived_ms = when.map_or(host.window_ms, |when| when.to_ns.saturating_sub(when.from_ns) / 1_000_000);
    let (unequal, chance) = (host.inequality_ms(), host.chance_within(lived_ms));
    let over = seen_ms.saturating_sub(limit_ms);
    (unequal as f64 + chance >= over as f64).then(|| {
        format!(
            "but that is {over} ms of CPU time, the host withheld {unequal} ms more from one vCPU than from another, \
             and whom it stopped there may by chance make {chance:.0} ms more, so this may be the host's doing"
        )
    })
}

/// What is left of the time in which a worker should have worked is not more than it may have to wait.
fn no_progress(detail: &Detail, given: Given<'_>) -> Option<String> {
    let TimeFigures { seen_ms, limit_ms } = detail.time?;
    let all: Vec<u32> = (0u32..).take(given.time.waits_ms.len()).collect();
    let at =
        detail.when.as_ref().and_then(|when| Some((when, given.clock.on_host(when.from_ns, when.to_ns)?)));
    let (waited, thread) = match at {
        Some((when, between)) => {
            let cpus = if given.any_cpu || when.cpus.is_empty() { &all } else { &when.cpus };
            given.time.waited_between(cpus, between, seen_ms)
        }
        None => given.time.worst_wait_within(seen_ms),
    };
    let hardly_ran = waited as f64 >= seen_ms as f64 * HARDLY_RAN_PCT / 100.0;
    (waited > 0 && (hardly_ran || seen_ms.saturating_sub(waited) <= limit_ms)).then(|| {
        format!(
            "but the host kept vCPU {thread} waiting for {waited} ms of its {seen_ms} ms, so this may be the host's doing"
        )
    })
}

/// Reconsiders a stall that the kernel's watchdog reported, and a test that did not come to its end.
///
/// The watchdog gives a task so many seconds, by a clock that goes on while the host withholds every vCPU. Where
/// it withheld more than three quarters of them, the scheduler had less than a quarter of its time, and
/// nobody can tell. With more than that it has to run every task, on however slow a machine. The same
/// share of its time excuses a test that did not end before the run's deadline.
///
/// `ended_ns` is when the kernel said so: it looks at the tasks every half of the time it gives them, so the
/// time in question lies within twice that time before.
pub fn stall(mut judgement: Judgement, given: Option<Given<'_>>, ended_ns: Option<u64>) -> Judgement {
    let Some(given) = given.filter(|_| !judgement.infrastructure) else { return judgement };
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
    let before = |end: u64| given.clock.on_host(end.saturating_sub(lasted_ms * 2_000_000), end);
    let (waited, thread) = match ended_ns.and_then(before) {
        Some(between) => {
            let all: Vec<u32> = (0u32..).take(given.time.waits_ms.len()).collect();
            given.time.waited_between(&all, between, lasted_ms)
        }
        None => given.time.worst_wait_within(lasted_ms),
    };
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
    use crate::judge::GuestClock;
    use ktstr_proto::{host::HostTime, verdict::Moment};

    /// Nothing is known of when the guest's moments were.
    fn given(time: &HostTime) -> Given<'_> {
        static NOTHING: std::sync::LazyLock<GuestClock> = std::sync::LazyLock::new(GuestClock::default);
        Given { time, clock: &NOTHING, any_cpu: false }
    }

    fn excused(result: &mut AssertResult, host: &HostTime) {
        by_host(result, given(host));
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
        let at_ms = (0..=waits_ms[0].len() as u64).map(|n| n * 100).collect();
        HostTime { window_ms, ran_ms, waited_ms, waits_ms, at_ms, period_ms: 100, pressure_ms: None }
    }

    #[test]
    fn a_gap_and_a_late_wake_are_excused_as_far_as_the_wait_explains_them() {
        let judged = |kind, seen_ms, limit_ms, waits| {
            let mut found = too_long(kind, seen_ms, limit_ms);
            excused(&mut found, &host(waits));
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

    /// The guest's clock is the host's, and it has spoken at 10 s.
    fn same_clock() -> GuestClock {
        let mut clock = GuestClock::default();
        clock.seen(0, 0);
        clock.seen(10_000_000_000, 10_000);
        clock
    }

    #[test]
    fn a_gap_is_excused_by_its_own_cpu_at_its_own_time_alone() {
        // The host withholds CPU 1 for 4 s, from 5 s on.
        let waits = |from: usize, to: usize| {
            (0..100).map(|n| if (from..to).contains(&n) { 100 } else { 0 }).collect()
        };
        let host = host(vec![vec![0; 100], waits(50, 90)]);
        let clock = same_clock();
        let judged = |cpus: &[u32], from_s: u64, to_s: u64, any_cpu| {
            let mut found = AssertResult::pass();
            let when =
                Moment { from_ns: from_s * 1_000_000_000, to_ns: to_s * 1_000_000_000, cpus: cpus.into() };
            found.fail_at(DetailKind::Gap, TimeFigures { seen_ms: 4000, limit_ms: 3000 }, when, "finding");
            by_host(&mut found, Given { time: &host, clock: &clock, any_cpu });
            (found.outcome, found.details[0].message.clone())
        };
        let (outcome, message) = judged(&[1], 5, 9, false);
        assert_eq!(outcome, Outcome::Inconclusive);
        assert!(message.contains("vCPU 1, where it was, waiting for 4000 ms of that time"), "{message}");
        assert_eq!(judged(&[0, 1], 5, 9, false).0, Outcome::Inconclusive, "it moved");
        assert_eq!(judged(&[1], 0, 4, false).0, Outcome::Fail, "it was at another time");
        assert_eq!(judged(&[0], 5, 9, false).0, Outcome::Fail, "it was on another CPU");
        let (outcome, message) = judged(&[0], 5, 9, true);
        assert!(outcome == Outcome::Inconclusive && message.contains("may have had to decide"), "{message}");
        assert_eq!(judged(&[0], 0, 4, true).0, Outcome::Fail);
        assert_eq!(
            judged(&[1], 3, 7, false).0,
            Outcome::Inconclusive,
            "half of it is more than what is too much"
        );
    }

    #[test]
    fn a_stall_is_weighed_against_the_time_before_it() {
        let host = host(vec![(0..100).map(|n| if n < 60 { 100 } else { 0 }).collect()]);
        let clock = same_clock();
        let judged = |ended_s: u64| {
            let reason = "runnable task stall (worker[1] failed to run for 2.000s)".to_owned();
            let cause = Some(Cause::SchedulerStall { reason });
            let failed = Judgement {
                outcome: Outcome::Fail,
                infrastructure: false,
                cause,
                result: None,
                exit_status: None,
            };
            let given = Given { time: &host, clock: &clock, any_cpu: true };
            stall(failed, Some(given), Some(ended_s * 1_000_000_000)).outcome
        };
        assert_eq!(judged(6), Outcome::Inconclusive);
        assert_eq!(judged(10), Outcome::Fail, "by then the host had long given everything");
    }

    #[test]
    fn a_share_is_in_doubt_as_far_as_stopped_vcpus_explain_it() {
        let judged = |seen_ms, limit_ms, waits| {
            let mut found = too_long(DetailKind::Share, seen_ms, limit_ms);
            excused(&mut found, &host(waits));
            found.outcome
        };
        // Two vCPUs that were stopped for 40 of each 100 ms: 1.5·√(2·50·40²) = 600 ms.
        let busy = || vec![vec![40; 50], vec![40; 50]];
        assert_eq!(judged(1390, 800, busy()), Outcome::Inconclusive);
        assert_eq!(judged(1410, 800, busy()), Outcome::Fail, "more than chance can do");
        assert_eq!(judged(850, 800, vec![vec![0; 50], vec![0; 50]]), Outcome::Fail, "an idle host");
    }

    #[test]
    fn a_share_is_excused_by_the_time_of_its_own_step_alone() {
        // The host withholds 40 of each 100 ms, from 5 s on.
        let waits = || (0..100).map(|n| if n < 50 { 0 } else { 40 }).collect();
        let host = host(vec![waits(), waits()]);
        let clock = same_clock();
        let judged = |from_s: u64, to_s: u64| {
            let mut found = AssertResult::pass();
            let when = Moment { from_ns: from_s * 1_000_000_000, to_ns: to_s * 1_000_000_000, cpus: vec![] };
            let time = TimeFigures { seen_ms: 1200, limit_ms: 800 };
            found.fail_at(DetailKind::Share, time, when, "finding");
            by_host(&mut found, Given { time: &host, clock: &clock, any_cpu: true });
            found.outcome
        };
        assert_eq!(judged(6, 9), Outcome::Inconclusive);
        assert_eq!(judged(1, 4), Outcome::Fail, "the host gave everything while it held");
        assert_eq!(judged(4, 8), Outcome::Inconclusive, "three quarters of it were in doubt");
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
            let judgement = stall(judgement, host.map(given), None);
            (judgement.outcome, format!("{:?}", judgement.cause))
        };
        let starved = host(vec![vec![10; 60], vec![90; 60]]);
        let late = "runnable task stall: watchdog failed to check in for 5.272s";
        let (outcome, cause) = judged(late, Some(&starved));
        assert!(
            outcome == Outcome::Inconclusive && cause.contains("vCPU thread 1 waiting for 4762 ms"),
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
            stall(
                Judgement { outcome, infrastructure, cause, result: None, exit_status: None },
                Some(given(host)),
                None,
            )
            .outcome
        };
        assert_eq!(judged(&host(vec![vec![90; 60]]), false), Outcome::Inconclusive);
        assert_eq!(judged(&host(vec![vec![40; 60]]), false), Outcome::Fail);
        assert_eq!(judged(&host(vec![vec![90; 60]]), true), Outcome::Fail, "the kernel never came up");
        assert_eq!(judged(&host(vec![vec![99; 40]]), false), Outcome::Fail, "then it hung on an idle host");
    }

    /// Of workers that lived from `from_s` to `to_s`.
    fn unfair(kind: DetailKind, seen_ms: u64, limit_ms: u64, (from_s, to_s): (u64, u64)) -> AssertResult {
        let mut result = AssertResult::pass();
        let when = Moment { from_ns: from_s * 1_000_000_000, to_ns: to_s * 1_000_000_000, cpus: Vec::new() };
        result.fail_at(kind, TimeFigures { seen_ms, limit_ms }, when, "finding");
        result
    }

    fn outcome(mut result: AssertResult, host: &HostTime) -> Outcome {
        by_host(&mut result, Given { time: host, clock: &same_clock(), any_cpu: false });
        result.outcome
    }

    #[test]
    fn unequal_vcpus_excuse_a_spread_at_its_time_and_an_idle_host_nothing() {
        // Of 2 s 60 % where 35 % are allowed; the host withheld 600 ms from one vCPU in the first 2 s.
        let withheld: Vec<u32> = (0..100).map(|n| if n < 20 { 30 } else { 0 }).collect();
        let host = host(vec![withheld, vec![0; 100]]);
        let spread = |life| unfair(DetailKind::Spread, 1200, 700, life);
        assert_eq!(outcome(spread((0, 2)), &host), Outcome::Inconclusive);
        assert_eq!(outcome(spread((5, 7)), &host), Outcome::Fail, "at another time");
        let idle = self::host(vec![vec![0; 100], vec![1; 100]]);
        assert_eq!(outcome(spread((0, 2)), &idle), Outcome::Fail);
        assert_eq!(outcome(unfair(DetailKind::NoProgress, 2000, 1000, (0, 2)), &idle), Outcome::Fail);
        let mut merged = AssertResult::pass();
        merged.details = spread((0, 2)).details;
        merged.outcome = Outcome::Fail;
        assert_eq!(outcome(merged, &host), Outcome::Inconclusive, "figures of the finding alone count");
    }

    #[test]
    fn a_spread_is_excused_as_far_as_chance_explains_it() {
        let judged = |seen_ms, waits: u32| {
            outcome(unfair(DetailKind::Spread, seen_ms, 875, (2, 4)), &host(vec![vec![waits; 100]; 2]))
        };
        // 35 % of 2.5 s are 875 ms; stops of 85 ms in each of 20 to 24 intervals make 3·√(24·85²) = 1249 ms.
        assert_eq!(judged(1425, 85), Outcome::Inconclusive);
        assert_eq!(judged(1425, 0), Outcome::Fail);
        assert_eq!(judged(1925, 30), Outcome::Fail, "a starved worker on a busy host");
    }

    #[test]
    fn what_time_cannot_explain_stays_failed() {
        let starved = host(vec![vec![100; 100], vec![0; 100]]);
        let mut mixed = unfair(DetailKind::NoProgress, 2000, 1000, (0, 2));
        mixed.push(DetailKind::Isolation, Outcome::Fail, "ran outside");
        excused(&mut mixed, &starved);
        let outcomes: Vec<Outcome> = mixed.details.iter().map(|d| d.outcome).collect();
        assert_eq!(outcomes, [Outcome::Inconclusive, Outcome::Fail]);
        assert_eq!(mixed.outcome, Outcome::Fail);
    }
}

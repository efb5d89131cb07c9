//! Judges workers by their figures: progress, gaps, fairness within a cgroup, isolation, survival.
//!
//! Every finding says what was seen against what was allowed. Refuses to judge what it cannot
//! measure: a cgroup whose workers have no wall time is inconclusive, not fair.

mod rates;
pub mod usage;

use std::{collections::BTreeMap, time::Duration};

use ktstr_proto::figures::LatencyFigures;
use ktstr_proto::histogram::Histogram;
use ktstr_proto::verdict::{
    Assert, AssertResult, CgroupStats, Detail, DetailKind, Moment, Outcome, ScenarioStats, TimeFigures,
    WorkerExit, WorkerReport,
};

use crate::scenario::{TestTopology, cpu_list};

/// All findings and figures of `reports`, which are ordered by cgroup.
pub fn judge(assert: &Assert, reports: Vec<WorkerReport>) -> AssertResult {
    if reports.is_empty() {
        return AssertResult::skip("there are no workers to judge");
    }
    let groups = reports.chunk_by(|a, b| a.cgroup == b.cgroup && a.work_type == b.work_type);
    judge_groups(
        assert,
        None,
        groups.map(|reports| Group { reports: reports.to_vec(), ..Group::default() }).collect(),
    )
}

/// A worker that ran so long made progress, even if its first unit of work was too much for it.
const RAN_NS: u64 = 2_000_000;

/// A worker that lived shorter may not have had its turn yet.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// Workers that were told the same.
#[derive(Debug, Clone, Default)]
pub struct Group {
    /// Their figures.
    pub reports: Vec<WorkerReport>,
    /// From their start until they were told to stop, if known.
    pub lived: Option<Duration>,
    /// Share of that time, 0 to 1, for which the quota of their cgroup kept its CPUs from it.
    pub throttled: f64,
    /// When the scenario began, guest `CLOCK_MONOTONIC`, nanoseconds, if there is one.
    pub began_ns: Option<u64>,
    /// When they were told to stop, by the same clock, if known.
    pub ended_ns: Option<u64>,
}

impl Group {
    /// The last `lived` of their time, and where the host may have kept them waiting then.
    fn moment(&self, lived: Duration, cpus: &[u32]) -> Option<Moment> {
        let to_ns = self.ended_ns?;
        let from_ns = to_ns.saturating_sub(u64::try_from(lived.as_nanos()).unwrap_or(u64::MAX));
        Some(Moment { from_ns, to_ns, cpus: cpus.to_vec() })
    }
}

/// As [`judge`], with the machine and with workers grouped by what they were told: only those of one group that may use the
/// same CPUs can be compared for fairness. Groups are ordered by cgroup.
pub fn judge_groups(assert: &Assert, topo: Option<&TestTopology>, groups: Vec<Group>) -> AssertResult {
    let mut result = AssertResult::pass();
    let mut all = groups.iter().flat_map(|group| &group.reports).peekable();
    if all.peek().is_some() && all.all(|worker| worker.not_run.is_some()) {
        result.outcome = Outcome::NotRun;
    }
    let mut cgroups: Vec<CgroupStats> = Vec::new();
    for group in &groups {
        group.reports.iter().for_each(|worker| judge_worker(assert, group, worker, &mut result));
    }
    if assert.not_stuck == Some(true) {
        note_short_lives(&groups, &mut result);
    }
    rates::judge_measured(assert, &groups, &mut result);
    let name = |group: &Group| group.reports.first().map(|worker| worker.cgroup.clone());
    for same_cgroup in groups.chunk_by(|a, b| name(a) == name(b)) {
        let members: Vec<WorkerReport> =
            same_cgroup.iter().flat_map(|group| &group.reports).cloned().collect();
        let mut stats = cgroup_stats(&members, topo);
        let mut worst: Option<CgroupStats> = None;
        let all_peers = same_cgroup
            .iter()
            .flat_map(|group| peers(&group.reports).into_iter().map(move |peers| (group, peers)));
        for (group, peers) in all_peers {
            let lived = group.lived;
            // Who began a moment ago has no share yet to be compared.
            let settled = |worker: &WorkerReport| worker.wall_time_ns as u128 >= SHORT_LIFE.as_nanos();
            let compared: Vec<WorkerReport> = match lived {
                Some(lived) if lived >= SHORT_LIFE => peers.iter().filter(|w| settled(w)).cloned().collect(),
                _ => peers.clone(),
            };
            let theirs = cgroup_stats(&compared, topo);
            judge_fairness(assert, group, &compared, &theirs, &mut result);
            rates::judge(assert, topo, &peers, &mut result);
            if worst.as_ref().is_none_or(|worst| worst.spread_pct < theirs.spread_pct) {
                worst = Some(theirs);
            }
        }
        stats.spread_pct = worst.map_or(0.0, |worst| worst.spread_pct);
        cgroups.push(stats);
    }
    let workers: Vec<WorkerReport> = groups.into_iter().flat_map(|group| group.reports).collect();
    if !workers.is_empty() && workers.iter().all(|worker| worker.not_run.is_some()) {
        result.outcome = Outcome::NotRun;
    }
    result.stats = ScenarioStats { cgroups, workers, ..ScenarioStats::default() };
    result
}

fn made_no_progress(worker: &WorkerReport) -> bool {
    worker.not_run.is_none() && worker.work_units == 0 && worker.cpu_time_ns < RAN_NS
}

/// Says per cgroup how many workers did nothing and were given too little time to be judged by it.
fn note_short_lives(groups: &[Group], result: &mut AssertResult) {
    let mut idle: BTreeMap<&str, (usize, Duration)> = BTreeMap::new();
    for group in groups {
        let Some(lived) = group.lived.filter(|lived| *lived < SHORT_LIFE) else { continue };
        for worker in group.reports.iter().filter(|worker| made_no_progress(worker)) {
            let (count, longest) = idle.entry(&worker.cgroup).or_default();
            *count += 1;
            *longest = lived.max(*longest);
        }
    }
    for (cgroup, (count, longest)) in idle {
        let longest = longest.as_millis();
        let message = format!(
            "{count} workers of {cgroup} made no progress; not judged, since they were given {longest}ms at most"
        );
        result.push(DetailKind::Note, Outcome::NotRun, message);
    }
}

/// Those of a group that do the same and may use the same CPUs.
fn peers(group: &[WorkerReport]) -> Vec<Vec<WorkerReport>> {
    let mut peers: Vec<Vec<WorkerReport>> = Vec::new();
    for worker in group {
        let alike = |known: &&mut Vec<WorkerReport>| {
            known[0].cpus_allowed == worker.cpus_allowed && known[0].role == worker.role
        };
        match peers.iter_mut().find(alike) {
            Some(known) => known.push(worker.clone()),
            None => peers.push(vec![worker.clone()]),
        }
    }
    peers
}

/// A period of `cpu.max`, milliseconds: what is throttled is so until the end of one.
const QUOTA_PERIOD_MS: f64 = 100.0;

/// `group` is the one it belongs to.
fn judge_worker(assert: &Assert, group: &Group, worker: &WorkerReport, result: &mut AssertResult) {
    let Group { lived, began_ns, .. } = *group;
    let WorkerReport { tid, cgroup, work_type, .. } = worker;
    if let Some(reason) = &worker.not_run {
        let message = format!("{work_type} in {cgroup} was not run: {reason}");
        result.push(DetailKind::Note, Outcome::NotRun, message);
        return;
    }
    let death = match worker.exit {
        WorkerExit::Completed => None,
        WorkerExit::Exited { code } => Some(format!("exited with status {code} before it was told to stop")),
        WorkerExit::Signaled { signal } => Some(format!("was killed by signal {signal}")),
        WorkerExit::Panicked => Some("panicked; its message is on standard error".into()),
        WorkerExit::TimedOut => {
            let waited = crate::work::STOP_TIMEOUT.as_secs();
            Some(format!("did not stop within {waited} s of being told to"))
        }
    };
    if let Some(how) = death {
        let message = format!("tid {tid} ({work_type} in {cgroup}) {how}");
        result.push(DetailKind::WorkerDied, Outcome::Fail, message);
    }
    let short = lived.is_some_and(|lived| lived < SHORT_LIFE);
    if assert.not_stuck == Some(true) && !short && made_no_progress(worker) {
        let (ran_us, wall_ms) = (worker.cpu_time_ns / 1000, worker.wall_time_ns / 1_000_000);
        let message = format!(
            "tid {tid} made no progress (0 work units, {ran_us}us of CPU time in {wall_ms}ms) in {cgroup}"
        );
        // Without a limit that is less than that, it should have had its first turn within a second.
        let lived_ms = wall_ms.max(lived.map_or(0, |lived| lived.as_millis() as u64));
        let limit_ms = assert.max_gap_ms.filter(|limit| lived_ms > *limit);
        let time =
            TimeFigures { seen_ms: lived_ms, limit_ms: limit_ms.unwrap_or(SHORT_LIFE.as_millis() as u64) };
        result.details.push(Detail {
            kind: DetailKind::NoProgress,
            outcome: Outcome::Fail,
            message,
            time: Some(time),
            when: group.moment(Duration::from_millis(lived_ms), &worker.cpus_allowed),
        });
        result.outcome = result.outcome.max(Outcome::Fail);
    }
    let gap_ms = worker.max_gap_ns / 1_000_000;
    // As with time frozen, nobody could have run it while its own quota kept it off.
    let by_quota_ms = match group.throttled {
        share if share > 0.0 => (gap_ms as f64 * share.min(1.0) + QUOTA_PERIOD_MS) as u64,
        _ => 0,
    };
    let judged_ms = gap_ms.saturating_sub(by_quota_ms);
    if let Some(threshold) = assert.max_gap_ms.filter(|threshold| judged_ms > *threshold) {
        // As the timeline counts, from the scenario's start.
        let since = |began: u64| worker.max_gap_moment.to_ns.saturating_sub(began);
        let at = began_ns.map_or(worker.max_gap_at_ns, since) / 1_000_000;
        let cpu = worker.max_gap_cpu;
        let quota = match by_quota_ms {
            0 => String::new(),
            ms => format!(", {ms}ms of it by its quota,"),
        };
        let message = format!(
            "tid {tid} stuck {gap_ms}ms{quota} on cpu{cpu} at +{at}ms (threshold {threshold}ms) in {cgroup}"
        );
        let time = TimeFigures { seen_ms: judged_ms, limit_ms: threshold };
        result.fail_at(DetailKind::Gap, time, worker.max_gap_moment.clone(), message);
    }
    if assert.isolation == Some(true) {
        let never_allowed = |cpu: &u32| !worker.cpus_allowed.is_empty() && !worker.cpus_allowed.contains(cpu);
        let outside: Vec<u32> = worker.cpus_used.iter().copied().filter(never_allowed).collect();
        let at_its_time: Vec<u32> =
            worker.cpus_outside.iter().copied().filter(|cpu| !outside.contains(cpu)).collect();
        if !outside.is_empty() {
            let (outside, allowed) = (cpu_list(&outside), cpu_list(&worker.cpus_allowed));
            let message =
                format!("tid {tid} ran on cpus {outside} outside the cpuset of {cgroup} ({allowed})");
            result.push(DetailKind::Isolation, Outcome::Fail, message);
        }
        if !at_its_time.is_empty() {
            let outside = cpu_list(&at_its_time);
            let message = format!(
                "tid {tid} ran on cpus {outside} at a time when the cpuset of {cgroup} or its affinity did not allow them"
            );
            result.push(DetailKind::Isolation, Outcome::Fail, message);
        }
    }
}

fn judge_fairness(
    assert: &Assert,
    group: &Group,
    members: &[WorkerReport],
    stats: &CgroupStats,
    result: &mut AssertResult,
) {
    let Some(threshold) = assert.max_spread_pct else { return };
    let balancing = assert.balancing_pct(group.lived);
    let name = &stats.name;
    // A dead worker is a finding of its own; its share of the CPU says nothing about fairness.
    let judged = members.iter().filter(|w| w.exit == WorkerExit::Completed && w.not_run.is_none()).count();
    if judged > 0 && members.iter().all(|w| w.wall_time_ns == 0) {
        let message = format!("fairness of {name} cannot be judged: no worker measured any time");
        result.push(DetailKind::Spread, Outcome::Inconclusive, message);
        return;
    }
    if stats.spread_pct > threshold + balancing {
        let (lo, hi, spread) = (stats.min_off_cpu_pct, stats.max_off_cpu_pct, stats.spread_pct);
        let (workers, cpus) = (stats.workers, stats.cpus);
        let allowed = match balancing {
            0.0 => format!("threshold {threshold:.0}%"),
            _ => format!("threshold {threshold:.0}% and {balancing:.0}% for balancing"),
        };
        let message = format!(
            "unfair cgroup {name}: spread={spread:.1}% ({lo:.1}-{hi:.1}%) {workers} workers on {cpus} cpus \
             ({allowed})"
        );
        // As time of the shortest life, in which chance makes the most of a difference.
        let lives = members.iter().map(|worker| worker.wall_time_ns).filter(|lived| *lived > 0);
        let life = Duration::from_nanos(lives.min().unwrap_or(0));
        let of_life = |pct: f64| (pct * life.as_millis() as f64 / 100.0) as u64;
        let time = TimeFigures { seen_ms: of_life(spread), limit_ms: of_life(threshold) };
        result.details.push(Detail {
            kind: DetailKind::Spread,
            outcome: Outcome::Fail,
            message,
            time: Some(time),
            when: group.moment(life, &[]),
        });
        result.outcome = result.outcome.max(Outcome::Fail);
    }
}

/// Share of its wall time that a worker wanted to run and did not, percent.
fn off_cpu_pct(worker: &WorkerReport) -> Option<f64> {
    let wanted = worker.wall_time_ns.saturating_sub(worker.voluntary_off_cpu_ns);
    if worker.exit != WorkerExit::Completed || worker.wall_time_ns == 0 || worker.not_run.is_some() {
        return None;
    }
    let off = wanted.saturating_sub(worker.cpu_time_ns);
    Some(off as f64 * 100.0 / worker.wall_time_ns as f64)
}

fn cgroup_stats(members: &[WorkerReport], topo: Option<&TestTopology>) -> CgroupStats {
    let mut cpus: Vec<u32> = members.iter().flat_map(|w| w.cpus_used.iter().copied()).collect();
    cpus.sort_unstable();
    cpus.dedup();
    let shares: Vec<f64> = members.iter().filter_map(off_cpu_pct).collect();
    let min = shares.iter().copied().reduce(f64::min).unwrap_or(0.0);
    let max = shares.iter().copied().reduce(f64::max).unwrap_or(0.0);
    let mean_delay = |delay_ns: u64, times_run: u64| match times_run {
        0 => 0.0,
        times_run => delay_ns as f64 / 1000.0 / times_run as f64,
    };
    let sum = |of: fn(&WorkerReport) -> u64| members.iter().map(of).sum::<u64>();
    let together = |of: fn(&WorkerReport) -> Option<&Histogram>| {
        let mut all = Histogram::default();
        members.iter().filter_map(of).for_each(|one| all.merge(one));
        LatencyFigures::of(&all)
    };
    let gap = members.iter().max_by_key(|w| w.max_gap_ns);
    let iterations = sum(|w| w.iterations);
    let moved = sum(|w| w.kernel_migrations.unwrap_or(w.migrations));
    let living: Vec<&WorkerReport> = members.iter().filter(|w| w.not_run.is_none()).collect();
    let placed = rates::placed(&living, topo);
    CgroupStats {
        name: members.first().map(|w| w.cgroup.clone()).unwrap_or_default(),
        workers: members.len() as u32,
        cpus: cpus.len() as u32,
        min_off_cpu_pct: min,
        max_off_cpu_pct: max,
        avg_off_cpu_pct: shares.iter().sum::<f64>() / shares.len().max(1) as f64,
        spread_pct: max - min,
        max_gap_ms: gap.map_or(0, |w| w.max_gap_ns / 1_000_000),
        max_gap_cpu: gap.map_or(0, |w| w.max_gap_cpu),
        migrations: sum(|w| w.migrations),
        migration_ratio: (iterations > 0).then(|| moved as f64 / iterations as f64),
        iterations,
        cpu_time_ns: sum(|w| w.cpu_time_ns),
        mean_run_delay_us: mean_delay(sum(|w| w.run_delay_ns), sum(|w| w.pcount)),
        worst_run_delay_us: members.iter().map(|w| mean_delay(w.run_delay_ns, w.pcount)).fold(0.0, f64::max),
        wake_latency: together(|w| (!w.is_messenger).then_some(&w.wake_latency)),
        timer_latency: together(|w| Some(&w.timer_latency)),
        iteration_cost: together(|w| Some(&w.iteration_cost)),
        block_time: together(|w| Some(&w.block_time)),
        page_locality: placed.map(|placed| placed.local),
        cross_node_migration_ratio: placed.map(|placed| placed.moved),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn worker(tid: u32, cgroup: &str, cpu_time_ns: u64) -> WorkerReport {
        WorkerReport {
            tid,
            cgroup: cgroup.into(),
            work_type: "SpinWait".into(),
            work_units: 1,
            cpu_time_ns,
            wall_time_ns: SECOND,
            cpus_used: vec![0],
            ..WorkerReport::default()
        }
    }

    fn findings(reports: Vec<WorkerReport>) -> Vec<(DetailKind, String)> {
        let result = judge(&Assert::default_checks(), reports);
        result.details.into_iter().map(|d| (d.kind, d.message)).collect()
    }

    #[test]
    fn a_fair_run_passes_with_figures() {
        let result = judge(
            &Assert::default_checks(),
            vec![worker(1, "a", SECOND / 2), worker(2, "a", SECOND / 4), worker(3, "b", SECOND)],
        );
        assert!(result.is_pass(), "{:?}", result.details);
        assert_eq!(result.stats.worst_spread(), 25.0);
        assert_eq!(result.stats.cgroups[1].max_off_cpu_pct, 0.0);
    }

    #[test]
    fn each_fault_is_found_and_named() {
        let stuck = WorkerReport {
            max_gap_ns: 4 * SECOND,
            max_gap_cpu: 2,
            max_gap_at_ns: 5 * SECOND,
            ..worker(7, "a", SECOND)
        };
        let message = "tid 7 stuck 4000ms on cpu2 at +5000ms (threshold 3000ms) in a".into();
        assert_eq!(findings(vec![stuck]), [(DetailKind::Gap, message)]);

        let idle = WorkerReport { work_units: 0, ..worker(8, "a", 0) };
        assert_eq!(
            findings(vec![idle]),
            [(
                DetailKind::NoProgress,
                "tid 8 made no progress (0 work units, 0us of CPU time in 1000ms) in a".into()
            )]
        );

        let astray =
            WorkerReport { cpus_allowed: vec![1, 2], cpus_used: vec![0, 1, 3], ..worker(9, "a", SECOND) };
        let message = "tid 9 ran on cpus 0,3 outside the cpuset of a (1-2)".into();
        assert_eq!(findings(vec![astray]), [(DetailKind::Isolation, message)]);

        let late = WorkerReport {
            cpus_allowed: vec![0, 1],
            cpus_used: vec![0, 1],
            cpus_outside: vec![0],
            ..worker(9, "a", SECOND)
        };
        let message =
            "tid 9 ran on cpus 0 at a time when the cpuset of a or its affinity did not allow them".into();
        assert_eq!(findings(vec![late]), [(DetailKind::Isolation, message)]);

        let message = "unfair cgroup a: spread=80.0% (10.0-90.0%) 2 workers on 1 cpus (threshold 35%)".into();
        let unfair = vec![worker(1, "a", SECOND / 10), worker(2, "a", SECOND / 10 * 9)];
        assert_eq!(findings(unfair), [(DetailKind::Spread, message)]);

        let dead = WorkerReport { exit: WorkerExit::Signaled { signal: 9 }, ..worker(3, "a", 0) };
        let message = "tid 3 (SpinWait in a) was killed by signal 9".into();
        assert_eq!(findings(vec![dead, worker(4, "a", SECOND)]), [(DetailKind::WorkerDied, message)]);
    }

    #[test]
    fn a_gap_is_judged_without_the_part_that_a_quota_explains() {
        let found = |throttled: f64| {
            let stuck = WorkerReport { max_gap_ns: 4 * SECOND, ..worker(7, "a", SECOND) };
            let group = Group {
                reports: vec![stuck],
                lived: Some(Duration::from_secs(10)),
                throttled,
                ..Group::default()
            };
            let result = judge_groups(&Assert::default_checks(), None, vec![group]);
            result.details.into_iter().map(|detail| detail.message).collect::<Vec<_>>()
        };
        assert_eq!(found(0.9), Vec::<String>::new(), "of 4 s the quota took 3.7");
        let message = "tid 7 stuck 4000ms, 500ms of it by its quota, on cpu0 at +0ms (threshold 3000ms) in a";
        assert_eq!(found(0.1), [message]);
    }

    #[test]
    fn chosen_sleep_is_not_held_against_the_scheduler() {
        let sleeper = WorkerReport { voluntary_off_cpu_ns: SECOND / 10 * 9, ..worker(1, "a", SECOND / 10) };
        assert_eq!(findings(vec![sleeper, worker(2, "a", SECOND)]), []);
    }

    #[test]
    fn work_that_this_machine_cannot_do_is_not_run_and_not_a_failure() {
        let not_run =
            |tid| WorkerReport { work_units: 0, not_run: Some("no SMT".into()), ..worker(tid, "a", 0) };
        let alone = judge(&Assert::default_checks(), vec![not_run(1), not_run(2)]);
        assert!(alone.is_skip(), "{alone:?}");
        assert_eq!(alone.details[0].message, "SpinWait in a was not run: no SMT");
        assert!(judge(&Assert::default_checks(), vec![not_run(1), worker(2, "b", SECOND)]).is_pass());
    }

    #[test]
    fn what_was_not_measured_is_inconclusive() {
        let blank = WorkerReport { wall_time_ns: 0, ..worker(1, "a", 0) };
        assert!(judge(&Assert::default_checks(), vec![blank]).is_inconclusive());
    }

    #[test]
    fn a_worker_that_lived_for_a_moment_need_not_have_worked() {
        let idle = || vec![WorkerReport { work_units: 0, ..worker(8, "a", 0) }];
        let judged = |ms| {
            let group = Group { reports: idle(), lived: Some(Duration::from_millis(ms)), ..Group::default() };
            judge_groups(&Assert::default_checks(), None, vec![group])
        };
        let short = judged(20);
        assert!(short.is_pass() && short.details[0].message.contains("not judged"), "{short:?}");
        assert!(judged(1000).is_fail() && judged(5000).is_fail());
    }

    #[test]
    fn fairness_is_judged_by_what_balancing_can_do_in_the_time() {
        let judged = |ms| {
            let reports = vec![worker(1, "a", SECOND / 10 * 3), worker(2, "a", SECOND / 10 * 8)];
            let group = Group { reports, lived: Some(Duration::from_millis(ms)), ..Group::default() };
            judge_groups(&Assert::default_checks(), None, vec![group])
        };
        assert!(judged(1000).is_pass(), "35% and half of a second");
        let unfair = judged(10_000);
        assert!(
            unfair.is_fail() && unfair.details[0].message.ends_with("(threshold 35% and 5% for balancing)")
        );
    }

    #[test]
    fn who_began_a_moment_ago_is_not_compared() {
        let late = WorkerReport { wall_time_ns: SECOND / 100, ..worker(3, "a", SECOND / 100) };
        let reports = vec![worker(1, "a", SECOND / 10), worker(2, "a", SECOND / 10), late];
        let judged = |lived| {
            let group = Group { reports: reports.clone(), lived, ..Group::default() };
            judge_groups(&Assert::default_checks(), None, vec![group])
        };
        assert!(judged(Some(Duration::from_secs(5))).is_pass() && judged(None).is_fail());
    }

    #[test]
    fn workers_that_were_told_different_things_are_not_compared() {
        let alone = |tid, cpu, time| WorkerReport { cpus_allowed: vec![cpu], ..worker(tid, "a", time) };
        let group = |reports| Group { reports, ..Group::default() };
        let pinned = vec![alone(1, 0, SECOND / 10), alone(2, 0, SECOND / 10), alone(3, 1, SECOND)];
        let pinned: Vec<_> =
            pinned.into_iter().map(|w| WorkerReport { cpus_used: w.cpus_allowed.clone(), ..w }).collect();
        assert!(judge_groups(&Assert::default_checks(), None, vec![group(pinned)]).is_pass());
        let two = vec![group(vec![worker(1, "a", SECOND / 10)]), group(vec![worker(2, "a", SECOND)])];
        let judged = judge_groups(&Assert::default_checks(), None, two);
        assert!(judged.is_pass() && judged.stats.cgroups.len() == 1, "{judged:?}");
    }

    #[test]
    fn checks_can_be_switched_off() {
        let idle = WorkerReport { work_units: 0, max_gap_ns: 60 * SECOND, ..worker(8, "a", 0) };
        assert!(judge(&Assert::NO_OVERRIDES, vec![idle]).is_pass());
    }
}

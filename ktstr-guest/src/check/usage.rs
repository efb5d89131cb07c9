//! Compares what cgroups got of the CPUs with what a scenario asks for them, by the kernel's own account of
//! the time in which a step held.
//!
//! What is compared is in CPUs: CPU time over time held, so 1.5 is one CPU and half of another. A floor is
//! scaled down by what others than the scenario's workers took, for nobody could have had that. Refuses to
//! judge a step that held too short for balancing to settle, and workers that were told to do something else.

use std::time::Duration;

use ktstr_proto::{
    stats::{Hold, Phase},
    verdict::{AssertResult, DetailKind, Moment, Outcome, TimeFigures},
};

/// A step that holds shorter is not judged.
pub const JUDGED_FROM: Duration = Duration::from_secs(1);

/// Adds the findings of comparisons to a scenario's result.
#[derive(Debug)]
pub struct Usage<'a> {
    result: &'a mut AssertResult,
}

/// A deviation from what is asked for.
struct Deviation {
    /// CPUs by which it differs.
    cpus: f64,
    /// CPUs by which it may.
    allowed: f64,
}

impl<'a> Usage<'a> {
    /// Compares within `result`.
    pub fn of(result: &'a mut AssertResult) -> Self {
        Self { result }
    }

    /// CPUs that a cgroup kept busy while a step held, if that can be judged; otherwise it is said why not.
    pub fn cpus(&mut self, phase: Phase, cgroup: &str) -> Option<f64> {
        self.hold(phase, cgroup)?;
        let cpus = self.result.stats.phase(phase).and_then(|bucket| bucket.cpus_of(cgroup));
        if cpus.is_none() {
            let message = format!(
                "CPU time of {cgroup} in {phase} cannot be judged: the kernel's account of it is missing"
            );
            self.result.push(DetailKind::Share, Outcome::Inconclusive, message);
        }
        cpus
    }

    /// The cgroups together keep at least so many CPUs busy, because of `why`.
    pub fn at_least(&mut self, phase: Phase, cgroups: &[&str], floor: f64, why: &str) {
        let Some((seen, hold)) = self.sum(phase, cgroups) else { return };
        let others = hold.others_ns as f64 / hold.lasted_ns as f64;
        let all = f64::from(hold.cpus.max(1));
        let scaled = floor * (1.0 - (others / all).clamp(0.0, 1.0));
        let names = cgroups.join(", ");
        let idle = hold.idle_ns as f64 / hold.lasted_ns as f64;
        let lasted = hold.lasted_ns / 1_000_000;
        let message = format!(
            "{names} got {seen:.2} CPUs in {phase}, floor {scaled:.2} ({why}; {lasted}ms on {} CPUs, {idle:.2} idle, \
             {others:.2} for others)",
            hold.cpus
        );
        // A floor is a part of what is due; the rest of that is its tolerance.
        self.judge(hold, Deviation { cpus: scaled - seen, allowed: 0.0 }, message);
    }

    /// The cgroups together keep at most so many CPUs busy, because of `why`.
    pub fn at_most(&mut self, phase: Phase, cgroups: &[&str], limit: f64, why: &str) {
        let Some((seen, hold)) = self.sum(phase, cgroups) else { return };
        let names = cgroups.join(", ");
        let lasted = hold.lasted_ns / 1_000_000;
        let message = format!(
            "{names} got {seen:.2} CPUs in {phase}, limit {limit:.2} ({why}; {lasted}ms on {} CPUs)",
            hold.cpus
        );
        self.judge(hold, Deviation { cpus: seen - limit, allowed: 0.0 }, message);
    }

    /// A cgroup gets a share of what several of them get together: `expected` percent, give or take
    /// `tolerance` points, because of `why`.
    pub fn share(
        &mut self,
        phase: Phase,
        cgroup: &str,
        among: &[&str],
        (expected, tolerance): (f64, f64),
        why: &str,
    ) {
        let Some((own, _)) = self.sum(phase, &[cgroup]) else { return };
        let Some((all, hold)) = self.sum(phase, among) else { return };
        let names = among.join(", ");
        if all <= 0.0 {
            let message =
                format!("shares of {names} in {phase} cannot be judged: none of them got any CPU time");
            return self.result.push(DetailKind::Share, Outcome::Inconclusive, message);
        }
        let seen = own * 100.0 / all;
        let lasted = hold.lasted_ns / 1_000_000;
        let message = format!(
            "{cgroup} got {seen:.1}% of the CPU time of {names} in {phase}, expected {expected:.0}% ±{tolerance:.0} \
             ({why}; {own:.2} of {all:.2} CPUs in {lasted}ms)"
        );
        let (off, allowed) = ((seen - expected).abs() / 100.0 * all, tolerance / 100.0 * all);
        self.judge(hold, Deviation { cpus: off, allowed }, message);
    }

    fn judge(&mut self, hold: Hold, deviation: Deviation, message: String) {
        let Deviation { cpus, allowed } = deviation;
        // NaN is no pass either.
        if cpus <= allowed {
            return self.result.push(DetailKind::Share, Outcome::Pass, message);
        }
        let ms = |cpus: f64| (cpus * hold.lasted_ns as f64 / 1e6).ceil() as u64;
        let time = TimeFigures { seen_ms: ms(cpus), limit_ms: ms(allowed) };
        if hold.from_ns == 0 {
            return self.result.fail_time(DetailKind::Share, time, message);
        }
        // Time on one CPU is made up for on any.
        let when = Moment { from_ns: hold.from_ns, to_ns: hold.from_ns + hold.lasted_ns, cpus: Vec::new() };
        self.result.fail_at(DetailKind::Share, time, when, message);
    }

    fn sum(&mut self, phase: Phase, cgroups: &[&str]) -> Option<(f64, Hold)> {
        let hold = self.hold(phase, cgroups.first().copied().unwrap_or_default())?;
        let mut sum = 0.0;
        for cgroup in cgroups {
            sum += self.cpus(phase, cgroup)?;
        }
        Some((sum, hold))
    }

    /// The kernel's account of a step, if it held long enough; says once per step that it did not.
    fn hold(&mut self, phase: Phase, cgroup: &str) -> Option<Hold> {
        let Some(hold) = self.result.stats.phase(phase).and_then(|bucket| bucket.hold) else {
            let message =
                format!("CPU time of {cgroup} cannot be judged: the kernel's account of {phase} is missing");
            self.result.push(DetailKind::Share, Outcome::Inconclusive, message);
            return None;
        };
        if u128::from(hold.lasted_ns) >= JUDGED_FROM.as_nanos() {
            return Some(hold);
        }
        let message = format!(
            "shares of CPU time in {phase} are not judged: it held for {}ms, and less than {}ms tell nothing",
            hold.lasted_ns / 1_000_000,
            JUDGED_FROM.as_millis()
        );
        if !self.result.details.iter().any(|detail| detail.message == message) {
            self.result.push(DetailKind::Note, Outcome::NotRun, message);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use ktstr_proto::stats::{CgroupUsage, PhaseBucket, PhaseCgroup};

    use super::*;

    const STEP: Phase = Phase::step(0);

    /// A step of two seconds on four CPUs in which these cgroups got so many CPUs.
    fn planted(usages: &[(&str, f64)], idle: f64, others: f64) -> AssertResult {
        let lasted = 2e9;
        let cgroup = |(name, cpus): &(&str, f64)| PhaseCgroup {
            name: (*name).into(),
            usage: Some(CgroupUsage { usage_ns: (cpus * lasted) as u64, ..CgroupUsage::default() }),
            ..PhaseCgroup::default()
        };
        let mut result = AssertResult::pass();
        result.stats.phases.push(PhaseBucket {
            index: STEP.index(),
            cgroups: usages.iter().map(cgroup).collect(),
            hold: Some(Hold {
                from_ns: 3_000_000_000,
                lasted_ns: lasted as u64,
                cpus: 4,
                idle_ns: (idle * lasted) as u64,
                others_ns: (others * lasted) as u64,
            }),
            ..PhaseBucket::default()
        });
        result
    }

    fn told(result: &AssertResult) -> (Outcome, &str) {
        let detail = result.details.last().expect("a finding");
        (detail.outcome, &detail.message)
    }

    #[test]
    fn shares_are_judged_by_what_the_cgroups_got_together() {
        let judged = |heavy: f64, light: f64| {
            let mut result = planted(&[("heavy", heavy), ("light", light)], 0.0, 0.0);
            let names = ["heavy", "light"];
            Usage::of(&mut result).share(STEP, "heavy", &names, (80.0, 10.0), "weights 400 and 100");
            result
        };
        assert_eq!(
            told(&judged(3.0, 1.0)),
            (
                Outcome::Pass,
                "heavy got 75.0% of the CPU time of heavy, light in Step[0], expected 80% ±10 (weights 400 and 100; \
                 3.00 of 4.00 CPUs in 2000ms)"
            )
        );
        let ignored = judged(2.0, 2.0);
        assert_eq!(told(&ignored).0, Outcome::Fail);
        // 30 points of four CPUs for two seconds, of which 10 are allowed.
        assert_eq!(ignored.details[0].time, Some(TimeFigures { seen_ms: 2400, limit_ms: 800 }));
        let held = ignored.details[0].when.as_ref().map(|when| (when.from_ns, when.to_ns));
        assert_eq!(held, Some((3_000_000_000, 5_000_000_000)), "the step's own time");
        assert_eq!(told(&judged(3.9, 0.1)).0, Outcome::Fail, "too much is no better than too little");
        assert_eq!(told(&judged(0.0, 0.0)).0, Outcome::Inconclusive);
    }

    #[test]
    fn floors_and_limits_count_cpus_and_nobody_can_have_what_others_took() {
        let judged = |got: f64, others: f64| {
            let mut result = planted(&[("a", got / 2.0), ("b", got / 2.0)], 4.0 - got - others, others);
            Usage::of(&mut result).at_least(STEP, &["a", "b"], 3.0, "nobody else runs");
            result
        };
        assert_eq!(told(&judged(3.1, 0.0)).0, Outcome::Pass);
        let short = judged(2.5, 0.0);
        assert_eq!(
            told(&short),
            (
                Outcome::Fail,
                "a, b got 2.50 CPUs in Step[0], floor 3.00 (nobody else runs; 2000ms on 4 CPUs, 1.50 idle, 0.00 for \
                 others)"
            )
        );
        assert_eq!(short.details[0].time, Some(TimeFigures { seen_ms: 1000, limit_ms: 0 }));
        assert_eq!(told(&judged(2.5, 1.0)).0, Outcome::Pass, "2.25 of 3 CPUs");
        let mut quota = planted(&[("a", 1.2)], 0.0, 0.0);
        Usage::of(&mut quota).at_most(STEP, &["a"], 1.25, "its quota");
        assert_eq!(told(&quota).0, Outcome::Pass);
        Usage::of(&mut quota).at_most(STEP, &["a"], 1.1, "its quota");
        assert_eq!(told(&quota).0, Outcome::Fail);
    }

    #[test]
    fn what_is_too_short_or_missing_is_not_judged_and_said_once() {
        let mut short = planted(&[("a", 0.0)], 0.0, 0.0);
        if let Some(hold) = &mut short.stats.phases[0].hold {
            hold.lasted_ns = 400_000_000;
        }
        for _ in 0..2 {
            Usage::of(&mut short).at_least(STEP, &["a"], 3.0, "");
        }
        assert_eq!((short.outcome, short.details.len()), (Outcome::Pass, 1));
        assert!(told(&short).1.contains("it held for 400ms"));
        let mut unknown = planted(&[], 0.0, 0.0);
        Usage::of(&mut unknown).at_least(STEP, &["a"], 3.0, "");
        assert_eq!(unknown.outcome, Outcome::Inconclusive);
        let mut absent = planted(&[], 0.0, 0.0);
        Usage::of(&mut absent).at_least(Phase::step(7), &["a"], 3.0, "");
        assert_eq!(absent.outcome, Outcome::Inconclusive);
    }
}

//! Checks that a test writes itself: a [`Verdict`] that gathers claims with their figures, and the
//! [`claim!`](crate::claim) family that makes them.
//!
//! ```
//! use ktstr::prelude::*;
//!
//! let mut verdict = Verdict::new();
//! let (iterations, gaps) = (500_u64, [3.0, 4.5]);
//! claim!(verdict, iterations).at_least(100);
//! claim_seq!(verdict, gaps).each_at_most(10.0);
//! assert!(verdict.into_result().is_pass());
//! ```
//!
//! A claim never panics: it notes what was seen and what was claimed. A value that cannot be compared
//! (NaN) is a failed claim.

use std::{collections::BTreeSet, fmt::Debug};

use ktstr_proto::{
    stats::Polarity,
    verdict::{AssertResult, DetailKind, Outcome, WorkerReport},
};

/// Claims and what became of them.
#[derive(Debug, Clone)]
#[must_use]
pub struct Verdict {
    result: AssertResult,
    claims: u32,
    /// Results that were merged, and those of them that tested something.
    merged: (u32, u32),
}

impl Default for Verdict {
    fn default() -> Self {
        Self::new()
    }
}

impl Verdict {
    /// No claim yet, which is a pass.
    pub fn new() -> Self {
        Self { result: AssertResult::pass(), claims: 0, merged: (0, 0) }
    }

    /// Begins with what an engine found, which counts as merged.
    pub fn of(result: AssertResult) -> Self {
        let merged = (1, u32::from(!result.is_skip()));
        Self { result, claims: 0, merged }
    }

    /// Claims made so far.
    pub fn claims(&self) -> u32 {
        self.claims
    }

    /// Adds another result. Where all that were added were not run, claims about their figures hold of
    /// nothing, and the verdict is NOT RUN unless something failed.
    pub fn merge(&mut self, other: AssertResult) {
        self.merged.0 += 1;
        self.merged.1 += u32::from(!other.is_skip());
        self.result.merge(other);
    }

    /// A remark that fails nothing.
    pub fn note(&mut self, text: impl Into<String>) {
        self.result.push(DetailKind::Note, Outcome::Pass, text);
    }

    /// Something on which a claim could not be decided.
    pub fn undecided(&mut self, text: impl Into<String>) {
        self.claims += 1;
        self.result.push(DetailKind::Claim, Outcome::Inconclusive, text);
    }

    /// A figure that fails nothing.
    pub fn note_value(&mut self, label: &str, value: impl Debug) {
        self.note(format!("{label} = {value:?}"));
    }

    /// Makes a claim that holds or not; `said` describes it with its figures.
    pub fn hold(&mut self, holds: bool, said: impl FnOnce() -> String) -> bool {
        self.claims += 1;
        if !holds {
            self.result.push(DetailKind::Claim, Outcome::Fail, said());
        } else if std::env::var("KTSTR_LOG_PASSES").is_ok_and(|value| value == "1") {
            self.note(format!("held: {}", said()));
        }
        holds
    }

    /// The result, as test functions return it.
    pub fn into_result(mut self) -> AssertResult {
        if matches!(self.merged, (1.., 0)) && self.result.is_pass() {
            self.result.outcome = Outcome::NotRun;
        }
        self.result
    }

    /// The result on the host: an error with every failed claim, or the notes on standard output.
    pub fn into_anyhow_or_log(self) -> anyhow::Result<()> {
        let failed: Vec<&str> = self.result.failure_details().collect();
        if !failed.is_empty() {
            anyhow::bail!("{}", failed.join("; "));
        }
        if self.result.is_inconclusive() {
            let open = self.result.details.iter().filter(|detail| detail.outcome == Outcome::Inconclusive);
            let open: Vec<_> = open.map(|detail| detail.message.as_str()).collect();
            return Err(Undecided(open.join("; ")).into());
        }
        for detail in &self.result.details {
            println!("ktstr: {}", detail.message);
        }
        Ok(())
    }
}

/// Claims of which none failed, but not all could be decided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Undecided(pub String);

/// A claim about one value.
#[must_use = "a claim says nothing until it is compared"]
pub struct Claim<'a, T> {
    verdict: &'a mut Verdict,
    label: &'a str,
    value: T,
}

impl<'a, T: PartialOrd + Debug> Claim<'a, T> {
    /// About `value`, which reports call `label`.
    pub fn new(verdict: &'a mut Verdict, label: &'a str, value: T) -> Self {
        Self { verdict, label, value }
    }

    fn compare(self, what: &str, limit: &dyn Debug, holds: Option<bool>) -> bool {
        let Self { verdict, label, value } = self;
        let comparable = holds.is_some();
        verdict.hold(holds.unwrap_or(false), || {
            let why = if comparable { "" } else { ", which cannot be compared" };
            format!("{label} is {value:?}{why}, claimed {what} {limit:?}")
        })
    }

    /// It is this or more.
    pub fn at_least(self, limit: T) -> bool {
        let holds = self.value.partial_cmp(&limit).map(|order| order.is_ge());
        self.compare("at least", &limit, holds)
    }

    /// It is this or less.
    pub fn at_most(self, limit: T) -> bool {
        let holds = self.value.partial_cmp(&limit).map(|order| order.is_le());
        self.compare("at most", &limit, holds)
    }

    /// It is more than this.
    pub fn above(self, limit: T) -> bool {
        let holds = self.value.partial_cmp(&limit).map(|order| order.is_gt());
        self.compare("above", &limit, holds)
    }

    /// It is less than this.
    pub fn below(self, limit: T) -> bool {
        let holds = self.value.partial_cmp(&limit).map(|order| order.is_lt());
        self.compare("below", &limit, holds)
    }

    /// It is this.
    pub fn equals(self, other: T) -> bool {
        let holds = Some(self.value == other);
        self.compare("equal to", &other, holds)
    }

    /// It is one of the two or between them.
    pub fn between(self, low: T, high: T) -> bool {
        let order = |limit: &T| self.value.partial_cmp(limit);
        let holds = order(&low).zip(order(&high)).map(|(low, high)| low.is_ge() && high.is_le());
        self.compare("between", &(low, high), holds)
    }
}

/// A claim about a set.
#[must_use = "a claim says nothing until it is compared"]
pub struct SetClaim<'a, T> {
    verdict: &'a mut Verdict,
    label: &'a str,
    set: BTreeSet<T>,
}

impl<'a, T: Ord + Debug> SetClaim<'a, T> {
    /// About the items of `items`.
    pub fn new(verdict: &'a mut Verdict, label: &'a str, items: impl IntoIterator<Item = T>) -> Self {
        Self { verdict, label, set: items.into_iter().collect() }
    }

    /// None of them is outside of `other`.
    pub fn within(self, other: impl IntoIterator<Item = T>) -> bool {
        let other: BTreeSet<T> = other.into_iter().collect();
        let outside: Vec<&T> = self.set.difference(&other).collect();
        self.verdict
            .hold(outside.is_empty(), || format!("{} has {outside:?}, claimed within {other:?}", self.label))
    }

    /// All of `other` are in it.
    pub fn contains_all(self, other: impl IntoIterator<Item = T>) -> bool {
        let other: BTreeSet<T> = other.into_iter().collect();
        let missing: Vec<&T> = other.difference(&self.set).collect();
        self.verdict.hold(missing.is_empty(), || format!("{} lacks {missing:?}", self.label))
    }

    /// It has these and no others.
    pub fn equals(self, other: impl IntoIterator<Item = T>) -> bool {
        let other: BTreeSet<T> = other.into_iter().collect();
        self.verdict.hold(self.set == other, || {
            format!("{} is {:?}, claimed equal to {other:?}", self.label, self.set)
        })
    }

    /// It has none in common with `other`.
    pub fn disjoint_from(self, other: impl IntoIterator<Item = T>) -> bool {
        let other: BTreeSet<T> = other.into_iter().collect();
        let common: Vec<&T> = self.set.intersection(&other).collect();
        self.verdict.hold(common.is_empty(), || format!("{} has {common:?}, claimed not", self.label))
    }

    /// It has at least one.
    pub fn nonempty(self) -> bool {
        self.verdict.hold(!self.set.is_empty(), || format!("{} is empty, claimed not", self.label))
    }
}

/// A claim about a sequence.
#[must_use = "a claim says nothing until it is compared"]
pub struct SeqClaim<'a, T> {
    verdict: &'a mut Verdict,
    label: &'a str,
    items: Vec<T>,
}

impl<'a, T: PartialOrd + Debug> SeqClaim<'a, T> {
    /// About the items of `items`, in their order.
    pub fn new(verdict: &'a mut Verdict, label: &'a str, items: impl IntoIterator<Item = T>) -> Self {
        Self { verdict, label, items: items.into_iter().collect() }
    }

    fn each(self, what: &str, limit: &T, holds: impl Fn(&T) -> bool) -> bool {
        if self.items.is_empty() {
            self.verdict
                .note(format!("each {} {what} {limit:?} holds of nothing: there are no items", self.label));
        }
        let wrong = self.items.iter().enumerate().find(|(_, item)| !holds(item));
        let said =
            wrong.map(|(at, item)| format!("{}[{at}] is {item:?}, claimed {what} {limit:?}", self.label));
        self.verdict
            .hold(said.is_none(), || said.unwrap_or_else(|| format!("each {} {what} {limit:?}", self.label)))
    }

    /// Every item is this or more.
    pub fn each_at_least(self, limit: T) -> bool {
        let holds = |item: &T| item.partial_cmp(&limit).is_some_and(|order| order.is_ge());
        self.each("at least", &limit, holds)
    }

    /// Every item is this or less.
    pub fn each_at_most(self, limit: T) -> bool {
        let holds = |item: &T| item.partial_cmp(&limit).is_some_and(|order| order.is_le());
        self.each("at most", &limit, holds)
    }

    /// No item is less than the one before it.
    pub fn nondecreasing(self) -> bool {
        let wrong = self
            .items
            .windows(2)
            .position(|two| !matches!(two[0].partial_cmp(&two[1]), Some(order) if order.is_le()));
        let said = wrong.map(|at| {
            format!(
                "{}[{}] is {:?} after {:?}, claimed not to fall",
                self.label,
                at + 1,
                self.items[at + 1],
                self.items[at]
            )
        });
        self.verdict.hold(said.is_none(), || said.unwrap_or_else(|| format!("{} does not fall", self.label)))
    }

    /// It has so many items.
    pub fn has_len(self, length: usize) -> bool {
        let has = self.items.len();
        self.verdict.hold(has == length, || format!("{} has {has} items, claimed {length}", self.label))
    }
}

/// A claim that a figure is better than another.
#[must_use = "a claim says nothing until it is compared"]
pub struct BetterClaim<'a> {
    verdict: &'a mut Verdict,
    metric: &'a str,
    polarity: Polarity,
    value: f64,
}

/// Claims that `value` of `metric` is better than a figure that follows; `polarity` says what better is.
pub fn claim_better<'a>(
    verdict: &'a mut Verdict,
    metric: &'a str,
    polarity: Polarity,
    value: f64,
) -> BetterClaim<'a> {
    BetterClaim { verdict, metric, polarity, value }
}

impl BetterClaim<'_> {
    /// Better than `base`.
    pub fn than(self, base: f64) -> bool {
        self.than_by(base, 0.0)
    }

    /// Better than `base` by at least this share of it; where a target is to be met, nearer to it by this
    /// share of the distance.
    pub fn than_by(self, base: f64, share: f64) -> bool {
        let Self { verdict, metric, polarity, value } = self;
        let margin = base.abs() * share;
        let better = match polarity {
            Polarity::HigherBetter => Some(value > base && value - base >= margin),
            Polarity::LowerBetter => Some(value < base && base - value >= margin),
            Polarity::TargetValue(target) => {
                let (now, before) = ((value - target).abs(), (base - target).abs());
                Some(now < before && before - now >= before * share)
            }
            Polarity::Unknown | Polarity::Informational => None,
        };
        verdict.hold(better == Some(true), || match better {
            Some(_) => format!("{metric} is {value}, claimed better than {base} by {:.0}%", share * 100.0),
            None => format!("{metric} cannot be better: nobody says whether more or less of it is"),
        })
    }
}

/// Claims something about a value: `claim!(verdict, value).at_least(5)`, or with a label of its own,
/// `claim!(verdict, "iterations of cg_0", value).at_least(5)`.
#[macro_export]
macro_rules! claim {
    ($verdict:expr, $label:literal, $value:expr $(,)?) => {
        $crate::claims::Claim::new(&mut $verdict, $label, $value)
    };
    ($verdict:expr, $value:expr $(,)?) => {
        $crate::claims::Claim::new(&mut $verdict, stringify!($value), $value)
    };
}

/// Claims that an option has a value, and gives it: `let monitor = claim_present!(verdict, vm.monitor())`.
#[macro_export]
macro_rules! claim_present {
    ($verdict:expr, $value:expr $(,)?) => {{
        let value = $value;
        $verdict.hold(value.is_some(), || concat!(stringify!($value), " is not there").to_owned());
        value
    }};
}

/// Claims something about a set: `claim_set!(verdict, worker.cpus_used).within([0, 1])`.
#[macro_export]
macro_rules! claim_set {
    ($verdict:expr, $value:expr $(,)?) => {
        $crate::claims::SetClaim::new(&mut $verdict, stringify!($value), $value)
    };
}

/// Claims something about a sequence: `claim_seq!(verdict, rates).each_at_least(5.0)`.
#[macro_export]
macro_rules! claim_seq {
    ($verdict:expr, $value:expr $(,)?) => {
        $crate::claims::SeqClaim::new(&mut $verdict, stringify!($value), $value)
    };
}

/// Limits that hold for every worker, whatever the test's thresholds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AbsoluteThresholds {
    /// Largest 99th percentile of the time from wake to run, nanoseconds.
    pub max_p99_wake_latency_ns: Option<u64>,
    /// Largest 99th percentile of the time of one round of work, nanoseconds.
    pub max_iteration_cost_p99_ns: Option<u64>,
    /// Most changes of CPU.
    pub max_migrations: Option<u64>,
    /// Least work.
    pub min_work_units: Option<u64>,
}

impl AbsoluteThresholds {
    /// 10 ms from wake to run, 1 ms a round, 1000 migrations, some work.
    pub const fn strict() -> Self {
        Self {
            max_p99_wake_latency_ns: Some(10_000_000),
            max_iteration_cost_p99_ns: Some(1_000_000),
            max_migrations: Some(1000),
            min_work_units: Some(1),
        }
    }
}

/// Judges every worker by absolute limits; without workers nothing was tested.
pub fn assert_thresholds(reports: &[WorkerReport], limits: &AbsoluteThresholds) -> AssertResult {
    if reports.is_empty() {
        return AssertResult::skip("there are no workers to judge");
    }
    let mut verdict = Verdict::new();
    for worker in reports {
        let tid = worker.tid;
        let mut at_most = |what: &str, seen: Option<u64>, limit: Option<u64>| {
            if let (Some(seen), Some(limit)) = (seen, limit) {
                verdict.hold(seen <= limit, || format!("tid {tid}: {what} is {seen}, at most {limit}"));
            }
        };
        let p99 = worker.wake_latency.quantile(0.99).filter(|_| !worker.is_messenger);
        at_most("p99 wake latency in ns", p99, limits.max_p99_wake_latency_ns);
        let cost = worker.iteration_cost.quantile(0.99);
        at_most("p99 cost of a round in ns", cost, limits.max_iteration_cost_p99_ns);
        at_most("number of migrations", Some(worker.migrations), limits.max_migrations);
        if let Some(limit) = limits.min_work_units {
            let seen = worker.work_units;
            verdict.hold(seen >= limit, || format!("tid {tid}: work is {seen} units, at least {limit}"));
        }
    }
    let mut result = verdict.into_result();
    let mut unmeasured = |what: &str, limit: Option<u64>, measured: &dyn Fn(&WorkerReport) -> bool| {
        if limit.is_some() && !reports.iter().any(measured) {
            let message = format!("{what} cannot be judged: no worker measured any");
            result.push(DetailKind::Claim, Outcome::Inconclusive, message);
        }
    };
    unmeasured("wake latency", limits.max_p99_wake_latency_ns, &|w| {
        !w.is_messenger && !w.wake_latency.is_empty()
    });
    unmeasured("cost of a round", limits.max_iteration_cost_p99_ns, &|w| !w.iteration_cost.is_empty());
    result
}

/// Fails for every event counter of sched_ext that is not zero and not in `expected`; without counters
/// nothing was tested.
pub fn assert_scx_events_clean(events: &[(String, i64)], expected: &[&str]) -> AssertResult {
    if events.is_empty() {
        return AssertResult::skip("there are no event counters to judge");
    }
    let mut verdict = Verdict::new();
    for (name, count) in events {
        let clean = *count == 0 || expected.contains(&name.as_str());
        verdict.hold(clean, || format!("{name} counted {count} events, claimed none"));
    }
    verdict.into_result()
}

/// All of them: the worst outcome, every finding.
pub fn all_of(results: impl IntoIterator<Item = AssertResult>) -> AssertResult {
    let mut all: Option<AssertResult> = None;
    for result in results {
        match &mut all {
            Some(all) => all.merge(result),
            None => all = Some(result),
        }
    }
    all.unwrap_or_else(|| AssertResult::skip("there was nothing to judge"))
}

/// One of them: the first that passed, else all findings.
pub fn any_of(results: impl IntoIterator<Item = AssertResult>) -> AssertResult {
    let results: Vec<AssertResult> = results.into_iter().collect();
    match results.iter().position(AssertResult::is_pass) {
        Some(passed) => results.into_iter().nth(passed).unwrap_or_else(AssertResult::pass),
        None => all_of(results),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(verdict: Verdict) -> Vec<String> {
        verdict.into_result().failure_details().map(str::to_owned).collect()
    }

    #[test]
    fn claims_hold_or_say_what_was_seen() {
        let mut v = Verdict::new();
        let count = 5_u64;
        assert!(claim!(v, count).at_least(5) && claim!(v, count).at_most(5) && claim!(v, count).equals(5));
        assert!(claim!(v, count).between(1, 9) && claim!(v, count).above(4) && claim!(v, count).below(6));
        assert!(!claim!(v, count).at_least(6));
        assert!(!claim!(v, "spread", 0.5).between(0.6, 0.9));
        assert!(!claim!(v, f64::NAN).at_most(1.0));
        assert_eq!(v.claims(), 9);
        assert_eq!(
            messages(v),
            [
                "count is 5, claimed at least 6",
                "spread is 0.5, claimed between (0.6, 0.9)",
                "f64::NAN is NaN, which cannot be compared, claimed at most 1.0",
            ]
        );
    }

    #[test]
    fn remarks_and_claims_on_what_was_not_run_are_no_pass() {
        let mut v = Verdict::of(AssertResult::skip("no cpus"));
        v.note("of no use");
        assert!(claim!(v, 5).at_least(1));
        assert_eq!(v.into_result().outcome, Outcome::NotRun);
        let mut noted = AssertResult::skip("no cpus");
        noted.push(DetailKind::Note, Outcome::Pass, "it came back");
        assert_eq!(noted.outcome, Outcome::NotRun);
        let mut v = Verdict::of(AssertResult::skip("no cpus"));
        v.merge(AssertResult::pass());
        assert_eq!(v.into_result().outcome, Outcome::Pass);
    }

    #[test]
    fn sets_and_sequences() {
        let mut v = Verdict::new();
        let cpus = vec![0, 1, 3];
        assert!(claim_set!(v, cpus.clone()).within([0, 1, 2, 3]) && claim_set!(v, cpus.clone()).nonempty());
        assert!(!claim_set!(v, cpus.clone()).within([0, 1]));
        assert!(!claim_set!(v, cpus.clone()).contains_all([0, 2]));
        assert!(!claim_set!(v, cpus).disjoint_from([3]));
        let rates = [1.0, 3.0, 2.0];
        assert!(claim_seq!(v, rates).each_at_least(1.0) && claim_seq!(v, rates).has_len(3));
        assert!(!claim_seq!(v, rates).each_at_most(2.0));
        assert!(!claim_seq!(v, rates).nondecreasing());
        assert!(claim_present!(v, Some(3)) == Some(3) && claim_present!(v, None::<u8>).is_none());
        assert_eq!(
            messages(v),
            [
                "cpus.clone() has [3], claimed within {0, 1}",
                "cpus.clone() lacks [2]",
                "cpus has [3], claimed not",
                "rates[1] is 3.0, claimed at most 2.0",
                "rates[2] is 2.0 after 3.0, claimed not to fall",
                "None::<u8> is not there",
            ]
        );
    }

    #[test]
    fn better_depends_on_the_metric() {
        let mut v = Verdict::new();
        assert!(claim_better(&mut v, "iops", Polarity::HigherBetter, 120.0).than_by(100.0, 0.2));
        assert!(!claim_better(&mut v, "latency", Polarity::LowerBetter, 95.0).than_by(100.0, 0.1));
        assert!(!claim_better(&mut v, "x", Polarity::Unknown, 1.0).than(0.0));
        assert!(v.into_anyhow_or_log().unwrap_err().to_string().contains("claimed better than 100 by 10%"));
    }

    #[test]
    fn combinations_and_presets() {
        let fail = || AssertResult::fail(DetailKind::Claim, "no");
        assert!(all_of([AssertResult::pass(), fail()]).is_fail());
        assert!(any_of([fail(), AssertResult::pass()]).is_pass());
        assert!(any_of([fail(), fail()]).is_fail() && all_of([]).is_skip());
        assert!(assert_thresholds(&[], &AbsoluteThresholds::strict()).is_skip());
        let idle = [WorkerReport { migrations: 2000, ..WorkerReport::default() }];
        assert_eq!(assert_thresholds(&idle, &AbsoluteThresholds::strict()).failure_details().count(), 2);
        let events = [("SCX_EV_A".to_owned(), 3), ("SCX_EV_B".to_owned(), 2)];
        assert_eq!(assert_scx_events_clean(&events, &["SCX_EV_B"]).failure_details().count(), 1);
    }
}

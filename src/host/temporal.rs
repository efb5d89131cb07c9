//! What can be claimed of a value over time: seven patterns, and bounds for each sample.
//!
//! | pattern | holds when | a sample without a value |
//! |---|---|---|
//! | `nondecreasing` | each value is at least the one before | its pairs are left out, with a note |
//! | `strictly_increasing` | each value is above the one before | the same |
//! | `rate_within` | each change per millisecond is in the band | the same |
//! | `steady_within` | all values after the warm-up are near their mean | left out, with a note |
//! | `converges_to` | three in a row are near the target by the deadline | begins the count anew |
//! | `always_true` | every value is true | fails |
//! | `ratio_within` | each quotient with another series is in the band | left out, with a note |
//!
//! Too few samples for a pattern are noted and fail nothing; samples of which none can be compared,
//! time that stands still and a denominator of 0 decide nothing: the verdict is inconclusive. A band
//! whose ends are exchanged is the caller's mistake, and a failure.

use std::fmt::Debug;

use ktstr_proto::stats::Phase;

use super::series::{Point, SeriesField};
use crate::claims::Verdict;

/// Numbers that patterns compare.
pub trait Number: Copy + PartialOrd + Debug {
    /// As a floating-point number.
    fn to_f64(self) -> f64;
}

macro_rules! number {
    ($($kind:ty),*) => { $(impl Number for $kind {
        fn to_f64(self) -> f64 {
            self as f64
        }
    })* };
}

number!(u8, u16, u32, u64, usize, i8, i16, i32, i64, f32, f64);

/// A sample that has a value.
type Known<'s, T> = (&'s Point<T>, T);

impl<T: Number> SeriesField<T> {
    fn known(&self) -> impl Iterator<Item = Known<'_, T>> {
        self.points().iter().filter_map(|point| Some((point, *point.value.as_ref().ok()?)))
    }

    /// Neighbours that both have a value.
    fn pairs(&self) -> impl Iterator<Item = (Known<'_, T>, Known<'_, T>)> {
        let known = |point| -> Option<Known<'_, T>> {
            let point: &Point<T> = point;
            Some((point, *point.value.as_ref().ok()?))
        };
        self.points().windows(2).filter_map(move |two| Some((known(&two[0])?, known(&two[1])?)))
    }

    /// Notes samples without a value; whether enough are left to say anything.
    fn enough(&self, verdict: &mut Verdict, pattern: &str, needed: usize, usable: usize) -> bool {
        let label = self.label();
        for point in self.points() {
            if let Err(error) = &point.value {
                verdict.note(format!("{label}: {pattern} leaves out {}: {error}", point.place()));
            }
        }
        let samples = self.points().len();
        match usable {
            0 if samples >= needed => {
                let why = self.points().iter().find_map(|p| p.value.as_ref().err());
                let why = why.map_or_else(String::new, |error| format!(": {error}"));
                verdict.undecided(format!(
                    "{label}: {pattern} has nothing to compare in {samples} samples{why}"
                ));
                false
            }
            0 => {
                verdict.note(format!("{label}: {pattern} holds vacuously, there are {samples} samples"));
                false
            }
            _ => true,
        }
    }

    fn ordered(&self, verdict: &mut Verdict, pattern: &str, holds: impl Fn(T, T) -> bool) -> bool {
        if !self.enough(verdict, pattern, 2, self.pairs().count()) {
            return true;
        }
        let wrong = self.pairs().find(|((_, before), (_, after))| !holds(*before, *after));
        verdict.hold(wrong.is_none(), || match wrong {
            Some(((first, before), (second, after))) => format!(
                "{}: {pattern} fails: {before:?} at {}, then {after:?} at {}",
                self.label(),
                first.place(),
                second.place()
            ),
            None => format!("{}: {pattern} over {} samples", self.label(), self.points().len()),
        })
    }

    /// No value is below the one before it.
    pub fn nondecreasing(&self, verdict: &mut Verdict) -> bool {
        self.ordered(verdict, "nondecreasing", |before, after| before <= after)
    }

    /// Each value is above the one before it.
    pub fn strictly_increasing(&self, verdict: &mut Verdict) -> bool {
        self.ordered(verdict, "strictly_increasing", |before, after| before < after)
    }

    /// Each change per millisecond is between `low` and `high`.
    pub fn rate_within(&self, verdict: &mut Verdict, low: f64, high: f64) -> bool {
        let pattern = "rate_within";
        if !self.is_band(verdict, pattern, low, high) {
            return false;
        }
        if !self.enough(verdict, pattern, 2, self.pairs().count()) {
            return true;
        }
        let mut held = true;
        for ((first, before), (second, after)) in self.pairs() {
            let passed = second.at_ms - first.at_ms;
            let (label, from, to) = (self.label(), first.place(), second.place());
            if passed <= 0.0 {
                verdict.undecided(format!("{label}: {pattern}: no time passed between {from} and {to}"));
                continue;
            }
            let rate = (after.to_f64() - before.to_f64()) / passed;
            held &= verdict.hold(low <= rate && rate <= high, || {
                format!(
                    "{label}: {pattern}({low}, {high}) per ms: {rate:.6} from {before:?} at {from} to {after:?} at {to}"
                )
            });
        }
        held
    }

    /// Every value from `warmup_ms` on is within `tolerance` (a share of it) of their mean.
    pub fn steady_within(&self, verdict: &mut Verdict, warmup_ms: f64, tolerance: f64) -> bool {
        let pattern = "steady_within";
        let late: Vec<_> = self.known().filter(|(point, _)| point.at_ms >= warmup_ms).collect();
        let asked = self.points().iter().filter(|point| point.at_ms >= warmup_ms).count();
        if !self.enough(verdict, pattern, if asked == 0 { usize::MAX } else { 1 }, late.len()) {
            return true;
        }
        let mean = late.iter().map(|(_, value)| value.to_f64()).sum::<f64>() / late.len() as f64;
        let room = mean.abs() * tolerance;
        let near = |value: T| (value.to_f64() - mean).abs() <= room;
        let wrong = late.iter().find(|(_, value)| !near(*value));
        verdict.hold(wrong.is_none(), || {
            let label = self.label();
            let band = format!("{mean:.3} ± {room:.3} of {} samples", late.len());
            match wrong {
                Some((point, value)) => {
                    format!(
                        "{label}: {pattern}: {value:?} at {} is outside of the mean {band}",
                        point.place()
                    )
                }
                None => format!("{label}: {pattern}: all within the mean {band}"),
            }
        })
    }

    /// Three samples one after another are within `tolerance` of `target`, the last of them by
    /// `deadline_ms`.
    pub fn converges_to(&self, verdict: &mut Verdict, target: f64, tolerance: f64, deadline_ms: f64) -> bool {
        const ROW: usize = 3;
        let (pattern, label, samples) = ("converges_to", self.label(), self.points().len());
        if samples < ROW {
            verdict.note(format!("{label}: {pattern} holds vacuously, there are {samples} samples"));
            return true;
        }
        if !self.enough(verdict, pattern, 1, self.known().count()) {
            return true;
        }
        let mut row = 0;
        let mut seen = Vec::new();
        for point in self.points().iter().filter(|point| point.at_ms <= deadline_ms) {
            let near = match &point.value {
                Ok(value) => {
                    seen.push(format!("{value:?} at {}", point.place()));
                    (value.to_f64() - target).abs() <= tolerance
                }
                Err(error) => {
                    verdict.note(format!("{label}: {pattern} begins anew after {}: {error}", point.place()));
                    false
                }
            };
            row = if near { row + 1 } else { 0 };
            if row == ROW {
                return verdict.hold(true, || {
                    format!("{label}: {pattern}({target} ± {tolerance}) by {}", point.place())
                });
            }
        }
        let last = seen.split_off(seen.len().saturating_sub(6)).join(", ");
        verdict.hold(false, || {
            format!(
                "{label}: {pattern}: no {ROW} samples in a row are within {target} ± {tolerance} by {deadline_ms} ms; last {last}"
            )
        })
    }

    /// The quotient with `other`, sample by sample, is between `low` and `high`.
    pub fn ratio_within<U: Number>(
        &self,
        verdict: &mut Verdict,
        other: &SeriesField<U>,
        low: f64,
        high: f64,
    ) -> bool {
        let pattern = "ratio_within";
        if !self.is_band(verdict, pattern, low, high) {
            return false;
        }
        let (ours, theirs) = (self.points().len(), other.points().len());
        let (label, below) = (self.label(), other.label());
        if ours != theirs {
            return verdict
                .hold(false, || format!("{label}: {pattern}: it has {ours} samples, {below} has {theirs}"));
        }
        let both = || {
            let pairs = self.points().iter().zip(other.points());
            pairs.filter_map(|(a, b)| Some((a, *a.value.as_ref().ok()?, *b.value.as_ref().ok()?)))
        };
        for point in other.points() {
            if let Err(error) = &point.value {
                verdict.note(format!("{label}: {pattern} leaves out {}: {error}", point.place()));
            }
        }
        if !self.enough(verdict, pattern, 1, both().count()) {
            return true;
        }
        let mut held = true;
        for (point, value, divisor) in both() {
            let place = point.place();
            if divisor.to_f64() == 0.0 {
                verdict.undecided(format!("{label}: {pattern}: {below} is 0 at {place}"));
                continue;
            }
            let ratio = value.to_f64() / divisor.to_f64();
            held &= verdict.hold(low <= ratio && ratio <= high, || {
                format!("{label}: {pattern}({low}, {high}): {value:?} / {divisor:?} = {ratio:.6} at {place}")
            });
        }
        held
    }

    fn is_band(&self, verdict: &mut Verdict, pattern: &str, low: f64, high: f64) -> bool {
        let sound = low <= high;
        if !sound {
            let label = self.label();
            verdict
                .hold(false, || format!("{label}: {pattern}: the band from {low} to {high} holds nothing"));
        }
        sound
    }

    /// Claims something about each sample; one without a value fails.
    pub fn each<'a>(&'a self, verdict: &'a mut Verdict) -> EachClaim<'a, T> {
        EachClaim { field: self, verdict }
    }

    /// How far a counter moved within a phase: its last value there less its first.
    pub fn counter_delta(&self, phase: Phase) -> Option<f64> {
        Some(self.last_of_phase(phase)?.to_f64() - self.first_of_phase(phase)?.to_f64())
    }

    /// Its last value in phase `one` over its last in phase `other`; none where one is missing or 0.
    pub fn ratio_across_phases(&self, one: Phase, other: Phase) -> Option<f64> {
        let divisor = self.last_of_phase(other)?.to_f64();
        (divisor != 0.0).then_some(self.last_of_phase(one)?.to_f64() / divisor)
    }
}

impl SeriesField<bool> {
    /// Every value is true.
    pub fn always_true(&self, verdict: &mut Verdict) -> bool {
        if self.points().is_empty() {
            verdict.undecided(format!("{}: always_true: there are no samples", self.label()));
            return true;
        }
        let wrong = self.points().iter().find(|point| point.value != Ok(true));
        verdict.hold(wrong.is_none(), || {
            let label = self.label();
            match wrong.map(|point| (point.place(), &point.value)) {
                Some((place, Err(error))) => format!("{label}: always_true: no value at {place}: {error}"),
                Some((place, Ok(_))) => format!("{label}: always_true: false at {place}"),
                None => format!("{label}: always_true over {} samples", self.points().len()),
            }
        })
    }
}

/// A claim about each sample.
#[must_use = "a claim says nothing until it is compared"]
pub struct EachClaim<'a, T> {
    field: &'a SeriesField<T>,
    verdict: &'a mut Verdict,
}

impl<T: Number> EachClaim<'_, T> {
    fn all(self, what: &str, holds: impl Fn(T) -> bool) -> bool {
        let Self { field, verdict } = self;
        if field.points().is_empty() {
            verdict.undecided(format!("each {} {what}: there are no samples", field.label()));
            return true;
        }
        let fine = |point: &&Point<T>| point.value.as_ref().is_ok_and(|value| holds(*value));
        let wrong = field.points().iter().find(|point| !fine(point));
        verdict.hold(wrong.is_none(), || {
            let label = field.label();
            match wrong.map(|point| (point.place(), &point.value)) {
                Some((place, Err(error))) => format!("{label}: no value at {place}: {error}"),
                Some((place, Ok(value))) => format!("{label} is {value:?} at {place}, claimed {what}"),
                None => format!("each {label} {what}"),
            }
        })
    }

    /// It is this or more.
    pub fn at_least(self, limit: T) -> bool {
        self.all(&format!("at least {limit:?}"), |value| value >= limit)
    }

    /// It is this or less.
    pub fn at_most(self, limit: T) -> bool {
        self.all(&format!("at most {limit:?}"), |value| value <= limit)
    }

    /// It is one of the two or between them.
    pub fn between(self, low: T, high: T) -> bool {
        self.all(&format!("between {low:?} and {high:?}"), |value| low <= value && value <= high)
    }
}

#[cfg(test)]
mod tests {
    use ktstr_proto::{scx_stats::MissingStatsReason, verdict::Outcome};
    use serde_json::json;

    use super::*;
    use crate::host::{
        series::SampleSeries,
        snapshot::{Snapshot, SnapshotError},
    };

    const GONE: Option<u64> = None;

    /// Samples 100 ms apart; `None` is one that was not taken.
    fn field<T: Copy>(values: &[Option<T>]) -> SeriesField<T> {
        let point = |(nth, value): (usize, &Option<T>)| {
            let tag = format!("periodic_{nth:03}");
            let why = "the run ended".to_owned();
            Point {
                value: value.ok_or(SnapshotError::PlaceholderSample { tag: tag.clone(), why }),
                tag,
                at_ms: nth as f64 * 100.0,
                step: Some(nth as u32 / 2),
            }
        };
        SeriesField::new("n", values.iter().enumerate().map(point).collect())
    }

    fn some(values: &[u64]) -> Vec<Option<u64>> {
        values.iter().copied().map(Some).collect()
    }

    /// What became of one claim: the outcome and the messages.
    fn claim(claim: impl FnOnce(&mut Verdict) -> bool) -> (Outcome, String) {
        let mut verdict = Verdict::new();
        claim(&mut verdict);
        let result = verdict.into_result();
        let messages: Vec<String> = result.details.iter().map(|detail| detail.message.clone()).collect();
        (result.outcome, messages.join("; "))
    }

    #[test]
    fn order() {
        let rising = field(&some(&[1, 2, 2, 5]));
        assert_eq!(claim(|v| rising.nondecreasing(v)), (Outcome::Pass, String::new()));
        let (outcome, said) = claim(|v| rising.strictly_increasing(v));
        assert_eq!(outcome, Outcome::Fail);
        assert_eq!(
            said,
            "n: strictly_increasing fails: 2 at periodic_001 (+100 ms), then 2 at periodic_002 (+200 ms)"
        );
        // Both pairs of a sample without a value are left out: 9 is not compared with 3.
        let gap = field(&[Some(9), GONE, Some(3), Some(4)]);
        let (outcome, said) = claim(|v| gap.nondecreasing(v));
        assert_eq!(outcome, Outcome::Pass, "{said}");
        assert!(said.contains("leaves out periodic_001 (+100 ms): periodic_001 was not taken"), "{said}");
        let (outcome, said) = claim(|v| field(&some(&[1])).nondecreasing(v));
        assert!(outcome == Outcome::Pass && said.contains("vacuously"), "{said}");
        let (outcome, said) = claim(|v| field(&[GONE, GONE]).nondecreasing(v));
        assert!(outcome == Outcome::Inconclusive && said.contains("the run ended"), "{said}");
        let (outcome, _) = claim(|v| field(&[Some(1.0), Some(f64::NAN)]).nondecreasing(v));
        assert_eq!(outcome, Outcome::Fail, "what cannot be compared does not rise");
    }

    #[test]
    fn rates() {
        let series = field(&some(&[0, 100, 250]));
        assert_eq!(claim(|v| series.rate_within(v, 1.0, 1.5)).0, Outcome::Pass);
        let (outcome, said) = claim(|v| series.rate_within(v, 1.0, 1.2));
        assert_eq!(outcome, Outcome::Fail);
        assert!(said.contains("1.500000 from 100 at periodic_001 (+100 ms) to 250"), "{said}");
        assert_eq!(claim(|v| series.rate_within(v, 2.0, 1.0)).0, Outcome::Fail);
        let mut still = series.points().to_vec();
        still[1].at_ms = 0.0;
        let still = SeriesField::new("n", still);
        let (outcome, said) = claim(|v| still.rate_within(v, 0.0, 2.0));
        assert!(outcome == Outcome::Inconclusive && said.contains("no time passed"), "{said}");
    }

    #[test]
    fn steadiness_and_convergence() {
        let series = field(&some(&[900, 100, 104, 96]));
        assert_eq!(claim(|v| series.steady_within(v, 100.0, 0.05)).0, Outcome::Pass);
        let (outcome, said) = claim(|v| series.steady_within(v, 0.0, 0.05));
        assert!(outcome == Outcome::Fail && said.contains("900 at periodic_000"), "{said}");
        let (outcome, said) = claim(|v| series.steady_within(v, 1000.0, 0.05));
        assert!(outcome == Outcome::Pass && said.contains("vacuously"), "{said}");
        assert_eq!(claim(|v| series.converges_to(v, 100.0, 5.0, 300.0)).0, Outcome::Pass);
        let (outcome, said) = claim(|v| series.converges_to(v, 100.0, 5.0, 250.0));
        assert!(outcome == Outcome::Fail && said.contains("by 250 ms; last 900 at"), "{said}");
        let broken = field(&[Some(100), Some(100), GONE, Some(100), Some(100)]);
        let (outcome, said) = claim(|v| broken.converges_to(v, 100.0, 5.0, 900.0));
        assert!(outcome == Outcome::Fail && said.contains("begins anew after periodic_002"), "{said}");
    }

    #[test]
    fn truth_ratios_and_bounds() {
        assert_eq!(claim(|v| field(&[Some(true)]).always_true(v)).0, Outcome::Pass);
        let (outcome, said) = claim(|v| field(&[Some(true), None]).always_true(v));
        assert!(outcome == Outcome::Fail && said.contains("no value at periodic_001"), "{said}");
        let (a, b) = (field(&some(&[10, 20])), field(&some(&[5, 10])));
        assert_eq!(claim(|v| a.ratio_within(v, &b, 1.9, 2.1)).0, Outcome::Pass);
        let (outcome, said) = claim(|v| a.ratio_within(v, &b, 0.0, 1.0));
        assert!(outcome == Outcome::Fail && said.contains("10 / 5 = 2.000000 at periodic_000"), "{said}");
        let zero = field(&some(&[0, 10]));
        assert_eq!(claim(|v| a.ratio_within(v, &zero, 0.0, 5.0)).0, Outcome::Inconclusive);
        let short = field(&some(&[1]));
        assert_eq!(claim(|v| a.ratio_within(v, &short, 0.0, 5.0)).0, Outcome::Fail);
        assert_eq!(claim(|v| a.each(v).between(10, 20)).0, Outcome::Pass);
        let (outcome, said) = claim(|v| a.each(v).at_most(15));
        assert_eq!(
            (outcome, said.as_str()),
            (Outcome::Fail, "n is 20 at periodic_001 (+100 ms), claimed at most 15")
        );
        assert_eq!(claim(|v| field(&[Some(1), GONE]).each(v).at_least(0)).0, Outcome::Fail);
    }

    /// A series along the statistics' axis: `None` is a sample before which the scheduler was silent, the last
    /// one a capture that was not taken, before which it said something nevertheless.
    fn said(values: &[Option<u64>]) -> SampleSeries {
        let sample = |(nth, value): (usize, &Option<u64>)| {
            let (tag, at_ms) = (format!("periodic_{nth:03}"), nth as i64 * 100);
            let late = MissingStatsReason::Late { limit_ms: 500 };
            let stats = value.map(|n| json!({"n": n, "layers": {"a.b": {"on": n > 0}}})).ok_or(late);
            match nth + 1 == values.len() {
                true => Snapshot::placeholder(&tag, at_ms, "the run ended").with_stats(stats),
                false => Snapshot::new(&tag, at_ms, json!({})).with_stats(stats),
            }
        };
        SampleSeries::from_snapshots(values.iter().enumerate().map(sample).collect())
    }

    #[test]
    fn what_the_scheduler_says_is_an_axis_of_its_own() {
        let series = said(&[Some(1), GONE, Some(3), Some(4)]);
        let n = series.stats_path("n").field_u64("");
        assert_eq!(n.label(), "stats:n");
        assert_eq!(n.values().copied().collect::<Vec<_>>(), [1, 3, 4]);
        let (outcome, words) = claim(|v| n.nondecreasing(v));
        assert_eq!(outcome, Outcome::Pass, "{words}");
        assert!(
            words.contains("leaves out periodic_001 (+100 ms): periodic_001 has no statistics"),
            "{words}"
        );
        assert!(words.contains("did not answer within 500 ms"), "{words}");
        // The pairs of a silent one are left out, and a rate is not taken across it.
        let (outcome, words) = claim(|v| n.rate_within(v, 0.009, 0.011));
        assert_eq!(outcome, Outcome::Pass, "{words}");
        let (outcome, words) = claim(|v| n.converges_to(v, 3.0, 1.0, 900.0));
        assert!(outcome == Outcome::Fail && words.contains("begins anew after periodic_001"), "{words}");
        assert_eq!(claim(|v| n.steady_within(v, 200.0, 0.2)).0, Outcome::Pass);
        assert_eq!(claim(|v| n.ratio_within(v, &n, 0.9, 1.1)).0, Outcome::Pass);
        assert_eq!(
            claim(|v| n.each(v).at_least(1)).0,
            Outcome::Fail,
            "a value that is not there is not enough"
        );
        let on = series.stats("on", |stats| stats.get("layers")?.key("a.b")?.get("on")?.as_bool());
        let (outcome, words) = claim(|v| on.always_true(v));
        assert!(outcome == Outcome::Fail && words.contains("no value at periodic_001"), "{words}");

        // The other axis has what was captured, and not the capture that was not taken.
        let taken = series.bpf("taken", |_| Ok(true));
        assert_eq!(taken.values().count(), 3);
        assert!(matches!(taken.points()[3].value, Err(SnapshotError::PlaceholderSample { .. })));

        let wrong = series.stats_path("layers").key("a.c").field_f64("on");
        let errors: Vec<_> = wrong.points().iter().filter_map(|point| point.value.as_ref().err()).collect();
        assert!(matches!(errors[0], SnapshotError::FieldNotFound { .. }), "{errors:?}");
        assert!(matches!(errors[1], SnapshotError::MissingStats { .. }), "{errors:?}");
        let (outcome, words) = claim(|v| wrong.nondecreasing(v));
        assert!(outcome == Outcome::Inconclusive && words.contains("no member `a.c`"), "{words}");

        let silent = said(&[GONE, GONE]).stats_path("n").field_u64("");
        let (outcome, words) = claim(|v| silent.strictly_increasing(v));
        assert!(outcome == Outcome::Inconclusive && words.contains("did not answer"), "{words}");
    }

    #[test]
    fn what_cpus_did_with_their_time_is_an_axis_too() {
        let cpu = |user: u64| json!({"cpustat": {"CPUTIME_USER": user}});
        let sample = |nth: i64| {
            let rq = json!({"rq": [cpu(5), cpu(10 * nth as u64)]});
            Snapshot::new(&format!("periodic_{nth:03}"), nth * 100, rq)
        };
        let series = SampleSeries::from_snapshots((0..3).map(sample).collect());
        let user = series.host().cpu(1, "user");
        assert_eq!(user.values().copied().collect::<Vec<_>>(), [0, 10, 20]);
        assert_eq!(claim(|v| user.rate_within(v, 0.1, 0.1)).0, Outcome::Pass);
        assert!(series.host().cpu(2, "user").points().iter().all(|point| point.value.is_err()));
        assert_eq!(series.monitor(), None);
    }

    #[test]
    fn phases() {
        let series = field(&some(&[1, 4, 10, 30]));
        assert_eq!(series.counter_delta(Phase::Baseline), Some(3.0));
        assert_eq!(series.counter_delta(Phase::step(0)), Some(20.0));
        assert_eq!(series.counter_delta(Phase::step(1)), None);
        assert_eq!(series.value_at_phase(Phase::Baseline), Some(4));
        assert_eq!(series.value_at_phase(Phase::step(4)), Some(30), "it has not changed since");
        assert_eq!(field(&[GONE, GONE, Some(7)]).value_at_phase(Phase::Baseline), None);
        assert_eq!(series.ratio_across_phases(Phase::step(0), Phase::Baseline), Some(7.5));
    }
}

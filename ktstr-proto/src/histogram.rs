//! A log-linear (HDR) histogram of times: constant relative precision over the whole range, no sample lost,
//! a fixed amount of memory, and merging that is exact.
//!
//! Values below 128 have a bucket each; above, every power of two is divided into 64 buckets, so a bucket
//! is at most 1/64 of its value wide and its middle is within 0.8 % of every value in it. [`bucket_of`] and
//! [`bucket_low`] are public so that counts can be kept elsewhere (workers keep them in shared memory, as
//! atomics) and collected with [`Histogram::from_counts`]. What comes from a guest is not trusted: bucket
//! numbers out of range are ignored.

use serde::{Deserialize, Serialize};

/// Buckets of a power of two.
const PER_OCTAVE: usize = 64;
/// Values below this have a bucket each.
const LINEAR: u64 = 2 * PER_OCTAVE as u64;
/// Powers of two above the linear part; the last reaches 2^40 ns, 18 minutes.
const OCTAVES: usize = 33;
/// Number of buckets.
pub const BUCKETS: usize = LINEAR as usize + OCTAVES * PER_OCTAVE;

/// The bucket of a value; the last one takes everything beyond the range.
pub const fn bucket_of(value: u64) -> usize {
    if value < LINEAR {
        return value as usize;
    }
    let octave = (value.ilog2() - LINEAR.ilog2()) as usize;
    let within = (value >> (octave + 1)) as usize - PER_OCTAVE;
    let bucket = LINEAR as usize + octave * PER_OCTAVE + within;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

/// The smallest value of a bucket.
pub const fn bucket_low(bucket: usize) -> u64 {
    if bucket < LINEAR as usize {
        return bucket as u64;
    }
    let above = bucket - LINEAR as usize;
    ((above % PER_OCTAVE + PER_OCTAVE) as u64) << (above / PER_OCTAVE + 1)
}

/// The value that stands for a bucket: its middle.
fn bucket_middle(bucket: usize) -> u64 {
    let low = bucket_low(bucket);
    let width = if bucket < LINEAR as usize { 1 } else { 2 << ((bucket - LINEAR as usize) / PER_OCTAVE) };
    low + (width - 1) / 2
}

/// How often which values were seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// Buckets that are not empty, ascending, with their counts.
    buckets: Vec<(u16, u64)>,
    /// Greatest value, exactly.
    max: u64,
}

impl Histogram {
    /// Collects counts kept by bucket, and the greatest value seen.
    pub fn from_counts(counts: impl IntoIterator<Item = u64>, max: u64) -> Self {
        let buckets = counts
            .into_iter()
            .take(BUCKETS)
            .enumerate()
            .filter(|(_, count)| *count > 0)
            .map(|(bucket, count)| (bucket as u16, count))
            .collect();
        Self { buckets, max }
    }

    /// The histogram of some values.
    pub fn of(values: impl IntoIterator<Item = u64>) -> Self {
        let mut histogram = Self::default();
        for value in values {
            histogram.add(bucket_of(value) as u16, 1);
            histogram.max = histogram.max.max(value);
        }
        histogram
    }

    fn add(&mut self, bucket: u16, count: u64) {
        match self.buckets.binary_search_by_key(&bucket, |(b, _)| *b) {
            Ok(at) => self.buckets[at].1 = self.buckets[at].1.saturating_add(count),
            Err(at) => self.buckets.insert(at, (bucket, count)),
        }
    }

    /// Adds what another one counted; loses nothing.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in other.counted() {
            self.add(bucket as u16, count);
        }
        self.max = self.max.max(other.max);
    }

    fn counted(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.buckets.iter().map(|(bucket, count)| (*bucket as usize, *count)).filter(|(b, _)| *b < BUCKETS)
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.counted().fold(0, |sum, (_, count)| sum.saturating_add(count))
    }

    /// Greatest value, exactly; 0 when empty.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The value that a share `q` (0 to 1) of all values does not exceed, within 0.8 %; `None` when empty.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        let total = self.count();
        let rank = ((q.clamp(0.0, 1.0) * total as f64).ceil() as u64).clamp(1, total.max(1));
        let mut seen = 0u64;
        for (bucket, count) in self.counted() {
            seen = seen.saturating_add(count);
            if seen >= rank {
                return Some(bucket_middle(bucket).min(self.max));
            }
        }
        None
    }

    /// Mean, within 0.8 %; `None` when empty.
    pub fn mean(&self) -> Option<f64> {
        let total = self.count();
        let sum: f64 = self.counted().map(|(b, count)| bucket_middle(b) as f64 * count as f64).sum();
        (total > 0).then(|| sum / total as f64)
    }

    /// Standard deviation divided by the mean; `None` when empty or the mean is 0.
    pub fn coefficient_of_variation(&self) -> Option<f64> {
        let mean = self.mean().filter(|mean| *mean > 0.0)?;
        let squares: f64 =
            self.counted().map(|(b, count)| (bucket_middle(b) as f64 - mean).powi(2) * count as f64).sum();
        Some((squares / self.count() as f64).sqrt() / mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_the_range_without_gap_or_overlap() {
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_of(bucket_low(bucket)), bucket, "{bucket}");
            if bucket > 0 {
                assert_eq!(bucket_of(bucket_low(bucket) - 1), bucket - 1, "{bucket}");
            }
            let (low, middle) = (bucket_low(bucket), bucket_middle(bucket));
            assert_eq!(bucket_of(middle), bucket);
            assert!((middle - low) as f64 <= low as f64 / 128.0 + 0.5, "{bucket}: {low} {middle}");
        }
        assert!(bucket_low(BUCKETS - 1) > 1 << 39);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_values_within_the_precision() {
        // A long tail, as latencies have it.
        let mut state = 7u64;
        let mut values: Vec<u64> = (0..20_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                1u64 << (state >> 59)
            })
            .map(|v| v + v / 3)
            .collect();
        let histogram = Histogram::of(values.iter().copied());
        values.sort_unstable();
        for q in [0.0, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let rank = ((q * values.len() as f64).ceil() as usize).max(1) - 1;
            let (exact, got) = (values[rank] as f64, histogram.quantile(q).unwrap() as f64);
            assert!((got - exact).abs() <= exact / 100.0 + 0.5, "q={q}: {got} is not {exact}");
        }
        let exact = values.iter().sum::<u64>() as f64 / values.len() as f64;
        assert!((histogram.mean().unwrap() - exact).abs() < exact / 100.0);
        assert_eq!(histogram.max(), *values.last().unwrap());
        assert_eq!(histogram.count(), 20_000);
    }

    #[test]
    fn merging_is_the_same_as_counting_together() {
        let (a, b) = ([1, 5, 1 << 20, 3_000_000_000], [0, 5, 77, 1 << 50]);
        let mut merged = Histogram::of(a);
        merged.merge(&Histogram::of(b));
        assert_eq!(merged, Histogram::of(a.into_iter().chain(b)));
        let counts = (0..BUCKETS).map(|bucket| a.iter().filter(|v| bucket_of(**v) == bucket).count() as u64);
        assert_eq!(Histogram::from_counts(counts, 3_000_000_000), Histogram::of(a));
    }

    #[test]
    fn nothing_is_no_number() {
        let empty = Histogram::default();
        assert_eq!(
            (empty.quantile(0.99), empty.mean(), empty.coefficient_of_variation()),
            (None, None, None)
        );
        assert_eq!(Histogram::of([7, 7, 7]).coefficient_of_variation(), Some(0.0));
    }

    #[test]
    fn lies_of_a_guest_are_ignored() {
        let lie = Histogram { buckets: vec![(u16::MAX, 5), (3, u64::MAX), (3, 9)], max: 3 };
        assert_eq!(lie.quantile(0.5), Some(3));
        let mut merged = Histogram::of([3]);
        merged.merge(&lie);
        assert_eq!((merged.count(), merged.max()), (u64::MAX, 3));
    }
}

//! A token bucket for requests and one for bytes.
//!
//! A request passes while both hold something and may leave them in debt, so that one that is larger
//! than a bucket passes, too; the next one waits until the debt is paid. Over any time `t` a bucket of
//! rate `r` lets through at most `r × (t + 100 ms)` and one request.

use std::time::{Duration, Instant};

use ktstr_proto::device::Throttle as Limits;

/// What a bucket holds at most, as the time in which it fills.
const BURST: Duration = Duration::from_millis(100);

/// One bucket: what it holds, in billionths of a token, or what is owed.
#[derive(Debug, Clone)]
struct Bucket {
    rate: u64,
    nanos: i128,
}

impl Bucket {
    fn full(rate: u64) -> Bucket {
        Bucket { rate, nanos: Self::most(rate) }
    }

    /// At least one token: otherwise a slow bucket would never hold one.
    fn most(rate: u64) -> i128 {
        (i128::from(rate) * BURST.as_nanos() as i128).max(1_000_000_000)
    }

    fn fill(&mut self, passed: Duration) {
        let more = i128::from(self.rate) * passed.as_nanos() as i128;
        self.nanos = (self.nanos + more).min(Self::most(self.rate));
    }

    /// How long until it holds something.
    fn wait(&self) -> Option<Duration> {
        if self.nanos > 0 {
            return None;
        }
        let nanos = (1 - self.nanos + i128::from(self.rate) - 1) / i128::from(self.rate);
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX).max(1)))
    }

    fn take(&mut self, tokens: u64) {
        self.nanos -= i128::from(tokens) * 1_000_000_000;
    }
}

/// The limits of one disk and how far they are used up.
#[derive(Debug, Clone)]
pub struct Throttle {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
    filled: Instant,
}

impl Throttle {
    /// Full buckets.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Throttle {
        Throttle {
            requests: limits.iops.map(|rate| Bucket::full(rate.max(1).into())),
            bytes: limits.bytes_per_sec.map(|rate| Bucket::full(rate.max(1))),
            filled: now,
        }
    }

    /// Lets a request of `bytes` pass, or says how long it has to wait at least.
    pub fn pass(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        let buckets = || [&self.requests, &self.bytes];
        if buckets().iter().all(|bucket| bucket.is_none()) {
            return Ok(());
        }
        for bucket in [&mut self.requests, &mut self.bytes].into_iter().flatten() {
            bucket.fill(passed);
        }
        let wait = [&self.requests, &self.bytes].into_iter().flatten().filter_map(Bucket::wait).max();
        if let Some(wait) = wait {
            return Err(wait);
        }
        if let Some(requests) = &mut self.requests {
            requests.take(1);
        }
        if let Some(of_bytes) = &mut self.bytes {
            of_bytes.take(bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many requests of `bytes` pass in `time`, each repeated as soon as it may.
    fn passed(limits: Limits, bytes: u64, time: Duration) -> u64 {
        let begin = Instant::now();
        let (mut throttle, mut now, mut count) = (Throttle::new(limits, begin), begin, 0);
        while now - begin < time {
            match throttle.pass(bytes, now) {
                Ok(()) => count += 1,
                Err(wait) => now += wait,
            }
            assert!(count < 1_000_000, "nothing throttles");
        }
        count
    }

    #[test]
    fn requests_and_bytes_are_limited_each() {
        let limits = Limits { iops: Some(100), bytes_per_sec: None };
        assert!((1000..=1012).contains(&passed(limits, 1 << 20, Duration::from_secs(10))));
        let limits = Limits { iops: None, bytes_per_sec: Some(1 << 20) };
        assert!((2560..=2590).contains(&passed(limits, 4096, Duration::from_secs(10))));
        let both = Limits { iops: Some(100), bytes_per_sec: Some(1 << 20) };
        assert!((1000..=1012).contains(&passed(both, 512, Duration::from_secs(10))));
    }

    #[test]
    fn one_request_may_be_larger_than_the_bucket_and_is_paid_for() {
        let begin = Instant::now();
        let limits = Limits { iops: None, bytes_per_sec: Some(1000) };
        let mut throttle = Throttle::new(limits, begin);
        assert_eq!(throttle.pass(10_000, begin), Ok(()));
        let wait = throttle.pass(1, begin).unwrap_err();
        assert!((9.8..10.0).contains(&wait.as_secs_f64()), "{wait:?}");
        assert_eq!(throttle.pass(1, begin + wait), Ok(()));
    }

    #[test]
    fn slow_clocks_and_no_limits_are_harmless() {
        let now = Instant::now();
        let mut free = Throttle::new(Limits::default(), now);
        assert_eq!(free.pass(u64::MAX, now), Ok(()));
        let mut slow = Throttle::new(Limits { iops: Some(1), bytes_per_sec: None }, now);
        assert_eq!(slow.pass(0, now), Ok(()));
        assert!(slow.pass(0, now.checked_sub(Duration::from_secs(9)).unwrap_or(now)).is_err());
    }
}

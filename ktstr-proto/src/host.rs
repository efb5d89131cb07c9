//! What the host gave to a guest: evidence against which a guest's complaint about time is weighed.

use serde::{Deserialize, Serialize};

/// Run time and run delay of the vCPU threads over a window, from `/proc/PID/task/TID/schedstat`.
/// One thread per vCPU, by CPU number, or one for all of them where the emulator has one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostTime {
    /// Length of the window, milliseconds.
    pub window_ms: u64,
    /// Per thread: time it ran, milliseconds.
    pub ran_ms: Vec<u64>,
    /// Per thread: time it was runnable and the host ran something else, milliseconds.
    pub waited_ms: Vec<u64>,
    /// Per thread: the wait in each interval of about `period_ms`, milliseconds.
    pub waits_ms: Vec<Vec<u32>>,
    /// When the window began and each interval ended, milliseconds after the run's start.
    #[serde(default)]
    pub at_ms: Vec<u64>,
    /// Length of an interval, milliseconds.
    pub period_ms: u32,
    /// Time of the window in which some task of the whole host waited for a CPU, milliseconds (`some` of
    /// `/proc/pressure/cpu`, kernel: Documentation/accounting/psi.rst); `None` where its kernel does not tell.
    pub pressure_ms: Option<u64>,
}

impl HostTime {
    /// The longest that one thread was kept waiting in any stretch of `length_ms`, with its number.
    pub fn worst_wait_within(&self, length_ms: u64) -> (u64, u32) {
        if let (Some(from), Some(to)) = (self.at_ms.first(), self.at_ms.last()) {
            let all: Vec<u32> = (0u32..).take(self.waits_ms.len()).collect();
            return self.waited_between(&all, (*from, *to), length_ms);
        }
        // A stretch that does not begin with an interval touches one more.
        let intervals = length_ms.div_ceil(u64::from(self.period_ms.max(1))) as usize + 1;
        let worst = |waits: &Vec<u32>| {
            let stretches = waits.windows(intervals.min(waits.len()).max(1));
            stretches.map(|stretch| stretch.iter().copied().map(u64::from).sum::<u64>()).max().unwrap_or(0)
        };
        let by_thread = self.waits_ms.iter().map(worst).map(|wait| wait.min(length_ms)).zip(0u32..);
        by_thread.max_by_key(|(wait, _)| *wait).unwrap_or((0, 0))
    }

    /// The longest that one of these CPUs' threads was kept waiting in any stretch of `length_ms` between two
    /// moments (milliseconds after the run's start), with its number. An interval that lies only partly
    /// in a stretch may have had all its wait there.
    pub fn waited_between(&self, cpus: &[u32], between: (u64, u64), length_ms: u64) -> (u64, u32) {
        let (from, to) = between;
        let length = length_ms.min(to.saturating_sub(from));
        let last = to.saturating_sub(length);
        let of_thread = |waits: &Vec<u32>| -> u64 {
            let within = |begin: u64| -> u64 {
                let end = begin + length;
                let first = self.at_ms.partition_point(|at| *at <= begin).saturating_sub(1);
                let intervals = self.at_ms.iter().zip(self.at_ms.iter().skip(1)).zip(waits).skip(first);
                let touched = intervals.take_while(|((a, _), _)| **a < end);
                touched
                    .map(|((a, b), wait)| u64::from(*wait).min((*b).min(end).saturating_sub((*a).max(begin))))
                    .sum()
            };
            // The sum turns only where a stretch begins or ends with an interval or with its whole wait.
            let intervals = self.at_ms.iter().zip(self.at_ms.iter().skip(1)).zip(waits);
            let turns = intervals.flat_map(|((a, b), wait)| {
                let wait = u64::from(*wait);
                [*a, b.saturating_sub(wait), b.saturating_sub(length), (a + wait).saturating_sub(length)]
            });
            let begins = turns.filter(|at| (from..=last).contains(at)).chain([from, last]);
            begins.map(within).max().unwrap_or(0)
        };
        // One thread for all CPUs is each of them.
        let concerned = |thread: &usize| self.waits_ms.len() == 1 || cpus.contains(&(*thread as u32));
        (0..self.waits_ms.len())
            .filter(concerned)
            .map(|thread| (of_thread(&self.waits_ms[thread]).min(length_ms), thread as u32))
            .max_by_key(|(waited, _)| *waited)
            .unwrap_or((0, 0))
    }

    /// What the host withheld between two moments, milliseconds after the run's start, as a window of its own,
    /// of which it is not known what ran. Of an interval that lies only partly there, as much as can be.
    pub fn between(&self, (from, to): (u64, u64)) -> Self {
        let within = |at: u64| at.clamp(from, to);
        let spans: Vec<(u64, u64)> =
            self.at_ms.windows(2).map(|ends| (within(ends[0]), within(ends[1]))).collect();
        let touched: Vec<usize> = (0..spans.len()).filter(|n| spans[*n].0 < spans[*n].1).collect();
        let of = |waits: &Vec<u32>, n: usize| {
            let room = u32::try_from(spans[n].1 - spans[n].0).unwrap_or(u32::MAX);
            waits.get(n).copied().unwrap_or(0).min(room)
        };
        let cut = |waits: &Vec<u32>| touched.iter().map(|n| of(waits, *n)).collect::<Vec<u32>>();
        let waits_ms: Vec<Vec<u32>> = self.waits_ms.iter().map(cut).collect();
        let ends = touched.iter().map(|n| spans[*n].1);
        Self {
            window_ms: to.saturating_sub(from),
            ran_ms: Vec::new(),
            waited_ms: waits_ms.iter().map(|waits| waits.iter().copied().map(u64::from).sum()).collect(),
            waits_ms,
            at_ms: touched.first().map(|n| spans[*n].0).into_iter().chain(ends).collect(),
            period_ms: self.period_ms,
            pressure_ms: None,
        }
    }

    /// How much more of the window the host withheld from one thread than from another, milliseconds.
    pub fn inequality_ms(&self) -> u64 {
        let (most, least) = (self.waited_ms.iter().max(), self.waited_ms.iter().min());
        most.copied().unwrap_or(0) - least.copied().unwrap_or(0)
    }

    /// How far two tasks of a guest may be apart in CPU time, milliseconds, for no other reason than that
    /// the host stopped a vCPU while one of them was on it, in any stretch of `length_ms`.
    ///
    /// The guest counts each stop as time of whoever was there, who is a matter of chance. Stops of an
    /// interval are taken as one, and are longer than the real ones; their sizes add up as those of
    /// independent draws do, of which the bound is three standard deviations.
    pub fn chance_within(&self, length_ms: u64) -> f64 {
        let intervals = length_ms.div_ceil(u64::from(self.period_ms.max(1))) as usize;
        if self.at_ms.len() == self.waits_ms.first().map_or(0, Vec::len) + 1 {
            return 3.0
                * self
                    .waits_ms
                    .iter()
                    .map(|waits| self.squares(waits, length_ms))
                    .fold(0.0, f64::max)
                    .sqrt();
        }
        let worst = |waits: &Vec<u32>| {
            let stretches = waits.windows(intervals.min(waits.len()).max(1));
            stretches
                .map(|stretch| stretch.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>())
                .fold(0.0, f64::max)
        };
        3.0 * self.waits_ms.iter().map(worst).fold(0.0, f64::max).sqrt()
    }

    /// How far the CPU time of one part of a guest's work may be from what its scheduler gave it, milliseconds
    /// over the window, for no other reason than that the host stopped vCPUs.
    ///
    /// A stop of w ms counts as time of that part with the chance p of its being there, wholly or not at all:
    /// the variance of it is w²·p·(1−p), at most w²/4. Stops of an interval are taken as one, and are longer
    /// than the real ones; each is an independent draw, on whichever vCPU it was. The bound is three standard
    /// deviations of their sum.
    pub fn chance_of_share(&self) -> f64 {
        let squares: f64 = self.waits_ms.iter().flatten().map(|wait| f64::from(*wait).powi(2)).sum();
        3.0 * (squares / 4.0).sqrt()
    }

    /// The largest sum of squared waits of the intervals that a stretch of `length_ms` touches.
    fn squares(&self, waits: &[u32], length_ms: u64) -> f64 {
        let of_stretch = |begin: usize| {
            let until = self.at_ms[begin] + length_ms;
            let touched = waits[begin..].iter().zip(&self.at_ms[begin..]).take_while(|(_, at)| **at < until);
            touched.map(|(wait, _)| f64::from(*wait).powi(2)).sum::<f64>()
        };
        (0..waits.len()).map(of_stretch).fold(0.0, f64::max)
    }

    /// The largest share of the window for which the host kept a thread waiting, percent.
    pub fn worst_waited_pct(&self) -> f64 {
        let most = self.waited_ms.iter().copied().max().unwrap_or(0);
        most as f64 * 100.0 / self.window_ms.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_as_long_as_they_were() {
        // Looks came every 500 ms; the host withheld 200 ms of each.
        let host = HostTime {
            window_ms: 5000,
            ran_ms: vec![3000],
            waited_ms: vec![2000],
            waits_ms: vec![vec![200; 10]],
            at_ms: (0..=10).map(|n| 1000 + n * 500).collect(),
            period_ms: 100,
            pressure_ms: None,
        };
        assert_eq!(host.worst_wait_within(500), (200 + 200, 0), "half of each of two may hold all of both");
        assert_eq!(host.worst_wait_within(1000), (600, 0));
        assert_eq!(host.waited_between(&[0], (1000, 1500), 500), (200, 0));
        assert_eq!(host.waited_between(&[3], (1000, 1500), 500), (200, 0), "one thread is all CPUs");
        assert!((host.chance_within(500) - 600.0).abs() < 1e-9, "{}", host.chance_within(500));
        let cut = host.between((1400, 2550));
        assert_eq!((cut.at_ms, cut.window_ms), (vec![1400, 1500, 2000, 2500, 2550], 1150));
        assert_eq!((cut.waits_ms, cut.waited_ms), (vec![vec![100, 200, 200, 50]], vec![550]));
        assert_eq!(host.between((9000, 9500)).waited_ms, [0]);
    }

    #[test]
    fn the_worst_stretch_is_of_one_thread() {
        let host = HostTime {
            window_ms: 500,
            ran_ms: vec![300, 400],
            waited_ms: vec![110, 20],
            waits_ms: vec![vec![0, 50, 60, 0, 0], vec![20, 0, 0, 0, 0]],
            at_ms: Vec::new(),
            period_ms: 100,
            pressure_ms: None,
        };
        assert_eq!(host.worst_wait_within(100), (100, 0));
        assert_eq!(host.worst_wait_within(10_000), (110, 0));
        assert_eq!(host.inequality_ms(), 90);
        assert_eq!(host.worst_waited_pct(), 22.0);
        assert_eq!(host.chance_within(100), 180.0);
        assert_eq!(host.chance_within(500), 3.0 * f64::from(50 * 50 + 60 * 60).sqrt());
        assert_eq!(host.chance_of_share(), 1.5 * f64::from(50 * 50 + 60 * 60 + 20 * 20).sqrt());
        assert_eq!(HostTime::default().chance_within(100), 0.0);
        assert_eq!(HostTime::default().worst_wait_within(100), (0, 0));
        assert_eq!(HostTime::default().inequality_ms(), 0);
    }
}

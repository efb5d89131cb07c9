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
    /// Length of an interval, milliseconds.
    pub period_ms: u32,
    /// Time of the window in which some task of the whole host waited for a CPU, milliseconds (`some` of
    /// `/proc/pressure/cpu`, kernel: Documentation/accounting/psi.rst); `None` where its kernel does not tell.
    pub pressure_ms: Option<u64>,
}

impl HostTime {
    /// The longest that one thread was kept waiting in any stretch of `length_ms`, with its number.
    pub fn worst_wait_within(&self, length_ms: u64) -> (u64, u32) {
        // A stretch that does not begin with an interval touches one more.
        let intervals = length_ms.div_ceil(u64::from(self.period_ms.max(1))) as usize + 1;
        let worst = |waits: &Vec<u32>| {
            let stretches = waits.windows(intervals.min(waits.len()).max(1));
            stretches.map(|stretch| stretch.iter().copied().map(u64::from).sum::<u64>()).max().unwrap_or(0)
        };
        let by_thread = self.waits_ms.iter().map(worst).map(|wait| wait.min(length_ms)).zip(0u32..);
        by_thread.max_by_key(|(wait, _)| *wait).unwrap_or((0, 0))
    }

    /// How much more of the window the host withheld from one thread than from another, percentage
    /// points.
    pub fn inequality_pct(&self) -> f64 {
        let (Some(most), Some(least)) = (self.waited_ms.iter().max(), self.waited_ms.iter().min()) else {
            return 0.0;
        };
        (most - least) as f64 * 100.0 / self.window_ms.max(1) as f64
    }

    /// How far two tasks of a guest may be apart in CPU time, milliseconds, for no other reason than that
    /// the host stopped a vCPU while one of them was on it, in any stretch of `length_ms`.
    ///
    /// The guest counts each stop as time of whoever was there, who is a matter of chance. Stops of an
    /// interval are taken as one, and are longer than the real ones; their sizes add up as those of
    /// independent draws do, of which the bound is three standard deviations.
    pub fn chance_within(&self, length_ms: u64) -> f64 {
        let intervals = length_ms.div_ceil(u64::from(self.period_ms.max(1))) as usize;
        let worst = |waits: &Vec<u32>| {
            let stretches = waits.windows(intervals.min(waits.len()).max(1));
            stretches
                .map(|stretch| stretch.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>())
                .fold(0.0, f64::max)
        };
        3.0 * self.waits_ms.iter().map(worst).fold(0.0, f64::max).sqrt()
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
    fn the_worst_stretch_is_of_one_thread() {
        let host = HostTime {
            window_ms: 500,
            ran_ms: vec![300, 400],
            waited_ms: vec![110, 20],
            waits_ms: vec![vec![0, 50, 60, 0, 0], vec![20, 0, 0, 0, 0]],
            period_ms: 100,
            pressure_ms: None,
        };
        assert_eq!(host.worst_wait_within(100), (100, 0));
        assert_eq!(host.worst_wait_within(10_000), (110, 0));
        assert_eq!(host.inequality_pct(), 18.0);
        assert_eq!(host.worst_waited_pct(), 22.0);
        assert_eq!(host.chance_within(100), 180.0);
        assert_eq!(host.chance_within(500), 3.0 * f64::from(50 * 50 + 60 * 60).sqrt());
        assert_eq!(HostTime::default().chance_within(100), 0.0);
        assert_eq!(HostTime::default().worst_wait_within(100), (0, 0));
        assert_eq!(HostTime::default().inequality_pct(), 0.0);
    }
}

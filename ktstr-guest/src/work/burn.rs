//! Burning CPU: arithmetic in steps, and in CPU time by calibration.
//!
//! Loops spin on arithmetic, not on the CPU's pause instruction: under emulation that leaves the
//! translated code each time, and the figures would say more about the emulator than about the guest.

use std::hint::black_box;

use super::sys::cpu_ns;

/// Steps of arithmetic in one unit of work.
pub(super) const STEPS_PER_UNIT: u64 = 1024;
/// CPU time between two looks at the clock, nanoseconds.
const CHUNK_NS: u64 = 50_000;

/// `steps` dependent multiplications, which no compiler can shorten.
pub(super) fn compute(mut state: u64, steps: u64) -> u64 {
    for _ in 0..steps {
        state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
    state
}

/// Burns CPU time by counted steps: how many make a microsecond is measured, again in each burst, so that
/// the clock is looked at seldom and a burst is as long as asked for.
#[derive(Debug)]
pub(super) struct Burner {
    state: u64,
    steps_per_us: u64,
}

impl Burner {
    /// Calibrates for some ten microseconds.
    pub fn new(seed: u64) -> Self {
        let mut burner = Self { state: seed, steps_per_us: 0 };
        burner.measured(2 * STEPS_PER_UNIT);
        burner
    }

    /// Computes so many steps.
    pub fn compute(&mut self, steps: u64) {
        self.state = compute(self.state, steps);
    }

    /// Computes and notes how fast that was.
    fn measured(&mut self, steps: u64) {
        let before = cpu_ns();
        self.compute(steps);
        let took = cpu_ns().saturating_sub(before);
        self.steps_per_us = (steps * 1000 / took.max(1)).clamp(1, 100_000);
    }

    /// Computes until the calling thread has had so much CPU time in all; units of work done.
    pub fn burn_until(&mut self, cpu_time_ns: u64) -> u64 {
        let mut steps = 0u64;
        loop {
            let left = cpu_time_ns.saturating_sub(cpu_ns());
            if left == 0 {
                return steps.div_ceil(STEPS_PER_UNIT);
            }
            let chunk = (self.steps_per_us * left.min(CHUNK_NS) / 1000).max(16);
            self.measured(chunk);
            steps += chunk;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_takes_the_cpu_time_asked_for() {
        let mut burner = Burner::new(1);
        let before = cpu_ns();
        for burst in 1..=20 {
            burner.burn_until(before + burst * 1_000_000);
        }
        let took = (cpu_ns() - before) as f64 / 1e6;
        assert!((20.0..24.0).contains(&took), "20 ms asked for, {took:.2} ms burnt");
    }
}

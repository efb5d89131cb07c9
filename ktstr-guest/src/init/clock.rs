//! Guest time: `CLOCK_MONOTONIC`, which under `det` is virtual.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    now.as_nanos() as u64
}

/// Milliseconds since boot.
pub fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

/// Sleeps.
pub fn sleep_us(us: u64) {
    std::thread::sleep(Duration::from_micros(us));
}

/// Asks `done` every millisecond, at most `limit_ms`; whether it came true.
pub fn wait_until(limit_ms: u64, mut done: impl FnMut() -> bool) -> bool {
    let until = now_ms() + limit_ms;
    loop {
        if done() {
            return true;
        }
        if now_ms() >= until {
            return false;
        }
        sleep_us(1000);
    }
}

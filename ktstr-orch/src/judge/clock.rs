//! When on the host something was that the guest tells in its own time.
//!
//! The guest's clock stands while the machine stands, so the difference of the two only grows; a message
//! comes later than it was sent, so each shows a difference that is too large rather than too small. What
//! is between two moments of the guest is therefore between two of the host, which are told here: never a
//! narrower span than the true one.

use ktstr_proto::host::HostTime;

/// Messages come this late at least, in the worst case: the ring is looked at so often, nanoseconds.
const LATE_NS: i128 = 100_000_000;

/// What is known of the guest's clock.
#[derive(Debug, Default)]
pub struct GuestClock {
    /// Guest time, and host time less guest time, nanoseconds; both ascend. What a later message shows to be
    /// too large is dropped.
    seen: Vec<(u64, i128)>,
}

impl GuestClock {
    /// Notes that a message of guest time `guest_ns` was there at `host_ms` of the run.
    pub fn seen(&mut self, guest_ns: u64, host_ms: u64) {
        let difference = i128::from(host_ms) * 1_000_000 - i128::from(guest_ns);
        if self.seen.last().is_some_and(|(at, _)| *at > guest_ns) {
            return;
        }
        while self.seen.last().is_some_and(|(_, other)| *other >= difference) {
            self.seen.pop();
        }
        self.seen.push((guest_ns, difference));
    }

    /// A span of the guest's time as one of the run's, milliseconds; unknown before a message came that was
    /// sent after it.
    pub fn on_host(&self, from_ns: u64, to_ns: u64) -> Option<(u64, u64)> {
        let (_, least) = self.seen.first()?;
        let (_, most) = self.seen.iter().find(|(at, _)| *at >= to_ns)?;
        let ms = |ns: i128| u64::try_from(ns.max(0) / 1_000_000).unwrap_or(u64::MAX);
        let (from, to) = (i128::from(from_ns) + least - LATE_NS, i128::from(to_ns) + most + 999_999);
        Some((ms(from), ms(to)))
    }
}

/// What the host gave, and how to find in it what the guest tells.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// What it gave.
    pub time: &'a HostTime,
    /// Where the guest's moments are in it.
    pub clock: &'a GuestClock,
    /// A scheduler of sched_ext was in charge: what runs on one CPU may be decided on any.
    pub any_cpu: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_span_is_never_told_narrower_than_it_was() {
        let mut clock = GuestClock::default();
        assert_eq!(clock.on_host(0, 0), None);
        // The guest began at 1000 ms of the run; its messages are 5 to 400 ms late.
        for (guest, host) in [(100, 1105), (500, 1900), (600, 1610)] {
            clock.seen(guest * MS, host);
        }
        assert_eq!(clock.on_host(200 * MS, 600 * MS), Some((1105, 1610)));
        assert_eq!(clock.on_host(200 * MS, 700 * MS), None, "nothing was sent after it");
        // It stands for 2 s.
        clock.seen(800 * MS, 3820);
        let (from, to) = clock.on_host(700 * MS, 750 * MS).unwrap();
        assert!(from <= 1700 && to >= 3750, "{from} {to}");
        clock.seen(10 * MS, 9);
        assert_eq!(clock.on_host(0, 20 * MS).map(|(_, to)| to), Some(1025), "time that goes back is no time");
    }
}

//! The kernel's own account of the time in which a step holds: what each cgroup got, what the machine had
//! left, and what went to others. Where the kernel does not tell there is no account, not one of zeros.

use std::fs;

use ktstr_proto::stats::{CgroupUsage, Hold};

use super::engine::Engine;
use crate::{cgroup::Cgroups, work::now_ns};

/// Ticks of `/proc/stat` (`USER_HZ`), nanoseconds; the same on every architecture that we know.
const TICK_NS: u64 = 10_000_000;

/// What the kernel had accounted at one moment.
pub(super) struct Reading {
    /// Guest `CLOCK_MONOTONIC`, nanoseconds.
    at_ns: u64,
    /// Idle time of each CPU in service.
    idle: Vec<(u32, u64)>,
    /// Of each cgroup, by name.
    cgroups: Vec<(String, CgroupUsage)>,
    /// CPU time of workers that are in no cgroup of the scenario.
    outside_ns: u64,
}

/// A step's account.
pub(super) struct Account {
    pub hold: Hold,
    pub cgroups: Vec<(String, CgroupUsage)>,
}

impl Reading {
    /// Reads everything.
    pub fn take(engine: &Engine) -> Option<Self> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let cgroups = engine.cgroups.iter().filter_map(|live| {
            let text = fs::read_to_string(engine.ctx.cgroups.path(&live.name).join("cpu.stat")).ok()?;
            Some((live.name.clone(), usage(&text)?))
        });
        let cgroups = cgroups.collect();
        let outside = engine.workers.iter().filter(|worker| worker.cgroup.is_empty());
        let outside_ns = outside.flat_map(|w| w.handle.snapshot()).map(|report| report.cpu_time_ns).sum();
        Some(Self { at_ns: now_ns(), idle: idle(&stat), cgroups, outside_ns })
    }

    /// What came since `before`.
    pub fn since(self, before: &Self) -> Account {
        let lasted_ns = self.at_ns.saturating_sub(before.at_ns);
        let cgroups: Vec<(String, CgroupUsage)> = self
            .cgroups
            .into_iter()
            .filter_map(|(name, now)| {
                let (_, then) = before.cgroups.iter().find(|(known, _)| *known == name)?;
                Some((name, now.since(*then)))
            })
            .collect();
        let idle: Vec<u64> = self
            .idle
            .iter()
            .filter_map(|(cpu, now)| {
                let (_, then) = before.idle.iter().find(|(known, _)| known == cpu)?;
                Some(now.saturating_sub(*then).min(lasted_ns))
            })
            .collect();
        // A cgroup's account has those below it in it.
        let top = cgroups.iter().filter(|(name, _)| !name.contains('/'));
        let ours: u64 = top.map(|(_, usage)| usage.usage_ns).sum();
        let ours = ours + self.outside_ns.saturating_sub(before.outside_ns);
        let (cpus, idle_ns) = (idle.len() as u32, idle.iter().sum::<u64>());
        let others_ns = (u64::from(cpus) * lasted_ns).saturating_sub(idle_ns + ours);
        Account { hold: Hold { from_ns: before.at_ns, lasted_ns, cpus, idle_ns, others_ns }, cgroups }
    }
}

/// How long a cgroup or one above it was kept from CPUs by its quota since it is there, nanoseconds of all of them.
pub(super) fn throttled_ns(cgroups: &Cgroups, cgroup: &str) -> u64 {
    let levels = cgroup.match_indices('/').map(|(at, _)| &cgroup[..at]).chain([cgroup]);
    let of = |name: &str| usage(&fs::read_to_string(cgroups.path(name).join("cpu.stat")).ok()?);
    levels.filter(|name| !name.is_empty()).filter_map(of).map(|usage| usage.throttled_ns).max().unwrap_or(0)
}

/// `cpu.stat`: lines of a name and a number.
fn usage(text: &str) -> Option<CgroupUsage> {
    let of = |name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
    };
    Some(CgroupUsage {
        usage_ns: of("usage_usec")? * 1000,
        throttled: of("nr_throttled").unwrap_or(0),
        throttled_ns: of("throttled_usec").unwrap_or(0) * 1000,
    })
}

/// Idle time of each CPU, waiting for I/O included: the fourth and fifth number of its line.
fn idle(stat: &str) -> Vec<(u32, u64)> {
    let cpu = |line: &str| -> Option<(u32, u64)> {
        let mut words = line.strip_prefix("cpu")?.split(' ');
        let number = words.next()?.parse().ok()?;
        let ticks: Vec<u64> = words.skip(3).take(2).filter_map(|word| word.parse().ok()).collect();
        Some((number, ticks.iter().sum::<u64>() * TICK_NS))
    };
    stat.lines().filter_map(cpu).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_understood() {
        let stat =
            "cpu  10 0 10 300 5 0 0 0 0 0\ncpu0 5 0 5 100 2 0 0 0 0 0\ncpu3 5 0 5 200 3 0 0 0 0 0\nintr 5\n";
        assert_eq!(idle(stat), [(0, 1_020_000_000), (3, 2_030_000_000)]);
        let plain = "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n";
        assert_eq!(usage(plain).map(|usage| (usage.usage_ns, usage.throttled)), Some((1_500_000, 0)));
        let limited = "usage_usec 7\nnr_periods 9\nnr_throttled 3\nthrottled_usec 20\nnr_bursts 0\n";
        assert_eq!(usage(limited), Some(CgroupUsage { usage_ns: 7000, throttled: 3, throttled_ns: 20_000 }));
        assert_eq!(usage("user_usec 5\n"), None);
    }

    #[test]
    fn others_have_what_is_neither_idle_nor_ours() {
        let used = |ms: u64| CgroupUsage { usage_ns: ms * 1_000_000, ..CgroupUsage::default() };
        let reading = |at_ns, idle_ms: [u64; 2], a: u64, below: u64, outside_ms: u64| Reading {
            at_ns,
            idle: vec![(0, idle_ms[0] * 1_000_000), (1, idle_ms[1] * 1_000_000)],
            cgroups: vec![("a".into(), used(a)), ("a/b".into(), used(below))],
            outside_ns: outside_ms * 1_000_000,
        };
        let before = reading(5_000_000_000, [100, 100], 50, 50, 10);
        let mut after = reading(6_000_000_000, [400, 100], 1050, 550, 210);
        after.cgroups.push(("late".into(), used(5)));
        let account = after.since(&before);
        assert_eq!(account.cgroups.len(), 2);
        assert_eq!(account.cgroups[1].1.usage_ns, 500_000_000);
        // Two seconds of CPU: 0.3 idle, 1 in the cgroup, 0.2 outside.
        let hold = account.hold;
        assert_eq!((hold.from_ns, hold.lasted_ns), (5_000_000_000, 1_000_000_000));
        assert_eq!((hold.cpus, hold.idle_ns, hold.others_ns), (2, 300_000_000, 500_000_000));
    }
}

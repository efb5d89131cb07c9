//! Limits of a cgroup, as the files of cgroup v2 take them (`Documentation/admin-guide/cgroup-v2.rst`).

/// A limit that may also be lifted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `max`.
    Unlimited,
    /// At most this much.
    At(u64),
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unlimited => f.write_str("max"),
            Self::At(value) => value.fmt(f),
        }
    }
}

/// CPU time in each period, both in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuQuota {
    /// Time in a period.
    pub quota: Limit,
    /// Length of a period.
    pub period_us: u64,
}

impl CpuQuota {
    /// The kernel's own period.
    pub const PERIOD_US: u64 = 100_000;
}

/// What a cgroup is limited to; `None` leaves the kernel's default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// `cpu.max`.
    pub cpu: Option<CpuQuota>,
    /// `cpu.weight`, 1 to 10000.
    pub cpu_weight: Option<u32>,
    /// `memory.max`, bytes.
    pub memory_max: Option<Limit>,
    /// `memory.high`, bytes.
    pub memory_high: Option<Limit>,
    /// `memory.low`, bytes.
    pub memory_low: Option<Limit>,
    /// `memory.swap.max`, bytes.
    pub memory_swap_max: Option<Limit>,
    /// `io.weight`, 1 to 10000.
    pub io_weight: Option<u32>,
    /// `pids.max`.
    pub pids_max: Option<Limit>,
}

/// A limit the kernel would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// A weight is out of range.
    #[error("{file} of {value}: weights go from 1 to 10000")]
    Weight {
        /// The file.
        file: &'static str,
        /// What was asked.
        value: u32,
    },
    /// A quota cannot be kept.
    #[error(
        "cpu.max of {quota_us} µs in {period_us} µs: the period goes from 1 ms to 1 s and the quota is at least 1 ms"
    )]
    Quota {
        /// Time in a period.
        quota_us: u64,
        /// Length of a period.
        period_us: u64,
    },
}

impl Limits {
    /// What is wrong with them on any machine.
    pub fn check(&self) -> Result<(), LimitError> {
        for (file, weight) in [("cpu.weight", self.cpu_weight), ("io.weight", self.io_weight)] {
            if let Some(value) = weight.filter(|weight| !(1..=10_000).contains(weight)) {
                return Err(LimitError::Weight { file, value });
            }
        }
        if let Some(CpuQuota { quota, period_us }) = self.cpu {
            let quota_us = if let Limit::At(quota_us) = quota { quota_us } else { 1_000 };
            if !(1_000..=1_000_000).contains(&period_us) || quota_us < 1_000 {
                return Err(LimitError::Quota { quota_us, period_us });
            }
        }
        Ok(())
    }

    /// The files to write and their texts, in order.
    pub fn files(&self) -> Vec<(&'static str, String)> {
        let mut files = Vec::new();
        let mut add = |file, text: Option<String>| files.extend(text.map(|text| (file, text)));
        let text = |limit: Option<Limit>| limit.map(|limit| limit.to_string());
        add("cpu.max", self.cpu.map(|cpu| format!("{} {}", cpu.quota, cpu.period_us)));
        add("cpu.weight", self.cpu_weight.map(|weight| weight.to_string()));
        add("memory.low", text(self.memory_low));
        add("memory.high", text(self.memory_high));
        add("memory.max", text(self.memory_max));
        add("memory.swap.max", text(self.memory_swap_max));
        add("io.weight", self.io_weight.map(|weight| format!("default {weight}")));
        add("pids.max", text(self.pids_max));
        files
    }

    /// Controllers they need.
    pub fn controllers(&self) -> Vec<&'static str> {
        let mut needed: Vec<&'static str> = Vec::new();
        for (file, _) in self.files() {
            let controller = file.split_once('.').map_or(file, |(controller, _)| controller);
            if !needed.contains(&controller) {
                needed.push(controller);
            }
        }
        needed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_files() {
        let limits = Limits {
            cpu: Some(CpuQuota { quota: Limit::At(50_000), period_us: CpuQuota::PERIOD_US }),
            memory_max: Some(Limit::Unlimited),
            io_weight: Some(50),
            pids_max: Some(Limit::At(8)),
            ..Limits::default()
        };
        assert_eq!(limits.check(), Ok(()));
        let files = limits.files();
        let expected = [
            ("cpu.max", "50000 100000"),
            ("memory.max", "max"),
            ("io.weight", "default 50"),
            ("pids.max", "8"),
        ];
        assert_eq!(files.iter().map(|(f, t)| (*f, t.as_str())).collect::<Vec<_>>(), expected);
        assert_eq!(limits.controllers(), ["cpu", "memory", "io", "pids"]);
    }

    #[test]
    fn impossible_limits_say_why() {
        let weight = Limits { cpu_weight: Some(0), ..Limits::default() };
        assert!(weight.check().unwrap_err().to_string().contains("cpu.weight of 0"));
        let quota = CpuQuota { quota: Limit::At(500), period_us: 100_000 };
        assert!(Limits { cpu: Some(quota), ..Limits::default() }.check().is_err());
    }
}

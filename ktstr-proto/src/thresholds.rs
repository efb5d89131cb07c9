//! The thresholds of one test, and how layers of them are merged.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::run::AccelKind;

macro_rules! thresholds {
    ($($(#[doc = $doc:literal])* $name:ident: $type:ty,)*) => {
        /// Thresholds of one test; `None` means not checked. Later layers override earlier ones field
        /// by field.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
        #[must_use]
        pub struct Assert {
            $($(#[doc = $doc])* pub $name: Option<$type>,)*
        }

        impl Assert {
            /// No field set.
            pub const NO_OVERRIDES: Self = Self { $($name: None,)* };

            $($(#[doc = $doc])*
            pub const fn $name(mut self, value: $type) -> Self {
                self.$name = Some(value);
                self
            })*

            /// `self` overridden by what `later` sets.
            pub fn merge(self, later: Self) -> Self {
                Self { $($name: later.$name.or(self.$name),)* }
            }

            /// Every threshold by name, in order; `None` is not checked.
            pub fn rows(&self) -> Vec<(&'static str, Option<String>)> {
                vec![$((stringify!($name), self.$name.map(|value| value.to_string())),)*]
            }
        }
    };
}

thresholds! {
    /// Fail when a worker makes no progress.
    not_stuck: bool,
    /// Fail when a worker runs outside the CPUs it is allowed.
    isolation: bool,
    /// Longest time a worker may be off the CPU, milliseconds.
    max_gap_ms: u64,
    /// Largest difference in off-CPU share between workers of a cgroup, percentage points.
    max_spread_pct: f64,
    /// Time that balancing may cost workers of a cgroup, milliseconds: as a share of the time they lived it
    /// is added to `max_spread_pct`, which 0 makes literal.
    balancing_ms: u64,
    /// Largest ratio between the longest and the shortest run queue.
    max_imbalance_ratio: f64,
    /// Deepest local dispatch queue.
    max_local_dsq_depth: u32,
    /// Fail when a run-queue clock stands still while tasks wait.
    fail_on_rq_clock_stuck: bool,
    /// Consecutive samples a monitor threshold must be crossed.
    sustained_samples: u32,
    /// Largest coefficient of variation of work per CPU second between workers of a cgroup.
    max_throughput_cv: f64,
    /// Least work of a worker, units per CPU second.
    min_work_rate: f64,
    /// Least work of a worker, iterations per CPU second.
    min_iteration_rate: f64,
    /// Most changes of CPU per iteration in a cgroup.
    max_migration_ratio: f64,
    /// Largest 99th percentile of the time from wake to run in a cgroup, nanoseconds.
    max_p99_wake_latency_ns: u64,
    /// Largest coefficient of variation of the time from wake to run in a cgroup.
    max_wake_latency_cv: f64,
    /// Most falls back to the kernel's choice of a CPU, per second.
    max_fallback_rate: f64,
    /// Most slices extended for want of another task, per second.
    max_keep_last_rate: f64,
    /// Least share of a cgroup's pages on the NUMA nodes of its CPUs, from 0 to 1.
    min_page_locality: f64,
    /// Most pages moved between NUMA nodes, as a share of a cgroup's pages.
    max_cross_node_migration_ratio: f64,
    /// Largest share of a cgroup's pages on nodes without CPUs, from 0 to 1.
    max_slow_tier_ratio: f64,
}

impl Assert {
    /// What balancing may add to the spread of workers that lived so long, percentage points.
    pub fn balancing_pct(&self, lived: Option<Duration>) -> f64 {
        let balancing_ms = self.balancing_ms.unwrap_or(0) as f64;
        lived.map_or(0.0, |lived| balancing_ms / 10.0 / lived.as_secs_f64().max(0.001))
    }

    /// What is checked when nobody says otherwise, where this runs the vCPUs. An emulated CPU is a thread
    /// that shares the host with others and takes long for what hardware does at once, so its limits
    /// are wider.
    pub const fn defaults_for(accel: AccelKind) -> Self {
        match accel {
            AccelKind::Kvm => Self::default_checks().max_gap_ms(2000).max_spread_pct(25.0),
            AccelKind::Tcg => Self::default_checks(),
            // The monitor looks when the host gets to it, which must not decide here.
            AccelKind::Det => Self::default_checks().without_monitor(),
        }
    }

    /// The same without what only a monitor can judge.
    pub const fn without_monitor(self) -> Self {
        Self {
            max_imbalance_ratio: None,
            max_local_dsq_depth: None,
            fail_on_rq_clock_stuck: None,
            sustained_samples: None,
            max_fallback_rate: None,
            max_keep_last_rate: None,
            ..self
        }
    }

    /// The widest limits that are checked when nobody says otherwise.
    pub const fn default_checks() -> Self {
        Self::NO_OVERRIDES
            .not_stuck(true)
            .isolation(true)
            .max_gap_ms(3000)
            .max_spread_pct(35.0)
            .balancing_ms(500)
            .max_local_dsq_depth(50)
            .fail_on_rq_clock_stuck(true)
            .sustained_samples(5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_thresholds_win_field_by_field() {
        let merged = Assert::default_checks()
            .merge(Assert::NO_OVERRIDES.max_gap_ms(100))
            .merge(Assert { isolation: Some(false), ..Assert::NO_OVERRIDES });
        assert_eq!(
            (merged.max_gap_ms, merged.isolation, merged.not_stuck),
            (Some(100), Some(false), Some(true))
        );
    }

    #[test]
    fn hardware_is_judged_more_strictly_than_an_emulator() {
        let gap = |accel| Assert::defaults_for(accel).max_gap_ms;
        assert!(gap(AccelKind::Kvm) < gap(AccelKind::Tcg));
        let det = Assert::defaults_for(AccelKind::Det);
        assert_eq!((det.max_gap_ms, det.fail_on_rq_clock_stuck), (gap(AccelKind::Tcg), None));
    }

    #[test]
    fn every_threshold_has_a_row() {
        let rows = Assert::default_checks().rows();
        assert!(rows.contains(&("max_gap_ms", Some("3000".into()))));
        assert!(rows.contains(&("max_slow_tier_ratio", None)));
        assert_eq!(rows.len(), 20);
    }

    #[test]
    fn balancing_is_a_share_of_the_life_and_can_be_refused() {
        let lived = Some(Duration::from_secs(5));
        assert_eq!(Assert::default_checks().balancing_pct(lived), 10.0);
        assert_eq!(Assert::default_checks().balancing_ms(0).balancing_pct(lived), 0.0);
        assert_eq!(Assert::default_checks().balancing_pct(None), 0.0);
    }
}

//! A registered test, and the list of all that are registered.

use anyhow::Result;
use ktstr_guest::scenario::Ctx;
use ktstr_proto::{
    Topology,
    topology::TopologyError,
    verdict::{Assert, AssertResult},
};

use super::Constraints;
use crate::Scheduler;

/// Scenario length of tests that do not say another, seconds of guest time.
pub const DEFAULT_DURATION_S: u64 = 5;

/// Machine shape of tests that neither say one nor name a scheduler.
const DEFAULT_SHAPE: Topology = Topology { numa_nodes: 1, llcs: 1, cores: 2, threads: 1 };

/// The dimensions a test says itself; the others are inherited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    /// NUMA nodes.
    pub numa_nodes: Option<u32>,
    /// LLCs of the whole machine.
    pub llcs: Option<u32>,
    /// Cores per LLC.
    pub cores: Option<u32>,
    /// Threads per core.
    pub threads: Option<u32>,
}

/// A test function with what its attributes say; made by [`macro@crate::ktstr_test`].
#[derive(Debug, Clone, Copy)]
pub struct KtstrTestEntry {
    /// Name of the function.
    pub name: &'static str,
    /// Module it is in, the crate's name first.
    pub module_path: &'static str,
    /// Package it is in.
    pub package: &'static str,
    /// The function itself.
    pub run: fn(&Ctx) -> Result<AssertResult>,
    /// Dimensions it says itself.
    pub shape: Shape,
    /// Bounds it says itself on the shapes a gauntlet runs it on.
    pub constraints: Constraints,
    /// Guest memory, MiB.
    pub memory_mb: Option<u32>,
    /// Scenario length, seconds of guest time.
    pub duration_s: u64,
    /// Scheduler under test; `None` is EEVDF.
    pub scheduler: Option<&'static Scheduler>,
    /// Arguments after the scheduler's own.
    pub extra_sched_args: &'static [&'static str],
    /// Thresholds it says itself.
    pub assert: Assert,
}

/// All tests registered in this executable.
#[linkme::distributed_slice]
pub static KTSTR_TESTS: [KtstrTestEntry];

impl KtstrTestEntry {
    /// The name under which the test harness lists it.
    pub fn full_name(&self) -> String {
        match self.module_path.split_once("::") {
            Some((_, modules)) => format!("{modules}::{}", self.name),
            None => self.name.into(),
        }
    }

    /// The machine: each dimension from the test, else from the scheduler, else the default.
    pub fn topology(&self) -> Result<Topology, TopologyError> {
        let inherited = self.scheduler.map_or(DEFAULT_SHAPE, |scheduler| scheduler.topology);
        Topology {
            numa_nodes: self.shape.numa_nodes.unwrap_or(inherited.numa_nodes),
            llcs: self.shape.llcs.unwrap_or(inherited.llcs),
            cores: self.shape.cores.unwrap_or(inherited.cores),
            threads: self.shape.threads.unwrap_or(inherited.threads),
        }
        .checked()
    }

    /// The thresholds: defaults, then the scheduler's, then the test's.
    pub fn thresholds(&self) -> Assert {
        let scheduler = self.scheduler.map_or(Assert::NO_OVERRIDES, |scheduler| scheduler.assert);
        Assert::default_checks().merge(scheduler).merge(self.assert)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static SCHEDULER: Scheduler = Scheduler {
        name: "s",
        binary: "scx_s",
        topology: Topology { numa_nodes: 1, llcs: 2, cores: 4, threads: 1 },
        sched_args: &[],
        kernels: &[],
        assert: Assert { max_gap_ms: Some(50), max_spread_pct: Some(5.0), ..Assert::NO_OVERRIDES },
        package: "p",
    };

    fn entry(scheduler: Option<&'static Scheduler>, shape: Shape) -> KtstrTestEntry {
        KtstrTestEntry {
            name: "t",
            module_path: "krate::a::b",
            package: "p",
            run: |_| Ok(AssertResult::pass()),
            shape,
            constraints: Constraints::NONE,
            memory_mb: None,
            duration_s: 1,
            scheduler,
            extra_sched_args: &[],
            assert: Assert { max_gap_ms: Some(70), ..Assert::NO_OVERRIDES },
        }
    }

    #[test]
    fn each_dimension_is_inherited_on_its_own() {
        let shape = |scheduler, shape| entry(scheduler, shape).topology().map(|t| t.to_string());
        assert_eq!(shape(None, Shape::default()).unwrap(), "1n1l2c1t");
        assert_eq!(shape(Some(&SCHEDULER), Shape::default()).unwrap(), "1n2l4c1t");
        assert_eq!(
            shape(Some(&SCHEDULER), Shape { threads: Some(2), ..Shape::default() }).unwrap(),
            "1n2l4c2t"
        );
        let uneven = shape(Some(&SCHEDULER), Shape { numa_nodes: Some(3), ..Shape::default() });
        assert!(matches!(uneven, Err(TopologyError::Uneven { .. })));
    }

    #[test]
    fn the_nearest_threshold_wins() {
        let thresholds = entry(Some(&SCHEDULER), Shape::default()).thresholds();
        assert_eq!((thresholds.max_gap_ms, thresholds.max_spread_pct), (Some(70), Some(5.0)));
        assert_eq!(thresholds.not_stuck, Some(true));
    }

    #[test]
    fn names_are_those_of_the_test_harness() {
        assert_eq!(entry(None, Shape::default()).full_name(), "a::b::t");
        assert_eq!(KtstrTestEntry { module_path: "krate", ..entry(None, Shape::default()) }.full_name(), "t");
    }
}

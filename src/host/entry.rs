//! A registered test, and the list of all that are registered.

use anyhow::Result;
use ktstr_guest::scenario::{Ctx, Payload};
use ktstr_proto::{
    Topology,
    device::{DiskConfig, NetConfig},
    topology::TopologyError,
    verdict::{Assert, AssertResult},
};

use super::{
    Constraints, VmResult,
    bpf_map::{BpfMapWrite, WatchBpfMap},
};
use crate::Scheduler;

/// Scenario length of tests that do not say another, seconds of guest time.
pub const DEFAULT_DURATION_S: u64 = 5;

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

/// How the run is expected to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expect {
    /// It must fail.
    pub err: bool,
    /// Words the scheduler's error must contain.
    pub error_contains: Option<&'static str>,
    /// A pattern the scheduler's error must match.
    pub error_matches: Option<&'static str>,
    /// The scheduler must stay attached all the time.
    pub survives_storm: bool,
    /// Its scheduler must crash, and the second run must crash likewise with probes that see it.
    pub auto_repro: bool,
}

/// A look at a finished run on the host.
pub type PostVm = fn(&VmResult) -> Result<()>;

/// A test function with what its attributes say; made by [`macro@crate::ktstr_test`].
#[derive(Debug, Clone, Copy)]
pub struct KtstrTestEntry {
    /// Name of the function.
    pub name: &'static str,
    /// Module it is in, the crate's name first.
    pub module_path: &'static str,
    /// Package it is in.
    pub package: &'static str,
    /// Words for cargo that build that package with the features it has; empty for the usual ones.
    pub features: &'static str,
    /// The function itself.
    pub run: fn(&Ctx) -> Result<AssertResult>,
    /// Whether it runs only when asked for.
    pub ignored: bool,
    /// Dimensions it says itself.
    pub shape: Shape,
    /// LLCs more whose CPUs are possible but not there.
    pub absent_llcs: u32,
    /// Guest memory, MiB.
    pub memory_mb: Option<u32>,
    /// Scenario length, seconds of guest time.
    pub duration_s: u64,
    /// Workers of a cgroup that does not say how many.
    pub workers_per_cgroup: Option<u32>,
    /// Scheduler under test; `None` is EEVDF.
    pub scheduler: Option<&'static Scheduler>,
    /// Program that runs beside the scenario.
    pub payload: Option<&'static Payload>,
    /// More of them.
    pub workloads: &'static [&'static Payload],
    /// Schedulers that may take over during the test.
    pub staged_schedulers: &'static [&'static Scheduler],
    /// Arguments after the scheduler's own.
    pub extra_sched_args: &'static [&'static str],
    /// Files to have in the guest.
    pub extra_include_files: &'static [&'static str],
    /// The scheduler's configuration.
    pub config: Option<&'static str>,
    /// Thresholds it says itself.
    pub assert: Assert,
    /// Bounds it says itself on the shapes a gauntlet runs it on.
    pub constraints: Constraints,
    /// How it is expected to end.
    pub expect: Expect,
    /// Whether a run whose scheduler crashes is carried out again, with probes on the crash path. Not where
    /// the failure is expected.
    pub auto_repro: bool,
    /// Whether an inconclusive run is no failure.
    pub allow_inconclusive: bool,
    /// Whether the host must isolate the machine.
    pub performance_mode: bool,
    /// Whether the host must not.
    pub no_perf_mode: bool,
    /// Whether the kernel lies at a random address.
    pub kaslr: bool,
    /// Whether it runs on this host, without a machine of its own.
    pub host_only: bool,
    /// Called with what came of a run that did not fail.
    pub post_vm: Option<PostVm>,
    /// Called with what came of the run in any case.
    pub post_vm_unconditional: Option<PostVm>,
    /// Cgroup under which its workload cgroups are made.
    pub workload_root_cgroup: Option<&'static str>,
    /// The machine's disk.
    pub disk: Option<DiskConfig>,
    /// The machine's networks.
    pub networks: &'static [NetConfig],
    /// Under how many seeds it runs.
    pub seeds: Option<u32>,
    /// Captures of the guest's state during its scenario.
    pub num_snapshots: u32,
    /// What the kernel's stall watchdog is to tolerate at least, seconds.
    pub watchdog_timeout_s: Option<u32>,
    /// Numbers that the host sets in BPF maps before the workers start.
    pub bpf_map_write: &'static [BpfMapWrite],
    /// Values in BPF maps that the host samples while its scenarios run.
    pub watch_bpf_maps: &'static [WatchBpfMap],
    /// Host CPUs on which the machine may run.
    pub cpu_budget: Option<u32>,
    /// How long putting the run away may take, milliseconds.
    pub cleanup_budget_ms: Option<u32>,
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

    /// The bounds that the test sets, and its scheduler where the test does not.
    pub fn bounds(&self) -> Constraints {
        let inherited = self.scheduler.map_or(Constraints::NONE, |scheduler| scheduler.constraints);
        inherited.merge(self.constraints)
    }

    /// The crate it is in, which is its executable's name too.
    pub fn crate_name(&self) -> &'static str {
        self.module_path.split_once("::").map_or(self.module_path, |(krate, _)| krate)
    }

    /// The machine: each dimension from the test, else from the scheduler, else the default.
    pub fn topology(&self) -> Result<Topology, TopologyError> {
        let inherited = self.scheduler.map_or(Self::DEFAULT_SHAPE, |scheduler| scheduler.topology);
        Topology {
            numa_nodes: self.shape.numa_nodes.unwrap_or(inherited.numa_nodes),
            llcs: self.shape.llcs.unwrap_or(inherited.llcs),
            cores: self.shape.cores.unwrap_or(inherited.cores),
            threads: self.shape.threads.unwrap_or(inherited.threads),
        }
        .checked()
    }

    /// What the test and its scheduler say of the thresholds; the defaults depend on the accelerator.
    pub fn overrides(&self) -> Assert {
        let scheduler = self.scheduler.map_or(Assert::NO_OVERRIDES, |scheduler| scheduler.assert);
        scheduler.merge(self.assert)
    }

    /// All its programs.
    pub fn payloads(&self) -> impl Iterator<Item = &'static Payload> {
        self.payload.into_iter().chain(self.workloads.iter().copied())
    }

    /// Machine shape of tests that neither say one nor name a scheduler.
    pub const DEFAULT_SHAPE: Topology = Topology { numa_nodes: 1, llcs: 1, cores: 2, threads: 1 };

    /// What holds when nothing is said.
    pub const DEFAULT: Self = Self {
        name: "",
        module_path: "",
        package: "",
        features: "",
        run: |_| Ok(AssertResult::pass()),
        ignored: false,
        shape: Shape { numa_nodes: None, llcs: None, cores: None, threads: None },
        absent_llcs: 0,
        memory_mb: None,
        duration_s: DEFAULT_DURATION_S,
        workers_per_cgroup: None,
        scheduler: None,
        payload: None,
        workloads: &[],
        staged_schedulers: &[],
        extra_sched_args: &[],
        extra_include_files: &[],
        config: None,
        assert: Assert::NO_OVERRIDES,
        constraints: Constraints::NONE,
        expect: Expect {
            err: false,
            error_contains: None,
            error_matches: None,
            survives_storm: false,
            auto_repro: false,
        },
        auto_repro: true,
        allow_inconclusive: false,
        performance_mode: false,
        no_perf_mode: false,
        kaslr: true,
        host_only: false,
        post_vm: None,
        post_vm_unconditional: None,
        workload_root_cgroup: None,
        disk: None,
        networks: &[],
        seeds: None,
        num_snapshots: 0,
        watchdog_timeout_s: None,
        bpf_map_write: &[],
        watch_bpf_maps: &[],
        cpu_budget: None,
        cleanup_budget_ms: None,
    };
}

/// Refuses, when the test is compiled, a disk or networks that cannot be made.
pub const fn device_gate(disk: Option<DiskConfig>, networks: &[NetConfig]) {
    if let Some(disk) = disk
        && let Some(why) = disk.objection()
    {
        panic!("{}", why);
    }
    assert!(networks.len() <= ktstr_proto::device::MAX_NETWORKS, "a machine has at most four networks");
    let mut at = 0;
    while at < networks.len() {
        if let Some(why) = networks[at].objection() {
            panic!("{}", why);
        }
        at += 1;
    }
}

/// Refuses, when the test is compiled, a scheduler and a configuration that do not belong together.
pub const fn config_gate(scheduler: &Scheduler, given: bool) {
    assert!(
        given || scheduler.config_file_def.is_none(),
        "this scheduler takes its configuration from the test: add `config = …`"
    );
    assert!(
        !given || scheduler.config_file_def.is_some(),
        "this scheduler takes no configuration from a test: remove `config`, or declare `config_file_def`"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    static SCHEDULER: Scheduler = Scheduler::named("s")
        .binary_discover("scx_s")
        .topology(1, 2, 4, 1)
        .assert(Assert::NO_OVERRIDES.max_gap_ms(50).max_spread_pct(5.0));

    fn entry(scheduler: Option<&'static Scheduler>, shape: Shape) -> KtstrTestEntry {
        KtstrTestEntry {
            name: "t",
            module_path: "krate::a::b",
            package: "p",
            shape,
            scheduler,
            assert: Assert::NO_OVERRIDES.max_gap_ms(70),
            ..KtstrTestEntry::DEFAULT
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
        let overrides = entry(Some(&SCHEDULER), Shape::default()).overrides();
        assert_eq!((overrides.max_gap_ms, overrides.max_spread_pct), (Some(70), Some(5.0)));
        assert_eq!(overrides.not_stuck, None, "the defaults come later");
    }

    #[test]
    fn names_are_those_of_the_test_harness() {
        assert_eq!(entry(None, Shape::default()).full_name(), "a::b::t");
        assert_eq!(KtstrTestEntry { module_path: "krate", ..entry(None, Shape::default()) }.full_name(), "t");
    }

    #[test]
    #[should_panic(expected = "takes its configuration from the test: add `config = …`")]
    fn the_gate_refuses_a_missing_configuration() {
        config_gate(&Scheduler::named("l").config_file_def("--config {file}", "/c.json"), false);
    }

    #[test]
    #[should_panic(expected = "takes no configuration from a test: remove `config`")]
    fn the_gate_refuses_an_unwanted_configuration() {
        config_gate(&SCHEDULER, true);
    }

    #[test]
    #[should_panic(expected = "a machine has at most four networks")]
    fn the_gate_refuses_too_many_networks() {
        device_gate(None, &[NetConfig::new(); 5]);
    }

    #[test]
    fn the_gates_let_pass_what_fits() {
        config_gate(&SCHEDULER, false);
        config_gate(&Scheduler::named("l").config_file_def("--config {file}", "/c.json"), true);
        device_gate(None, &[]);
    }
}

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

/// Why a test cannot be run as it is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The name cannot be a file name.
    #[error("test name `{name}` is empty or has a `/` in it")]
    Name {
        /// The name.
        name: String,
    },
    /// No time.
    #[error("a duration of 0 s leaves nothing to test")]
    Duration,
    /// No memory.
    #[error("0 MiB of memory are not enough for any machine")]
    Memory,
    /// Host isolation is asked for and forbidden.
    #[error("`performance_mode` and `no_perf_mode` cannot stand together")]
    PerformanceMode,
    /// A number of host CPUs where the host decides, or none.
    #[error("`cpu_budget = {cpus}` needs `no_perf_mode`, and at least one CPU")]
    CpuBudget {
        /// The number.
        cpus: u32,
    },
    /// Maps without the programs that have them.
    #[error("`{which}` needs a scheduler, whose maps they are")]
    MapsOfNobody {
        /// The attribute.
        which: &'static str,
    },
    /// No time to put the run away.
    #[error("`cleanup_budget_ms = 0` leaves no time to put the run away")]
    CleanupBudget,
    /// A pattern without the error it is looked for in.
    #[error("`{which}` needs `expect_err`")]
    MatcherWithoutError {
        /// The attribute.
        which: &'static str,
    },
    /// A scheduler must survive that is not there, or must fail.
    #[error("`survives_storm` needs a scheduler and excludes `expect_err`")]
    Storm,
    /// No seed.
    #[error("0 seeds are no run at all")]
    Seeds,
    /// More captures than a run keeps.
    #[error("{count} captures are more than the {MAX_SNAPSHOTS} a run keeps")]
    Snapshots {
        /// How many.
        count: u32,
    },
    /// Captures too close to each other.
    #[error(
        "{count} captures in {duration_s} s are {spacing_ms} ms apart, less than {SNAPSHOT_SPACING_MS}: take at most \
         {fit}, or a longer `duration_s`"
    )]
    SnapshotSpacing {
        /// How many.
        count: u32,
        /// Length of the scenario, seconds.
        duration_s: u64,
        /// What would lie between two of them.
        spacing_ms: u64,
        /// How many fit.
        fit: u32,
    },
    /// A disk or network that cannot be made.
    #[error("the test's {device} cannot be made: {reason}")]
    Device {
        /// Disk or network.
        device: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// No machine.
    #[error("`host_only` runs no scheduler and has no machine: {what} cannot be had there")]
    HostOnly {
        /// What is asked for.
        what: &'static str,
    },
    /// The scheduler wants a configuration.
    #[error("scheduler `{scheduler}` takes its configuration from the test: add `config = …`")]
    ConfigMissing {
        /// The scheduler.
        scheduler: &'static str,
    },
    /// The scheduler takes none.
    #[error(
        "scheduler `{scheduler}` takes no configuration from a test: remove `config`, or declare `config_file_def`"
    )]
    ConfigUnwanted {
        /// The scheduler.
        scheduler: &'static str,
    },
    /// Only the scheduler under test is given a configuration by the test.
    #[error(
        "staged scheduler `{scheduler}` takes its configuration from a test, which gives one to the scheduler under test \
         only: declare it with `config_file` or with its settings in `sched_args`"
    )]
    ConfigStaged {
        /// The scheduler.
        scheduler: &'static str,
    },
    /// The kernel's own scheduler has no program that could take over, or arguments.
    #[error("scheduler `{scheduler}` is the kernel's own: {why}")]
    Builtin {
        /// The scheduler.
        scheduler: &'static str,
        /// What it has not got.
        why: &'static str,
    },
    /// Two programs or schedulers of one name.
    #[error("{what} `{name}` is given twice")]
    Twice {
        /// Payload or scheduler.
        what: &'static str,
        /// The name.
        name: &'static str,
    },
    /// The cgroup's path is wrong.
    #[error("cgroup path `{path}` must begin with `/`, not be `/` itself and have no `..` in it")]
    CgroupPath {
        /// The path.
        path: &'static str,
    },
    /// The test's bounds and its scheduler's leave no machine.
    #[error("`{low} = {min}` and `{high} = {max}`, of the test or its scheduler, leave no machine")]
    Bounds {
        /// Name of the lower bound.
        low: &'static str,
        /// The lower bound.
        min: u32,
        /// Name of the upper bound.
        high: &'static str,
        /// The upper bound.
        max: u32,
    },
    /// More CPUs would be possible than a machine can have.
    #[error(transparent)]
    Absent(TopologyError),
    /// The machine does not fit the test's own limits.
    #[error("the test's own machine {shape} is outside of its bounds {bounds:?}")]
    Constraints {
        /// The machine.
        shape: Topology,
        /// The bounds.
        bounds: Constraints,
    },
}

/// Each is a file of about a megabyte, and the guest stands for it.
pub const MAX_SNAPSHOTS: u32 = 64;
/// Between two captures the guest must run; they are spread over 80 % of the scenario.
const SNAPSHOT_SPACING_MS: u64 = 100;

/// Whether so many captures fit into a scenario of this length.
pub(super) fn check_snapshots(count: u32, duration_s: u64) -> Result<(), Invalid> {
    if count > MAX_SNAPSHOTS {
        return Err(Invalid::Snapshots { count });
    }
    let window_ms = duration_s.saturating_mul(800);
    let spacing_ms = window_ms / (u64::from(count) + 1);
    if count > 0 && spacing_ms < SNAPSHOT_SPACING_MS {
        let fit = u32::try_from(window_ms / SNAPSHOT_SPACING_MS).unwrap_or(u32::MAX).saturating_sub(1);
        return Err(Invalid::SnapshotSpacing { count, duration_s, spacing_ms, fit });
    }
    Ok(())
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

    /// Refuses what cannot be run as it is written. The macro refuses most of it earlier.
    pub fn validate(&self) -> Result<(), Invalid> {
        let refuse_if = |wrong: bool, invalid: Invalid| if wrong { Err(invalid) } else { Ok(()) };
        let bad_name = self.name.is_empty() || self.name.contains('/');
        refuse_if(bad_name, Invalid::Name { name: self.name.into() })?;
        refuse_if(self.duration_s == 0, Invalid::Duration)?;
        refuse_if(self.memory_mb == Some(0), Invalid::Memory)?;
        refuse_if(self.seeds == Some(0), Invalid::Seeds)?;
        refuse_if(self.performance_mode && self.no_perf_mode, Invalid::PerformanceMode)?;
        if let Some(cpus) = self.cpu_budget {
            refuse_if(cpus == 0 || !self.no_perf_mode, Invalid::CpuBudget { cpus })?;
        }
        for (which, given) in [
            ("bpf_map_write", !self.bpf_map_write.is_empty()),
            ("watch_bpf_maps", !self.watch_bpf_maps.is_empty()),
        ] {
            refuse_if(given && self.scheduler.is_none(), Invalid::MapsOfNobody { which })?;
        }
        refuse_if(self.cleanup_budget_ms == Some(0), Invalid::CleanupBudget)?;
        let Expect { err, error_contains, error_matches, survives_storm } = self.expect;
        for (which, given) in [
            ("expect_scx_bpf_error_contains", error_contains.is_some()),
            ("expect_scx_bpf_error_matches", error_matches.is_some()),
        ] {
            refuse_if(given && !err, Invalid::MatcherWithoutError { which })?;
        }
        refuse_if(survives_storm && (err || self.scheduler.is_none()), Invalid::Storm)?;
        if let Some(what) = self.of_a_machine().filter(|_| self.host_only) {
            return Err(Invalid::HostOnly { what });
        }
        check_snapshots(self.num_snapshots, self.duration_s)?;
        if let Some(reason) = self.disk.and_then(|disk| disk.objection()) {
            return Err(Invalid::Device { device: "disk", reason });
        }
        if let Some(reason) = self.networks.iter().find_map(NetConfig::objection) {
            return Err(Invalid::Device { device: "network", reason });
        }
        self.validate_scheduler()?;
        let mut names: Vec<&str> = Vec::new();
        for payload in self.payloads() {
            let (what, name) = ("payload", payload.name);
            refuse_if(names.contains(&name), Invalid::Twice { what, name })?;
            names.push(name);
        }
        let parent = self.scheduler.and_then(|scheduler| scheduler.cgroup_parent);
        for path in self.workload_root_cgroup.into_iter().chain(parent) {
            let bad = !path.starts_with('/') || path == "/" || path.split('/').any(|part| part == "..");
            refuse_if(bad, Invalid::CgroupPath { path })?;
        }
        if let Some((low, min, high, max)) = self.bounds().contradiction() {
            return Err(Invalid::Bounds { low, min, high, max });
        }
        match self.topology() {
            Ok(shape) if !self.constraints.admit(&shape) => {
                Err(Invalid::Constraints { shape, bounds: self.constraints })
            }
            Ok(shape) => shape.possible_cpus(self.absent_llcs).map(drop).map_err(Invalid::Absent),
            _ => Ok(()),
        }
    }

    /// Something it asks for that only a machine has.
    fn of_a_machine(&self) -> Option<&'static str> {
        let wanted = [
            (self.scheduler.is_some() || !self.staged_schedulers.is_empty(), "a scheduler"),
            (self.post_vm.is_some() || self.post_vm_unconditional.is_some(), "a look at its end"),
            (self.expect.err, "a scheduler's failure"),
            (self.seeds.is_some(), "seeds"),
            (self.num_snapshots > 0, "captures"),
            (self.disk.is_some(), "a disk"),
            (!self.networks.is_empty(), "networks"),
            (self.shape != Shape::default(), "a shape"),
            (self.absent_llcs > 0, "an absent LLC"),
            (self.memory_mb.is_some(), "memory"),
            (!self.kaslr, "another kernel address"),
            (!self.extra_include_files.is_empty(), "packed files"),
            (self.constraints != Constraints::NONE, "presets"),
            (self.performance_mode || self.no_perf_mode, "isolation"),
            (self.watchdog_timeout_s.is_some(), "a watchdog"),
            (self.cpu_budget.is_some(), "a CPU budget"),
            (self.cleanup_budget_ms.is_some(), "time to put it away"),
            (self.assert != self.assert.without_monitor(), "limits of what a monitor sees"),
        ];
        wanted.into_iter().find_map(|(wanted, what)| wanted.then_some(what))
    }

    fn validate_scheduler(&self) -> Result<(), Invalid> {
        let takes = self.scheduler.is_some_and(|scheduler| scheduler.config_file_def.is_some());
        let scheduler = self.scheduler.map_or("EEVDF", |scheduler| scheduler.name);
        match (takes, self.config) {
            (true, None) => return Err(Invalid::ConfigMissing { scheduler }),
            (false, Some(_)) => return Err(Invalid::ConfigUnwanted { scheduler }),
            _ => {}
        }
        if self.scheduler.is_some_and(Scheduler::is_builtin) && !self.extra_sched_args.is_empty() {
            let why = "it has no program that `extra_sched_args` could go to";
            return Err(Invalid::Builtin { scheduler, why });
        }
        let mut names = vec![scheduler];
        for staged in self.staged_schedulers {
            if staged.config_file_def.is_some() {
                return Err(Invalid::ConfigStaged { scheduler: staged.name });
            }
            if staged.is_builtin() {
                let why = "it has no program that could take over during a test";
                return Err(Invalid::Builtin { scheduler: staged.name, why });
            }
            if names.contains(&staged.name) {
                return Err(Invalid::Twice { what: "scheduler", name: staged.name });
            }
            names.push(staged.name);
        }
        Ok(())
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
        expect: Expect { err: false, error_contains: None, error_matches: None, survives_storm: false },
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
    fn what_cannot_be_run_as_written_is_refused() {
        static LAYERED: Scheduler = Scheduler::named("l").config_file_def("--config {file}", "/c.json");
        const A: Payload = Payload::binary("a", "a");
        static STAGED: &[&Scheduler] = &[&SCHEDULER];
        let good = KtstrTestEntry { name: "t", ..KtstrTestEntry::DEFAULT };
        assert_eq!(good.validate(), Ok(()));
        let expect = |expect| KtstrTestEntry { expect, ..good };
        for (bad, part) in [
            (KtstrTestEntry { name: "a/b", ..good }, "has a `/` in it"),
            (KtstrTestEntry { duration_s: 0, ..good }, "0 s"),
            (KtstrTestEntry { memory_mb: Some(0), ..good }, "0 MiB"),
            (KtstrTestEntry { seeds: Some(0), ..good }, "0 seeds"),
            (KtstrTestEntry { host_only: true, seeds: Some(2), ..good }, "`host_only`"),
            (KtstrTestEntry { host_only: true, num_snapshots: 2, ..good }, "captures cannot be had there"),
            (
                KtstrTestEntry {
                    host_only: true,
                    assert: Assert::NO_OVERRIDES.max_imbalance_ratio(2.0),
                    ..good
                },
                "limits of what a monitor sees cannot",
            ),
            (KtstrTestEntry { host_only: true, staged_schedulers: STAGED, ..good }, "a scheduler"),
            (KtstrTestEntry { host_only: true, memory_mb: Some(512), ..good }, "memory cannot be had"),
            (KtstrTestEntry { host_only: true, kaslr: false, ..good }, "kernel address"),
            (
                KtstrTestEntry {
                    host_only: true,
                    shape: Shape { cores: Some(2), ..Shape::default() },
                    ..good
                },
                "a shape cannot be had",
            ),
            (KtstrTestEntry { num_snapshots: 65, duration_s: 60, ..good }, "more than the 64"),
            (KtstrTestEntry { num_snapshots: 64, ..good }, "61 ms apart, less than 100: take at most 39"),
            (KtstrTestEntry { performance_mode: true, no_perf_mode: true, ..good }, "cannot stand together"),
            (expect(Expect { error_contains: Some("x"), ..Expect::default() }), "needs `expect_err`"),
            (expect(Expect { survives_storm: true, ..Expect::default() }), "needs a scheduler"),
            (KtstrTestEntry { host_only: true, scheduler: Some(&SCHEDULER), ..good }, "`host_only`"),
            (KtstrTestEntry { scheduler: Some(&LAYERED), ..good }, "add `config = …`"),
            (
                KtstrTestEntry { config: Some("{}"), scheduler: Some(&SCHEDULER), ..good },
                "takes no configuration",
            ),
            (KtstrTestEntry { payload: Some(&A), workloads: &[&A], ..good }, "payload `a` is given twice"),
            (KtstrTestEntry { workload_root_cgroup: Some("x"), ..good }, "must begin with `/`"),
            (
                KtstrTestEntry {
                    constraints: Constraints { min_cpus: Some(4), ..Constraints::NONE },
                    ..good
                },
                "is outside of its bounds",
            ),
        ] {
            let error = bad.validate().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
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

//! Whether a test can be run as it is written. Most of it the macros refuse earlier; what they do not see is a
//! scheduler built as a constant, and an entry made by hand.

use ktstr_proto::{
    Topology,
    device::{MAX_NETWORKS, NetConfig},
    topology::TopologyError,
};

use super::{Constraints, Expect, KtstrTestEntry, Shape, cell_parent};
use crate::Scheduler;

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
    /// A second run is expected that there never is.
    #[error("`expect_auto_repro` cannot hold: {why}")]
    ExpectAutoRepro {
        /// Why there is none.
        why: &'static str,
    },
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
    /// More networks than a machine can have.
    #[error("{count} networks are more than the {MAX_NETWORKS} a machine can have")]
    Networks {
        /// How many.
        count: usize,
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
    /// The machine cannot be built, of itself or with the CPUs that may be.
    #[error("the test asks for a machine that cannot be built: {0}")]
    Shape(TopologyError),
    /// The machine is outside of the bounds of the test or its scheduler.
    #[error("the test's own machine {shape} has {what}: change `llcs`, `cores` and so on, or the bound")]
    Outside {
        /// The machine.
        shape: Topology,
        /// What of it is outside of which bound.
        what: String,
    },
    /// Something that only a test with a scheduler can ask for.
    #[error("`{which}` needs `scheduler`: {why}")]
    WithoutScheduler {
        /// The attribute.
        which: &'static str,
        /// What the scheduler is for.
        why: &'static str,
    },
    /// The pattern for the scheduler's error is none, or finds whatever there is.
    #[error("`expect_scx_bpf_error_matches = \"{pattern}\"` {why}: write what the error must have in it")]
    Pattern {
        /// The pattern.
        pattern: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The scheduler is declared in a way that cannot work.
    #[error("scheduler `{scheduler}` {why}")]
    Scheduler {
        /// The scheduler.
        scheduler: &'static str,
        /// What is wrong, and what to write instead.
        why: String,
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

/// Why a pattern cannot tell one error from another.
fn pattern_objection(pattern: &str) -> Option<String> {
    match regex_lite::Regex::new(pattern) {
        Err(error) => Some(format!("is no regular expression: {error}")),
        Ok(regex) => regex.is_match("").then(|| "matches everything, even nothing at all".to_owned()),
    }
}

impl KtstrTestEntry {
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
        for (which, given, why) in [
            ("staged_schedulers", !self.staged_schedulers.is_empty(), "they take over from it"),
            ("extra_sched_args", !self.extra_sched_args.is_empty(), "it takes them"),
            ("watchdog_timeout_s", self.watchdog_timeout_s.is_some(), "it is what is watched"),
        ] {
            let orphan = given && self.scheduler.is_none() && !self.host_only;
            refuse_if(orphan, Invalid::WithoutScheduler { which, why })?;
        }
        for (which, given) in [
            ("bpf_map_write", !self.bpf_map_write.is_empty()),
            ("watch_bpf_maps", !self.watch_bpf_maps.is_empty()),
        ] {
            refuse_if(given && self.scheduler.is_none(), Invalid::MapsOfNobody { which })?;
        }
        refuse_if(self.cleanup_budget_ms == Some(0), Invalid::CleanupBudget)?;
        let Expect { err, error_contains, error_matches, survives_storm, auto_repro } = self.expect;
        for (which, given) in [
            ("expect_scx_bpf_error_contains", error_contains.is_some()),
            ("expect_scx_bpf_error_matches", error_matches.is_some()),
        ] {
            refuse_if(given && !err, Invalid::MatcherWithoutError { which })?;
        }
        if let Some((pattern, why)) =
            error_matches.and_then(|pattern| Some((pattern, pattern_objection(pattern)?)))
        {
            return Err(Invalid::Pattern { pattern, why });
        }
        refuse_if(survives_storm && (err || self.scheduler.is_none()), Invalid::Storm)?;
        if let Some(why) = self.never_looked_into().filter(|_| auto_repro && !self.host_only) {
            return Err(Invalid::ExpectAutoRepro { why });
        }
        if let Some(what) = self.of_a_machine().filter(|_| self.host_only) {
            return Err(Invalid::HostOnly { what });
        }
        check_snapshots(self.num_snapshots, self.duration_s)?;
        if let Some(reason) = self.disk.and_then(|disk| disk.objection()) {
            return Err(Invalid::Device { device: "disk", reason });
        }
        let count = self.networks.len();
        refuse_if(count > MAX_NETWORKS, Invalid::Networks { count })?;
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
            refuse_if(!cell_parent::below_the_root(path), Invalid::CgroupPath { path })?;
        }
        if let Some((low, min, high, max)) = self.bounds().contradiction() {
            return Err(Invalid::Bounds { low, min, high, max });
        }
        let shape = self.topology().map_err(Invalid::Shape)?;
        shape.possible_cpus(self.absent_llcs).map_err(Invalid::Shape)?;
        match self.bounds().objection(&shape) {
            Some(what) => Err(Invalid::Outside { shape, what }),
            None => Ok(()),
        }
    }

    /// Why there is no second run of it, or none that could be expected.
    fn never_looked_into(&self) -> Option<&'static str> {
        let reasons = [
            (self.scheduler.is_none(), "it needs `scheduler`: there must be a scheduler that can crash"),
            (
                self.scheduler.is_some_and(Scheduler::is_builtin),
                "what is the kernel's own has no program that could crash",
            ),
            (!self.auto_repro, "`auto_repro = false` forbids a second run: remove it"),
            (self.expect.err, "with `expect_err` there is no second run: keep one of them"),
            (
                self.expect.survives_storm,
                "with `survives_storm` the scheduler must not crash: keep one of them",
            ),
            (self.seeds.is_some(), "of several seeds none is looked into: remove `seeds`"),
        ];
        reasons.into_iter().find_map(|(is, why)| is.then_some(why))
    }

    /// Something it asks for that only a machine has.
    fn of_a_machine(&self) -> Option<&'static str> {
        let wanted = [
            (self.scheduler.is_some() || !self.staged_schedulers.is_empty(), "a scheduler"),
            (self.post_vm.is_some() || self.post_vm_unconditional.is_some(), "a look at its end"),
            (self.expect.err, "a scheduler's failure"),
            (self.expect.auto_repro, "a second run"),
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
        for scheduler in self.scheduler.iter().chain(self.staged_schedulers) {
            if let Some(why) = scheduler.objection() {
                return Err(Invalid::Scheduler { scheduler: scheduler.name, why });
            }
        }
        if let Some(under_test) = self.scheduler
            && let Some(why) = cell_parent::objection(self.extra_sched_args, under_test.cgroup_parent)
        {
            return Err(Invalid::Scheduler { scheduler: under_test.name, why });
        }
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
}

#[cfg(test)]
mod tests {
    use ktstr_guest::scenario::Payload;
    use ktstr_proto::{device::DiskConfig, map_watch::Aggregate, verdict::Assert};

    use super::*;
    use crate::host::bpf_map::{BpfMapWrite, WatchBpfMap};

    static SCHEDULER: Scheduler = Scheduler::named("s").binary_discover("scx_s").topology(1, 2, 4, 1);

    #[test]
    fn what_cannot_be_run_as_written_is_refused() {
        static LAYERED: Scheduler =
            Scheduler::named("l").binary_discover("scx_l").config_file_def("--config {file}", "/c.json");
        const A: Payload = Payload::binary("a", "a");
        static STAGED: &[&Scheduler] = &[&SCHEDULER];
        static BOUNDED: Scheduler = Scheduler::named("b").binary_discover("scx_b").constraints(Constraints {
            requires_smt: Some(true),
            max_llcs: Some(3),
            ..Constraints::NONE
        });
        static KERNELS_OWN: Scheduler = Scheduler::named("own").kernel_builtin(&["a"], &["b"]);
        static CELLS: Scheduler = Scheduler::named("c").binary_discover("scx_c").cgroup_parent("/cells");
        static UNFIT: Scheduler = Scheduler::named("u");
        static STAGED_CONFIGURED: &[&Scheduler] = &[&LAYERED];
        static STAGED_OWN: &[&Scheduler] = &[&KERNELS_OWN];
        static STAGED_UNFIT: &[&Scheduler] = &[&UNFIT];
        static WRITES: &[BpfMapWrite] = &[BpfMapWrite::new(".bss", "n", 1)];
        static WATCHES: &[WatchBpfMap] = &[WatchBpfMap::new(".bss", "n", Aggregate::Scalar, "m")];
        const DISK: DiskConfig = DiskConfig::new();
        const NO_DISK: DiskConfig = DiskConfig::new().capacity_mib(0);
        static NETS: &[NetConfig] = &[NetConfig::new()];
        static NO_NETS: &[NetConfig] = &[NetConfig { queue_pairs: 0, ..NetConfig::new() }];
        static FIVE_NETS: &[NetConfig] = &[NetConfig::new(); 5];
        let good = KtstrTestEntry { name: "t", ..KtstrTestEntry::DEFAULT };
        assert_eq!(good.validate(), Ok(()));
        let expect = |expect| KtstrTestEntry { expect, ..good };
        let looked_into = Expect { auto_repro: true, ..Expect::default() };
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
            (expect(looked_into), "`expect_auto_repro` cannot hold: it needs `scheduler`"),
            (KtstrTestEntry { host_only: true, ..expect(looked_into) }, "a second run cannot be had there"),
            (
                KtstrTestEntry { scheduler: Some(&SCHEDULER), auto_repro: false, ..expect(looked_into) },
                "`auto_repro = false` forbids a second run: remove it",
            ),
            (
                KtstrTestEntry { scheduler: Some(&KERNELS_OWN), ..expect(looked_into) },
                "the kernel's own has no program that could crash",
            ),
            (
                KtstrTestEntry { scheduler: Some(&SCHEDULER), seeds: Some(2), ..expect(looked_into) },
                "of several seeds none is looked into: remove `seeds`",
            ),
            (
                KtstrTestEntry { scheduler: Some(&SCHEDULER), ..expect(Expect { err: true, ..looked_into }) },
                "with `expect_err` there is no second run: keep one of them",
            ),
            (
                KtstrTestEntry {
                    scheduler: Some(&SCHEDULER),
                    ..expect(Expect { survives_storm: true, ..looked_into })
                },
                "with `survives_storm` the scheduler must not crash",
            ),
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
                "has 2 CPUs, below `min_cpus = 4`: change `llcs`, `cores`",
            ),
            (
                KtstrTestEntry { scheduler: Some(&BOUNDED), ..good },
                "machine 1n1l2c1t has one thread per core, where `requires_smt` wants more",
            ),
            (
                KtstrTestEntry {
                    scheduler: Some(&BOUNDED),
                    shape: Shape { threads: Some(2), llcs: Some(4), ..Shape::default() },
                    ..good
                },
                "machine 1n4l2c2t has 4 LLCs, above `max_llcs = 3`",
            ),
            (
                KtstrTestEntry {
                    scheduler: Some(&BOUNDED),
                    constraints: Constraints { min_llcs: Some(8), ..Constraints::NONE },
                    ..good
                },
                "`min_llcs = 8` and `max_llcs = 3`, of the test or its scheduler, leave no machine",
            ),
            (
                KtstrTestEntry {
                    shape: Shape { llcs: Some(100), cores: Some(100), ..Shape::default() },
                    ..good
                },
                "cannot be built: topology 1n100l100c1t has 10000 CPUs, the limit is 512",
            ),
            (
                KtstrTestEntry { shape: Shape { numa_nodes: Some(2), ..Shape::default() }, ..good },
                "cannot be built: topology 2n1l2c1t: 1 LLCs cannot be divided evenly",
            ),
            (
                KtstrTestEntry { absent_llcs: 256, ..good },
                "topology 1n1l2c1t with 256 absent LLCs has 514 possible CPUs, the limit is 512",
            ),
            (KtstrTestEntry { cpu_budget: Some(2), ..good }, "`cpu_budget = 2` needs `no_perf_mode`"),
            (
                KtstrTestEntry { cpu_budget: Some(0), no_perf_mode: true, ..good },
                "`cpu_budget = 0` needs `no_perf_mode`, and at least one CPU",
            ),
            (KtstrTestEntry { bpf_map_write: WRITES, ..good }, "`bpf_map_write` needs a scheduler"),
            (KtstrTestEntry { watch_bpf_maps: WATCHES, ..good }, "`watch_bpf_maps` needs a scheduler"),
            (KtstrTestEntry { cleanup_budget_ms: Some(0), ..good }, "leaves no time to put the run away"),
            (KtstrTestEntry { disk: Some(NO_DISK), ..good }, "the test's disk cannot be made: "),
            (KtstrTestEntry { networks: NO_NETS, ..good }, "the test's network cannot be made: "),
            (
                KtstrTestEntry { networks: FIVE_NETS, ..good },
                "5 networks are more than the 4 a machine can have",
            ),
            (KtstrTestEntry { host_only: true, disk: Some(DISK), ..good }, "a disk cannot be had there"),
            (KtstrTestEntry { host_only: true, networks: NETS, ..good }, "networks cannot be had there"),
            (
                KtstrTestEntry { scheduler: Some(&KERNELS_OWN), extra_sched_args: &["-v"], ..good },
                "scheduler `own` is the kernel's own: it has no program that `extra_sched_args` could go to",
            ),
            (
                KtstrTestEntry { scheduler: Some(&SCHEDULER), staged_schedulers: STAGED_OWN, ..good },
                "scheduler `own` is the kernel's own: it has no program that could take over",
            ),
            (
                KtstrTestEntry { scheduler: Some(&SCHEDULER), staged_schedulers: STAGED, ..good },
                "scheduler `s` is given twice",
            ),
            (
                KtstrTestEntry { scheduler: Some(&SCHEDULER), staged_schedulers: STAGED_CONFIGURED, ..good },
                "staged scheduler `l` takes its configuration from a test",
            ),
            (
                KtstrTestEntry { staged_schedulers: STAGED, ..good },
                "`staged_schedulers` needs `scheduler`: they take over from it",
            ),
            (
                KtstrTestEntry { extra_sched_args: &["-v"], ..good },
                "`extra_sched_args` needs `scheduler`: it takes them",
            ),
            (
                KtstrTestEntry { watchdog_timeout_s: Some(9), ..good },
                "`watchdog_timeout_s` needs `scheduler`: it is what is watched",
            ),
            (
                expect(Expect { err: true, error_matches: Some("("), ..Expect::default() }),
                "`expect_scx_bpf_error_matches = \"(\"` is no regular expression: ",
            ),
            (
                expect(Expect { err: true, error_matches: Some("a*"), ..Expect::default() }),
                "matches everything, even nothing at all: write what the error must have in it",
            ),
            (KtstrTestEntry { scheduler: Some(&UNFIT), ..good }, "scheduler `u` has no executable"),
            (
                KtstrTestEntry {
                    scheduler: Some(&CELLS),
                    extra_sched_args: &["--cell-parent-cgroup=/others"],
                    ..good
                },
                "scheduler `c` is given `--cell-parent-cgroup /others`, and its `cgroup_parent` is `/cells`",
            ),
            (
                KtstrTestEntry { scheduler: Some(&SCHEDULER), staged_schedulers: STAGED_UNFIT, ..good },
                "scheduler `u` has no executable",
            ),
        ] {
            let error = bad.validate().unwrap_err().to_string();
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
        let smt = Shape { threads: Some(2), ..Shape::default() };
        let within = KtstrTestEntry { scheduler: Some(&BOUNDED), shape: smt, ..good };
        assert_eq!(within.validate(), Ok(()));
        let otherwise = Constraints { requires_smt: Some(false), ..Constraints::NONE };
        let lifted = KtstrTestEntry { scheduler: Some(&BOUNDED), constraints: otherwise, ..good };
        assert_eq!(lifted.validate(), Ok(()), "the test's bounds go before its scheduler's");
    }
}

//! From a registered test and the environment to the request for a run.
//!
//! Read from the environment: `KTSTR_KERNEL` (or `KTSTR_TEST_KERNEL`, which wins), `KTSTR_ACCEL`,
//! `KTSTR_SEED`, `KTSTR_VARY` (1: the seed also decides speed and boot, as it does among many), `KTSTR_SCHEDULER`, `KTSTR_OBSERVE` (0: no monitor), `KTSTR_SNAPSHOTS` (captures per scenario),
//! `KTSTR_COLD` (1: never begin from a snapshot of a ready machine), `KTSTR_NO_PERF_MODE` (1: no test isolates
//! its machine), `KTSTR_CPU_CAP` (host CPUs of each machine),
//! `KTSTR_JAIL` (reduced: without namespaces), `KTSTR_AUTO_REPRO` (0: no crash is looked into by a second run),
//! `KTSTR_RUNS_ROOT` (or `KTSTR_SIDECAR_DIR`), `RUST_LOG` for the guest, `KTSTR_GUEST_ENV` (`A=b,C=d`: more
//! variables for the guest).

use std::{
    env,
    path::{Path, PathBuf},
};

use ktstr_proto::{
    Accel, Topology,
    run::{
        Expectation, Jail, Job, KernelBuiltin, Performance, PlacedFile, RunSpec, SchedulerJob,
        SchedulerSource, TestJob, UnknownAccel, UnknownJail,
    },
};

use super::{Expect, Invalid, KtstrTestEntry, bpf_map::WatchBpfMap};
use crate::{
    Scheduler,
    executables::{NoScheduler, Part, find_scheduler},
};

/// Why a run cannot even be asked for.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// `KTSTR_JAIL` names no jail.
    #[error("KTSTR_JAIL")]
    Jail(#[source] UnknownJail),
    /// The accelerator variable is wrong.
    #[error("KTSTR_ACCEL is wrong")]
    Accel(#[source] UnknownAccel),
    /// The seed variable is wrong.
    #[error("KTSTR_SEED=`{value}` is no whole number below 2^64")]
    Seed {
        /// Value of the variable.
        value: String,
    },
    /// The captures variable is wrong.
    #[error("KTSTR_SNAPSHOTS=`{value}` cannot be done: {reason}")]
    Snapshots {
        /// Value of the variable.
        value: String,
        /// Why.
        reason: String,
    },
    /// The CPU cap is wrong.
    #[error("KTSTR_CPU_CAP=`{value}` is no number of host CPUs")]
    CpuCap {
        /// Value of the variable.
        value: String,
    },
    /// The test cannot be run as it is written.
    #[error("test `{test}` cannot be run as it is written")]
    Invalid {
        /// The test.
        test: String,
        /// Why.
        #[source]
        source: Invalid,
    },
    /// The scheduler is nowhere.
    #[error("scheduler `{scheduler}` cannot be started")]
    Scheduler {
        /// Its name.
        scheduler: &'static str,
        /// Where it was looked for.
        #[source]
        source: NoScheduler,
    },
    /// This process does not know its own executable.
    #[error("cannot find this test's own executable")]
    OwnExecutable(#[source] std::io::Error),
}

/// In what a run differs from the test as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variant {
    /// The name under which the test harness lists it.
    pub name: String,
    /// Another machine.
    pub topology: Option<Topology>,
    /// A kernel of its own, as the user named it.
    pub kernel: Option<String>,
}

impl Variant {
    /// No difference.
    pub fn of(entry: &KtstrTestEntry) -> Self {
        Self { name: entry.full_name(), topology: None, kernel: None }
    }

    /// Its name where there is one kernel, which is then named by `KTSTR_KERNEL`.
    pub(super) fn base_name(&self, entry: &KtstrTestEntry) -> String {
        match (&self.topology, &self.kernel, self.name.rsplit_once('/')) {
            (None, ..) => entry.full_name(),
            (Some(_), Some(_), Some((base, _))) => base.to_owned(),
            _ => self.name.clone(),
        }
    }
}

/// The request for a run of `entry`.
pub fn spec_of(entry: &KtstrTestEntry) -> Result<RunSpec, SpecError> {
    spec_of_variant(entry, &Variant::of(entry))
}

/// The request for a run of `entry` with what `variant` changes.
pub fn spec_of_variant(entry: &KtstrTestEntry, variant: &Variant) -> Result<RunSpec, SpecError> {
    let test = entry.full_name();
    let invalid = |source| SpecError::Invalid { test: test.clone(), source };
    entry.validate().map_err(invalid)?;
    let topology = match variant.topology {
        Some(topology) => topology,
        None => entry.topology().map_err(Invalid::Shape).map_err(invalid)?,
    };
    let binary = env::current_exe().map_err(SpecError::OwnExecutable)?;
    let accel: Accel =
        set("KTSTR_ACCEL").map_or(Ok(Accel::Auto), |text| text.parse()).map_err(SpecError::Accel)?;
    let seed = seed(&variant.name)?;
    let mut files = Vec::new();
    let mut include = includes(entry);
    let scheduler = match entry.scheduler {
        None => None,
        Some(scheduler) => Some(scheduler_job(scheduler, entry, &mut files, &mut include)?),
    };
    let staged = entry
        .staged_schedulers
        .iter()
        .map(|scheduler| plain_job(scheduler, Part::Staged, &mut include))
        .collect::<Result<_, _>>()?;
    let replay = super::replay::replay_of(entry, variant, seed);
    Ok(RunSpec {
        name: variant.name.clone(),
        runs_root: runs_root(&binary),
        job: Job::Test(TestJob {
            binary,
            test,
            duration_ms: entry.duration_s.saturating_mul(1000),
            scheduler,
            include,
            assert: entry.overrides(),
            staged,
            files,
            expect: expectation(entry),
            snapshots: entry.num_snapshots,
        }),
        kernel: kernel(variant),
        accel,
        topology,
        numa: Default::default(),
        absent_llcs: entry.absent_llcs,
        memory_mb: entry.memory_mb,
        seed,
        deadline_ms: None,
        replay,
        warm: set("KTSTR_COLD").as_deref() != Some("1"),
        kernel_args: kernel_args(entry),
        vary: vary(),
        observe: set("KTSTR_OBSERVE").as_deref() != Some("0"),
        watchdog_ms: entry.watchdog_timeout_s.map(|seconds| u64::from(seconds) * 1000),
        snapshots: snapshots(entry, set("KTSTR_SNAPSHOTS"))?,
        env: guest_env(),
        disk: entry.disk,
        networks: entry.networks.to_vec(),
        watches: entry.watch_bpf_maps.iter().map(WatchBpfMap::wanted).collect(),
        auto_repro: auto_repro(entry),
        probing: None,
        jail: jail().map_err(SpecError::Jail)?,
        performance: performance(entry),
        cpu_budget: cpu_budget(entry)?,
        cleanup_budget_ms: entry.cleanup_budget_ms.map(u64::from),
    })
}

/// Whether a crash of the scheduler is looked into by a second run.
fn auto_repro(entry: &KtstrTestEntry) -> bool {
    let wanted = entry.auto_repro && entry.scheduler.is_some() && !entry.expect.err;
    wanted && set("KTSTR_AUTO_REPRO").as_deref() != Some("0")
}

pub(super) fn vary() -> bool {
    set("KTSTR_VARY").as_deref() == Some("1")
}

/// The kernel as it is named, if it is.
pub(super) fn kernel(variant: &Variant) -> Option<String> {
    // An empty one is a mistake that whoever resolves it tells of, not a wish for another.
    variant.kernel.clone().or_else(|| env::var("KTSTR_TEST_KERNEL").ok()).or_else(|| set("KTSTR_KERNEL"))
}

/// The seed that is given, else the test's own.
pub(super) fn seed(test: &str) -> Result<u64, SpecError> {
    match set("KTSTR_SEED") {
        Some(value) => value.parse().map_err(|_| SpecError::Seed { value }),
        None => Ok(seed_of(test)),
    }
}

/// How many captures are asked for.
fn snapshots(entry: &KtstrTestEntry, given: Option<String>) -> Result<u32, SpecError> {
    let Some(value) = given else { return Ok(entry.num_snapshots) };
    let wrong = |reason| SpecError::Snapshots { value: value.clone(), reason };
    let count = value.parse().map_err(|_| wrong("it is no whole number".to_owned()))?;
    super::validate::check_snapshots(count, entry.duration_s).map_err(|error| wrong(error.to_string()))?;
    Ok(count)
}

/// A scheduler with nothing of the test's. Its arguments: its configuration file, its own.
fn plain_job(
    scheduler: &Scheduler,
    part: Part,
    include: &mut Vec<PathBuf>,
) -> Result<SchedulerJob, SpecError> {
    let source = if scheduler.is_builtin() {
        let texts = |commands: &[&str]| commands.iter().map(|command| (*command).to_owned()).collect();
        SchedulerSource::Builtin(KernelBuiltin {
            enable: texts(scheduler.kernel_builtin_enable),
            disable: texts(scheduler.kernel_builtin_disable),
        })
    } else {
        let found = find_scheduler(scheduler, part);
        SchedulerSource::Program(
            found.map_err(|source| SpecError::Scheduler { scheduler: scheduler.name, source })?,
        )
    };
    let mut args = Vec::new();
    if let Some(host) = scheduler.config_file {
        let path = Path::new(scheduler.manifest_dir).join(host);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        args.extend(["--config".into(), format!("/include-files/{name}")]);
        include.push(path);
    }
    args.extend(scheduler.sched_args.iter().map(|arg| arg.to_string()));
    let cgroup_parent = scheduler.cgroup_parent.map(Into::into);
    let kernels = scheduler.kernels.iter().map(|text| text.to_string()).collect();
    Ok(SchedulerJob { name: scheduler.name.into(), source, args, cgroup_parent, kernels })
}

/// The scheduler under test. Its arguments, in order: its configuration, its own, the test's.
fn scheduler_job(
    scheduler: &Scheduler,
    entry: &KtstrTestEntry,
    files: &mut Vec<PlacedFile>,
    include: &mut Vec<PathBuf>,
) -> Result<SchedulerJob, SpecError> {
    let mut job = plain_job(scheduler, Part::Tested, include)?;
    let mut args = Vec::new();
    if let (Some(def), Some(content)) = (scheduler.config_file_def, entry.config) {
        args.extend(def.template.split_whitespace().map(|word| word.replace("{file}", def.guest_path)));
        files.push(PlacedFile { guest_path: def.guest_path.into(), content: content.into() });
    }
    args.append(&mut job.args);
    args.extend(entry.extra_sched_args.iter().map(|arg| arg.to_string()));
    Ok(SchedulerJob { args, ..job })
}

/// Files for the guest: programs, what they need, what the test names. A bare name is a file of the
/// working directory, else it is looked up in `PATH`, which the orchestrator does.
fn includes(entry: &KtstrTestEntry) -> Vec<PathBuf> {
    let of_programs =
        entry.payloads().flat_map(|p| std::iter::once(p.binary).chain(p.include_files.iter().copied()));
    let mut include: Vec<PathBuf> = Vec::new();
    for name in of_programs.chain(entry.extra_include_files.iter().copied()) {
        let path = PathBuf::from(name);
        let here = name.contains('/') || path.exists();
        let path = if here { std::path::absolute(&path).unwrap_or(path) } else { path };
        if !include.contains(&path) {
            include.push(path);
        }
    }
    include
}

fn kernel_args(entry: &KtstrTestEntry) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    if let Some(scheduler) = entry.scheduler {
        words.extend(scheduler.kargs.iter().map(|word| word.to_string()));
        let sysctls = scheduler.sysctls.iter();
        words.extend(sysctls.map(|sysctl| format!("sysctl.{}={}", sysctl.name, sysctl.value)));
    }
    if !entry.kaslr {
        words.push("nokaslr".into());
    }
    words
}

/// What the host is to do for the machine; on a host that cannot, `KTSTR_NO_PERF_MODE` takes the wish back.
fn performance(entry: &KtstrTestEntry) -> Performance {
    match (entry.performance_mode, entry.no_perf_mode || set("KTSTR_NO_PERF_MODE").is_some()) {
        (_, true) => Performance::Unassisted,
        (true, false) => Performance::Isolated,
        (false, false) => Performance::Usual,
    }
}

fn jail() -> Result<Jail, UnknownJail> {
    set("KTSTR_JAIL").map_or(Ok(Jail::Full), |value| value.parse())
}

/// The environment knows the host better than the test does.
fn cpu_budget(entry: &KtstrTestEntry) -> Result<Option<u32>, SpecError> {
    match set("KTSTR_CPU_CAP") {
        Some(value) => value.parse().map(Some).map_err(|_| SpecError::CpuCap { value }),
        None => Ok(entry.cpu_budget),
    }
}

fn expectation(entry: &KtstrTestEntry) -> Expectation {
    // The second run comes after what is judged there; `looked_into` looks at it.
    let Expect { err, error_contains, error_matches, survives_storm, auto_repro: _ } = entry.expect;
    let (error_contains, error_matches) = (error_contains.map(Into::into), error_matches.map(Into::into));
    Expectation { err, error_contains, error_matches, survives_storm }
}

/// Variables for the guest's processes.
fn guest_env() -> Vec<(String, String)> {
    let log = set("RUST_LOG").map(|value| ("RUST_LOG".to_owned(), value));
    let more = set("KTSTR_GUEST_ENV").unwrap_or_default();
    let pairs = more.split(',').filter_map(|pair| pair.split_once('='));
    log.into_iter().chain(pairs.map(|(name, value)| (name.to_owned(), value.to_owned()))).collect()
}

pub(super) fn set(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|value| !value.is_empty())
}

/// Every test has its own seed, the same each time (FNV-1a of its name).
pub(super) fn seed_of(test: &str) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    test.bytes().fold(0xcbf2_9ce4_8422_2325, mix) >> 32
}

/// Where this executable's runs are.
pub(super) fn own_runs_root() -> PathBuf {
    runs_root(&env::current_exe().unwrap_or_default())
}

/// Where run directories are made: as told, else `ktstr/runs` in the target directory that the
/// executable lies in, else below the working directory.
fn runs_root(exe: &Path) -> PathBuf {
    let told = set("KTSTR_RUNS_ROOT").or_else(|| set("KTSTR_SIDECAR_DIR")).map(PathBuf::from);
    let root =
        told.unwrap_or_else(|| target_of(exe).unwrap_or_else(|| PathBuf::from("target")).join("ktstr/runs"));
    std::path::absolute(&root).unwrap_or(root)
}

/// Where is kept what outlives a run: beside the runs, and the same wherever those are told to go.
pub(crate) fn state_dir() -> PathBuf {
    let exe = env::current_exe().unwrap_or_default();
    target_of(&exe).map_or_else(|| runs_root(&exe), |target| target.join("ktstr"))
}

/// The target directory: cargo marks it with a `CACHEDIR.TAG`.
pub(crate) fn target_of(exe: &Path) -> Option<PathBuf> {
    exe.ancestors().skip(1).find(|directory| directory.join("CACHEDIR.TAG").is_file()).map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use ktstr_proto::verdict::Assert;

    use super::*;
    use crate::{Sysctl, host::Shape};

    #[test]
    fn seeds_differ_between_tests_and_not_between_runs() {
        assert_eq!(seed_of("demo"), seed_of("demo"));
        assert_ne!(seed_of("demo"), seed_of("demo2"));
    }

    static CONFIGURED: Scheduler = Scheduler::named("configured")
        .binary_path("/bin/sh")
        .sched_args(&["--own", "1"])
        .kargs(&["quiet", "mitigations=off"])
        .sysctls(&[Sysctl::new("kernel.sched_schedstats", "1"), Sysctl::new("vm.swappiness", "0")])
        .cgroup_parent("/a.slice")
        .kernels(&["6.18", "7.0..=7.2"])
        .package("p", "/p")
        .config_file_def("--verbose --config {file} --reload={file}", "/include-files/x.json");
    static WITH_FILE: Scheduler = Scheduler::named("with-file")
        .binary_path("/bin/sh")
        .sched_args(&["--own"])
        .package("p", "/p")
        .config_file("etc/own.toml");
    static PLAIN: Scheduler = Scheduler::named("plain").binary_path("/bin/sh");
    static IN_KERNEL: Scheduler = Scheduler::named("in-kernel").kernel_builtin(&["on", "more"], &["off"]);

    /// What a guest is told of a test's scheduler.
    struct Told {
        args: &'static [&'static str],
        /// Path in the guest and content.
        file: Option<(&'static str, &'static str)>,
        include: &'static [&'static str],
        kernel_args: &'static [&'static str],
    }

    #[test]
    fn a_test_s_words_and_its_scheduler_s_are_told_in_order() {
        const KERNEL_ARGS: &[&str] = &[
            "quiet",
            "mitigations=off",
            "sysctl.kernel.sched_schedstats=1",
            "sysctl.vm.swappiness=0",
            "nokaslr",
        ];
        const NOTHING: Told = Told { args: &[], file: None, include: &[], kernel_args: &[] };
        let test = KtstrTestEntry { name: "t", module_path: "krate", ..KtstrTestEntry::DEFAULT };
        let table = [
            (test, NOTHING),
            (KtstrTestEntry { kaslr: false, ..test }, Told { kernel_args: &["nokaslr"], ..NOTHING }),
            (KtstrTestEntry { scheduler: Some(&PLAIN), ..test }, NOTHING),
            (
                KtstrTestEntry { scheduler: Some(&PLAIN), extra_sched_args: &["-v", "--slice=5"], ..test },
                Told { args: &["-v", "--slice=5"], ..NOTHING },
            ),
            (
                KtstrTestEntry { scheduler: Some(&WITH_FILE), extra_sched_args: &["-v"], ..test },
                Told {
                    args: &["--config", "/include-files/own.toml", "--own", "-v"],
                    include: &["/p/etc/own.toml"],
                    ..NOTHING
                },
            ),
            (
                KtstrTestEntry {
                    scheduler: Some(&CONFIGURED),
                    config: Some("{\"a\": 1}"),
                    extra_sched_args: &["--own", "2"],
                    extra_include_files: &["/etc/hostname", "no-such-program"],
                    kaslr: false,
                    ..test
                },
                Told {
                    args: &[
                        "--verbose",
                        "--config",
                        "/include-files/x.json",
                        "--reload=/include-files/x.json",
                        "--own",
                        "1",
                        "--own",
                        "2",
                    ],
                    file: Some(("/include-files/x.json", "{\"a\": 1}")),
                    include: &["/etc/hostname", "no-such-program"],
                    kernel_args: KERNEL_ARGS,
                },
            ),
        ];
        for (entry, told) in table {
            let spec = spec_of(&entry).unwrap();
            let Job::Test(job) = spec.job else { panic!("a test is a job of its own") };
            let name = entry.scheduler.map(|scheduler| scheduler.name);
            assert_eq!(job.scheduler.as_ref().map(|scheduler| &*scheduler.name), name);
            assert_eq!(job.scheduler.map(|scheduler| scheduler.args).unwrap_or_default(), told.args);
            let files =
                job.files.iter().map(|file| (&*file.guest_path, std::str::from_utf8(&file.content).unwrap()));
            assert_eq!(files.collect::<Vec<_>>(), told.file.into_iter().collect::<Vec<_>>());
            assert_eq!(job.include, told.include.iter().map(PathBuf::from).collect::<Vec<_>>());
            assert_eq!(spec.kernel_args, told.kernel_args);
        }
    }

    #[test]
    fn a_test_s_numbers_become_those_of_the_run() {
        static STAGED: &[&Scheduler] = &[&PLAIN, &WITH_FILE];
        let entry = KtstrTestEntry {
            name: "t",
            module_path: "krate::m",
            shape: Shape { llcs: Some(4), numa_nodes: Some(2), ..Shape::default() },
            absent_llcs: 3,
            memory_mb: Some(777),
            duration_s: 9,
            scheduler: Some(&CONFIGURED),
            config: Some("c"),
            staged_schedulers: STAGED,
            assert: Assert::NO_OVERRIDES.max_gap_ms(70),
            expect: Expect {
                err: true,
                error_contains: Some("a"),
                error_matches: Some("b"),
                survives_storm: false,
                auto_repro: false,
            },
            no_perf_mode: true,
            cpu_budget: Some(5),
            cleanup_budget_ms: Some(400),
            watchdog_timeout_s: Some(31),
            num_snapshots: 6,
            ..KtstrTestEntry::DEFAULT
        };
        let spec = spec_of(&entry).unwrap();
        assert_eq!((&*spec.name, spec.topology.to_string().as_str()), ("m::t", "2n4l2c1t"));
        assert_eq!((spec.absent_llcs, spec.memory_mb, spec.snapshots), (3, Some(777), 6));
        assert_eq!((spec.cpu_budget, spec.cleanup_budget_ms), (Some(5), Some(400)));
        assert_eq!((spec.watchdog_ms, spec.performance), (Some(31_000), Performance::Unassisted));
        assert!(!spec.auto_repro, "a failure that is expected is not looked into");
        let Job::Test(job) = spec.job else { panic!("a test is a job of its own") };
        assert_eq!((&*job.test, job.duration_ms, job.assert.max_gap_ms), ("m::t", 9000, Some(70)));
        assert_eq!(job.expect.error_contains.as_deref(), Some("a"));
        assert_eq!(job.expect.error_matches.as_deref(), Some("b"));
        assert!(job.expect.err && !job.expect.survives_storm);
        let tested = job.scheduler.unwrap();
        assert_eq!(tested.cgroup_parent.as_deref(), Some("/a.slice"));
        assert_eq!(tested.kernels, ["6.18", "7.0..=7.2"]);
        assert_eq!(job.staged.iter().map(|staged| &*staged.name).collect::<Vec<_>>(), ["plain", "with-file"]);
        assert_eq!(job.staged[1].source, SchedulerSource::Program("/bin/sh".into()));
    }

    #[test]
    fn a_variant_changes_machine_and_kernel_and_nothing_else() {
        let entry = KtstrTestEntry {
            name: "t",
            module_path: "krate",
            scheduler: Some(&IN_KERNEL),
            ..KtstrTestEntry::DEFAULT
        };
        let variant = Variant {
            name: "gauntlet/t/4cpu-2llc-nosmt/kernel_7_2".into(),
            topology: Topology::new(1, 2, 2, 1).ok(),
            kernel: Some("debian-7.2".into()),
        };
        let (own, varied) = (spec_of(&entry).unwrap(), spec_of_variant(&entry, &variant).unwrap());
        assert_eq!(varied.name, variant.name);
        assert_eq!(varied.kernel.as_deref(), Some("debian-7.2"));
        assert_eq!(
            (own.topology.to_string(), varied.topology.to_string()),
            ("1n1l2c1t".into(), "1n2l2c1t".into())
        );
        assert_eq!(own.job, varied.job);
        let Job::Test(job) = own.job else { panic!("a test is a job of its own") };
        let texts = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let commands = KernelBuiltin { enable: texts(&["on", "more"]), disable: texts(&["off"]) };
        assert_eq!(job.scheduler.unwrap().source, SchedulerSource::Builtin(commands));
    }

    #[test]
    fn a_scheduler_that_stands_by_has_its_configuration_too() {
        let staged = Scheduler::named("stands_by")
            .kernel_builtin(&["true"], &["true"])
            .config_file("conf/stands_by.json")
            .sched_args(&["--verbose"]);
        let staged = Scheduler { manifest_dir: "/src/stands_by", ..staged };
        let mut include = Vec::new();
        let job = plain_job(&staged, Part::Staged, &mut include).unwrap();
        assert_eq!(job.args, ["--config", "/include-files/stands_by.json", "--verbose"]);
        assert_eq!(include, [Path::new("/src/stands_by/conf/stands_by.json")]);
    }

    #[test]
    fn runs_lie_in_the_target_directory_of_the_executable() {
        let exe = env::current_exe().unwrap();
        let target = target_of(&exe).expect("cargo runs tests from a target directory");
        assert!(exe.starts_with(&target) && target.join("CACHEDIR.TAG").is_file());
        assert_eq!(target_of(Path::new("/nonexistent/debug/deps/x")), None);
    }
}

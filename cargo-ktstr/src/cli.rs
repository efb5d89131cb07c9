//! Every subcommand and option, in the order of the help.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use ktstr_proto::{
    Accel,
    device::DiskConfig,
    run::{Jail, Performance},
    topology::Shape,
};

/// Test harness for Linux process schedulers.
#[derive(Debug, Parser)]
#[command(name = "ktstr", version, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run tests through `cargo nextest run` and count the four verdicts
    Test(TestArgs),
    /// Fetch, list and remove cached kernels
    #[command(subcommand)]
    Kernel(KernelAction),
    /// Boot a virtual machine with a shell
    Shell(ShellArgs),
    /// Ask a live run or a core file: tasks, dsq, scx, cgroups, or a path like 'rq[*].nr_running'
    Query(MonitorArgs),
    /// Set a number in a BPF map of a live run: MAP PATH NUMBER --rw
    Write(MonitorArgs),
    /// Read everything of a live run's guest while it stands, with --vmcore all its memory
    Capture(MonitorArgs),
    /// Watch a live run in the terminal
    Attach(MonitorArgs),
    /// Print the JSON Schema of captures
    Schema(MonitorArgs),
    /// Show the host's CPUs, last-level caches and NUMA nodes
    Topo,
    /// List which runs hold which of the host's last-level caches
    Locks(LocksArgs),
    /// List the ready-made scenarios with the question each asks
    List(ListArgs),
    /// Run ready-made scenarios on this host, under whatever scheduler is active
    Run(RunArgs),
    /// Remove cgroups that earlier runs on this host left behind
    Cleanup(CleanupArgs),
    /// Show what a test is judged by, under each accelerator
    ShowThresholds(ShowThresholdsArgs),
    /// Print a completion script for a shell
    Completions(CompletionArgs),
}

/// `list …`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only scenarios whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub filter: String,
    /// Only scenarios that make sense with a scheduler of these features, as for `run`
    #[arg(long, value_name = "A,B")]
    pub flags: Option<String>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `run …`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Only scenarios whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub filter: String,
    /// Features the active scheduler was started with (llc, borrow, steal, rebal, reject-pin, no-ctrl):
    /// only scenarios that press on no others; `default` for none of them. Configures nothing
    #[arg(long, value_name = "A,B")]
    pub flags: Option<String>,
    /// Length of each scenario, seconds
    #[arg(long, value_name = "SECS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub duration: u64,
    /// What workers do instead where a scenario allows it, e.g. YieldHeavy
    #[arg(long, value_name = "NAME")]
    pub work_type: Option<String>,
    /// Workers of a cgroup that does not say how many
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub workers: u32,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Results as JSON
    #[arg(long)]
    pub json: bool,
}

/// `cleanup …`.
#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Clean what is in this cgroup instead, and leave it itself
    #[arg(long, value_name = "PATH")]
    pub parent_cgroup: Option<PathBuf>,
}

/// `show-thresholds …`.
#[derive(Debug, Args)]
pub struct ShowThresholdsArgs {
    /// Name of the test
    #[arg(value_name = "TEST")]
    pub test: String,
    /// Package it is in [default: all of the workspace]
    #[arg(short, long, value_name = "PKG")]
    pub package: Option<String>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `kernel …`.
#[derive(Debug, Subcommand)]
pub enum KernelAction {
    /// Fetch a distribution kernel, or import package or image files
    Pull {
        /// `debian`, `debian:SERIES` (newest match, e.g. debian:7.2), or files: *.deb, vmlinuz, vmlinux
        #[arg(value_name = "WHAT", default_value = "debian")]
        what: Vec<String>,
    },
    /// List cached kernels, newest first
    List {
        /// All recorded facts as JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove cached kernels
    Clean {
        /// Keep the N newest usable kernels
        #[arg(long, value_name = "N")]
        keep: Option<usize>,
        /// Remove damaged entries only
        #[arg(long, conflicts_with = "keep")]
        corrupt_only: bool,
        /// Do not ask; required when stdin is no terminal
        #[arg(long)]
        force: bool,
    },
}

/// The accelerator from an option, or `KTSTR_ACCEL`, or `auto`.
pub fn accel(option: Option<Accel>) -> anyhow::Result<Accel> {
    match (option, std::env::var("KTSTR_ACCEL")) {
        (Some(accel), _) => Ok(accel),
        (None, Ok(text)) if !text.is_empty() => text.parse().context("KTSTR_ACCEL"),
        _ => Ok(Accel::Auto),
    }
}

/// Whether a guest may begin from a snapshot of a machine that is like it, under `tcg`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct BeginArgs {
    /// Begin from a snapshot of a ready machine, or keep one when there is none; only under tcg
    /// [default: unless KTSTR_COLD=1]
    #[arg(long, conflicts_with = "cold")]
    pub warm: bool,
    /// Boot; begin from no snapshot and keep none
    #[arg(long)]
    pub cold: bool,
}

impl BeginArgs {
    /// With what the environment says where no option does.
    pub fn is_warm(self) -> bool {
        let refused = std::env::var("KTSTR_COLD").is_ok_and(|value| value == "1");
        self.warm || !(self.cold || refused)
    }
}

/// What of the host a machine gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Args)]
pub struct HostArgs {
    /// Ask nothing special of the host (pinning, large pages, real-time class), even where a test does; machines
    /// share 30 % of its CPUs [default: with KTSTR_NO_PERF_MODE=1]
    #[arg(long)]
    pub no_perf_mode: bool,
    /// Exactly so many host CPUs for a machine, from whole last-level caches [default: $KTSTR_CPU_CAP]
    #[arg(long, value_name = "N", requires = "no_perf_mode", value_parser = clap::value_parser!(u32).range(1..))]
    pub cpu_cap: Option<u32>,
    /// How the processes of a run are confined: full, or reduced (without namespaces) on hosts that forbid user
    /// namespaces; the report says so [default: $KTSTR_JAIL or full]
    #[arg(long, value_name = "JAIL")]
    pub jail: Option<Jail>,
}

impl HostArgs {
    /// With what the environment says where no option does.
    pub fn jail(self) -> anyhow::Result<Jail> {
        let said = std::env::var("KTSTR_JAIL").ok().filter(|value| !value.is_empty());
        Ok(match (self.jail, said) {
            (Some(jail), _) => jail,
            (None, Some(text)) => text.parse().context("KTSTR_JAIL")?,
            (None, None) => Jail::Full,
        })
    }

    /// With what the environment says where no option does.
    pub fn resolve(self, isolated: bool) -> anyhow::Result<(Performance, Option<u32>)> {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let cap = match (self.cpu_cap, set("KTSTR_CPU_CAP")) {
            (Some(cap), _) => Some(cap),
            (None, Some(text)) => Some(text.parse().context("KTSTR_CPU_CAP is no number of host CPUs")?),
            (None, None) => None,
        };
        if self.cpu_cap.is_some() && set("KTSTR_BYPASS_LLC_LOCKS").as_deref() == Some("1") {
            anyhow::bail!(
                "resource contract: --cpu-cap promises other runs that caches are shared fairly, and \
                 KTSTR_BYPASS_LLC_LOCKS=1 breaks the promise; give one of them"
            );
        }
        let unassisted = self.no_perf_mode || (!isolated && set("KTSTR_NO_PERF_MODE").is_some());
        Ok(match (isolated, unassisted) {
            (true, _) => (Performance::Isolated, None),
            (false, true) => (Performance::Unassisted, cap),
            (false, false) => (Performance::Usual, cap),
        })
    }
}

/// `locks …`.
#[derive(Debug, Args)]
pub struct LocksArgs {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `test …`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Path, version, series or key of a kernel; given more than once, every test runs on each
    /// [default: newest cached with sched_ext]
    #[arg(long, value_name = "ID")]
    pub kernel: Vec<String>,
    /// What runs the virtual CPUs: auto, kvm, tcg or det [default: $KTSTR_ACCEL or auto]
    #[arg(long)]
    pub accel: Option<Accel>,
    /// Seed of everything random
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Run each test with so many seeds and report each way to fail once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub seeds: Option<u32>,
    /// How guests come to be ready.
    #[command(flatten)]
    pub begin: BeginArgs,
    /// What of the host machines get.
    #[command(flatten)]
    pub host: HostArgs,
    /// Do not run a test again, with probes on the crash path, when its scheduler has crashed
    #[arg(long)]
    pub no_auto_repro: bool,
    /// Exit with an error when such verdicts occur
    #[arg(long, value_enum, value_name = "VERDICT")]
    pub deny: Vec<Deny>,
    /// Arguments for `cargo nextest run`
    #[arg(last = true, value_name = "NEXTEST ARGS")]
    pub nextest: Vec<std::ffi::OsString>,
}

/// Verdicts that can be made errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Deny {
    /// Tests that lacked something they need
    NotRun,
}

/// `query …`, `capture …`, `attach …`: handed on to `ktstr-monitor` as they are.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct MonitorArgs {
    /// `ktstr-monitor --help` tells
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    pub args: Vec<std::ffi::OsString>,
}

/// `shell …`.
#[derive(Debug, Args)]
pub struct ShellArgs {
    /// Path, version, series or key of a kernel [default: newest cached with sched_ext]
    #[arg(long, value_name = "ID")]
    pub kernel: Option<String>,
    /// NUMA nodes, last-level caches, cores per cache, threads per core; or the name of a preset.
    /// Nodes are described behind it: 2n4l2c1t/mem=512,1024/cxl=256/dist=10,20,30:20,10,30:30,30,10
    #[arg(long, value_name = "N,L,C,T", default_value = "1,1,1,1")]
    pub topology: Shape,
    /// Last-level caches more whose CPUs are possible but not there: nr_cpu_ids is larger than the CPUs
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub absent_llcs: u32,
    /// File or directory to have at /include-files/NAME; bare names are looked up in PATH
    #[arg(short, long, value_name = "PATH")]
    pub include_files: Vec<PathBuf>,
    /// Guest memory [default: estimated from what is packed]
    #[arg(long, alias = "memory-mib", value_name = "MB", value_parser = clap::value_parser!(u32).range(128..))]
    pub memory_mb: Option<u32>,
    /// A disk, /dev/vda: its MiB, then fs=raw|ext4|btrfs, iops=N, bytes=N (per second), ro, nomount.
    /// With a file system it is mounted on /mnt/disk0: 64,fs=ext4,iops=200
    #[arg(long, value_name = "SPEC")]
    pub disk: Option<DiskConfig>,
    /// A network interface with so many pairs of queues, whose frames come back to it; up to four of them
    #[arg(long, value_name = "PAIRS", value_parser = clap::value_parser!(u16).range(1..=8))]
    pub network: Vec<u16>,
    /// Show the kernel's console on stderr
    #[arg(long)]
    pub dmesg: bool,
    /// Run one command instead of a shell; its exit status becomes ours
    #[arg(long, value_name = "CMD")]
    pub exec: Option<String>,
    /// What runs the virtual CPUs: auto, kvm, tcg or det [default: $KTSTR_ACCEL or auto]
    #[arg(long)]
    pub accel: Option<Accel>,
    /// How guests come to be ready.
    #[command(flatten)]
    pub begin: BeginArgs,
    /// A machine with host CPUs and memory of its own; only with kvm, and NOT RUN where the host refuses
    #[arg(long, conflicts_with_all = ["no_perf_mode", "cpu_cap"])]
    pub perf_mode: bool,
    /// What of the host it gets.
    #[command(flatten)]
    pub host: HostArgs,
}

/// `completions …`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// Which shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
    /// Command name to complete [default: the command this was asked of]
    #[arg(long, value_name = "NAME")]
    pub binary: Option<String>,
}

/// Prints a completion script. For the plugin the command completed is
/// `cargo`, with `ktstr` as its subcommand.
pub fn completions(args: &CompletionArgs, plugin: bool) {
    let (mut command, default_name) = if plugin {
        (clap::Command::new("cargo").subcommand(Cli::command()), "cargo")
    } else {
        (Cli::command(), "ktstr")
    };
    let name = args.binary.as_deref().unwrap_or(default_name);
    clap_complete::generate(args.shell, &mut command, name, &mut std::io::stdout());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_cap_is_for_machines_without_claims() {
        let refused = |words: &[&str]| {
            let words = ["ktstr", "shell"].iter().chain(words);
            Cli::try_parse_from(words).expect_err("a contradiction").kind()
        };
        use clap::error::ErrorKind;
        assert_eq!(refused(&["--cpu-cap", "2"]), ErrorKind::MissingRequiredArgument);
        assert_eq!(refused(&["--perf-mode", "--no-perf-mode"]), ErrorKind::ArgumentConflict);
        assert_eq!(refused(&["--no-perf-mode", "--cpu-cap", "0"]), ErrorKind::ValueValidation);
        let host = HostArgs { no_perf_mode: true, cpu_cap: Some(3), jail: None };
        assert_eq!(host.resolve(false).unwrap(), (Performance::Unassisted, Some(3)));
        assert_eq!(HostArgs::default().resolve(true).unwrap(), (Performance::Isolated, None));
    }

    #[test]
    fn everything_after_two_dashes_is_nextests() {
        let cli = Cli::try_parse_from([
            "ktstr", "test", "--accel", "det", "--deny", "not-run", "--", "-E", "test(x)",
        ]);
        let Command::Test(args) = cli.unwrap().command else { panic!("not the test command") };
        assert_eq!(args.nextest, ["-E", "test(x)"]);
        assert_eq!((args.accel, args.deny), (Some(Accel::Det), vec![Deny::NotRun]));
    }
}

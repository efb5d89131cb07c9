//! The command line. What a switch does to the scheduler is said in its help text, since a test
//! author chooses a failure by reading `--help`.

use std::{ffi::OsString, fs, path::PathBuf, time::Duration};

use clap::{CommandFactory, Parser};

/// Largest dump that may be asked of the kernel. The program keeps the first `KTSTR_DUMP_LEN` (`intf.h`)
/// bytes of it.
pub const MAX_EXIT_DUMP_LEN: u32 = 16 << 20;

const DEFAULT_DELAY_MS: u64 = 1000;

/// A small correct sched_ext scheduler that can be told to fail.
///
/// Exit codes: 0 ended by SIGTERM or SIGINT; 2 wrong arguments; 10 the program could not be loaded
/// (verifier, missing kernel feature, no permission); 11 it could not be attached; 12 the kernel's
/// watchdog ended it (stall); 13 it ended itself with an error (crash); 14 the kernel ended it for
/// another error; 15 it was unregistered from elsewhere (SysRq-S, a kernel decision).
#[derive(Debug, Parser, PartialEq, Eq)]
#[command(name = "scx-ktstr", version, about, long_about, args_override_self = true)]
pub struct Args {
    /// From MS milliseconds after attaching, leave every ordinary task in the shared queue; kernel
    /// threads and this process keep running. The watchdog then reports "runnable task stall"
    #[arg(long, value_name = "MS", conflicts_with = "stall")]
    stall_after: Option<u64>,

    /// Same as --stall-after 1000
    #[arg(long)]
    stall: bool,

    /// From MS milliseconds after attaching, call scx_bpf_error() at the next callback. Writing a
    /// non-zero value to the program's global `crash` does the same at any time
    #[arg(long, value_name = "MS", conflicts_with = "crash")]
    crash_after: Option<u64>,

    /// Same as --crash-after 1000
    #[arg(long)]
    crash: bool,

    /// Busy-wait this long in every dispatch, at most 10ms ("500us", "2ms"; a bare number means
    /// milliseconds). Scheduling stays correct, every switch through the shared queue gets slower
    #[arg(long, value_name = "MS|US", value_parser = parse_slow)]
    slow: Option<Duration>,

    /// Load a variant that the verifier rejects (an access beyond a global's end); its whole log
    /// goes to stderr and the exit code is 10
    #[arg(long)]
    pub fail_verify: bool,

    /// Refuse to be the scheduler when the kernel asks (`ops.init`): the kernel says why it disables it, and the exit
    /// code is 14, or 11 where attaching itself fails
    #[arg(long)]
    pub fail_init: bool,

    /// Starve one task: the first that uses up ten slices in a row, and so never pauses, waits behind
    /// everybody else for a second at a time, until it exits; then the next such one. Never a process
    /// that init started: in a test's guest that is the test itself. Says who it is.
    /// It falls far behind its peers and never waits so long that the watchdog would notice
    #[arg(long)]
    pub unfair: bool,

    /// With --unfair, let it wait so many milliseconds each time; more than --watchdog-ms is a stall
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub unfair_ms: u64,

    /// Ignore which CPUs a task may use: one that may not run on all of them is put on any CPU in turn.
    /// The kernel notices the first time that the CPU is not allowed, and ends the scheduler with an
    /// error that names task and CPU
    #[arg(long)]
    pub wrong_cpu: bool,

    /// Lose a wakeup, sometimes: a hint says whether the shared queue is worth a look, and is cleared
    /// after a look that found nothing. A task that another CPU queues in between waits until the next
    /// one is queued; if none is, the watchdog ends the scheduler. Which runs it hits is decided by
    /// their interleaving. Refused where the kernel offers no queue by virtual time
    #[arg(long)]
    pub race: bool,

    /// Do not say that CPUs may come and go: at a hotplug the kernel then sends the scheduler away and
    /// asks it to start anew, which it does
    #[arg(long)]
    pub leave_at_hotplug: bool,

    /// Listen for questions about statistics (at /var/run/scx/root/stats, where its counters can be asked for)
    /// and never answer one
    #[arg(long)]
    pub mute: bool,

    /// Before attaching, fill maps of every kind with the values of `plant.h`, for readers of guest
    /// memory to find; they stay until the end. Prints a line "planted" with the addresses it used
    #[arg(long)]
    pub plant: bool,

    /// Read further switches from FILE, separated by white space; what stands on the command line wins
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// What the kernel's watchdog tolerates before it calls a waiting task stalled
    #[arg(long, value_name = "MS", default_value_t = 5000,
          value_parser = clap::value_parser!(u32).range(1..=30_000))]
    pub watchdog_ms: u32,

    /// Bytes of debug dump that the kernel collects on an error; 0 means the kernel's default
    #[arg(long, value_name = "N", default_value_t = 0,
          value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_EXIT_DUMP_LEN)))]
    pub exit_dump_len: u32,

    /// How long a task may run before the next one gets its turn
    #[arg(long, value_name = "US", default_value_t = 20_000,
          value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    slice_us: u64,
}

impl Args {
    /// The command line with what its `--config` holds before it. Ends the process on a mistake, as clap does.
    pub fn read() -> Self {
        let given: Vec<OsString> = std::env::args_os().collect();
        let Some(config) = Self::parse_from(&given).config else { return Self::parse_from(&given) };
        match fs::read_to_string(&config) {
            Ok(text) => Self::parse_from(with_config(&given, &text)),
            Err(error) => {
                let text = format!("cannot read --config {}: {error}", config.display());
                Self::command().error(clap::error::ErrorKind::Io, text).exit()
            }
        }
    }

    /// Nanoseconds from attaching to the stall, 0 for never.
    pub fn stall_after_ns(&self) -> u64 {
        delay_ns(self.stall_after, self.stall)
    }

    /// Nanoseconds from attaching to the error, 0 for never.
    pub fn crash_after_ns(&self) -> u64 {
        delay_ns(self.crash_after, self.crash)
    }

    /// Nanoseconds of busy-waiting per dispatch.
    pub fn slow_ns(&self) -> u64 {
        self.slow.map_or(0, |slow| u64::try_from(slow.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Nanoseconds a task may run.
    pub fn slice_ns(&self) -> u64 {
        self.slice_us * 1000
    }
}

/// The words of `text` between the program's name and what was given.
fn with_config(given: &[OsString], text: &str) -> Vec<OsString> {
    let (name, rest) = given.split_at(given.len().min(1));
    name.iter()
        .cloned()
        .chain(text.split_whitespace().map(OsString::from))
        .chain(rest.iter().cloned())
        .collect()
}

/// The program takes 0 as "never", so "at once" is its first nanosecond.
fn delay_ns(after_ms: Option<u64>, flag: bool) -> u64 {
    let after_ms = after_ms.or(flag.then_some(DEFAULT_DELAY_MS));
    after_ms.map_or(0, |ms| ms.saturating_mul(1_000_000).max(1))
}

fn parse_slow(text: &str) -> Result<Duration, String> {
    let (digits, micros_each) = if let Some(us) = text.strip_suffix("us") {
        (us, 1)
    } else {
        (text.strip_suffix("ms").unwrap_or(text), 1000)
    };
    let count: u64 = digits.parse().map_err(|_| format!("{text:?} is no duration like 500us, 2ms or 2"))?;
    let duration = Duration::from_micros(count.saturating_mul(micros_each));
    if duration > Duration::from_millis(10) {
        return Err(format!("{text} is more than 10ms, which would look like a lockup"));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("scx-ktstr").chain(args.iter().copied()))
    }

    #[test]
    fn defaults_misbehave_in_no_way() {
        let args = parse(&[]).unwrap();
        assert_eq!((args.stall_after_ns(), args.crash_after_ns(), args.slow_ns()), (0, 0, 0));
        assert!(!args.fail_verify && !args.fail_init && !args.plant && !args.race);
        assert!(!args.unfair && !args.wrong_cpu && !args.leave_at_hotplug);
        assert_eq!((args.watchdog_ms, args.slice_ns()), (5000, 20_000_000));
    }

    #[test]
    fn bare_switches_have_a_delay() {
        assert_eq!(parse(&["--stall"]).unwrap().stall_after_ns(), 1_000_000_000);
        assert_eq!(parse(&["--crash"]).unwrap().crash_after_ns(), 1_000_000_000);
    }

    #[test]
    fn at_once_differs_from_never() {
        assert_eq!(parse(&["--stall-after", "0"]).unwrap().stall_after_ns(), 1);
        assert_eq!(parse(&["--crash-after", "250"]).unwrap().crash_after_ns(), 250_000_000);
    }

    #[test]
    fn slow_knows_both_units_and_a_limit() {
        assert_eq!(parse(&["--slow", "500us"]).unwrap().slow_ns(), 500_000);
        assert_eq!(parse(&["--slow", "2ms"]).unwrap().slow_ns(), 2_000_000);
        assert_eq!(parse(&["--slow", "2"]).unwrap().slow_ns(), 2_000_000);
        for wrong in ["11ms", "10001us", "fast", "", "-1", "18446744073709551615ms"] {
            assert!(parse(&["--slow", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn contradictions_and_absurd_values_are_refused() {
        for wrong in [
            &["--stall", "--stall-after", "5"][..],
            &["--crash", "--crash-after", "5"],
            &["--watchdog-ms", "0"],
            &["--watchdog-ms", "30001"],
            &["--exit-dump-len", "16777217"],
            &["--slice-us", "1"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_configuration_says_what_the_command_line_does_not() {
        let given: Vec<OsString> = ["scx-ktstr", "--slice-us", "700"].map(OsString::from).into();
        let all = with_config(&given, "--watchdog-ms 900\n  --slice-us 500\n");
        let args = Args::try_parse_from(all).unwrap();
        assert_eq!((args.watchdog_ms, args.slice_ns()), (900, 700_000));
        assert_eq!(with_config(&given, " "), given);
    }
}

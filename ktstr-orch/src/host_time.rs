//! What the host gave to each vCPU: run time and run delay of its thread, from outside.
//!
//! `/proc/PID/task/TID/schedstat` (kernel: Documentation/scheduler/sched-stats.rst) holds the time a
//! thread ran and the time it was runnable and did not run. A guest whose vCPU waits for a host CPU
//! looks from inside as if its scheduler had not run a task; these figures tell the two apart.
//!
//! Where the host is a virtual machine itself, its own host may take CPUs away. Its kernel counts that as
//! `steal` of a CPU (`/proc/stat`) and as run time of the thread that was there. What was stolen from the
//! CPU that a thread was on at a look or the look before (the one that lost more) is therefore taken from its
//! run time of the interval and added to its wait, as far as it ran at all.
//!
//! Threads are known by name: `vcpuN` in our machine, `CPU N/…` and `ALL CPUs/…` in the emulator.
//! Reads nothing but `/proc`; a thread that is gone simply ends its series.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ktstr_proto::host::HostTime;

/// How often the threads are looked at.
pub const PERIOD: Duration = Duration::from_millis(100);

/// Whose time a thread's time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Runs {
    /// One vCPU.
    Cpu(u32),
    /// Every vCPU in turn.
    All,
}

/// Totals of one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Totals {
    ran: Duration,
    waited: Duration,
    /// The host CPU it was on last, if the kernel tells.
    on: Option<u32>,
}

/// For how long some task of the host waited for a CPU so far: `total` of `some` in `/proc/pressure/cpu`.
fn pressure() -> Option<Duration> {
    parse_pressure(&fs::read_to_string("/proc/pressure/cpu").ok()?)
}

fn parse_pressure(text: &str) -> Option<Duration> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = some.split_ascii_whitespace().find_map(|word| word.strip_prefix("total="))?;
    total.parse().ok().map(Duration::from_micros)
}

/// What was stolen from each host CPU since boot; empty where the kernel does not tell.
#[derive(Debug, Default)]
struct Stolen(BTreeMap<u32, Duration>);

impl Stolen {
    fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    /// The eighth figure of the `cpuN` lines, in hundredths of a second (`USER_HZ`), see proc_stat(5).
    fn parse(text: &str) -> Self {
        let of = |line: &str| {
            let (name, figures) = line.split_once(' ')?;
            let cpu = name.strip_prefix("cpu")?.parse::<u32>().ok()?;
            let ticks: u64 = figures.split_ascii_whitespace().nth(7)?.parse().ok()?;
            Some((cpu, Duration::from_millis(ticks.saturating_mul(10))))
        };
        Self(text.lines().filter_map(of).collect())
    }

    /// What the one of these CPUs that lost most has lost since `before`; of all CPUs where none is known.
    fn since(&self, before: &Self, cpus: [Option<u32>; 2]) -> Duration {
        let known = cpus.iter().any(Option::is_some);
        let lost = |(cpu, now): (&u32, &Duration)| {
            let concerned = !known || cpus.contains(&Some(*cpu));
            before.0.get(cpu).filter(|_| concerned).map(|then| now.saturating_sub(*then))
        };
        self.0.iter().filter_map(lost).max().unwrap_or_default()
    }
}

/// What each thread lost to the host's own host.
#[derive(Debug, Default)]
struct Losses {
    before: Option<(Stolen, Look)>,
    by_thread: Vec<Duration>,
}

impl Losses {
    /// The look as it would be had what was stolen been a wait.
    fn correct(&mut self, stolen: Stolen, look: Look) -> Look {
        self.by_thread.resize(look.totals.len(), Duration::ZERO);
        if let Some((stolen_before, before)) = &self.before {
            for ((sum, (_, now)), (_, then)) in
                self.by_thread.iter_mut().zip(&look.totals).zip(&before.totals)
            {
                let lost = stolen.since(stolen_before, [then.on, now.on]);
                *sum += lost.min(now.ran.saturating_sub(then.ran));
            }
        }
        let mut corrected = look.clone();
        for ((_, totals), lost) in corrected.totals.iter_mut().zip(&self.by_thread) {
            totals.ran = totals.ran.saturating_sub(*lost);
            totals.waited += *lost;
        }
        self.before = Some((stolen, look));
        corrected
    }
}

/// The vCPU threads of one machine.
#[derive(Debug)]
struct VcpuThreads {
    threads: Vec<(Runs, PathBuf)>,
}

/// One look at the threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    totals: Vec<(Runs, Totals)>,
}

impl VcpuThreads {
    /// Finds the vCPU threads of a process; empty when it has none (yet).
    fn of(pid: u32) -> Self {
        Self::below(&PathBuf::from(format!("/proc/{pid}/task")))
    }

    fn below(tasks: &Path) -> Self {
        let Ok(entries) = fs::read_dir(tasks) else { return Self { threads: Vec::new() } };
        let known = |entry: fs::DirEntry| {
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            Some((runs_of(name.trim_end())?, entry.path().join("schedstat")))
        };
        let mut threads: Vec<_> = entries.flatten().filter_map(known).collect();
        threads.sort();
        Self { threads }
    }

    /// Whether they are all there: one per vCPU, or one for all.
    fn is_complete(&self, cpus: u32) -> bool {
        match self.threads.first() {
            Some((Runs::All, _)) => true,
            Some(_) => self.threads.len() == cpus as usize,
            None => false,
        }
    }

    /// Reads them; `None` once they are gone.
    fn look(&self) -> Option<Look> {
        let read = |(runs, path): &(Runs, PathBuf)| {
            let text = fs::read_to_string(path).ok()?;
            let mut figures = text.split_ascii_whitespace().map(str::parse::<u64>);
            let (ran, waited) = (figures.next()?.ok()?, figures.next()?.ok()?);
            let on = fs::read_to_string(path.with_file_name("stat")).ok().and_then(|text| processor(&text));
            let (ran, waited) = (Duration::from_nanos(ran), Duration::from_nanos(waited));
            Some((*runs, Totals { ran, waited, on }))
        };
        let totals: Option<Vec<_>> = self.threads.iter().map(read).collect();
        totals.filter(|totals| !totals.is_empty()).map(|totals| Look { totals })
    }
}

/// The CPU it was on last, from `/proc/PID/task/TID/stat` (proc_pid_stat(5), field 39): the 37th after the
/// name, which may hold anything.
fn processor(stat: &str) -> Option<u32> {
    let (_, after) = stat.rsplit_once(')')?;
    after.split_ascii_whitespace().nth(36)?.parse().ok()
}

fn runs_of(name: &str) -> Option<Runs> {
    if name.starts_with("ALL CPUs/") {
        return Some(Runs::All);
    }
    let number = match name.strip_prefix("CPU ") {
        Some(rest) => rest.split_once('/')?.0,
        None => name.strip_prefix("vcpu")?,
    };
    number.parse().ok().map(Runs::Cpu)
}

impl Look {
    /// Run time by CPU number, where each vCPU has a thread of its own.
    pub fn ran_ns(&self) -> Option<Vec<u64>> {
        let expected = (0..).map(Runs::Cpu);
        let in_order = self.totals.iter().map(|(runs, _)| *runs).zip(expected).all(|(is, want)| is == want);
        in_order.then(|| self.totals.iter().map(|(_, t)| t.ran.as_nanos() as u64).collect())
    }
}

/// What the vCPUs were given over a window, in the order in which looks are added.
#[derive(Debug, Default)]
struct HostTimes {
    /// Per thread, its wait since the look before.
    waits: Vec<Vec<u32>>,
    first: Option<Look>,
    last: Option<(Duration, Look)>,
    /// When the window began and when each look after that was, milliseconds of the run.
    at_ms: Vec<u64>,
    /// Pressure at the first look and at the last.
    pressure: Option<(Duration, Duration)>,
}

impl HostTimes {
    /// Adds a look taken at host time `at` of the run.
    fn add(&mut self, at: Duration, look: Look, pressure: Option<Duration>) {
        match &self.last {
            Some((_, before)) if before.totals.len() == look.totals.len() => {
                for ((waits, a), b) in self.waits.iter_mut().zip(&before.totals).zip(&look.totals) {
                    waits.push(millis(b.1.waited.saturating_sub(a.1.waited)) as u32);
                }
                self.at_ms.push(millis(at));
            }
            _ => {
                self.waits = vec![Vec::new(); look.totals.len()];
                self.first = Some(look.clone());
                self.at_ms = vec![millis(at)];
                self.pressure = None;
            }
        }
        self.pressure = pressure.map(|now| (self.pressure.map_or(now, |(first, _)| first), now));
        self.last = Some((at, look));
    }

    /// The figures so far; `None` before the second look.
    fn figures(&self) -> Option<HostTime> {
        let (first, (ended, last)) = (self.first.as_ref()?, self.last.as_ref()?);
        if self.waits.first().is_none_or(Vec::is_empty) {
            return None;
        }
        let pairs = || first.totals.iter().zip(&last.totals);
        // A kernel without these figures tells zeros; no thread of a machine runs for no time at all.
        let window = ended.saturating_sub(Duration::from_millis(self.at_ms.first().copied().unwrap_or(0)));
        if window >= Duration::from_secs(1) && pairs().all(|(_, (_, last))| last.ran.is_zero()) {
            return None;
        }
        Some(HostTime {
            window_ms: millis(*ended).saturating_sub(self.at_ms.first().copied().unwrap_or(0)),
            ran_ms: pairs().map(|(a, b)| millis(b.1.ran.saturating_sub(a.1.ran))).collect(),
            waited_ms: pairs().map(|(a, b)| millis(b.1.waited.saturating_sub(a.1.waited))).collect(),
            waits_ms: self.waits.iter().map(|waits| when_waited(waits, &self.at_ms)).collect(),
            at_ms: self.at_ms.clone(),
            period_ms: millis(PERIOD) as u32,
            pressure_ms: self.pressure.map(|(first, last)| millis(last.saturating_sub(first))),
        })
    }
}

/// The waits as they were between the looks at `at_ms`: the kernel counts a wait when it ends (`sched_info_arrive()`
/// in kernel/sched/stats.h), so what exceeds an interval was waited in those before. What was waited before
/// the first look is left out.
fn when_waited(counted: &[u32], at_ms: &[u64]) -> Vec<u32> {
    let mut waited = counted.to_vec();
    let mut before = 0_u64;
    for ((wait, begin), end) in waited.iter_mut().zip(at_ms).zip(at_ms.iter().skip(1)).rev() {
        let sum = before + u64::from(*wait);
        let within = sum.min(end - begin);
        (*wait, before) = (within as u32, sum - within);
    }
    waited
}

/// Follows the vCPU threads of one machine and what counts of their time.
#[derive(Debug)]
pub struct HostWatch {
    pid: u32,
    cpus: u32,
    threads: Option<VcpuThreads>,
    losses: Losses,
    times: HostTimes,
    counts: bool,
    /// When the next look is due.
    pub next: Instant,
}

impl HostWatch {
    /// Of the process that runs the vCPUs.
    pub fn new(pid: u32, cpus: u32) -> Self {
        let (losses, times) = (Losses::default(), HostTimes::default());
        Self { pid, cpus, threads: None, losses, times, counts: true, next: Instant::now() }
    }

    /// Takes a look if one is due.
    pub fn look(&mut self, now: Instant, at: Duration) -> Option<Look> {
        if now < self.next {
            return None;
        }
        // A late look shifts the following ones instead of making them bunch up.
        self.next = (self.next + PERIOD).max(now);
        if self.threads.is_none() {
            self.threads = Some(VcpuThreads::of(self.pid)).filter(|t| t.is_complete(self.cpus));
        }
        let look = self.losses.correct(Stolen::read(), self.threads.as_ref()?.look()?);
        if self.counts {
            self.times.add(at, look.clone(), pressure());
        }
        Some(look)
    }

    /// Looks count from here on, and those before no more when `afresh`.
    pub fn open(&mut self, afresh: bool) {
        if afresh {
            self.times = HostTimes::default();
        }
        self.counts = true;
    }

    /// Looks count no more.
    pub fn close(&mut self) {
        self.counts = false;
    }

    /// What was given while looks counted.
    pub fn figures(&self) -> Option<HostTime> {
        self.times.figures()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_known_by_name() {
        assert_eq!(runs_of("vcpu3"), Some(Runs::Cpu(3)));
        assert_eq!(runs_of("CPU 12/TCG"), Some(Runs::Cpu(12)));
        assert_eq!(runs_of("ALL CPUs/TCG"), Some(Runs::All));
        for other in ["io", "vcpu", "CPU x/TCG", "qemu-system-x86"] {
            assert_eq!(runs_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_thread_of_this_process_is_found_and_its_time_grows() {
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("vcpu0".into()).spawn(move || wait.recv()).unwrap();
        // The name is set by the new thread itself.
        let threads =
            std::iter::repeat_with(|| VcpuThreads::of(std::process::id())).find(|t| t.is_complete(1));
        let look = threads.unwrap().look().unwrap();
        assert_eq!(look.ran_ns().map(|r| r.len()), Some(1));
        drop(go_on);
        assert!(thread.join().unwrap().is_err());
    }

    fn look(ran: [u64; 2], waited: [u64; 2]) -> Look {
        let totals = |n: usize| Totals {
            ran: Duration::from_millis(ran[n]),
            waited: Duration::from_millis(waited[n]),
            on: None,
        };
        Look { totals: vec![(Runs::Cpu(0), totals(0)), (Runs::Cpu(1), totals(1))] }
    }

    #[test]
    fn figures_are_of_the_window_alone() {
        let mut times = HostTimes::default();
        let pressure = |ms| Some(Duration::from_millis(ms));
        times.add(Duration::from_millis(100), look([10, 10], [1000, 5]), pressure(7000));
        assert_eq!(times.figures(), None);
        times.add(Duration::from_millis(200), look([60, 20], [1020, 90]), pressure(7090));
        times.add(Duration::from_millis(300), look([90, 90], [1025, 95]), pressure(7180));
        let figures = times.figures().unwrap();
        assert_eq!((figures.window_ms, figures.waits_ms), (200, vec![vec![20, 5], vec![85, 5]]));
        assert_eq!(figures.at_ms, [100, 200, 300]);
        assert_eq!((figures.ran_ms, figures.waited_ms), (vec![80, 80], vec![25, 90]));
        assert_eq!(figures.pressure_ms, Some(180));
    }

    #[test]
    fn a_wait_is_put_where_it_was_and_not_where_it_ended() {
        // A wait of 1279 ms was counted when it ended, in an interval of 100 ms.
        let at_ms = [1000, 1100, 1200, 1900, 2300, 2400, 2500];
        assert_eq!(when_waited(&[20, 0, 0, 0, 1279, 30], &at_ms), [20, 79, 700, 400, 100, 30]);
        assert_eq!(when_waited(&[250, 0], &at_ms[..3]), [100, 0], "most of it was before");
        assert_eq!(when_waited(&[], &at_ms[..1]), [0_u32; 0]);
    }

    #[test]
    fn pressure_is_read_from_the_kernels_words() {
        let text = "some avg10=99.40 avg60=98.99 avg300=99.02 total=22661617077\nfull avg10=0.00 total=0\n";
        assert_eq!(parse_pressure(text), Some(Duration::from_micros(22_661_617_077)));
        assert_eq!(parse_pressure("full avg10=0.00 total=0\n"), None);
        assert_eq!(parse_pressure("some total=x\n"), None);
    }

    #[test]
    fn what_was_stolen_from_the_host_is_no_run_time() {
        let stat = |ticks: [u64; 2]| {
            let line = |(cpu, ticks): (usize, &u64)| format!("cpu{cpu} 1 2 3 4 5 6 7 {ticks} 0 0\n");
            let lines: String = ticks.iter().enumerate().map(line).collect();
            Stolen::parse(&format!("cpu  1 2 3 4 5 6 7 999 0 0\n{lines}intr 5\n"))
        };
        let mut losses = Losses::default();
        let first = losses.correct(stat([5, 7]), look([100, 100], [0, 0]));
        assert_eq!(first, look([100, 100], [0, 0]), "what came before is not known");
        // 80 ms were stolen from one CPU; the second thread ran for 30 ms only.
        let second = losses.correct(stat([5, 15]), look([190, 130], [0, 60]));
        assert_eq!(second, look([110, 100], [80, 90]));
        let third = losses.correct(stat([5, 15]), look([290, 130], [0, 160]));
        assert_eq!(third, look([210, 100], [80, 190]));
    }

    #[test]
    fn what_was_stolen_is_charged_to_who_was_there() {
        let stat = |ticks: [u64; 2]| {
            Stolen::parse(&format!(
                "cpu0 1 2 3 4 5 6 7 {} 0 0\ncpu1 1 2 3 4 5 6 7 {} 0 0\n",
                ticks[0], ticks[1]
            ))
        };
        let on = |look: Look, on: [u32; 2]| Look {
            totals: look
                .totals
                .into_iter()
                .zip(on)
                .map(|((runs, t), on)| (runs, Totals { on: Some(on), ..t }))
                .collect(),
        };
        let mut losses = Losses::default();
        losses.correct(stat([0, 0]), on(look([100, 100], [0, 0]), [0, 0]));
        // 80 ms were stolen from CPU 1, where the second thread came to be.
        let second = losses.correct(stat([0, 8]), on(look([200, 200], [0, 0]), [0, 1]));
        assert_eq!(second, on(look([200, 120], [0, 80]), [0, 1]));
        let line = "7 (CPU 0/T) CG) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 3 0";
        assert_eq!((processor(line), processor("7 (x) S 1")), (Some(3), None));
        let own = fs::read_to_string("/proc/thread-self/stat").unwrap();
        assert!(processor(&own).is_some(), "{own}");
    }

    #[test]
    fn one_thread_for_all_cpus_tells_nothing_of_each() {
        let all = Look { totals: vec![(Runs::All, Totals::default())] };
        assert_eq!(all.ran_ns(), None);
        assert_eq!(look([1, 2], [0, 0]).ran_ns(), Some(vec![1_000_000, 2_000_000]));
    }
}

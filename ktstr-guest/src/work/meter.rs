//! How a worker measures itself: counters, CPUs, times, and the longest time it was kept off the CPU.
//!
//! At each checkpoint (at most one a millisecond) the time since the last one is divided: what the worker
//! ran (`CLOCK_THREAD_CPUTIME_ID`), what it chose to block, and the rest, which is the scheduler's doing
//! and counts as gap. A host that starves the vCPU lengthens wall and CPU time alike, so it does not
//! show up as a gap of the task that was running there. For work that blocks, the scheduler's share is
//! the run delay of `/proc/thread-self/schedstat`, since waking late is not a voluntary sleep; a
//! kernel without schedstat leaves the time inside blocking calls as the estimate of what was chosen.
//!
//! Figures that cost a system call (`getrusage`, schedstat of work that never blocks) are read every
//! 100 ms, at changes of phase and at the end. A change of phase is noticed at the next checkpoint; what
//! happened since the one before counts into the old phase.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::atomic::Ordering::{Relaxed, Release, SeqCst},
};

use nix::sys::resource::{UsageWho, getrusage};

use super::{
    board::{Board, Counter, PhaseSlot, Series, Slot},
    sys::{cpu_ns, futex_wait, now_ns},
    worker::WAIT_SLICE,
};

/// Shortest time between two checkpoints, nanoseconds.
pub(super) const CHECKPOINT_NS: u64 = 1_000_000;
/// Time between two readings of what costs a system call, nanoseconds.
const KERNEL_NS: u64 = 100_000_000;

/// Whether a kind of work ever blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blocking {
    /// Always runnable.
    Never,
    /// Sleeps or waits for others.
    Sometimes,
}

/// What the kernel counts for a thread, ever growing.
#[derive(Debug, Clone, Copy, Default)]
struct Kernel {
    run_delay_ns: u64,
    pcount: u64,
    voluntary: u64,
    involuntary: u64,
    minor_faults: u64,
    major_faults: u64,
}

pub(super) struct Meter<'a> {
    board: &'a Board,
    slot: &'a Slot,
    schedstat: Option<File>,
    blocking: Blocking,
    phase: u32,
    start_ns: u64,
    last_ns: u64,
    last_cpu_ns: u64,
    last_delay_ns: u64,
    last_frozen_ns: u64,
    kernel: Kernel,
    kernel_at_ns: u64,
    blocked_ns: u64,
    blocked_at_ns: u64,
    unblocked_ns: u64,
    work_units: u64,
    iterations: u64,
    /// All iterations so far that are published.
    done: u64,
    /// After how many of them it parks.
    parks_after: Option<u64>,
    parked_ns: u64,
    start_migrations: Option<u64>,
    start_numa_migrated: u64,
    cpu: LastCpu,
}

impl<'a> Meter<'a> {
    /// Starts to measure the calling thread.
    pub fn start(board: &'a Board, index: usize, blocking: Blocking) -> Self {
        let schedstat = File::open("/proc/thread-self/schedstat").ok();
        let start_stat = schedstat.as_ref().and_then(read_schedstat);
        let mut meter = Self {
            board,
            slot: board.slot(index),
            schedstat: schedstat.filter(|_| start_stat.is_some()),
            blocking,
            phase: board.phase(),
            start_ns: 0,
            last_ns: 0,
            last_cpu_ns: 0,
            last_delay_ns: 0,
            last_frozen_ns: board.frozen_ns().load(Relaxed),
            kernel: Kernel::default(),
            kernel_at_ns: 0,
            blocked_ns: 0,
            blocked_at_ns: 0,
            unblocked_ns: 0,
            work_units: 0,
            iterations: 0,
            done: 0,
            parks_after: None,
            parked_ns: 0,
            start_migrations: kernel_migrations(),
            start_numa_migrated: numa_pages_migrated(),
            cpu: LastCpu::default(),
        };
        meter.slot.phase.store(meter.phase, Relaxed);
        meter.kernel = meter.read_kernel();
        meter.last_delay_ns = meter.kernel.run_delay_ns;
        (meter.last_ns, meter.last_cpu_ns) = (now_ns(), cpu_ns());
        (meter.start_ns, meter.kernel_at_ns) = (meter.last_ns, meter.last_ns);
        meter.slot.began_ns.store(meter.start_ns, Relaxed);
        meter.slot.seen_ns.store(meter.start_ns, Relaxed);
        meter.look_at_cpu();
        meter
    }

    /// Notes how long after it was let go the worker ran for the first time: a gap like any other.
    pub fn began_late(&self, late_ns: u64) {
        self.figures().raise(Counter::MaxGapNs, late_ns);
        let from_ns = self.start_ns.saturating_sub(late_ns);
        self.slot.note_gap(self.start_ns, (from_ns, self.start_ns), (None, self.cpu.number()));
    }

    /// Says after how many iterations it is to park; 0 is taken for 1.
    pub fn parks_after(&mut self, iterations: Option<u64>) {
        self.parks_after = iterations.map(|iterations| iterations.max(1));
    }

    /// Whether the worker was told to stop.
    pub fn stopped(&self) -> bool {
        self.board.stopped()
    }

    fn figures(&self) -> &'a PhaseSlot {
        self.slot.in_phase(self.phase)
    }

    /// Counts work done.
    pub fn did(&mut self, work_units: u64, iterations: u64) {
        self.work_units += work_units;
        self.iterations += iterations;
    }

    /// Runs something that blocks by choice.
    pub fn blocking<T>(&mut self, call: impl FnOnce() -> T) -> T {
        self.blocked_at_ns = now_ns();
        let value = call();
        self.unblocked_ns = now_ns();
        let took = self.unblocked_ns.saturating_sub(self.blocked_at_ns);
        self.blocked_ns += took;
        self.figures().record(Series::Block, took);
        value
    }

    /// Notes that a wait ended with the last blocking call, and the waker stamped `stamp_ns`. A stamp from
    /// before that call means that nobody had to be woken.
    pub fn woken(&mut self, stamp_ns: u64) {
        if stamp_ns >= self.blocked_at_ns && stamp_ns != 0 {
            self.record(Series::Wake, self.unblocked_ns.saturating_sub(stamp_ns));
        }
    }

    /// Notes one time.
    pub fn record(&mut self, series: Series, ns: u64) {
        self.figures().record(series, ns);
    }

    /// Says which share of the time the work wants to be on the CPU.
    pub fn wants_duty(&self, on_ns: u64, off_ns: u64) {
        let ppm = on_ns.saturating_mul(1_000_000) / on_ns.saturating_add(off_ns).max(1);
        self.slot.duty_ppm.store(ppm, Relaxed);
    }

    /// Sets a figure of the work type's own.
    pub fn metric(&self, index: usize, value: f64) {
        if let Some(metric) = self.slot.metrics.get(index) {
            metric.store(value.to_bits(), Relaxed);
        }
    }

    /// Publishes the counters; divides the time since the last checkpoint when that is long enough ago. Here it parks,
    /// if it is time to: until it is released or told to stop.
    pub fn checkpoint(&mut self) {
        self.account();
        let due = |meter: &Self| meter.parks_after.is_some_and(|after| meter.done >= after);
        while due(self) && !self.stopped() && self.board.released().load(SeqCst) == 0 {
            self.slot.parked_after.store(self.done, Release);
            let began = now_ns();
            futex_wait(self.board.released(), 0, WAIT_SLICE);
            self.parked_ns += now_ns().saturating_sub(began);
            self.account();
        }
    }

    fn account(&mut self) {
        self.publish();
        let now = now_ns();
        let phase = self.board.phase();
        if now.saturating_sub(self.last_ns) >= CHECKPOINT_NS || phase != self.phase {
            self.divide(now);
        }
        if phase != self.phase || now.saturating_sub(self.kernel_at_ns) >= KERNEL_NS {
            self.count_kernel(now);
        }
        if phase != self.phase {
            self.phase = phase;
            self.slot.phase.fetch_max(phase, Relaxed);
        }
    }

    fn publish(&mut self) {
        let figures = self.figures();
        if self.work_units > 0 {
            figures.add(Counter::WorkUnits, std::mem::take(&mut self.work_units));
        }
        if self.iterations > 0 {
            self.done += self.iterations;
            figures.add(Counter::Iterations, std::mem::take(&mut self.iterations));
        }
    }

    fn divide(&mut self, now: u64) {
        let cpu_ns = cpu_ns();
        let ran = cpu_ns.saturating_sub(self.last_cpu_ns);
        let wall = now.saturating_sub(self.last_ns);
        let off_cpu = wall.saturating_sub(ran);
        // What was frozen on purpose is nobody's fault.
        let frozen_ns = self.board.frozen_ns().load(Relaxed);
        let frozen = frozen_ns.saturating_sub(self.last_frozen_ns).min(off_cpu);
        self.last_frozen_ns = frozen_ns;
        let stat = self.schedstat.as_ref().filter(|_| self.blocking == Blocking::Sometimes);
        let kept_off = match (self.blocking, stat.and_then(read_schedstat)) {
            (Blocking::Never, _) => (off_cpu - frozen).saturating_sub(self.parked_ns),
            (Blocking::Sometimes, Some((delay_ns, _))) => {
                let delay = delay_ns.saturating_sub(self.last_delay_ns);
                self.last_delay_ns = delay_ns;
                delay.min(off_cpu - frozen)
            }
            (Blocking::Sometimes, None) => {
                off_cpu.saturating_sub((self.blocked_ns + self.parked_ns).max(frozen))
            }
        };
        let was_on = self.cpu.number();
        self.look_at_cpu();
        if kept_off > self.slot.greatest(Counter::MaxGapNs) {
            self.slot.note_gap(self.start_ns, (self.last_ns, now), (was_on, self.cpu.number()));
        }
        let figures = self.figures();
        figures.raise(Counter::MaxGapNs, kept_off);
        figures.add(Counter::VoluntaryNs, off_cpu - kept_off);
        figures.add(Counter::CpuNs, ran);
        figures.add(Counter::WallNs, wall);
        self.slot.seen_ns.store(now, Relaxed);
        (self.blocked_ns, self.parked_ns) = (0, 0);
        self.last_ns = now;
        self.last_cpu_ns = cpu_ns;
    }

    fn read_kernel(&self) -> Kernel {
        let (run_delay_ns, pcount) = self.schedstat.as_ref().and_then(read_schedstat).unwrap_or_default();
        let usage = getrusage(UsageWho::RUSAGE_THREAD).ok();
        let of = |figure: fn(&nix::sys::resource::Usage) -> i64| usage.as_ref().map_or(0, figure) as u64;
        Kernel {
            run_delay_ns,
            pcount,
            voluntary: of(nix::sys::resource::Usage::voluntary_context_switches),
            involuntary: of(nix::sys::resource::Usage::involuntary_context_switches),
            minor_faults: of(nix::sys::resource::Usage::minor_page_faults),
            major_faults: of(nix::sys::resource::Usage::major_page_faults),
        }
    }

    fn count_kernel(&mut self, now: u64) {
        let (before, after, figures) = (self.kernel, self.read_kernel(), self.figures());
        let grew = |counter, figure: fn(&Kernel) -> u64| {
            figures.add(counter, figure(&after).saturating_sub(figure(&before)));
        };
        grew(Counter::RunDelayNs, |k| k.run_delay_ns);
        grew(Counter::Pcount, |k| k.pcount);
        grew(Counter::VoluntarySwitches, |k| k.voluntary);
        grew(Counter::InvoluntarySwitches, |k| k.involuntary);
        grew(Counter::MinorFaults, |k| k.minor_faults);
        grew(Counter::MajorFaults, |k| k.major_faults);
        self.kernel = after;
        self.kernel_at_ns = now;
    }

    /// Takes the last checkpoint and says that the figures are complete.
    pub fn finish(mut self) {
        let now = now_ns();
        self.publish();
        self.divide(now);
        self.count_kernel(now);
        if let (Some(before), Some(after)) = (self.start_migrations, kernel_migrations()) {
            self.slot.kernel_migrations.store(after.saturating_sub(before) + 1, Relaxed);
        }
        for (node, pages) in numa_pages() {
            if let Some(slot) = self.slot.numa_pages.get(node as usize) {
                slot.store(pages, Relaxed);
            }
        }
        let migrated = numa_pages_migrated().saturating_sub(self.start_numa_migrated);
        self.slot.numa_pages_migrated.store(migrated, Relaxed);
        self.slot.finished.store(true, Release);
    }

    fn look_at_cpu(&mut self) {
        if self.cpu.look(self.board, self.slot) {
            self.figures().add(Counter::Migrations, 1);
        }
    }
}

/// The CPU on which a thread was seen last.
#[derive(Debug, Default)]
pub(super) struct LastCpu {
    cpu: Option<u32>,
    /// Epoch in which that CPU was noted.
    noted_in: Option<u32>,
}

impl LastCpu {
    /// Its number, once it was looked at.
    pub fn number(&self) -> Option<u32> {
        self.cpu
    }

    /// Notes where the calling thread runs; whether it has moved.
    pub fn look(&mut self, board: &Board, slot: &Slot) -> bool {
        let epoch = board.epoch();
        let Ok(cpu) = nix::sched::sched_getcpu() else { return false };
        let cpu = cpu as u32;
        let mut moved = false;
        if self.cpu != Some(cpu) {
            moved = self.cpu.is_some();
            self.cpu = Some(cpu);
        } else if self.noted_in == Some(epoch) {
            return false;
        }
        // If the CPUs it may use changed meanwhile, nobody knows on which side of the change this was.
        if board.epoch() == epoch {
            self.noted_in = Some(epoch);
            slot.saw_cpu(epoch, cpu);
        } else {
            self.noted_in = None;
        }
        moved
    }
}

/// Run delay and count of `cpu_time run_delay pcount`, see `Documentation/scheduler/sched-stats.rst`.
pub(super) fn read_schedstat(file: &File) -> Option<(u64, u64)> {
    let mut text = [0u8; 96];
    let length = file.read_at(&mut text, 0).ok()?;
    parse_schedstat(std::str::from_utf8(&text[..length]).ok()?)
}

fn parse_schedstat(text: &str) -> Option<(u64, u64)> {
    let mut fields = text.split_ascii_whitespace();
    fields.next()?;
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// `nr_migrations` of `/proc/thread-self/sched`, which kernels with `CONFIG_SCHED_DEBUG` have.
fn kernel_migrations() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/sched").ok()?;
    let line = text.lines().find(|line| line.contains("nr_migrations"))?;
    line.rsplit(':').next()?.trim().parse().ok()
}

fn numa_pages_migrated() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("numa_pages_migrated ")?.parse().ok()).unwrap_or(0)
}

/// Pages of this process by node; none when the kernel does not tell.
fn numa_pages() -> Vec<(u32, u64)> {
    parse_numa_maps(&std::fs::read_to_string("/proc/thread-self/numa_maps").unwrap_or_default())
}

fn parse_numa_maps(text: &str) -> Vec<(u32, u64)> {
    let mut pages: Vec<(u32, u64)> = Vec::new();
    for word in text.split_ascii_whitespace() {
        let Some((node, count)) = word.strip_prefix('N').and_then(|word| word.split_once('=')) else {
            continue;
        };
        let (Ok(node), Ok(count)) = (node.parse(), count.parse::<u64>()) else { continue };
        match pages.iter_mut().find(|(known, _)| *known == node) {
            Some((_, sum)) => *sum += count,
            None => pages.push((node, count)),
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn schedstat_lines_are_read_and_garbage_is_not() {
        assert_eq!(parse_schedstat("12345 678 9\n"), Some((678, 9)));
        assert_eq!(parse_schedstat("12345"), None);
        assert_eq!(parse_schedstat("a b c"), None);
    }

    #[test]
    fn pages_are_summed_by_node() {
        let text =
            "7f00 default file=/bin/x mapped=2 N0=2 kernelpagesize_kB=4\n7f10 default anon=3 N1=1 N0=2\n";
        assert_eq!(parse_numa_maps(text), [(0, 4), (1, 1)]);
        assert_eq!(parse_numa_maps("Nx=1 N= N1 =3"), []);
    }

    #[test]
    fn a_chosen_sleep_is_no_gap() {
        let board = Board::new(1, 1).unwrap();
        let mut meter = Meter::start(&board, 0, Blocking::Sometimes);
        meter.blocking(|| std::thread::sleep(Duration::from_millis(120)));
        meter.did(1, 1);
        meter.finish();
        let slot = board.slot(0);
        let (voluntary, gap) = (slot.total(Counter::VoluntaryNs), slot.greatest(Counter::MaxGapNs));
        assert!(voluntary >= 100_000_000, "voluntary {voluntary}");
        // What came after the sleep, and that was the host's doing.
        let delay = slot.total(Counter::RunDelayNs);
        assert!(gap <= delay, "gap {gap} of {delay}");
        assert_eq!(slot.total(Counter::WorkUnits), 1);
        let blocked = slot.histogram(Series::Block);
        assert!(blocked.count() == 1 && blocked.max() >= 120_000_000, "{blocked:?}");
        assert!(slot.total(Counter::VoluntarySwitches) >= 1);
    }

    #[test]
    fn time_off_the_cpu_of_work_that_never_blocks_is_a_gap() {
        let board = Board::new(1, 1).unwrap();
        let meter = Meter::start(&board, 0, Blocking::Never);
        std::thread::sleep(Duration::from_millis(60));
        meter.finish();
        assert!(board.slot(0).greatest(Counter::MaxGapNs) >= 50_000_000);
        assert_eq!(board.slot(0).total(Counter::VoluntaryNs), 0);
    }

    #[test]
    fn frozen_time_is_no_gap_and_excuses_no_other() {
        let board = Board::new(1, 1).unwrap();
        let mut meter = Meter::start(&board, 0, Blocking::Never);
        std::thread::sleep(Duration::from_millis(60));
        meter.checkpoint();
        let gap_ns = board.slot(0).greatest(Counter::MaxGapNs);
        assert!(gap_ns >= 50_000_000, "{gap_ns}");
        std::thread::sleep(Duration::from_millis(200));
        board.frozen_ns().fetch_add(10_000_000_000, Relaxed);
        meter.checkpoint();
        meter.finish();
        let slot = board.slot(0);
        assert!(slot.total(Counter::VoluntaryNs) >= 190_000_000);
        assert!(slot.greatest(Counter::MaxGapNs) >= gap_ns, "the gap before stays one");
    }

    #[test]
    fn a_late_first_run_is_a_gap() {
        let board = Board::new(1, 1).unwrap();
        let meter = Meter::start(&board, 0, Blocking::Sometimes);
        meter.began_late(4_200_000_000);
        meter.finish();
        assert_eq!(board.slot(0).greatest(Counter::MaxGapNs), 4_200_000_000);
        assert_eq!(board.slot(0).max_gap_at_ns.load(Relaxed), 0);
    }

    #[test]
    fn a_wake_is_counted_only_if_somebody_slept() {
        let board = Board::new(1, 1).unwrap();
        let mut meter = Meter::start(&board, 0, Blocking::Sometimes);
        meter.blocking(|| std::thread::sleep(Duration::from_millis(5)));
        let (blocked, unblocked) = (meter.blocked_at_ns, meter.unblocked_ns);
        meter.woken(blocked - 1);
        meter.woken(0);
        meter.woken(unblocked - 4_000_000);
        meter.finish();
        let wake = board.slot(0).histogram(Series::Wake);
        assert_eq!(wake.count(), 1);
        assert!(wake.max() >= 4_000_000);
    }

    #[test]
    fn figures_belong_to_the_phase_in_which_they_began() {
        let board = Board::new(1, 1).unwrap();
        let mut meter = Meter::start(&board, 0, Blocking::Never);
        meter.did(3, 1);
        board.enter_phase(2);
        meter.checkpoint();
        meter.did(5, 2);
        meter.finish();
        let units: Vec<u64> =
            board.slot(0).phases().map(|(_, phase)| phase.get(Counter::WorkUnits)).collect();
        assert_eq!(units, [3, 0, 5]);
    }
}

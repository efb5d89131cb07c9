//! How a worker measures itself: counters, CPUs, and the longest time it was kept off the CPU.
//!
//! At each checkpoint the time since the last one is divided: what the worker ran
//! (`CLOCK_THREAD_CPUTIME_ID`), what it chose to block, and the rest, which is the scheduler's doing
//! and counts as gap. A host that starves the vCPU lengthens wall and CPU time alike, so it does not
//! show up as a gap of the task that was running there. For work that blocks, the scheduler's share is
//! the run delay of `/proc/thread-self/schedstat`, since waking late is not a voluntary sleep; a
//! kernel without schedstat leaves the time inside blocking calls as the estimate of what was chosen.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::atomic::Ordering::{Relaxed, Release},
};

use nix::time::{ClockId, clock_gettime};

use super::board::{Board, Slot};

/// Whether a kind of work ever blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blocking {
    /// Always runnable.
    Never,
    /// Sleeps or waits for others.
    Sometimes,
}

#[derive(Debug, Clone, Copy, Default)]
struct SchedStat {
    run_delay_ns: u64,
    pcount: u64,
}

pub(super) struct Meter<'a> {
    board: &'a Board,
    slot: &'a Slot,
    schedstat: Option<File>,
    blocking: Blocking,
    start_ns: u64,
    start_cpu_ns: u64,
    start_stat: SchedStat,
    last_ns: u64,
    last_cpu_ns: u64,
    last_delay_ns: u64,
    blocked_ns: u64,
    work_units: u64,
    iterations: u64,
    cpu: Option<u32>,
}

impl<'a> Meter<'a> {
    /// Starts to measure the calling thread.
    pub fn start(board: &'a Board, index: usize, blocking: Blocking) -> Self {
        let schedstat = File::open("/proc/thread-self/schedstat").ok();
        let start_stat = schedstat.as_ref().and_then(read_schedstat);
        let (now, cpu_ns) = (now_ns(), cpu_ns());
        let mut meter = Self {
            board,
            slot: board.slot(index),
            schedstat: schedstat.filter(|_| start_stat.is_some()),
            blocking,
            start_ns: now,
            start_cpu_ns: cpu_ns,
            start_stat: start_stat.unwrap_or_default(),
            last_ns: now,
            last_cpu_ns: cpu_ns,
            last_delay_ns: start_stat.unwrap_or_default().run_delay_ns,
            blocked_ns: 0,
            work_units: 0,
            iterations: 0,
            cpu: None,
        };
        meter.look_at_cpu();
        meter
    }

    /// Whether the worker was told to stop.
    pub fn stopped(&self) -> bool {
        self.board.stopped()
    }

    /// Counts work done.
    pub fn did(&mut self, work_units: u64, iterations: u64) {
        self.work_units += work_units;
        self.iterations += iterations;
    }

    /// Runs something that blocks by choice.
    pub fn blocking<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let before = now_ns();
        let value = call();
        self.blocked_ns += now_ns().saturating_sub(before);
        value
    }

    /// Divides the time since the last checkpoint and publishes the counters.
    pub fn checkpoint(&mut self) {
        let (now, cpu_ns) = (now_ns(), cpu_ns());
        let off_cpu =
            now.saturating_sub(self.last_ns).saturating_sub(cpu_ns.saturating_sub(self.last_cpu_ns));
        let kept_off =
            match (self.blocking, self.schedstat.as_ref().and_then(read_schedstat_of(self.blocking))) {
                (Blocking::Never, _) => off_cpu,
                (Blocking::Sometimes, Some(stat)) => {
                    let delay = stat.run_delay_ns.saturating_sub(self.last_delay_ns);
                    self.last_delay_ns = stat.run_delay_ns;
                    delay.min(off_cpu)
                }
                (Blocking::Sometimes, None) => off_cpu.saturating_sub(self.blocked_ns),
            };
        self.look_at_cpu();
        if kept_off > self.slot.max_gap_ns.load(Relaxed) {
            self.slot.max_gap_ns.store(kept_off, Relaxed);
            self.slot.max_gap_cpu.store(self.cpu.unwrap_or(0), Relaxed);
            self.slot.max_gap_at_ns.store(now.saturating_sub(self.start_ns), Relaxed);
        }
        self.slot.voluntary_off_cpu_ns.fetch_add(off_cpu - kept_off, Relaxed);
        self.slot.work_units.store(self.work_units, Relaxed);
        self.slot.iterations.store(self.iterations, Relaxed);
        self.slot.cpu_time_ns.store(cpu_ns.saturating_sub(self.start_cpu_ns), Relaxed);
        self.slot.wall_time_ns.store(now.saturating_sub(self.start_ns), Relaxed);
        self.blocked_ns = 0;
        self.last_ns = now;
        self.last_cpu_ns = cpu_ns;
    }

    /// Takes the last checkpoint and says that the figures are complete.
    pub fn finish(mut self) {
        self.checkpoint();
        if let Some(stat) = self.schedstat.as_ref().and_then(read_schedstat) {
            let delay = stat.run_delay_ns.saturating_sub(self.start_stat.run_delay_ns);
            self.slot.run_delay_ns.store(delay, Relaxed);
            self.slot.pcount.store(stat.pcount.saturating_sub(self.start_stat.pcount), Relaxed);
        }
        self.slot.finished.store(true, Release);
    }

    fn look_at_cpu(&mut self) {
        let Ok(cpu) = nix::sched::sched_getcpu() else { return };
        let cpu = cpu as u32;
        if self.cpu != Some(cpu) {
            if self.cpu.is_some() {
                self.slot.migrations.fetch_add(1, Relaxed);
            }
            self.cpu = Some(cpu);
            self.slot.saw_cpu(cpu);
        }
    }
}

/// Reading the file costs a system call, which work that never blocks can do without.
fn read_schedstat_of(blocking: Blocking) -> impl Fn(&File) -> Option<SchedStat> {
    move |file| if blocking == Blocking::Sometimes { read_schedstat(file) } else { None }
}

/// `cpu_time run_delay pcount`, see `Documentation/scheduler/sched-stats.rst` of the kernel.
fn read_schedstat(file: &File) -> Option<SchedStat> {
    let mut text = [0u8; 96];
    let length = file.read_at(&mut text, 0).ok()?;
    parse_schedstat(std::str::from_utf8(&text[..length]).ok()?)
}

fn parse_schedstat(text: &str) -> Option<SchedStat> {
    let mut fields = text.split_ascii_whitespace();
    fields.next()?;
    Some(SchedStat { run_delay_ns: fields.next()?.parse().ok()?, pcount: fields.next()?.parse().ok()? })
}

fn now_ns() -> u64 {
    read_clock(ClockId::CLOCK_MONOTONIC)
}

fn cpu_ns() -> u64 {
    read_clock(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

fn read_clock(clock: ClockId) -> u64 {
    // Both clocks exist on every Linux; the call fails only for unknown ones.
    clock_gettime(clock).map(|t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn schedstat_lines_are_read_and_garbage_is_not() {
        let stat = parse_schedstat("12345 678 9\n").unwrap();
        assert_eq!((stat.run_delay_ns, stat.pcount), (678, 9));
        assert!(parse_schedstat("12345").is_none());
        assert!(parse_schedstat("a b c").is_none());
    }

    #[test]
    fn a_chosen_sleep_is_no_gap() {
        let board = Board::new(1).unwrap();
        let mut meter = Meter::start(&board, 0, Blocking::Sometimes);
        meter.blocking(|| std::thread::sleep(Duration::from_millis(120)));
        meter.did(1, 1);
        meter.finish();
        let slot = board.slot(0);
        let (voluntary, gap) = (slot.voluntary_off_cpu_ns.load(Relaxed), slot.max_gap_ns.load(Relaxed));
        assert!(voluntary >= 100_000_000, "voluntary {voluntary}");
        assert!(gap < voluntary, "gap {gap} of {voluntary}");
        assert_eq!(slot.work_units.load(Relaxed), 1);
    }

    #[test]
    fn time_off_the_cpu_of_work_that_never_blocks_is_a_gap() {
        let board = Board::new(1).unwrap();
        let meter = Meter::start(&board, 0, Blocking::Never);
        std::thread::sleep(Duration::from_millis(60));
        meter.finish();
        assert!(board.slot(0).max_gap_ns.load(Relaxed) >= 50_000_000);
        assert_eq!(board.slot(0).voluntary_off_cpu_ns.load(Relaxed), 0);
    }
}

//! Memory shared between a workload's parent and its workers: flags, one slot of figures per worker, and
//! the words on which the members of a group meet. Everything in it is an atomic, so both sides may look
//! at any time, and a worker that dies leaves what it had.
//!
//! ```text
//! 0        head: go, stop, phase, workers left
//! 4096     a slot per worker: state, then counters and histograms per phase
//! ...      per group: 16 lines of words, then a line per member
//! ```
//!
//! Its size is fixed by the number of workers; pages no worker touches cost nothing.

use std::{
    collections::BTreeSet,
    io,
    num::NonZeroUsize,
    ptr::NonNull,
    sync::atomic::{
        AtomicBool, AtomicU32, AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
};

use ktstr_proto::{
    histogram::{BUCKETS, Histogram, bucket_of},
    topology::MAX_CPUS,
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

const CPU_WORDS: usize = MAX_CPUS as usize / 64;
/// Phases with figures of their own; later ones count into the last.
pub const MAX_PHASES: usize = 32;
/// Times between two changes of the CPUs that workers may use, each with its own record of the CPUs they were on;
/// later ones count into the last.
pub const MAX_EPOCHS: usize = 8;
/// NUMA nodes of which pages are counted.
pub(super) const MAX_NODES: usize = 16;
/// Figures a work type may report beside the common ones.
pub(super) const MAX_METRICS: usize = 8;

/// What is counted per phase.
#[derive(Debug, Clone, Copy)]
pub(super) enum Counter {
    WorkUnits,
    Iterations,
    CpuNs,
    WallNs,
    VoluntaryNs,
    MaxGapNs,
    Migrations,
    RunDelayNs,
    Pcount,
    VoluntarySwitches,
    InvoluntarySwitches,
    MinorFaults,
    MajorFaults,
}

const COUNTERS: usize = Counter::MajorFaults as usize + 1;

/// Which times are kept as histograms, per phase.
#[derive(Debug, Clone, Copy)]
pub(super) enum Series {
    Wake,
    Block,
    Iteration,
    Timer,
}

const SERIES: usize = Series::Timer as usize + 1;

#[repr(C)]
struct Counts {
    max: AtomicU64,
    /// Complement of the smallest value, so that zeroed memory means that there is none.
    min_inverted: AtomicU64,
    buckets: [AtomicU32; BUCKETS],
}

/// Figures of one worker in one phase.
#[repr(C)]
pub(super) struct PhaseSlot {
    counters: [AtomicU64; COUNTERS],
    series: [Counts; SERIES],
}

impl PhaseSlot {
    pub fn get(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].load(Relaxed)
    }

    pub fn add(&self, counter: Counter, value: u64) {
        self.counters[counter as usize].fetch_add(value, Relaxed);
    }

    pub fn raise(&self, counter: Counter, value: u64) {
        self.counters[counter as usize].fetch_max(value, Relaxed);
    }

    pub fn record(&self, series: Series, value: u64) {
        let counts = &self.series[series as usize];
        counts.buckets[bucket_of(value)].fetch_add(1, Relaxed);
        counts.max.fetch_max(value, Relaxed);
        counts.min_inverted.fetch_max(!value, Relaxed);
    }

    pub fn histogram(&self, series: Series) -> Histogram {
        let counts = &self.series[series as usize];
        let (max, min_inverted) = (counts.max.load(Relaxed), counts.min_inverted.load(Relaxed));
        if min_inverted == 0 {
            return Histogram::default();
        }
        // Only the buckets between the extremes: the rest was never touched, and reading it costs pages.
        let (from, to) = (bucket_of(!min_inverted), bucket_of(max));
        let each = (0..=to).map(|bucket| match bucket {
            _ if bucket < from => 0,
            _ => u64::from(counts.buckets[bucket].load(Relaxed)),
        });
        Histogram::from_counts(each, max)
    }
}

/// State and figures of one worker.
#[repr(C)]
pub(super) struct Slot {
    pub finished: AtomicBool,
    pub panicked: AtomicBool,
    /// It finished without having been told to.
    pub early: AtomicBool,
    /// Iterations it had done when it parked; 0 is not parked yet.
    pub parked_after: AtomicU64,
    /// The thread of a worker that is one is at its end.
    pub gone: AtomicBool,
    pub tid: AtomicU32,
    /// Last phase with figures.
    pub phase: AtomicU32,
    /// [`super::NotRun`] as a number and the system's error number; 0 is none.
    pub not_run: AtomicU32,
    pub not_run_errno: AtomicU32,
    pub max_gap_cpu: AtomicU32,
    pub max_gap_at_ns: AtomicU64,
    /// The checkpoints between which it lay, nanoseconds of `CLOCK_MONOTONIC`, and the CPU at the first.
    pub max_gap_from_ns: AtomicU64,
    pub max_gap_to_ns: AtomicU64,
    pub max_gap_from_cpu: AtomicU32,
    /// When it began to work and when it was last seen at work, nanoseconds of `CLOCK_MONOTONIC`.
    pub began_ns: AtomicU64,
    pub seen_ns: AtomicU64,
    /// Duty cycle asked for, parts per million; 0 is none.
    pub duty_ppm: AtomicU64,
    /// Changes of CPU as the kernel counts them, plus one; 0 is unknown.
    pub kernel_migrations: AtomicU64,
    pub numa_pages: [AtomicU64; MAX_NODES],
    pub numa_pages_migrated: AtomicU64,
    /// Bits of `f64`.
    pub metrics: [AtomicU64; MAX_METRICS],
    cpus_used: [[AtomicU64; CPU_WORDS]; MAX_EPOCHS],
    phases: [PhaseSlot; MAX_PHASES],
}

impl Slot {
    /// Figures of a phase.
    pub fn in_phase(&self, phase: u32) -> &PhaseSlot {
        &self.phases[(phase as usize).min(MAX_PHASES - 1)]
    }

    /// Phases up to the last one with figures.
    pub fn phases(&self) -> impl Iterator<Item = (u32, &PhaseSlot)> {
        let last = self.phase.load(Relaxed);
        (0..).zip(&self.phases).take_while(move |(phase, _)| *phase <= last)
    }

    /// Sum over all phases.
    pub fn total(&self, counter: Counter) -> u64 {
        self.phases().map(|(_, phase)| phase.get(counter)).sum()
    }

    /// Greatest over all phases.
    pub fn greatest(&self, counter: Counter) -> u64 {
        self.phases().map(|(_, phase)| phase.get(counter)).max().unwrap_or(0)
    }

    /// All phases together.
    pub fn histogram(&self, series: Series) -> Histogram {
        let mut all = Histogram::default();
        for (_, phase) in self.phases() {
            all.merge(&phase.histogram(series));
        }
        all
    }

    /// Notes between which times the longest gap lay, of one who began at `began_ns`, and on which CPU it was before and
    /// after.
    pub fn note_gap(
        &self,
        began_ns: u64,
        (from_ns, to_ns): (u64, u64),
        (before, after): (Option<u32>, Option<u32>),
    ) {
        let cpu = after.unwrap_or(0);
        self.max_gap_cpu.store(cpu, Relaxed);
        self.max_gap_from_cpu.store(before.unwrap_or(cpu), Relaxed);
        self.max_gap_at_ns.store(to_ns.saturating_sub(began_ns), Relaxed);
        self.max_gap_from_ns.store(from_ns, Relaxed);
        self.max_gap_to_ns.store(to_ns, Relaxed);
    }

    /// Notes that the worker was seen on `cpu`.
    pub fn saw_cpu(&self, epoch: u32, cpu: u32) {
        let words = &self.cpus_used[(epoch as usize).min(MAX_EPOCHS - 1)];
        if let Some(word) = words.get(cpu as usize / 64) {
            word.fetch_or(1 << (cpu % 64), Relaxed);
        }
    }

    /// CPUs the worker was seen on in an epoch, ascending.
    pub fn cpus_used_in(&self, epoch: u32) -> Vec<u32> {
        let words =
            self.cpus_used[(epoch as usize).min(MAX_EPOCHS - 1)].each_ref().map(|word| word.load(Relaxed));
        (0..MAX_CPUS).filter(|cpu| words[*cpu as usize / 64] >> (cpu % 64) & 1 == 1).collect()
    }

    /// CPUs the worker was seen on at any time, ascending.
    pub fn cpus_used(&self) -> Vec<u32> {
        let all: BTreeSet<u32> = (0..MAX_EPOCHS as u32).flat_map(|epoch| self.cpus_used_in(epoch)).collect();
        all.into_iter().collect()
    }
}

/// Words of a group, by use; each on a cache line of its own.
pub(super) const GROUP_LINES: usize = 16;

/// A cache line on which members of a group meet.
#[repr(C, align(64))]
pub(super) struct Line {
    /// Futex word.
    pub word: AtomicU32,
    /// Thread id of the member, in members' lines.
    pub tid: AtomicU32,
    /// Process id of the member, in members' lines.
    pub pid: AtomicU32,
    /// 1 while the member waits and nobody has set out to wake it, in members' lines.
    pub waiting: AtomicU32,
    /// When somebody set out to wake the member, nanoseconds of `CLOCK_MONOTONIC`.
    pub stamp: AtomicU64,
    /// Anything else.
    pub value: AtomicU64,
}

#[repr(C)]
struct Head {
    go: AtomicU32,
    stop: AtomicU32,
    phase: AtomicU32,
    left: AtomicU32,
    prepared: AtomicU32,
    epoch: AtomicU32,
    went_ns: AtomicU64,
    frozen_ns: AtomicU64,
    released: AtomicU32,
}

/// The shared mapping.
pub(super) struct Board {
    base: NonNull<u8>,
    bytes: NonZeroUsize,
    slots: usize,
    group: usize,
}

/// Offset of the first slot in bytes.
const SLOTS_AT: usize = 4096;
const _: () = assert!(size_of::<Head>() <= SLOTS_AT && align_of::<Slot>() <= 64);
const SLOT_BYTES: usize = size_of::<Slot>().next_multiple_of(4096);

// SAFETY: the mapping is shared memory made of atomics only; nothing in it belongs to a thread.
unsafe impl Send for Board {}
// SAFETY: as above: every access goes through an atomic.
unsafe impl Sync for Board {}

impl Board {
    /// A zeroed board for `slots` workers in groups of `group`.
    pub fn new(slots: usize, group: usize) -> io::Result<Self> {
        let groups = slots.div_ceil(group.max(1));
        let lines =
            groups.checked_mul(GROUP_LINES + group).and_then(|lines| lines.checked_mul(size_of::<Line>()));
        let bytes = slots
            .checked_mul(SLOT_BYTES)
            .and_then(|size| size.checked_add(lines?))
            .and_then(|size| size.checked_add(SLOTS_AT))
            .and_then(NonZeroUsize::new)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a fresh anonymous mapping at an address the kernel chooses overlaps nothing.
        let base = unsafe { mmap_anonymous(None, bytes, protection, flags) }?;
        let board = Self { base: base.cast(), bytes, slots, group };
        board.head().left.store(slots as u32, Relaxed);
        Ok(board)
    }

    /// Number of workers.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Figures of worker `index`.
    pub fn slot(&self, index: usize) -> &Slot {
        assert!(index < self.slots, "worker {index} of {}", self.slots);
        // SAFETY: `new` made room for `slots` slots from SLOTS_AT on, page aligned; all fields are
        // atomics, for which zeroed memory is valid and concurrent access by forked children is allowed;
        // the mapping lives as long as `self`.
        unsafe { self.base.add(SLOTS_AT + index * SLOT_BYTES).cast::<Slot>().as_ref() }
    }

    fn line(&self, group: usize, line: usize) -> &Line {
        assert!(group < self.slots.div_ceil(self.group.max(1)) && line < GROUP_LINES + self.group);
        let at = (group * (GROUP_LINES + self.group) + line) * size_of::<Line>();
        // SAFETY: as for `slot`: `new` made room for all groups' lines behind the slots, which end at a
        // page boundary.
        unsafe { self.base.add(SLOTS_AT + self.slots * SLOT_BYTES + at).cast::<Line>().as_ref() }
    }

    /// A word that all members of a group share.
    pub fn group_line(&self, group: usize, line: usize) -> &Line {
        assert!(line < GROUP_LINES);
        self.line(group, line)
    }

    /// The line of a member of a group.
    pub fn member_line(&self, group: usize, position: usize) -> &Line {
        self.line(group, GROUP_LINES + position)
    }

    fn head(&self) -> &Head {
        // SAFETY: as for `slot`; the head lies in front of SLOTS_AT.
        unsafe { self.base.cast::<Head>().as_ref() }
    }

    /// Lets parked workers go; futex.
    pub fn go(&self) -> &AtomicU32 {
        &self.head().go
    }

    /// Workers that have not finished; futex.
    pub fn left(&self) -> &AtomicU32 {
        &self.head().left
    }

    /// Workers that have the CPU and the policy of their kind; futex.
    pub fn prepared(&self) -> &AtomicU32 {
        &self.head().prepared
    }

    /// Which set of CPUs the workers may use, counted from 0.
    pub fn epoch(&self) -> u32 {
        self.head().epoch.load(SeqCst)
    }

    /// Begins the next epoch; false where there is no more room for one.
    pub fn next_epoch(&self) -> bool {
        let next = self.epoch() + 1;
        if next as usize >= MAX_EPOCHS {
            return false;
        }
        self.head().epoch.store(next, SeqCst);
        true
    }

    /// When the workers were let go, nanoseconds of `CLOCK_MONOTONIC`; 0 is not yet.
    pub fn went_ns(&self) -> &AtomicU64 {
        &self.head().went_ns
    }

    /// For how long the workers' cgroup was frozen so far, nanoseconds.
    pub fn frozen_ns(&self) -> &AtomicU64 {
        &self.head().frozen_ns
    }

    /// Lets workers go on that have parked; futex.
    pub fn released(&self) -> &AtomicU32 {
        &self.head().released
    }

    /// Tells all workers to stop.
    pub fn stop(&self) {
        self.head().stop.store(1, SeqCst);
    }

    /// Whether workers should stop.
    pub fn stopped(&self) -> bool {
        self.head().stop.load(Relaxed) != 0
    }

    /// Which phase of the scenario it is.
    pub fn phase(&self) -> u32 {
        self.head().phase.load(Relaxed)
    }

    /// Says that another phase of the scenario has begun.
    pub fn enter_phase(&self, phase: u32) {
        self.head().phase.store(phase.min(MAX_PHASES as u32 - 1), Relaxed);
    }

    /// Iterations of all workers so far.
    pub fn iterations(&self) -> u64 {
        (0..self.slots).map(|index| self.slot(index).total(Counter::Iterations)).sum()
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.base.cast(), self.bytes.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_beyond_the_limit_are_ignored_and_the_rest_is_sorted() {
        let board = Board::new(2, 1).unwrap();
        for cpu in [300, 1, 64, 1, MAX_CPUS, u32::MAX] {
            board.slot(1).saw_cpu(0, cpu);
        }
        assert_eq!(board.slot(1).cpus_used(), [1, 64, 300]);
        assert!(board.slot(0).cpus_used().is_empty());
    }

    #[test]
    fn phases_add_up_and_late_ones_count_into_the_last() {
        let board = Board::new(1, 1).unwrap();
        let slot = board.slot(0);
        for phase in [0, 2, 31, 99] {
            board.enter_phase(phase);
            slot.phase.fetch_max(board.phase(), Relaxed);
            slot.in_phase(board.phase()).add(Counter::WorkUnits, 10);
            slot.in_phase(board.phase()).record(Series::Wake, 1000 * u64::from(phase + 1));
        }
        assert_eq!(slot.total(Counter::WorkUnits), 40);
        assert_eq!(slot.in_phase(31).get(Counter::WorkUnits), 20);
        let wake = slot.histogram(Series::Wake);
        assert_eq!((wake.count(), wake.max()), (4, 100_000));
    }

    #[test]
    fn lines_of_groups_and_members_are_apart() {
        let board = Board::new(6, 3).unwrap();
        for group in 0..2 {
            for line in 0..GROUP_LINES {
                board.group_line(group, line).value.fetch_add(1, Relaxed);
            }
            for position in 0..3 {
                board.member_line(group, position).value.fetch_add(1, Relaxed);
            }
        }
        for group in 0..2 {
            assert!((0..GROUP_LINES).all(|line| board.group_line(group, line).value.load(Relaxed) == 1));
            assert!((0..3).all(|member| board.member_line(group, member).value.load(Relaxed) == 1));
        }
    }
}

//! Memory shared between a workload's parent and its forked workers: a stop flag and one slot of
//! figures per worker. Everything in it is an atomic, so both sides may look at any time.

use std::{
    io,
    num::NonZeroUsize,
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
};

use ktstr_proto::topology::MAX_CPUS;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

const CPU_WORDS: usize = MAX_CPUS as usize / 64;

/// Figures of one worker; units as in [`ktstr_proto::verdict::WorkerReport`].
#[repr(C)]
pub(super) struct Slot {
    pub finished: AtomicBool,
    pub tid: AtomicU32,
    pub work_units: AtomicU64,
    pub iterations: AtomicU64,
    pub cpu_time_ns: AtomicU64,
    pub wall_time_ns: AtomicU64,
    pub migrations: AtomicU64,
    pub voluntary_off_cpu_ns: AtomicU64,
    pub max_gap_ns: AtomicU64,
    pub max_gap_cpu: AtomicU32,
    pub max_gap_at_ns: AtomicU64,
    pub run_delay_ns: AtomicU64,
    pub pcount: AtomicU64,
    cpus_used: [AtomicU64; CPU_WORDS],
}

impl Slot {
    /// Notes that the worker was seen on `cpu`.
    pub fn saw_cpu(&self, cpu: u32) {
        if let Some(word) = self.cpus_used.get(cpu as usize / 64) {
            word.fetch_or(1 << (cpu % 64), Relaxed);
        }
    }

    /// CPUs the worker was seen on, ascending.
    pub fn cpus_used(&self) -> Vec<u32> {
        let words: Vec<u64> = self.cpus_used.iter().map(|word| word.load(Relaxed)).collect();
        (0..MAX_CPUS).filter(|cpu| words[*cpu as usize / 64] >> (cpu % 64) & 1 == 1).collect()
    }
}

#[repr(C)]
struct Head {
    stop: AtomicU32,
}

/// The shared mapping.
pub(super) struct Board {
    base: NonNull<u8>,
    bytes: NonZeroUsize,
    slots: usize,
}

/// Offset of the first slot in bytes.
const SLOTS_AT: usize = 64;
const _: () = assert!(size_of::<Head>() <= SLOTS_AT && align_of::<Slot>() <= SLOTS_AT);

impl Board {
    /// A zeroed board for `slots` workers.
    pub fn new(slots: usize) -> io::Result<Self> {
        let bytes = slots
            .checked_mul(size_of::<Slot>())
            .and_then(|size| size.checked_add(SLOTS_AT))
            .and_then(NonZeroUsize::new)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh anonymous mapping at an address the kernel chooses overlaps nothing.
        let base = unsafe { mmap_anonymous(None, bytes, protection, MapFlags::MAP_SHARED) }?;
        Ok(Self { base: base.cast(), bytes, slots })
    }

    /// Figures of worker `index`.
    pub fn slot(&self, index: usize) -> &Slot {
        assert!(index < self.slots, "worker {index} of {}", self.slots);
        // SAFETY: `new` made room for `slots` slots from SLOTS_AT on, aligned for Slot; all fields are
        // atomics, for which zeroed memory is valid and concurrent access by forked children is allowed;
        // the mapping lives as long as `self`.
        unsafe { self.base.add(SLOTS_AT + index * size_of::<Slot>()).cast::<Slot>().as_ref() }
    }

    fn head(&self) -> &Head {
        // SAFETY: as for `slot`; the head lies in front of SLOTS_AT.
        unsafe { self.base.cast::<Head>().as_ref() }
    }

    /// Tells all workers to stop.
    pub fn stop(&self) {
        self.head().stop.store(1, Relaxed);
    }

    /// Whether workers should stop.
    pub fn stopped(&self) -> bool {
        self.head().stop.load(Relaxed) != 0
    }

    /// Iterations of all workers so far.
    pub fn iterations(&self) -> u64 {
        (0..self.slots).map(|index| self.slot(index).iterations.load(Relaxed)).sum()
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
        let board = Board::new(2).unwrap();
        for cpu in [300, 1, 64, 1, MAX_CPUS, u32::MAX] {
            board.slot(1).saw_cpu(cpu);
        }
        assert_eq!(board.slot(1).cpus_used(), [1, 64, 300]);
        assert!(board.slot(0).cpus_used().is_empty());
    }
}

//! System calls that neither the standard library nor nix wraps, each in a function that is safe to call.

use std::{sync::atomic::AtomicU32, time::Duration};

use nix::{errno::Errno, libc, time::ClockId};

/// `CLOCK_MONOTONIC`, nanoseconds.
pub(crate) fn now_ns() -> u64 {
    read_clock(ClockId::CLOCK_MONOTONIC)
}

/// CPU time of the calling thread, nanoseconds.
pub(super) fn cpu_ns() -> u64 {
    read_clock(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

fn read_clock(clock: ClockId) -> u64 {
    // Both clocks exist on every Linux; the call fails only for unknown ones.
    nix::time::clock_gettime(clock)
        .map(|t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
        .unwrap_or(0)
}

fn timespec(time: Duration) -> libc::timespec {
    libc::timespec { tv_sec: time.as_secs() as libc::time_t, tv_nsec: i64::from(time.subsec_nanos()) }
}

/// Sleeps until a point of `CLOCK_MONOTONIC`; a signal ends it early.
pub(super) fn sleep_until(deadline_ns: u64) {
    let deadline = timespec(Duration::from_nanos(deadline_ns));
    // SAFETY: the kernel reads one timespec that lives across the call.
    unsafe {
        libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &deadline, std::ptr::null_mut());
    }
}

/// Waits while `word` holds `expected`, at most `timeout`; whether it slept and was woken. The word may be
/// shared between processes. Ends early for any reason; the caller looks at the word again.
pub(super) fn futex_wait(word: &AtomicU32, expected: u32, timeout: Duration) -> bool {
    let timeout = timespec(timeout);
    // SAFETY: the kernel reads the word, which lives across the call, and one timespec.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, &raw const timeout) == 0
    }
}

/// Wakes at most `count` waiters; how many were woken.
pub(super) fn futex_wake(word: &AtomicU32, count: u32) -> u32 {
    let count = count.min(i32::MAX as u32);
    // SAFETY: the kernel only looks the address up.
    let woken = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, count) };
    u32::try_from(woken).unwrap_or(0)
}

/// Locks a priority-inheriting futex, which holds the owner's thread id; false when `timeout` passed.
pub(super) fn futex_lock_pi(word: &AtomicU32, timeout: Duration) -> nix::Result<bool> {
    // FUTEX_LOCK_PI2 (Linux 5.14): as FUTEX_LOCK_PI, the deadline on CLOCK_MONOTONIC.
    const FUTEX_LOCK_PI2: i32 = 13;
    let deadline = timespec(Duration::from_nanos(now_ns()) + timeout);
    // SAFETY: the kernel reads and writes the word, which lives across the call, and reads one timespec.
    let result =
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), FUTEX_LOCK_PI2, 0, &raw const deadline) };
    match Errno::result(result) {
        Ok(_) => Ok(true),
        Err(Errno::ETIMEDOUT | Errno::EINTR | Errno::EAGAIN) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Unlocks a priority-inheriting futex that the calling thread holds.
pub(super) fn futex_unlock_pi(word: &AtomicU32) -> nix::Result<()> {
    // SAFETY: the kernel reads and writes the word, which lives across the call.
    let result = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_UNLOCK_PI) };
    Errno::result(result).map(drop)
}

/// Sets the nice level of the calling thread.
pub(super) fn set_nice(nice: i32) -> nix::Result<()> {
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }).map(drop)
}

/// Sends a signal to one thread of a process.
pub(super) fn signal_thread(tgid: u32, tid: u32, signal: i32) -> nix::Result<()> {
    // SAFETY: takes numbers only; the kernel refuses a thread that is not of the process.
    Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, tgid as i32, tid as i32, signal) }).map(drop)
}

/// Forks, and ends the child at once with status 0; the child's pid.
///
/// `before_exit` runs in the child of a process that may have several threads: it must neither allocate nor lock.
pub(super) fn fork_and_exit(before_exit: impl FnOnce()) -> nix::Result<nix::unistd::Pid> {
    // SAFETY: the child calls only `before_exit`, which is bound by this function's contract, and `_exit`.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(child),
        nix::unistd::ForkResult::Child => {
            before_exit();
            // SAFETY: ends this process without running anybody's exit handlers.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Node sets as the memory-policy calls take them: one bit a node.
fn node_mask(nodes: &[u32]) -> [libc::c_ulong; 16] {
    let mut mask = [0; 16];
    let bits = libc::c_ulong::BITS;
    for node in nodes {
        if let Some(word) = mask.get_mut((node / bits) as usize) {
            *word |= 1 << (node % bits);
        }
    }
    mask
}

/// Highest node number a mask holds, plus one, as the kernel wants it (it counts one bit less).
const MASK_BITS: usize = 16 * libc::c_ulong::BITS as usize + 1;

/// `MPOL_MF_MOVE` of `include/uapi/linux/mempolicy.h`: pages that are elsewhere are moved.
const MOVE: libc::c_uint = 1 << 1;

/// Moves an anonymous mapping to `nodes` and keeps it there.
pub(super) fn bind_memory(region: &super::region::Region, nodes: &[u32]) -> nix::Result<()> {
    let mask = node_mask(nodes);
    // SAFETY: `region` owns a page-aligned mapping of this length; moving its pages changes no content.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            region.as_ptr(),
            region.len(),
            libc::MPOL_BIND,
            mask.as_ptr(),
            MASK_BITS,
            MOVE,
        )
    };
    Errno::result(result).map(drop)
}

//! Scheduling policies as `sched_setattr(2)` takes them (`include/uapi/linux/sched/types.h`).

use std::time::Duration;

use nix::{errno::Errno, libc};

/// A scheduling policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SchedPolicy {
    /// `SCHED_OTHER`.
    #[default]
    Normal,
    /// `SCHED_BATCH`.
    Batch,
    /// `SCHED_IDLE`.
    Idle,
    /// `SCHED_FIFO` with a priority from 1 to 99.
    Fifo(u32),
    /// `SCHED_RR` with a priority from 1 to 99.
    RoundRobin(u32),
    /// `SCHED_DEADLINE`; runtime ≤ deadline ≤ period.
    Deadline {
        /// CPU time in each period.
        runtime: Duration,
        /// Within which it is to be had.
        deadline: Duration,
        /// How often.
        period: Duration,
    },
    /// `SCHED_EXT`: the BPF scheduler, also where it does not take all tasks.
    Ext,
}

/// A policy the kernel would refuse whatever the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SchedPolicyError {
    /// The priority is out of range.
    #[error("{policy:?}: real-time priorities go from 1 to 99")]
    Priority {
        /// What was asked.
        policy: SchedPolicy,
    },
    /// The three times of a deadline are out of order.
    #[error("{policy:?}: runtime ≤ deadline ≤ period must hold, and the runtime be at least 1 µs")]
    Deadline {
        /// What was asked.
        policy: SchedPolicy,
    },
}

/// `struct sched_attr`, its first version of 48 bytes.
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// `SCHED_DEADLINE` and `SCHED_EXT`, which not every libc names.
const DEADLINE: u32 = 6;
const EXT: u32 = 7;

impl SchedPolicy {
    /// A deadline policy.
    pub const fn deadline(runtime: Duration, deadline: Duration, period: Duration) -> Self {
        Self::Deadline { runtime, deadline, period }
    }

    /// The policy itself if any kernel could accept it.
    pub fn checked(self) -> Result<Self, SchedPolicyError> {
        match self {
            Self::Fifo(priority) | Self::RoundRobin(priority) if !(1..=99).contains(&priority) => {
                Err(SchedPolicyError::Priority { policy: self })
            }
            Self::Deadline { runtime, deadline, period }
                if runtime > deadline || deadline > period || runtime < Duration::from_micros(1) =>
            {
                Err(SchedPolicyError::Deadline { policy: self })
            }
            _ => Ok(self),
        }
    }

    /// Whether the scheduler that serves fair tasks (EEVDF or the BPF one) decides over it.
    pub const fn is_fair(&self) -> bool {
        matches!(self, Self::Normal | Self::Batch | Self::Idle | Self::Ext)
    }

    /// Sets it for a thread; 0 is the calling one.
    pub fn apply(&self, tid: u32, nice: Option<i32>) -> nix::Result<()> {
        let mut attr = SchedAttr {
            size: size_of::<SchedAttr>() as u32,
            nice: if self.is_fair() { nice.unwrap_or(0) } else { 0 },
            ..SchedAttr::default()
        };
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        (attr.policy, attr.priority) = match self {
            Self::Normal => (libc::SCHED_OTHER as u32, 0),
            Self::Batch => (libc::SCHED_BATCH as u32, 0),
            Self::Idle => (libc::SCHED_IDLE as u32, 0),
            Self::Fifo(priority) => (libc::SCHED_FIFO as u32, *priority),
            Self::RoundRobin(priority) => (libc::SCHED_RR as u32, *priority),
            Self::Deadline { .. } => (DEADLINE, 0),
            Self::Ext => (EXT, 0),
        };
        if let Self::Deadline { runtime, deadline, period } = self {
            (attr.runtime, attr.deadline, attr.period) = (nanos(*runtime), nanos(*deadline), nanos(*period));
        }
        // SAFETY: the kernel reads `size` bytes of the structure, which is as long and lives through
        // the call.
        let done = unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attr, 0_u32) };
        Errno::result(done).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_policies_are_refused_before_the_kernel_is_asked() {
        let ms = Duration::from_millis;
        for good in [
            SchedPolicy::Normal,
            SchedPolicy::Fifo(1),
            SchedPolicy::RoundRobin(99),
            SchedPolicy::Ext,
            SchedPolicy::deadline(ms(1), ms(5), ms(5)),
        ] {
            assert_eq!(good.checked(), Ok(good));
        }
        for bad in [SchedPolicy::Fifo(0), SchedPolicy::RoundRobin(100)] {
            assert!(bad.checked().unwrap_err().to_string().contains("1 to 99"));
        }
        for bad in [
            SchedPolicy::deadline(ms(6), ms(5), ms(10)),
            SchedPolicy::deadline(ms(1), ms(12), ms(10)),
            SchedPolicy::deadline(Duration::ZERO, ms(1), ms(1)),
        ] {
            assert!(bad.checked().unwrap_err().to_string().contains("runtime ≤ deadline ≤ period"));
        }
    }

    #[test]
    fn a_policy_reaches_the_kernel() {
        let policy = std::thread::spawn(|| {
            SchedPolicy::Batch.apply(0, Some(3)).unwrap();
            // SAFETY: takes a number and touches no memory.
            unsafe { libc::sched_getscheduler(0) }
        });
        assert_eq!(policy.join().unwrap(), libc::SCHED_BATCH);
    }
}

//! Why a kind of work cannot be done on a machine: not a failure, not progress, but said.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use nix::errno::Errno;

use super::board::Slot;

/// What is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Missing {
    SmtSiblings = 1,
    Width,
    Nodes,
    Priority,
    Cgroup,
    File,
    Memory,
    Device,
    Policy,
    PiFutex,
    Process,
}

const ALL: [(Missing, &str); 11] = [
    (Missing::SmtSiblings, "no two allowed CPUs are SMT siblings"),
    (Missing::Width, "this CPU lacks vectors of that width"),
    (Missing::Nodes, "fewer than two NUMA nodes are allowed"),
    (Missing::Priority, "real-time priority is not permitted"),
    (Missing::Cgroup, "no sibling cgroup can be used"),
    (Missing::File, "no file with these properties can be opened"),
    (Missing::Memory, "memory cannot be mapped or moved"),
    (Missing::Device, "there is no network device that is up"),
    (Missing::Policy, "the scheduling policy is not permitted"),
    (Missing::PiFutex, "the kernel has no priority-inheriting futexes"),
    (Missing::Process, "no child process can be made"),
];

/// What is missing, and what the system said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotRun {
    pub missing: Missing,
    pub errno: Option<Errno>,
}

impl NotRun {
    /// Notes it in the worker's slot, before anything else of the slot is believed.
    pub fn note(self, slot: &Slot) {
        slot.not_run_errno.store(self.errno.map_or(0, |errno| errno as u32), Relaxed);
        slot.not_run.store(self.missing as u32, Release);
    }

    /// What a slot says, in words.
    pub fn noted(slot: &Slot) -> Option<String> {
        let code = slot.not_run.load(Acquire);
        let (_, text) = ALL.iter().find(|(missing, _)| *missing as u32 == code)?;
        Some(match slot.not_run_errno.load(Relaxed) {
            0 => (*text).into(),
            errno => format!("{text}: {}", Errno::from_raw(errno as i32).desc()),
        })
    }
}

impl From<Missing> for NotRun {
    fn from(missing: Missing) -> Self {
        Self { missing, errno: None }
    }
}

impl Missing {
    /// With the system's reason.
    pub fn because(self, errno: Errno) -> NotRun {
        NotRun { missing: self, errno: Some(errno) }
    }
}

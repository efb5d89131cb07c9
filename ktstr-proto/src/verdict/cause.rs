//! Why a run ended as it did: the scheduler's doing, the test's, the kernel's, or our own.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The processes of a run, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Process {
    /// `ktstr-vmm`.
    Vmm,
    /// The emulator child of the VMM.
    Emulator,
    /// `ktstr-monitor`.
    Monitor,
    /// `ktstr-orch`.
    Orchestrator,
    /// Test binary or CLI.
    Client,
    /// The process that serves disks and networks.
    Device,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vmm => "ktstr-vmm",
            Self::Emulator => "emulator",
            Self::Monitor => "ktstr-monitor",
            Self::Orchestrator => "ktstr-orch",
            Self::Client => "client",
            Self::Device => "device process",
        })
    }
}

/// Why a run ended as it did. Append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// A check of the test failed, or its function returned an error.
    Assertion,
    /// The test function panicked.
    TestPanic {
        /// Panic message with location.
        message: String,
        /// Backtrace, if captured.
        backtrace: String,
    },
    /// The test process ended without a result.
    TestDied {
        /// Exit status or signal in words.
        how: String,
    },
    /// The kernel's watchdog ended the scheduler: a runnable task was not run.
    SchedulerStall {
        /// The kernel's or scheduler's words.
        reason: String,
    },
    /// The scheduler ended itself with an error (`scx_bpf_error`, runtime error).
    SchedulerError {
        /// The kernel's or scheduler's words.
        reason: String,
    },
    /// The scheduler never reached `enabled`.
    SchedulerNotAttached {
        /// What was seen.
        reason: String,
    },
    /// The scheduler's process died.
    SchedulerDied {
        /// Exit status or signal in words.
        how: String,
    },
    /// The guest kernel panicked.
    KernelPanic {
        /// The panic line of the console.
        message: String,
    },
    /// PID 1 could not set the guest up.
    GuestInit {
        /// The step that failed.
        step: String,
        /// Why.
        reason: String,
    },
    /// The guest never spoke or stopped speaking before the deadline.
    Deadline {
        /// The last thing known to have happened.
        phase: String,
        /// Wall time waited, milliseconds.
        waited_ms: u64,
    },
    /// The guest ended (reset, triple fault, power-off) before its result arrived.
    GuestEnded {
        /// How, in words.
        how: String,
    },
    /// The guest sent what cannot be decoded.
    Channel {
        /// What is wrong and where.
        reason: String,
    },
    /// A process of ktstr died.
    ProcessDied {
        /// Which.
        process: Process,
        /// Exit status or signal in words.
        how: String,
    },
    /// Something needed is missing here.
    Missing {
        /// What and what to do.
        reason: String,
    },
    /// The request cannot be carried out as written.
    BadRequest {
        /// What is wrong and what to do.
        reason: String,
    },
    /// The client asked to stop.
    Cancelled,
}

//! What a scheduler says of itself: statistics as JSON over a unix socket, as published sched_ext schedulers
//! serve them, or why there are none.
//!
//! One request per line, `{"req":"stats","args":{}}`, one answer per line, `{"errno":0,"args":{"resp":…}}`. PID 1 of
//! the guest asks right before a capture, so that what the scheduler says and what its memory holds belong
//! together; the answer goes to the host as text that nobody has looked into.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where the scheduler listens, in the guest.
pub const SOCKET: &str = "/var/run/scx/root/stats";
/// Longest answer that is passed on, in bytes.
pub const MAX_STATS: usize = 256 << 10;
/// All answers of one run together: under `det` they lie in a ring that nobody empties.
pub const MAX_TOTAL: usize = 4 << 20;
/// How long the scheduler may take to answer, milliseconds of the guest's time.
pub const ANSWER_LIMIT_MS: u64 = 500;

/// When, after the scenario's start, snapshot `nth` of `count` is due: evenly spread between 10 % and 90 % of its
/// `length`, since neither its first moments nor its last ones are like the rest.
#[must_use]
pub fn boundary(nth: u32, count: u32, length: Duration) -> Duration {
    length.mul_f64(0.1 + 0.8 * (f64::from(nth) + 1.0) / (f64::from(count) + 1.0))
}

/// Which capture statistics belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StatsOf {
    /// That of the test's `num_snapshots` with this number, from 0.
    Snapshot(u32),
    /// The one that the test asks for with [`crate::guest::GuestFrame::AskHost`] of this number.
    Question(u32),
}

/// Statistics as JSON, or why there are none.
pub type Stats = Result<String, MissingStatsReason>;

/// Why a capture has no statistics of the scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum MissingStatsReason {
    /// No sched_ext scheduler is in charge.
    #[error("no sched_ext scheduler was in charge")]
    NoScheduler,
    /// It serves none.
    #[error("the scheduler serves none at {SOCKET}: {why}")]
    NoSocket {
        /// What connecting came to.
        why: String,
    },
    /// It did not answer in time.
    #[error("the scheduler did not answer within {limit_ms} ms of the guest's time")]
    Late {
        /// How long was waited.
        limit_ms: u64,
    },
    /// It answered with an error.
    #[error("the scheduler answered with error {errno}: {args}")]
    SchedulerError {
        /// The error number it sent.
        errno: i32,
        /// What it sent beside.
        args: String,
    },
    /// It answered, and not with statistics.
    #[error("the scheduler's answer has no statistics in it: {why}")]
    MissingResp {
        /// What it has.
        why: String,
    },
    /// It ended the connection.
    #[error("the scheduler closed the connection before it answered")]
    Cancelled,
    /// There is no room for the answer.
    #[error("the scheduler's statistics are longer than {limit} bytes")]
    TooLarge {
        /// What there is room for.
        limit: usize,
    },
    /// The capture was taken at a moment that nobody could know before.
    #[error("the capture was taken at a moment that the guest was not asked before")]
    DuringFreeze,
    /// The guest was to send them and did not in time.
    #[error("the guest did not send them before the capture")]
    NotHeard,
    /// The orchestrator could not keep them.
    #[error("they could not be kept: {why}")]
    NotKept {
        /// Why.
        why: String,
    },
}

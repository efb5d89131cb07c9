//! Workers: forked processes that do one kind of work, measure themselves and stop when told to.
//!
//! A [`WorkloadHandle`] forks them parked on a pipe, so that they can be placed in their cgroup
//! before they start. They keep their figures in memory shared with the parent ([`board`]): a worker
//! that dies leaves what it had, and nothing needs to be sent. [`meter`] defines every figure.
//!
//! Refuses to judge: that is [`crate::check`].

mod board;
mod kinds;
mod meter;
mod spawn;

pub use kinds::WorkType;
pub use spawn::{STOP_TIMEOUT, WorkError, WorkloadConfig, WorkloadHandle};

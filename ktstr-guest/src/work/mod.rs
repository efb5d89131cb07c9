//! Workers: processes or threads that do one kind of work, measure themselves and stop when told to.
//!
//! A [`WorkloadHandle`] makes them parked, so that they can be placed in their cgroup before they start
//! ([`spawn`] for the parent's side, [`life`] for theirs). They keep their figures in memory shared with
//! the parent ([`board`]): a worker that dies leaves what it had, and nothing needs to be sent. [`meter`]
//! defines every figure, [`work_type`] every kind of work, [`kinds`] holds the loops, [`worker`] the means
//! by which the members of a group meet.
//!
//! Refuses to judge: that is [`crate::check`].

mod bench;
mod board;
mod burn;
mod catalogue;
mod cpus;
mod custom;
mod kinds;
mod life;
mod meter;
mod not_run;
#[cfg(test)]
mod reference;
mod region;
mod report;
mod rng;
mod spawn;
mod sys;
#[cfg(test)]
mod tests;
mod thread_meter;
mod work_type;
mod worker;

pub use bench::{SchbenchConfig, TaobenchConfig};
pub use board::MAX_PHASES;
pub use catalogue::{UnknownWorkType, WorkTypeError};
pub(crate) use sys::now_ns;

pub use custom::{Custom, CustomCfg, WorkerCtx};
pub use kinds::DISK_ENV;
pub use rng::Rng;
pub(crate) use spawn::in_groups;
pub use spawn::{
    CloneMode, FIRST_ITERATION_TIMEOUT, STOP_TIMEOUT, WorkError, WorkloadConfig, WorkloadHandle,
};
pub use work_type::{PiMode, Reap, SequencePhase, SimdWidth, WakeMechanism, WorkType};

//! What a test says and how it is carried out: the context it is given ([`Ctx`]), cgroups as data
//! ([`CgroupDef`]), and the engine that turns them into running workers and a judged result
//! ([`execute_defs`]). Ready-made scenarios are in [`scenarios`].
//!
//! Random choices come from [`Ctx::seed`] only; results hold no wall-clock times and no order that
//! depends on hashing, so that equal runs give equal results.

mod cpuset;
mod ctx;
mod def;
mod execute;
pub mod scenarios;

pub use cpuset::{CpusetError, CpusetSpec, cpu_list};
pub use ctx::Ctx;
pub use def::CgroupDef;
pub use execute::{ScenarioError, execute_defs};

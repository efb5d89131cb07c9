//! One test on many machines and kernels: the cells of a gauntlet, named, listed, chosen and run.
//!
//! ```text
//! gauntlet/TEST/PRESET          every preset within the test's bounds
//! gauntlet/TEST/PRESET/KERNEL   the same when `KTSTR_KERNELS` names several kernels
//! ktstr/TEST/KERNEL             the test on its own machine, once for each of several kernels
//! ktstr/TEST, host/TEST         the test where there is one kernel or it needs none: can be run by this
//!                               name and is not listed, since the harness has it as TEST
//! ```
//!
//! [`cells`] makes them, [`selection`] chooses among them, [`listing`] gives them to the test harness
//! before its `main`: nextest runs each as a test of its own, and `cargo test -- gauntlet/…` works
//! without nextest. Cells of presets are ignored unless asked for (`--run-ignored`) or chosen within
//! `KTSTR_BUDGET_SECS`, by what [`budget`] and [`durations`] say of them. Nothing here knows how a run is carried out; that is [`crate::host`].

mod budget;
mod cells;
mod durations;
mod listing;
mod selection;

pub use cells::{Cell, NamedKernel, cells, kernel_label};
pub use durations::{key, note};
pub(crate) use listing::before_main;

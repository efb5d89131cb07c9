//! Tests for Linux process schedulers: a machine shape, a real kernel, a verdict with evidence.
//!
//! ```no_run
//! use ktstr::prelude::*;
//!
//! declare_scheduler!(MY_SCHED, { name = "my_sched", binary = "scx_my_sched", topology = (1, 2, 2, 1) });
//!
//! #[ktstr_test(scheduler = MY_SCHED)]
//! fn steady(ctx: &Ctx) -> Result<AssertResult> {
//!     scenarios::steady(ctx)
//! }
//! # fn main() {}
//! ```
//!
//! A test function runs inside the guest; the `#[test]` that the macro makes of it is a client of the
//! orchestrator and holds no privilege and no guest memory. [`host`] is that client half, [`client`]
//! its connection, [`scenario`] and [`ktstr_guest`] the guest half. Nothing here links KVM, BPF or TLS.

extern crate self as ktstr;

mod built;
pub mod claims;
pub mod client;
pub mod executables;
pub mod gauntlet;
mod guest_entry;
pub mod host;
pub mod prelude;
pub mod render;
pub mod scenario;
mod scheduler;

pub use built::NotBuilt;
pub use host::Constraints;
pub use ktstr_guest::cpu;
pub use ktstr_macros::{Payload, declare_scheduler, ktstr_test};
pub use scheduler::{ConfigFileDef, KTSTR_SCHEDULERS, Scheduler, Sysctl};

/// What emitted code refers to; no part of the interface.
#[doc(hidden)]
pub mod __private {
    pub use linkme;
}

//! The emulator backend: QEMU as a supervised child, for machines without usable KVM (`tcg`) and for
//! runs that replay bit for bit (`det`).
//!
//! [`version`] knows what an installed emulator can be trusted with, [`layout`] where it puts RAM,
//! [`args`] how it is called, [`migration`] how the state of its devices is kept, `lockstep` what keeps the
//! host's moments from a `det` run, [`child`] and [`qmp`] how it is held and spoken to; [`running`] puts them behind [`crate::machine::Running`]. It refuses network, disks and every other device that a
//! scheduler test has no use for.

pub mod args;
pub mod child;
mod files;
pub mod gdb;
pub mod layout;
mod lockstep;
pub mod migration;
pub mod qmp;
mod registers;
pub mod running;
pub mod version;
mod watch;

pub use args::Mode;
pub use running::{EmulatedMachine, EmulatorSpec, Origin, Prepared, StartError};
pub use version::Version;

//! The emulator backend: QEMU as a supervised child, for machines without usable KVM (`tcg`) and for
//! runs that replay bit for bit (`det`).
//!
//! [`version`] knows what an installed emulator can be trusted with, [`layout`] where it puts RAM,
//! [`args`] how it is called, [`migration`] how the state of its devices is kept, `preload` what
//! is changed about it while it runs, [`child`] and [`qmp`] how it is held and spoken to; [`running`] puts them
//! behind [`crate::machine::Running`].

pub mod args;
pub mod child;
mod files;
pub mod gdb;
pub mod layout;
pub mod migration;
mod preload;
pub mod qmp;
mod registers;
pub mod running;
pub mod version;
mod watch;

pub use args::Mode;
pub use running::{EmulatedMachine, EmulatorSpec, Origin, Prepared, StartError};
pub use version::Version;

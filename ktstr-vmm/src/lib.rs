//! The virtual machine monitor: hardware KVM or an emulator child behind one interface.
//!
//! [`machine`] is that interface, [`emulator`] the backend for accelerators `tcg` and `det`.

pub mod emulator;
pub mod machine;

//! The machine on hardware KVM.
//!
//! One thread per vCPU, one for devices, in-kernel interrupt controllers, direct PVH boot, ACPI tables
//! of our own. It opens no path and parses nothing the guest sends beyond what a device must. Read
//! [`machine`] first, then `vcpu`; `x86_64` holds what depends on the architecture.

pub mod control;
pub mod devices;
pub mod io_thread;
pub mod kick;
pub mod machine;
pub mod memory;
pub mod port_ring;
pub mod state;
pub mod statistics;
pub mod vcpu;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

pub use machine::{KvmMachine, StartError};

//! What is particular to x86_64: address layout, CPUID, ACPI, PVH boot, initial registers.

pub mod acpi;
mod affinity;
pub mod boot;
pub mod cpuid;
pub mod layout;
pub mod state;
pub mod watch;

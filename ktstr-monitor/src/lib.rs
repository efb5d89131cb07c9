//! Reads the guest kernel from outside: memory, symbols, BTF, samples.
//!
//! The way from bytes to meaning, each step in its own module:
//!
//! ```text
//! mem (Gpa) → paging (Kva) ┐
//! image → symbols, btf ────┴→ kernel (profile, locate, mirrors) → sample → judge
//! ```
//!
//! All of it needs a memory descriptor and a kernel file, nothing else: no KVM, no path, no help
//! from the guest. Guest memory is hostile and changes while it is read; every read is
//! bounds-checked, every walk is bounded, and what cannot be read is a typed error, never 0.

pub mod addr;
pub mod arch;
pub mod bpf;
pub mod btf;
pub mod cast;
mod command;
pub mod cross_check;
pub mod dump;
pub mod freeze;
pub mod guest_kernel;
pub mod image;
pub mod judge;
pub mod kernel;
pub mod kernel_place;
pub mod map_watch;
pub mod mem;
pub mod node;
pub mod paging;
pub mod place;
pub mod query;
pub mod render;
pub mod report;
pub mod sample;
mod serve;
pub mod stood;
pub mod structure;
pub mod symbols;
pub mod types;
pub mod vmcore;
pub mod watch;
pub mod watchdog;
pub mod written;

pub use command::main as command_main;
pub use guest_kernel::{BpfMapAccessor, GuestKernel};
pub use serve::role_main;

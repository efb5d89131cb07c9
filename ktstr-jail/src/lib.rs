//! Confinement of the ktstr processes: namespaces, an empty mount root, capabilities, resource
//! limits and system call filters, applied in one order that is written down once.
//!
//! [`JailSpec`] says what a process may keep. [`enter`] confines the calling process and yields
//! [`Confined`], which code that touches guest memory or runs a VM asks for as proof.
//! [`spawn`] starts another program inside a jail. Filters are compiled from the files in
//! `policy/`, the same in every build; a system call they do not list kills the process.
//!
//! It refuses to weaken itself: a step that fails ends in a [`JailError`] naming it, and there is no
//! way to obtain a [`Confined`] past it. A failed [`enter`] leaves the process half confined; all it
//! can sensibly do is to report the error and exit.
//!
//! Order: `plan.rs`. The single system calls: `step.rs`. The Landlock ruleset: `ruleset.rs`.

mod enter;
mod error;
mod plan;
mod policy;
mod ruleset;
mod spawn;
mod spec;
mod step;

pub use enter::{Confined, GuestThreads, enter};
pub use error::JailError;
pub use policy::{PolicyError, Role};
pub use spawn::{Cell, Jailed, Program, spawn, start};
pub use spec::{JailSpec, Limits, Mount, Namespaces};

/// Whether a process was ended by its system call filter, from how it ended.
#[must_use]
pub fn killed_by_filter(status: std::process::ExitStatus) -> bool {
    std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGSYS)
}

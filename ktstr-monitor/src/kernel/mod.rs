//! One kernel: what its file says ([`Profile`]), where a running instance lies ([`LiveKernel`]), and
//! mirrors of its structures, one file per kernel area. [`rq`] and [`scx`] are the little that each
//! sample reads; [`state`] is everything: tasks, run queues, domains, DSQs, control groups.
//!
//! Names are the kernel's own. What a structure looks like is decided by BTF only, never by a
//! version number.

pub mod cgroup;
pub mod cpu;
pub mod dsq;
pub mod list;
mod locate;
pub mod mirror;
pub mod module;
mod profile;
pub mod rq;
pub mod scx;
pub mod scx_state;
pub mod state;
pub mod task;
mod value;
mod view;

pub use locate::{CpuArea, LiveKernel, NotReady};
pub use profile::{Profile, ProfileError};
pub use value::{Gap, Reading, read_field};
pub use view::{Enumerators, Known, View};

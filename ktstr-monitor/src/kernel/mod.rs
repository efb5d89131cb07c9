//! One kernel: what its file says ([`Profile`]), where a running instance lies ([`LiveKernel`]), and
//! mirrors of its structures, one file per kernel area ([`rq`], [`scx`]).
//!
//! Names are the kernel's own. What a structure looks like is decided by BTF only, never by a
//! version number.

mod locate;
mod profile;
pub mod rq;
pub mod scx;
mod value;

pub use locate::{CpuArea, LiveKernel, NotReady};
pub use profile::{Profile, ProfileError};
pub use value::{Gap, Reading, read_field};

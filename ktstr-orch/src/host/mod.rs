//! What of the host a machine gets: CPUs of its own, memory beside them, or a bounded share.
//!
//! [`topology`] reads the host out of sysfs. [`placement`] gives each vCPU a host CPU so that the host's
//! caches and nodes are laid out like the guest's; [`budget`] chooses how many CPUs a machine without such
//! claims may use. Both are arithmetic on what was read. [`locks`] keeps several runs on one host apart,
//! [`effects`] asks the kernel for what was decided and reads back what it did; [`grant`] puts them together
//! for a run. Nothing is half granted:
//! what the host refuses is a [`Refusal`], and the run is not run.

pub mod budget;
pub mod effects;
pub mod grant;
pub mod locks;
pub mod placement;
pub mod topology;

pub use grant::{Grant, GrantError, Share};
pub use placement::{Placement, Refusal};
pub use topology::HostTopology;

//! A scheduler as data, and the list of all that are declared.

use ktstr_proto::{Topology, verdict::Assert};

/// A scheduler under test; made by [`crate::declare_scheduler!`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scheduler {
    /// Name for people.
    pub name: &'static str,
    /// Executable: a bare name to be found, or a path.
    pub binary: &'static str,
    /// Machine shape of tests that do not say another.
    pub topology: Topology,
    /// Arguments it is always given.
    pub sched_args: &'static [&'static str],
    /// Kernels it is meant for; empty is all.
    pub kernels: &'static [&'static str],
    /// Thresholds that differ from the defaults.
    pub assert: Assert,
    /// Package that declares it.
    pub package: &'static str,
}

/// All schedulers declared in this executable.
#[linkme::distributed_slice]
pub static KTSTR_SCHEDULERS: [&'static Scheduler];

//! What runs inside the guest: PID 1, scheduler lifecycle, cgroups, scenarios, workers.

pub mod job;
pub mod report;

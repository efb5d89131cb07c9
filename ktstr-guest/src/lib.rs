//! What runs inside the guest: PID 1, scheduler lifecycle, cgroups, scenarios, workers.

pub mod attributes;
pub mod cgroup;
pub mod check;
pub mod cpu;
pub mod init;
pub mod job;
pub mod on_host;
pub mod report;
mod ring_memory;
pub mod scenario;
pub mod work;

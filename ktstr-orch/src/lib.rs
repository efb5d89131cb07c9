//! Sessions: spawns and supervises VMM and monitor, keeps the kernel store, assembles verdicts.
//!
//! The orchestrator is the only holder of paths, deadlines and child pids, and never maps guest RAM.
//! [`server`] is the readiness loop, [`session`] the state machine of one run, [`plan`] turns a
//! request into something that can be started, [`judge`] evidence into a verdict, [`rundir`] keeps
//! what happened, [`timeline`] puts it on one clock. [`store`] holds kernels, [`pack`] builds initramfs
//! archives, [`warm`] keeps machines that are ready, [`host`] decides what of this host a machine gets.
//! A run whose scheduler crashed is looked into by a second one (`repro`).

pub mod children;
mod devices;
mod disk;
mod door;
#[cfg(test)]
mod example;
pub mod host;
pub mod host_time;
pub mod judge;
mod known;
pub mod pack;
pub mod plan;
mod repro;
pub mod rundir;
pub mod server;
pub mod session;
pub mod store;
pub mod timeline;
mod tsc;
pub mod warm;

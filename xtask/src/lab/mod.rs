//! The KVM lab: nested KVM on machines that have no usable KVM.
//!
//! A distribution kernel with `kvm-amd` runs under an emulator that emulates
//! SVM; inside, `/dev/kvm` works. `cargo xtask lab -- CMD` boots it once,
//! brings binaries in, runs CMD, streams its output and returns its exit code.
//!
//! ```text
//!  cargo xtask lab ──flock──▶ client.lock          (one command at a time)
//!        │  agent.sock (frames, wire.rs)  exchange.img (file contents)
//!        ▼                                    │
//!  lab keeper ── owns ──▶ emulator ◀──────────┘
//!   (idle limit, SIGTERM)     └─ agent = PID 1 in the lab (agent.rs)
//! ```
//!
//! Nothing here judges a test: a panic of the lab kernel is infrastructure
//! (exit code 4), never a result. Start reading at [`command`].

mod agent;
mod boot;
mod client;
mod closure;
mod command;
mod exchange;
mod guest_setup;
mod initrd;
mod keeper;
mod kernel;
mod shutdowns;
mod state;
mod wire;

pub use agent::agent_main;
pub use command::{LabArgs, command};
pub use initrd::Archive;
pub use keeper::keeper_main;
pub use kernel::LabKernel;

/// Hidden subcommand run as PID 1 of the lab.
pub const AGENT_COMMAND: &str = "lab-agent";
/// Hidden subcommand that owns the emulator.
pub const KEEPER_COMMAND: &str = "lab-keeper";
/// Exit code for "something that is no test broke".
pub const INFRASTRUCTURE: u8 = 4;

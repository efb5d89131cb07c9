//! Messages between the ktstr processes, their framing, and the plain data they carry.
//!
//! One file per link: [`client`] (test binary or CLI ↔ orchestrator), [`vmm`] and [`monitor`]
//! (orchestrator ↔ its children), [`guest`] (PID 1 → orchestrator, through the ring of [`ring`]).
//! [`codec`] is the only place that knows the encoding, [`channel`] the only one that touches a socket.
//!
//! Rules that keep old and new builds from misreading each other: the header is decoded before any
//! body and carries the protocol version; lengths are bounded before anything is allocated; serde
//! enums encode a variant's position, so variants and fields are only ever appended, and every such
//! change bumps [`VERSION`]. `tests/pinned.rs` holds the bytes of each version.

pub mod budget;
pub mod capture;
pub mod channel;
pub mod client;
pub mod codec;
pub mod colour;
pub mod device;
mod ending;
pub mod figures;
pub mod guest;
pub mod handover;
pub mod histogram;
pub mod host;
pub mod kernel_place;
pub mod link;
pub mod map_watch;
pub mod monitor;
pub mod registers;
pub mod repro;
pub mod ring;
pub mod run;
pub mod scx_stats;
pub mod snapshot;
pub mod stats;
pub mod symbols;
pub mod terminal;
pub mod thresholds;
pub mod topology;
pub mod verdict;
pub mod vmm;
pub mod word;

/// Version of every link. Peers of another version are refused with [`codec::CodecError::Version`].
pub const VERSION: u16 = 1;

/// The descriptor on which a child process finds the socket to the process that started it.
pub const CHILD_SOCKET_FD: i32 = 3;

pub use channel::{Channel, ChannelError};
pub use link::{Call, FdSlot, Fds, Link, RemoteError};
pub use run::{Accel, AccelKind, RunId};
pub use topology::Topology;

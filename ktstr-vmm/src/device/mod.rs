//! Disks and networks, in a process of their own.
//!
//! ```text
//!  orchestrator ──Serve: image, listeners──► device process (jailed)
//!       └──Start: sockets──► VMM ──vhost-user──┘   queues in guest RAM, kicks and calls by eventfd
//! ```
//!
//! The same process serves the emulator and our own machine: both speak vhost-user to it. It holds a
//! disk image, guest RAM and sockets, and nothing else; a guest that breaks it ends the run with an
//! outcome that names it.
//!
//! [`block`] and [`net`] are the devices, [`buffers`] what a guest says of its requests, [`queues`] the
//! glue to the vhost-user crates, [`relay`] what a network's user leaves out, [`serve`] the process.

pub mod block;
pub mod buffers;
pub mod net;
pub mod queues;
pub mod relay;
pub mod serve;
pub mod throttle;

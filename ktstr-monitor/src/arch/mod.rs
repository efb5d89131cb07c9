//! What differs between guest architectures: the page-table walk, and where tables and pointers lie.
//!
//! The guest's architecture is that of its kernel file, not of the host. Everything above this
//! module is the same for all of them.

pub mod x86_64;

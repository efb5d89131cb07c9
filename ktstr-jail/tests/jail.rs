//! The jail as the confined process sees it, and as the host sees the process.
//!
//! Every probe runs in a child of its own that enters the jail and tries one thing. A host that
//! forbids user namespaces fails these tests with the message that says what to enable.

#[path = "jail/child.rs"]
mod child;
#[path = "jail/inside.rs"]
mod inside;
#[path = "jail/outside.rs"]
mod outside;
#[path = "jail/program.rs"]
mod program;

//! The ktstr-monitor executable.

fn main() {}

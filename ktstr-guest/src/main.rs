//! The ktstr-guest executable.

fn main() {}

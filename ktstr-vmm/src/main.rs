//! The ktstr-vmm executable.

fn main() {}

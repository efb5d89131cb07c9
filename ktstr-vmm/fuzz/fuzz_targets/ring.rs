//! The guest channel. `cargo xtask fuzz ring`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_vmm::fuzz::ring(data));

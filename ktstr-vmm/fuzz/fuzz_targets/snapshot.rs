//! The file of a snapshot and the devices' state in it. `cargo xtask fuzz snapshot`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_vmm::fuzz::snapshot(data));

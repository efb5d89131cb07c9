//! The queues of the device process's disk. `cargo xtask fuzz disk`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_vmm::fuzz::disk(data));

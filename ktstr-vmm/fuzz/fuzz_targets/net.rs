//! The queues of the device process's net. `cargo xtask fuzz net`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_vmm::fuzz::net(data));

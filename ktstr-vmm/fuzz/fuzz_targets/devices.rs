//! Ports, device memory and queues of the KVM machine. `cargo xtask fuzz devices`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_vmm::fuzz::devices(data));

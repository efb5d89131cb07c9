//! Ports, device memory and queues of the KVM machine. Run in `ktstr-vmm`:
//! `cargo +nightly fuzz run devices fuzz/corpus/devices fuzz/seeds/devices`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_vmm::fuzz::devices(data));

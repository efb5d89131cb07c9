//! The queues of the device process's net. Run in `ktstr-vmm`:
//! `cargo +nightly fuzz run net fuzz/corpus/net fuzz/seeds/net`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_vmm::fuzz::net(data));

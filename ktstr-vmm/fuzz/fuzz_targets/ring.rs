//! The guest channel. Run in `ktstr-vmm`:
//! `cargo +nightly fuzz run ring fuzz/corpus/ring fuzz/seeds/ring`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_vmm::fuzz::ring(data));

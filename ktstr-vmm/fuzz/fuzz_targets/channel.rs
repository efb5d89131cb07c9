//! Both directions of the guest channel, step by step. Run in `ktstr-vmm`:
//! `cargo +nightly fuzz run channel fuzz/corpus/channel fuzz/seeds/channel`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_vmm::fuzz::channel(data));

//! Kernel files. Run in `ktstr-vmm`:
//! `cargo +nightly fuzz run kernel fuzz/corpus/kernel fuzz/seeds/kernel`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_vmm::fuzz::kernel(data));

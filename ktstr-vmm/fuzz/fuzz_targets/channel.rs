//! Both directions of the guest channel, step by step. `cargo xtask fuzz channel`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_vmm::fuzz::channel(data));

//! Kernel files. `cargo xtask fuzz kernel`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_vmm::fuzz::kernel(data));

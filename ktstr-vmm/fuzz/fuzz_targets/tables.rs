//! Shapes of requests and the ACPI tables made of them. `cargo xtask fuzz tables`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_vmm::fuzz::tables(data));

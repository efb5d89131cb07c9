//! Shapes of requests and the ACPI tables made of them. Run in `ktstr-vmm`:
//! `cargo +nightly fuzz run tables fuzz/corpus/tables fuzz/seeds/tables`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_vmm::fuzz::tables(data));

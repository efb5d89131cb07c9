//! The queues of the device process's disk. Run in `ktstr-vmm`:
//! `cargo +nightly fuzz run disk fuzz/corpus/disk fuzz/seeds/disk`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_vmm::fuzz::disk(data));

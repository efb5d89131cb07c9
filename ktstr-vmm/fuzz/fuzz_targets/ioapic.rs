//! The I/O APIC of machines with more CPUs than KVM's own can name. Run in `ktstr-vmm`:
//! `cargo +nightly fuzz run ioapic fuzz/corpus/ioapic fuzz/seeds/ioapic`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_vmm::fuzz::ioapic(data));

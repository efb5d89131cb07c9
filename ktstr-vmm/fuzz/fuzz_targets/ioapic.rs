//! The I/O APIC of machines with more CPUs than KVM's own can name. `cargo xtask fuzz ioapic`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_vmm::fuzz::ioapic(data));

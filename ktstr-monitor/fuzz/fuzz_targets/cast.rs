//! `cargo xtask fuzz cast` builds and runs it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_monitor_fuzz::entries::cast(data));

//! `cargo xtask fuzz tasks` builds and runs it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ktstr_monitor_fuzz::entries::tasks(data));

//! The entries for hostile bytes and the builder of made-up guests, both from the synthetic tests.

#[path = "../../tests/synthetic/bpf_types.rs"]
mod bpf_types;
#[path = "../../tests/synthetic/btf_writer.rs"]
mod btf_writer;
#[path = "../../tests/synthetic/entries.rs"]
pub mod entries;
#[path = "../../tests/synthetic/guest.rs"]
mod guest;
#[path = "../../tests/synthetic/kallsyms_writer.rs"]
mod kallsyms_writer;
#[path = "../../tests/synthetic/kernel_file.rs"]
mod kernel_file;

//! The monitor against made-up guests: memory, page tables, BTF and kernel structures written by a
//! builder, sound ones and hostile ones. No KVM, no kernel, no privilege.

mod bpf;
mod bpf_types;
mod btf_writer;
mod corrupt;
mod entries;
mod guest;
mod hostile_btf;
mod hostile_bytes;
mod kallsyms;
mod kallsyms_writer;
mod kernel_file;
mod kernel_places;
mod planted;
mod role;
mod slots;
mod walks;

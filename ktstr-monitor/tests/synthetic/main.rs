//! The monitor against made-up guests: memory, page tables, BTF and kernel structures written by a
//! builder, sound ones and hostile ones. No KVM, no kernel, no privilege.

mod bpf;
mod btf_writer;
mod corrupt;
mod guest;
mod hostile_btf;
mod kallsyms;
mod kernel_file;
mod planted;
mod role;
mod walks;

//! Where the kernel's variables lie: what the guest says of it against what the monitor found out by itself.
//!
//! The monitor decodes the symbols from the kernel file and finds out from memory how far the kernel was moved. PID 1
//! asks the running kernel's own table (that of `/proc/kallsyms`) for the same names, once, before it is ready.

use serde::{Deserialize, Serialize};

/// What is compared: the symbols from which the monitor finds everything else.
pub const COMPARED: [&str; 24] = [
    "_text",
    "linux_banner",
    "phys_base",
    "init_top_pgt",
    "page_offset_base",
    "pgdir_shift",
    "__per_cpu_offset",
    "__cpu_possible_mask",
    "__cpu_online_mask",
    "runqueues",
    "kernel_cpustat",
    "jiffies_64",
    "init_task",
    "nr_threads",
    "cgrp_dfl_root",
    "psi_system",
    "modules",
    "prog_idr",
    "map_idr",
    "btf_idr",
    "scx_root",
    "scx_watchdog_timeout",
    "vmcoreinfo_note",
    "__bpf_call_base",
];

/// Addresses of [`COMPARED`] in its order, `None` for a symbol that the running kernel does not know; or why it could
/// not be asked.
pub type SymbolsTold = Result<[Option<u64>; COMPARED.len()], String>;

/// What the comparison came to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SymbolsCompared {
    /// Symbols that lie where the guest says.
    pub agree: u32,
    /// Those about which guest and monitor differ.
    pub differ: Vec<SymbolDiffers>,
    /// Those that the monitor knows and the guest does not: a kernel without `CONFIG_KALLSYMS_ALL` keeps functions only.
    pub untold: Vec<String>,
    /// Why the guest could say nothing.
    pub impossible: Option<String>,
}

/// One symbol about which guest and monitor differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SymbolDiffers {
    /// One of [`COMPARED`].
    pub symbol: String,
    /// Its address by the guest.
    pub guest: u64,
    /// Its address by the monitor; `None` where the kernel file has no such symbol.
    pub monitor: Option<u64>,
}

impl std::fmt::Display for SymbolDiffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { symbol, guest, monitor } = self;
        match monitor {
            Some(monitor) => {
                write!(f, "the guest has `{symbol}` at {guest:#x}, the monitor reads it at {monitor:#x}")
            }
            None => write!(f, "the guest has `{symbol}` at {guest:#x}, its kernel file has no such symbol"),
        }
    }
}

/// What a difference means, and what to do about it.
pub const ADVICE: &str = "what the monitor read in this run may come from the wrong places: either the guest lies, or \
    the kernel that ran is not the file that the monitor was given; a run with --cold and the kernel pulled anew \
    (`ktstr kernel pull`) excludes the second";

//! What differs between guest architectures: the page-table walk, and where tables and pointers lie.
//!
//! The guest's architecture is that of its kernel file, not of the host. Everything above this
//! module is the same for all of them.

pub mod aarch64;
pub mod x86_64;

use crate::addr::{Gpa, Kva};
use crate::mem::GuestMem;
use crate::paging::{Mapped, PageError};

/// The page tables of a kernel, whatever it runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageTables {
    /// Of an x86_64 kernel.
    X86_64(x86_64::PageTable),
    /// Of an aarch64 kernel.
    Aarch64(aarch64::PageTable),
}

impl PageTables {
    /// Finds where `kva` lies.
    pub fn translate(&self, mem: &GuestMem, kva: Kva) -> Result<Mapped, PageError> {
        match self {
            Self::X86_64(table) => table.translate(mem, kva),
            Self::Aarch64(table) => table.translate(mem, kva),
        }
    }

    /// Whether the address could be a pointer of the kernel at all.
    pub fn is_canonical(&self, kva: Kva) -> bool {
        match self {
            Self::X86_64(table) => table.levels.is_canonical(kva),
            Self::Aarch64(table) => table.is_canonical(kva),
        }
    }

    /// Where the 512 pieces of 4 KiB of the 2 MiB around `kva` lie; an error when no table says so.
    pub fn neighbours(&self, mem: &GuestMem, kva: Kva) -> Result<Vec<Option<Gpa>>, PageError> {
        match self {
            Self::X86_64(table) => table.neighbours(mem, kva),
            Self::Aarch64(table) => table.neighbours(mem, kva),
        }
    }
}

impl From<x86_64::PageTable> for PageTables {
    fn from(table: x86_64::PageTable) -> Self {
        Self::X86_64(table)
    }
}

impl From<aarch64::PageTable> for PageTables {
    fn from(table: aarch64::PageTable) -> Self {
        Self::Aarch64(table)
    }
}

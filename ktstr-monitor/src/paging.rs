//! Kernel-virtual memory: a page table over [`GuestMem`], read by [`Kva`].
//!
//! Nothing is cached. A walk is four or five loads, a sample needs a few hundred of them, and the
//! guest may change its tables at any moment.

use thiserror::Error;

use crate::addr::{Gpa, Kva};
use crate::arch::x86_64::PageTable;
use crate::mem::{GuestMem, GuestMemMut, ReadError};

/// Where a virtual address lies, and how many bytes from there on are in the same page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The guest-physical address.
    pub gpa: Gpa,
    /// Bytes from `gpa` to the end of its page, at least 1.
    pub left: u64,
}

/// Why a virtual address has no physical one.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PageError {
    /// No pointer of this kernel looks like that.
    #[error("{kva} is no canonical kernel address")]
    NonCanonical {
        /// The address.
        kva: Kva,
    },
    /// Not mapped.
    #[error("{kva} is not mapped: the level {level} entry is not present")]
    NotPresent {
        /// The address.
        kva: Kva,
        /// The level of the entry, 1 being the lowest.
        level: u8,
    },
    /// An entry claims to be a page where the processor knows none.
    #[error("{kva}: the level {level} page-table entry has a reserved bit set")]
    ReservedBit {
        /// The address.
        kva: Kva,
        /// The level of the entry.
        level: u8,
    },
    /// A table lies outside RAM.
    #[error("{kva}: the level {level} page table lies outside guest RAM")]
    TableUnreadable {
        /// The address.
        kva: Kva,
        /// The level of the table.
        level: u8,
        /// What was read.
        #[source]
        source: ReadError,
    },
}

/// Why kernel-virtual memory could not be read.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AccessError {
    /// The address leads nowhere.
    #[error("cannot translate {kva}")]
    Translate {
        /// The address.
        kva: Kva,
        /// Why not.
        #[source]
        source: PageError,
    },
    /// The address leads outside RAM.
    #[error("cannot read {kva}")]
    Read {
        /// The address.
        kva: Kva,
        /// Where it led.
        #[source]
        source: ReadError,
    },
    /// The read would run past the end of the address space.
    #[error("a read of {len} bytes at {kva} runs past the end of the address space")]
    Wraps {
        /// The address.
        kva: Kva,
        /// The length.
        len: usize,
    },
}

/// The guest kernel's address space.
#[derive(Clone, Copy, Debug)]
pub struct KernelMem<'m> {
    mem: &'m GuestMem,
    table: PageTable,
}

impl<'m> KernelMem<'m> {
    /// `mem` as seen through `table`.
    pub fn new(mem: &'m GuestMem, table: PageTable) -> Self {
        Self { mem, table }
    }

    /// The physical memory underneath.
    pub fn physical(&self) -> &'m GuestMem {
        self.mem
    }

    /// Finds where `kva` lies.
    pub fn translate(&self, kva: Kva) -> Result<Mapped, PageError> {
        self.table.translate(self.mem, kva)
    }

    /// Whether the address could be a pointer at all.
    pub fn is_canonical(&self, kva: Kva) -> bool {
        self.table.levels.is_canonical(kva)
    }

    /// Copies `into.len()` bytes from `kva` on, across pages.
    pub fn read(&self, kva: Kva, into: &mut [u8]) -> Result<(), AccessError> {
        let mut done = 0;
        while done < into.len() {
            let here = kva.checked_add(done as u64).ok_or(AccessError::Wraps { kva, len: into.len() })?;
            let mapped =
                self.translate(here).map_err(|source| AccessError::Translate { kva: here, source })?;
            let left = into.len() - done;
            let len = usize::try_from(mapped.left).unwrap_or(left).min(left);
            self.mem
                .read(mapped.gpa, &mut into[done..done + len])
                .map_err(|source| AccessError::Read { kva: here, source })?;
            done += len;
        }
        Ok(())
    }

    /// Stores `bytes` from `kva` on into `mem`, the same guest's memory mapped for writing. Where a
    /// later page cannot be written, the pages before it have been.
    pub fn write_through(&self, mem: &GuestMemMut, kva: Kva, bytes: &[u8]) -> Result<(), AccessError> {
        let mut done = 0;
        while done < bytes.len() {
            let here = kva.checked_add(done as u64).ok_or(AccessError::Wraps { kva, len: bytes.len() })?;
            let mapped =
                self.translate(here).map_err(|source| AccessError::Translate { kva: here, source })?;
            let left = bytes.len() - done;
            let len = usize::try_from(mapped.left).unwrap_or(left).min(left);
            mem.write(mapped.gpa, &bytes[done..done + len])
                .map_err(|source| AccessError::Read { kva: here, source })?;
            done += len;
        }
        Ok(())
    }

    /// Reads a little-endian `u32`; not torn when aligned.
    pub fn read_u32(&self, kva: Kva) -> Result<u32, AccessError> {
        let mut bytes = [0; 4];
        self.read(kva, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Reads a little-endian `u64`; not torn when aligned.
    pub fn read_u64(&self, kva: Kva) -> Result<u64, AccessError> {
        let mut bytes = [0; 8];
        self.read(kva, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

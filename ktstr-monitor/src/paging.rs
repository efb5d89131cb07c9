//! Kernel-virtual memory: a page table over [`GuestMem`], read by [`Kva`].
//!
//! A running guest may change its tables at any moment, so nothing is remembered by default: a walk
//! is four or five loads, a sample needs a few hundred of them. While all vCPUs stand, and for the
//! length of one capture, a [`Tlb`] remembers where pages lie: 10,000 tasks are a million reads. And a
//! [`Kept`] copies what is read, so that it can be read again when the guest runs on.

use std::cell::{Cell, RefCell};

use thiserror::Error;

use crate::addr::{Gpa, Kva};
use crate::arch::PageTables;
use crate::mem::{GuestMem, GuestMemMut, Kept, ReadError};

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
    /// The guest makes reading take too long.
    #[error("gave up at {kva}: this look has taken {READS} reads, the guest's structures do not end")]
    Exhausted {
        /// The address that was not read any more.
        kva: Kva,
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

/// Reads of one look, at most: 100,000 tasks take about a million.
const READS: u64 = 8_000_000;

/// Reads that a look has left. Each list is bounded by itself; what a guest makes of lists in lists is
/// bounded by this.
#[derive(Debug)]
pub struct Budget(Cell<u64>);

impl Default for Budget {
    fn default() -> Self {
        Self(Cell::new(READS))
    }
}

impl Budget {
    fn spend(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        left > 0
    }
}

/// Remembered translations, valid as long as the guest's page tables are taken to stand still.
#[derive(Debug)]
pub struct Tlb(RefCell<Box<[Slot]>>);

#[derive(Clone, Copy, Debug)]
struct Slot {
    page: u64,
    gpa: Gpa,
}

const EMPTY: Slot = Slot { page: u64::MAX, gpa: Gpa(0) };
/// Pages remembered at a time; a page takes the place of the one that shares its slot.
const TLB_SLOTS: usize = 4096;
/// The smallest page: what is remembered of a larger one is the piece that was asked for.
const PAGE: u64 = 4096;

impl Default for Tlb {
    fn default() -> Self {
        Self::of(TLB_SLOTS)
    }
}

impl Tlb {
    /// One that remembers up to `slots` pages.
    pub fn of(slots: usize) -> Self {
        // No canonical kernel page has the number u64::MAX: an empty slot answers nothing.
        Self(RefCell::new(vec![EMPTY; slots.max(1)].into()))
    }

    /// Forgets everything.
    pub fn forget(&self) {
        self.0.borrow_mut().fill(EMPTY);
    }

    fn slot(&self, page: u64) -> usize {
        // The low bits alone would put the same page of every 16 MiB into one slot, as slabs do.
        (page ^ (page >> 12)) as usize % self.0.borrow().len()
    }

    fn get(&self, kva: Kva) -> Option<Mapped> {
        let page = kva.0 / PAGE;
        let slot = self.0.borrow()[self.slot(page)];
        let into = kva.0 % PAGE;
        (slot.page == page).then(|| Mapped { gpa: Gpa(slot.gpa.0 + into), left: PAGE - into })
    }

    fn put(&self, kva: Kva, mapped: Mapped) {
        let (page, into) = (kva.0 / PAGE, kva.0 % PAGE);
        let slot = self.slot(page);
        self.0.borrow_mut()[slot] = Slot { page, gpa: Gpa(mapped.gpa.0 - into) };
    }
}

/// The guest kernel's address space.
#[derive(Clone, Copy, Debug)]
pub struct KernelMem<'m> {
    mem: &'m GuestMem,
    table: PageTables,
    tlb: Option<&'m Tlb>,
    kept: Option<&'m Kept>,
    budget: Option<&'m Budget>,
}

impl<'m> KernelMem<'m> {
    /// `mem` as seen through `table`.
    pub fn new(mem: &'m GuestMem, table: impl Into<PageTables>) -> Self {
        let table = table.into();
        Self { mem, table, tlb: None, kept: None, budget: None }
    }

    /// The same, remembering translations in `tlb`, which must be new for each freeze.
    pub fn remembering(self, tlb: &'m Tlb) -> Self {
        Self { tlb: Some(tlb), ..self }
    }

    /// The same, by way of the copy in `kept`. Page tables are not read through it.
    pub fn keeping(self, kept: &'m Kept) -> Self {
        Self { kept: Some(kept), ..self }
    }

    /// The same, for as many reads as `budget` has left.
    pub fn within(self, budget: &'m Budget) -> Self {
        Self { budget: Some(budget), ..self }
    }

    /// Copies the bytes into what is kept, as far as they are there: who reads them later is told
    /// when they are not.
    pub fn touch(&self, kva: Kva, len: u64) {
        let Some(kept) = self.kept else { return };
        let mut done = 0;
        while done < len {
            let here = kva.wrapping_add(done);
            let Ok(mapped) = self.translate(here) else { return };
            let part = mapped.left.min(len - done);
            kept.touch(self.mem, mapped.gpa, part as usize);
            done += part;
        }
    }

    /// The physical memory underneath.
    pub fn physical(&self) -> &'m GuestMem {
        self.mem
    }

    /// Finds where `kva` lies.
    pub fn translate(&self, kva: Kva) -> Result<Mapped, PageError> {
        let Some(tlb) = self.tlb else { return self.table.translate(self.mem, kva) };
        if let Some(mapped) = tlb.get(kva) {
            return Ok(mapped);
        }
        let mapped = self.table.translate(self.mem, kva)?;
        tlb.put(kva, mapped);
        Ok(mapped)
    }

    /// Where the 4 KiB pages of the 2 MiB around `kva` lie, in order, all at once.
    pub fn neighbours(&self, kva: Kva) -> Result<Vec<Option<Gpa>>, PageError> {
        self.table.neighbours(self.mem, kva)
    }

    /// Whether the address could be a pointer at all.
    pub fn is_canonical(&self, kva: Kva) -> bool {
        self.table.is_canonical(kva)
    }

    /// Copies `into.len()` bytes from `kva` on, across pages.
    pub fn read(&self, kva: Kva, into: &mut [u8]) -> Result<(), AccessError> {
        if self.budget.is_some_and(|budget| !budget.spend()) {
            return Err(AccessError::Exhausted { kva });
        }
        let mut done = 0;
        while done < into.len() {
            let here = kva.checked_add(done as u64).ok_or(AccessError::Wraps { kva, len: into.len() })?;
            let mapped =
                self.translate(here).map_err(|source| AccessError::Translate { kva: here, source })?;
            let left = into.len() - done;
            let len = usize::try_from(mapped.left).unwrap_or(left).min(left);
            let part = &mut into[done..done + len];
            let read = match self.kept {
                Some(kept) => kept.read(self.mem, mapped.gpa, part),
                None => self.mem.read(mapped.gpa, part),
            };
            read.map_err(|source| AccessError::Read { kva: here, source })?;
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

    /// Reads a string up to its NUL; what is no UTF-8 is replaced. One that has none within `limit` bytes says at its
    /// end that it was cut.
    pub fn read_string(&self, kva: Kva, limit: usize) -> Result<String, AccessError> {
        let mut text = Vec::new();
        let mut piece = [0; 256];
        while text.len() < limit {
            let here =
                kva.checked_add(text.len() as u64).ok_or(AccessError::Wraps { kva, len: text.len() })?;
            // Up to the end of the page: what follows the string need not be mapped.
            let room = (PAGE - here.0 % PAGE) as usize;
            let len = piece.len().min(room).min(limit - text.len());
            self.read(here, &mut piece[..len])?;
            if let Some(end) = piece[..len].iter().position(|&b| b == 0) {
                text.extend_from_slice(&piece[..end]);
                return Ok(String::from_utf8_lossy(&text).into_owned());
            }
            text.extend_from_slice(&piece[..len]);
        }
        Ok(format!("{} (cut: no end within {limit} bytes)", String::from_utf8_lossy(&text)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::{Levels, PageTable};
    use crate::mem::Layout;

    /// One table at 0 whose entry 511 is itself: the last page is the table.
    fn memory(bytes: &[u8]) -> GuestMem {
        let mut memory = vec![0; 0x1000];
        memory[0xff8..].copy_from_slice(&1u64.to_le_bytes());
        memory[..bytes.len()].copy_from_slice(bytes);
        GuestMem::from_bytes(&memory, Layout::flat(0x1000).unwrap()).unwrap()
    }

    const LAST: Kva = Kva(u64::MAX - 0xfff);

    #[test]
    fn a_remembered_page_reads_the_same() {
        let mem = memory(b"some bytes");
        let tlb = Tlb::default();
        let plain = KernelMem::new(&mem, PageTable { root: Gpa(0), levels: Levels::Four });
        let cached = plain.remembering(&tlb);
        for into in [5, 0, 9, 0xff0] {
            let at = Kva(LAST.0 + into);
            assert_eq!(cached.translate(at), plain.translate(at));
            assert_eq!(cached.translate(at), plain.translate(at), "the second time");
        }
        assert!(cached.translate(Kva(0xffff_8000_0000_0000)).is_err());
    }

    #[test]
    fn strings_end_at_their_nul_or_say_that_they_were_cut_or_are_an_error() {
        let mem = memory(b"name\0rest");
        let mem = KernelMem::new(&mem, PageTable { root: Gpa(0), levels: Levels::Four });
        assert_eq!(mem.read_string(LAST, 100).unwrap(), "name");
        assert_eq!(mem.read_string(LAST, 5).unwrap(), "name", "the NUL is the last that is read");
        assert_eq!(mem.read_string(LAST, 4).unwrap(), "name (cut: no end within 4 bytes)");
        assert_eq!(mem.read_string(LAST, 3).unwrap(), "nam (cut: no end within 3 bytes)");
        assert_eq!(mem.read_string(Kva(u64::MAX - 7), 100).unwrap(), "\u{1}");
        assert!(mem.read_string(Kva(0x10), 100).is_err());
    }
}

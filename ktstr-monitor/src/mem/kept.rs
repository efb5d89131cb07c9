//! Guest memory as it was at one moment: what was copied while the vCPUs stood, read afterwards.
//!
//! ```text
//! open:    a read takes the blocks it touches along, then answers from the copy
//! sealed:  a read answers from the copy, or says that this was not copied
//! ```
//!
//! Blocks are small, because structures are: a task costs two KiB of it, not its three pages. What is
//! beyond [`LIMIT`] is not kept, and says so when it is asked for.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::guest::{GuestMem, ReadError};
use crate::addr::Gpa;

/// Bytes copied together. Divides [`PAGE`].
const BLOCK: usize = 256;
const PAGE: u64 = 4096;
const BLOCKS: usize = PAGE as usize / BLOCK;
/// Bytes kept at most.
const LIMIT: usize = 512 << 20;
/// No block.
const NONE: u32 = u32::MAX;

/// Copies of guest memory, by address.
#[derive(Debug, Default)]
pub struct Kept(RefCell<Inner>);

#[derive(Debug, Default)]
struct Inner {
    sealed: bool,
    pages: HashMap<u64, u32, BuildHasherDefault<PageHasher>>,
    /// For each page that was touched, which block of `bytes` each part of it is.
    entries: Vec<[u32; BLOCKS]>,
    bytes: Vec<u8>,
    last: Option<(u64, u32)>,
}

/// Page numbers need spreading, no protection: an even distribution is all that is at stake, and
/// both the pages and their number are bounded by the guest's RAM.
#[derive(Debug, Default)]
struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

impl Kept {
    /// From now on only what was copied is there.
    pub fn seal(&self) {
        self.0.borrow_mut().sealed = true;
    }

    /// Has room for so many bytes, so that no page of it is missing when it is needed.
    pub(crate) fn make_room(&self, bytes: usize) {
        let mut inner = self.0.borrow_mut();
        let len = inner.bytes.len();
        inner.bytes.resize(len.max(bytes), 0xff);
        inner.bytes.truncate(len);
    }

    /// Forgets everything and begins to copy again. The room is kept for the next time.
    pub fn reopen(&self) {
        let mut inner = self.0.borrow_mut();
        inner.sealed = false;
        inner.pages.clear();
        inner.entries.clear();
        inner.bytes.clear();
        inner.last = None;
    }

    /// Bytes copied so far.
    pub fn len(&self) -> usize {
        self.0.borrow().bytes.len()
    }

    /// Whether nothing was copied.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the blocks that hold these bytes, if they are RAM.
    pub(crate) fn touch(&self, mem: &GuestMem, gpa: Gpa, len: usize) {
        let mut inner = self.0.borrow_mut();
        let first = gpa.0 / BLOCK as u64;
        let Some(end) = gpa.0.checked_add(len as u64) else { return };
        for block in first..end.div_ceil(BLOCK as u64) {
            inner.block(mem, block);
        }
    }

    /// As [`GuestMem::read`], by way of the copy.
    pub(crate) fn read(&self, mem: &GuestMem, gpa: Gpa, into: &mut [u8]) -> Result<(), ReadError> {
        let mut inner = self.0.borrow_mut();
        let mut done = 0;
        while done < into.len() {
            let left = into.len() - done;
            let here = gpa.checked_add(done as u64).ok_or(ReadError::NotRam { gpa, len: left })?;
            let inside = here.0 as usize % BLOCK;
            let len = left.min(BLOCK - inside);
            let part = &mut into[done..done + len];
            match inner.block(mem, here.0 / BLOCK as u64) {
                Some(at) => part.copy_from_slice(&inner.bytes[at + inside..][..len]),
                None if inner.sealed => return Err(ReadError::NotKept { gpa: here, len: left }),
                // At the edge of RAM, or there is no more room.
                None => mem.read(here, part)?,
            }
            done += len;
        }
        Ok(())
    }
}

impl Inner {
    /// Where in `bytes` the block is; it is copied if it may be.
    fn block(&mut self, mem: &GuestMem, block: u64) -> Option<usize> {
        let (page, part) = (block / BLOCKS as u64, block as usize % BLOCKS);
        let entry = match self.last.filter(|(last, _)| *last == page) {
            Some((_, entry)) => entry,
            None => self.entry(page)?,
        };
        self.last = Some((page, entry));
        let known = self.entries[entry as usize][part];
        if known != NONE {
            return Some(known as usize * BLOCK);
        }
        let at = self.bytes.len();
        if self.sealed || at >= LIMIT {
            return None;
        }
        self.bytes.resize(at + BLOCK, 0);
        if mem.read(Gpa(block * BLOCK as u64), &mut self.bytes[at..]).is_err() {
            self.bytes.truncate(at);
            return None;
        }
        self.entries[entry as usize][part] = (at / BLOCK) as u32;
        Some(at)
    }

    fn entry(&mut self, page: u64) -> Option<u32> {
        if let Some(entry) = self.pages.get(&page) {
            return Some(*entry);
        }
        if self.sealed {
            return None;
        }
        let entry = u32::try_from(self.entries.len()).ok()?;
        self.entries.push([NONE; BLOCKS]);
        self.pages.insert(page, entry);
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mem::Layout;

    fn memory(fill: impl Fn(usize) -> u8) -> GuestMem {
        let bytes: Vec<u8> = (0..0x3100).map(fill).collect();
        GuestMem::from_bytes(&bytes, Layout::flat(0x3100).unwrap()).unwrap()
    }

    #[test]
    fn sealed_it_is_what_was_copied_whatever_the_guest_does() {
        let (before, after) = (memory(|at| (at / 7) as u8), memory(|_| 0xee));
        let kept = Kept::default();
        let mut into = [0; 300];
        kept.read(&before, Gpa(0xff0), &mut into).unwrap();
        kept.touch(&before, Gpa(0x2000), 1);
        kept.seal();
        let mut again = [0; 300];
        kept.read(&after, Gpa(0xff0), &mut again).unwrap();
        assert_eq!(into, again);
        kept.read(&after, Gpa(0x20ff), &mut again[..1]).unwrap();
        assert_eq!(again[0], (0x20ff / 7) as u8, "the whole block was copied");
        let missing = ReadError::NotKept { gpa: Gpa(0x2100), len: 1 };
        assert_eq!(kept.read(&after, Gpa(0x20ff), &mut again[..2]), Err(missing));
        kept.reopen();
        kept.read(&after, Gpa(0xff0), &mut again).unwrap();
        assert_eq!(again, [0xee; 300]);
    }

    proptest! {
        #[test]
        fn open_it_reads_as_the_memory_does(reads in prop::collection::vec((0u64..0x3200, 0usize..0x900), 1..8)) {
            let mem = memory(|at| (at * 31 / 8) as u8);
            let kept = Kept::default();
            for &(gpa, len) in &reads {
                let (mut plain, mut through) = (vec![0; len], vec![0; len]);
                let expected = mem.read(Gpa(gpa), &mut plain);
                prop_assert_eq!(kept.read(&mem, Gpa(gpa), &mut through).is_ok(), expected.is_ok());
                if expected.is_ok() {
                    prop_assert_eq!(plain, through);
                }
            }
        }
    }
}

//! The x86_64 page walk, 4 and 5 levels, pages of 4 KiB, 2 MiB and 1 GiB.
//!
//! Intel SDM volume 3, chapter 5. A walk reads one entry per level and nothing else, so tables that
//! point at themselves cost what every other table costs. Protection bits are ignored: the question
//! is where the kernel keeps something, not whether it may write there.

use crate::addr::{Gpa, Kva};
use crate::mem::GuestMem;
use crate::paging::{Mapped, PageError};

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
/// Bits 51:12 of an entry. Bits above 51 hold software and key bits, below 12 flags.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Where the kernel maps its own image: `__START_KERNEL_map`.
pub const START_KERNEL_MAP: Kva = Kva(0xffff_ffff_8000_0000);
/// The kernel image is loaded at multiples of this (smallest `CONFIG_PHYSICAL_ALIGN` on 64 bit).
pub const IMAGE_ALIGN: u64 = 2 << 20;

/// How many levels the page tables have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Levels {
    /// 48-bit virtual addresses.
    Four,
    /// 57-bit virtual addresses (LA57).
    Five,
}

impl Levels {
    fn count(self) -> u8 {
        match self {
            Self::Four => 4,
            Self::Five => 5,
        }
    }

    /// Whether bits above the highest translated one are copies of it.
    pub fn is_canonical(self, kva: Kva) -> bool {
        let spare = 64 - (12 + 9 * u32::from(self.count()));
        ((kva.0 as i64) << spare >> spare) as u64 == kva.0
    }
}

/// A page-table hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageTable {
    /// Where the top-level table lies.
    pub root: Gpa,
    /// How deep it is.
    pub levels: Levels,
}

impl PageTable {
    /// Finds where `kva` lies.
    pub fn translate(&self, mem: &GuestMem, kva: Kva) -> Result<Mapped, PageError> {
        if !self.levels.is_canonical(kva) {
            return Err(PageError::NonCanonical { kva });
        }
        let mut table = self.root.0 & FRAME;
        for level in (1..=self.levels.count()).rev() {
            let shift = 12 + 9 * (u32::from(level) - 1);
            let index = (kva.0 >> shift) & 511;
            let entry = mem
                .read_u64(Gpa(table + index * 8))
                .map_err(|source| PageError::TableUnreadable { kva, level, source })?;
            if entry & PRESENT == 0 {
                return Err(PageError::NotPresent { kva, level });
            }
            let page = 1u64 << shift;
            match (level, entry & LARGE != 0) {
                (1, _) | (2 | 3, true) => {
                    let into = kva.0 & (page - 1);
                    // In a large page bit 12 is the PAT bit: everything below the page size goes.
                    let base = entry & FRAME & !(page - 1);
                    return Ok(Mapped { gpa: Gpa(base + into), left: page - into });
                }
                (_, true) => return Err(PageError::ReservedBit { kva, level }),
                (_, false) => table = entry & FRAME,
            }
        }
        unreachable!("level 1 always returns")
    }

    /// Where the 512 small pages of the 2 MiB around `kva` lie; an error when no table says so.
    pub fn neighbours(&self, mem: &GuestMem, kva: Kva) -> Result<Vec<Option<Gpa>>, PageError> {
        if !self.levels.is_canonical(kva) {
            return Err(PageError::NonCanonical { kva });
        }
        let mut table = self.root.0 & FRAME;
        for level in (2..=self.levels.count()).rev() {
            let shift = 12 + 9 * (u32::from(level) - 1);
            let unreadable = |source| PageError::TableUnreadable { kva, level, source };
            let entry = mem.read_u64(Gpa(table + ((kva.0 >> shift) & 511) * 8)).map_err(unreadable)?;
            if entry & PRESENT == 0 {
                return Err(PageError::NotPresent { kva, level });
            }
            match (level, entry & LARGE != 0) {
                (2 | 3, true) => {
                    let page = 1u64 << shift;
                    let into = kva.0 & (page - 1) & !(IMAGE_ALIGN - 1);
                    let first = (entry & FRAME & !(page - 1)) + into;
                    return Ok((0..512).map(|nth| Some(Gpa(first + nth * 4096))).collect());
                }
                (_, true) => return Err(PageError::ReservedBit { kva, level }),
                (_, false) => table = entry & FRAME,
            }
        }
        let mut bytes = vec![0; 4096];
        mem.read(Gpa(table), &mut bytes).map_err(|source| PageError::TableUnreadable {
            kva,
            level: 1,
            source,
        })?;
        let entry = |word: &[u8; 8]| {
            let entry = u64::from_le_bytes(*word);
            (entry & PRESENT != 0).then_some(Gpa(entry & FRAME))
        };
        Ok(bytes.as_chunks().0.iter().map(entry).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mem::Layout;

    /// A memory of 16 tables' room with entries given as (address, value).
    fn memory(entries: &[(u64, u64)]) -> GuestMem {
        let mut bytes = vec![0; 0x10000];
        for &(at, value) in entries {
            bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_le_bytes());
        }
        GuestMem::from_bytes(&bytes, Layout::flat(0x10000).unwrap()).unwrap()
    }

    fn table(levels: Levels) -> PageTable {
        PageTable { root: Gpa(0x1000), levels }
    }

    #[test]
    fn walks_four_levels_to_each_page_size() {
        let mem = memory(&[
            (0x1000 + 511 * 8, 0x2000 | PRESENT),
            (0x2000, 0x3000 | PRESENT),
            (0x2000 + 8, (7 << 30) | (1 << 12) | LARGE | PRESENT | (1 << 63)),
            (0x3000, 0x4000 | PRESENT),
            (0x3000 + 8, (5 << 21) | LARGE | PRESENT),
            (0x4000 + 8, 0x9000 | PRESENT | LARGE),
        ]);
        let at = |kva| table(Levels::Four).translate(&mem, Kva(kva));
        let top = 0xffff_ff80_0000_0000u64;
        assert_eq!(at(top + 0x1234), Ok(Mapped { gpa: Gpa(0x9234), left: 0xdcc }));
        assert_eq!(
            at(top + (2 << 20) + 0x12345),
            Ok(Mapped { gpa: Gpa((5 << 21) + 0x12345), left: (2 << 20) - 0x12345 })
        );
        assert_eq!(at(top + (1 << 30) + 5), Ok(Mapped { gpa: Gpa((7 << 30) + 5), left: (1 << 30) - 5 }));
        assert_eq!(at(top), Err(PageError::NotPresent { kva: Kva(top), level: 1 }));
        let kva = Kva(0xffff_8000_0000_0000);
        assert_eq!(at(kva.0), Err(PageError::NotPresent { kva, level: 4 }));
        let kva = Kva(0x0000_8000_0000_0000);
        assert_eq!(at(kva.0), Err(PageError::NonCanonical { kva }));
    }

    #[test]
    fn five_levels_reach_further() {
        let mem = memory(&[
            (0x1000 + 256 * 8, 0x2000 | PRESENT),
            (0x2000, 0x3000 | PRESENT),
            (0x3000, LARGE | PRESENT),
        ]);
        let kva = Kva(0xff00_0000_0000_0042);
        assert_eq!(
            table(Levels::Five).translate(&mem, kva),
            Ok(Mapped { gpa: Gpa(0x42), left: (1 << 30) - 0x42 })
        );
        assert_eq!(table(Levels::Four).translate(&mem, kva), Err(PageError::NonCanonical { kva }));
    }

    #[test]
    fn a_large_page_too_high_up_is_an_error() {
        let mem = memory(&[(0x1000 + 511 * 8, 0x2000 | PRESENT | LARGE)]);
        let kva = Kva(u64::MAX);
        assert_eq!(table(Levels::Four).translate(&mem, kva), Err(PageError::ReservedBit { kva, level: 4 }));
    }

    #[test]
    fn a_table_outside_ram_is_an_error() {
        let mem = memory(&[(0x1000 + 511 * 8, 0x0fff_ffff_ffff_f000 | PRESENT)]);
        let walked = table(Levels::Four).translate(&mem, Kva(u64::MAX));
        assert!(matches!(walked, Err(PageError::TableUnreadable { level: 3, .. })), "{walked:?}");
    }

    #[test]
    fn a_table_that_is_its_own_child_ends() {
        let mem = memory(&[(0x1000 + 511 * 8, 0x1000 | PRESENT)]);
        assert_eq!(
            table(Levels::Four).translate(&mem, Kva(u64::MAX)),
            Ok(Mapped { gpa: Gpa(0x1fff), left: 1 })
        );
    }

    proptest! {
        #[test]
        fn any_memory_is_walked_without_a_panic(
            words in prop::collection::vec(any::<u64>(), 512),
            kvas in prop::collection::vec(any::<u64>(), 16),
            dense in any::<bool>(),
        ) {
            let bytes: Vec<u8> = words
                .iter()
                .map(|w| if dense { w & 0xf_f0ff | PRESENT } else { *w })
                .flat_map(u64::to_le_bytes)
                .collect();
            let mem = GuestMem::from_bytes(&bytes, Layout::flat(0x1000).unwrap()).unwrap();
            for levels in [Levels::Four, Levels::Five] {
                for &kva in &kvas {
                    for kva in [Kva(kva), Kva((kva as i64 >> 16) as u64)] {
                        let walked = PageTable { root: Gpa(0), levels }.translate(&mem, kva);
                        if let Ok(mapped) = walked {
                            prop_assert!(mapped.left > 0);
                            prop_assert_eq!(mapped.gpa.0 & 0xfff, kva.0 & 0xfff);
                        }
                    }
                }
            }
        }
    }
}

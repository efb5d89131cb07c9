//! The aarch64 stage 1 walk of the kernel's half (TTBR1_EL1), granules of 4, 16 and 64 KiB, blocks and
//! pages, virtual addresses of 36 to 52 bits.
//!
//! Arm ARM (DDI 0487), chapter D8. A walk reads one descriptor per level and nothing else, so tables
//! that point at themselves cost what every other table costs. Protection bits are ignored: the
//! question is where the kernel keeps something, not whether it may write there. Levels are counted
//! as on x86_64, 1 being the lowest; Arm's own numbers are 4 minus that.

use crate::addr::{Gpa, Kva};
use crate::mem::GuestMem;
use crate::paging::{Mapped, PageError};

const VALID: u64 = 1;
/// A table above the lowest level, a page at it; without it a block, or nothing at all.
const TABLE: u64 = 2;

/// The size of the smallest page, which also is that of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granule {
    /// 4 KiB: 512 descriptors in a table.
    K4,
    /// 16 KiB: 2048 descriptors.
    K16,
    /// 64 KiB: 8192 descriptors.
    K64,
}

impl Granule {
    /// Its bytes as a power of two.
    pub fn shift(self) -> u32 {
        match self {
            Self::K4 => 12,
            Self::K16 => 14,
            Self::K64 => 16,
        }
    }

    /// Address bits that one level translates.
    fn per_level(self) -> u32 {
        self.shift() - 3
    }
}

/// A page-table hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageTable {
    /// Where the top-level table lies.
    pub root: Gpa,
    /// The granule: TCR_EL1.TG1.
    pub granule: Granule,
    /// Bits of a virtual address: 64 − TCR_EL1.T1SZ. Anything outside 36..=52 is taken for the nearest.
    pub va_bits: u32,
    /// Whether descriptors hold 52-bit addresses: with 64 KiB always possible (FEAT_LPA), with 4 and
    /// 16 KiB in the layout of FEAT_LPA2 (TCR_EL1.DS), in which blocks are allowed one level higher.
    pub wide: bool,
}

impl PageTable {
    fn va_bits(&self) -> u32 {
        self.va_bits.clamp(36, 52)
    }

    /// How many levels there are.
    pub fn levels(&self) -> u8 {
        (self.va_bits() - self.granule.shift()).div_ceil(self.granule.per_level()) as u8
    }

    /// Whether all bits above the translated ones are set, as in every address of the kernel's half.
    pub fn is_canonical(&self, kva: Kva) -> bool {
        kva.0 >> self.va_bits() == u64::MAX >> self.va_bits()
    }

    /// The address that a descriptor holds.
    fn address(&self, descriptor: u64) -> u64 {
        let shift = self.granule.shift();
        let between = |low: u32, high: u32| (descriptor >> low << low) & (u64::MAX >> (63 - high));
        match (self.granule, self.wide) {
            (_, false) => between(shift, 47),
            (Granule::K64, true) => between(16, 47) | ((descriptor >> 12) & 0xf) << 48,
            (_, true) => between(shift, 49) | ((descriptor >> 8) & 3) << 50,
        }
    }

    /// The highest level with blocks.
    fn blocks_up_to(&self) -> u8 {
        match (self.granule, self.wide) {
            (Granule::K4, true) => 4,
            (Granule::K4, false) | (Granule::K16 | Granule::K64, true) => 3,
            (Granule::K16 | Granule::K64, false) => 2,
        }
    }

    /// Finds where `kva` lies.
    pub fn translate(&self, mem: &GuestMem, kva: Kva) -> Result<Mapped, PageError> {
        if !self.is_canonical(kva) {
            return Err(PageError::NonCanonical { kva });
        }
        let (shift, per_level) = (self.granule.shift(), self.granule.per_level());
        let within = kva.0 & (u64::MAX >> (64 - self.va_bits()));
        let mut table = self.root.0;
        for level in (1..=self.levels()).rev() {
            let low = shift + per_level * (u32::from(level) - 1);
            // The top table may be shorter than a page: what is above its index is no address bit.
            let index = (within >> low) & ((1 << per_level) - 1);
            let at = table.saturating_add(index * 8);
            let descriptor =
                mem.read_u64(Gpa(at)).map_err(|source| PageError::TableUnreadable { kva, level, source })?;
            if descriptor & VALID == 0 {
                return Err(PageError::NotPresent { kva, level });
            }
            match (level, descriptor & TABLE != 0) {
                (1, true) => return Ok(self.mapped(descriptor, kva, low)),
                (1, false) => return Err(PageError::ReservedBit { kva, level }),
                (_, true) => table = self.address(descriptor),
                (_, false) if level > self.blocks_up_to() => {
                    return Err(PageError::ReservedBit { kva, level });
                }
                (_, false) => return Ok(self.mapped(descriptor, kva, low)),
            }
        }
        unreachable!("level 1 always returns")
    }

    /// `kva` in the page or block of 2 to the power of `bits` bytes that `descriptor` describes.
    fn mapped(&self, descriptor: u64, kva: Kva, bits: u32) -> Mapped {
        let size = 1u64 << bits;
        let into = kva.0 & (size - 1);
        Mapped { gpa: Gpa((self.address(descriptor) & !(size - 1)) + into), left: size - into }
    }

    /// Where the 512 pieces of 4 KiB of the 2 MiB around `kva` lie; an error when the first walk that is
    /// made finds no lowest table.
    pub fn neighbours(&self, mem: &GuestMem, kva: Kva) -> Result<Vec<Option<Gpa>>, PageError> {
        match self.translate(mem, kva) {
            Ok(_) | Err(PageError::NotPresent { level: 1, .. }) => {}
            Err(error) => return Err(error),
        }
        let first = kva.0 & !((2 << 20) - 1);
        let piece = |nth: u64| self.translate(mem, Kva(first + nth * 4096)).ok().map(|mapped| mapped.gpa);
        Ok((0..512).map(piece).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::arch::PageTables;
    use crate::mem::Layout;
    use crate::paging::KernelMem;

    const RAM: u64 = 2 << 20;
    const SMALL: u64 = 256 << 10;

    /// A memory with tables in it, made as the kernel makes them.
    struct Tables {
        bytes: Vec<u8>,
        table: PageTable,
        next: u64,
    }

    impl Tables {
        fn new(granule: Granule, va_bits: u32, wide: bool) -> Self {
            let root = 1 << granule.shift();
            let table = PageTable { root: Gpa(root), granule, va_bits, wide };
            Self { bytes: vec![0; RAM as usize], table, next: root << 1 }
        }

        fn word(&mut self, at: u64) -> &mut [u8; 8] {
            self.bytes[at as usize..at as usize + 8].as_mut_array().unwrap()
        }

        /// Enters what is at `gpa` at the given level.
        fn map(&mut self, kva: u64, gpa: u64, at_level: u8) {
            let (shift, per) = (self.table.granule.shift(), self.table.granule.per_level());
            let within = kva & (u64::MAX >> (64 - self.table.va_bits));
            let mut table = self.table.root.0;
            for level in (at_level..=self.table.levels()).rev() {
                let entry = table + ((within >> (shift + per * u32::from(level - 1))) & ((1 << per) - 1)) * 8;
                if level == at_level {
                    let kind = if level == 1 { VALID | TABLE } else { VALID };
                    // Access flag, inner shareable, normal memory, execute never.
                    let flags = 1 << 10 | if self.table.wide && shift != 16 { 0 } else { 3 << 8 } | 3 << 53;
                    let descriptor = self.descriptor(gpa) | kind | flags;
                    *self.word(entry) = descriptor.to_le_bytes();
                    return;
                }
                table = u64::from_le_bytes(*self.word(entry));
                if table == 0 {
                    table = self.next;
                    self.next += 1 << shift;
                    *self.word(entry) = (table | VALID | TABLE).to_le_bytes();
                }
                table = self.table.address(table);
            }
        }

        fn descriptor(&self, gpa: u64) -> u64 {
            match (self.table.granule, self.table.wide) {
                (_, false) => gpa,
                (Granule::K64, true) => gpa & (u64::MAX >> 16) | (gpa >> 48 & 0xf) << 12,
                (_, true) => gpa & (u64::MAX >> 14) | (gpa >> 50 & 3) << 8,
            }
        }

        fn mem(&self) -> GuestMem {
            GuestMem::from_bytes(&self.bytes, Layout::flat(RAM).unwrap()).unwrap()
        }
    }

    /// Every arrangement that Linux can be built with.
    const KERNELS: [(Granule, u32, bool, u8); 10] = [
        (Granule::K4, 39, false, 3),
        (Granule::K4, 48, false, 4),
        (Granule::K4, 52, true, 5),
        (Granule::K16, 36, false, 2),
        (Granule::K16, 47, false, 3),
        (Granule::K16, 48, false, 4),
        (Granule::K16, 52, true, 4),
        (Granule::K64, 42, false, 2),
        (Granule::K64, 48, false, 3),
        (Granule::K64, 52, true, 3),
    ];

    #[test]
    fn each_granule_maps_pages_and_blocks() {
        for (granule, va_bits, wide, levels) in KERNELS {
            let what = format!("{granule:?} {va_bits}");
            let mut tables = Tables::new(granule, va_bits, wide);
            assert_eq!(tables.table.levels(), levels, "{what}");
            let base = u64::MAX << va_bits;
            let page = 1u64 << granule.shift();
            let block = page << granule.per_level();
            // The first page, one far up, and a block between them; the highest address that fits.
            let high = if wide { 0xf_0000_0000_0000u64 } else { 0 } | 0x7a00_0000_0000 & !(block - 1);
            tables.map(base, page * 40, 1);
            tables.map(base + 3 * block, high, 2);
            tables.map(u64::MAX - page + 1, (page * 41) | high, 1);
            let mem = tables.mem();
            let at = |kva: u64| tables.table.translate(&mem, Kva(kva));
            assert_eq!(at(base + 5), Ok(Mapped { gpa: Gpa(page * 40 + 5), left: page - 5 }), "{what}");
            assert_eq!(
                at(base + 3 * block + 0x1234),
                Ok(Mapped { gpa: Gpa(high + 0x1234), left: block - 0x1234 }),
                "{what}"
            );
            assert_eq!(
                at(u64::MAX),
                Ok(Mapped { gpa: Gpa(((page * 41) | high) + page - 1), left: 1 }),
                "{what}"
            );
            assert_eq!(at(base + page), Err(PageError::NotPresent { kva: Kva(base + page), level: 1 }));
            let user = Kva(0x1000);
            assert_eq!(at(user.0), Err(PageError::NonCanonical { kva: user }));
        }
    }

    #[test]
    fn what_is_read_through_the_tables_are_the_bytes_that_lie_there() {
        for (granule, va_bits, wide, _) in KERNELS {
            let mut tables = Tables::new(granule, va_bits, wide);
            let base = u64::MAX << va_bits;
            let page = 1u64 << granule.shift();
            // Two neighbours that lie apart, the second before the first.
            let (first, second) = (RAM - page, RAM - 3 * page);
            tables.map(base, first, 1);
            tables.map(base + page, second, 1);
            tables.bytes[(first + page - 4) as usize..(first + page) as usize].copy_from_slice(b"end ");
            tables.bytes[second as usize..second as usize + 6].copy_from_slice(b"start\0");
            let mem = tables.mem();
            let mem = KernelMem::new(&mem, tables.table);
            assert_eq!(mem.read_string(Kva(base + page - 4), 100).unwrap(), "end start");
            assert!(mem.read_u64(Kva(base + 2 * page - 4)).is_err(), "the third page is not there");
            let pieces = mem.neighbours(Kva(base)).unwrap();
            assert_eq!(pieces[0], Some(Gpa(first)));
            assert_eq!(pieces[(page / 4096) as usize], Some(Gpa(second)));
        }
    }

    #[test]
    fn blocks_where_there_are_none_are_errors() {
        for (granule, va_bits, wide, levels) in KERNELS {
            let mut tables = Tables::new(granule, va_bits, wide);
            let base = u64::MAX << va_bits;
            let page = 1u64 << granule.shift();
            // At the lowest level a descriptor without the table bit is reserved.
            tables.map(base, page * 9, 1);
            let entry = tables.bytes.chunks(8).rposition(|word| word != [0; 8]).unwrap() * 8;
            *tables.word(entry as u64) = ((page * 9) | VALID).to_le_bytes();
            // And too high up.
            let top = tables.table.root.0 + 8;
            *tables.word(top) = VALID.to_le_bytes();
            let mem = tables.mem();
            let at = |kva| tables.table.translate(&mem, Kva(kva));
            assert_eq!(at(base), Err(PageError::ReservedBit { kva: Kva(base), level: 1 }));
            let bits = granule.shift() + granule.per_level() * u32::from(levels - 1);
            let second = base + (1 << bits);
            let high = at(second);
            match levels > tables.table.blocks_up_to() {
                true => assert_eq!(high, Err(PageError::ReservedBit { kva: Kva(second), level: levels })),
                false => assert_eq!(high, Ok(Mapped { gpa: Gpa(0), left: 1 << bits })),
            }
        }
    }

    proptest! {
        #[test]
        fn any_memory_is_walked_without_a_panic(
            words in prop::collection::vec(any::<u64>(), 512),
            kvas in prop::collection::vec(any::<u64>(), 16),
            kernel in 0..KERNELS.len(),
            dense in any::<bool>(),
        ) {
            let (granule, va_bits, wide, _) = KERNELS[kernel];
            // Half of the words look like descriptors of tables in this memory.
            let near = |word: u64| (word % SMALL) & !0xfff | word & 3;
            let bytes: Vec<u8> = words
                .iter()
                .cycle()
                .take(SMALL as usize / 8)
                .flat_map(|&word| if dense { near(word) } else { word }.to_le_bytes())
                .collect();
            let mem = GuestMem::from_bytes(&bytes, Layout::flat(SMALL).unwrap()).unwrap();
            let table = PageTable { root: Gpa(1 << granule.shift()), granule, va_bits, wide };
            for kva in kvas {
                let kva = Kva(kva | u64::MAX << va_bits);
                let walked = PageTables::from(table).translate(&mem, kva);
                if let Ok(mapped) = walked {
                    prop_assert!(mapped.left >= 1 && (mapped.gpa.0 + mapped.left).trailing_zeros() >= granule.shift());
                }
            }
        }
    }
}

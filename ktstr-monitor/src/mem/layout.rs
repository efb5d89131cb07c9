//! Which guest-physical ranges are RAM, and at which offset of the memory file each one lies.
//!
//! A [`Layout`] that exists is sane: sorted, without overlaps, no range wrapping. It says nothing
//! about the file being long enough; that is checked where the file is mapped.

use thiserror::Error;

use crate::addr::Gpa;

/// One contiguous range of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First guest-physical address.
    pub start: Gpa,
    /// Length in bytes.
    pub len: u64,
    /// Where the range begins in the memory file.
    pub offset: u64,
}

impl Region {
    fn end(&self) -> Option<u64> {
        self.start.0.checked_add(self.len)
    }

    fn file_end(&self) -> Option<u64> {
        self.offset.checked_add(self.len)
    }
}

/// The RAM of a guest: non-overlapping regions in ascending order, holes between them allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    regions: Vec<Region>,
}

/// Why a list of regions is no memory layout.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    /// No region at all.
    #[error("the memory layout names no region")]
    Empty,
    /// A region of no bytes.
    #[error("the memory region at {start} has length 0")]
    ZeroLength {
        /// The region's start.
        start: Gpa,
    },
    /// A region reaches past the end of the address space, or of any file.
    #[error("the memory region at {start} of {len:#x} bytes at file offset {offset:#x} wraps around")]
    Wraps {
        /// The region's start.
        start: Gpa,
        /// Its length.
        len: u64,
        /// Its file offset.
        offset: u64,
    },
    /// Two regions claim the same address.
    #[error("the memory regions at {first} and {second} overlap")]
    Overlap {
        /// The lower region's start.
        first: Gpa,
        /// The higher region's start.
        second: Gpa,
    },
}

/// A run of bytes that lies in one region, as an offset into the memory file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Layout {
    /// Sorts and checks `regions`.
    pub fn new(mut regions: Vec<Region>) -> Result<Self, LayoutError> {
        if regions.is_empty() {
            return Err(LayoutError::Empty);
        }
        regions.sort_by_key(|r| r.start);
        for region in &regions {
            if region.len == 0 {
                return Err(LayoutError::ZeroLength { start: region.start });
            }
            if region.end().is_none() || region.file_end().is_none() {
                return Err(LayoutError::Wraps {
                    start: region.start,
                    len: region.len,
                    offset: region.offset,
                });
            }
        }
        for pair in regions.windows(2) {
            if pair[0].start.0 + pair[0].len > pair[1].start.0 {
                return Err(LayoutError::Overlap { first: pair[0].start, second: pair[1].start });
            }
        }
        Ok(Self { regions })
    }

    /// One region from address 0, at the beginning of the file.
    pub fn flat(len: u64) -> Result<Self, LayoutError> {
        Self::new(vec![Region { start: Gpa(0), len, offset: 0 }])
    }

    /// The regions in ascending order.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// How long the memory file must be.
    pub fn file_len(&self) -> u64 {
        self.regions.iter().map(|r| r.offset + r.len).max().unwrap_or(0)
    }

    /// As much of `len` bytes at `gpa` as lies in one region; `None` in a hole.
    pub(super) fn run_at(&self, gpa: Gpa, len: u64) -> Option<Run> {
        let after = self.regions.partition_point(|r| r.start <= gpa);
        let region = self.regions[..after].last()?;
        let into = gpa.0 - region.start.0;
        let left = region.len.checked_sub(into).filter(|&left| left > 0)?;
        Some(Run { offset: region.offset + into, len: left.min(len) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(start: u64, len: u64, offset: u64) -> Region {
        Region { start: Gpa(start), len, offset }
    }

    #[test]
    fn refuses_what_is_no_layout() {
        assert_eq!(Layout::new(vec![]), Err(LayoutError::Empty));
        assert_eq!(
            Layout::new(vec![region(0x1000, 0, 0)]),
            Err(LayoutError::ZeroLength { start: Gpa(0x1000) })
        );
        assert!(matches!(Layout::new(vec![region(u64::MAX - 1, 2, 0)]), Err(LayoutError::Wraps { .. })));
        assert!(matches!(Layout::new(vec![region(0, 2, u64::MAX)]), Err(LayoutError::Wraps { .. })));
        assert_eq!(
            Layout::new(vec![region(0x2000, 0x1000, 0), region(0, 0x2001, 0x1000)]),
            Err(LayoutError::Overlap { first: Gpa(0), second: Gpa(0x2000) })
        );
    }

    #[test]
    fn finds_runs_around_a_hole() {
        let layout = Layout::new(vec![region(0x10000, 0x1000, 0x3000), region(0, 0x3000, 0)]).unwrap();
        assert_eq!(layout.file_len(), 0x4000);
        assert_eq!(layout.run_at(Gpa(0x2ff8), 16), Some(Run { offset: 0x2ff8, len: 8 }));
        assert_eq!(layout.run_at(Gpa(0x3000), 1), None);
        assert_eq!(layout.run_at(Gpa(0x10010), 16), Some(Run { offset: 0x3010, len: 16 }));
        assert_eq!(layout.run_at(Gpa(0x11000), 1), None);
        assert_eq!(layout.run_at(Gpa(u64::MAX), 1), None);
    }
}

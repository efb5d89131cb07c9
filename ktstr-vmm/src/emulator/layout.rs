//! Where the emulated machine puts guest RAM.
//!
//! The q35 machine keeps everything below 4 GiB while RAM is smaller than 2.75 GiB; from there on
//! 2 GiB stay low and the rest starts at 4 GiB. The RAM file is linear over both parts.

use crate::machine::{Gpa, RamRegion};

/// RAM size from which q35 moves part of it above 4 GiB.
const SPLIT_FROM: u64 = 0xb000_0000;
/// What stays low then.
const LOW_WHEN_SPLIT: u64 = 0x8000_0000;
const FOUR_GIB: u64 = 1 << 32;
/// From here on the machine would move high RAM out of the way of an address hole of AMD CPUs.
const LARGEST: u64 = 512 << 30;
const GRANULE: u64 = 2 << 20;
/// A distribution kernel with its initramfs does not boot in less.
const SMALLEST: u64 = 128 << 20;

/// Why a RAM size is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not a multiple of 2 MiB.
    #[error("guest RAM of {bytes} bytes is no multiple of 2 MiB")]
    Unaligned {
        /// Requested size.
        bytes: u64,
    },
    /// Outside of what the machine can have.
    #[error("guest RAM of {mib} MiB is outside of {min} to {max} MiB", min = SMALLEST >> 20, max = LARGEST >> 20)]
    OutOfRange {
        /// Requested size.
        mib: u64,
    },
}

/// The guest-physical regions of a RAM size.
pub fn regions(bytes: u64) -> Result<Vec<RamRegion>, LayoutError> {
    if !bytes.is_multiple_of(GRANULE) {
        return Err(LayoutError::Unaligned { bytes });
    }
    if !(SMALLEST..=LARGEST).contains(&bytes) {
        return Err(LayoutError::OutOfRange { mib: bytes >> 20 });
    }
    let low = if bytes >= SPLIT_FROM { LOW_WHEN_SPLIT } else { bytes };
    let mut regions = vec![RamRegion { gpa: Gpa(0), file_offset: 0, len: low }];
    if bytes > low {
        regions.push(RamRegion { gpa: Gpa(FOUR_GIB), file_offset: low, len: bytes - low });
    }
    Ok(regions)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn plain(bytes: u64) -> Vec<(u64, u64, u64)> {
        regions(bytes).unwrap().iter().map(|r| (r.gpa.0, r.file_offset, r.len)).collect()
    }

    #[test]
    fn ram_is_split_where_the_machine_splits_it() {
        assert_eq!(plain(1024 * MIB), [(0, 0, 1024 * MIB)]);
        assert_eq!(plain(2814 * MIB), [(0, 0, 2814 * MIB)]);
        assert_eq!(plain(2816 * MIB), [(0, 0, 2048 * MIB), (FOUR_GIB, 2048 * MIB, 768 * MIB)]);
        assert_eq!(plain(8192 * MIB), [(0, 0, 2048 * MIB), (FOUR_GIB, 2048 * MIB, 6144 * MIB)]);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert_eq!(regions(MIB + 1), Err(LayoutError::Unaligned { bytes: MIB + 1 }));
        assert_eq!(regions(0), Err(LayoutError::OutOfRange { mib: 0 }));
        assert_eq!(regions(1 << 40), Err(LayoutError::OutOfRange { mib: 1 << 20 }));
    }
}

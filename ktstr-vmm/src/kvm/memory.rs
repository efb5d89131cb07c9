//! Guest RAM: a sealed memfd mapped into this process.
//!
//! It is reached by volatile copies only; no reference into it is ever formed. Next:
//! `x86_64::layout` decides which addresses it backs.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::machine::{Ram, RamRegion};

/// Why there is no guest RAM.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The memory file could not be created.
    #[error("create the RAM memfd")]
    Create(#[source] nix::Error),
    /// It could not be sized.
    #[error("size the RAM memfd to {bytes} bytes")]
    Size {
        /// Bytes wanted.
        bytes: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be sealed.
    #[error("seal the RAM memfd against shrinking and growing")]
    Seal(#[source] nix::Error),
    /// Its descriptor could not be duplicated.
    #[error("duplicate the RAM memfd")]
    Duplicate(#[source] io::Error),
    /// It could not be mapped.
    #[error("map {bytes} bytes of guest RAM; is there a limit on address space (RLIMIT_AS)?")]
    Map {
        /// Bytes wanted.
        bytes: u64,
        /// Why.
        #[source]
        source: vm_memory::mmap::FromRangesError,
    },
}

/// Guest RAM, mapped.
#[derive(Clone, Debug)]
pub struct GuestRam {
    /// For volatile access; clones share the mapping.
    pub memory: GuestMemoryMmap,
    /// Where it lies.
    pub regions: Vec<RamRegion>,
}

impl GuestRam {
    /// Creates, seals and maps RAM; the second value is what others may map.
    pub fn new(regions: Vec<RamRegion>) -> Result<(Self, Ram), RamError> {
        let bytes = regions.iter().map(|r| r.len).sum();
        let memfd = memfd_create(c"ktstr-ram", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
            .map_err(RamError::Create)?;
        let file = File::from(memfd);
        file.set_len(bytes).map_err(|source| RamError::Size { bytes, source })?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(RamError::Seal)?;

        let mut ranges = Vec::new();
        for region in &regions {
            let file = file.try_clone().map_err(RamError::Duplicate)?;
            let offset = FileOffset::new(file, region.file_offset);
            ranges.push((GuestAddress(region.gpa.0), region.len as usize, Some(offset)));
        }
        let memory =
            GuestMemoryMmap::from_ranges_with_files(ranges).map_err(|source| RamError::Map { bytes, source })?;
        let ram = Ram { memfd: OwnedFd::from(file), regions: regions.clone() };
        Ok((Self { memory, regions }, ram))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::Bytes;

    use super::*;
    use crate::machine::Gpa;

    #[test]
    fn what_the_guest_writes_lies_at_the_promised_offset() {
        let regions = vec![
            RamRegion { gpa: Gpa(0), file_offset: 0, len: 0x20_0000 },
            RamRegion { gpa: Gpa(0x1_0000_0000), file_offset: 0x20_0000, len: 0x20_0000 },
        ];
        let (guest, ram) = GuestRam::new(regions).unwrap();
        guest.memory.write_slice(b"high", GuestAddress(0x1_0000_1000)).unwrap();
        let file = File::from(ram.memfd);
        let mut seen = [0; 4];
        file.read_exact_at(&mut seen, 0x20_1000).unwrap();
        assert_eq!(&seen, b"high");
        assert!(file.set_len(0x1000).is_err(), "sealed against shrinking");
        assert!(file.set_len(0x80_0000).is_err(), "sealed against growing");
    }
}

//! The guest channel's memory, as the VMM sees it: mapped from the RAM file, copied out by volatile
//! reads, never borrowed.
//!
//! The protocol of the ring is [`ktstr_proto::ring`]; its frames are nobody's business here. A linear
//! ring is mapped read-only, so that a replayable run cannot be disturbed even by mistake.

use std::fs::File;
use std::sync::atomic::Ordering;

use ktstr_proto::ring::{self, Mode, RingMemory, RingRegion};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use crate::machine::{Ram, RamRegion};

/// Why a ring cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum RingMapError {
    /// The region is not, or not wholly, in guest RAM.
    #[error("ring of {len} bytes at {gpa:#x} does not lie in guest RAM")]
    Outside {
        /// First address.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The region is not made of pages, or too small.
    #[error("ring of {len} bytes at {gpa:#x} is not made of whole pages, at least two")]
    Shape {
        /// First address.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// RAM's descriptor cannot be duplicated.
    #[error("duplicate the descriptor of guest RAM")]
    Duplicate {
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// What is to be given through it cannot be read.
    #[error("look at the guest's job")]
    Archive {
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It cannot be mapped.
    #[error("map the ring of {len} bytes at file offset {offset:#x}")]
    Map {
        /// Offset in the RAM file.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The reason.
        #[source]
        source: MmapRegionError,
    },
}

/// The mapped ring.
#[derive(Debug)]
pub struct GuestRing {
    map: MmapRegion,
    writable: bool,
}

impl GuestRing {
    /// Maps the ring out of guest RAM.
    pub fn map(ram: &Ram, region: &RingRegion) -> Result<GuestRing, RingMapError> {
        let RingRegion { gpa, len, mode } = *region;
        let page = ring::DATA;
        if !gpa.is_multiple_of(page) || !len.is_multiple_of(page) || len < 2 * page {
            return Err(RingMapError::Shape { gpa, len });
        }
        let offset = file_offset(&ram.regions, gpa, len).ok_or(RingMapError::Outside { gpa, len })?;
        let file = ram.memfd.try_clone().map_err(|source| RingMapError::Duplicate { source })?;
        let writable = mode == Mode::Wrap;
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let place = FileOffset::new(File::from(file), offset);
        let map = MmapRegion::build(Some(place), len as usize, protection, libc::MAP_SHARED)
            .map_err(|source| RingMapError::Map { offset, len, source })?;
        Ok(GuestRing { map, writable })
    }
}

/// Offset in the RAM file of an address range that lies in one region.
fn file_offset(regions: &[RamRegion], gpa: u64, len: u64) -> Option<u64> {
    let end = gpa.checked_add(len)?;
    regions
        .iter()
        .find(|region| gpa >= region.gpa.0 && end <= region.gpa.0.saturating_add(region.len))
        .map(|region| region.file_offset + (gpa - region.gpa.0))
}

/// The reader bounds every offset by the length reported here, so an access outside cannot come from
/// guest data; it reads as zero and writes nothing.
impl RingMemory for GuestRing {
    fn len(&self) -> u64 {
        self.map.size() as u64
    }

    fn load_u32(&self, offset: u64) -> u32 {
        self.map.as_volatile_slice().load(offset as usize, Ordering::Acquire).unwrap_or(0)
    }

    fn load_u64(&self, offset: u64) -> u64 {
        self.map.as_volatile_slice().load(offset as usize, Ordering::Acquire).unwrap_or(0)
    }

    fn store_u32(&mut self, offset: u64, value: u32) {
        if self.writable {
            let _ = self.map.as_volatile_slice().store(value, offset as usize, Ordering::Release);
        }
    }

    fn store_u64(&mut self, offset: u64, value: u64) {
        if self.writable {
            let _ = self.map.as_volatile_slice().store(value, offset as usize, Ordering::Release);
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        let _ = self.map.as_volatile_slice().read_slice(out, offset as usize);
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        if self.writable {
            let _ = self.map.as_volatile_slice().write_slice(bytes, offset as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use ktstr_proto::ring::{HostSignal, RingError, RingReader};

    use super::*;
    use crate::machine::Gpa;

    const MIB: u64 = 1 << 20;

    fn ram() -> (Ram, File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 * MIB).unwrap();
        let regions = vec![
            RamRegion { gpa: Gpa(0), file_offset: 0, len: 2 * MIB },
            RamRegion { gpa: Gpa(1 << 32), file_offset: 2 * MIB, len: 2 * MIB },
        ];
        (Ram { memfd: file.try_clone().unwrap().into(), regions }, file)
    }

    fn header(file: &File, at: u64, mode: Mode, capacity: u64, written: u64) {
        file.write_all_at(&ring::VERSION.to_le_bytes(), at + 8).unwrap();
        file.write_all_at(&(mode as u32).to_le_bytes(), at + 12).unwrap();
        file.write_all_at(&capacity.to_le_bytes(), at + 16).unwrap();
        file.write_all_at(&written.to_le_bytes(), at + ring::WRITE_INDEX).unwrap();
        file.write_all_at(&ring::MAGIC.to_le_bytes(), at).unwrap();
    }

    #[test]
    fn bytes_come_out_of_the_right_place_in_the_file() {
        let (ram, file) = ram();
        let region = RingRegion { gpa: (1 << 32) + MIB, len: MIB, mode: Mode::Wrap };
        let mut reader = RingReader::new(GuestRing::map(&ram, &region).unwrap(), Mode::Wrap);
        assert_eq!(reader.take(100), Ok(None));
        file.write_all_at(b"frame", 3 * MIB + ring::DATA).unwrap();
        header(&file, 3 * MIB, Mode::Wrap, MIB - ring::DATA, 5);
        assert_eq!(reader.take(100), Ok(Some(b"frame".to_vec())));
        let mut taken = [0; 8];
        file.read_exact_at(&mut taken, 3 * MIB + ring::READ_INDEX).unwrap();
        assert_eq!(u64::from_le_bytes(taken), 5);
    }

    #[test]
    fn a_linear_ring_is_never_written() {
        let (ram, file) = ram();
        let region = RingRegion { gpa: MIB, len: MIB, mode: Mode::Linear };
        let mut reader = RingReader::new(GuestRing::map(&ram, &region).unwrap(), Mode::Linear);
        header(&file, MIB, Mode::Linear, MIB - ring::DATA, 7);
        assert_eq!(reader.take(100).unwrap().map(|bytes| bytes.len()), Some(7));
        reader.signal(HostSignal::Shutdown);
        let mut words = [0; 256];
        file.read_exact_at(&mut words, MIB).unwrap();
        assert!(words[ring::READ_INDEX as usize..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_lying_guest_is_an_error() {
        let (ram, file) = ram();
        let region = RingRegion { gpa: 0, len: MIB, mode: Mode::Wrap };
        let reader = || RingReader::new(GuestRing::map(&ram, &region).unwrap(), Mode::Wrap);
        header(&file, 0, Mode::Wrap, u64::MAX, 5);
        assert!(matches!(reader().take(10), Err(RingError::Header { .. })));
        header(&file, 0, Mode::Wrap, MIB - ring::DATA, u64::MAX);
        assert!(matches!(reader().take(10), Err(RingError::Index { .. })));
    }

    #[test]
    fn regions_outside_of_ram_are_refused() {
        let (ram, _file) = ram();
        let map = |gpa, len| GuestRing::map(&ram, &RingRegion { gpa, len, mode: Mode::Wrap });
        assert!(matches!(map(MIB, 2 * MIB), Err(RingMapError::Outside { .. })));
        assert!(matches!(map(3 << 30, MIB), Err(RingMapError::Outside { .. })));
        assert!(matches!(map(!4095, MIB), Err(RingMapError::Outside { .. })));
        assert!(matches!(map(100, MIB), Err(RingMapError::Shape { .. })));
        assert!(matches!(map(0, 4096), Err(RingMapError::Shape { .. })));
    }
}

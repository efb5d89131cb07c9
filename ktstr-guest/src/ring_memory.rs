//! The ring's region of physical memory, mapped into PID 1 through `/dev/mem`.
//!
//! The region is RAM that the kernel was told to leave alone (`memmap=` on its command line), so the
//! mapping is ordinary cached memory, the same the host sees. Layout and protocol are in
//! [`ktstr_proto::ring`]; this only moves bytes.

use std::{
    fs::OpenOptions,
    num::NonZeroUsize,
    ptr::NonNull,
    sync::atomic::{Ordering, fence},
};

use ktstr_proto::ring::{RingMemory, RingRegion};
use nix::{
    errno::Errno,
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
};

/// Page size on which the region must start.
const PAGE: u64 = 4096;

/// Why the region cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The region cannot be one.
    #[error(
        "ring region of {len:#x} bytes at {gpa:#x}: start and length must be multiples of {PAGE} and not 0"
    )]
    Region {
        /// Guest-physical start.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The device is missing.
    #[error("cannot open /dev/mem: the kernel needs CONFIG_DEVMEM and no lockdown")]
    Open {
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refuses the range.
    #[error(
        "cannot map {len:#x} bytes at {gpa:#x} of /dev/mem: the range must be reserved by memmap= on the command line"
    )]
    Map {
        /// Guest-physical start.
        gpa: u64,
        /// Length in bytes.
        len: u64,
        /// The system's reason.
        #[source]
        source: Errno,
    },
}

/// The mapped region. Offsets outside of it are a bug of the caller and panic.
#[derive(Debug)]
pub struct MappedRing {
    base: NonNull<u8>,
    len: usize,
}

impl MappedRing {
    /// Maps the region through `/dev/mem`.
    pub fn open(region: RingRegion) -> Result<Self, MapError> {
        let RingRegion { gpa, len, .. } = region;
        let wrong = MapError::Region { gpa, len };
        let aligned = gpa.is_multiple_of(PAGE) && len.is_multiple_of(PAGE);
        let (Ok(offset), Ok(size)) = (i64::try_from(gpa), usize::try_from(len)) else { return Err(wrong) };
        let Some(length) = NonZeroUsize::new(size).filter(|_| aligned) else { return Err(wrong) };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/mem")
            .map_err(|source| MapError::Open { source })?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address the kernel chooses; nothing else is mapped there. The
        // memory behind it belongs to no one else in this kernel.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &file, offset) }
            .map_err(|source| MapError::Map { gpa, len, source })?;
        Ok(Self { base: base.cast(), len: size })
    }

    /// Address of `offset`, of which `count` bytes may be used.
    fn at(&self, offset: u64, count: usize) -> *mut u8 {
        let start = usize::try_from(offset).expect("offset beyond the address space");
        let end = start.checked_add(count).expect("offset beyond the address space");
        assert!(end <= self.len, "ring access at {start}..{end} of {} bytes", self.len);
        // SAFETY: just checked to lie inside the mapping.
        unsafe { self.base.as_ptr().add(start) }
    }
}

impl RingMemory for MappedRing {
    fn len(&self) -> u64 {
        self.len as u64
    }

    fn load_u32(&self, offset: u64) -> u32 {
        // SAFETY: `at` bounds the access; every `u32` of the layout is aligned to four bytes.
        let value = unsafe { self.at(offset, 4).cast::<u32>().read_volatile() };
        fence(Ordering::Acquire);
        u32::from_le(value)
    }

    fn load_u64(&self, offset: u64) -> u64 {
        // SAFETY: as in `load_u32`; every `u64` of the layout is aligned to eight bytes.
        let value = unsafe { self.at(offset, 8).cast::<u64>().read_volatile() };
        fence(Ordering::Acquire);
        u64::from_le(value)
    }

    fn store_u32(&mut self, offset: u64, value: u32) {
        fence(Ordering::Release);
        // SAFETY: as in `load_u32`; this process is the only writer of what it writes.
        unsafe { self.at(offset, 4).cast::<u32>().write_volatile(value.to_le()) }
    }

    fn store_u64(&mut self, offset: u64, value: u64) {
        fence(Ordering::Release);
        // SAFETY: as in `store_u32`.
        unsafe { self.at(offset, 8).cast::<u64>().write_volatile(value.to_le()) }
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        // SAFETY: `at` bounds the source; `out` is this process's own memory, so they are apart.
        unsafe { self.at(offset, out.len()).copy_to_nonoverlapping(out.as_mut_ptr(), out.len()) }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        // SAFETY: as in `read`, the other way.
        unsafe { self.at(offset, bytes.len()).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }
}

impl Drop for MappedRing {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `open`; nothing borrowed from it outlives a call.
        let gone = unsafe { munmap(self.base.cast(), self.len) };
        debug_assert_eq!(gone, Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use ktstr_proto::ring::Mode;

    use super::*;

    #[test]
    fn regions_that_cannot_be_mapped_are_refused_before_the_device_is_opened() {
        for (gpa, len) in
            [(0x1000_0001, 4096), (0x1000_0000, 0), (0x1000_0000, 4097), (u64::MAX - 4095, 4096)]
        {
            let refused = MappedRing::open(RingRegion { gpa, len, mode: Mode::Wrap });
            assert!(matches!(refused, Err(MapError::Region { .. })), "{gpa:#x}+{len:#x}: {refused:?}");
        }
    }
}

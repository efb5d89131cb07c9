//! Guest RAM: a sealed memfd mapped into this process.
//!
//! It is reached by volatile copies only; no reference into it is ever formed. Mappings are aligned so
//! that large pages can back them: without, a booting kernel costs KVM twenty thousand page faults.
//! Next: `x86_64::layout` decides which addresses it backs.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::machine::{Gpa, Ram, RamRegion};

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
    /// It could not be mapped.
    #[error("map {bytes} bytes of guest RAM; is there a limit on address space (RLIMIT_AS)?")]
    Map {
        /// Bytes wanted.
        bytes: u64,
        /// Why.
        #[source]
        source: nix::Error,
    },
    /// The mappings do not make an address space.
    #[error("arrange the mapped RAM: {detail}")]
    Arrange {
        /// Why not.
        detail: String,
    },
}

/// Size of a large page.
const LARGE_PAGE: u64 = 2 << 20;

/// One region's mapping, aligned to large pages.
#[derive(Debug)]
struct Mapping {
    reserved: NonNull<libc::c_void>,
    reserved_len: NonZeroUsize,
    start: NonNull<libc::c_void>,
}

// SAFETY: an address range of this process; what lies in it is shared with a guest anyway and only
// accessed by volatile copies.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn of(file: &File, region: &RamRegion) -> nix::Result<Self> {
        let large = LARGE_PAGE as usize;
        let len = usize::try_from(region.len).ok().and_then(NonZeroUsize::new).ok_or(nix::Error::EINVAL)?;
        let reserved_len = len.checked_add(large).ok_or(nix::Error::EINVAL)?;
        let reserve = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let reserved = unsafe { mmap_anonymous(None, reserved_len, ProtFlags::PROT_NONE, reserve)? };
        let aligned = (reserved.as_ptr() as usize).next_multiple_of(large);
        let mut mapping = Self { reserved, reserved_len, start: reserved };
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let offset = i64::try_from(region.file_offset).map_err(|_| nix::Error::EINVAL)?;
        // SAFETY: replaces a part of the range reserved above, which nothing else uses.
        mapping.start = unsafe { mmap(NonZeroUsize::new(aligned), len, protection, flags, file, offset)? };
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the whole range reserved in `of`; whoever can reach it keeps this value alive.
        let _ = unsafe { munmap(self.reserved, self.reserved_len.get()) };
    }
}

/// Guest RAM, mapped.
#[derive(Clone, Debug)]
pub struct GuestRam {
    /// For volatile access; clones share the mapping.
    pub memory: GuestMemoryMmap,
    /// Where it lies.
    pub regions: Vec<RamRegion>,
    /// What `memory` points into.
    _mappings: Arc<Vec<Mapping>>,
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

        let mut mappings = Vec::new();
        let mut mapped = Vec::new();
        for region in &regions {
            let mapping = Mapping::of(&file, region).map_err(|source| RamError::Map { bytes, source })?;
            let arrange = |detail| RamError::Arrange { detail };
            let (protection, flags) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
            // SAFETY: mapped with this length just now, and kept alive beside the result.
            let range = unsafe {
                MmapRegion::build_raw(mapping.start.as_ptr().cast(), region.len as usize, protection, flags)
            };
            let range = range.map_err(|e| arrange(e.to_string()))?;
            let range = GuestRegionMmap::new(range, GuestAddress(region.gpa.0));
            mapped.push(range.ok_or_else(|| arrange("a region ends beyond the address space".into()))?);
            mappings.push(mapping);
        }
        let memory =
            GuestMemoryMmap::from_regions(mapped).map_err(|e| RamError::Arrange { detail: e.to_string() })?;
        let ram = Ram { memfd: OwnedFd::from(file), regions: regions.clone() };
        Ok((Self { memory, regions, _mappings: Arc::new(mappings) }, ram))
    }

    /// Backs this part of RAM with large pages where the host can; it will be used soon and densely.
    /// Without them everything works, only slower, so failures are not reported.
    pub fn back_with_large_pages(&self, start: Gpa, end: Gpa) {
        let mut at = start.0 & !(LARGE_PAGE - 1);
        while at < end.0 {
            if let Ok(pointer) = self.memory.get_host_address(GuestAddress(at))
                && self.regions.iter().any(|r| at >= r.gpa.0 && at + LARGE_PAGE <= r.gpa.0 + r.len)
            {
                // A part that was never touched is not collapsed, so it is touched once.
                let _ = self.memory.read_obj::<u8>(GuestAddress(at));
                // SAFETY: a large page inside the mapping; collapsing changes no contents.
                unsafe { libc::madvise(pointer.cast(), LARGE_PAGE as usize, libc::MADV_COLLAPSE) };
            }
            at += LARGE_PAGE;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_the_guest_writes_lies_at_the_promised_offset() {
        let regions = vec![
            RamRegion { gpa: Gpa(0), file_offset: 0, len: 0x20_0000 },
            RamRegion { gpa: Gpa(0x1_0000_0000), file_offset: 0x20_0000, len: 0x20_0000 },
        ];
        let (guest, ram) = GuestRam::new(regions).unwrap();
        guest.back_with_large_pages(Gpa(0x1_0000_0000), Gpa(0x1_0040_0000));
        guest.memory.write_slice(b"high", GuestAddress(0x1_0000_1000)).unwrap();
        let file = File::from(ram.memfd);
        let mut seen = [0; 4];
        file.read_exact_at(&mut seen, 0x20_1000).unwrap();
        assert_eq!(&seen, b"high");
        assert!(file.set_len(0x1000).is_err(), "sealed against shrinking");
        assert!(file.set_len(0x80_0000).is_err(), "sealed against growing");
    }
}

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
    /// There are not enough large pages.
    #[error(
        "hugepages: back {bytes} bytes of guest RAM with 2 MiB pages; `sysctl vm.nr_hugepages=N` reserves them"
    )]
    LargePages {
        /// Bytes wanted.
        bytes: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Memory cannot be tied to a node.
    #[error("NUMA: bind guest RAM to node {node} of the host")]
    Bind {
        /// The host's node.
        node: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Memory is not where it was tied to.
    #[error("NUMA: guest RAM bound to node {node} of the host lies on node {found}")]
    Misplaced {
        /// The host's node.
        node: u32,
        /// Where it lies.
        found: i32,
    },
    /// The mappings do not make an address space.
    #[error("arrange the mapped RAM: {detail}")]
    Arrange {
        /// Why not.
        detail: String,
    },
}

/// A part of the RAM file, and the host's NUMA node for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// First byte.
    pub file_offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Number of the node.
    pub node: u32,
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
    /// Whether all of it lies in large pages already.
    large: bool,
    /// Where it lies.
    pub regions: Vec<RamRegion>,
    /// What `memory` points into.
    _mappings: Arc<Vec<Mapping>>,
}

impl GuestRam {
    /// Creates, seals and maps RAM; the second value is what others may map. With `bindings` all of it lies
    /// in large pages of these nodes when this returns.
    pub fn new(regions: Vec<RamRegion>, bindings: Option<&[Binding]>) -> Result<(Self, Ram), RamError> {
        let bytes = regions.iter().map(|r| r.len).sum();
        let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        if bindings.is_some() {
            flags |= MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
        }
        let memfd = memfd_create(c"ktstr-ram", flags).map_err(|errno| match bindings {
            Some(_) => RamError::LargePages { bytes, source: errno.into() },
            None => RamError::Create(errno),
        })?;
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
        if let Some(bindings) = bindings {
            for binding in bindings {
                bind(&regions, &mappings, binding)
                    .map_err(|source| RamError::Bind { node: binding.node, source })?;
            }
            // Large pages follow the policy of the mapping that touches them, not one of the file.
            for (region, mapping) in regions.iter().zip(&mappings) {
                populate(mapping.start, region.len)
                    .map_err(|source| RamError::LargePages { bytes, source })?;
            }
            for binding in bindings {
                look(&regions, &mappings, binding)?;
            }
        }
        let ram = Ram { memfd: OwnedFd::from(file), regions: regions.clone() };
        Ok((Self { memory, large: bindings.is_some(), regions, _mappings: Arc::new(mappings) }, ram))
    }

    /// Backs this part of RAM with large pages where the host can; it will be used soon and densely.
    /// Without them everything works, only slower, so failures are not reported.
    pub fn back_with_large_pages(&self, start: Gpa, end: Gpa) {
        if self.large {
            return;
        }
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

/// Highest node number that a binding may name (kernel: MAX_NUMNODES of the largest configurations).
const NODES: usize = 1024;

/// Ties a part of the RAM file to a node, through whatever mappings show it: mbind(2).
fn bind(regions: &[RamRegion], mappings: &[Mapping], binding: &Binding) -> io::Result<()> {
    const WORD: usize = u64::BITS as usize;
    let node = binding.node as usize;
    if node >= NODES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut mask = [0u64; NODES / WORD];
    mask[node / WORD] = 1 << (node % WORD);
    for (at, len) in parts(regions, mappings, binding) {
        // SAFETY: an address range inside a mapping of ours; where its pages lie changes no contents. The
        // kernel takes one bit less than it is told.
        let result =
            unsafe { libc::syscall(libc::SYS_mbind, at, len, libc::MPOL_BIND, mask.as_ptr(), NODES + 1, 0) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Where a part of the RAM file is mapped: addresses and lengths.
fn parts<'a>(
    regions: &'a [RamRegion],
    mappings: &'a [Mapping],
    binding: &'a Binding,
) -> impl Iterator<Item = (*mut libc::c_void, u64)> + 'a {
    regions.iter().zip(mappings).filter_map(|(region, mapping)| {
        let from = binding.file_offset.max(region.file_offset);
        let to = (binding.file_offset + binding.len).min(region.file_offset + region.len);
        let at = mapping.start.as_ptr().wrapping_byte_add(from.saturating_sub(region.file_offset) as usize);
        (from < to).then(|| (at, to - from))
    })
}

/// Has all pages of a mapping now, or an error: madvise(2).
fn populate(start: NonNull<libc::c_void>, len: u64) -> io::Result<()> {
    // SAFETY: a mapping of ours; populating it changes no contents.
    match unsafe { libc::madvise(start.as_ptr(), len as usize, libc::MADV_POPULATE_WRITE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks the kernel for the node of every large page of a part: get_mempolicy(2).
fn look(regions: &[RamRegion], mappings: &[Mapping], binding: &Binding) -> Result<(), RamError> {
    let node = binding.node;
    for (at, len) in parts(regions, mappings, binding) {
        for page in (0..len).step_by(LARGE_PAGE as usize) {
            let found = node_of(at.wrapping_byte_add(page as usize))
                .map_err(|source| RamError::Bind { node, source })?;
            if u32::try_from(found) != Ok(node) {
                return Err(RamError::Misplaced { node, found });
            }
        }
    }
    Ok(())
}

/// `MPOL_F_NODE | MPOL_F_ADDR`: the node of an address's page (include/uapi/linux/mempolicy.h).
const NODE_OF_ADDRESS: libc::c_ulong = 1 << 0 | 1 << 1;

fn node_of(at: *mut libc::c_void) -> io::Result<i32> {
    let mut node: libc::c_int = -1;
    // SAFETY: writes one integer; the address is only looked up.
    let result = unsafe {
        libc::syscall(libc::SYS_get_mempolicy, &raw mut node, std::ptr::null::<u64>(), 0, at, NODE_OF_ADDRESS)
    };
    if result == 0 { Ok(node) } else { Err(io::Error::last_os_error()) }
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
        let (guest, ram) = GuestRam::new(regions, None).unwrap();
        guest.back_with_large_pages(Gpa(0x1_0000_0000), Gpa(0x1_0040_0000));
        guest.memory.write_slice(b"high", GuestAddress(0x1_0000_1000)).unwrap();
        let file = File::from(ram.memfd);
        let mut seen = [0; 4];
        file.read_exact_at(&mut seen, 0x20_1000).unwrap();
        assert_eq!(&seen, b"high");
        assert!(file.set_len(0x1000).is_err(), "sealed against shrinking");
        assert!(file.set_len(0x80_0000).is_err(), "sealed against growing");
    }
    /// `MPOL_F_ADDR`: the policy of an address (include/uapi/linux/mempolicy.h).
    const OF_ADDRESS: libc::c_ulong = 1 << 1;

    fn region(file_offset: u64, len: u64) -> RamRegion {
        RamRegion { gpa: Gpa(file_offset), file_offset, len }
    }

    #[test]
    fn parts_are_tied_to_nodes_and_one_that_is_not_there_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 * LARGE_PAGE).unwrap();
        let regions = [region(0, 2 * LARGE_PAGE), region(2 * LARGE_PAGE, 2 * LARGE_PAGE)];
        let mappings: Vec<_> = regions.iter().map(|r| Mapping::of(&file, r).unwrap()).collect();
        // It lies in both mappings.
        let part = Binding { file_offset: LARGE_PAGE, len: 2 * LARGE_PAGE, node: 0 };
        bind(&regions, &mappings, &part).unwrap();
        for (mapping, first) in [(&mappings[0], LARGE_PAGE), (&mappings[1], 0)] {
            let mut mode: libc::c_int = -1;
            let at = mapping.start.as_ptr().wrapping_byte_add(first as usize);
            // SAFETY: writes one integer; the address is only looked up.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_get_mempolicy,
                    &raw mut mode,
                    std::ptr::null::<u64>(),
                    0,
                    at,
                    OF_ADDRESS,
                )
            };
            assert_eq!((result, mode), (0, libc::MPOL_BIND));
        }
        assert!(bind(&regions, &mappings, &Binding { node: 1000, ..part }).is_err());
        assert!(bind(&regions, &mappings, &Binding { node: 5000, ..part }).is_err());
    }

    /// The memory of a one-node host lies on its node, and what lies elsewhere is noticed.
    #[test]
    fn where_a_page_lies_is_asked_for() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * LARGE_PAGE).unwrap();
        let regions = [region(0, 2 * LARGE_PAGE)];
        let mappings = [Mapping::of(&file, &regions[0]).unwrap()];
        let whole = Binding { file_offset: 0, len: 2 * LARGE_PAGE, node: 0 };
        bind(&regions, &mappings, &whole).unwrap();
        populate(mappings[0].start, regions[0].len).unwrap();
        look(&regions, &mappings, &whole).unwrap();
        let elsewhere = look(&regions, &mappings, &Binding { node: 1, ..whole }).unwrap_err();
        assert!(matches!(elsewhere, RamError::Misplaced { node: 1, found: 0 }), "{elsewhere}");
    }

    /// Whichever the host has: pages that are all there at once, or an error that says what is missing.
    #[test]
    fn large_pages_are_there_from_the_start_or_are_refused_by_name() {
        let len = 2 * LARGE_PAGE;
        match GuestRam::new(vec![region(0, len)], Some(&[Binding { file_offset: 0, len, node: 0 }])) {
            Ok((_guest, ram)) => {
                let blocks =
                    std::os::unix::fs::MetadataExt::blocks(&File::from(ram.memfd).metadata().unwrap());
                assert_eq!(blocks * 512, len);
            }
            Err(error) => {
                assert!(matches!(error, RamError::LargePages { .. }), "{error:?}");
                assert!(error.to_string().starts_with("hugepages: "), "{error}");
            }
        }
    }
}

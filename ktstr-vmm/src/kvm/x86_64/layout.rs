//! Where things lie in the guest-physical address space, and the arithmetic that places them.
//!
//! It only computes: nothing here touches memory or KVM. It refuses shapes in which two things would
//! overlap. Next: `boot` writes what is placed here, `acpi` describes it to the guest.

use crate::machine::{Gpa, RamRegion, RingRegion};

/// Guest page size.
pub const PAGE: u64 = 0x1000;
/// Two megabytes, the granularity of RAM.
pub const RAM_STEP: u64 = 0x20_0000;
/// PVH start information, its module list behind it.
pub const START_INFO: Gpa = Gpa(0x6000);
/// PVH memory map.
pub const MEMMAP: Gpa = Gpa(0x7000);
/// Kernel command line.
pub const CMDLINE: Gpa = Gpa(0x2_0000);
/// Longest command line Linux reads on x86, its NUL included.
pub const CMDLINE_MAX: u64 = 2048;
/// End of conventional memory: from here to 1 MiB is firmware land.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The ACPI tables, RSDP first.
pub const ACPI_TABLES: Gpa = Gpa(0xe_0000);
/// First byte behind the ACPI area.
pub const ACPI_END: u64 = RESET_VECTOR.0;
/// Where a PC starts after reset, and where Linux jumps in real mode to reboot a hardware-reduced
/// machine without EFI.
pub const RESET_VECTOR: Gpa = Gpa(0xf_fff0);
/// One megabyte: where ordinary RAM begins.
pub const HIGH_RAM: u64 = 0x10_0000;
/// Start of the hole for memory-mapped devices.
pub const GAP_START: u64 = 0xc000_0000;
/// End of the hole.
pub const GAP_END: u64 = 0x1_0000_0000;
/// First virtio-mmio window.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Size of one virtio-mmio window.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// The in-kernel I/O APIC.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The in-kernel local APICs.
pub const LAPIC: u32 = 0xfee0_0000;
/// Three pages KVM needs on Intel.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// One page KVM needs on Intel.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Interrupt line of COM1.
pub const COM1_IRQ: u32 = 4;
/// Interrupt line of COM2.
pub const COM2_IRQ: u32 = 3;
/// Interrupt lines of the virtio-mmio windows, in order.
pub const VIRTIO_IRQS: [u32; 6] = [5, 6, 7, 10, 11, 12];

/// What one range of the memory map is to the guest kernel (values of E820 and PVH).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// Usable RAM.
    Ram = 1,
    /// Not to be touched: firmware tables, the guest channel.
    Reserved = 2,
}

/// One entry of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
    /// What it is.
    pub kind: RangeKind,
}

/// Why a machine cannot be laid out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// RAM size out of range.
    #[error("{memory} bytes of RAM: give a multiple of 2 MiB, at least 32 MiB and at most 1 TiB")]
    Memory {
        /// Bytes asked for.
        memory: u64,
    },
    /// The ring does not lie in RAM.
    #[error(
        "the guest channel at {gpa} of {len} bytes must be page aligned, not empty, above 1 MiB and inside one piece of the RAM"
    )]
    Ring {
        /// Its address.
        gpa: Gpa,
        /// Its length.
        len: u64,
    },
    /// The kernel does not fit.
    #[error(
        "the kernel image occupies {start:#x}..{end:#x}, which is not free RAM (RAM below the device hole ends at {ram_end:#x}); give the machine more memory or move the guest channel"
    )]
    Kernel {
        /// First byte of the image.
        start: u64,
        /// First byte behind it.
        end: u64,
        /// End of low RAM.
        ram_end: u64,
    },
    /// The initramfs does not fit.
    #[error(
        "no room for an initramfs of {len} bytes in RAM below {ram_end:#x}; give the machine more memory"
    )]
    Initrd {
        /// Bytes of the initramfs.
        len: u64,
        /// End of low RAM.
        ram_end: u64,
    },
}

/// The pieces of RAM, below and above the device hole, back to back in the RAM file.
pub fn ram_regions(memory: u64) -> Result<Vec<RamRegion>, LayoutError> {
    if !(32 << 20..=1 << 40).contains(&memory) || !memory.is_multiple_of(RAM_STEP) {
        return Err(LayoutError::Memory { memory });
    }
    let low = memory.min(GAP_START);
    let mut regions = vec![RamRegion { gpa: Gpa(0), file_offset: 0, len: low }];
    if memory > low {
        regions.push(RamRegion { gpa: Gpa(GAP_END), file_offset: low, len: memory - low });
    }
    Ok(regions)
}

/// Checks that the ring lies in RAM, above the firmware area.
pub fn check_ring(ring: RingRegion, regions: &[RamRegion]) -> Result<(), LayoutError> {
    let refused = LayoutError::Ring { gpa: ring.gpa, len: ring.len };
    let (start, Some(end)) = (ring.gpa.0, ring.gpa.0.checked_add(ring.len)) else { return Err(refused) };
    let aligned =
        start.is_multiple_of(PAGE) && ring.len.is_multiple_of(PAGE) && ring.len > 0 && start >= HIGH_RAM;
    let inside = regions.iter().any(|r| start >= r.gpa.0 && end <= r.gpa.0 + r.len);
    if aligned && inside { Ok(()) } else { Err(refused) }
}

/// The memory map the guest is given. Ascending, disjoint; the ring and the firmware area reserved.
pub fn memory_map(regions: &[RamRegion], ring: Option<RingRegion>) -> Vec<Range> {
    let mut map = Vec::new();
    for region in regions {
        let (start, end) = (region.gpa.0, region.gpa.0 + region.len);
        if start == 0 {
            map.push(Range { start: 0, end: LOW_RAM_END, kind: RangeKind::Ram });
            map.push(Range { start: LOW_RAM_END, end: HIGH_RAM, kind: RangeKind::Reserved });
            split_around(&mut map, HIGH_RAM, end, ring);
        } else {
            split_around(&mut map, start, end, ring);
        }
    }
    map
}

fn split_around(map: &mut Vec<Range>, start: u64, end: u64, ring: Option<RingRegion>) {
    let mut push = |start, end, kind| {
        if start < end {
            map.push(Range { start, end, kind });
        }
    };
    match ring.map(|r| (r.gpa.0, r.gpa.0 + r.len)) {
        Some((from, to)) if from >= start && to <= end => {
            push(start, from, RangeKind::Ram);
            push(from, to, RangeKind::Reserved);
            push(to, end, RangeKind::Ram);
        }
        _ => push(start, end, RangeKind::Ram),
    }
}

/// Checks that the loaded kernel lies in usable RAM above 1 MiB.
pub fn check_kernel(start: u64, end: u64, map: &[Range]) -> Result<(), LayoutError> {
    let free = |r: &&Range| r.kind == RangeKind::Ram && r.start >= HIGH_RAM && r.start < GAP_START;
    let ram_end = map.iter().filter(free).map(|r| r.end).max().unwrap_or(0);
    if start < end && map.iter().filter(free).any(|r| start >= r.start && end <= r.end) {
        Ok(())
    } else {
        Err(LayoutError::Kernel { start, end, ram_end })
    }
}

/// Highest page-aligned place for the initramfs in RAM below the device hole: behind the kernel,
/// never over the ring.
pub fn place_initrd(len: u64, kernel_end: u64, map: &[Range]) -> Result<Gpa, LayoutError> {
    let low = |r: &&Range| r.kind == RangeKind::Ram && r.start >= HIGH_RAM && r.start < GAP_START;
    let ram_end = map.iter().filter(low).map(|r| r.end).max().unwrap_or(0);
    map.iter()
        .filter(low)
        .rev()
        .find_map(|r| {
            let start = r.end.checked_sub(len)? & !(PAGE - 1);
            (start >= r.start.max(kernel_end)).then_some(Gpa(start))
        })
        .ok_or(LayoutError::Initrd { len, ram_end })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring_in(regions: &[RamRegion], at: u64, len: u64) -> Option<RingRegion> {
        let total: u64 = regions.iter().map(|r| r.len).sum();
        let ring = RingRegion { gpa: Gpa((at % total) & !(PAGE - 1)), len: (len % (64 << 20)) & !(PAGE - 1) };
        check_ring(ring, regions).is_ok().then_some(ring)
    }

    proptest! {
        #[test]
        fn the_map_is_disjoint_and_covers_all_ram(steps in 16u64..8192, at: u64, len: u64) {
            let regions = ram_regions(steps * RAM_STEP).unwrap();
            let ring = ring_in(&regions, at, len);
            let map = memory_map(&regions, ring);
            for pair in map.windows(2) {
                prop_assert!(pair[0].end <= pair[1].start);
            }
            let covered: u64 = map.iter().map(|r| r.end - r.start).sum();
            prop_assert_eq!(covered, steps * RAM_STEP);
            for r in &map {
                prop_assert!(r.end <= GAP_START || r.start >= GAP_END);
                if let Some(ring) = ring {
                    let apart = r.end <= ring.gpa.0 || r.start >= ring.gpa.0 + ring.len;
                    prop_assert!(apart || r.kind == RangeKind::Reserved);
                }
            }
        }

        #[test]
        fn the_initrd_never_lies_over_kernel_or_ring(
            steps in 16u64..2048, at: u64, len: u64, initrd in 1u64..(512 << 20), kernel in 0u64..(80 << 20),
        ) {
            let regions = ram_regions(steps * RAM_STEP).unwrap();
            let ring = ring_in(&regions, at, len);
            let kernel_end = (16 << 20) + kernel;
            if let Ok(place) = place_initrd(initrd, kernel_end, &memory_map(&regions, ring)) {
                let (start, end) = (place.0, place.0 + initrd);
                prop_assert!(start % PAGE == 0 && start >= kernel_end);
                prop_assert!(end <= (steps * RAM_STEP).min(GAP_START));
                if let Some(ring) = ring {
                    prop_assert!(end <= ring.gpa.0 || start >= ring.gpa.0 + ring.len);
                }
            }
        }
    }

    #[test]
    fn a_full_machine_says_what_does_not_fit() {
        let regions = ram_regions(64 << 20).unwrap();
        let map = memory_map(&regions, None);
        assert!(matches!(place_initrd(60 << 20, 40 << 20, &map), Err(LayoutError::Initrd { .. })));
        assert!(matches!(check_kernel(16 << 20, 65 << 20, &map), Err(LayoutError::Kernel { .. })));
        assert_eq!(check_kernel(16 << 20, 63 << 20, &map), Ok(()));
        assert!(matches!(ram_regions(1 << 20), Err(LayoutError::Memory { .. })));
        let wild = RingRegion { gpa: Gpa(u64::MAX - 0xfff), len: 0x2000 };
        assert!(matches!(check_ring(wild, &regions), Err(LayoutError::Ring { .. })));
    }
}

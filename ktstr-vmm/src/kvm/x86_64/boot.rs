//! Direct boot of an uncompressed kernel through its PVH entry: what is loaded where, and the
//! registers with which the first CPU starts.
//!
//! It refuses kernels without the PVH note (a bzImage has none; the caller unpacks it first). Next:
//! `layout` decides the places.

use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsFd, OwnedFd};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress};

use super::acpi::{self, Description};
use super::layout::{self, LayoutError};
use crate::kvm::devices::power;
use crate::kvm::memory::GuestRam;
use crate::machine::{Gpa, MachineSpec};

/// Magic of the PVH start information ("xEn3").
const START_MAGIC: u32 = 0x336e_c578;

/// Where distribution kernels lie once loaded.
const KERNEL_PART: std::ops::Range<u64> = 16 << 20..80 << 20;
/// How much at the top of RAM is in use before user space starts.
const TOP_PART: u64 = 64 << 20;

/// Real-mode code at the reset vector: `mov dx, RESET; mov al, RESET_VALUE; out dx, al; 1: hlt; jmp 1b`.
const RESET_CODE: [u8; 9] =
    [0xba, power::RESET as u8, (power::RESET >> 8) as u8, 0xb0, power::RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd];

/// What went wrong while the guest was put into memory.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Something has no place.
    #[error("lay out guest memory")]
    Layout(#[from] LayoutError),
    /// The image is not loadable.
    #[error(
        "load the kernel image: it must be an uncompressed x86_64 ELF (vmlinux) whose segments fit into guest RAM"
    )]
    Kernel(#[source] linux_loader::loader::Error),
    /// No PVH entry.
    #[error("the kernel has no PVH entry note; build it with CONFIG_PVH=y (distribution kernels have it)")]
    NoPvhEntry,
    /// The command line is too long.
    #[error("the kernel command line has {len} bytes, Linux reads at most {}; shorten it", layout::CMDLINE_MAX - 1)]
    CmdlineTooLong {
        /// Its length.
        len: usize,
    },
    /// The command line has a NUL byte.
    #[error("the kernel command line contains a NUL byte at offset {at}")]
    CmdlineNul {
        /// Where.
        at: usize,
    },
    /// The tables do not fit.
    #[error("build the ACPI tables")]
    Acpi(#[from] acpi::TablesTooLarge),
    /// A descriptor could not be read.
    #[error("read initramfs number {index}")]
    ReadInitrd {
        /// Which of the archives.
        index: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel descriptor could not be duplicated.
    #[error("duplicate the kernel descriptor")]
    DuplicateKernel(#[source] io::Error),
    /// Guest memory refused a write.
    #[error("write {what} into guest memory at {gpa}")]
    Write {
        /// What was written.
        what: &'static str,
        /// Where.
        gpa: Gpa,
        /// Why.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

/// Where the first CPU starts.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Physical address of the PVH entry.
    pub rip: u64,
}

/// Loads kernel, initramfs, command line, memory map and ACPI tables.
pub fn load(spec: &MachineSpec, ram: &GuestRam, description: &Description<'_>) -> Result<Entry, BootError> {
    if let Some(ring) = spec.ring {
        layout::check_ring(ring, &ram.regions)?;
    }
    let map = layout::memory_map(&ram.regions, spec.ring);
    prepare_busy_parts(ram, &map);
    let (entry, kernel_end) = load_kernel(spec, ram, &map)?;
    let module = load_initrd(&spec.initrd, ram, kernel_end, &map)?;
    write_cmdline(&spec.cmdline, ram)?;
    write(ram, "the ACPI tables", layout::ACPI_TABLES, &acpi::tables(description)?)?;
    write(ram, "the reset code", layout::RESET_VECTOR, &RESET_CODE)?;
    write_start_info(ram, &map, module)?;
    Ok(entry)
}

/// A booting Linux touches its image (from 16 MiB on) and, for its page array and its tables, the top
/// of the RAM, nearly page by page.
fn prepare_busy_parts(ram: &GuestRam, map: &[layout::Range]) {
    ram.back_with_large_pages(Gpa(KERNEL_PART.start), Gpa(KERNEL_PART.end));
    if let Some(top) = map.iter().filter(|r| r.kind == layout::RangeKind::Ram).map(|r| r.end).max() {
        ram.back_with_large_pages(Gpa(top.saturating_sub(TOP_PART).max(KERNEL_PART.end)), Gpa(top));
    }
}

fn write(ram: &GuestRam, what: &'static str, gpa: Gpa, bytes: &[u8]) -> Result<(), BootError> {
    ram.memory.write_slice(bytes, GuestAddress(gpa.0)).map_err(|source| BootError::Write {
        what,
        gpa,
        source,
    })
}

/// Entry and first byte behind the image.
pub(crate) fn load_kernel(
    spec: &MachineSpec,
    ram: &GuestRam,
    map: &[layout::Range],
) -> Result<(Entry, u64), BootError> {
    let mut image = File::from(spec.kernel.try_clone().map_err(BootError::DuplicateKernel)?);
    let loaded = Elf::load(&ram.memory, None, &mut image, None).map_err(BootError::Kernel)?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BootError::NoPvhEntry);
    };
    // The ELF entry of a vmlinux is its first byte.
    layout::check_kernel(loaded.kernel_load.0.min(entry.0), loaded.kernel_end, map)?;
    Ok((Entry { rip: entry.0 }, loaded.kernel_end))
}

fn load_initrd(
    archives: &[OwnedFd],
    ram: &GuestRam,
    kernel_end: u64,
    map: &[layout::Range],
) -> Result<Option<(Gpa, u64)>, BootError> {
    let mut files = Vec::new();
    let mut total = 0u64;
    for (index, fd) in archives.iter().enumerate() {
        let failed = |source| BootError::ReadInitrd { index, source };
        let mut file = File::from(fd.as_fd().try_clone_to_owned().map_err(failed)?);
        // Not by `stat`: the jail has no file names, and some C libraries ask by (empty) name.
        let len = file.seek(io::SeekFrom::End(0)).map_err(failed)?;
        files.push((file, total, len));
        total = (total + len).next_multiple_of(4);
    }
    if total == 0 {
        return Ok(None);
    }
    let place = layout::place_initrd(total, kernel_end, map)?;
    for (index, (mut file, offset, len)) in files.into_iter().enumerate() {
        file.rewind().map_err(|source| BootError::ReadInitrd { index, source })?;
        ram.memory
            .read_exact_volatile_from(GuestAddress(place.0 + offset), &mut file, len as usize)
            .map_err(|source| BootError::Write {
                what: "the initramfs",
                gpa: Gpa(place.0 + offset),
                source,
            })?;
    }
    Ok(Some((place, total)))
}

fn write_cmdline(cmdline: &str, ram: &GuestRam) -> Result<(), BootError> {
    if let Some(at) = cmdline.bytes().position(|b| b == 0) {
        return Err(BootError::CmdlineNul { at });
    }
    if cmdline.len() as u64 >= layout::CMDLINE_MAX {
        return Err(BootError::CmdlineTooLong { len: cmdline.len() });
    }
    let bytes: Vec<u8> = cmdline.bytes().chain([0]).collect();
    write(ram, "the command line", layout::CMDLINE, &bytes)
}

fn write_start_info(
    ram: &GuestRam,
    map: &[layout::Range],
    module: Option<(Gpa, u64)>,
) -> Result<(), BootError> {
    let modules = Gpa(layout::START_INFO.0 + size_of::<hvm_start_info>() as u64);
    let info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        nr_modules: module.is_some().into(),
        modlist_paddr: modules.0,
        cmdline_paddr: layout::CMDLINE.0,
        rsdp_paddr: layout::ACPI_TABLES.0,
        memmap_paddr: layout::MEMMAP.0,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let failed = |what, gpa| move |source| BootError::Write { what, gpa, source };
    let memory = &ram.memory;
    memory
        .write_obj(info, GuestAddress(layout::START_INFO.0))
        .map_err(failed("the start information", layout::START_INFO))?;
    if let Some((gpa, size)) = module {
        let entry = hvm_modlist_entry { paddr: gpa.0, size, ..Default::default() };
        memory.write_obj(entry, GuestAddress(modules.0)).map_err(failed("the module list", modules))?;
    }
    for (index, range) in map.iter().enumerate() {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.end - range.start,
            type_: range.kind as u32,
            reserved: 0,
        };
        let gpa = Gpa(layout::MEMMAP.0 + (index * size_of::<hvm_memmap_table_entry>()) as u64);
        memory.write_obj(entry, GuestAddress(gpa.0)).map_err(failed("the memory map", gpa))?;
    }
    Ok(())
}

/// General registers of the first CPU at the PVH entry.
#[must_use]
pub fn entry_regs(entry: Entry) -> kvm_regs {
    kvm_regs { rflags: 2, rip: entry.rip, rbx: layout::START_INFO.0, ..Default::default() }
}

/// Turns the reset state into what PVH asks for: flat 32-bit protected mode, paging off.
pub fn enter_protected_mode(sregs: &mut kvm_sregs) {
    let flat = |selector, type_| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    sregs.cs = flat(0x08, 0xb);
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = flat(0x10, 0x3);
    }
    // A busy 32-bit task state segment, as the VM entry checks demand.
    sregs.tr = kvm_segment { type_: 0xb, s: 0, db: 0, g: 0, limit: 0x67, ..flat(0x18, 0xb) };
    sregs.cr0 = 0x11;
    sregs.cr4 = 0;
    sregs.efer = 0;
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::apic::ApicIds;
    use crate::machine::{RingRegion, Topology};

    const SHAPE: Topology = Topology { numa_nodes: 1, llcs: 1, cores: 1, threads: 1 };

    /// A 64-bit ELF with one loadable segment at `at` and, if asked for, the PVH note.
    fn kernel(at: u64, pvh: bool) -> Vec<u8> {
        let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
        elf.resize(16, 0);
        elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        elf.extend(at.to_le_bytes());
        elf.extend(64u64.to_le_bytes());
        elf.resize(52, 0);
        elf.extend([64u16, 56, 2, 0, 0, 0].iter().flat_map(|v| v.to_le_bytes()));
        let mut segment = |kind: u32, offset: u64, address: u64, len: u64| {
            elf.extend(kind.to_le_bytes());
            elf.extend(5u32.to_le_bytes());
            elf.extend([offset, address, address, len, len, 4].iter().flat_map(|v| v.to_le_bytes()));
        };
        segment(1, 176, at, 8);
        segment(4, 184, 0, if pvh { 20 } else { 0 });
        elf.extend([0xf4; 8]);
        elf.extend([4u32, 4, 18].iter().flat_map(|v| v.to_le_bytes()));
        elf.extend(b"Xen\0");
        elf.extend((at as u32).to_le_bytes());
        elf
    }

    fn file(bytes: &[u8]) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.into()
    }

    fn boot(change: impl FnOnce(&mut MachineSpec)) -> (Result<Entry, BootError>, GuestRam) {
        let mut spec = MachineSpec {
            topology: SHAPE,
            numa: Default::default(),
            absent_llcs: 0,
            memory: 64 << 20,
            kernel: file(&kernel(16 << 20, true)),
            initrd: vec![file(b"first"), file(b"second")],
            cmdline: "console=ttyS0".into(),
            ring: None,
            com1: file(b""),
            com2: None,
            console: None,
            devices: Default::default(),
            isolation: None,
        };
        change(&mut spec);
        let (ram, _) = GuestRam::new(layout::ram_regions(spec.memory).unwrap(), None).unwrap();
        let ids = ApicIds::new(SHAPE).unwrap();
        let nodes = &crate::nodes::divide(&SHAPE, &spec.numa, spec.memory).unwrap();
        let (ram_regions, numa) = (&ram.regions, &spec.numa);
        let description =
            Description { topology: SHAPE, numa, nodes, ids: &ids, ram: ram_regions, virtio: 0 };
        (load(&spec, &ram, &description), ram)
    }

    #[test]
    fn the_guest_finds_everything_through_the_start_information() {
        let ring = RingRegion { gpa: Gpa((64 << 20) - 0x10_0000), len: 0x10_0000 };
        let (entry, ram) = boot(|spec| spec.ring = Some(ring));
        assert_eq!(entry.unwrap().rip, 16 << 20);
        let info: hvm_start_info = ram.memory.read_obj(GuestAddress(layout::START_INFO.0)).unwrap();
        assert_eq!((info.magic, info.nr_modules), (START_MAGIC, 1));
        let module: hvm_modlist_entry = ram.memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert!(module.paddr + module.size <= ring.gpa.0);
        let mut archives = vec![0; module.size as usize];
        ram.memory.read_slice(&mut archives, GuestAddress(module.paddr)).unwrap();
        assert_eq!(archives, b"first\0\0\0second\0\0");
        let mut signature = [0; 8];
        ram.memory.read_slice(&mut signature, GuestAddress(info.rsdp_paddr)).unwrap();
        assert_eq!(&signature, b"RSD PTR ");
        let mut cmdline = [0; 14];
        ram.memory.read_slice(&mut cmdline, GuestAddress(info.cmdline_paddr)).unwrap();
        assert_eq!(&cmdline, b"console=ttyS0\0");
        let reserved = (0..u64::from(info.memmap_entries)).any(|index| {
            let at = GuestAddress(info.memmap_paddr + index * size_of::<hvm_memmap_table_entry>() as u64);
            let range: hvm_memmap_table_entry = ram.memory.read_obj(at).unwrap();
            (range.addr, range.size, range.type_) == (ring.gpa.0, ring.len, 2)
        });
        assert!(reserved);
    }

    #[test]
    fn each_bad_input_has_its_own_error() {
        assert!(matches!(boot(|s| s.kernel = file(b"MZ no kernel")).0, Err(BootError::Kernel(_))));
        assert!(matches!(
            boot(|s| s.kernel = file(&kernel(16 << 20, true)[..100])).0,
            Err(BootError::Kernel(_))
        ));
        assert!(matches!(boot(|s| s.kernel = file(&kernel(16 << 20, false))).0, Err(BootError::NoPvhEntry)));
        assert!(matches!(boot(|s| s.kernel = file(&kernel(1 << 40, true))).0, Err(BootError::Kernel(_))));
        let low = boot(|s| s.kernel = file(&kernel(0x6000, true))).0;
        assert!(matches!(low, Err(BootError::Layout(LayoutError::Kernel { .. }))), "{low:?}");
        let on_ring = RingRegion { gpa: Gpa(16 << 20), len: 0x1000 };
        let overlap = boot(|s| s.ring = Some(on_ring)).0;
        assert!(matches!(overlap, Err(BootError::Layout(LayoutError::Kernel { .. }))), "{overlap:?}");
        assert!(matches!(
            boot(|s| s.cmdline = "x".repeat(2048)).0,
            Err(BootError::CmdlineTooLong { len: 2048 })
        ));
        assert!(matches!(boot(|s| s.cmdline = "a\0b".into()).0, Err(BootError::CmdlineNul { at: 1 })));
        let large = tempfile::tempfile().unwrap();
        large.set_len(63 << 20).unwrap();
        let too_large = boot(|s| s.initrd = vec![large.into()]).0;
        assert!(matches!(too_large, Err(BootError::Layout(LayoutError::Initrd { .. }))), "{too_large:?}");
    }
}

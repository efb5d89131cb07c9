//! Direct boot of an uncompressed kernel through its PVH entry: what is loaded where, and the
//! registers with which the first CPU starts.
//!
//! It refuses kernels without the PVH note (a bzImage has none; the caller unpacks it first). Next:
//! `layout` decides the places.

use std::fs::File;
use std::io;
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
    #[error("load the kernel image: it must be an uncompressed x86_64 ELF (vmlinux) whose segments fit into guest RAM")]
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
    let (entry, kernel_end) = load_kernel(spec, ram, &map)?;
    let module = load_initrd(&spec.initrd, ram, kernel_end, &map)?;
    write_cmdline(&spec.cmdline, ram)?;
    write(ram, "the ACPI tables", layout::ACPI_TABLES, &acpi::tables(description)?)?;
    write(ram, "the reset code", layout::RESET_VECTOR, &RESET_CODE)?;
    write_start_info(ram, &map, module)?;
    Ok(entry)
}

fn write(ram: &GuestRam, what: &'static str, gpa: Gpa, bytes: &[u8]) -> Result<(), BootError> {
    ram.memory.write_slice(bytes, GuestAddress(gpa.0)).map_err(|source| BootError::Write { what, gpa, source })
}

fn load_kernel(spec: &MachineSpec, ram: &GuestRam, map: &[layout::Range]) -> Result<(Entry, u64), BootError> {
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
        let file = File::from(fd.as_fd().try_clone_to_owned().map_err(failed)?);
        let len = file.metadata().map_err(failed)?.len();
        files.push((file, total, len));
        total = (total + len).next_multiple_of(4);
    }
    if total == 0 {
        return Ok(None);
    }
    let place = layout::place_initrd(total, kernel_end, map)?;
    for (index, (mut file, offset, len)) in files.into_iter().enumerate() {
        io::Seek::rewind(&mut file).map_err(|source| BootError::ReadInitrd { index, source })?;
        ram.memory
            .read_exact_volatile_from(GuestAddress(place.0 + offset), &mut file, len as usize)
            .map_err(|source| BootError::Write { what: "the initramfs", gpa: Gpa(place.0 + offset), source })?;
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

fn write_start_info(ram: &GuestRam, map: &[layout::Range], module: Option<(Gpa, u64)>) -> Result<(), BootError> {
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

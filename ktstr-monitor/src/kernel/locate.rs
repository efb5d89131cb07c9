//! Finds a running kernel in guest memory: where its image was loaded, by how much it was moved
//! (KASLR), its page tables, and the per-CPU areas.
//!
//! Before boot has come far enough there is nothing to find, or something half-built; so each step
//! is checked, and the first that does not hold is the [`NotReady`] that is returned:
//!
//! 1. the image: its version text stands where a 2 MiB-aligned load address would put it;
//! 2. `phys_base` says how far virtual and physical shift differ, and the walk of `init_top_pgt`
//!    agrees on where `_text` lies;
//! 3. `page_offset_base` maps physical address 0 upwards: a walk of the run queue of a CPU whose
//!    per-CPU area is in the direct map agrees with plain subtraction;
//! 4. the possible mask is neither empty nor larger than the kernel's `NR_CPUS`;
//! 5. the `__per_cpu_offset` of each possible CPU is set, its own, and leads to canonical addresses;
//! 6. each possible CPU's `rq.cpu` is that CPU, and `rq.rd` points somewhere (`sched_init` is done).

use thiserror::Error;

use super::profile::Profile;
use super::value::Gap;
use crate::addr::{CpuId, Gpa, Kva};
use crate::arch::x86_64::{IMAGE_ALIGN, Levels, PageTable, START_KERNEL_MAP};
use crate::mem::{GuestMem, ReadError};
use crate::paging::{AccessError, KernelMem};

/// What does not yet look like a running kernel.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NotReady {
    /// The image is nowhere in memory.
    #[error("the kernel image is not in guest memory, or it is another build")]
    NoImage,
    /// A variable of the image lies outside RAM.
    #[error("cannot read `{symbol}` in the kernel image")]
    Image {
        /// The variable.
        symbol: &'static str,
        /// Why not.
        #[source]
        source: ReadError,
    },
    /// A variable cannot be reached through the page tables.
    #[error("cannot read `{symbol}` through the kernel's page tables")]
    Variable {
        /// The variable.
        symbol: &'static str,
        /// Why not.
        #[source]
        source: AccessError,
    },
    /// The page tables map the image elsewhere.
    #[error("the page tables put `_text` at {found}, the image is at {expected}")]
    ImageElsewhere {
        /// Where the image was found.
        expected: Gpa,
        /// Where the walk led.
        found: Gpa,
    },
    /// The direct map is not set up.
    #[error("the direct map cannot begin at {base}")]
    DirectMap {
        /// The value of `page_offset_base`.
        base: Kva,
    },
    /// No CPU is possible.
    #[error("`__cpu_possible_mask` is empty")]
    NoCpus,
    /// A per-CPU offset is not set up.
    #[error("the per-CPU offset of CPU {cpu} is {offset:#x}: {what}")]
    PerCpuOffset {
        /// The CPU.
        cpu: CpuId,
        /// Its offset.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A run queue is not set up.
    #[error("the run queue of CPU {cpu} is not set up")]
    RunQueue {
        /// The CPU.
        cpu: CpuId,
        /// What is wrong with it.
        #[source]
        source: Box<Gap>,
    },
}

/// A possible CPU's per-CPU area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuArea {
    /// The CPU.
    pub cpu: CpuId,
    /// Its `__per_cpu_offset`.
    pub offset: u64,
}

/// A running kernel, found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveKernel {
    table: PageTable,
    shift: u64,
    page_offset: Kva,
    cpus: Vec<CpuArea>,
}

impl LiveKernel {
    /// Looks for the kernel that `profile` describes.
    pub fn locate(profile: &Profile, mem: &GuestMem) -> Result<Self, NotReady> {
        let moved = find_image(profile, mem).ok_or(NotReady::NoImage)?;
        let (table, shift) = page_tables(profile, mem, moved)?;
        let mut kernel = Self { table, shift, page_offset: Kva(0), cpus: Vec::new() };
        kernel.page_offset = kernel.direct_map(profile, mem)?;
        kernel.cpus = kernel.per_cpu_areas(profile, mem)?;
        kernel.check_run_queues(profile, mem)?;
        Ok(kernel)
    }

    /// The kernel's address space.
    pub fn view<'m>(&self, mem: &'m GuestMem) -> KernelMem<'m> {
        KernelMem::new(mem, self.table)
    }

    /// Where the symbol linked at `link` lies now.
    pub fn at(&self, link: Kva) -> Kva {
        // Per-CPU symbols of kernels that link them at 0 are not relocated.
        if link < START_KERNEL_MAP { link } else { link.wrapping_add(self.shift) }
    }

    /// Where the per-CPU symbol linked at `link` lies for `cpu`.
    pub fn per_cpu(&self, link: Kva, cpu: CpuArea) -> Kva {
        self.at(link).wrapping_add(cpu.offset)
    }

    /// The possible CPUs in ascending order.
    pub fn cpus(&self) -> &[CpuArea] {
        &self.cpus
    }

    /// Whether the per-CPU areas are still where they were found: another kernel has others.
    pub fn still_holds(&self, profile: &Profile, mem: &GuestMem) -> bool {
        let offset = |cpu: CpuId| {
            let slot = profile.per_cpu_offset.wrapping_add(u64::from(cpu.0) * 8);
            self.view(mem).read_u64(self.at(slot)).ok()
        };
        self.cpus.iter().all(|area| offset(area.cpu) == Some(area.offset))
    }

    /// By how much KASLR moved the image.
    pub fn kaslr_shift(&self) -> u64 {
        self.shift
    }

    /// Where the direct map begins.
    pub fn page_offset(&self) -> Kva {
        self.page_offset
    }

    /// The page tables.
    pub fn page_table(&self) -> PageTable {
        self.table
    }

    /// The CPUs set in the mask linked at `mask`.
    pub(crate) fn cpu_mask(
        &self,
        profile: &Profile,
        mem: &GuestMem,
        mask: Kva,
    ) -> Result<Vec<CpuId>, AccessError> {
        let mut bytes = vec![0; (profile.nr_cpus / 8) as usize];
        self.view(mem).read(self.at(mask), &mut bytes)?;
        let is_set = |cpu: &u32| bytes[*cpu as usize / 8] >> (cpu % 8) & 1 == 1;
        Ok((0..profile.nr_cpus as u32).filter(is_set).map(CpuId).collect())
    }

    fn variable(&self, mem: &GuestMem, link: Kva, symbol: &'static str) -> Result<u64, NotReady> {
        let read = self.view(mem).read_u64(self.at(link));
        read.map_err(|source| NotReady::Variable { symbol, source })
    }

    fn direct_map(&self, profile: &Profile, mem: &GuestMem) -> Result<Kva, NotReady> {
        let base = self.variable(mem, profile.page_offset_base, "page_offset_base").map(Kva)?;
        let in_upper_half = (base.0 as i64) < 0;
        let aligned = base.0 % (1 << 30) == 0;
        if in_upper_half && aligned && self.table.levels.is_canonical(base) {
            Ok(base)
        } else {
            Err(NotReady::DirectMap { base })
        }
    }

    fn per_cpu_areas(&self, profile: &Profile, mem: &GuestMem) -> Result<Vec<CpuArea>, NotReady> {
        let possible = self
            .cpu_mask(profile, mem, profile.cpu_possible_mask)
            .map_err(|source| NotReady::Variable { symbol: "__cpu_possible_mask", source })?;
        let mut areas: Vec<CpuArea> = Vec::with_capacity(possible.len());
        let mut seen = std::collections::HashSet::new();
        for cpu in possible {
            let slot = profile.per_cpu_offset.wrapping_add(u64::from(cpu.0) * 8);
            let offset = self.variable(mem, slot, "__per_cpu_offset")?;
            let bad = |what| NotReady::PerCpuOffset { cpu, offset, what };
            // Until the areas are set up every entry is 0 and leads to the template in the image.
            if offset == 0 {
                return Err(bad("it is not set yet"));
            }
            if !seen.insert(offset) {
                return Err(bad("another CPU has the same"));
            }
            let area = CpuArea { cpu, offset };
            if !self.view(mem).is_canonical(self.per_cpu(profile.runqueues, area)) {
                return Err(bad("its run queue would have no canonical address"));
            }
            areas.push(area);
        }
        if areas.is_empty() { Err(NotReady::NoCpus) } else { Ok(areas) }
    }

    fn check_run_queues(&self, profile: &Profile, mem: &GuestMem) -> Result<(), NotReady> {
        let view = self.view(mem);
        for &area in &self.cpus {
            let at = self.per_cpu(profile.runqueues, area);
            profile
                .rq
                .is_set_up(&view, at, area.cpu)
                .map_err(|gap| NotReady::RunQueue { cpu: area.cpu, source: Box::new(gap) })?;
            // The first per-CPU chunk lies in the direct map, unless CPUs are too far apart for it.
            let direct = at.0.wrapping_sub(self.page_offset.0);
            let in_ram = mem
                .layout()
                .regions()
                .iter()
                .any(|r| direct.checked_sub(r.start.0).is_some_and(|into| into < r.len));
            if in_ram && view.translate(at).is_ok_and(|mapped| mapped.gpa != Gpa(direct)) {
                return Err(NotReady::DirectMap { base: self.page_offset });
            }
        }
        Ok(())
    }
}

/// How far from its load address the image lies, as a two's-complement distance.
fn find_image(profile: &Profile, mem: &GuestMem) -> Option<u64> {
    let link = profile.linux_banner.load;
    let mut found = vec![0; profile.banner.len()];
    let mut is_at = |at: Gpa| mem.read(at, &mut found).is_ok() && found == profile.banner;
    if is_at(link) {
        return Some(0);
    }
    let into = link.0 % IMAGE_ALIGN;
    mem.layout()
        .regions()
        .iter()
        .flat_map(|region| {
            // A region that ends before the next aligned address has no room for an image.
            let end = region.start.0 + region.len;
            let first = region.start.0.checked_next_multiple_of(IMAGE_ALIGN).unwrap_or(end);
            (first..end).step_by(IMAGE_ALIGN as usize)
        })
        .filter_map(|base| Gpa(base).checked_add(into))
        .find(|&at| is_at(at))
        .map(|at| at.0.wrapping_sub(link.0))
}

/// The page tables and the virtual shift of an image that was loaded `moved` bytes further on.
fn page_tables(profile: &Profile, mem: &GuestMem, moved: u64) -> Result<(PageTable, u64), NotReady> {
    let physical = |load: Gpa| Gpa(load.0.wrapping_add(moved));
    let phys_base = mem
        .read_u64(physical(profile.phys_base.load))
        .map_err(|source| NotReady::Image { symbol: "phys_base", source })?;
    let shift = moved.wrapping_sub(phys_base);
    let text = profile.text.kva.wrapping_add(shift);
    let root = physical(profile.init_top_pgt.load);
    let expected = physical(profile.text.load);
    let walk = |levels| KernelMem::new(mem, PageTable { root, levels }).translate(text);
    // Only one depth makes sense of the tables, and pgdir_shift, read through it, must agree.
    let mut error = None;
    for (levels, shift_bits) in [(Levels::Four, 39), (Levels::Five, 48)] {
        let table = PageTable { root, levels };
        match walk(levels) {
            Ok(mapped) if mapped.gpa == expected => {
                let says = profile
                    .pgdir_shift
                    .and_then(|at| KernelMem::new(mem, table).read_u32(at.wrapping_add(shift)).ok());
                if says.is_none_or(|bits| bits == shift_bits) {
                    return Ok((table, shift));
                }
            }
            Ok(mapped) => {
                error.get_or_insert(NotReady::ImageElsewhere { expected, found: mapped.gpa });
            }
            Err(source) => {
                let source = AccessError::Translate { kva: text, source };
                error.get_or_insert(NotReady::Variable { symbol: "_text", source });
            }
        }
    }
    Err(error.unwrap_or(NotReady::ImageElsewhere { expected, found: expected }))
}

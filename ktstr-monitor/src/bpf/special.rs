//! Maps that are no tables: `struct_ops` and arenas.
//!
//! An arena is a window of up to 4 GiB in which the kernel and user space see the same pages at two
//! addresses with equal lower halves (`kernel/bpf/arena.c`):
//!
//! ```text
//! user:    user_vm_start + n               (what programs keep)
//! kernel:  kern_vm->addr + guard/2 + n     (what the monitor reads)
//! ```

use std::sync::Arc;

use super::map::{Entries, Entry, Key, MapInfo, MapKind};
use super::reader::{BpfError, Reader};
use crate::addr::{Gpa, Kva};
use crate::paging::PageError;
use crate::types::{Member, Ty, TypeSet};

/// Half of the guard zone around an arena: as far as the 16-bit offset of an instruction reaches.
const GUARD: u64 = 1 << 15;
const PAGE: u64 = 4096;
/// An arena cannot be larger.
const MAX_ARENA: u64 = 4 << 30;

/// Where an arena is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaInfo {
    /// The map.
    pub map: Kva,
    /// Its number.
    pub map_id: u32,
    /// Where user space sees it.
    pub user_start: u64,
    /// Where user space's window ends.
    pub user_end: u64,
    /// Where the kernel sees it.
    pub kernel_start: Kva,
}

impl ArenaInfo {
    /// Where the kernel sees page number `page` of the window.
    pub fn page(&self, page: u64) -> Kva {
        self.kernel_start.wrapping_add(u64::from((self.user_start.wrapping_add(page * PAGE)) as u32))
    }

    /// The kernel's address for `pointer`, which a program may hold in either form.
    pub fn kernel_address(&self, pointer: u64) -> Option<Kva> {
        let len = self.user_end - self.user_start;
        let is_user = (self.user_start..self.user_end).contains(&pointer);
        let is_kernel = pointer.checked_sub(self.kernel_start.0).is_some_and(|into| into < len);
        // Only the lower half counts, whatever the upper one says (`arena_vm_fault`, the JIT's r12).
        let low = |pointer: u64| self.kernel_start.wrapping_add(u64::from(pointer as u32));
        match (is_user, is_kernel) {
            (true, _) => Some(low(pointer)),
            (_, true) => Some(Kva(pointer)),
            _ => None,
        }
    }
}

impl Reader<'_> {
    /// All arenas. Those that cannot be read are left out; their maps say why when asked.
    pub fn arenas(&self) -> Vec<ArenaInfo> {
        if let Some(known) = &*self.arenas.borrow() {
            return known.clone();
        }
        let maps = self.maps().map(|walk| walk.items).unwrap_or_default();
        let arenas: Vec<_> = maps
            .iter()
            .filter(|map| map.kind == MapKind::Arena)
            .filter_map(|map| self.arena(map).ok())
            .collect();
        *self.arenas.borrow_mut() = Some(arenas.clone());
        arenas
    }

    /// Where the arena `map` is.
    pub fn arena(&self, map: &MapInfo) -> Result<ArenaInfo, BpfError> {
        let layout = &self.layout.arena;
        let user_start = self.get(map.at, &layout.user_start, "bpf_arena.user_vm_start")?;
        let user_end = self.get(map.at, &layout.user_end, "bpf_arena.user_vm_end")?;
        if user_end.checked_sub(user_start).is_none_or(|len| len > MAX_ARENA) {
            let why = "its window has no or an absurd size";
            return Err(BpfError::Damaged { what: "an arena", at: map.at, why });
        }
        let vm = self.get_kva(map.at, &layout.kernel, "bpf_arena.kern_vm")?;
        let start = self.get_kva(vm, &self.layout.vm_struct.addr, "vm_struct.addr")?;
        let kernel_start = start.wrapping_add(GUARD);
        Ok(ArenaInfo { map: map.at, map_id: map.id, user_start, user_end, kernel_start })
    }

    /// The pages of the arena that exist, as ranges of page numbers.
    pub fn arena_pages(&self, map: &MapInfo, arena: &ArenaInfo) -> Vec<std::ops::Range<u64>> {
        let count = ((arena.user_end - arena.user_start) / PAGE).min(map.max_entries.into());
        // Later kernels map one scratch page wherever none was allocated.
        let scratch = self.guard_page(arena);
        let mut ranges: Vec<std::ops::Range<u64>> = Vec::new();
        let mut page = 0;
        while page < count && self.spend(PAGE).is_ok() {
            let at = arena.page(page);
            // To where the next table begins, at the level where there is one.
            let rest = |level: u32| {
                let covered = PAGE << (9 * (level - 1));
                ((covered - at.0 % covered) / PAGE).max(1)
            };
            match self.mem.neighbours(at) {
                Ok(pages) => {
                    let first = (at.0 / PAGE % 512) as usize;
                    // Where the lower half of the address wraps, the window goes on elsewhere.
                    let low = u64::from(arena.user_start.wrapping_add(page * PAGE) as u32);
                    let straight = ((1u64 << 32) - low).div_ceil(PAGE).min(rest(2));
                    let until = count.min(page + straight);
                    for (here, gpa) in (page..until).zip(&pages[first..]) {
                        if gpa.is_none() || *gpa == scratch {
                            continue;
                        }
                        match ranges.last_mut().filter(|range| range.end == here) {
                            Some(range) => range.end += 1,
                            None => ranges.push(here..here + 1),
                        }
                    }
                    page += straight;
                }
                Err(PageError::NotPresent { level: level @ 3.., .. }) => page += rest(level.into()),
                Err(_) => page += rest(2),
            }
        }
        ranges
    }

    /// The page that is mapped in the guard zone, where nothing can be allocated.
    fn guard_page(&self, arena: &ArenaInfo) -> Option<Gpa> {
        let before = Kva(arena.kernel_start.0.checked_sub(PAGE)?);
        self.mem.translate(before).ok().map(|mapped| mapped.gpa)
    }

    pub(super) fn struct_ops_types(&self, map: &MapInfo) -> Result<Arc<TypeSet>, BpfError> {
        match self.get_kva(map.at, &self.layout.struct_ops.btf, "bpf_struct_ops_map.btf") {
            Ok(object) if !object.is_null() => self.object(object),
            _ => Ok(Arc::clone(self.kernel_types())),
        }
    }

    pub(super) fn struct_ops_entries(&self, map: &MapInfo) -> Result<Entries, BpfError> {
        let at = map.at.wrapping_add(Self::offset(&self.layout.struct_ops.kvalue)?);
        let cells = vec![self.cell(None, at, map.value_size)];
        Ok(Entries { items: vec![Entry { key: Key::Only, cells }], ..Entries::default() })
    }

    /// What the functions of a `struct_ops` are: the address of each trampoline with its program's
    /// name.
    pub(super) fn struct_ops_functions(&self, map: &MapInfo) -> Result<Vec<(u64, String)>, BpfError> {
        let name = |prog: Kva| {
            let aux = self.get_kva(prog, &self.layout.prog.aux, "bpf_prog.aux")?;
            self.text(aux, &self.layout.aux.name, "bpf_prog_aux.name")
        };
        let programs = self.struct_ops_programs(map)?.into_iter();
        programs.map(|(function, prog)| Ok((function, name(prog)?))).collect()
    }

    /// The address of each trampoline of a `struct_ops` with its program. The links stand in the order of the
    /// functions that are set.
    pub(super) fn struct_ops_programs(&self, map: &MapInfo) -> Result<Vec<(u64, Kva)>, BpfError> {
        const MAX_FUNCTIONS: u64 = 256;
        let layout = &self.layout.struct_ops;
        let Some(ty) = &map.value_type else { return Ok(Vec::new()) };
        let kvalue = map.at.wrapping_add(Self::offset(&layout.kvalue)?);
        let links = self.get_kva(map.at, &layout.links, "bpf_struct_ops_map.links")?;
        let count = self.get(map.at, &layout.count, "bpf_struct_ops_map.funcs_cnt")?.min(MAX_FUNCTIONS);
        let Some(data) = ty.set.member(ty.id, "data") else { return Ok(Vec::new()) };
        let Some((_, Ty::Composite(ops))) = ty.set.strip(data.ty) else { return Ok(Vec::new()) };
        let is_function = |member: &&Member| match ty.set.strip(member.ty) {
            Some((_, Ty::Ptr(to))) => matches!(ty.set.strip(*to), Some((_, Ty::Proto { .. }))),
            _ => false,
        };
        let mut found = Vec::new();
        for member in ops.members.iter().filter(is_function) {
            let at = kvalue.wrapping_add((data.bit + member.bit) / 8);
            let function = self.word(at, "a function of a struct_ops")?;
            let nth = found.len() as u64;
            if function == 0 || nth >= count {
                continue;
            }
            let link = Kva(self.word(links.wrapping_add(nth * 8), "bpf_struct_ops_map.links")?);
            let prog = self.get_kva(link, &self.layout.link.prog, "bpf_link.prog")?;
            found.push((function, prog));
        }
        Ok(found)
    }
}

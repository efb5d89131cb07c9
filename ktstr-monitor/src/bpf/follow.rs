//! Where pointers lead that were found in BPF memory: into an arena, or into the kernel.
//!
//! An address decides by itself which of the two it is. The declared type may be only a declaration
//! in the object where the pointer was found (`struct x;`): then the first program that defines it
//! says what it looks like. And a program's own `struct task_struct` is not the kernel's: it lists
//! the members that the program uses, in whatever place, so for kernel memory the kernel's counts.
//!
//! A pointer that says nothing of what is there may lead into a slot of an allocator ([`super::slots`]), which
//! knows it.

use std::collections::HashMap;
use std::sync::Arc;

use super::map::{Limits, MapInfo, MapKind};
use super::reader::Reader;
use super::slots::{Allocator, Header, InSlot};
use super::special::ArenaInfo;
use crate::addr::Kva;
use crate::render::{Cast, Deref, Found, Space, may_hide_pointer};
use crate::types::{SectionVar, Ty, TypeId, TypeRef, TypeSet};

/// Variables of one section that are looked at for allocators and pointers.
const MAX_VARIABLES: usize = 4096;
/// Entries of one map that are asked what they point at.
const MAX_ASKED: usize = 64;
/// Pointers in one value that are asked.
const MAX_PLACES: usize = 256;
/// Structures within each other.
const MAX_NESTING: usize = 8;

/// Which numbers are pointers: (structure, bytes into it) of one BTF object.
pub type Casts = HashMap<(TypeId, u64), Cast>;

/// Follows pointers of the guest's BPF programs.
pub struct Follow<'r, 'a> {
    reader: &'r Reader<'a>,
    arenas: Vec<ArenaInfo>,
    /// Objects whose complete types stand in for mere declarations.
    objects: Vec<Arc<TypeSet>>,
    casts: Vec<(Arc<TypeSet>, Casts)>,
    trampolines: HashMap<u64, String>,
    allocators: Vec<Allocator>,
}

impl std::fmt::Debug for Follow<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follow").field("arenas", &self.arenas).field("casts", &self.casts).finish()
    }
}

impl<'r, 'a> Follow<'r, 'a> {
    /// For the programs and maps that `reader` sees now.
    pub fn new(reader: &'r Reader<'a>, maps: &[MapInfo]) -> Self {
        let mut objects: Vec<Arc<TypeSet>> = Vec::new();
        for ty in maps.iter().filter_map(|map| map.value_type.as_ref()) {
            let is_kernel = Arc::ptr_eq(&ty.set, reader.kernel_types());
            if !is_kernel && !objects.iter().any(|known| Arc::ptr_eq(known, &ty.set)) {
                objects.push(Arc::clone(&ty.set));
            }
        }
        let mut trampolines = HashMap::new();
        for map in maps.iter().filter(|map| map.kind == MapKind::StructOps) {
            trampolines.extend(reader.struct_ops_functions(map).unwrap_or_default());
        }
        let (casts, allocators) = (Vec::new(), Vec::new());
        Self { reader, arenas: reader.arenas(), objects, casts, trampolines, allocators }
    }

    /// Adds what is known about numbers in the types of `set`.
    pub fn add_casts(&mut self, set: &Arc<TypeSet>, casts: Casts) {
        if !self.objects.iter().any(|known| Arc::ptr_eq(known, set)) {
            self.objects.push(Arc::clone(set));
        }
        self.casts.push((Arc::clone(set), casts));
    }

    /// What [`Follow::add_casts`] was told, in words and in order: `struct cell_ctx+16`, `(cast→arena)
    /// struct cpumask`. The place is the member's name where its type says one.
    pub fn told(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for (set, casts) in &self.casts {
            for ((id, offset), cast) in casts {
                let of = TypeRef::new(set, *id);
                let place = match member_at(&of, *offset) {
                    Some(member) => format!("{}.{member}", of.name()),
                    None => format!("{}+{offset}", of.name()),
                };
                let space = match cast.space {
                    Space::Arena => "arena",
                    Space::Kernel => "kernel",
                };
                all.push((place, format!("(cast→{space}) {}", cast.to.name())));
            }
        }
        all.sort();
        all.dedup();
        all
    }

    /// The arena that `pointer` leads into, and the address there.
    pub fn in_arena(&self, pointer: u64) -> Option<(ArenaInfo, Kva)> {
        self.arenas.iter().find_map(|arena| Some((*arena, arena.kernel_address(pointer)?)))
    }

    /// Looks for allocators among the variables of `maps`, and for what their slots hold: what typed pointers
    /// in the maps that lead there say. To be called when all casts are known.
    pub fn find_allocators(&mut self, maps: &[MapInfo]) {
        let sections = maps.iter().filter(|map| map.is_section());
        let mut found: Vec<Allocator> = sections.flat_map(|map| self.allocators_in(map)).collect();
        if found.is_empty() {
            return;
        }
        let mut told = vec![Vec::new(); found.len()];
        for map in maps.iter().filter(|map| map.kind != MapKind::Arena) {
            self.pointers_of(map, &mut |at, to| {
                for (allocator, told) in found.iter().zip(&mut told) {
                    let begins = || Some((allocator.slot(at)?, allocator.held()?));
                    if begins().is_some_and(|(slot, (from, _))| slot.live && slot.into == from) {
                        told.push(to.clone());
                    }
                }
            });
        }
        for (allocator, told) in found.iter_mut().zip(told) {
            allocator.learn(&told);
        }
        self.allocators = found;
    }

    fn allocators_in(&self, map: &MapInfo) -> Vec<Allocator> {
        let Some(section) = &map.value_type else { return Vec::new() };
        let Some(Ty::Section { vars, .. }) = section.set.ty(section.id) else { return Vec::new() };
        let Some(first) = self.reader.places().value else { return Vec::new() };
        let read = |pointer: u64, len: u64| {
            let (_, at) = self.in_arena(pointer).ok_or("it leads into no arena")?;
            Ok((at, self.read(at, len)?))
        };
        let allocator = |var: &SectionVar| {
            let name = &section.set.get(var.var)?.name;
            let Ty::Var(of) = section.set.ty(var.var)? else { return None };
            let of = section.with(*of);
            // Nothing else is read for the sake of it.
            of.set.member(of.id, "pool")?;
            let at = map.at.wrapping_add(first).wrapping_add(var.offset);
            let bytes = self.reader.bytes(at, of.size()?.min(4096), "an allocator").ok()?;
            Allocator::read(name, &of, &bytes, &read)
        };
        vars.iter().take(MAX_VARIABLES).filter_map(allocator).collect()
    }

    /// Shows each pointer into an arena whose type is known, in the values of `map`.
    fn pointers_of(&self, map: &MapInfo, each: &mut dyn FnMut(Kva, &TypeRef)) {
        let Some(ty) = &map.value_type else { return };
        let mut places = Vec::new();
        self.places_of(ty, 0, 0, &mut places);
        if places.is_empty() {
            return;
        }
        let limits = Limits { entries: MAX_ASKED, bytes: 8 << 20 };
        let entries = self.reader.entries_shortly(map, limits).unwrap_or_default();
        for cell in entries.items.iter().flat_map(|entry| &entry.cells) {
            let Ok(bytes) = &cell.bytes else { continue };
            for (at, to) in &places {
                let word = usize::try_from(*at).ok().and_then(|at| bytes.get(at..at.checked_add(8)?));
                let pointer = word.map_or(0, |word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
                if let Some((_, at)) = self.in_arena(pointer) {
                    each(at, to);
                }
            }
        }
    }

    /// Where pointers are in a value of type `ty`, and what they point at.
    fn places_of(&self, ty: &TypeRef, at: u64, depth: usize, places: &mut Vec<(u64, TypeRef)>) {
        let Some(here) = ty.strip().filter(|_| depth < MAX_NESTING && places.len() < MAX_PLACES) else {
            return;
        };
        let mut inside = |of: TypeRef, offset: u64| match of.strip().and_then(|of| of.set.ty(of.id).cloned())
        {
            _ if may_hide_pointer(&of) => {
                places.extend(self.cast(&here, offset).map(|cast| (at + offset, cast.to)));
            }
            Some(Ty::Ptr(to)) => {
                let to = self.complete(&of.with(to));
                let is_whole = |to: &TypeRef| matches!(to.set.ty(to.id), Some(Ty::Composite(_)));
                places.extend(to.filter(is_whole).map(|to| (at + offset, to)));
            }
            _ => self.places_of(&of, at.saturating_add(offset), depth + 1, places),
        };
        match here.set.ty(here.id) {
            Some(Ty::Composite(composite)) if !composite.union => {
                let whole = composite.members.iter().filter(|member| member.width.is_none());
                whole.for_each(|member| inside(here.with(member.ty), member.bit / 8));
            }
            Some(Ty::Section { vars, .. }) => {
                for var in vars.iter().take(MAX_VARIABLES) {
                    if let Some(Ty::Var(of)) = here.set.ty(var.var) {
                        inside(here.with(*of), var.offset);
                    }
                }
            }
            _ => {}
        }
    }

    /// The slot that `at` lies in.
    fn slot(&self, at: Kva) -> Option<(&Allocator, InSlot)> {
        self.allocators.iter().find_map(|allocator| Some((allocator, allocator.slot(at)?)))
    }

    /// What is found at `at`, the place in an arena that a pointer to `pointee` leads to.
    fn found_in_arena(&self, at: Kva, pointee: &TypeRef) -> Result<Found, String> {
        let undefined = || format!("{} is defined in no program", pointee.name());
        let whole = self.complete(pointee);
        let Some((allocator, slot)) = self.slot(at) else {
            return Ok(Found { at, ty: whole.ok_or_else(undefined)?, space: Space::Arena, slot: None });
        };
        let state = if slot.live { "" } else { ", which is free" };
        let label = Some(format!("{}[{}]{state}", allocator.name, slot.index));
        // A slot begins with what it holds, or with the header that says so.
        let is_header =
            pointee.strip().is_some_and(|ty| ty.set.get(ty.id).is_some_and(|e| e.name == "sdt_data"));
        let is_opaque = whole.as_ref().is_none_or(|ty| matches!(ty.set.ty(ty.id), Some(Ty::Void)));
        let payload = allocator.payload.as_ref().zip(allocator.held());
        match (payload, &allocator.header) {
            (Some((ty, (from, _))), _) if is_opaque && !is_header && slot.into == from => {
                Ok(Found { at, ty: ty.clone(), space: Space::Arena, slot: label })
            }
            (Some((ty, (from, _))), Ok(Header::Before(_))) if is_header && slot.into == 0 => {
                Ok(Found { at: at.wrapping_add(from), ty: ty.clone(), space: Space::Arena, slot: label })
            }
            _ => Ok(Found { at, ty: whole.ok_or_else(undefined)?, space: Space::Arena, slot: label }),
        }
    }

    /// The allocators that were found, in words: name, and what is known.
    pub fn allocators(&self) -> Vec<(String, String)> {
        let told = |allocator: &Allocator| {
            let damage = allocator.damage.iter().take(8).map(|damage| format!("; {damage}"));
            (allocator.name.clone(), damage.fold(allocator.told(), |told, damage| told + &damage))
        };
        self.allocators.iter().map(told).collect()
    }

    /// The complete type that a mere declaration stands for.
    fn complete(&self, ty: &TypeRef) -> Option<TypeRef> {
        ty.complete(self.objects.iter().chain([self.reader.kernel_types()]))
    }

    fn kernels_own(&self, ty: &TypeRef) -> Option<TypeRef> {
        let here = ty.strip()?;
        let kernel = self.reader.kernel_types();
        if Arc::ptr_eq(&here.set, kernel) {
            return Some(here);
        }
        // CO-RE flavours: libbpf, too, ignores what follows the last three underscores.
        let name = &here.set.get(here.id)?.name;
        let name = name.rsplit_once("___").map_or(name.as_str(), |(name, _)| name);
        let (id, _) = kernel.composite(name)?;
        Some(TypeRef::new(kernel, id))
    }
}

/// The name of what begins `offset` bytes into a structure or section.
fn member_at(of: &TypeRef, offset: u64) -> Option<String> {
    let here = of.strip()?;
    match here.set.ty(here.id)? {
        Ty::Composite(composite) => {
            let member = composite.members.iter().find(|member| member.bit == offset * 8)?;
            (!member.name.is_empty()).then(|| member.name.clone())
        }
        Ty::Section { vars, .. } => {
            let var = vars.iter().find(|var| var.offset == offset)?;
            Some(here.set.get(var.var)?.name.clone())
        }
        _ => None,
    }
}

impl Deref for Follow<'_, '_> {
    fn find(&self, pointer: u64, pointee: &TypeRef) -> Result<Found, String> {
        let undefined = || format!("{} is defined in no program", pointee.name());
        if let Some((_, at)) = self.in_arena(pointer) {
            return self.found_in_arena(at, pointee);
        }
        let at = Kva(pointer);
        if (pointer as i64) >= 0 || !self.reader.mem.is_canonical(at) {
            return Err("it leads neither into an arena nor into the kernel".to_owned());
        }
        self.reader.mem.translate(at).map_err(|error| error.to_string())?;
        let ty = self.kernels_own(pointee).or_else(|| self.complete(pointee)).ok_or_else(undefined)?;
        Ok(Found { at, ty, space: Space::Kernel, slot: None })
    }

    fn read(&self, at: Kva, len: u64) -> Result<Vec<u8>, String> {
        self.reader.bytes(at, len, "what a pointer leads to").map_err(|error| error.to_string())
    }

    fn symbol(&self, pointer: u64) -> Option<String> {
        if let Some(name) = self.trampolines.get(&pointer) {
            return Some(name.clone());
        }
        let link = Kva(pointer).wrapping_add(self.reader.live.kaslr_shift().wrapping_neg());
        self.reader.profile.symbols().name_at(link).map(str::to_owned)
    }

    fn cast(&self, of: &TypeRef, offset: u64) -> Option<Cast> {
        let id = of.strip()?.id;
        let (_, casts) = self.casts.iter().find(|(set, _)| Arc::ptr_eq(set, &of.set))?;
        casts.get(&(id, offset)).cloned()
    }
}

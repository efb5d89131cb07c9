//! Where pointers lead that were found in BPF memory: into an arena, or into the kernel.
//!
//! An address decides by itself which of the two it is. The declared type may be only a declaration
//! in the object where the pointer was found (`struct x;`): then the first program that defines it
//! says what it looks like. And a program's own `struct task_struct` is not the kernel's: it lists
//! the members that the program uses, in whatever place, so for kernel memory the kernel's counts.

use std::collections::HashMap;
use std::sync::Arc;

use super::map::{MapInfo, MapKind};
use super::reader::Reader;
use super::special::ArenaInfo;
use crate::addr::Kva;
use crate::render::{Cast, Deref, Found, Space};
use crate::types::{Ty, TypeId, TypeRef, TypeSet};

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
        Self { reader, arenas: reader.arenas(), objects, casts: Vec::new(), trampolines }
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

    /// The complete type that a mere declaration stands for.
    fn complete(&self, ty: &TypeRef) -> Option<TypeRef> {
        let here = ty.strip()?;
        let Some(Ty::Forward { union }) = here.set.ty(here.id) else { return Some(here) };
        let name = &here.set.get(here.id)?.name;
        let own = std::iter::once(&here.set);
        own.chain(&self.objects).chain([self.reader.kernel_types()]).find_map(|set| {
            let (id, composite) = set.composite(name)?;
            (composite.union == *union).then(|| TypeRef::new(set, id))
        })
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
            let ty = self.complete(pointee).ok_or_else(undefined)?;
            return Ok(Found { at, ty, space: Space::Arena });
        }
        let at = Kva(pointer);
        if (pointer as i64) >= 0 || !self.reader.mem.is_canonical(at) {
            return Err("it leads neither into an arena nor into the kernel".to_owned());
        }
        self.reader.mem.translate(at).map_err(|error| error.to_string())?;
        let ty = self.kernels_own(pointee).or_else(|| self.complete(pointee)).ok_or_else(undefined)?;
        Ok(Found { at, ty, space: Space::Kernel })
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

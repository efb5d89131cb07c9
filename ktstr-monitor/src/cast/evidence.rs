//! What was seen of each slot, and what follows from it.
//!
//! A slot is called a pointer only where nothing speaks against it:
//! * **flow**: a pointer of a known type was stored into it, or what it held was stored where only
//!   such pointers go, or handed to a function that takes them;
//! * **shape**: what it held was dereferenced in the arena, and exactly one structure has scalars of
//!   these sizes at these places. That alone proves little: the compiler leaves structures out of BTF
//!   to which only local variables point, and then another one fits. So the structure must be one that
//!   a pointer of known type was seen to lead to in the arena, at least half of its scalars must have
//!   been touched, and these must differ in size: a row of `u64` fits anything.
//!
//! Two types, a computed number stored into it, arithmetic that no pointer survives: each of them
//! drops the slot. So does an interior pointer, whose type says nothing about the start.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::place::{Leaf, Slot, leaf_at};
use crate::bpf::Casts;
use crate::render::{Cast, Space};
use crate::types::{Ty, TypeId, TypeRef, TypeSet};

/// Places that must have been seen before a shape counts.
const MIN_PLACES: usize = 3;
/// More places than a slot's are looked at for: nobody dereferences one pointer so variously.
const MAX_PLACES: usize = 64;
/// Slots whose shape is compared with all structures, at most.
const MAX_SHAPES: usize = 256;
const MAX_SCALARS: usize = 4096;

/// What was seen of the slots of one object.
#[derive(Debug, Default)]
pub struct Evidence {
    slots: BTreeMap<Slot, Seen>,
    /// What one slot holds was stored into the other.
    links: BTreeSet<(Slot, Slot)>,
    /// Structures that pointers of known type led to in the arena.
    in_arena: BTreeSet<TypeId>,
}

/// A pointer's type, where it leads, and whether it came out of a map.
type Typed = (TypeRef, Space, bool);

#[derive(Debug, Default)]
struct Seen {
    types: Vec<Typed>,
    places: BTreeSet<(u64, u64)>,
    in_arena: bool,
    /// It holds numbers, too.
    number: bool,
}

/// What speaks for and against a slot, its own and what was copied into it.
#[derive(Clone, Debug, Default)]
struct Heard {
    types: Vec<(Cast, Ground)>,
    number: bool,
}

/// Why a slot was or was not called a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// The type came with the pointer.
    Flow,
    /// The places it was dereferenced at fit one structure only.
    Shape,
}

impl Evidence {
    /// A pointer to `to` was stored, or what it held went where such pointers go.
    pub fn typed(&mut self, slot: Slot, to: &TypeRef, space: Space, of_map: bool) {
        let Some(to) = to.strip() else { return };
        // `void *` and pointers to numbers say nothing that could be shown.
        if !matches!(to.set.ty(to.id), Some(Ty::Composite(_) | Ty::Forward { .. })) {
            return;
        }
        let seen = self.slots.entry(slot).or_default();
        if !seen.types.iter().any(|(known, ..)| *known == to) {
            seen.types.push((to, space, of_map));
        }
    }

    /// Such an object is in the arena.
    pub fn in_arena(&mut self, ty: &TypeRef) {
        self.in_arena.extend(ty.strip().map(|ty| ty.id));
    }

    /// It was dereferenced.
    pub fn accessed(&mut self, slot: Slot, offset: u64, size: u64, in_arena: bool) {
        let seen = self.slots.entry(slot).or_default();
        seen.places.insert((offset, size));
        seen.in_arena |= in_arena;
    }

    /// It holds, or is used as, something that is no pointer to the start of an object.
    pub fn number(&mut self, slot: Slot) {
        self.slots.entry(slot).or_default().number = true;
    }

    /// What `from` held was stored into `to`.
    pub fn link(&mut self, from: Slot, to: Slot) {
        if from != to {
            self.links.insert((from, to));
        }
    }

    /// Adds what was seen elsewhere in the same object.
    pub fn merge(&mut self, other: Self) {
        for (slot, seen) in other.slots {
            let own = self.slots.entry(slot).or_default();
            own.places.extend(seen.places);
            own.in_arena |= seen.in_arena;
            own.number |= seen.number;
            for typed in seen.types {
                if !own.types.iter().any(|(known, ..)| *known == typed.0) {
                    own.types.push(typed);
                }
            }
        }
        self.links.extend(other.links);
        self.in_arena.extend(other.in_arena);
    }

    /// What follows, for the slots of `set`. `is_kernels` says which structures the kernel has, too: in
    /// the object they only name the members that the program uses, so their shape means nothing.
    pub fn resolve(&self, set: &Arc<TypeSet>, is_kernels: &dyn Fn(&str) -> bool) -> Resolved {
        let mut heard: BTreeMap<Slot, Heard> = BTreeMap::new();
        let mut shapes = 0;
        for (&slot, seen) in &self.slots {
            let own = heard.entry(slot).or_default();
            own.number = seen.number;
            for (to, space, of_map) in &seen.types {
                // A program's own structure in a map is not the kernel's of the same name, and which one is
                // meant cannot be said where it is shown.
                let name = to.set.get(to.id).map_or("", |entry| entry.name.as_str());
                let unclear = *of_map && is_kernels(name) && Arc::ptr_eq(&to.set, set);
                own.number |= unclear || !fits(to, &seen.places);
                own.types.push((Cast { to: to.clone(), space: *space }, Ground::Flow));
            }
            if seen.types.is_empty() && !seen.number && seen.in_arena && shapes < MAX_SHAPES {
                shapes += 1;
                let to = self.by_shape(set, slot, &seen.places, is_kernels);
                own.types.extend(to.map(|to| (Cast { to, space: Space::Arena }, Ground::Shape)));
            }
        }
        self.spread(&mut heard);
        let sure = |(slot, heard): (Slot, Heard)| match <[_; 1]>::try_from(heard.types) {
            Ok([only]) if !heard.number => Some((slot, only)),
            _ => None,
        };
        Resolved { found: heard.into_iter().filter_map(sure).collect() }
    }

    /// What is copied from a pointer is a pointer, what is copied from a number is a number: all that was
    /// heard of one slot holds for those that it is copied to. Not the other way round: where pointers go,
    /// numbers may be copied to as well. Only then is it decided, so that no slot hands on what it is not.
    fn spread(&self, heard: &mut BTreeMap<Slot, Heard>) {
        // Each pass but the last adds something; types of one slot are few, and two are as bad as more.
        loop {
            let mut grew = false;
            for (from, to) in &self.links {
                let Some(given) = heard.get(from).cloned() else { continue };
                let own = heard.entry(*to).or_default();
                grew |= given.number && !own.number;
                own.number |= given.number;
                for typed in given.types {
                    if own.types.len() < 2 && !own.types.iter().any(|(known, _)| known.to == typed.0.to) {
                        own.types.push(typed);
                        grew = true;
                    }
                }
            }
            if !grew {
                return;
            }
        }
    }

    /// The one structure with scalars at all places.
    fn by_shape(
        &self,
        set: &Arc<TypeSet>,
        slot: Slot,
        places: &BTreeSet<(u64, u64)>,
        is_kernels: &dyn Fn(&str) -> bool,
    ) -> Option<TypeRef> {
        let sizes: BTreeSet<u64> = places.iter().map(|(_, size)| *size).collect();
        if !(MIN_PLACES..=MAX_PLACES).contains(&places.len()) || sizes.len() < 2 {
            return None;
        }
        let mut only: Option<TypeRef> = None;
        for id in set.ids() {
            let Some(entry) = set.get(id) else { continue };
            let Ty::Composite(composite) = &entry.ty else { continue };
            let ty = TypeRef::new(set, id);
            let has = |&(offset, size): &(u64, u64)| {
                offset.checked_add(size).is_some_and(|end| end <= composite.size)
                    && leaf_at(&ty, offset, size).is_some_and(|leaf| size == 8 || leaf == Leaf::Number)
            };
            if composite.union || !places.iter().all(has) {
                continue;
            }
            // Itself, the kernel's, or a second one: nothing can be told.
            if id == slot.owner || only.is_some() || is_kernels(&entry.name) {
                return None;
            }
            only = Some(ty);
        }
        let only = only.filter(|ty| self.in_arena.contains(&ty.id))?;
        let mut budget = MAX_SCALARS;
        (places.len() * 2 >= scalars(&only, 0, &mut budget)?).then_some(only)
    }
}

/// The outcome for one object.
#[derive(Debug, Default)]
pub struct Resolved {
    found: HashMap<Slot, (Cast, Ground)>,
}

impl Resolved {
    /// What `slot` points at.
    pub fn get(&self, slot: Slot) -> Option<&Cast> {
        self.found.get(&slot).map(|(cast, _)| cast)
    }

    /// Whether the same is said of the same slots.
    pub fn is_same(&self, other: &Self) -> bool {
        self.len() == other.len() && self.found.keys().all(|slot| self.get(*slot) == other.get(*slot))
    }

    /// Without what `other` does not say.
    pub fn agreeing(mut self, other: &Self) -> Self {
        self.found.retain(|slot, (cast, _)| other.get(*slot) == Some(&*cast));
        self
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// With the grounds, by slot.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &Cast, Ground)> {
        self.found.iter().map(|(slot, (cast, ground))| (*slot, cast, *ground))
    }

    /// As the renderer wants it.
    pub fn into_casts(self) -> Casts {
        self.found.into_iter().map(|(slot, (cast, _))| ((slot.owner, slot.offset), cast)).collect()
    }
}

/// Whether every place is within the type; a declaration without definition fits everything.
fn fits(to: &TypeRef, places: &BTreeSet<(u64, u64)>) -> bool {
    let Some(size) = to.size() else { return true };
    places.iter().all(|(offset, len)| offset.checked_add(*len).is_some_and(|end| end <= size))
}

/// How many scalars a type consists of; `None` for absurdly many.
fn scalars(ty: &TypeRef, depth: usize, budget: &mut usize) -> Option<usize> {
    *budget = budget.checked_sub(1)?;
    let ty = ty.strip().filter(|_| depth < 16)?;
    let count = match ty.set.ty(ty.id)? {
        Ty::Composite(composite) => {
            let mut sum = 0usize;
            for member in &composite.members {
                sum = sum.checked_add(scalars(&ty.with(member.ty), depth + 1, budget)?)?;
            }
            sum
        }
        Ty::Array { elem, len } => {
            scalars(&ty.with(*elem), depth + 1, budget)?.checked_mul(usize::try_from(*len).ok()?)?
        }
        _ => 1,
    };
    (count <= MAX_SCALARS).then_some(count)
}

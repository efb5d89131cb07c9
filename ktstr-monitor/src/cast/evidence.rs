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
//!
//! A structure and its first member are not two types: who is handed the member's address may have the
//! whole. See [`Believed`] for which of them is said.

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

/// Different types of one slot that are kept, at most; with more it is dropped.
const MAX_TYPES: usize = 6;

/// What a pointer in a slot points at, by one witness.
#[derive(Clone, Debug)]
pub struct Told {
    to: TypeRef,
    space: Space,
    /// It came out of a map.
    of_map: bool,
    /// A pointer of that type was put there; otherwise what was there went where such pointers go.
    stored: bool,
}

impl Told {
    /// A pointer to `to` was stored.
    pub fn stored(to: &TypeRef, space: Space, of_map: bool) -> Self {
        Self { to: to.clone(), space, of_map, stored: true }
    }

    /// What was there went where only pointers to `to` go.
    pub fn used(to: &TypeRef) -> Self {
        Self { to: to.clone(), space: Space::Arena, of_map: false, stored: false }
    }

    fn is_same(&self, other: &Self) -> bool {
        self.to == other.to && self.stored == other.stored
    }
}

#[derive(Debug, Default)]
struct Seen {
    types: Vec<Told>,
    places: BTreeSet<(u64, u64)>,
    in_arena: bool,
    /// It holds numbers, too.
    number: bool,
}

/// What speaks for and against a slot, its own and what was copied into it.
#[derive(Clone, Debug, Default)]
struct Heard {
    types: Vec<Believed>,
    number: bool,
}

/// What one witness said, as it counts.
///
/// Where pointers to a structure and to its first member were stored, only the member is certain to be
/// there. Where nobody saw them stored and they went to places for both, it is the whole: somebody knew.
#[derive(Clone, Debug)]
struct Believed {
    cast: Cast,
    ground: Ground,
    stored: bool,
    /// It cannot be that, only something that begins with it.
    doubtful: bool,
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
    pub fn typed(&mut self, slot: Slot, told: Told) {
        let Some(to) = told.to.strip() else { return };
        // `void *` and pointers to numbers say nothing that could be shown.
        if !matches!(to.set.ty(to.id), Some(Ty::Composite(_) | Ty::Forward { .. })) {
            return;
        }
        self.slots.entry(slot).or_default().hear(Told { to, ..told });
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
            seen.types.into_iter().for_each(|told| own.hear(told));
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
            for Told { to, space, of_map, stored } in &seen.types {
                // A program's own structure in a map is not the kernel's of the same name, and which one is
                // meant cannot be said where it is shown.
                let kernels = is_kernels(plain_name(to)) && Arc::ptr_eq(&to.set, set);
                own.number |= kernels && *of_map;
                let space = if kernels && !self.in_arena.contains(&to.id) { Space::Kernel } else { *space };
                let cast = Cast { to: to.clone(), space };
                // Accessed beyond its end: it is not that, though it may begin with it.
                let doubtful = !fits(to, &seen.places);
                own.hear(Believed { cast, ground: Ground::Flow, stored: *stored, doubtful });
            }
            if seen.types.is_empty() && !seen.number && seen.in_arena && shapes < MAX_SHAPES {
                shapes += 1;
                let to = self.by_shape(set, slot, &seen.places, is_kernels);
                let cast = to.map(|to| Cast { to, space: Space::Arena });
                own.types.extend(cast.map(|cast| Believed {
                    cast,
                    ground: Ground::Shape,
                    stored: false,
                    doubtful: false,
                }));
            }
        }
        // Memory that is used for this and that says nothing of where it is copied to.
        let mixed = |(slot, own): (&Slot, &Heard)| {
            let disagree = !own.types.is_empty() && decide(&own.types, is_kernels).is_none();
            disagree.then_some(*slot)
        };
        let mixed: BTreeSet<Slot> = heard.iter().filter_map(mixed).collect();
        self.spread(&mut heard, &mixed);
        let sure = |(slot, heard): (Slot, Heard)| {
            let owner = TypeRef::new(set, slot.owner);
            if heard.number || is_kernels(plain_name(&owner)) {
                return None;
            }
            let Believed { cast, ground, .. } = decide(&heard.types, is_kernels)?.clone();
            let places = self.slots.get(&slot).is_none_or(|seen| fits(&cast.to, &seen.places));
            places.then_some((slot, (cast, ground)))
        };
        Resolved { found: heard.into_iter().filter_map(sure).collect() }
    }

    /// What is copied from a pointer is a pointer, what is copied from a number is a number: all that was
    /// heard of one slot holds for those that it is copied to. Not the other way round: where pointers go,
    /// numbers may be copied to as well. Only then is it decided, so that no slot hands on what it is not.
    fn spread(&self, heard: &mut BTreeMap<Slot, Heard>, mixed: &BTreeSet<Slot>) {
        // Each pass but the last adds something; types of one slot are few.
        loop {
            let mut grew = false;
            for (from, to) in &self.links {
                let Some(given) = heard.get(from).cloned() else { continue };
                let own = heard.entry(*to).or_default();
                grew |= given.number && !own.number;
                own.number |= given.number;
                for believed in given.types.into_iter().filter(|_| !mixed.contains(from)) {
                    grew |= own.hear(believed);
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

impl Seen {
    fn hear(&mut self, told: Told) {
        if !self.types.iter().any(|known| known.is_same(&told)) {
            self.number |= self.types.len() >= MAX_TYPES;
            self.types.push(told);
            self.types.truncate(MAX_TYPES);
        }
    }
}

impl Heard {
    /// Whether that was new.
    fn hear(&mut self, believed: Believed) -> bool {
        let same = |own: &Believed| {
            let flags = (own.stored, own.doubtful) == (believed.stored, believed.doubtful);
            flags && own.cast.to == believed.cast.to
        };
        if self.number || self.types.iter().any(same) {
            return false;
        }
        self.number = self.types.len() >= MAX_TYPES;
        self.types.push(believed);
        true
    }
}

/// What they all agree on.
fn decide<'h>(all: &'h [Believed], is_kernels: &dyn Fn(&str) -> bool) -> Option<&'h Believed> {
    let begins = |part: &Believed, whole: &Believed| is_beginning(&part.cast.to, &whole.cast.to, is_kernels);
    let (stored, used): (Vec<_>, Vec<_>) = all.iter().partition(|believed| believed.stored);
    // Among equals the kernel's own description comes first, whatever the order of programs.
    let surest = |of: &[&'h Believed], best: &dyn Fn(&Believed) -> bool| {
        let good = of.iter().copied().filter(|believed| !believed.doubtful && best(believed));
        good.max_by_key(|believed| believed.cast.to.size().unwrap_or(0))
    };
    if stored.is_empty() {
        return surest(&used, &|whole| used.iter().all(|part| begins(part, whole)));
    }
    let certain = surest(&stored, &|part| stored.iter().all(|whole| begins(part, whole)))?;
    let comparable = |other: &&&Believed| begins(other, certain) || begins(certain, other);
    (used.iter().filter(comparable).count() == used.len()).then_some(certain)
}

/// Whether an object of type `whole` begins with one of type `part`, or is one. The kernel's structures are the
/// same whoever describes them.
fn is_beginning(part: &TypeRef, whole: &TypeRef, is_kernels: &dyn Fn(&str) -> bool) -> bool {
    let name = plain_name(part);
    let by_name = !name.is_empty() && is_kernels(name);
    whole.beginnings().any(|here| here == *part || by_name && plain_name(&here) == name)
}

/// A structure's name without what CO-RE ignores: what follows the last three underscores.
fn plain_name(ty: &TypeRef) -> &str {
    let name = ty.set.get(ty.id).map_or("", |entry| entry.name.as_str());
    name.rsplit_once("___").map_or(name, |(name, _)| name)
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

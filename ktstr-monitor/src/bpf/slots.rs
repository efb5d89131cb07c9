//! Slots of the allocators that schedulers carry along for their arenas (`sdt_alloc`).
//!
//! A pointer into such a slot is often declared as nothing (`void *`, `struct sdt_data *`): what is there,
//! and whether it is still in use, the allocator knows. It is a tree of three levels (`sdt_desc`, each with a
//! bitmap and an array of children), whose leaves are the slots:
//!
//! ```text
//! variable { pool { elem_size … }, root } ─▶ desc ─▶ desc ─▶ desc ─▶ slots of elem_size bytes
//! ```
//!
//! A slot has a header with its number in the tree, before what it holds or behind it: that has changed
//! between versions of the library, and its type is in a program's BTF only where the program uses it. So
//! BTF proposes, and the numbers themselves decide: see `docs/decisions`. Refuses to say anything where
//! they do not.

use std::collections::BTreeMap;

use crate::addr::Kva;
use crate::types::{Composite, Ty, TypeRef, TypeSet};

/// Levels of the tree: the library's, and what makes the numbers in the headers right.
const LEVELS: usize = 3;
/// Slots of one allocator that are looked at.
const MAX_SLOTS: usize = 65_536;
/// Nodes of one tree that are looked at.
const MAX_NODES: usize = 2_048;
/// Headers that are compared with their place in the tree.
const MAX_COMPARED: usize = 256;
/// A slot may not be larger.
const MAX_SLOT: u64 = 1 << 20;
/// More than anybody aligns slots to.
const MAX_PADDING: u64 = 64;

/// Where a slot's header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// At its beginning, so many bytes.
    Before(u64),
    /// At its end.
    Behind(u64),
}

/// An allocator and its slots.
#[derive(Clone, Debug)]
pub struct Allocator {
    /// The variable's name.
    pub name: String,
    /// Bytes of a slot.
    pub slot_size: u64,
    /// Where the header is; why that is not known.
    pub header: Result<Header, String>,
    /// What the slots hold, where typed pointers say it.
    pub payload: Option<TypeRef>,
    /// Slots in use.
    pub live: u64,
    /// Slots that were not looked at.
    pub left_off: bool,
    /// What could not be read.
    pub damage: Vec<String>,
    slots: BTreeMap<u64, Slot>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    index: u64,
    live: bool,
}

/// A place in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InSlot {
    /// The slot's number.
    pub index: u64,
    /// Whether it is in use.
    pub live: bool,
    /// Where the slot begins.
    pub start: Kva,
    /// Bytes into it.
    pub into: u64,
}

/// How the walker reads the arena: a pointer as programs hold it, and how many bytes.
pub type Read<'r> = dyn Fn(u64, u64) -> Result<(Kva, Vec<u8>), String> + 'r;

/// What a variable must look like, by its members.
#[derive(Debug)]
struct Shape {
    elem_size: u64,
    root: u64,
    desc: u64,
    allocated: u64,
    words: u64,
    chunk: u64,
}

impl Allocator {
    /// The allocator that a variable of type `of` is, from the variable's bytes; `None` where it is none, or
    /// was not set up yet.
    pub fn read(name: &str, of: &TypeRef, bytes: &[u8], read: &Read<'_>) -> Option<Self> {
        let shape = shape(of)?;
        let (slot_size, root) = (number(bytes, shape.elem_size)?, number(bytes, shape.root)?);
        if root == 0 || !(16..=MAX_SLOT).contains(&slot_size) {
            return None;
        }
        let mut walk =
            Walk { shape, read, nodes: 0, slots: BTreeMap::new(), left_off: false, damage: Vec::new() };
        walk.node(root, 0, 0);
        let Walk { slots, left_off, damage, .. } = walk;
        let header = header(&of.set, slot_size, &slots, read);
        let live = slots.values().filter(|(_, slot)| slot.live).count() as u64;
        let slots = slots.into_iter().map(|(at, (_, slot))| (at, slot)).collect();
        let name = name.to_owned();
        Some(Self { name, slot_size, header, payload: None, live, left_off, damage, slots })
    }

    /// The slot that `at` lies in.
    pub fn slot(&self, at: Kva) -> Option<InSlot> {
        let (&start, slot) = self.slots.range(..=at.0).next_back()?;
        let into = at.0 - start;
        (into < self.slot_size).then_some(InSlot {
            index: slot.index,
            live: slot.live,
            start: Kva(start),
            into,
        })
    }

    /// Where in a slot begins what it holds, and how long it may be.
    pub fn held(&self) -> Option<(u64, u64)> {
        match *self.header.as_ref().ok()? {
            Header::Before(len) => Some((len, self.slot_size.checked_sub(len)?)),
            Header::Behind(len) => Some((0, self.slot_size.checked_sub(len)?)),
        }
    }

    /// Whether a `ty` fills a slot but for the padding.
    pub fn is_filled_by(&self, ty: &TypeRef) -> bool {
        let rest = self.held().zip(ty.size()).and_then(|((_, room), size)| room.checked_sub(size));
        rest.is_some_and(|rest| rest < MAX_PADDING)
    }

    /// Takes over what typed pointers to the beginnings of what slots hold agree on.
    pub fn learn(&mut self, told: &[TypeRef]) {
        let all = |whole: &&TypeRef| told.iter().all(|part| whole.begins_with(part));
        self.payload = told.iter().find(all).filter(|ty| self.is_filled_by(ty)).cloned();
    }

    /// In words.
    pub fn told(&self) -> String {
        let header = match &self.header {
            Ok(Header::Before(len)) => format!("a header of {len} bytes before"),
            Ok(Header::Behind(len)) => format!("a header of {len} bytes behind"),
            Err(why) => why.clone(),
        };
        let held = self.payload.as_ref().map_or_else(|| "what no pointer says".to_owned(), TypeRef::name);
        let more = if self.left_off { ", more not looked at" } else { "" };
        format!("{} slots of {} bytes in use{more}, each holds {held}, {header}", self.live, self.slot_size)
    }
}

struct Walk<'r> {
    shape: Shape,
    read: &'r Read<'r>,
    nodes: usize,
    /// By address; with the pointer as it was found.
    slots: BTreeMap<u64, (u64, Slot)>,
    left_off: bool,
    damage: Vec<String>,
}

impl Walk<'_> {
    fn node(&mut self, at: u64, level: usize, index: u64) {
        self.nodes += 1;
        if self.nodes > MAX_NODES || self.slots.len() > MAX_SLOTS {
            self.left_off = true;
            return;
        }
        let fanout = self.shape.words * 64;
        let both = (self.read)(at, self.shape.desc).and_then(|(_, desc)| {
            let chunk = number(&desc, self.shape.chunk).unwrap_or_default();
            (self.read)(chunk, fanout * 8).map(|(_, children)| (desc, children))
        });
        let (desc, children) = match both {
            Ok(both) => both,
            Err(why) => return self.damage.push(format!("node {index} of level {level}: {why}")),
        };
        for nth in 0..fanout {
            let child = number(&children, nth * 8).unwrap_or_default();
            if child == 0 {
                continue;
            }
            let index = index * fanout + nth;
            if level + 1 < LEVELS {
                self.node(child, level + 1, index);
                continue;
            }
            let word = number(&desc, self.shape.allocated + nth / 64 * 8).unwrap_or_default();
            let live = word >> (nth % 64) & 1 == 1;
            match (self.read)(child, 1) {
                Ok((start, _)) => drop(self.slots.insert(start.0, (child, Slot { index, live }))),
                Err(why) => self.damage.push(format!("slot {index}: {why}")),
            }
        }
    }
}

/// Where the numbers of the slots in use are found.
fn header(
    set: &std::sync::Arc<TypeSet>,
    slot_size: u64,
    slots: &BTreeMap<u64, (u64, Slot)>,
    read: &Read<'_>,
) -> Result<Header, String> {
    let (candidates, number_at) = proposed(set);
    let live: Vec<_> = slots.values().filter(|(_, slot)| slot.live).take(MAX_COMPARED).collect();
    if live.is_empty() {
        return Err("none is in use that would tell where headers are".to_owned());
    }
    let agrees = |header: &Header| {
        let start = match *header {
            Header::Before(_) => 0,
            Header::Behind(len) => slot_size.saturating_sub(len),
        };
        let is_own = |(at, slot): &&&(u64, Slot)| {
            let found = read(at.wrapping_add(start + number_at), 4);
            found.is_ok_and(|(_, bytes)| bytes == (slot.index as u32).to_le_bytes())
        };
        let own: Vec<_> = live.iter().filter(is_own).collect();
        // Schedulers write beyond what they hold, too (seen of a published one's bitmaps), and a slot may be
        // on its way in or out. Number 0 alone would be found in any zeroed memory.
        own.len() * 2 > live.len() && own.iter().any(|(_, slot)| slot.index != 0)
    };
    let mut fitting = candidates.into_iter().filter(agrees);
    match (fitting.next(), fitting.next()) {
        (Some(only), None) => Ok(only),
        (Some(_), Some(_)) => Err("its slots' numbers are found in several places".to_owned()),
        (None, _) => Err("its slots' numbers are not where they should be".to_owned()),
    }
}

/// Where a header may be, and the slot's number in it: as BTF says, or everything that was published.
fn proposed(set: &std::sync::Arc<TypeSet>) -> (Vec<Header>, u64) {
    let in_id = |id: TypeRef| set.member(id.strip()?.id, "idx").map(|idx| idx.bit / 8);
    let known = set.composite("sdt_data").and_then(|(of, data)| {
        let tid = set.member(of, "tid")?;
        let number_at = tid.bit / 8 + in_id(TypeRef::new(set, tid.ty))?;
        let last = data.members.last()?;
        let is_open = matches!(set.strip(last.ty), Some((_, Ty::Array { len: 0, .. })));
        Some((if is_open { Header::Before(last.bit / 8) } else { Header::Behind(data.size) }, number_at))
    });
    match known {
        Some((header, number_at)) => (vec![header], number_at),
        None => (vec![Header::Before(8), Header::Behind(16), Header::Behind(8)], 0),
    }
}

fn shape(of: &TypeRef) -> Option<Shape> {
    let here = of.strip()?;
    let set = &here.set;
    let at = |of: &TypeRef, name: &str| {
        set.member(of.id, name).map(|member| (member.bit / 8, here.with(member.ty)))
    };
    let (pool_at, pool) = at(&here, "pool")?;
    let (size_at, _) = at(&pool.strip()?, "elem_size")?;
    let (root, desc) = at(&here, "root")?;
    let Ty::Ptr(desc) = desc.strip()?.set.ty(desc.strip()?.id)?.clone() else { return None };
    let desc = here.with(desc).strip()?;
    let Ty::Composite(Composite { size, union: false, .. }) = set.ty(desc.id)? else { return None };
    let (allocated, bits) = at(&desc, "allocated")?;
    let (chunk, _) = at(&desc, "chunk")?;
    let Ty::Array { len: words @ 1..=64, .. } = *set.ty(bits.strip()?.id)? else { return None };
    let is_whole = (allocated + words * 8).max(chunk + 8) <= *size;
    is_whole.then_some(Shape { elem_size: pool_at + size_at, root, desc: *size, allocated, words, chunk })
}

fn number(bytes: &[u8], at: u64) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

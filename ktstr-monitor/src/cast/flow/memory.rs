//! Loads and stores: what typed memory gives, and what going there says of the slot that the address came from.

use std::rc::Rc;
use std::sync::Arc;

use super::{FRAME, Flow};
use crate::cast::evidence::Told;
use crate::cast::insn::{Class, Insn, Mode};
use crate::cast::place::{Leaf, Slot, leaf_at};
use crate::cast::state::{Atom, Origin, State, Val};
use crate::render::Space;
use crate::types::TypeRef;

impl Flow<'_> {
    pub(super) fn load(&mut self, insn: Insn, state: &mut State) {
        let base = state.regs[usize::from(insn.src.min(10))].clone();
        let size = insn.size();
        let mut loaded = Val::of(base.anything);
        for atom in &base.atoms {
            let value = self.loaded(atom, insn, size, state);
            loaded.join(&value);
        }
        if loaded.atoms.is_empty() {
            loaded.anything = true;
        }
        state.regs[usize::from(insn.dst.min(9))] = Rc::new(loaded);
    }

    fn loaded(&mut self, atom: &Atom, insn: Insn, size: u64, state: &State) -> Val {
        let off = i64::from(insn.off);
        match atom {
            Atom::Stack(at) if size == 8 => {
                state.stack.get(&(at + off)).map_or_else(Val::unknown, |val| Val::clone(val))
            }
            Atom::Context(nth) if size == 8 && off >= 0 => {
                let context = self.code.functions.get(*nth).map(|function| &function.context);
                let to = context.and_then(|words| words.get(off as usize / 8)).cloned().flatten();
                to.map_or_else(Val::unknown, |to| Val::one(Atom::Pointer(to, 0, Origin::Kernel)))
            }
            Atom::FirstPointer(map) | Atom::PerCpu(map) if size == 8 => {
                Val::one(Atom::PerCpu(Arc::clone(map)))
            }
            Atom::CpuPointer(to) if size == 8 && off == 0 => {
                Val::one(Atom::Pointer(to.clone(), 0, Origin::Kernel))
            }
            Atom::Pointer(ty, at, origin) => {
                self.seen_in_arena(ty, *origin);
                self.member(ty, at + off, size, *origin)
            }
            Atom::Held(slot, at, narrow) => {
                self.deref(*slot, at + off, size, insn.mode(), *narrow);
                match self.known.get(*slot) {
                    Some(cast) if *at + off >= 0 => {
                        let to = cast.to.clone();
                        let origin =
                            if cast.space == Space::Kernel { Origin::Kernel } else { Origin::Stored };
                        self.member(&to, at + off, size, origin)
                    }
                    _ => Val::unknown(),
                }
            }
            _ => Val::unknown(),
        }
    }

    /// What typed memory holds where a pointer and an offset lead.
    pub(super) fn held(&self, base: &Val, off: i64, size: u64) -> Val {
        let mut held = Val::of(base.anything);
        for atom in &base.atoms {
            held.join(&match atom {
                Atom::Pointer(ty, at, origin) => self.member(ty, at + off, size, *origin),
                _ => Val::unknown(),
            });
        }
        held
    }

    /// What a load of a member gives.
    fn member(&self, ty: &TypeRef, at: i64, size: u64, origin: Origin) -> Val {
        let Ok(at) = u64::try_from(at) else { return Val::unknown() };
        match leaf_at(ty, at, size) {
            Some(Leaf::Pointer(to)) => {
                let origin = if origin == Origin::Kernel { Origin::Kernel } else { Origin::Stored };
                Val::one(Atom::Pointer(to, 0, origin))
            }
            Some(Leaf::Slot(owner, offset)) => match self.slot(&owner, offset, origin) {
                Some(slot) => Val::one(Atom::Held(slot, 0, false)),
                None => Val::unknown(),
            },
            Some(Leaf::Number) if size < 8 => Val::number(),
            _ => Val::unknown(),
        }
    }

    /// The slot, if it is one of the program's own types in the program's own memory.
    fn slot(&self, owner: &TypeRef, offset: u64, origin: Origin) -> Option<Slot> {
        let own = Arc::ptr_eq(&owner.set, &self.code.types) && origin != Origin::Kernel;
        own.then_some(Slot { owner: owner.id, offset })
    }

    /// A pointer whose type was known all the way led into an arena: such objects are there.
    fn seen_in_arena(&mut self, ty: &TypeRef, origin: Origin) {
        if let (Some(evidence), Origin::Window) = (&mut self.evidence, origin) {
            evidence.in_arena(ty);
        }
    }

    fn deref(&mut self, slot: Slot, at: i64, size: u64, mode: Mode, narrow: bool) {
        let Some(evidence) = &mut self.evidence else { return };
        let in_arena = matches!(mode, Mode::Arena | Mode::ArenaAtomic) || narrow;
        match u64::try_from(at) {
            Ok(at) => evidence.accessed(slot, at, size, in_arena),
            // Before its beginning: it points into the middle of something.
            Err(_) => evidence.number(slot),
        }
    }

    pub(super) fn store(&mut self, insn: Insn, state: &mut State) {
        let base = state.regs[usize::from(insn.dst.min(10))].clone();
        let size = insn.size();
        let off = i64::from(insn.off);
        let atomic = matches!(insn.mode(), Mode::Atomic | Mode::ArenaAtomic);
        let value = match insn.class() {
            Class::Store => Rc::new(Val::one(Atom::Const(insn.imm as i64 as u64))),
            _ => state.regs[usize::from(insn.src.min(10))].clone(),
        };
        // Exchanging stores its source; all other atomics compute.
        let value = match (atomic, insn.imm & 0xf0) {
            (true, 0xe0 | 0xf0) | (false, _) => value,
            _ => Rc::new(Val::number()),
        };
        let held = if atomic { self.held(&base, off, size) } else { Val::unknown() };
        for atom in &base.atoms {
            match atom {
                Atom::Stack(at) => {
                    state.clobber(at + off, size as i64);
                    let certain = base.atoms.len() == 1 && !base.anything;
                    let in_frame = (-FRAME..0).contains(&(at + off));
                    if size == 8 && certain && !atomic && in_frame && (at + off) % 8 == 0 {
                        Rc::make_mut(&mut state.stack).insert(at + off, Rc::clone(&value));
                    }
                }
                Atom::Pointer(ty, at, origin) => {
                    self.seen_in_arena(ty, *origin);
                    self.stored(ty, at + off, size, *origin, &value);
                }
                Atom::Held(slot, at, narrow) => {
                    self.deref(*slot, at + off, size, insn.mode(), *narrow);
                    if let Some(cast) = self.known.get(*slot) {
                        let to = cast.to.clone();
                        self.stored(&to, at + off, size, Origin::Stored, &value);
                    }
                }
                _ => {}
            }
        }
        if base.anything && matches!(insn.mode(), Mode::Plain) {
            // Nobody can say that this was not the stack.
            state.stack = Rc::default();
        }
        if atomic {
            match insn.imm & 0xf1 {
                // What was there before.
                0xe1 => state.regs[usize::from(insn.src.min(9))] = Rc::new(held),
                0xf1 => state.regs[0] = Rc::new(Val::unknown()),
                imm if imm & 1 == 1 => state.regs[usize::from(insn.src.min(9))] = Rc::new(Val::unknown()),
                _ => {}
            }
        }
    }

    /// What a store says about the slot it goes into, or the slot it came from.
    pub(super) fn stored(&mut self, ty: &TypeRef, at: i64, size: u64, origin: Origin, value: &Val) {
        let (Ok(at), Some(_)) = (u64::try_from(at), &self.evidence) else { return };
        match leaf_at(ty, at, size) {
            Some(Leaf::Slot(owner, offset)) => {
                if let Some(slot) = self.slot(&owner, offset, origin) {
                    self.filled(slot, value);
                }
            }
            Some(Leaf::Pointer(to)) => self.went(value, &to),
            _ => {}
        }
    }

    /// `value` was stored into `slot`.
    fn filled(&mut self, slot: Slot, value: &Val) {
        let Some(evidence) = &mut self.evidence else { return };
        // As in `went`: one pointer beside what another slot held may be there for a word's other user.
        let shared = value.atoms.iter().any(|atom| matches!(atom, Atom::Held(..)));
        for atom in &value.atoms {
            match atom {
                Atom::Const(0) => {}
                // Half a pointer.
                Atom::Pointer(_, _, Origin::Window) => {}
                Atom::Pointer(_, 0, _) if shared => {}
                Atom::Pointer(to, 0, origin) => {
                    let space = match origin {
                        Origin::Kernel | Origin::Program => Space::Kernel,
                        Origin::Stored | Origin::Window => Space::Arena,
                    };
                    evidence.typed(slot, Told::stored(to, space, matches!(origin, Origin::Program)));
                }
                Atom::Held(from, 0, false) => evidence.link(*from, slot),
                Atom::Const(_) | Atom::Number(_) | Atom::Pointer(..) | Atom::Held(..) | Atom::Stack(_) => {
                    evidence.number(slot);
                }
                _ => {}
            }
        }
    }

    /// `value` went where only pointers to `to` go. That says something of a slot only where the value cannot be
    /// anything else: two members of a union share a word on the stack, and paths join on which one or the other
    /// was written and later only one of them is used.
    pub(super) fn went(&mut self, value: &Val, to: &TypeRef) {
        let Some(evidence) = &mut self.evidence else { return };
        if let ([Atom::Held(slot, 0, false)], false) = (&value.atoms[..], value.anything) {
            evidence.typed(*slot, Told::used(to));
        }
    }

    /// A value built on the stack became a map's.
    pub(super) fn updated(&mut self, map: &Val, value: &Val, state: &State) {
        let ([Atom::Map(map, 0)], [Atom::Stack(at)]) = (&map.atoms[..], &value.atoms[..]) else { return };
        let Some(ty) = map.value.clone() else { return };
        let size = ty.size().unwrap_or(0).min(512);
        for word in (0..size / 8).map(|nth| nth * 8) {
            if let Some(value) = state.stack.get(&(at + word as i64)).cloned() {
                self.stored(&ty, word as i64, 8, Origin::Program, &value);
            }
        }
    }
}

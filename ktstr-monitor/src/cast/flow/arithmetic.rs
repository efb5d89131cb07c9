//! What arithmetic makes of pointers and numbers: a pointer goes on to be one where it is moved by what is known.

use std::rc::Rc;
use std::sync::Arc;

use super::Flow;
use crate::cast::insn::{ADD, Class, DIV, Insn, LSH, MOD, MOV, MUL, SUB};
use crate::cast::place::repeats;
use crate::cast::state::{Atom, Origin, State, Val};
use crate::types::Ty;

impl Flow<'_> {
    pub(super) fn compute(&mut self, insn: Insn, state: &mut State) {
        let dst = usize::from(insn.dst.min(9));
        let narrow = insn.class() == Class::Alu32;
        let operand = match insn.by_register() {
            true => state.regs[usize::from(insn.src.min(10))].clone(),
            false => Rc::new(Val::one(Atom::Const(match narrow {
                true => u64::from(insn.imm as u32),
                false => insn.imm as i64 as u64,
            }))),
        };
        let before = state.regs[dst].clone();
        state.regs[dst] = Rc::new(match insn.op() {
            MOV => self.moved(insn, &operand, narrow),
            ADD if !narrow => sum(&before, &operand),
            SUB if !narrow => match operand.constant() {
                Some(value) => sum(&before, &Val::one(Atom::Const(value.wrapping_neg()))),
                None => difference(&before, &operand),
            },
            MUL | LSH | DIV | MOD => {
                for value in [&before, &operand] {
                    self.computed(value, insn.op() != LSH);
                }
                match (insn.op(), operand.constant()) {
                    (MUL, Some(by)) if by > 0 => Val::one(Atom::Number(by)),
                    (LSH, Some(by)) if by < 32 => Val::one(Atom::Number(1 << by)),
                    // The upper half is shifted away again: an index, not yet scaled.
                    _ => Val::number(),
                }
            }
            _ => Val::unknown(),
        });
    }

    fn moved(&self, insn: Insn, operand: &Val, narrow: bool) -> Val {
        match (narrow, insn.off) {
            // `dst = (u32) src`: what the kernel makes of a cast into the arena's window.
            (true, 0) => operand.map(|atom| match atom {
                Atom::Const(value) => Some(Atom::Const(u64::from(*value as u32))),
                Atom::Number(by) => Some(Atom::Number(*by)),
                Atom::Held(slot, at, _) => Some(Atom::Held(*slot, *at, true)),
                Atom::Pointer(ty, at, Origin::Stored | Origin::Window) => {
                    Some(Atom::Pointer(ty.clone(), *at, Origin::Window))
                }
                _ => None,
            }),
            // Between address spaces.
            (false, 1) => operand.map(|atom| match atom {
                Atom::Held(slot, at, _) if insn.imm == 1 => Some(Atom::Held(*slot, *at, true)),
                Atom::Pointer(ty, at, Origin::Stored) if insn.imm == 1 => {
                    Some(Atom::Pointer(ty.clone(), *at, Origin::Window))
                }
                other => Some(other.clone()),
            }),
            (false, 0) => operand.clone(),
            // A per-CPU pointer becomes one to this CPU's value (`BPF_ADDR_PERCPU`).
            (false, -1) => operand.map(|atom| match atom {
                Atom::PerCpu(map) => Some(Atom::Pointer(map.value.clone()?, 0, Origin::Program)),
                Atom::Const(at) => self.code.cpu_pointers.get(at).cloned().map(Atom::CpuPointer),
                _ => None,
            }),
            _ => Val::unknown(),
        }
    }

    /// No pointer survives such arithmetic.
    fn computed(&mut self, value: &Val, certain: bool) {
        let Some(evidence) = &mut self.evidence else { return };
        for atom in &value.atoms {
            if let (Atom::Held(slot, ..), true) = (atom, certain) {
                evidence.number(*slot);
            }
        }
    }
}

/// `a + b`: a pointer moved by a constant, or by a multiple of what repeats there.
fn sum(a: &Val, b: &Val) -> Val {
    let mut out = Val::of(a.anything || b.anything);
    for x in &a.atoms {
        for y in &b.atoms {
            match add(x, y).or_else(|| add(y, x)) {
                Some(atom) => {
                    out.join(&Val::one(atom));
                }
                None => out.anything = true,
            }
        }
    }
    out
}

fn difference(a: &Val, b: &Val) -> Val {
    let numbers = |val: &Val| val.atoms.iter().all(|atom| matches!(atom, Atom::Const(_) | Atom::Number(_)));
    match !a.anything && !b.anything && numbers(a) && numbers(b) {
        true => Val::number(),
        false => Val::unknown(),
    }
}

/// As far from what a pointer points at as anything sensible is.
fn near(at: i64, by: i64) -> Option<i64> {
    at.checked_add(by).filter(|at| (-(1 << 32)..1 << 32).contains(at))
}

fn add(x: &Atom, y: &Atom) -> Option<Atom> {
    let by = match y {
        Atom::Const(value) => *value as i64,
        Atom::Number(step) => return add_index(x, *step),
        _ => return None,
    };
    Some(match x {
        Atom::Const(value) => Atom::Const(value.wrapping_add(by as u64)),
        Atom::Number(_) => Atom::Number(1),
        Atom::Pointer(ty, at, origin) => Atom::Pointer(ty.clone(), near(*at, by)?, *origin),
        Atom::Held(slot, at, narrow) => Atom::Held(*slot, near(*at, by)?, *narrow),
        Atom::Stack(at) => Atom::Stack(near(*at, by)?),
        Atom::Map(map, at) => {
            let at = near(*at, by)?;
            let is = |place: Option<u64>| place.is_some_and(|place| place as i64 == at);
            match () {
                () if is(map.first) => Atom::FirstValue(Arc::clone(map)),
                () if is(map.pointers) => Atom::FirstPointer(Arc::clone(map)),
                () => Atom::Map(Arc::clone(map), at),
            }
        }
        Atom::Element(map, at) => {
            let at = near(*at, by)?;
            match map.in_element.is_some_and(|place| place as i64 == at) {
                true if map.per_cpu => Atom::FirstPointer(Arc::clone(map)),
                true => Atom::Pointer(map.value.clone()?, 0, Origin::Program),
                false => Atom::Element(Arc::clone(map), at),
            }
        }
        _ => return None,
    })
}

/// `x + i * step` for any `i`.
fn add_index(x: &Atom, step: u64) -> Option<Atom> {
    match x {
        Atom::Const(_) | Atom::Number(_) => Some(Atom::Number(1)),
        Atom::FirstValue(map) if map.stride > 0 && step.is_multiple_of(map.stride) => {
            Some(Atom::Pointer(map.value.clone()?, 0, Origin::Program))
        }
        Atom::FirstPointer(map) if step == 8 => Some(Atom::FirstPointer(Arc::clone(map))),
        Atom::Pointer(ty, at, origin) => {
            let at = u64::try_from(*at).ok()?;
            let is_sized =
                matches!(ty.set.strip(ty.id)?.1, Ty::Composite(_) | Ty::Section { .. } | Ty::Array { .. });
            (is_sized && repeats(ty, at, step)).then(|| Atom::Pointer(ty.clone(), at as i64, *origin))
        }
        _ => None,
    }
}

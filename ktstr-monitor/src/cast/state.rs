//! What registers and stack may hold: sets of possibilities that only grow where paths meet.
//!
//! Where two branches join, both are kept instead of forgetting both. A set that grows beyond a
//! bound becomes "anything", which says nothing about anything: evidence is lost then, not invented.
//!
//! Most values are the same before and after a block and on both sides of a branch: states share them, and a
//! value of one's own is made only where it changes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::rc::Rc;
use std::sync::Arc;

use super::code::CodeMap;
use super::place::Slot;
use crate::types::TypeRef;

/// Possibilities kept for one value, at most.
const MAX_ATOMS: usize = 12;

/// What memory a typed pointer leads into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A map's value or a global section: the program's own types hold there.
    Program,
    /// The kernel's memory.
    Kernel,
    /// Whatever a typed pointer in memory leads to.
    Stored,
    /// The arena, as the offset in its window that loads and stores there want.
    Window,
}

/// One possibility.
#[derive(Clone, Debug)]
pub enum Atom {
    /// A constant.
    Const(u64),
    /// The outcome of a computation, a multiple of this.
    Number(u64),
    /// `1` bytes into a `0`.
    Pointer(TypeRef, i64, Origin),
    /// `1` bytes from what a slot holds; `2`: only its lower half is left.
    Held(Slot, i64, bool),
    /// `0` bytes from the frame's end.
    Stack(i64),
    /// A map's address, and bytes further on.
    Map(Arc<CodeMap>, i64),
    /// Where an array's first value is, its index still to be added.
    FirstValue(Arc<CodeMap>),
    /// Where a per-CPU array's pointers are, the same.
    FirstPointer(Arc<CodeMap>),
    /// A pointer to a per-CPU value before the CPU's offset is added.
    PerCpu(Arc<CodeMap>),
    /// A hash's element, and bytes further on.
    Element(Arc<CodeMap>, i64),
    /// The context of the function with that position.
    Context(usize),
    /// A per-CPU variable of the kernel that points at this.
    CpuPointer(TypeRef),
}

/// A value: one of these, or, when `anything`, also anything else.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Val {
    /// Whether it may be something of which nothing is known.
    pub anything: bool,
    /// The possibilities.
    pub atoms: Vec<Atom>,
    /// There were too many of them to keep: nothing will be known of it any more.
    wide: bool,
}

impl PartialEq for Atom {
    fn eq(&self, other: &Self) -> bool {
        let same = |a: &Arc<CodeMap>, b: &Arc<CodeMap>| Arc::ptr_eq(a, b);
        match (self, other) {
            (Self::Const(a), Self::Const(b)) | (Self::Number(a), Self::Number(b)) => a == b,
            (Self::Pointer(a, x, o), Self::Pointer(b, y, p)) => a == b && x == y && o == p,
            (Self::Held(a, x, n), Self::Held(b, y, m)) => a == b && x == y && n == m,
            (Self::Stack(a), Self::Stack(b)) => a == b,
            (Self::Map(a, x), Self::Map(b, y)) | (Self::Element(a, x), Self::Element(b, y)) => {
                same(a, b) && x == y
            }
            (Self::FirstValue(a), Self::FirstValue(b))
            | (Self::FirstPointer(a), Self::FirstPointer(b))
            | (Self::PerCpu(a), Self::PerCpu(b)) => same(a, b),
            (Self::CpuPointer(a), Self::CpuPointer(b)) => a == b,
            (Self::Context(a), Self::Context(b)) => a == b,
            _ => false,
        }
    }
}

impl Val {
    /// Of which nothing is known.
    pub fn unknown() -> Self {
        Self { anything: true, ..Self::default() }
    }

    /// No possibility yet, but for `anything`.
    pub fn of(anything: bool) -> Self {
        Self { anything, ..Self::default() }
    }

    /// Exactly this.
    pub fn one(atom: Atom) -> Self {
        Self { atoms: vec![atom], ..Self::default() }
    }

    /// Some number.
    pub fn number() -> Self {
        Self::one(Atom::Number(1))
    }

    /// The constant, if it is one.
    pub fn constant(&self) -> Option<u64> {
        match &self.atoms[..] {
            [Atom::Const(value)] if !self.anything => Some(*value),
            _ => None,
        }
    }

    /// Adds the possibilities of `other`; true when there were new ones.
    pub fn join(&mut self, other: &Self) -> bool {
        if self.wide {
            return false;
        }
        let mut grew = other.anything && !self.anything;
        self.anything |= other.anything;
        for atom in &other.atoms {
            if self.atoms.contains(atom) {
                continue;
            }
            // Different constants are a number; a growing set of them would never settle.
            let constants = self.atoms.iter().filter(|a| matches!(a, Atom::Const(_))).count();
            if matches!(atom, Atom::Const(_)) && (constants >= 2 || self.atoms.contains(&Atom::Number(1))) {
                let before = self.atoms.len();
                self.atoms.retain(|a| !matches!(a, Atom::Const(value) if *value != 0));
                let fresh = !self.atoms.contains(&Atom::Number(1));
                if fresh {
                    self.atoms.push(Atom::Number(1));
                }
                grew |= fresh || before != self.atoms.len();
                continue;
            }
            grew = true;
            self.atoms.push(atom.clone());
        }
        if self.atoms.len() > MAX_ATOMS || other.wide {
            *self = Self { anything: true, atoms: Vec::new(), wide: true };
            return true;
        }
        grew
    }

    /// Whether [`join`](Self::join)ing `other` would change nothing.
    fn covers(&self, other: &Self) -> bool {
        let has_all = || other.atoms.iter().all(|atom| self.atoms.contains(atom));
        self.wide || ((self.anything || !other.anything) && !other.wide && has_all())
    }

    /// As `f` makes of each possibility; `None` from it means that nothing is known of the outcome.
    pub fn map(&self, mut f: impl FnMut(&Atom) -> Option<Atom>) -> Self {
        let mut out = Self { anything: self.anything, ..Self::default() };
        for atom in &self.atoms {
            match f(atom) {
                Some(atom) => {
                    out.join(&Self::one(atom));
                }
                None => out.anything = true,
            }
        }
        out
    }
}

/// Registers and spilled values at one point.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// r0 to r10.
    pub regs: [Rc<Val>; 11],
    /// Words of the stack by offset from the frame's end; what is not there is unknown.
    pub stack: Rc<BTreeMap<i64, Rc<Val>>>,
    /// Times that other states were joined into it.
    pub visits: usize,
}

impl State {
    /// With nothing known but the frame.
    pub fn entry() -> Self {
        let mut state = Self::default();
        state.regs.fill(Rc::new(Val::unknown()));
        state.regs[10] = Rc::new(Val::one(Atom::Stack(0)));
        state
    }

    /// Adds the possibilities of `other`.
    pub fn join(&mut self, other: &Self) -> bool {
        let mut grew = false;
        for (own, other) in self.regs.iter_mut().zip(&other.regs) {
            grew |= join(own, other);
        }
        if !Rc::ptr_eq(&self.stack, &other.stack) {
            grew |= self.join_stack(&other.stack);
        }
        grew
    }

    fn join_stack(&mut self, other: &BTreeMap<i64, Rc<Val>>) -> bool {
        // A word that was not written on one side may be anything there.
        let unwritten = Rc::new(Val::unknown());
        let there = |at: &i64| other.get(at).unwrap_or(&unwritten);
        let covered = self.stack.iter().all(|(at, own)| own.covers(there(at)));
        if covered && other.keys().all(|at| self.stack.contains_key(at)) {
            return false;
        }
        let mut grew = false;
        let stack = Rc::make_mut(&mut self.stack);
        for (at, own) in stack.iter_mut() {
            grew |= join(own, there(at));
        }
        for (at, other) in other {
            if let Entry::Vacant(place) = stack.entry(*at) {
                let own = place.insert(Rc::new(Val { anything: true, ..Val::clone(other) }));
                grew |= !own.atoms.is_empty();
            }
        }
        grew
    }

    /// Forgets the words that a write of `len` bytes at `at` touches.
    pub fn clobber(&mut self, at: i64, len: i64) {
        let stays = |word: &i64| *word + 8 <= at || *word >= at + len;
        if !self.stack.keys().all(stays) {
            Rc::make_mut(&mut self.stack).retain(|word, _| stays(word));
        }
    }
}

/// Adds the possibilities of `other`, to a value of its own where there are new ones.
fn join(own: &mut Rc<Val>, other: &Rc<Val>) -> bool {
    !Rc::ptr_eq(own, other) && !own.covers(other) && Rc::make_mut(own).join(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Vec<Val> {
        let atoms = [Atom::Const(0), Atom::Const(5), Atom::Const(9), Atom::Number(1), Atom::Stack(-8)];
        let sets = (0..1 << atoms.len()).map(|set: u32| {
            let chosen = atoms.iter().enumerate().filter(|(nth, _)| set & 1 << nth != 0);
            chosen.map(|(_, atom)| atom.clone()).collect::<Vec<_>>()
        });
        let either = |atoms: Vec<Atom>| {
            [false, true].map(|anything| Val { anything, atoms: atoms.clone(), wide: false })
        };
        let too_many = Val { anything: true, atoms: Vec::new(), wide: true };
        sets.flat_map(either).chain([too_many]).collect()
    }

    #[test]
    fn what_is_covered_changes_nothing() {
        let values = values();
        let (mut covered, mut grown) = (0, 0);
        for own in &values {
            for other in &values {
                let mut joined = own.clone();
                let grew = joined.join(other);
                assert!(!own.covers(other) || (!grew && joined == *own), "{own:?} {other:?}");
                covered += usize::from(own.covers(other));
                grown += usize::from(grew);
            }
        }
        assert!(covered > 100 && grown > 100, "{covered} {grown}");
    }

    #[test]
    fn a_shared_stack_is_changed_for_oneself_alone() {
        let mut one = State::entry();
        Rc::make_mut(&mut one.stack).insert(-8, Rc::new(Val::number()));
        let mut two = one.clone();
        two.clobber(-64, 8);
        assert!(Rc::ptr_eq(&one.stack, &two.stack), "nothing was there");
        two.clobber(-4, 4);
        assert!(two.stack.is_empty() && one.stack.len() == 1);
        // What one side did not write may be anything.
        assert!(one.join(&two) && one.stack[&-8].anything);
        assert!(!one.join(&two), "and stays so");
    }
}

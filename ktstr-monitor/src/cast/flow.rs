//! Abstract interpretation of a program over its control flow.
//!
//! States are kept per basic block and joined where paths meet; functions are entered with what their
//! callers hand over, so a static function's arguments are known although its type cannot be trusted.
//! When nothing grows any more, a last pass over the settled states records the evidence.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::code::{Callee, Code, Meaning};
use super::evidence::{Evidence, Resolved};
use super::insn::{ADD, CALL, Class, DIV, EXIT, Insn, LD_IMM64, LSH, MOD, MOV, MUL, Mode, PSEUDO_CALL, SUB};
use super::place::{Leaf, Slot, leaf_at, repeats};
use super::state::{Atom, Origin, State, Val};
use crate::render::Space;
use crate::types::{Ty, TypeRef};

/// Joins into one block, at most; a program with more is given up.
const MAX_VISITS: usize = 2000;
/// Instructions interpreted of one program, at most.
const MAX_STEPS: usize = 5_000_000;
/// Basic blocks of one program, at most: each has a state.
const MAX_BLOCKS: usize = 60_000;
/// A frame of the stack, in bytes.
const FRAME: i64 = 512;

/// Interprets `code`, reading slots that are `known` already as what they are. None where that does not come
/// to an end.
pub fn analyse(code: &Code, known: &Resolved) -> Option<Evidence> {
    let mut flow = Flow {
        code,
        known,
        blocks: blocks(code),
        states: BTreeMap::new(),
        returns: HashMap::new(),
        callers: HashMap::new(),
        queue: VecDeque::new(),
        queued: HashSet::new(),
        steps: 0,
        evidence: None,
    };
    if flow.blocks.len() > MAX_BLOCKS {
        return None;
    }
    if !flow.settle() {
        return None;
    }
    flow.evidence = Some(Evidence::default());
    for (start, state) in std::mem::take(&mut flow.states) {
        flow.block(start, state);
    }
    flow.evidence
}

/// Where blocks begin.
fn blocks(code: &Code) -> BTreeSet<usize> {
    let mut starts: BTreeSet<usize> = code.functions.iter().map(|function| function.start).collect();
    starts.insert(0);
    for (at, insn) in code.insns.iter().enumerate() {
        if let Some(target) = insn.jump().and_then(|by| target(at, by)) {
            starts.insert(target);
            starts.insert(at + 1);
        } else if insn.ends() {
            starts.insert(at + 1);
        }
    }
    starts.retain(|start| *start < code.insns.len());
    starts
}

fn target(at: usize, by: i64) -> Option<usize> {
    usize::try_from(at as i64 + 1 + by).ok()
}

struct Flow<'c> {
    code: &'c Code,
    known: &'c Resolved,
    blocks: BTreeSet<usize>,
    states: BTreeMap<usize, State>,
    /// What functions return, by start.
    returns: HashMap<usize, Val>,
    /// Blocks that call a function, by its start.
    callers: HashMap<usize, BTreeSet<usize>>,
    queue: VecDeque<usize>,
    queued: HashSet<usize>,
    steps: usize,
    /// Set in the last pass.
    evidence: Option<Evidence>,
}

impl Flow<'_> {
    /// Whether nothing grows any more.
    fn settle(&mut self) -> bool {
        let called: HashSet<usize> = (self.code.calls.values())
            .filter_map(|callee| if let Callee::Function(start) = callee { Some(*start) } else { None })
            .collect();
        for (nth, function) in self.code.functions.iter().enumerate() {
            let mut state = State::entry();
            for (takes, reg) in function.takes.iter().zip(1..=5) {
                if let Some(to) = takes {
                    state.regs[reg] = Val::one(Atom::Pointer(to.clone(), 0, Origin::Stored));
                }
            }
            if !function.context.is_empty() {
                state.regs[1] = Val::one(Atom::Context(nth));
            }
            // Static functions are entered by their callers; one that nobody calls is a callback.
            let typed = function.takes.iter().any(Option::is_some);
            if nth == 0 || !called.contains(&function.start) || typed {
                self.enter(function.start, state);
            }
        }
        while let Some(start) = self.queue.pop_front() {
            self.queued.remove(&start);
            let Some(state) = self.states.get(&start) else { continue };
            if self.steps > MAX_STEPS || state.visits > MAX_VISITS {
                return false;
            }
            self.block(start, state.clone());
        }
        true
    }

    fn later(&mut self, block: usize) {
        if self.queued.insert(block) {
            self.queue.push_back(block);
        }
    }

    /// Joins `state` into the block at `at`.
    fn enter(&mut self, at: usize, state: State) {
        if self.evidence.is_some() {
            return;
        }
        let grew = match self.states.get_mut(&at) {
            Some(known) => {
                known.visits += 1;
                known.join(&state)
            }
            None => {
                self.states.insert(at, state);
                true
            }
        };
        if grew {
            self.later(at);
        }
    }

    fn block(&mut self, start: usize, mut state: State) {
        let mut at = start;
        loop {
            let Some(&insn) = self.code.insns.get(at) else { return };
            self.steps += 1;
            let mut next = at + 1;
            match insn.class() {
                Class::Load if insn.code == LD_IMM64 => {
                    state.regs[usize::from(insn.dst.min(9))] = self.constant(at, insn);
                    next = at + 2;
                }
                Class::Load => state.regs[0] = Val::unknown(),
                Class::LoadMem => self.load(insn, &mut state),
                Class::Store | Class::StoreReg => self.store(insn, &mut state),
                Class::Alu32 | Class::Alu64 => self.compute(insn, &mut state),
                Class::Jump | Class::Jump32 => {
                    if insn.code == CALL {
                        self.call(at, start, insn, &mut state);
                    } else if insn.code == EXIT {
                        self.leave(start, &state);
                        return;
                    } else {
                        if let Some(to) = insn.jump().and_then(|by| target(at, by)) {
                            self.enter(to, self.refined(insn, &state, true));
                        }
                        if insn.ends() {
                            return;
                        }
                        state = self.refined(insn, &state, false);
                    }
                }
            }
            at = next;
            if self.blocks.contains(&at) {
                self.enter(at, state);
                return;
            }
        }
    }

    /// After a comparison with 0 a value that must be 0 is nothing else, and the other way round.
    fn refined(&self, insn: Insn, state: &State, taken: bool) -> State {
        let mut state = state.clone();
        state.visits = 0;
        let is_zero = match (insn.class(), insn.op(), insn.by_register(), insn.imm) {
            (Class::Jump, 0x10, false, 0) => taken,
            (Class::Jump, 0x50, false, 0) => !taken,
            _ => return state,
        };
        let reg = &mut state.regs[usize::from(insn.dst.min(10))];
        if is_zero {
            *reg = Val::one(Atom::Const(0));
        } else if reg.atoms.len() > 1 {
            reg.atoms.retain(|atom| *atom != Atom::Const(0));
        }
        state
    }

    fn constant(&self, at: usize, insn: Insn) -> Val {
        match self.code.constants.get(&at) {
            Some(Meaning::Map(map)) => Val::one(Atom::Map(Arc::clone(map), 0)),
            Some(Meaning::Global { section, offset }) => {
                Val::one(Atom::Pointer(section.clone(), *offset as i64, Origin::Program))
            }
            Some(Meaning::Address) => Val::unknown(),
            None => {
                let high = self.code.insns.get(at + 1).map_or(0, |insn| insn.imm);
                Val::one(Atom::Const(u64::from(insn.imm as u32) | u64::from(high as u32) << 32))
            }
        }
    }

    fn load(&mut self, insn: Insn, state: &mut State) {
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
        state.regs[usize::from(insn.dst.min(9))] = loaded;
    }

    fn loaded(&mut self, atom: &Atom, insn: Insn, size: u64, state: &State) -> Val {
        let off = i64::from(insn.off);
        match atom {
            Atom::Stack(at) if size == 8 => {
                state.stack.get(&(at + off)).cloned().unwrap_or_else(Val::unknown)
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

    fn store(&mut self, insn: Insn, state: &mut State) {
        let base = state.regs[usize::from(insn.dst.min(10))].clone();
        let size = insn.size();
        let off = i64::from(insn.off);
        let atomic = matches!(insn.mode(), Mode::Atomic | Mode::ArenaAtomic);
        let value = match insn.class() {
            Class::Store => Val::one(Atom::Const(insn.imm as i64 as u64)),
            _ => state.regs[usize::from(insn.src.min(10))].clone(),
        };
        // Exchanging stores its source; all other atomics compute.
        let value = match (atomic, insn.imm & 0xf0) {
            (true, 0xe0 | 0xf0) | (false, _) => value,
            _ => Val::number(),
        };
        for atom in &base.atoms {
            match atom {
                Atom::Stack(at) => {
                    state.clobber(at + off, size as i64);
                    let certain = base.atoms.len() == 1 && !base.anything;
                    let in_frame = (-FRAME..0).contains(&(at + off));
                    if size == 8 && certain && !atomic && in_frame && (at + off) % 8 == 0 {
                        state.stack.insert(at + off, value.clone());
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
            state.stack.clear();
        }
        if atomic {
            let fetched = match insn.imm & 0xf1 {
                0xf1 => Some(0),
                imm if imm & 1 == 1 => Some(usize::from(insn.src.min(9))),
                _ => None,
            };
            if let Some(reg) = fetched {
                state.regs[reg] = Val::unknown();
            }
        }
    }

    /// What a store says about the slot it goes into, or the slot it came from.
    fn stored(&mut self, ty: &TypeRef, at: i64, size: u64, origin: Origin, value: &Val) {
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
        for atom in &value.atoms {
            match atom {
                Atom::Const(0) => {}
                // Half a pointer.
                Atom::Pointer(_, _, Origin::Window) => {}
                Atom::Pointer(to, 0, origin) => {
                    let space = match origin {
                        Origin::Kernel | Origin::Program => Space::Kernel,
                        Origin::Stored | Origin::Window => Space::Arena,
                    };
                    let itself = to
                        .strip()
                        .is_some_and(|to| to.id == slot.owner && Arc::ptr_eq(&to.set, &self.code.types));
                    if !itself {
                        evidence.typed(slot, to, space, matches!(origin, Origin::Program));
                    }
                }
                Atom::Held(from, 0, false) => evidence.link(*from, slot),
                Atom::Const(_) | Atom::Number(_) | Atom::Pointer(..) | Atom::Held(..) | Atom::Stack(_) => {
                    evidence.number(slot);
                }
                _ => {}
            }
        }
    }

    /// `value` went where only pointers to `to` go.
    fn went(&mut self, value: &Val, to: &TypeRef) {
        let Some(evidence) = &mut self.evidence else { return };
        for atom in &value.atoms {
            if let Atom::Held(slot, 0, false) = atom {
                evidence.typed(*slot, to, Space::Arena, false);
            }
        }
    }

    fn compute(&mut self, insn: Insn, state: &mut State) {
        let dst = usize::from(insn.dst.min(9));
        let narrow = insn.class() == Class::Alu32;
        let operand = match insn.by_register() {
            true => state.regs[usize::from(insn.src.min(10))].clone(),
            false => Val::one(Atom::Const(match narrow {
                true => u64::from(insn.imm as u32),
                false => insn.imm as i64 as u64,
            })),
        };
        let before = state.regs[dst].clone();
        state.regs[dst] = match insn.op() {
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
        };
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

    fn call(&mut self, at: usize, block: usize, insn: Insn, state: &mut State) {
        let callee = self.code.calls.get(&at).cloned().unwrap_or(Callee::Unknown);
        let first = state.regs[1].clone();
        let map_value = |element: bool| {
            first.map(|atom| match atom {
                Atom::Map(map, 0) if element => Some(Atom::Element(Arc::clone(map), 0)),
                Atom::Map(map, 0) => Some(Atom::Pointer(map.value.clone()?, 0, Origin::Program)),
                _ => None,
            })
        };
        let result = match &callee {
            Callee::MapValue => map_value(false),
            Callee::HashElement => map_value(true),
            Callee::Kernel(to) => Val::one(Atom::Pointer(to.clone(), 0, Origin::Kernel)),
            Callee::MapUpdate => {
                self.updated(&first, &state.regs[3].clone(), state);
                Val::number()
            }
            Callee::Function(start) => self.call_function(*start, block, insn, state),
            Callee::Reader => Val::number(),
            Callee::Unknown => Val::unknown(),
        };
        let writes = matches!(callee, Callee::Unknown | Callee::Function(_) | Callee::Kernel(_));
        if writes {
            let lowest = state.regs[1..=5].iter().flat_map(|val| &val.atoms).filter_map(|atom| match atom {
                Atom::Stack(at) => Some(*at),
                _ => None,
            });
            if let Some(lowest) = lowest.min() {
                state.clobber(lowest, -lowest);
            }
        }
        state.regs[0] = result;
        state.regs[1..=5].fill(Val::unknown());
    }

    fn call_function(&mut self, start: usize, block: usize, insn: Insn, state: &State) -> Val {
        debug_assert!(insn.src == PSEUDO_CALL || insn.code == CALL);
        let function = self.code.functions.iter().find(|function| function.start == start);
        let takes = function.map_or(&[][..], |function| &function.takes);
        let mut entry = State::entry();
        for reg in 1..=5 {
            let handed = state.regs[reg].map(|atom| match atom {
                // The callee has a frame of its own.
                Atom::Stack(_) | Atom::Context(_) => None,
                other => Some(other.clone()),
            });
            if let Some(Some(to)) = takes.get(reg - 1) {
                self.went(&handed, to);
                entry.regs[reg] = Val::one(Atom::Pointer(to.clone(), 0, Origin::Stored));
            } else {
                entry.regs[reg] = handed;
            }
        }
        self.callers.entry(start).or_default().insert(block);
        self.enter(start, entry);
        self.returns.get(&start).cloned().unwrap_or_else(Val::unknown)
    }

    /// The function that the block belongs to returns.
    fn leave(&mut self, block: usize, state: &State) {
        if self.evidence.is_some() {
            return;
        }
        let function = self.code.functions.iter().rfind(|function| function.start <= block);
        let Some(start) = function.map(|function| function.start) else { return };
        let value = state.regs[0].map(|atom| match atom {
            Atom::Stack(_) | Atom::Context(_) => None,
            other => Some(other.clone()),
        });
        let grew = match self.returns.get_mut(&start) {
            Some(known) => known.join(&value),
            None => {
                self.returns.insert(start, value);
                true
            }
        };
        if grew {
            for caller in self.callers.get(&start).cloned().unwrap_or_default() {
                self.later(caller);
            }
        }
    }

    /// A value built on the stack became a map's.
    fn updated(&mut self, map: &Val, value: &Val, state: &State) {
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

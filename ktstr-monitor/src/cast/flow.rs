//! Abstract interpretation of a program over its control flow.
//!
//! States are kept per basic block and joined where paths meet; functions are entered with what their
//! callers hand over, so a static function's arguments are known although its type cannot be trusted.
//! When nothing grows any more, a last pass over the settled states records the evidence.
//!
//! Control flow and calls are here; what single instructions do in [`memory`] and [`arithmetic`].

mod arithmetic;
mod memory;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use super::code::{Callee, Code, Meaning};
use super::evidence::{Evidence, Resolved};
use super::insn::{CALL, Class, EXIT, Insn, LD_IMM64, PSEUDO_CALL};
use super::state::{Atom, Origin, State, Val};
use crate::types::{Ty, TypeId, TypeRef};

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
        begins: blocks(code),
        states: BTreeMap::new(),
        returns: HashMap::new(),
        callers: HashMap::new(),
        queue: VecDeque::new(),
        queued: HashSet::new(),
        steps: 0,
        evidence: None,
    };
    if flow.begins.iter().filter(|begins| **begins).count() > MAX_BLOCKS {
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

/// Whether a block begins, for each instruction.
fn blocks(code: &Code) -> Vec<bool> {
    let mut begins = vec![false; code.insns.len()];
    let mut begin = |at: usize| {
        if let Some(begins) = begins.get_mut(at) {
            *begins = true;
        }
    };
    begin(0);
    code.functions.iter().for_each(|function| begin(function.start));
    for (at, insn) in code.insns.iter().enumerate() {
        if let Some(target) = insn.jump().and_then(|by| target(at, by)) {
            begin(target);
            begin(at + 1);
        } else if insn.ends() {
            begin(at + 1);
        }
    }
    begins
}

fn target(at: usize, by: i64) -> Option<usize> {
    usize::try_from(at as i64 + 1 + by).ok()
}

struct Flow<'c> {
    code: &'c Code,
    known: &'c Resolved,
    /// Whether a block begins there.
    begins: Vec<bool>,
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
                    state.regs[reg] = Rc::new(Val::one(Atom::Pointer(to.clone(), 0, Origin::Stored)));
                }
            }
            if !function.context.is_empty() {
                state.regs[1] = Rc::new(Val::one(Atom::Context(nth)));
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
                    state.regs[usize::from(insn.dst.min(9))] = Rc::new(self.constant(at, insn));
                    next = at + 2;
                }
                Class::Load => state.regs[0] = Rc::new(Val::unknown()),
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
            if self.begins.get(at) == Some(&true) {
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
            *reg = Rc::new(Val::one(Atom::Const(0)));
        } else if reg.atoms.len() > 1 && reg.atoms.contains(&Atom::Const(0)) {
            Rc::make_mut(reg).atoms.retain(|atom| *atom != Atom::Const(0));
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
            Callee::Kernel { takes, returns } => {
                for (to, reg) in takes.iter().zip(1..=5) {
                    if let Some(to) = to {
                        self.went(&state.regs[reg].clone(), to);
                    }
                }
                let to = returns.clone();
                to.map_or_else(Val::unknown, |to| Val::one(Atom::Pointer(to, 0, Origin::Kernel)))
            }
            Callee::Exchange => {
                let held = self.held(&first, 0, 8);
                let value = state.regs[2].clone();
                for atom in &first.atoms {
                    if let Atom::Pointer(ty, at, origin) = atom {
                        self.stored(ty, *at, 8, *origin, &value);
                    }
                }
                held
            }
            Callee::KernelCast(kernel) => {
                let id = state.regs[2].constant().and_then(|id| u32::try_from(id).ok());
                match id.map(|id| TypeRef::new(kernel, TypeId(id))) {
                    Some(to) if matches!(kernel.ty(to.id), Some(Ty::Composite(_))) => {
                        self.went(&first, &to);
                        Val::one(Atom::Pointer(to, 0, Origin::Kernel))
                    }
                    _ => Val::unknown(),
                }
            }
            Callee::MapUpdate => {
                self.updated(&first, &state.regs[3].clone(), state);
                Val::number()
            }
            Callee::Function(start) => self.call_function(*start, block, insn, state),
            Callee::Reader => Val::number(),
            Callee::Unknown => Val::unknown(),
        };
        let writes = matches!(callee, Callee::Unknown | Callee::Function(_) | Callee::Kernel { .. });
        if writes {
            let lowest = state.regs[1..=5].iter().flat_map(|val| &val.atoms).filter_map(|atom| match atom {
                Atom::Stack(at) => Some(*at),
                _ => None,
            });
            if let Some(lowest) = lowest.min() {
                state.clobber(lowest, -lowest);
            }
        }
        state.regs[0] = Rc::new(result);
        state.regs[1..=5].fill(Rc::new(Val::unknown()));
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
                entry.regs[reg] = Rc::new(Val::one(Atom::Pointer(to.clone(), 0, Origin::Stored)));
            } else {
                entry.regs[reg] = Rc::new(handed);
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
}

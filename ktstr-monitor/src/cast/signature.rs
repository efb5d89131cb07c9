//! Whether a static function takes what its source says.
//!
//! The compiler may drop arguments of a static function that nobody needs, and BTF goes on describing the
//! source. (A function that the library marks hidden is static for the kernel as well, although the
//! compiler had to leave it alone.) An argument that is dropped moves those behind it up and leaves fewer:
//! so when the function reads every register that its source's arguments would be in, none was dropped.

use std::collections::{BTreeSet, HashSet};

use super::code::{Code, CodeFunction};
use super::guest::pointee;
use super::insn::{CALL, Class, EXIT, Insn, LD_IMM64, MOV};
use crate::types::{Ty, TypeRef};

/// Instructions looked at for one function, at most.
const MAX_STEPS: usize = 20_000;

/// What a static function's arguments point at, by its source; nothing for a global one, and where an
/// argument may take two registers.
pub(super) fn of_static(function: &TypeRef) -> Option<Vec<Option<TypeRef>>> {
    let Ty::Func { proto, global: false } = function.set.ty(function.id)? else { return None };
    let (_, Ty::Proto { takes, .. }) = function.set.strip(*proto)? else { return None };
    let is_whole = |ty: &TypeRef| ty.size().is_some_and(|size| size <= 8);
    let all: Vec<TypeRef> = takes.iter().map(|(_, ty)| function.with(*ty)).collect();
    (all.len() <= 5 && all.iter().all(is_whole)).then(|| all.iter().map(pointee).collect())
}

/// Takes over what the source says of static functions that read all their arguments.
pub(super) fn believe(code: &mut Code) {
    let believed = |function: &CodeFunction| {
        let count = function.static_takes.len();
        count > 0 && function.takes.is_empty() && read_first(code, function.start) == (1..=count).collect()
    };
    let believed: Vec<bool> = code.functions.iter().map(believed).collect();
    for (function, _) in code.functions.iter_mut().zip(believed).filter(|(_, believed)| *believed) {
        function.takes = std::mem::take(&mut function.static_takes);
    }
}

/// The argument registers that are read before they are written, on any path; fewer where that takes long.
fn read_first(code: &Code, start: usize) -> BTreeSet<usize> {
    const ARGUMENTS: u16 = 0b11_1110;
    let (mut found, mut seen, mut todo) = (0u16, HashSet::new(), vec![(start, ARGUMENTS)]);
    for _ in 0..MAX_STEPS {
        let Some((at, fresh)) = todo.pop() else { break };
        // What is not fresh on one way may be on another; a register found once needs no second look.
        let fresh = fresh & !found;
        let Some(&insn) = code.insns.get(at).filter(|_| fresh != 0 && seen.insert((at, fresh))) else {
            continue;
        };
        let (reads, writes) = touched(insn);
        found |= fresh & reads;
        let fresh = fresh & !reads & !writes;
        if let Some(to) = insn.jump().and_then(|by| usize::try_from(at as i64 + 1 + by).ok()) {
            todo.push((to, fresh));
        }
        if !insn.ends() {
            todo.push((at + if insn.code == LD_IMM64 { 2 } else { 1 }, fresh));
        }
    }
    (1..=5).filter(|reg| found >> reg & 1 == 1).collect()
}

/// The registers that an instruction reads and writes, as bits. A call counts as reading none: what it
/// takes need not be an argument of the caller.
fn touched(insn: Insn) -> (u16, u16) {
    let (dst, src) = (1u16 << insn.dst, 1u16 << insn.src);
    match insn.class() {
        Class::Load => (0, dst),
        Class::LoadMem => (src, dst),
        Class::Store => (dst, 0),
        Class::StoreReg => (dst | src, 0),
        Class::Jump | Class::Jump32 if insn.code == CALL => (0, 0b11_1111),
        Class::Jump | Class::Jump32 if insn.code == EXIT || insn.op() == 0 => (0, 0),
        Class::Jump | Class::Jump32 => (if insn.by_register() { dst | src } else { dst }, 0),
        Class::Alu32 | Class::Alu64 => match (insn.op(), insn.by_register()) {
            (MOV, true) => (src, dst),
            (MOV, false) => (0, dst),
            // Negation and byte swaps have no second operand.
            (0x80 | 0xd0, _) | (_, false) => (dst, dst),
            _ => (dst | src, dst),
        },
    }
}

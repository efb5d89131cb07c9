//! The kernel's tables of numbered objects: an `idr` is a radix tree (`lib/radix-tree.c`, `xarray`).
//!
//! An entry whose two lowest bits are `10` is a node, everything else an object. Nodes have 64 slots
//! and know how far they shift an index; it must fall by 6 from parent to child, so a walk is at most
//! eleven levels deep however the tree was damaged.

use super::reader::{BpfError, Reader, Walk};
use crate::addr::Kva;

const SLOTS: u64 = 64;
const STEP: u64 = 6;
const INTERNAL: u64 = 2;
/// More objects than any guest has; a damaged tree may claim 2^64.
const MAX_OBJECTS: usize = 65_536;
const MAX_NODES: usize = 4096;

/// All objects in the `idr` at `at`, by ascending number.
pub(super) fn walk(reader: &Reader<'_>, at: Kva) -> Result<Walk<Kva>, BpfError> {
    let head = reader.get(at, &reader.layout.idr.head, "idr.idr_rt.xa_head")?;
    let slots = Reader::offset(&reader.layout.xa_node.slots)?;
    let mut walk = Walk { items: Vec::new(), damage: Vec::new() };
    let mut nodes = 0;
    // Entries still to be looked at, the next one last, with the shift that a node there must have.
    let mut todo = vec![(head, None)];
    while let Some((entry, shift)) = todo.pop() {
        if entry == 0 {
            continue;
        }
        if entry & 3 != INTERNAL {
            walk.items.push(Kva(entry & !3));
            if walk.items.len() >= MAX_OBJECTS {
                let why = "it holds more objects than any kernel has";
                walk.damage.push(BpfError::Damaged { what: "the idr", at, why });
                break;
            }
            continue;
        }
        let node = Kva(entry - INTERNAL);
        nodes += 1;
        if nodes > MAX_NODES {
            let why = "it has more nodes than any kernel's";
            walk.damage.push(BpfError::Damaged { what: "the idr", at, why });
            break;
        }
        match children(reader, node, slots, shift) {
            Ok((below, entries)) => todo.extend(entries.into_iter().rev().map(|entry| (entry, below))),
            Err(error) => walk.damage.push(error),
        }
    }
    Ok(walk)
}

/// The shift of a node's children, and the children.
type Children = (Option<u64>, Vec<u64>);

fn children(reader: &Reader<'_>, node: Kva, slots: u64, expected: Option<u64>) -> Result<Children, BpfError> {
    let what = "a node of the idr";
    let shift = reader.get(node, &reader.layout.xa_node.shift, "xa_node.shift")?;
    let in_range = shift % STEP == 0 && shift <= 60;
    if !in_range || expected.is_some_and(|expected| shift != expected) {
        return Err(BpfError::Damaged { what, at: node, why: "its shift is not its parent's less 6" });
    }
    let bytes = reader.bytes(node.wrapping_add(slots), SLOTS * 8, what)?;
    let entries: Vec<u64> =
        bytes.chunks_exact(8).map(|eight| u64::from_le_bytes(eight.try_into().unwrap_or([0; 8]))).collect();
    let below = shift.checked_sub(STEP);
    if below.is_none() && entries.iter().any(|entry| entry & 3 == INTERNAL) {
        return Err(BpfError::Damaged { what, at: node, why: "a lowest node has nodes below it" });
    }
    Ok((below, entries))
}

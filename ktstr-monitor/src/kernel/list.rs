//! Walks over the kernel's linked structures, bounded whatever the memory holds.
//!
//! A walk returns what it found and, when it did not come to the end it should, why: what was read
//! before is never thrown away, and never passed off as all there is.

use std::collections::HashSet;

use thiserror::Error;

use super::value::{Gap, Reading};
use crate::addr::Kva;
use crate::paging::{AccessError, KernelMem};

/// Items found, and the reason when there should be more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk<T> {
    /// In the kernel's order.
    pub items: Vec<T>,
    /// Why the walk ended before its end.
    pub cut: Option<Cut>,
}

/// Why a walk ended early.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Cut {
    /// A node was met twice.
    #[error("`{list}` leads back to {at} after {after} nodes instead of to its head")]
    Cycle {
        /// Which list.
        list: &'static str,
        /// The node met twice.
        at: Kva,
        /// Nodes before.
        after: usize,
    },
    /// More nodes than there can be.
    #[error("`{list}` has more than {limit} nodes")]
    TooLong {
        /// Which list.
        list: &'static str,
        /// The bound.
        limit: usize,
    },
    /// A node says nothing.
    #[error("`{list}` breaks off after {after} nodes")]
    Broken {
        /// Which list.
        list: &'static str,
        /// Nodes before.
        after: usize,
        /// What could not be read.
        #[source]
        source: AccessError,
    },
    /// A pointer is NULL where a list has none.
    #[error("`{list}` holds a NULL pointer after {after} nodes")]
    Null {
        /// Which list.
        list: &'static str,
        /// Nodes before.
        after: usize,
    },
    /// What the list hangs on could not be read.
    #[error("`{list}` cannot be walked")]
    Unreachable {
        /// Which list.
        list: &'static str,
        /// Why.
        #[source]
        source: Box<Gap>,
    },
}

impl<T> Walk<T> {
    /// Nothing, for a reason.
    pub fn none(list: &'static str, gap: Gap) -> Self {
        Self { items: Vec::new(), cut: Some(Cut::Unreachable { list, source: Box::new(gap) }) }
    }

    /// The same with each item turned into something else.
    pub fn map<U>(self, turn: impl FnMut(T) -> U) -> Walk<U> {
        Walk { items: self.items.into_iter().map(turn).collect(), cut: self.cut }
    }
}

/// Follows a `struct list_head` from its head; items are the addresses of the nodes.
pub fn list_head(mem: &KernelMem<'_>, list: &'static str, head: Kva, limit: usize) -> Walk<Kva> {
    chain(mem, list, head, limit, |next| next == head)
}

/// Follows pointers, the next one being the first word of each node, until `is_end`.
pub fn chain(
    mem: &KernelMem<'_>,
    list: &'static str,
    head: Kva,
    limit: usize,
    is_end: impl Fn(Kva) -> bool,
) -> Walk<Kva> {
    let mut items = Vec::new();
    let mut seen = HashSet::new();
    let mut here = head;
    let cut = loop {
        let after = items.len();
        let next = match mem.read_u64(here) {
            Ok(next) => Kva(next),
            Err(source) => break Some(Cut::Broken { list, after, source }),
        };
        if is_end(next) {
            break None;
        }
        if next.is_null() {
            break Some(Cut::Null { list, after });
        }
        if after >= limit {
            break Some(Cut::TooLong { list, limit });
        }
        if !seen.insert(next) {
            break Some(Cut::Cycle { list, at: next, after });
        }
        items.push(next);
        here = next;
    };
    Walk { items, cut }
}

/// Where the structure begins whose member at `offset` is the node.
pub fn container(node: Kva, offset: u64) -> Kva {
    node.wrapping_add(offset.wrapping_neg())
}

/// Words of 64 bits at `at`; `what` for the error.
pub fn words(mem: &KernelMem<'_>, at: Kva, count: usize, what: &'static str) -> Reading<Vec<u64>> {
    let mut bytes = vec![0; count * 8];
    mem.read(at, &mut bytes).map_err(|source| Gap::Unreadable { what, source })?;
    Ok(bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
}

/// The pointer at `at`.
pub fn pointer(mem: &KernelMem<'_>, at: Kva, what: &'static str) -> Reading<Kva> {
    mem.read_u64(at).map(Kva).map_err(|source| Gap::Unreadable { what, source })
}

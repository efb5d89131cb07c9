//! Which numbers are pointers, found out from what programs do with them.
//!
//! BPF schedulers keep pointers in `u64` members: arena pointers that a map cannot hold as such,
//! kernel pointers as keys. Their types are lost to whoever reads memory, but the instructions still
//! know: they store typed pointers there, and dereference what they load.
//!
//! ```text
//! guest ─┐                      ┌▶ evidence per slot ─▶ resolved casts
//! object ┴▶ code ─▶ flow (CFG) ─┘        ▲                  │
//!                                        └── again with what is known, until nothing is new
//! ```
//!
//! A missed pointer is shown as a number; a number shown as a pointer is a lie. So everything in
//! doubt is dropped: see [`evidence`].

pub mod code;
pub mod evidence;
pub mod flow;
mod guest;
pub mod insn;
pub mod object;
pub mod place;
mod signature;
mod state;

use std::sync::Arc;

pub use guest::of_guest;

use code::Code;
use evidence::{Evidence, Resolved};

use crate::types::TypeSet;

/// Rounds of analysis: each may follow pointers that the one before found.
const ROUNDS: usize = 6;

/// What all programs of one object show together. `is_kernels` as in [`Evidence::resolve`]. Nothing, where
/// one of them could not be followed to its end: it may be the one that speaks against a pointer.
pub fn resolve(set: &Arc<TypeSet>, programs: &[Code], is_kernels: &dyn Fn(&str) -> bool) -> Resolved {
    let mut known = Resolved::default();
    let mut before = Resolved::default();
    for _ in 0..ROUNDS {
        let mut evidence = Evidence::default();
        for code in programs {
            let Some(seen) = flow::analyse(code, &known) else { return Resolved::default() };
            evidence.merge(seen);
        }
        before = std::mem::replace(&mut known, evidence.resolve(set, is_kernels));
        if known.is_same(&before) {
            return known;
        }
    }
    // What stands on something that the last round took back is not believed.
    known.agreeing(&before)
}

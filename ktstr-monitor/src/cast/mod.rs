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
mod state;

use std::sync::Arc;

pub use guest::of_guest;

use code::Code;
use evidence::{Evidence, Resolved};

use crate::types::TypeSet;

/// Rounds of analysis: each may follow pointers that the one before found.
const ROUNDS: usize = 4;

/// What all programs of one object show together. `is_kernels` as in [`Evidence::resolve`].
pub fn resolve(set: &Arc<TypeSet>, programs: &[Code], is_kernels: &dyn Fn(&str) -> bool) -> Resolved {
    let mut known = Resolved::default();
    for _ in 0..ROUNDS {
        let mut evidence = Evidence::default();
        for code in programs {
            evidence.merge(flow::analyse(code, &known));
        }
        let next = evidence.resolve(set, is_kernels);
        let settled = next.len() == known.len();
        known = next;
        if settled {
            break;
        }
    }
    known
}

//! Numbers in BPF maps that the host sets before a test's workers start.
//!
//! ```
//! # use ktstr::prelude::*;
//! const SLOW: BpfMapWrite = BpfMapWrite::new(".bss", "slow_ns", 5_000_000);
//! ```

use ktstr_guest::scenario::{Ctx, HostError};

/// A number that the host writes into a map of the scheduler's programs, once they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BpfMapWrite {
    /// The map's name, or the end of it: `.bss` is the map of global variables.
    pub map: &'static str,
    /// Where in it: `slow_ns`, `[3].weight`.
    pub path: &'static str,
    /// The number.
    pub value: i64,
}

impl BpfMapWrite {
    /// `value` at `path` in `map`.
    pub const fn new(map: &'static str, path: &'static str, value: i64) -> Self {
        assert!(!map.is_empty(), "a BPF map needs a name, or the end of one");
        assert!(!path.is_empty(), "a path in the map is needed: a variable's name, or `[key]`");
        Self { map, path, value }
    }
}

/// Has the host write them, one after the other.
pub(crate) fn write_all(ctx: &Ctx, writes: &[BpfMapWrite]) -> Result<(), HostError> {
    writes.iter().try_for_each(|write| ctx.write_map(write.map, write.path, write.value))
}

//! BPF programs and maps of the guest, read out of its memory.
//!
//! ```text
//! Reader ── idr ──▶ programs (name, tag, cost, instructions, functions)
//!    │        └───▶ maps ──▶ entries: cells of bytes with the address they came from
//!    └── objects: BTF of programs and modules ──▶ types of keys, values and variables
//! ```
//!
//! What a cell means is the business of [`crate::render`]; where in it a member lies that of
//! [`path`]. Writing takes a [`Writer`], which only a read-write attach can make. Refuses to believe
//! anything: every pointer, length and count comes from the guest, walks are bounded, and what could
//! not be read is said in place of it.

mod array;
mod dump;
mod follow;
mod hash;
mod idr;
mod layout;
mod map;
mod memory;
mod node;
mod object;
pub mod path;
mod pick;
mod program;
mod reader;
mod ringbuf;
mod slots;
mod special;
mod storage;
mod write;

pub use array::Places;
pub use dump::{BpfState, DumpOptions, MapAnswer, MapDump, ProgramDump, follow_all, query};
pub use follow::{Casts, Follow};
pub use layout::BpfLayout;
pub use map::{Cell, Entries, Entry, Key, Limits, MapInfo, MapKind, Owner, RecordState};
pub use memory::Memory;
pub use node::{answer_all, answer_map, set_number, state_node, value_node};
pub use object::ObjectError;
pub use pick::{of_scheduler, the_map};
pub use program::{Function, ProgramInfo, RunStats};
pub use reader::{BpfError, Reader, Walk};
pub use slots::{Allocator, Header, InSlot};
pub use special::ArenaInfo;
pub use write::{Located, WriteError, Writer};

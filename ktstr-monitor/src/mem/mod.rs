//! Guest-physical memory: where it lies ([`Layout`]) and how it is read ([`GuestMem`]).
//!
//! Refuses to hand out references: guest CPUs write this memory while it is read, so bytes are
//! copied out with volatile loads and parsed from the copy. Virtual addresses are the business of
//! [`crate::paging`].

mod guest;
mod kept;
mod layout;

pub use guest::{GuestMem, GuestMemMut, MapError, ReadError};
pub use kept::Kept;
pub use layout::{Layout, LayoutError, Region};

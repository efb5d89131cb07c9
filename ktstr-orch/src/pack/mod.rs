//! Packs the initramfs a guest boots from.
//!
//! [`Initramfs`] collects what shall be where (executables with their library
//! closure, modules, include files) and writes one uncompressed newc archive
//! whose last file says that extraction was complete. The same inputs give
//! the same bytes: entries are sorted, times are zero, owners are root.
//! [`memory`] says how much guest memory such an archive needs at least.
//!
//! `tree` holds the layout, `cpio` the format, `closure` finds
//! libraries, `include` places the user's files. Nothing here runs a
//! packed program or follows a path of the guest.

mod base;
mod closure;
mod cpio;
mod include;
mod initramfs;
mod library_path;
pub mod memory;
mod tree;

pub use base::{Base, BaseError, base};
pub use closure::{ClosureError, ElfError};
pub use include::IncludeError;
pub use initramfs::{Initramfs, PackError, Packed, in_path};
pub use library_path::LibraryPath;
pub use tree::TreeError;

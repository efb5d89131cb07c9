//! The kernel store: kernels that tests can boot, one directory per entry.
//!
//! An entry holds the boot image as it was shipped, the decompressed `vmlinux`
//! (boot by PVH, BTF for the monitor), the configuration, the modules a guest
//! may need with their dependency order, and `metadata.json`. Entries appear
//! by rename only, under an exclusive lock, so a half-written one has no name.
//! The store never repairs or silently uses an entry whose files do not match
//! their record, and it never downloads by itself: transport is the host's
//! package client, see [`debian`].
//!
//! Start at [`Store`] (list, install, clean) and [`KernelRef`] (what a user
//! may write after `--kernel`); [`Kernel`] is what the rest of the program
//! boots.

mod deb;
pub mod debian;
pub(crate) mod digest;
mod entry;
mod facts;
mod image;
mod import;
mod modules;
mod range;
mod resolve;
mod root;
mod version;

pub use debian::{Event, PullError, Pulled, pull};
pub use entry::{EntryState, FileRecord, ListedEntry, Metadata, ModuleRecord, Source, Store, StoreError};
pub use facts::Facts;
pub use image::ImageError;
pub use import::{ImportError, import_image, import_packages};
pub use modules::ModuleError;
pub use range::{KernelRange, NoRange};
pub use resolve::{Kernel, KernelRef, KernelUnfit, ParseError, ResolveError};
pub use root::{RootError, store_root};
pub use version::KernelVersion;

//! One look at the guest's BPF state: memory, kernel types, and the BTF objects found on the way.
//!
//! A reader sees memory as it is while it reads; for a consistent picture the guest must be stopped.
//! Objects are parsed once per reader.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use thiserror::Error;

use super::idr;
use super::layout::{BpfLayout, Slot};
use super::memory::Memory;
use super::object::{ObjectError, Objects};
use crate::addr::{CpuId, Kva};
use crate::kernel::{CpuArea, Gap, LiveKernel, Profile, read_field};
use crate::paging::{AccessError, KernelMem};
use crate::types::TypeSet;

/// Reads that one reader makes, at most. A scheduler's state takes some ten thousand; a guest that
/// links its structures in circles may not keep the monitor busy for longer than some seconds.
const READS: u64 = 3_000_000;
/// Bytes that one reader copies, at most.
const BYTES: u64 = 2 << 30;

/// Why something of the BPF state is missing.
#[derive(Clone, Debug, Error)]
pub enum BpfError {
    /// A member is absent or unreadable.
    #[error(transparent)]
    Gap(#[from] Gap),
    /// Memory is not there.
    #[error("cannot read {what} at {at}")]
    Unreadable {
        /// What was read.
        what: &'static str,
        /// Where.
        at: Kva,
        /// Why not.
        #[source]
        source: AccessError,
    },
    /// What is there cannot be right.
    #[error("{what} at {at} is damaged: {why}")]
    Damaged {
        /// What it should be.
        what: &'static str,
        /// Where it is.
        at: Kva,
        /// What is wrong.
        why: &'static str,
    },
    /// More than is read.
    #[error("{what} at {at} has {len} bytes, more than the {limit} that are read")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// Where it is.
        at: Kva,
        /// What it claims.
        len: u64,
        /// What is read at most.
        limit: u64,
    },
    /// A BTF object cannot be used.
    #[error("the BTF object at {at} is not usable")]
    Object {
        /// Where it is.
        at: Kva,
        /// Why not.
        #[source]
        source: Arc<ObjectError>,
    },
    /// The guest made reading take too long.
    #[error("gave up after {READS} reads: the guest's structures do not end")]
    Exhausted,
    /// The monitor does not know such maps.
    #[error("maps of type {kind} cannot be read")]
    UnknownMap {
        /// `enum bpf_map_type`.
        kind: u32,
    },
}

/// What a walk over the guest's objects gave.
#[derive(Clone, Debug)]
pub struct Walk<T> {
    /// What was read, in the kernel's order.
    pub items: Vec<T>,
    /// What could not be read, and why; the walk may have ended early because of it.
    pub damage: Vec<BpfError>,
}

/// Reads the BPF state of one guest.
#[derive(Debug)]
pub struct Reader<'a> {
    pub(super) profile: &'a Profile,
    pub(super) live: &'a LiveKernel,
    pub(super) mem: KernelMem<'a>,
    pub(super) layout: &'a BpfLayout,
    pub(super) objects: RefCell<Objects>,
    pub(super) arenas: RefCell<Option<Vec<super::special::ArenaInfo>>>,
    /// What earlier looks found out.
    pub(super) memory: Option<&'a Memory>,
    /// Parsing is for later: what is read now is only to be copied.
    pub(super) only_copies: bool,
    reads: Cell<u64>,
    copied: Cell<u64>,
    /// Reads, at most.
    limit: u64,
}

impl<'a> Reader<'a> {
    /// Reads through `mem`, the address space of `live`.
    pub fn new(
        profile: &'a Profile,
        live: &'a LiveKernel,
        mem: KernelMem<'a>,
        layout: &'a BpfLayout,
    ) -> Self {
        let (reads, copied) = (Cell::new(0), Cell::new(0));
        let (objects, arenas) = (RefCell::default(), RefCell::default());
        let (memory, only_copies, limit) = (None, false, READS);
        Self { profile, live, mem, layout, objects, arenas, memory, only_copies, reads, copied, limit }
    }

    /// The same, knowing what earlier looks found out.
    pub fn knowing(self, memory: &'a Memory) -> Self {
        Self { memory: Some(memory), ..self }
    }

    /// The same, parsing nothing: for reading what has to be copied while the guest stands.
    pub fn copying(self) -> Self {
        Self { only_copies: true, ..self }
    }

    /// The same, giving up after that many reads instead of some millions.
    pub fn at_most(self, reads: u64) -> Self {
        Self { limit: reads.min(READS), ..self }
    }

    /// The guest kernel's types.
    pub fn kernel_types(&self) -> &'a Arc<TypeSet> {
        self.profile.types().graph()
    }

    /// The guest kernel's description.
    pub fn profile(&self) -> &'a Profile {
        self.profile
    }

    /// The guest kernel's address space.
    pub fn mem(&self) -> &KernelMem<'a> {
        &self.mem
    }

    /// The running kernel.
    pub fn live(&self) -> &'a LiveKernel {
        self.live
    }

    /// Counts a read of `len` bytes.
    pub(super) fn spend(&self, len: u64) -> Result<(), BpfError> {
        self.reads.set(self.reads.get() + 1);
        self.copied.set(self.copied.get().saturating_add(len));
        match self.reads.get() > self.limit || self.copied.get() > BYTES {
            true => Err(BpfError::Exhausted),
            false => Ok(()),
        }
    }

    /// Reads and bytes so far.
    pub fn spent(&self) -> (u64, u64) {
        (self.reads.get(), self.copied.get())
    }

    /// Copies `len` bytes.
    pub fn bytes(&self, at: Kva, len: u64, what: &'static str) -> Result<Vec<u8>, BpfError> {
        const LIMIT: u64 = 64 << 20;
        if len > LIMIT {
            return Err(BpfError::TooLarge { what, at, len, limit: LIMIT });
        }
        self.spend(len)?;
        let mut into = vec![0; len as usize];
        self.mem.read(at, &mut into).map_err(|source| BpfError::Unreadable { what, at, source })?;
        Ok(into)
    }

    pub(super) fn word(&self, at: Kva, what: &'static str) -> Result<u64, BpfError> {
        self.spend(8)?;
        self.mem.read_u64(at).map_err(|source| BpfError::Unreadable { what, at, source })
    }

    /// An unsigned member of the structure at `base`.
    pub(super) fn get(&self, base: Kva, slot: &Slot, what: &'static str) -> Result<u64, BpfError> {
        self.spend(8)?;
        let field = slot.as_ref().map_err(|missing| Gap::Absent(missing.clone()))?;
        let value = read_field(&self.mem, base, field, what)?;
        Ok(value as u64)
    }

    pub(super) fn get_u32(&self, base: Kva, slot: &Slot, what: &'static str) -> Result<u32, BpfError> {
        Ok(self.get(base, slot, what)? as u32)
    }

    pub(super) fn get_kva(&self, base: Kva, slot: &Slot, what: &'static str) -> Result<Kva, BpfError> {
        self.get(base, slot, what).map(Kva)
    }

    /// A member that is text, up to its NUL. Bytes that are no printable ASCII become `?`.
    pub(super) fn text(&self, base: Kva, slot: &Slot, what: &'static str) -> Result<String, BpfError> {
        let field = slot.as_ref().map_err(|missing| Gap::Absent(missing.clone()))?;
        let bytes = self.bytes(base.wrapping_add(field.offset), field.size.min(256), what)?;
        Ok(printable(&bytes))
    }

    /// Text that a pointer leads to.
    pub(super) fn text_at(&self, at: Kva, what: &'static str) -> Result<String, BpfError> {
        const MAX: u64 = 256;
        // As much of it as lies in the same page, then the rest: the text may end before the page.
        let here = MAX.min(0x1000 - at.0 % 0x1000);
        let mut bytes = self.bytes(at, here, what)?;
        if !bytes.contains(&0) && here < MAX {
            bytes.extend(self.bytes(at.wrapping_add(here), MAX - here, what).unwrap_or_default());
        }
        Ok(printable(&bytes))
    }

    pub(super) fn offset(slot: &Slot) -> Result<u64, BpfError> {
        Ok(slot.as_ref().map_err(|missing| Gap::Absent(missing.clone()))?.offset)
    }

    /// The possible CPUs.
    pub(super) fn cpus(&self) -> &'a [CpuArea] {
        self.live.cpus()
    }

    /// Where the per-CPU pointer `cookie` leads for each possible CPU.
    pub(super) fn per_cpu(&self, cookie: u64) -> impl Iterator<Item = (CpuId, Kva)> + use<'a> {
        self.cpus().iter().map(move |area| (area.cpu, Kva(cookie).wrapping_add(area.offset)))
    }

    /// The pointers in the `idr` named `symbol`.
    pub(super) fn idr(&self, symbol: &'static str) -> Result<Walk<Kva>, BpfError> {
        let link = self.profile.symbols().get(symbol).ok_or(Gap::NoSymbol { symbol })?;
        idr::walk(self, self.live.at(link))
    }
}

pub(super) fn printable(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let show = |&b: &u8| if b == b' ' || b.is_ascii_graphic() { char::from(b) } else { '?' };
    bytes[..end].iter().map(show).collect()
}

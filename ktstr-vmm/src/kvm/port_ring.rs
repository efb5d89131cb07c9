//! KVM's ring of coalesced port writes: bytes for the serial ports that the guest has written without
//! a trip to user space. Printing a character costs one exit instead of two.
//!
//! Whoever comes out of the guest empties the ring before it serves its own exit, so every device
//! sees writes and reads in the guest's order. Where KVM has no such ring, writes arrive as exits.

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

const PAGE: usize = 4096;
/// In pages, from the start of a vCPU's mapping (`KVM_COALESCED_MMIO_PAGE_OFFSET` on x86).
const PAGE_OFFSET: usize = 2;
const ENTRIES: u32 = ((PAGE - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>()) as u32;

/// The ring of one VM; all its vCPUs show the same one.
#[derive(Debug)]
pub struct PortRing {
    page: NonNull<kvm_coalesced_mmio_ring>,
}

// SAFETY: the indices are accessed atomically, and `pop` takes `&mut self`: one reader at a time.
unsafe impl Send for PortRing {}

impl PortRing {
    /// Maps the ring through any vCPU of the VM.
    pub fn map(vcpu: impl AsFd) -> nix::Result<Self> {
        let len = NonZeroUsize::MIN.saturating_add(PAGE - 1);
        let (protection, offset) =
            (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, (PAGE_OFFSET * PAGE) as i64);
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let page = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, vcpu, offset)? };
        Ok(Self { page: page.cast() })
    }

    /// The oldest write, if there is one: port and byte.
    pub fn pop(&mut self) -> Option<(u16, u8)> {
        let ring = self.page.as_ptr();
        // SAFETY: inside the mapped page; the kernel writes `last`, we alone write `first`.
        let (first, last) = unsafe {
            (AtomicU32::from_ptr(&raw mut (*ring).first), AtomicU32::from_ptr(&raw mut (*ring).last))
        };
        let at = first.load(Ordering::Relaxed);
        if at == last.load(Ordering::Acquire) {
            return None;
        }
        let at = at % ENTRIES;
        // SAFETY: `at` is below the number of entries of the page, and the kernel does not touch an
        // entry between publishing it in `last` and seeing `first` move past it.
        let entry = unsafe {
            (&raw const (*ring).coalesced_mmio).cast::<kvm_coalesced_mmio>().add(at as usize).read()
        };
        first.store((at + 1) % ENTRIES, Ordering::Release);
        Some((entry.phys_addr as u16, entry.data[0]))
    }
}

impl Drop for PortRing {
    fn drop(&mut self) {
        // SAFETY: mapped in `map`, with this length, and no reference into it remains.
        let _ = unsafe { munmap(self.page.cast(), PAGE) };
    }
}

//! Anonymous private memory of a worker, as single pages or aligned blocks.

use std::{num::NonZeroUsize, ptr::NonNull};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// A private anonymous mapping. Reads and writes are volatile: they are the work, not a means.
pub(super) struct Region {
    base: NonNull<u8>,
    bytes: NonZeroUsize,
}

impl Region {
    /// Zeroed memory of at least one byte, page aligned, not yet touched.
    pub fn new(bytes: usize) -> nix::Result<Self> {
        let bytes = NonZeroUsize::new(bytes).unwrap_or(NonZeroUsize::MIN);
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh anonymous mapping at an address the kernel chooses overlaps nothing.
        let base = unsafe { mmap_anonymous(None, bytes, protection, MapFlags::MAP_PRIVATE) }?;
        Ok(Self { base: base.cast(), bytes })
    }

    pub fn len(&self) -> usize {
        self.bytes.get()
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Reads, changes and writes back the byte at `offset` (modulo the length).
    pub fn touch(&mut self, offset: usize) {
        let at = offset % self.len();
        // SAFETY: `at` is inside the mapping, which is readable, writable and ours alone.
        unsafe {
            let byte = self.base.add(at);
            byte.write_volatile(byte.read_volatile().wrapping_add(1));
        }
    }

    /// Writes the byte at `offset` (modulo the length) without reading it first, which costs an untouched
    /// page one fault and not two.
    pub fn write(&mut self, offset: usize) {
        let at = offset % self.len();
        // SAFETY: as for `touch`.
        unsafe { self.base.add(at).write_volatile(1) };
    }

    /// The whole of it, for reading and writing files.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is initialised (zero pages), ours alone, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len()) }
    }

    /// Gives advice on the whole of it.
    pub fn advise(&mut self, advice: MmapAdvise) -> nix::Result<()> {
        // SAFETY: the range is our own mapping; the advices used here drop or mark its pages, which then
        // read as zero, and no reference into it is alive while `self` is borrowed.
        unsafe { madvise(self.base.cast(), self.len(), advice) }
    }
}

// SAFETY: the mapping belongs to the value alone, and nothing in it to a thread.
unsafe impl Send for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.base.cast(), self.len()) };
    }
}

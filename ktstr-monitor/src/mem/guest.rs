//! The one place that touches guest RAM.
//!
//! Every read is bounds-checked against the [`Layout`] and copied out with volatile loads of the
//! widest naturally aligned size, so an aligned scalar of up to 8 bytes is never torn. Nothing else
//! is promised about two reads belonging together: that is for the caller to check.

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::{Whence, lseek};
use thiserror::Error;

use super::layout::Layout;
use crate::addr::Gpa;

/// Guest RAM, readable by guest-physical address.
#[derive(Debug)]
pub struct GuestMem {
    backing: Backing,
    layout: Layout,
}

/// Why guest memory could not be mapped.
#[derive(Debug, Error)]
pub enum MapError {
    /// The descriptor is no file with a size.
    #[error("cannot ask for the size of the guest memory file")]
    Size(#[source] Errno),
    /// The layout reaches past the end of the file: reading there would kill this process.
    #[error("the memory layout needs {needed:#x} bytes, the guest memory file has {len:#x}")]
    TooShort {
        /// What the layout needs.
        needed: u64,
        /// What there is.
        len: u64,
    },
    /// The file may shrink under the mapping, which would kill this process.
    #[error("the guest memory file is not sealed against shrinking: create it with F_SEAL_SHRINK")]
    Unsealed,
    /// The kernel refused the mapping.
    #[error("cannot map {len:#x} bytes of guest memory")]
    Map {
        /// How much was asked for.
        len: u64,
        /// Why it was refused.
        #[source]
        source: Errno,
    },
}

/// Why guest memory could not be read.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ReadError {
    /// Some of the bytes are not RAM.
    #[error("{len} bytes at guest-physical {gpa}: not guest RAM")]
    NotRam {
        /// First address that is not RAM.
        gpa: Gpa,
        /// How many bytes were left to read there.
        len: usize,
    },
    /// Some of the bytes were not copied while the guest stood.
    #[error("{len} bytes at guest-physical {gpa}: not copied while the guest stood")]
    NotKept {
        /// First address that is missing.
        gpa: Gpa,
        /// How many bytes were left to read there.
        len: usize,
    },
}

#[derive(Debug)]
enum Backing {
    Mapped(Mapping),
    Buffer(Box<[u64]>),
}

/// A shared mapping, unmapped on drop.
#[derive(Debug)]
struct Mapping {
    at: NonNull<u8>,
    len: NonZeroUsize,
}

// SAFETY: the mapping never moves; reads and writes of it are volatile and already assume that anyone
// may write the memory at any time, as the guest does.
unsafe impl Send for Mapping {}
// SAFETY: as for Send: shared use adds only further volatile accesses.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `at` and `len` are what mmap returned and was given, and no reference into the
        // mapping ever leaves this file.
        let unmapped = unsafe { munmap(self.at.cast(), self.len.get()) };
        debug_assert!(unmapped.is_ok(), "munmap of an own mapping: {unmapped:?}");
    }
}

fn check_seals(file: &impl AsFd) -> Result<(), MapError> {
    let seals = fcntl(file.as_fd(), FcntlArg::F_GET_SEALS).unwrap_or(0);
    match SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_SHRINK) {
        true => Ok(()),
        false => Err(MapError::Unsealed),
    }
}

impl GuestMem {
    /// Maps a guest memory file that its creator sealed against shrinking, read-only and shared.
    pub fn map_sealed(file: impl AsFd, layout: Layout) -> Result<Self, MapError> {
        check_seals(&file)?;
        Self::map(file, layout)
    }

    /// Maps a guest memory file read-only and shared.
    ///
    /// A file that shrinks later ends this process with SIGBUS on the next read of the lost part;
    /// where the file comes from another process use [`GuestMem::map_sealed`].
    pub fn map(file: impl AsFd, layout: Layout) -> Result<Self, MapError> {
        Self::map_with(file, layout, ProtFlags::PROT_READ)
    }

    fn map_with(file: impl AsFd, layout: Layout, access: ProtFlags) -> Result<Self, MapError> {
        let needed = layout.file_len();
        // Not fstat: glibc makes a path look-up of it, which the jail refuses.
        let len = lseek(file.as_fd(), 0, Whence::SeekEnd).map_err(MapError::Size)?;
        let len = u64::try_from(len).unwrap_or(0);
        if len < needed {
            return Err(MapError::TooShort { needed, len });
        }
        let map_error = |source| MapError::Map { len: needed, source };
        let size =
            usize::try_from(needed).ok().and_then(NonZeroUsize::new).ok_or(map_error(Errno::EOVERFLOW))?;
        // SAFETY: a fresh mapping at an address the kernel chooses aliases nothing of ours.
        let at = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, file, 0) }.map_err(map_error)?;
        Ok(Self { backing: Backing::Mapped(Mapping { at: at.cast(), len: size }), layout })
    }

    /// Guest memory made of a copy of `bytes`, padded with zeros to what `layout` needs.
    pub fn from_bytes(bytes: &[u8], layout: Layout) -> Result<Self, MapError> {
        let needed = layout.file_len();
        let size =
            usize::try_from(needed).map_err(|_| MapError::Map { len: needed, source: Errno::EOVERFLOW })?;
        let mut words = vec![0u64; size.div_ceil(8)].into_boxed_slice();
        for (word, chunk) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_ne_bytes(padded);
        }
        Ok(Self { backing: Backing::Buffer(words), layout })
    }

    /// Which addresses are RAM.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Copies `into.len()` bytes from `gpa` on. On error `into` holds the bytes before the hole.
    pub fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), ReadError> {
        let mut done = 0;
        while done < into.len() {
            let left = into.len() - done;
            let here = gpa.checked_add(done as u64);
            let run = here
                .and_then(|here| self.layout.run_at(here, left as u64))
                .ok_or(ReadError::NotRam { gpa: here.unwrap_or(gpa), len: left })?;
            // A run is no longer than `left`, and the backing's length was checked when it was made.
            let len = run.len as usize;
            self.copy_out(run.offset as usize, &mut into[done..done + len]);
            done += len;
        }
        Ok(())
    }

    /// Reads a little-endian `u64`; not torn when `gpa` is 8-byte aligned.
    pub fn read_u64(&self, gpa: Gpa) -> Result<u64, ReadError> {
        let mut bytes = [0; 8];
        self.read(gpa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        let (base, len) = match &self.backing {
            Backing::Mapped(mapping) => (mapping.at.as_ptr().cast_const(), mapping.len.get()),
            Backing::Buffer(words) => (words.as_ptr().cast::<u8>(), words.len() * 8),
        };
        assert!(
            offset <= len && into.len() <= len - offset,
            "a read the layout allows is inside the backing"
        );
        let mut done = 0;
        // Most of what is read is aligned: words one after another.
        // SAFETY: the assertion above keeps `offset` inside the backing.
        let start = unsafe { base.add(offset) };
        if start.addr() % 8 == 0 {
            let words = into.chunks_exact_mut(8);
            for (nth, word) in words.enumerate() {
                // SAFETY: aligned, and as many words as `into` has room for are inside the backing.
                let value = unsafe { start.cast::<u64>().add(nth).read_volatile() };
                word.copy_from_slice(&value.to_ne_bytes());
            }
            done = into.len() / 8 * 8;
        }
        while done < into.len() {
            let left = &mut into[done..];
            // SAFETY: the assertion above keeps `offset + done` inside the backing, and every
            // load below is no longer than what is left of `into`.
            let from = unsafe { base.add(offset + done) };
            // SAFETY: the address is a multiple of the width, and the width fits what is left.
            done += unsafe {
                match from.addr() {
                    a if a % 8 == 0 && left.len() >= 8 => load::<u64, 8>(from, left, u64::to_ne_bytes),
                    a if a % 4 == 0 && left.len() >= 4 => load::<u32, 4>(from, left, u32::to_ne_bytes),
                    a if a % 2 == 0 && left.len() >= 2 => load::<u16, 2>(from, left, u16::to_ne_bytes),
                    _ => load::<u8, 1>(from, left, u8::to_ne_bytes),
                }
            };
        }
    }
}

/// Guest RAM that may also be written. Only a read-write attach makes one.
#[derive(Debug)]
pub struct GuestMemMut {
    mem: GuestMem,
}

impl GuestMemMut {
    /// Maps a guest memory file that its creator sealed against shrinking, shared and writable.
    pub fn map_sealed(file: impl AsFd, layout: Layout) -> Result<Self, MapError> {
        check_seals(&file)?;
        Self::map(file, layout)
    }

    /// As [`GuestMem::map`], writable.
    pub fn map(file: impl AsFd, layout: Layout) -> Result<Self, MapError> {
        let mem = GuestMem::map_with(file, layout, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        Ok(Self { mem })
    }

    /// For reading.
    pub fn read(&self) -> &GuestMem {
        &self.mem
    }

    /// Stores `bytes` from `gpa` on; nothing is written unless all of it is RAM. An aligned scalar of
    /// up to 8 bytes is stored in one piece.
    pub fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), ReadError> {
        let not_ram = ReadError::NotRam { gpa, len: bytes.len() };
        let run = self.mem.layout.run_at(gpa, bytes.len() as u64).ok_or(not_ram)?;
        if run.len != bytes.len() as u64 {
            return Err(not_ram);
        }
        let Backing::Mapped(mapping) = &self.mem.backing else { return Err(not_ram) };
        let offset = run.offset as usize;
        assert!(
            offset <= mapping.len.get() && bytes.len() <= mapping.len.get() - offset,
            "a write the layout allows is inside the mapping"
        );
        let mut done = 0;
        while done < bytes.len() {
            let left = &bytes[done..];
            // SAFETY: the assertion above keeps `offset + done` inside the mapping, which was made
            // writable; every store below is no longer than what is left of `bytes`.
            let to = unsafe { mapping.at.as_ptr().add(offset + done) };
            // SAFETY: the address is a multiple of the width, and the width fits what is left.
            done += unsafe {
                match to.addr() {
                    a if a % 8 == 0 && left.len() >= 8 => store::<u64, 8>(to, left, u64::from_ne_bytes),
                    a if a % 4 == 0 && left.len() >= 4 => store::<u32, 4>(to, left, u32::from_ne_bytes),
                    a if a % 2 == 0 && left.len() >= 2 => store::<u16, 2>(to, left, u16::from_ne_bytes),
                    _ => store::<u8, 1>(to, left, u8::from_ne_bytes),
                }
            };
        }
        Ok(())
    }
}

/// Copies one `T` of `N` bytes from the front of `from` to `to`.
///
/// # Safety
/// `to` must be valid for a write of `T` and aligned for it; `from` must have `N` bytes.
unsafe fn store<T: Copy, const N: usize>(to: *mut u8, from: &[u8], value: fn([u8; N]) -> T) -> usize {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&from[..N]);
    // SAFETY: what this function requires.
    unsafe { to.cast::<T>().write_volatile(value(bytes)) };
    N
}

/// Copies one `T` of `N` bytes from `from` to the front of `into`.
///
/// # Safety
/// `from` must be valid for a read of `T` and aligned for it.
unsafe fn load<T: Copy, const N: usize>(from: *const u8, into: &mut [u8], bytes: fn(T) -> [u8; N]) -> usize {
    // SAFETY: what this function requires.
    let value = unsafe { from.cast::<T>().read_volatile() };
    into[..N].copy_from_slice(&bytes(value));
    N
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use proptest::prelude::*;

    use super::*;
    use crate::mem::Region;

    fn memfd(bytes: &[u8]) -> File {
        let fd = memfd_create("guest", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let mut file = File::from(fd);
        file.write_all(bytes).unwrap();
        file
    }

    fn split_layout() -> Layout {
        Layout::new(vec![
            Region { start: Gpa(0), len: 0x1000, offset: 0x1000 },
            Region { start: Gpa(0x1000), len: 0x800, offset: 0 },
            Region { start: Gpa(0x4000), len: 0x800, offset: 0x800 },
        ])
        .unwrap()
    }

    #[test]
    fn wants_a_file_that_is_long_enough_and_sealed() {
        let file = memfd(&[0; 4096]);
        let layout = Layout::flat(8192).unwrap();
        assert!(matches!(GuestMem::map(&file, layout), Err(MapError::TooShort { needed: 8192, len: 4096 })));
        let layout = Layout::flat(4096).unwrap();
        assert!(matches!(GuestMem::map_sealed(&file, layout.clone()), Err(MapError::Unsealed)));
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        GuestMem::map_sealed(&file, layout).unwrap();
    }

    #[test]
    fn sees_what_is_written_after_mapping() {
        use std::os::unix::fs::FileExt;
        let file = memfd(&[0; 4096]);
        let mem = GuestMem::map(&file, Layout::flat(4096).unwrap()).unwrap();
        assert_eq!(mem.read_u64(Gpa(16)), Ok(0));
        file.write_all_at(&7u64.to_le_bytes(), 16).unwrap();
        assert_eq!(mem.read_u64(Gpa(16)), Ok(7));
    }

    #[test]
    fn stops_at_a_hole_and_says_where() {
        let mem = GuestMem::from_bytes(&[1; 0x2000], split_layout()).unwrap();
        let mut into = [0; 16];
        assert_eq!(mem.read(Gpa(0x17f8), &mut into), Err(ReadError::NotRam { gpa: Gpa(0x1800), len: 8 }));
        assert_eq!(into[..8], [1; 8]);
        assert_eq!(mem.read_u64(Gpa(u64::MAX)), Err(ReadError::NotRam { gpa: Gpa(u64::MAX), len: 8 }));
    }

    proptest! {
        #[test]
        fn reads_equal_the_bytes(start in 0u64..0x5000, len in 0usize..0x1000) {
            let bytes: Vec<u8> = (0..0x2000u32).map(|i| (i * 7 + i / 256) as u8).collect();
            let layout = split_layout();
            let model = |gpa: u64| layout.regions().iter()
                .find(|r| (r.start.0..r.start.0 + r.len).contains(&gpa))
                .map(|r| bytes[(r.offset + gpa - r.start.0) as usize]);
            let expected: Option<Vec<u8>> = (start..start + len as u64).map(model).collect();
            let file = memfd(&bytes);
            for mem in [
                GuestMem::from_bytes(&bytes, layout.clone()).unwrap(),
                GuestMem::map(&file, layout.clone()).unwrap(),
            ] {
                let mut into = vec![0; len];
                let read = mem.read(Gpa(start), &mut into);
                prop_assert_eq!(read.is_ok(), expected.is_some());
                if let Some(expected) = &expected {
                    prop_assert_eq!(&into, expected);
                }
            }
        }
    }
}

//! A kernel at another address than the one it was linked at (KASLR).
//!
//! On a PC the kernel's decompressor chooses the address and relocates what it unpacked. A machine is
//! started without it, so this does the same to the unpacked image: what the kernel's build appends to it
//! says which words hold addresses (arch/x86/tools/relocs.c; handle_relocations() in
//! arch/x86/boot/compressed/misc.c). Virtual and physical address move by the same distance, so the kernel's
//! early page tables hold as they were built.
//!
//! Only the image moves. Where the direct map, vmalloc and vmemmap begin is chosen by the kernel, and not
//! at random when it is started by PVH.

use std::{
    fs::{self, File},
    io::{Seek, Write},
    os::fd::OwnedFd,
    path::Path,
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use object::{
    Endianness,
    elf::{FileHeader64, NoteType, PT_LOAD, PT_NOTE},
    read::elf::{FileHeader, ProgramHeader},
};

use super::PlanError;
use crate::store::digest;

/// The granule of the kernel's own mapping (CONFIG_PHYSICAL_ALIGN on x86_64).
const STEP: u64 = 2 << 20;
/// Places it may lie at beside its own.
const PLACES: u8 = 31;
/// As far as it is moved at most: that much more memory is below the ring.
pub(super) const FARTHEST: u64 = STEP * PLACES as u64;

/// Xen's notes: the physical address of the PVH entry, and that it may be another (XEN_ELFNOTE_PHYS32_ENTRY,
/// XEN_ELFNOTE_PHYS32_RELOC; include/xen/interface/elfnote.h).
const PHYS32_ENTRY: NoteType = NoteType(18);
const PHYS32_RELOC: NoteType = NoteType(19);

/// Bytes by which a kernel is moved, the same for the same `chance`.
pub(super) fn distance(chance: &[&str]) -> u64 {
    let digest = digest::of_parts(chance.iter().map(|part| part.as_bytes()));
    let number = u64::from_str_radix(&digest[..8], 16).unwrap_or_default();
    STEP * (1 + number % u64::from(PLACES))
}

/// The image of `vmlinux`, moved by `distance` bytes. `None` if it cannot be moved: it has no relocations, or does
/// not say that its entry may lie elsewhere (before 6.12).
pub(super) fn moved_file(vmlinux: &Path, distance: u64) -> Result<Option<OwnedFd>, PlanError> {
    let file = |source| PlanError::File { action: "move", path: vmlinux.into(), source };
    let mut image = fs::read(vmlinux).map_err(file)?;
    if relocate(&mut image, distance).is_none() {
        return Ok(None);
    }
    let made = memfd_create(c"kernel", MFdFlags::MFD_CLOEXEC).map_err(|errno| file(errno.into()))?;
    let mut made = File::from(made);
    made.write_all(&image).and_then(|()| made.rewind()).map_err(file)?;
    Ok(Some(made.into()))
}

/// Where in the file addresses lie that have to be changed.
struct Parts {
    /// Those of four bytes.
    narrow: Vec<usize>,
    /// Those of eight bytes, of the headers and the PVH entry, too.
    wide: Vec<usize>,
}

impl Parts {
    fn of(image: &[u8]) -> Option<Self> {
        let header = FileHeader64::<Endianness>::parse(image).ok()?;
        let endian = header.endian().ok()?;
        let segments = header.program_headers(endian, image).ok()?;
        let (table, size) = (header.e_phoff(endian), u64::from(header.e_phentsize(endian)));
        // e_entry; of each segment p_vaddr and p_paddr.
        let mut headers = vec![24];
        let mut loaded = Vec::new();
        let mut end = header
            .e_shoff(endian)
            .checked_add(u64::from(header.e_shentsize(endian)).checked_mul(header.e_shnum(endian).into())?)?;
        let (mut entry, mut may_move) = (None, false);
        for (number, segment) in (0u64..).zip(segments) {
            let at = usize::try_from(table.checked_add(number.checked_mul(size)?)?).ok()?;
            headers.extend([at + 16, at + 24]);
            let (start, length) = segment.file_range(endian);
            end = end.max(start.checked_add(length)?);
            match segment.p_type(endian) {
                PT_LOAD => loaded.push((segment.p_vaddr(endian), length, start)),
                PT_NOTE => {
                    let mut notes = segment.notes(endian, image).ok()??;
                    while let Some(note) = notes.next().ok()? {
                        let kind = (note.name() == b"Xen").then(|| note.n_type(endian));
                        may_move |= kind == Some(PHYS32_RELOC);
                        if kind == Some(PHYS32_ENTRY) && note.desc().len() == 8 {
                            // The description is a part of the image.
                            entry = (note.desc().as_ptr() as usize).checked_sub(image.as_ptr() as usize);
                        }
                    }
                }
                _ => {}
            }
        }
        let place = |address: u64, width: u64| {
            let inside = |(start, length, _): &&(u64, u64, u64)| {
                address.checked_sub(*start).is_some_and(|at| at.saturating_add(width) <= *length)
            };
            let (start, _, offset) = loaded.iter().find(inside)?;
            usize::try_from(address - start + offset).ok()
        };
        // From the end: addresses of four bytes, a zero, addresses of eight, a zero. Each is said in four.
        let tail = image.get(usize::try_from(end).ok()?..)?;
        let mut words =
            tail.rchunks_exact(4).map(|word| i32::from_le_bytes(word.try_into().unwrap_or_default()));
        let mut list = |width: u64| {
            let mut places = Vec::new();
            loop {
                match words.next()? {
                    0 => return Some(places),
                    // Sign-extended: the image lies in the last 2 GiB.
                    word => places.push(place(i64::from(word) as u64, width)?),
                }
            }
        };
        let (narrow, mut wide) = (list(4)?, list(8)?);
        wide.extend(headers);
        wide.push(entry?);
        // Kernels before 6.15 have a third list, of addresses relative to per-CPU data.
        let complete = words.next().is_none() && !narrow.is_empty();
        (complete && may_move).then_some(Self { narrow, wide })
    }
}

fn relocate(image: &mut [u8], distance: u64) -> Option<()> {
    let parts = Parts::of(image)?;
    for at in parts.narrow {
        let word = image.get_mut(at..at + 4)?;
        let value = u32::from_le_bytes(word.try_into().ok()?).wrapping_add(distance as u32);
        word.copy_from_slice(&value.to_le_bytes());
    }
    for at in parts.wide {
        let word = image.get_mut(at..at + 8)?;
        let value = u64::from_le_bytes(word.try_into().ok()?).wrapping_add(distance);
        word.copy_from_slice(&value.to_le_bytes());
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKED: u64 = 0xffff_ffff_8100_0000;
    const PHYSICAL: u64 = 0x100_0000;
    const ENTRY: u64 = 0x100_0040;
    /// The loaded bytes, after file header and two segment headers.
    const AT: usize = 0x100;
    const LENGTH: usize = 0x80;

    /// A file of one loaded segment, whose first eight bytes and whose four bytes at 0x10 hold an address, and
    /// whose notes lie at 0x20. `words` come after it.
    fn image(notes: &[(NoteType, &[u8])], words: &[i32]) -> Vec<u8> {
        let mut image = vec![0; AT + LENGTH];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        put(16, &[2, 0, 62, 0, 1]);
        put(24, &LINKED.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        // No sections; the file's header, two segments' headers.
        put(52, &[64, 0, 56, 0, 2, 0, 64]);
        for (at, kind, offset, length) in [(64, 1u32, AT, LENGTH), (120, 4, AT + 0x20, 24 * notes.len())] {
            put(at, &kind.to_le_bytes());
            let inside = (offset - AT) as u64;
            let fields = [offset as u64, LINKED + inside, PHYSICAL + inside, length as u64, length as u64, 4];
            fields.iter().enumerate().for_each(|(n, field)| put(at + 8 + n * 8, &field.to_le_bytes()));
        }
        put(AT, &(LINKED + 0x1234).to_le_bytes());
        put(AT + 0x10, &(LINKED as u32 + 0x10).to_le_bytes());
        for (n, (kind, description)) in notes.iter().enumerate() {
            let at = AT + 0x20 + 24 * n;
            put(at, &4u32.to_le_bytes());
            put(at + 4, &8u32.to_le_bytes());
            put(at + 8, &kind.0.to_le_bytes());
            put(at + 12, b"Xen\0");
            put(at + 16, description);
        }
        image.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        image
    }

    fn notes() -> [(NoteType, &'static [u8]); 2] {
        const AS_BYTES: [u8; 8] = ENTRY.to_le_bytes();
        [(PHYS32_RELOC, &[0; 8]), (PHYS32_ENTRY, &AS_BYTES)]
    }

    const WORDS: [i32; 4] = [0, LINKED as i32, 0, LINKED as i32 + 0x10];

    fn wide(image: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(image[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn all_addresses_move_together() {
        let mut moved = image(&notes(), &WORDS);
        let before = moved.clone();
        relocate(&mut moved, STEP).expect("it has all that it takes");
        let entry = AT + 0x20 + 24 + 16;
        for at in [24, 64 + 16, 64 + 24, 120 + 16, 120 + 24, AT, entry] {
            assert_eq!(wide(&moved, at), wide(&before, at) + STEP, "at {at:#x}");
        }
        assert_eq!(
            wide(&moved, AT + 0x10),
            wide(&before, AT + 0x10) + STEP,
            "four bytes, nothing carried over"
        );
        let mut rest = moved.clone();
        for at in [24, 64 + 16, 64 + 24, 120 + 16, 120 + 24, AT, entry, AT + 0x10] {
            rest[at..at + 8].copy_from_slice(&before[at..at + 8]);
        }
        assert_eq!(rest, before, "nothing else");
    }

    #[test]
    fn what_cannot_be_moved_is_left_alone() {
        let [movable, entry] = notes();
        let outside = [0, LINKED as i32 + LENGTH as i32 - 4, 0, LINKED as i32];
        for (why, mut image) in [
            ("no file of the kind", b"MZ".to_vec()),
            ("nothing appended", image(&notes(), &[])),
            ("no end of the second list", image(&notes(), &WORDS[1..])),
            ("a third list", image(&notes(), &[0, LINKED as i32, 0, LINKED as i32, 0, LINKED as i32])),
            ("an address that is not loaded", image(&notes(), &outside)),
            ("no word of another place", image(&[entry], &WORDS)),
            ("no entry", image(&[movable], &WORDS)),
        ] {
            let before = image.clone();
            assert_eq!(relocate(&mut image, STEP), None, "{why}");
            assert_eq!(image, before, "{why}");
        }
    }

    #[test]
    fn every_place_is_taken_by_some_seed_and_none_is_where_it_was_linked() {
        let places: std::collections::BTreeSet<u64> =
            (0..1000).map(|seed| distance(&[&seed.to_string(), "kernel"])).collect();
        assert_eq!(places, (1..=u64::from(PLACES)).map(|n| n * STEP).collect());
    }
}

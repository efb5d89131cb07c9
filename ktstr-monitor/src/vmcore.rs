//! Guest memory as an ELF core file, as crash tools read it, and back.
//!
//! The file holds the `VMCOREINFO` note that the kernel keeps in its memory, notes about its CPUs that
//! somebody else has made ([`crate::stood`]), and one segment for each piece of RAM, with its physical
//! address and its place in the direct map. Pages of zeros are left as holes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use object::elf::{EM_X86_64, ET_CORE, PT_LOAD, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf::FileHeader64};
use thiserror::Error;

use crate::addr::{Gpa, Kva};
use crate::kernel::{Gap, View};
use crate::mem::{GuestMem, Layout, LayoutError, ReadError, Region};

const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const PAGE: u64 = 4096;
const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
/// Memory copied at a time.
const PIECE: usize = 1 << 20;
/// `VMCOREINFO_BYTES` is one page; a note of more is damage.
const MAX_NOTE: u32 = 1 << 16;
/// Program headers of a core file that is read: regions are few.
const MAX_HEADERS: usize = 1 << 20;

/// Why no core file could be written or read.
#[derive(Debug, Error)]
pub enum VmcoreError {
    /// The kernel's note is not there.
    #[error("the kernel's VMCOREINFO note cannot be read")]
    Note(#[from] Gap),
    /// The note is no note.
    #[error("the kernel's VMCOREINFO note is damaged: {what}")]
    BadNote {
        /// What is wrong with it.
        what: &'static str,
    },
    /// Memory within the layout cannot be read.
    #[error("cannot read guest memory")]
    Memory(#[from] ReadError),
    /// The file cannot be written or read.
    #[error("{action} the core file")]
    File {
        /// What was done.
        action: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It is no core file.
    #[error("this is no ELF core file of a 64-bit machine")]
    Elf(#[source] object::Error),
    /// Its segments are no memory.
    #[error("the segments of the core file are no memory layout")]
    Layout(#[from] LayoutError),
}

fn file(action: &'static str) -> impl FnOnce(std::io::Error) -> VmcoreError {
    move |source| VmcoreError::File { action, source }
}

/// The note as the kernel keeps it, ready to be part of a core file.
pub fn note(view: &View<'_, '_>) -> Result<Vec<u8>, VmcoreError> {
    let at = Kva(view.word("vmcoreinfo_note")?);
    let unreadable = |source| Gap::Unreadable { what: "vmcoreinfo_note", source };
    let mut header = [0; 12];
    view.mem.read(at, &mut header).map_err(unreadable)?;
    let word = |nth: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[nth * 4 + byte]));
    let (name, description) = (word(0), word(1));
    if name != 11 {
        return Err(VmcoreError::BadNote { what: "its name has another length" });
    }
    if description == 0 || description > MAX_NOTE {
        return Err(VmcoreError::BadNote { what: "its length cannot be right" });
    }
    let len = 12 + 12 + description.next_multiple_of(4);
    let mut note = vec![0; len as usize];
    view.mem.read(at, &mut note).map_err(unreadable)?;
    if &note[12..22] != b"VMCOREINFO" {
        return Err(VmcoreError::BadNote { what: "it has another name" });
    }
    Ok(note)
}

/// Writes all of guest memory to `out`, with the notes `about_cpus`; returns how many bytes are not holes.
pub fn write(
    view: &View<'_, '_>,
    mem: &GuestMem,
    about_cpus: &[u8],
    out: &mut File,
) -> Result<u64, VmcoreError> {
    // CPUs first, as in the kernel's own dumps.
    let note = [about_cpus, &note(view)?].concat();
    let regions = mem.layout().regions();
    let headers = HEADER + PROGRAM_HEADER * (regions.len() as u64 + 1);
    let mut at = (headers + note.len() as u64).next_multiple_of(PAGE);
    let mut head = file_header(regions.len() as u16 + 1);
    head.extend(program_header(PT_NOTE.0, headers, 0, 0, note.len() as u64, 0));
    let mut places = Vec::new();
    for region in regions {
        let kva = view.live.page_offset().wrapping_add(region.start.0);
        // No alignment, as the kernel says of its own dumps: by that `crash` tells them from older ones.
        head.extend(program_header(PT_LOAD.0, at, kva.0, region.start.0, region.len, 0));
        places.push(at);
        at = (at + region.len).next_multiple_of(PAGE);
    }
    head.extend(note);
    out.write_all(&head).map_err(file("write"))?;
    let mut written = head.len() as u64;
    for (region, place) in regions.iter().zip(places) {
        written += write_region(mem, region, place, out)?;
    }
    // The last byte gives the file its length, whatever of its end is a hole. It may be one of memory, and
    // the jail has no other way to make a file longer.
    let mut last = [0];
    if let Some(region) = regions.last().filter(|region| region.len.is_multiple_of(PAGE) && region.len > 0) {
        mem.read(Gpa(region.start.0 + region.len - 1), &mut last)?;
    }
    out.seek(SeekFrom::Start(at - 1)).map_err(file("extend"))?;
    out.write_all(&last).map_err(file("extend"))?;
    Ok(written)
}

fn write_region(mem: &GuestMem, region: &Region, place: u64, out: &mut File) -> Result<u64, VmcoreError> {
    let mut piece = vec![0; PIECE];
    let mut written = 0;
    let mut done = 0;
    while done < region.len {
        let len = (PIECE as u64).min(region.len - done) as usize;
        let here = Gpa(region.start.0 + done);
        mem.read(here, &mut piece[..len])?;
        let mut from = 0;
        while from < len {
            let is_zero = |at: usize| {
                let page = &piece[at..len.min(at + PAGE as usize)];
                *page == ZEROS[..page.len()]
            };
            let zero = is_zero(from);
            let mut to = from;
            while to < len && is_zero(to) == zero {
                to = len.min(to + PAGE as usize);
            }
            if !zero {
                out.seek(SeekFrom::Start(place + done + from as u64)).map_err(file("seek in"))?;
                out.write_all(&piece[from..to]).map_err(file("write"))?;
                written += (to - from) as u64;
            }
            from = to;
        }
        done += len as u64;
    }
    Ok(written)
}

fn file_header(program_headers: u16) -> Vec<u8> {
    // Class 64, little-endian, version 1, System V.
    let mut header = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header.extend(ET_CORE.0.to_le_bytes());
    header.extend(EM_X86_64.0.to_le_bytes());
    header.extend(1u32.to_le_bytes());
    for word in [0, HEADER, 0] {
        header.extend(word.to_le_bytes());
    }
    header.extend(0u32.to_le_bytes());
    for half in [HEADER as u16, PROGRAM_HEADER as u16, program_headers, 0, 0, 0] {
        header.extend(half.to_le_bytes());
    }
    header
}

fn program_header(kind: u32, offset: u64, kva: u64, gpa: u64, len: u64, align: u64) -> Vec<u8> {
    // Readable, writable, executable: memory has no such distinction.
    let mut header = [kind, 7].map(u32::to_le_bytes).concat();
    for word in [offset, kva, gpa, len, len, align] {
        header.extend(word.to_le_bytes());
    }
    header
}

/// Opens a core file as guest memory; its segments are found by their physical addresses.
pub fn open(core: &mut File) -> Result<Layout, VmcoreError> {
    // Headers come first; segments are mapped, not read.
    let mut head = Vec::new();
    core.seek(SeekFrom::Start(0)).map_err(file("read"))?;
    core.take(PIECE as u64).read_to_end(&mut head).map_err(file("read"))?;
    let header = FileHeader64::<Endianness>::parse(&*head).map_err(VmcoreError::Elf)?;
    let endian = header.endian().map_err(VmcoreError::Elf)?;
    let headers = header.program_headers(endian, &*head).map_err(VmcoreError::Elf)?;
    let loads = headers.iter().take(MAX_HEADERS).filter(|h| h.p_type(endian) == PT_LOAD);
    let regions = loads.filter(|h| h.p_filesz(endian) > 0).map(|h| Region {
        start: Gpa(h.p_paddr(endian)),
        len: h.p_filesz(endian),
        offset: h.p_offset(endian),
    });
    Ok(Layout::new(regions.collect())?)
}

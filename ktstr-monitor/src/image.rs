//! The kernel file: an uncompressed `vmlinux` ELF, read once into memory.
//!
//! It is semi-trusted (somebody chose to boot it), so every offset in it is checked, but a wrong
//! answer from it can only make readings wrong, never memory unsafe. A compressed `vmlinuz` is
//! refused: whoever starts the monitor unpacks it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use object::elf::{PF_X, PT_LOAD};
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol};
use thiserror::Error;

use crate::addr::{Gpa, Kva};

/// No kernel file is larger than this, even with debug information.
const MAX_LEN: u64 = 4 << 30;

/// Why a file is no usable kernel file.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The file could not be read.
    #[error("cannot read the kernel file")]
    Read(#[source] std::io::Error),
    /// The file is larger than any kernel.
    #[error("the kernel file has {len} bytes, more than the {MAX_LEN} a kernel may have")]
    TooLarge {
        /// Its length.
        len: u64,
    },
    /// Not a 64-bit ELF file, or a damaged one.
    #[error("the kernel file is no 64-bit ELF: an uncompressed vmlinux is needed")]
    Elf(#[source] object::Error),
    /// Not for an architecture that the page walk knows.
    #[error("the kernel file is for {machine}, the monitor reads x86_64 only")]
    Machine {
        /// The ELF machine's name.
        machine: String,
    },
    /// Nothing of it is ever loaded.
    #[error("the kernel file has no loadable segment")]
    NoSegment,
}

/// A loadable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it is linked.
    pub start: Kva,
    /// Where it is loaded when nothing is randomised.
    pub load: Gpa,
    /// Length in memory.
    pub len: u64,
    /// Where its bytes are in the file.
    pub offset: u64,
    /// How many of its bytes are in the file.
    pub file_len: u64,
    /// Whether it holds code.
    pub executable: bool,
}

/// A kernel file's bytes with its load segments.
#[derive(Debug)]
pub struct KernelImage {
    bytes: Vec<u8>,
    segments: Vec<Segment>,
}

impl KernelImage {
    /// Reads the whole file from its beginning.
    pub fn read(mut file: File) -> Result<Self, ImageError> {
        let len = file.seek(SeekFrom::End(0)).map_err(ImageError::Read)?;
        if len > MAX_LEN {
            return Err(ImageError::TooLarge { len });
        }
        file.seek(SeekFrom::Start(0)).map_err(ImageError::Read)?;
        let mut bytes = Vec::with_capacity(len as usize);
        file.take(MAX_LEN).read_to_end(&mut bytes).map_err(ImageError::Read)?;
        Self::parse(bytes)
    }

    /// Checks that `bytes` are a vmlinux and finds its segments.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, ImageError> {
        let elf = ElfFile64::<Endianness>::parse(&*bytes).map_err(ImageError::Elf)?;
        if elf.architecture() != object::Architecture::X86_64 {
            return Err(ImageError::Machine { machine: format!("{:?}", elf.architecture()) });
        }
        let endian = elf.endian();
        let segments: Vec<_> = elf
            .elf_program_headers()
            .iter()
            .filter(|header| header.p_type(endian) == PT_LOAD)
            .map(|header| Segment {
                start: Kva(header.p_vaddr(endian)),
                load: Gpa(header.p_paddr(endian)),
                len: header.p_memsz(endian),
                offset: header.p_offset(endian),
                file_len: header.p_filesz(endian),
                executable: header.p_flags(endian).0 & PF_X.0 != 0,
            })
            .collect();
        if segments.is_empty() {
            return Err(ImageError::NoSegment);
        }
        Ok(Self { bytes, segments })
    }

    /// The loadable segments in file order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The contents of the section `name`; `None` when there is none or it lies outside the file.
    pub fn section(&self, name: &str) -> Option<&[u8]> {
        let elf = ElfFile64::<Endianness>::parse(&*self.bytes).ok()?;
        elf.section_by_name(name)?.data().ok()
    }

    /// The ELF symbol table as (name, address) pairs; empty in a stripped file.
    pub fn symtab(&self) -> Vec<(String, Kva)> {
        let Ok(elf) = ElfFile64::<Endianness>::parse(&*self.bytes) else { return Vec::new() };
        elf.symbols()
            .filter(|symbol| symbol.is_definition() || symbol.kind() == object::SymbolKind::Unknown)
            .filter_map(|symbol| Some((symbol.name().ok()?.to_owned(), Kva(symbol.address()))))
            .filter(|(name, _)| !name.is_empty())
            .collect()
    }

    /// The link address of the file's byte `offset`.
    pub fn kva_of_offset(&self, offset: u64) -> Option<Kva> {
        let segment = self
            .segments
            .iter()
            .find(|s| offset.checked_sub(s.offset).is_some_and(|into| into < s.file_len))?;
        segment.start.checked_add(offset - segment.offset)
    }

    /// The bytes of the file that are loaded at the link address `kva`, at most `len` of them.
    pub fn at_kva(&self, kva: Kva, len: usize) -> Option<&[u8]> {
        let segment = self
            .segments
            .iter()
            .find(|s| kva.0.checked_sub(s.start.0).is_some_and(|into| into < s.file_len))?;
        let into = kva.0 - segment.start.0;
        let start = usize::try_from(segment.offset.checked_add(into)?).ok()?;
        let left = usize::try_from(segment.file_len - into).ok()?;
        let end = start.checked_add(left.min(len))?.min(self.bytes.len());
        self.bytes.get(start..end)
    }

    /// Where the link address `kva` is loaded when nothing is randomised.
    pub fn load_address(&self, kva: Kva) -> Option<Gpa> {
        let segment =
            self.segments.iter().find(|s| kva.0.checked_sub(s.start.0).is_some_and(|into| into < s.len))?;
        segment.load.checked_add(kva.0 - segment.start.0)
    }
}

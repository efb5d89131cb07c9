//! Kernel symbols by name, as linked (before KASLR).
//!
//! Distribution kernels are stripped, but every kernel carries its own symbol table for the sake of
//! `/proc/kallsyms`: [`kallsyms`] finds and decodes it. A vmlinux with an ELF symbol table is used as
//! it is. Addresses are link-time addresses; [`crate::kernel`] knows the shift of the running one.

pub mod kallsyms;

use thiserror::Error;

pub use kallsyms::KallsymsError;

use crate::addr::Kva;
use crate::image::KernelImage;

/// Why no symbols could be had.
#[derive(Debug, Error)]
pub enum SymbolError {
    /// Neither an ELF symbol table nor a kallsyms table.
    #[error("the kernel file has no ELF symbol table, and its kallsyms table cannot be decoded")]
    NoTable(#[source] KallsymsError),
    /// The table is there, the symbol is not.
    #[error("the kernel has no symbol `{name}`")]
    Missing {
        /// The symbol asked for.
        name: &'static str,
    },
}

/// Where the symbols came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymbolSource {
    /// The ELF symbol table.
    Symtab,
    /// The kallsyms table in the image.
    Kallsyms(kallsyms::Encoding),
}

/// Symbol names with their link addresses.
#[derive(Debug)]
pub struct Symbols {
    names: String,
    /// Sorted by name, then by position in the table.
    entries: Vec<Entry>,
    /// Positions in `entries`, sorted by address.
    by_address: Vec<u32>,
    source: SymbolSource,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: u32,
    len: u32,
    at: Kva,
}

impl Symbols {
    /// Takes the ELF symbol table where there is one, else the kallsyms table.
    pub fn of(image: &KernelImage) -> Result<Self, SymbolError> {
        let symtab = image.symtab();
        if !symtab.is_empty() {
            let pairs = symtab.iter().map(|(name, at)| (name.as_str(), *at));
            return Ok(Self::from_pairs(pairs, SymbolSource::Symtab));
        }
        kallsyms::decode(image).map_err(SymbolError::NoTable)
    }

    /// Builds a table from names and addresses.
    pub fn from_pairs<'a>(pairs: impl Iterator<Item = (&'a str, Kva)>, source: SymbolSource) -> Self {
        let mut names = String::new();
        let mut entries = Vec::new();
        for (name, at) in pairs {
            entries.push(Entry { name: names.len() as u32, len: name.len() as u32, at });
            names.push_str(name);
        }
        let text = |e: &Entry| &names[e.name as usize..][..e.len as usize];
        entries.sort_by(|a, b| text(a).cmp(text(b)));
        let mut by_address: Vec<u32> = (0..entries.len() as u32).collect();
        by_address.sort_by_key(|&nth| entries[nth as usize].at);
        Self { names, entries, by_address, source }
    }

    /// Where the table came from.
    pub fn source(&self) -> SymbolSource {
        self.source
    }

    /// How many symbols there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The link address of `name`, the first one where several symbols share it.
    pub fn get(&self, name: &str) -> Option<Kva> {
        let at = self.entries.partition_point(|e| self.text(e) < name);
        self.entries.get(at).filter(|e| self.text(e) == name).map(|e| e.at)
    }

    /// All names with their link addresses, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Kva)> {
        self.entries.iter().map(|entry| (self.text(entry), entry.at))
    }

    /// The name of the symbol at exactly that link address, the first in the alphabet where several
    /// share it.
    pub fn name_at(&self, link: Kva) -> Option<&str> {
        self.entries.iter().find(|entry| entry.at == link).map(|entry| self.text(entry))
    }

    /// The symbol at or before the link address `kva`, and how far before.
    pub fn at(&self, kva: Kva) -> Option<(&str, u64)> {
        let after = self.by_address.partition_point(|&nth| self.entries[nth as usize].at <= kva);
        let entry = &self.entries[*self.by_address.get(after.checked_sub(1)?)? as usize];
        Some((self.text(entry), kva.0 - entry.at.0))
    }

    /// The link address of `name`, which this monitor cannot do without.
    pub fn require(&self, name: &'static str) -> Result<Kva, SymbolError> {
        self.get(name).ok_or(SymbolError::Missing { name })
    }

    fn text(&self, entry: &Entry) -> &str {
        &self.names[entry.name as usize..][..entry.len as usize]
    }
}

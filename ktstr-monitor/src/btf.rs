//! Where kernel structures keep their members: the BTF of the kernel file.
//!
//! The crate `btf-rs` parses; this module asks, and distrusts the answer: a header that would make
//! the parser work without bound is refused before it starts, chains of types are followed a bounded
//! number of steps, and a member that would lie outside its structure is an error. A structure or
//! member that this kernel does not have is [`FieldMissing`], never an offset of 0.

use std::collections::BTreeSet;
use std::sync::Arc;

use btf_rs::{Btf, BtfType, Member, Struct, Type};
use thiserror::Error;

use crate::types::TypeSet;

/// Qualifiers, typedefs and type tags between a member and its type, at most.
const MAX_CHAIN: usize = 32;
/// Anonymous structures within each other, at most.
const MAX_NESTING: usize = 16;
/// Members looked at in one search, at most: nesting may multiply.
const MAX_VISITS: usize = 200_000;
/// `KSYM_NAME_LEN` is 512; the parser copies a name for each type that uses it.
const MAX_NAME: usize = 1024;
/// Vmlinux BTF of distribution kernels has 5 MiB.
const MAX_LEN: usize = 64 << 20;

/// Why BTF could not be used.
#[derive(Debug, Error)]
pub enum BtfError {
    /// The kernel was built without it.
    #[error("the kernel file has no .BTF section: CONFIG_DEBUG_INFO_BTF is off")]
    NoSection,
    /// Larger than any.
    #[error("the BTF has {len} bytes, more than the {MAX_LEN} that are read")]
    TooLarge {
        /// Its length.
        len: usize,
    },
    /// The header does not describe the section.
    #[error("the BTF header is damaged: {what}")]
    Header {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The parser refused it.
    #[error("the BTF cannot be parsed")]
    Parse(#[source] btf_rs::Error),
}

/// A structure or member that this kernel does not have, or not in a readable form.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FieldMissing {
    /// No such structure.
    #[error("this kernel has no `struct {name}`")]
    Struct {
        /// Its name.
        name: &'static str,
    },
    /// No such enumeration.
    #[error("this kernel has no `enum {name}`")]
    Enum {
        /// Its name.
        name: &'static str,
    },
    /// No such member.
    #[error("`struct {name}` of this kernel has no member `{path}`")]
    Member {
        /// The structure.
        name: &'static str,
        /// The member, as a path.
        path: String,
    },
    /// Several structures of that name disagree.
    #[error("this kernel has several `struct {name}` that place `{path}` differently")]
    Ambiguous {
        /// The structure.
        name: &'static str,
        /// The member, as a path.
        path: String,
    },
    /// The type information contradicts itself.
    #[error("the type information on `{path}` in `struct {name}` is damaged: {what}")]
    Damaged {
        /// The structure.
        name: &'static str,
        /// The member, as a path.
        path: String,
        /// What is wrong.
        what: &'static str,
    },
}

/// Where a member lies in its structure, and how it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Bytes from the start of the structure.
    pub offset: u64,
    /// Bytes to read there.
    pub size: u64,
    /// Set for bitfields: (lowest bit, number of bits) in the little-endian word read.
    pub bits: Option<(u8, u8)>,
    /// What the bytes are.
    pub kind: FieldKind,
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// An unsigned integer, enum or bool.
    Unsigned,
    /// A signed integer or enum.
    Signed,
    /// A pointer.
    Pointer,
    /// A structure, union, array or float.
    Aggregate,
}

/// The types of one kernel.
pub struct KernelTypes {
    btf: Arc<Btf>,
    graph: Arc<TypeSet>,
}

impl std::fmt::Debug for KernelTypes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KernelTypes")
    }
}

impl KernelTypes {
    /// Parses the contents of a `.BTF` section.
    pub fn parse(section: &[u8]) -> Result<Self, BtfError> {
        check_bounds(section)?;
        let btf = Arc::new(Btf::from_bytes(section).map_err(BtfError::Parse)?);
        let graph = Arc::new(TypeSet::over("vmlinux", Arc::clone(&btf), None));
        Ok(Self { btf, graph })
    }

    /// The same types as a graph, for rendering and for BPF.
    pub fn graph(&self) -> &Arc<TypeSet> {
        &self.graph
    }

    /// Finds `path` (members separated by dots, anonymous ones left out) in `struct name`.
    pub fn field(&self, name: &'static str, path: &str) -> Result<Field, FieldMissing> {
        let (mut found, mut missing): (Option<Field>, _) = (None, FieldMissing::Struct { name });
        for candidate in self.structs(name)? {
            match (Search { types: self, name, path, visits: 0 }.path(&candidate), &found) {
                // Another structure of this name, which is not meant.
                (Err(error), _) => missing = error,
                (Ok(field), Some(other)) if *other != field => {
                    return Err(FieldMissing::Ambiguous { name, path: path.to_owned() });
                }
                (Ok(field), _) => found = Some(field),
            }
        }
        found.ok_or(missing)
    }

    /// The size of `struct name` in bytes.
    pub fn size_of(&self, name: &'static str) -> Result<u64, FieldMissing> {
        let sizes: BTreeSet<_> = self.structs(name)?.iter().map(Struct::size).collect();
        match sizes.first() {
            Some(&size) if sizes.len() == 1 => Ok(size as u64),
            _ => Err(FieldMissing::Ambiguous { name, path: String::new() }),
        }
    }

    /// The names of the members of `struct name`, in order, anonymous ones left out.
    pub fn members(&self, name: &'static str) -> Result<Vec<String>, FieldMissing> {
        let structs = self.structs(name)?;
        let names = structs[0].members.iter().filter_map(|m| self.btf.resolve_name(m).ok());
        Ok(names.filter(|name| !name.is_empty()).collect())
    }

    /// The names and values of `enum name`, in order; at most 4096 of them.
    pub fn enumerators(&self, name: &'static str) -> Result<Vec<(String, i64)>, FieldMissing> {
        const MAX_ENUMERATORS: usize = 4096;
        let name_of = |member: &dyn BtfType| self.btf.resolve_name(member).ok();
        for found in self.btf.resolve_types_by_name(name).unwrap_or_default() {
            let all: Vec<_> = match &found {
                Type::Enum(e) => {
                    let members = e.members.iter().take(MAX_ENUMERATORS);
                    // Values are kept as u32; those of signed enums are negative in two's complement.
                    let value = |v: u32| if e.is_signed() { i64::from(v as i32) } else { i64::from(v) };
                    members.filter_map(|m| Some((name_of(m)?, value(m.val())))).collect()
                }
                Type::Enum64(e) => {
                    let members = e.members.iter().take(MAX_ENUMERATORS);
                    members.filter_map(|m| Some((name_of(m)?, m.val() as i64))).collect()
                }
                _ => continue,
            };
            return Ok(all);
        }
        Err(FieldMissing::Enum { name })
    }

    /// How many types there are.
    pub fn len(&self) -> u32 {
        self.btf.base().type_id_range().1
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All structures of that name; at least one.
    fn structs(&self, name: &'static str) -> Result<Vec<Struct>, FieldMissing> {
        let found: Vec<_> = self
            .btf
            .resolve_types_by_name(name)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|t| if let Type::Struct(s) = t { Some(s) } else { None })
            .collect();
        if found.is_empty() { Err(FieldMissing::Struct { name }) } else { Ok(found) }
    }

    /// Follows qualifiers, typedefs and tags from what `from` refers to.
    fn strip(&self, from: &dyn BtfType) -> Option<Type> {
        let mut here = self.btf.resolve_chained_type(from).ok()?;
        for _ in 0..MAX_CHAIN {
            here = match &here {
                Type::Typedef(t) => self.btf.resolve_chained_type(t).ok()?,
                Type::Volatile(t) | Type::Const(t) | Type::Restrict(t) => {
                    self.btf.resolve_chained_type(t).ok()?
                }
                Type::TypeTag(t) => self.btf.resolve_chained_type(t).ok()?,
                _ => return Some(here),
            };
        }
        None
    }

    fn shape(&self, of: &Type) -> Option<(u64, FieldKind)> {
        let mut count = 1u64;
        let mut here = of.clone();
        for _ in 0..MAX_CHAIN {
            let (size, kind) = match &here {
                Type::Int(int) if int.is_signed() => (int.size(), FieldKind::Signed),
                Type::Int(int) => (int.size(), FieldKind::Unsigned),
                Type::Ptr(_) => (8, FieldKind::Pointer),
                Type::Enum(e) if e.is_signed() => (e.size(), FieldKind::Signed),
                Type::Enum(e) => (e.size(), FieldKind::Unsigned),
                Type::Enum64(e) if e.is_signed() => (e.size(), FieldKind::Signed),
                Type::Enum64(e) => (e.size(), FieldKind::Unsigned),
                Type::Struct(s) | Type::Union(s) => (s.size(), FieldKind::Aggregate),
                Type::Float(f) => (f.size(), FieldKind::Aggregate),
                Type::Array(a) => {
                    count = count.checked_mul(a.len() as u64)?;
                    here = self.strip(a)?;
                    continue;
                }
                _ => return None,
            };
            let array = matches!(of, Type::Array(_));
            let kind = if array { FieldKind::Aggregate } else { kind };
            return Some((count.checked_mul(size as u64)?, kind));
        }
        None
    }
}

/// A search for one path.
struct Search<'t> {
    types: &'t KernelTypes,
    name: &'static str,
    path: &'t str,
    visits: usize,
}

/// A member with its bit offset from the start of the outermost structure.
struct Hit {
    member: Member,
    bit: u64,
}

impl Search<'_> {
    fn path(&mut self, outer: &Struct) -> Result<Field, FieldMissing> {
        let mut here = outer.clone();
        let mut bit = 0;
        let mut names = self.path.split('.').peekable();
        while let Some(name) = names.next() {
            let hit = self
                .member(&here, name, bit, 0)?
                .ok_or_else(|| FieldMissing::Member { name: self.name, path: self.path.to_owned() })?;
            let of = self
                .types
                .strip(&hit.member)
                .ok_or_else(|| self.damaged("its chain of types does not end"))?;
            if names.peek().is_none() {
                return self.place(&hit, &of, outer.size() as u64);
            }
            bit = hit.bit;
            here = match of {
                Type::Struct(s) | Type::Union(s) => s,
                _ => {
                    let path = self.path.to_owned();
                    return Err(FieldMissing::Member { name: self.name, path });
                }
            };
        }
        Err(self.damaged("the path is empty"))
    }

    /// Looks for `name` in `within` and in its anonymous members.
    fn member(
        &mut self,
        within: &Struct,
        name: &str,
        base: u64,
        depth: usize,
    ) -> Result<Option<Hit>, FieldMissing> {
        if depth > MAX_NESTING {
            return Err(self.damaged("anonymous members nest without end"));
        }
        for member in &within.members {
            self.visits += 1;
            if self.visits > MAX_VISITS {
                return Err(self.damaged("it has too many members"));
            }
            let bit = base + u64::from(member.bit_offset());
            let own = self
                .types
                .btf
                .resolve_name(member)
                .map_err(|_| self.damaged("a member's name is outside the string table"))?;
            if own == name && !own.is_empty() {
                return Ok(Some(Hit { member: member.clone(), bit }));
            }
            if own.is_empty()
                && let Some(Type::Struct(inner) | Type::Union(inner)) = self.types.strip(member)
                && let Some(hit) = self.member(&inner, name, bit, depth + 1)?
            {
                return Ok(Some(hit));
            }
        }
        Ok(None)
    }

    fn place(&self, hit: &Hit, of: &Type, outer_size: u64) -> Result<Field, FieldMissing> {
        let (size, kind) = self.types.shape(of).ok_or_else(|| self.damaged("its type has no size"))?;
        let width = hit.member.bitfield_size().filter(|&bits| bits > 0);
        let (offset, bits) = match width {
            None if !hit.bit.is_multiple_of(8) => return Err(self.damaged("it starts within a byte")),
            None => (hit.bit / 8, None),
            Some(width) => {
                let unit = size.checked_mul(8).filter(|unit| (8..=64).contains(unit));
                let unit = unit.ok_or_else(|| self.damaged("its bitfield has no integer type"))?;
                let (start, low) = (hit.bit / unit * unit / 8, hit.bit % unit);
                if low + u64::from(width) > unit {
                    return Err(self.damaged("its bitfield crosses its unit"));
                }
                (start, Some((low as u8, width as u8)))
            }
        };
        if offset.checked_add(size).is_none_or(|end| end > outer_size) {
            return Err(self.damaged("it lies outside the structure"));
        }
        Ok(Field { offset, size, bits, kind })
    }

    fn damaged(&self, what: &'static str) -> FieldMissing {
        FieldMissing::Damaged { name: self.name, path: self.path.to_owned(), what }
    }
}

/// Refuses sections whose parsing would take unbounded time or memory.
pub(crate) fn check_bounds(section: &[u8]) -> Result<(), BtfError> {
    match strings_of(section)? {
        [0, .., 0] | [0] => Ok(()),
        _ => Err(BtfError::Header { what: "its string table is not enclosed in NULs" }),
    }
}

/// As [`check_bounds`], for an object that numbers on from another: its strings continue the other's.
pub(crate) fn check_split_bounds(section: &[u8]) -> Result<(), BtfError> {
    match strings_of(section)? {
        [.., 0] | [] => Ok(()),
        _ => Err(BtfError::Header { what: "its string table does not end in NUL" }),
    }
}

fn strings_of(section: &[u8]) -> Result<&[u8], BtfError> {
    if section.len() > MAX_LEN {
        return Err(BtfError::TooLarge { len: section.len() });
    }
    let word = |at: usize| {
        let four = section.get(at..).and_then(|rest| rest.first_chunk());
        four.map(|four| u32::from_le_bytes(*four)).ok_or(BtfError::Header { what: "it is cut short" })
    };
    if word(0)? & 0xffff != 0xeb9f {
        return Err(BtfError::Header { what: "it has no little-endian BTF magic" });
    }
    let (header, strings, len) = (word(4)?, word(16)?, word(20)?);
    let start = u64::from(header) + u64::from(strings);
    let strings = usize::try_from(start)
        .ok()
        .and_then(|start| section.get(start..)?.get(..usize::try_from(len).ok()?))
        .ok_or(BtfError::Header { what: "its strings lie outside the section" })?;
    if strings.split(|&b| b == 0).any(|name| name.len() > MAX_NAME) {
        return Err(BtfError::Header { what: "a name is longer than the kernel allows" });
    }
    Ok(strings)
}

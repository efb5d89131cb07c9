//! Types by number: one BTF object as a graph that can be walked, rendered and searched by path.
//!
//! [`crate::btf`] answers "where is this member of the kernel"; this module holds whole objects: the
//! kernel's, a module's (split: numbered on from the kernel's), a BPF program's. Types are converted
//! from `btf-rs` when first asked for, and never trusted: chains are followed a bounded number of
//! steps, sizes are computed with checks, and a number that leads nowhere is `None`.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use btf_rs::{Btf, BtfType, Type};

use crate::btf::{BtfError, check_bounds, check_split_bounds};

/// Qualifiers, typedefs and tags between a use and its type, at most.
const MAX_CHAIN: usize = 32;
/// Arrays within arrays, at most.
const MAX_DIMENSIONS: usize = 16;
/// Anonymous structures within each other, at most.
const MAX_NESTING: usize = 16;
/// Members looked at in one search, at most: nesting may multiply.
const MAX_VISITS: usize = 100_000;

/// The number of a type in its object; 0 is `void`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeId(pub u32);

/// A named type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, empty where it has none.
    pub name: String,
    /// What it is.
    pub ty: Ty,
}

/// What a type is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ty {
    /// `void`.
    Void,
    /// An integer of `size` bytes.
    Int {
        /// Bytes.
        size: u64,
        /// How it is meant.
        kind: IntKind,
    },
    /// A floating-point number of `size` bytes.
    Float {
        /// Bytes.
        size: u64,
    },
    /// A pointer.
    Ptr(TypeId),
    /// `len` elements.
    Array {
        /// The element's type.
        elem: TypeId,
        /// How many.
        len: u64,
    },
    /// A structure or union.
    Composite(Composite),
    /// An enumeration.
    Enum(Enumeration),
    /// A declaration without definition.
    Forward {
        /// Of a union, not of a structure.
        union: bool,
    },
    /// A typedef, qualifier or tag.
    Alias(Alias, TypeId),
    /// A function.
    Func {
        /// Its [`Ty::Proto`].
        proto: TypeId,
        /// Whether other objects see it: then its arguments are what its type says. Those of a static
        /// function the compiler may have changed.
        global: bool,
    },
    /// The type of a function.
    Proto {
        /// What it returns.
        returns: TypeId,
        /// What it takes: names and types.
        takes: Vec<(String, TypeId)>,
    },
    /// A global variable.
    Var(TypeId),
    /// A section of global variables.
    Section {
        /// Bytes, as the compiler knew them: 0 until the loader filled it in.
        size: u64,
        /// The variables.
        vars: Vec<SectionVar>,
    },
    /// A tag on a declaration, or a kind that this version does not know.
    Other,
}

/// How an integer is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntKind {
    /// A number without sign.
    Unsigned,
    /// A number with sign.
    Signed,
    /// `char`.
    Char,
    /// `bool`.
    Bool,
}

/// What an alias adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alias {
    /// A name.
    Typedef,
    /// `const`, `volatile`, `restrict`.
    Qualifier,
    /// `btf_type_tag`; the entry's name is the tag.
    Tag,
}

/// A structure or union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Composite {
    /// Whether members overlap.
    pub union: bool,
    /// Bytes.
    pub size: u64,
    /// Its members in order.
    pub members: Vec<Member>,
}

/// A member of a structure or union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name, empty where it has none.
    pub name: String,
    /// Its type.
    pub ty: TypeId,
    /// Bits from the start of the structure.
    pub bit: u64,
    /// Bits of a bitfield.
    pub width: Option<u8>,
}

/// An enumeration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enumeration {
    /// Bytes.
    pub size: u64,
    /// Whether values are sign-extended.
    pub signed: bool,
    /// Names and values.
    pub values: Vec<(String, i128)>,
}

/// A variable in a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionVar {
    /// A [`Ty::Var`].
    pub var: TypeId,
    /// Bytes from the start of the section.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// One BTF object.
pub struct TypeSet {
    label: String,
    btf: Arc<Btf>,
    base: Option<Arc<TypeSet>>,
    first: u32,
    own: Vec<OnceLock<Option<Box<Entry>>>>,
    by_name: OnceLock<HashMap<String, Vec<TypeId>>>,
}

/// A type together with the object that numbers it.
#[derive(Clone)]
pub struct TypeRef {
    /// The object.
    pub set: Arc<TypeSet>,
    /// The number in it.
    pub id: TypeId,
}

impl fmt::Debug for TypeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TypeSet({}, {} types)", self.label, self.own.len())
    }
}

impl fmt::Debug for TypeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{} {}", self.set.label, self.id.0, self.name())
    }
}

impl PartialEq for TypeRef {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.set, &other.set) && self.id == other.id
    }
}

impl Eq for TypeRef {}

impl TypeRef {
    /// `id` of `set`.
    pub fn new(set: &Arc<TypeSet>, id: TypeId) -> Self {
        Self { set: Arc::clone(set), id }
    }

    /// The same object's type `id`.
    pub fn with(&self, id: TypeId) -> Self {
        Self { set: Arc::clone(&self.set), id }
    }

    /// Without typedefs, qualifiers and tags.
    pub fn strip(&self) -> Option<Self> {
        Some(self.with(self.set.strip(self.id)?.0))
    }

    /// The complete type that a mere declaration (`struct x;`) stands for: its own object's, else that of the first
    /// of `others` that defines a structure, or a union, of that name. What is complete is itself.
    pub fn complete<'s>(&self, others: impl IntoIterator<Item = &'s Arc<TypeSet>>) -> Option<Self> {
        let here = self.strip()?;
        let Some(Ty::Forward { union }) = here.set.ty(here.id) else { return Some(here) };
        let name = here.set.get(here.id)?.name.as_str();
        let is_it = |ty: &Ty| matches!(ty, Ty::Composite(composite) if composite.union == *union);
        // Structures without a name are not the same for that.
        let defined = |set: &Arc<TypeSet>| {
            let found =
                set.named(name).iter().find(|id| set.ty(**id).is_some_and(is_it) && !name.is_empty())?;
            Some(Self::new(set, *found))
        };
        defined(&here.set).or_else(|| others.into_iter().find_map(defined))
    }

    /// It without aliases, then its first member, and the first member of that: what else a pointer to it
    /// points at.
    pub fn beginnings(&self) -> impl Iterator<Item = Self> + use<> {
        let inner = |here: &Self| match here.set.ty(here.id)? {
            Ty::Composite(composite) if !composite.union => {
                let first = composite.members.first()?;
                let is_plain = first.bit == 0 && first.width.is_none();
                is_plain.then(|| here.with(first.ty).strip()).flatten()
            }
            _ => None,
        };
        std::iter::successors(self.strip(), inner).take(MAX_NESTING)
    }

    /// Whether an object of this type begins with one of type `part`, or is one.
    pub fn begins_with(&self, part: &Self) -> bool {
        part.strip().is_some_and(|part| self.beginnings().any(|here| here == part))
    }

    /// Its C name.
    pub fn name(&self) -> String {
        self.set.c_name(self.id)
    }

    /// Its size in bytes.
    pub fn size(&self) -> Option<u64> {
        self.set.size(self.id)
    }
}

impl TypeSet {
    /// Parses a self-contained object. `label` names it in messages.
    pub fn parse(label: &str, bytes: &[u8]) -> Result<Self, BtfError> {
        check_bounds(bytes)?;
        let btf = Btf::from_bytes(bytes).map_err(BtfError::Parse)?;
        Ok(Self::over(label, Arc::new(btf), None))
    }

    /// Parses a module's object, which numbers on from `base`.
    pub fn parse_split(label: &str, bytes: &[u8], base: &Arc<Self>) -> Result<Self, BtfError> {
        check_split_bounds(bytes)?;
        let btf = Btf::from_split_bytes(bytes, &base.btf).map_err(BtfError::Parse)?;
        Ok(Self::over(label, Arc::new(btf), Some(Arc::clone(base))))
    }

    /// The graph of an object parsed already.
    pub(crate) fn over(label: &str, btf: Arc<Btf>, base: Option<Arc<Self>>) -> Self {
        let (first, last) = match (&base, btf.split()) {
            (Some(_), Some(own)) => own.type_id_range(),
            _ => btf.base().type_id_range(),
        };
        let count = last.saturating_sub(first).saturating_add(1);
        let own = (0..count).map(|_| OnceLock::new()).collect();
        Self { label: label.to_owned(), btf, base, first, own, by_name: OnceLock::new() }
    }

    /// What it is called in messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The numbers of its own types, `void` among them in a self-contained object.
    pub fn ids(&self) -> impl Iterator<Item = TypeId> + use<> {
        (self.first..self.first + self.own.len() as u32).map(TypeId)
    }

    /// The type `id`.
    pub fn get(&self, id: TypeId) -> Option<&Entry> {
        let Some(own) = id.0.checked_sub(self.first) else { return self.base.as_ref()?.get(id) };
        self.own.get(own as usize)?.get_or_init(|| self.convert(id).map(Box::new)).as_deref()
    }

    /// What the type `id` is.
    pub fn ty(&self, id: TypeId) -> Option<&Ty> {
        Some(&self.get(id)?.ty)
    }

    /// All own types of that name, in order; those of the base are asked for there.
    pub fn named(&self, name: &str) -> &[TypeId] {
        let index = self.by_name.get_or_init(|| {
            let mut index: HashMap<String, Vec<TypeId>> = HashMap::new();
            for id in self.ids() {
                if let Some(entry) = self.get(id).filter(|entry| !entry.name.is_empty()) {
                    index.entry(entry.name.clone()).or_default().push(id);
                }
            }
            index
        });
        index.get(name).map_or(&[], Vec::as_slice)
    }

    /// The first complete structure or union of that name.
    pub fn composite(&self, name: &str) -> Option<(TypeId, &Composite)> {
        self.named(name).iter().find_map(|&id| match self.ty(id)? {
            Ty::Composite(composite) => Some((id, composite)),
            _ => None,
        })
    }

    /// Follows typedefs, qualifiers and tags.
    pub fn strip(&self, id: TypeId) -> Option<(TypeId, &Ty)> {
        let mut here = id;
        for _ in 0..MAX_CHAIN {
            match self.ty(here)? {
                Ty::Alias(_, to) => here = *to,
                ty => return Some((here, ty)),
            }
        }
        None
    }

    /// Its size in bytes; `None` for what has none or one that overflows.
    pub fn size(&self, id: TypeId) -> Option<u64> {
        let mut count = 1u64;
        let mut here = id;
        for _ in 0..MAX_DIMENSIONS {
            let size = match self.strip(here)?.1 {
                Ty::Int { size, .. } | Ty::Float { size } => *size,
                Ty::Ptr(_) => 8,
                Ty::Composite(composite) => composite.size,
                Ty::Enum(enumeration) => enumeration.size,
                Ty::Var(of) => {
                    here = *of;
                    continue;
                }
                Ty::Array { elem, len } => {
                    count = count.checked_mul(*len)?;
                    here = *elem;
                    continue;
                }
                Ty::Section { size, .. } => *size,
                _ => return None,
            };
            return count.checked_mul(size);
        }
        None
    }

    /// The name in C, as far as it can be written in one line.
    pub fn c_name(&self, id: TypeId) -> String {
        self.c_name_within(id, MAX_CHAIN)
    }

    fn c_name_within(&self, id: TypeId, steps: usize) -> String {
        let Some(entry) = self.get(id).filter(|_| steps > 0) else { return "?".to_owned() };
        let inner = |to: &TypeId| self.c_name_within(*to, steps - 1);
        let tagged = |word: &str| match entry.name.as_str() {
            "" => format!("{word} (anonymous)"),
            name => format!("{word} {name}"),
        };
        match &entry.ty {
            Ty::Void => "void".to_owned(),
            Ty::Ptr(to) => match inner(to) {
                name if name.ends_with('*') => format!("{name}*"),
                name => format!("{name} *"),
            },
            Ty::Array { elem, len } => format!("{}[{len}]", inner(elem)),
            Ty::Composite(Composite { union: false, .. }) | Ty::Forward { union: false } => tagged("struct"),
            Ty::Composite(_) | Ty::Forward { .. } => tagged("union"),
            Ty::Enum(_) => tagged("enum"),
            Ty::Alias(Alias::Typedef, _) => entry.name.clone(),
            Ty::Alias(_, to) => inner(to),
            Ty::Proto { .. } => "function".to_owned(),
            Ty::Var(of) => inner(of),
            _ => entry.name.clone(),
        }
    }

    /// Finds the member `name` of the structure `of`, anonymous members looked through. The position
    /// in bits is from the start of `of`.
    pub fn member(&self, of: TypeId, name: &str) -> Option<Member> {
        let mut visits = MAX_VISITS;
        self.member_within(of, name, 0, &mut visits)
    }

    fn member_within(&self, of: TypeId, name: &str, depth: usize, visits: &mut usize) -> Option<Member> {
        let (_, Ty::Composite(composite)) = self.strip(of)? else { return None };
        for member in &composite.members {
            *visits = visits.checked_sub(1)?;
            if !member.name.is_empty() {
                if member.name == name {
                    return Some(member.clone());
                }
            } else if depth < MAX_NESTING
                && let Some(mut hit) = self.member_within(member.ty, name, depth + 1, visits)
            {
                hit.bit = hit.bit.checked_add(member.bit)?;
                return Some(hit);
            }
        }
        None
    }

    fn convert(&self, id: TypeId) -> Option<Entry> {
        let ty = self.btf.resolve_type_by_id(id.0).ok()?;
        let text = |of: &dyn BtfType| self.btf.resolve_name(of).unwrap_or_default();
        let name = match ty.as_btf_type() {
            Some(named) if named.get_name_offset().is_some() => text(named),
            _ => String::new(),
        };
        let to = |of: &dyn BtfType| TypeId(of.get_type_id().unwrap_or(0));
        let ty = match &ty {
            Type::Void => Ty::Void,
            Type::Int(int) => Ty::Int {
                size: int.size() as u64,
                kind: match () {
                    () if int.is_bool() => IntKind::Bool,
                    () if int.is_char() || (int.size() == 1 && name == "char") => IntKind::Char,
                    () if int.is_signed() => IntKind::Signed,
                    () => IntKind::Unsigned,
                },
            },
            Type::Float(float) => Ty::Float { size: float.size() as u64 },
            Type::Ptr(ptr) => Ty::Ptr(to(ptr)),
            Type::Array(array) => Ty::Array { elem: to(array), len: array.len() as u64 },
            Type::Struct(s) | Type::Union(s) => Ty::Composite(Composite {
                union: matches!(ty, Type::Union(_)),
                size: s.size() as u64,
                members: s
                    .members
                    .iter()
                    .map(|m| Member {
                        name: text(m),
                        ty: to(m),
                        bit: m.bit_offset().into(),
                        width: m.bitfield_size().filter(|&bits| bits > 0).map(|bits| bits as u8),
                    })
                    .collect(),
            }),
            Type::Enum(e) => {
                let value = |raw: u32| match e.is_signed() {
                    true => i128::from(raw as i32),
                    false => i128::from(raw),
                };
                let values = e.members.iter().map(|m| (text(m), value(m.val()))).collect();
                Ty::Enum(Enumeration { size: e.size() as u64, signed: e.is_signed(), values })
            }
            Type::Enum64(e) => {
                let value = |raw: u64| match e.is_signed() {
                    true => i128::from(raw as i64),
                    false => i128::from(raw),
                };
                let values = e.members.iter().map(|m| (text(m), value(m.val()))).collect();
                Ty::Enum(Enumeration { size: e.size() as u64, signed: e.is_signed(), values })
            }
            Type::Fwd(fwd) => Ty::Forward { union: fwd.is_union() },
            Type::Typedef(t) => Ty::Alias(Alias::Typedef, to(t)),
            Type::Volatile(t) | Type::Const(t) | Type::Restrict(t) => Ty::Alias(Alias::Qualifier, to(t)),
            Type::TypeTag(t) => Ty::Alias(Alias::Tag, to(t)),
            Type::Func(func) => Ty::Func { proto: to(func), global: !func.is_static() },
            Type::FuncProto(proto) => Ty::Proto {
                returns: TypeId(proto.return_type_id()),
                takes: proto.parameters.iter().map(|p| (text(p), to(p))).collect(),
            },
            Type::Var(var) => Ty::Var(to(var)),
            Type::Datasec(section) => Ty::Section {
                size: section.size() as u64,
                vars: section
                    .variables
                    .iter()
                    .map(|v| SectionVar { var: to(v), offset: v.offset().into(), size: v.size() as u64 })
                    .collect(),
            },
            _ => Ty::Other,
        };
        Some(Entry { name, ty })
    }
}

//! From bytes to a [`Value`].
//!
//! Depth, nodes and bytes are bounded: types come from the guest, and a small object can describe a
//! value that would fill the machine. A limit that was met is said in the value.

use crate::addr::Kva;
use crate::types::{Composite, Enumeration, IntKind, Member, SectionVar, Ty, TypeId, TypeRef};

use super::value::{Pointer, Run, Target, Value};

/// Where a pointer leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Into an arena.
    Arena,
    /// Into the kernel.
    Kernel,
}

/// A number that is a pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cast {
    /// What it points at.
    pub to: TypeRef,
    /// Where it leads.
    pub space: Space,
}

/// What a pointer was found to lead to.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where to read.
    pub at: Kva,
    /// What is there; more than was asked for where the asker's type was only declared.
    pub ty: TypeRef,
    /// In what memory.
    pub space: Space,
    /// The slot of an allocator that it lies in.
    pub slot: Option<String>,
}

/// Where pointers lead.
pub trait Deref {
    /// Where `pointer` leads, which was declared to point at `pointee`.
    fn find(&self, pointer: u64, pointee: &TypeRef) -> Result<Found, String>;

    /// Reads what is there.
    fn read(&self, at: Kva, len: u64) -> Result<Vec<u8>, String>;

    /// The name of what is at `pointer`, where it has one.
    fn symbol(&self, pointer: u64) -> Option<String>;

    /// Whether the number `offset` bytes into the structure `of` is a pointer.
    fn cast(&self, of: &TypeRef, offset: u64) -> Option<Cast>;
}

/// Follows nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoDeref;

impl Deref for NoDeref {
    fn find(&self, _: u64, _: &TypeRef) -> Result<Found, String> {
        Err("there is no memory to follow it in".to_owned())
    }

    fn read(&self, _: Kva, _: u64) -> Result<Vec<u8>, String> {
        Err("there is no memory to read".to_owned())
    }

    fn symbol(&self, _: u64) -> Option<String> {
        None
    }

    fn cast(&self, _: &TypeRef, _: u64) -> Option<Cast> {
        None
    }
}

/// How much is rendered.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Pointers followed one after the other; 0 follows none.
    pub follow: usize,
    /// Also follow pointers into the kernel, not only into arenas.
    pub follow_kernel: bool,
    /// Structures, arrays and pointers within each other.
    pub depth: usize,
    /// Elements looked at in one array.
    pub elements: u64,
    /// Values in all that one renderer makes.
    pub nodes: usize,
    /// Bytes read behind one pointer.
    pub pointee: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { follow: 8, follow_kernel: false, depth: 32, elements: 4096, nodes: 500_000, pointee: 64 << 10 }
    }
}

/// Renders values.
pub struct Renderer<'d> {
    deref: &'d dyn Deref,
    options: Options,
    nodes: usize,
    followed: Vec<(Kva, TypeId)>,
}

impl std::fmt::Debug for Renderer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renderer").field("options", &self.options).field("nodes", &self.nodes).finish()
    }
}

impl<'d> Renderer<'d> {
    /// Follows pointers by `deref`.
    pub fn new(deref: &'d dyn Deref, options: Options) -> Self {
        Self { deref, options, nodes: 0, followed: Vec::new() }
    }

    /// Values made so far.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Renders `bytes` as a `ty`.
    pub fn render(&mut self, ty: &TypeRef, bytes: &[u8]) -> Value {
        self.value(ty, bytes, 0)
    }

    /// Renders a bitfield that begins with bit `low` of `bytes`.
    pub fn render_bits(&mut self, ty: &TypeRef, bytes: &[u8], low: u8, width: u8) -> Value {
        bitfield(ty, bytes, low.into(), width)
    }

    fn value(&mut self, ty: &TypeRef, bytes: &[u8], depth: usize) -> Value {
        self.nodes += 1;
        if self.nodes > self.options.nodes {
            return Value::Missing(format!("left off after {} values", self.options.nodes));
        }
        if depth > self.options.depth {
            return Value::Missing(format!("left off: nested more than {} deep", self.options.depth));
        }
        let Some((id, stripped)) = ty.set.strip(ty.id) else {
            return Value::Missing("its type is damaged".to_owned());
        };
        let here = ty.with(id);
        if let Some(size) = here.size()
            && size > bytes.len() as u64
        {
            return Value::Missing(format!("{} of {size} bytes are there", bytes.len()));
        }
        match stripped {
            Ty::Int { size, kind } => int(bytes, *size, *kind),
            Ty::Float { size: 8 } => bytes
                .first_chunk()
                .map_or(Value::Missing("cut short".into()), |eight| Value::Float(f64::from_le_bytes(*eight))),
            Ty::Float { size: 4 } => bytes.first_chunk().map_or(Value::Missing("cut short".into()), |four| {
                Value::Float(f32::from_le_bytes(*four).into())
            }),
            Ty::Float { size } => Value::Bytes(bytes[..*size as usize].to_vec()),
            Ty::Enum(values) => enumerator(values, bytes, values.size * 8),
            Ty::Ptr(to) => self.pointer(word(bytes, 8) as u64, &here.with(*to), false, None, depth),
            Ty::Array { elem, len } => self.array(&here.with(*elem), *len, bytes, depth),
            Ty::Composite(composite) => self.composite(&here, composite, bytes, depth),
            Ty::Section { vars, .. } => self.section(&here, vars, bytes, depth),
            Ty::Var(of) => self.value(&here.with(*of), bytes, depth + 1),
            _ => Value::Missing(format!("a {} has no value", here.name())),
        }
    }

    fn composite(&mut self, of: &TypeRef, composite: &Composite, bytes: &[u8], depth: usize) -> Value {
        if let Some(cpus) = cpumask(of, composite, bytes) {
            return cpus;
        }
        let mut members = Vec::new();
        for member in &composite.members {
            let value = self.member(of, composite, member, bytes, depth);
            members.push((member.name.clone(), value));
        }
        Value::Composite { ty: of.name(), union: composite.union, members }
    }

    fn member(
        &mut self,
        of: &TypeRef,
        composite: &Composite,
        member: &Member,
        bytes: &[u8],
        depth: usize,
    ) -> Value {
        let ty = of.with(member.ty);
        let offset = member.bit / 8;
        let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
        let Some(rest) = rest else { return Value::Missing("it lies outside its structure".to_owned()) };
        if let Some(width) = member.width {
            return bitfield(&ty, rest, member.bit % 8, width);
        }
        if !member.bit.is_multiple_of(8) {
            return Value::Missing("it begins within a byte and has no width".to_owned());
        }
        let inside = composite.size.saturating_sub(offset).min(rest.len() as u64);
        let rest = &rest[..inside as usize];
        if may_hide_pointer(&ty)
            && let Some(cast) = self.deref.cast(of, offset)
            && rest.len() >= 8
        {
            return self.cast(&ty, rest, &cast, depth);
        }
        self.value(&ty, rest, depth + 1)
    }

    /// A number that programs use as a pointer. What leads nowhere just now stays a number.
    fn cast(&mut self, ty: &TypeRef, bytes: &[u8], cast: &Cast, depth: usize) -> Value {
        let raw = word(bytes, 8) as u64;
        let leads = |found: Found| (found.space == Space::Kernel) == (cast.space == Space::Kernel);
        if raw != 0 && !self.deref.find(raw, &cast.to).is_ok_and(leads) {
            return self.value(ty, bytes, depth + 1);
        }
        self.pointer(raw, &cast.to, true, Some(cast.space), depth)
    }

    fn section(&mut self, of: &TypeRef, vars: &[SectionVar], bytes: &[u8], depth: usize) -> Value {
        let mut members = Vec::new();
        for var in vars {
            let name = of.set.get(var.var).map_or_else(String::new, |entry| entry.name.clone());
            let start = usize::try_from(var.offset).ok();
            let rest = start.and_then(|start| bytes.get(start..));
            let value = match rest {
                Some(rest) => {
                    let rest = &rest[..rest.len().min(usize::try_from(var.size).unwrap_or(usize::MAX))];
                    match self.deref.cast(of, var.offset).filter(|_| rest.len() == 8) {
                        Some(cast) => self.cast(&of.with(var.var), rest, &cast, depth),
                        None => self.value(&of.with(var.var), rest, depth + 1),
                    }
                }
                None => Value::Missing("it lies outside its section".to_owned()),
            };
            members.push((name, value));
        }
        Value::Composite { ty: of.name(), union: false, members }
    }

    fn array(&mut self, elem: &TypeRef, len: u64, bytes: &[u8], depth: usize) -> Value {
        let Some(size) = elem.size().filter(|&size| size > 0) else {
            return Value::Missing(format!("an element, {}, has no size", elem.name()));
        };
        let is_char = matches!(elem.set.strip(elem.id), Some((_, Ty::Int { kind: IntKind::Char, .. })));
        // A flexible array member says 0 and has as many as there is room for; a number of
        // characters in an anonymous place is text all the same.
        let len = if len == 0 { bytes.len() as u64 / size } else { len };
        if is_char && let Some(text) = text(&bytes[..bytes.len().min(len as usize)]) {
            return Value::Text(text);
        }
        let shown = len.min(self.options.elements);
        let mut runs: Vec<Run> = Vec::new();
        let mut last: &[u8] = &[];
        for index in 0..shown {
            let at = (index * size) as usize;
            let Some(here) = bytes.get(at..at + size as usize) else {
                return Value::Array { runs, left_off: len - index };
            };
            // Equal bytes are equal values: pointers lead to the same place.
            match runs.last_mut().filter(|_| here == last) {
                Some(run) => run.count += 1,
                None => runs.push(Run { first: index, count: 1, value: self.value(elem, here, depth + 1) }),
            }
            last = here;
        }
        Value::Array { runs, left_off: len - shown }
    }

    fn pointer(&mut self, raw: u64, to: &TypeRef, cast: bool, space: Option<Space>, depth: usize) -> Value {
        let shown =
            |space, target| Value::Pointer(Pointer { raw, to: to.name(), space, cast, slot: None, target });
        if raw == 0 {
            return shown(space, Target::None);
        }
        let is_function = matches!(to.set.strip(to.id), Some((_, Ty::Proto { .. })));
        if is_function {
            let symbol = self.deref.symbol(raw);
            return shown(Some(Space::Kernel), symbol.map_or(Target::None, Target::Symbol));
        }
        let found = match self.deref.find(raw, to) {
            Ok(found) => found,
            Err(_) if self.options.follow == 0 => return shown(space, Target::None),
            Err(why) => return shown(space, Target::Lost(why)),
        };
        let (space, slot) = (Some(found.space), found.slot);
        let shown = |space, target| {
            Value::Pointer(Pointer { raw, to: to.name(), space, cast, slot: slot.clone(), target })
        };
        let wanted = self.options.follow_kernel || found.space != Space::Kernel;
        if !wanted || self.options.follow == 0 {
            return shown(space, Target::None);
        }
        let key = (found.at, found.ty.id);
        if self.followed.contains(&key) {
            return shown(space, Target::Cycle);
        }
        if self.followed.len() >= self.options.follow {
            let why = format!("{} pointers were followed to here already", self.options.follow);
            return shown(space, Target::Lost(why));
        }
        let size = match found.ty.size() {
            Some(size) if size <= self.options.pointee => size,
            Some(size) => return shown(space, Target::Lost(format!("{size} bytes are more than are read"))),
            None => return shown(space, Target::Lost(format!("a {} has no size", found.ty.name()))),
        };
        let bytes = match self.deref.read(found.at, size) {
            Ok(bytes) => bytes,
            Err(why) => return shown(space, Target::Lost(why)),
        };
        self.followed.push(key);
        let value = self.value(&found.ty, &bytes, depth + 1);
        self.followed.pop();
        let to = found.ty.name();
        Value::Pointer(Pointer { raw, to, space, cast, slot, target: Target::Value(Box::new(value)) })
    }
}

/// Whether what programs do may tell more about it than its type: a number of 64 bits, or a pointer
/// that does not say what it points at.
pub fn may_hide_pointer(ty: &TypeRef) -> bool {
    match ty.set.strip(ty.id) {
        Some((_, Ty::Int { size: 8, .. })) => true,
        Some((_, Ty::Ptr(to))) => matches!(ty.set.strip(*to), Some((_, Ty::Void | Ty::Forward { .. }))),
        _ => false,
    }
}

/// The first `size` bytes, at most 8, as a number; shorter input is padded with zeroes.
fn word(bytes: &[u8], size: u64) -> u128 {
    let mut padded = [0; 16];
    let len = bytes.len().min(size.min(16) as usize);
    padded[..len].copy_from_slice(&bytes[..len]);
    u128::from_le_bytes(padded)
}

fn sign_extend(value: u128, bits: u64) -> i64 {
    let spare = 64 - bits.clamp(1, 64) as u32;
    (value as u64).wrapping_shl(spare) as i64 >> spare
}

fn int(bytes: &[u8], size: u64, kind: IntKind) -> Value {
    if size > 8 || size == 0 {
        return Value::Bytes(bytes[..size.min(bytes.len() as u64) as usize].to_vec());
    }
    scalar(word(bytes, size), size * 8, kind)
}

fn scalar(value: u128, bits: u64, kind: IntKind) -> Value {
    match kind {
        IntKind::Signed => Value::Signed(sign_extend(value, bits)),
        IntKind::Bool if value <= 1 => Value::Bool(value == 1),
        IntKind::Char if bits == 8 => Value::Char(value as u8),
        _ => Value::Unsigned(value as u64),
    }
}

fn bitfield(ty: &TypeRef, bytes: &[u8], low: u64, width: u8) -> Value {
    let len = (low + u64::from(width)).div_ceil(8);
    if width == 0 || width > 64 || len > bytes.len() as u64 {
        return Value::Missing("its bits lie outside the structure".to_owned());
    }
    let value = word(bytes, len) >> low & ((1u128 << width) - 1);
    match ty.set.strip(ty.id).map(|(_, ty)| ty) {
        Some(Ty::Int { kind, .. }) => scalar(value, width.into(), *kind),
        Some(Ty::Enum(values)) => enumerator(values, &value.to_le_bytes(), width.into()),
        _ => Value::Missing("its bits have no integer type".to_owned()),
    }
}

fn enumerator(values: &Enumeration, bytes: &[u8], bits: u64) -> Value {
    let bits = bits.clamp(1, 64);
    let value = word(bytes, bits.div_ceil(8)) & (u128::MAX >> (128 - bits));
    let raw = if values.signed { i128::from(sign_extend(value, bits)) } else { value as i128 };
    let exact = values.values.iter().find(|(_, own)| *own == raw);
    let names = match exact {
        Some((name, _)) => vec![name.clone()],
        None => flags(values, raw),
    };
    Value::Enum { raw, names }
}

/// The names of single bits that make up `raw` together, where all of it has names.
fn flags(values: &Enumeration, raw: i128) -> Vec<String> {
    let single = |value: i128| value > 0 && value & (value - 1) == 0;
    let is_flags = values.values.iter().all(|&(_, value)| value == 0 || single(value));
    if raw <= 0 || !is_flags {
        return Vec::new();
    }
    let mut names = Vec::new();
    let mut left = raw;
    for (name, value) in values.values.iter().filter(|(_, value)| *value > 0 && raw & value != 0) {
        if left & value != 0 {
            names.push(name.clone());
        }
        left &= !value;
    }
    if left == 0 { names } else { Vec::new() }
}

/// `struct cpumask` and `struct bpf_cpumask`, as the CPUs in it.
fn cpumask(of: &TypeRef, composite: &Composite, bytes: &[u8]) -> Option<Value> {
    let name = &of.set.get(of.id)?.name;
    let is_mask = name == "cpumask" && composite.members.len() == 1 && composite.members[0].name == "bits";
    if !is_mask {
        return None;
    }
    let bytes = bytes.get(..usize::try_from(composite.size).ok()?)?;
    let set = |cpu: &u32| bytes[*cpu as usize / 8] >> (cpu % 8) & 1 == 1;
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for cpu in (0..bytes.len() as u32 * 8).filter(set) {
        match ranges.last_mut().filter(|range| range.1 + 1 == cpu) {
            Some(range) => range.1 = cpu,
            None => ranges.push((cpu, cpu)),
        }
    }
    Some(Value::Cpus(ranges))
}

/// Printable characters up to a NUL after which nothing but NULs come.
fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let (text, rest) = bytes.split_at(end);
    let printable = text.iter().all(|&byte| byte.is_ascii_graphic() || b" \t\n".contains(&byte));
    (printable && rest.iter().all(|&byte| byte == 0)).then(|| String::from_utf8_lossy(text).into_owned())
}

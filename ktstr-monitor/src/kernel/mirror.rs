//! Mirrors of kernel structures: any subset of the members, each found by BTF, copied in few pieces.
//!
//! [`mirror!`](crate::mirror) declares a structure by the kernel's names and makes two types of it:
//! the layout (where this kernel keeps the members, or that it has none) and the copy (what was
//! read). A member may have several names, the first that exists is taken: kernels rename things (never
//! for a member that means something else).
//! Members that lie near each other are copied together, so that a task costs a handful of reads.

use super::value::{Gap, Reading};
use crate::addr::Kva;
use crate::btf::{Field, FieldKind, FieldMissing, KernelTypes};
use crate::node::Node;
use crate::paging::{AccessError, KernelMem};

/// Holes up to this are copied along rather than skipped: a further piece costs a walk.
const MAX_HOLE: u64 = 128;
/// A member larger than this is no scalar, name or mask.
const MAX_MEMBER: u64 = 4096;

/// Where the members of one structure are.
#[derive(Debug)]
pub struct Mirror {
    name: &'static str,
    fields: Vec<Result<Field, FieldMissing>>,
    /// In ascending order: offset in the structure, length, offset in the copy.
    pieces: Vec<Piece>,
    len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    from: u64,
    len: usize,
    into: usize,
}

impl Mirror {
    /// Looks up `paths` in `struct name`; each is a list of names for the same thing.
    pub fn of(types: &KernelTypes, name: &'static str, paths: &[&[&'static str]]) -> Self {
        let find = |names: &&[&'static str]| {
            let found = names.iter().map(|path| types.field(name, path)).find(Result::is_ok);
            let field = found.unwrap_or_else(|| types.field(name, names[0]))?;
            if field.size > MAX_MEMBER {
                let path = names[0].to_owned();
                return Err(FieldMissing::Damaged { name, path, what: "it is too large to be copied" });
            }
            Ok(field)
        };
        let fields: Vec<_> = paths.iter().map(find).collect();
        let pieces = pieces(&fields);
        let len = pieces.last().map_or(0, |last| last.into + last.len);
        Self { name, fields, pieces, len }
    }

    /// Copies the members of the structure at `at`.
    pub fn copy(&self, mem: &KernelMem<'_>, at: Kva) -> Reading<Copied<'_>> {
        let mut bytes = vec![0; self.len];
        for piece in &self.pieces {
            let unreadable = |source| Gap::Unreadable { what: self.name, source };
            let from = at
                .checked_add(piece.from)
                .ok_or(AccessError::Wraps { kva: at, len: piece.len })
                .map_err(unreadable)?;
            mem.read(from, &mut bytes[piece.into..][..piece.len]).map_err(unreadable)?;
        }
        Ok(Copied { mirror: self, bytes })
    }

    /// Keeps the members of the structure at `at` for later.
    pub fn touch(&self, mem: &KernelMem<'_>, at: Kva) {
        for piece in &self.pieces {
            mem.touch(at.wrapping_add(piece.from), piece.len as u64);
        }
    }

    /// The members this kernel lacks.
    pub fn absent(&self) -> impl Iterator<Item = &FieldMissing> {
        self.fields.iter().filter_map(|field| field.as_ref().err())
    }
}

fn pieces(fields: &[Result<Field, FieldMissing>]) -> Vec<Piece> {
    let mut ranges: Vec<(u64, u64)> =
        fields.iter().flatten().map(|f| (f.offset, f.offset + f.size)).collect();
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (from, to) in ranges {
        match joined.last_mut() {
            Some(last) if from <= last.1 + MAX_HOLE => last.1 = last.1.max(to),
            _ => joined.push((from, to)),
        }
    }
    let mut into = 0;
    let pieces = joined.into_iter().map(|(from, to)| {
        let piece = Piece { from, len: (to - from) as usize, into };
        into += piece.len;
        piece
    });
    pieces.collect()
}

/// The members of one structure, copied.
#[derive(Debug)]
pub struct Copied<'l> {
    mirror: &'l Mirror,
    bytes: Vec<u8>,
}

impl Copied<'_> {
    /// The member number `nth`, as it was declared.
    pub fn get<T: Member>(&self, nth: usize, what: &'static str) -> Reading<T> {
        let field = self.mirror.fields[nth].as_ref().map_err(|missing| Gap::Absent(missing.clone()))?;
        let piece = self
            .mirror
            .pieces
            .iter()
            .rev()
            .find(|piece| piece.from <= field.offset)
            .ok_or(Gap::NotScalar { what, size: field.size })?;
        let at = piece.into + (field.offset - piece.from) as usize;
        let bytes = self.bytes.get(at..).and_then(|rest| rest.get(..field.size as usize));
        T::cut(bytes.ok_or(Gap::NotScalar { what, size: field.size })?, field, what)
    }
}

/// What a member can be read as.
pub trait Member: Sized {
    /// From exactly the bytes of the member.
    fn cut(bytes: &[u8], field: &Field, what: &'static str) -> Reading<Self>;
    /// For people and JSON.
    fn node(&self) -> Node;
}

/// A scalar of up to 8 bytes, sign-extended where the kernel's type is; bitfields are cut out.
pub fn scalar(bytes: &[u8], field: &Field, what: &'static str) -> Reading<i128> {
    let no_scalar = Gap::NotScalar { what, size: field.size };
    if field.kind == FieldKind::Aggregate || !matches!(bytes.len(), 1 | 2 | 4 | 8) {
        return Err(no_scalar);
    }
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    let word = u64::from_le_bytes(word);
    let (low, width) = field.bits.unwrap_or((0, (bytes.len() * 8) as u8));
    let spare = 64u32.checked_sub(u32::from(width)).ok_or(no_scalar)?;
    let top = word.checked_shl(spare.saturating_sub(u32::from(low))).unwrap_or(0);
    Ok(match field.kind {
        FieldKind::Signed => i128::from(top as i64 >> spare),
        _ => i128::from(top >> spare),
    })
}

macro_rules! member_int {
    ($($int:ty),*) => { $(impl Member for $int {
        fn cut(bytes: &[u8], field: &Field, what: &'static str) -> Reading<Self> {
            let value = wrapped(bytes, field, what)?;
            Self::try_from(value).map_err(|_| Gap::Implausible { what, value })
        }
        fn node(&self) -> Node {
            Node::from(*self)
        }
    })* };
}

member_int!(u8, u16, u32, u64, i32, i64);

/// `atomic_t` and its like are structures of one integer: the first word of them counts.
fn wrapped(bytes: &[u8], field: &Field, what: &'static str) -> Reading<i128> {
    let signed = Field { kind: FieldKind::Signed, ..*field };
    match field.kind {
        FieldKind::Aggregate if matches!(bytes.len(), 4 | 8) => scalar(bytes, &signed, what),
        _ => scalar(bytes, field, what),
    }
}

impl Member for bool {
    fn cut(bytes: &[u8], field: &Field, what: &'static str) -> Reading<Self> {
        Ok(wrapped(bytes, field, what)? != 0)
    }
    fn node(&self) -> Node {
        Node::Bool(*self)
    }
}

impl Member for Kva {
    fn cut(bytes: &[u8], field: &Field, what: &'static str) -> Reading<Self> {
        let value = wrapped(bytes, field, what)?;
        // Pointers are unsigned; in a structure of one they were taken for signed.
        Ok(Self(value as u64))
    }
    fn node(&self) -> Node {
        Node::from(*self)
    }
}

impl Member for String {
    fn cut(bytes: &[u8], _: &Field, _: &'static str) -> Reading<Self> {
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
    fn node(&self) -> Node {
        Node::Text(self.clone())
    }
}

/// Unsigned words of 64 bits: arrays of counters and of longs.
impl Member for Vec<u64> {
    fn cut(bytes: &[u8], field: &Field, what: &'static str) -> Reading<Self> {
        if !bytes.len().is_multiple_of(8) {
            return Err(Gap::NotScalar { what, size: field.size });
        }
        Ok(bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }
    fn node(&self) -> Node {
        Node::List(self.iter().map(|&word| word.into()).collect())
    }
}

/// Unsigned words of 32 bits.
impl Member for Vec<u32> {
    fn cut(bytes: &[u8], field: &Field, what: &'static str) -> Reading<Self> {
        if !bytes.len().is_multiple_of(4) {
            return Err(Gap::NotScalar { what, size: field.size });
        }
        Ok(bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }
    fn node(&self) -> Node {
        Node::List(self.iter().map(|&word| word.into()).collect())
    }
}

/// A set of CPUs, as the kernel keeps it; shown as ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuMask(Vec<u8>);

impl CpuMask {
    /// From the bytes of a `struct cpumask`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no CPU.
    pub fn is_empty(&self) -> bool {
        self.cpus().next().is_none()
    }

    /// The CPUs in ascending order.
    pub fn cpus(&self) -> impl Iterator<Item = u32> + '_ {
        let bits = self.0.len() as u32 * 8;
        (0..bits).filter(|cpu| self.0[*cpu as usize / 8] >> (cpu % 8) & 1 == 1)
    }

    /// Only the CPUs that are in `other`, too.
    pub fn within(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a & b).collect())
    }
}

impl std::fmt::Display for CpuMask {
    /// `0-3,8`, as the kernel writes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for cpu in self.cpus() {
            match ranges.last_mut() {
                Some(last) if last.1 + 1 == cpu => last.1 = cpu,
                _ => ranges.push((cpu, cpu)),
            }
        }
        let shown = ranges.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
        f.write_str(&shown.collect::<Vec<_>>().join(","))
    }
}

impl Member for CpuMask {
    fn cut(bytes: &[u8], _: &Field, _: &'static str) -> Reading<Self> {
        Ok(Self(bytes.to_vec()))
    }
    fn node(&self) -> Node {
        Node::Text(self.to_string())
    }
}

/// Declares a mirror: a copy type and its layout, from the kernel's member names.
#[macro_export]
macro_rules! mirror {
    ($(#[$doc:meta])* $name:ident, $layout:ident of $kernel:literal {
        $($(#[$field_doc:meta])* $field:ident: $type:ty = $path:literal $(| $other:literal)*),* $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name {
            $(#[doc = concat!("`", $path, "`")] $(#[$field_doc])* pub $field: $crate::kernel::Reading<$type>),*
        }

        #[doc = concat!("Where this kernel keeps the members of `struct ", $kernel, "`.")]
        #[derive(Debug)]
        pub struct $layout($crate::kernel::mirror::Mirror);

        impl $layout {
            /// Looks the members up.
            pub fn of(types: &$crate::btf::KernelTypes) -> Self {
                Self($crate::kernel::mirror::Mirror::of(types, $kernel, &[$(&[$path $(, $other)*]),*]))
            }

            /// Reads the structure at `at`.
            pub fn read(
                &self,
                mem: &$crate::paging::KernelMem<'_>,
                at: $crate::addr::Kva,
            ) -> $crate::kernel::Reading<$name> {
                let copy = self.0.copy(mem, at)?;
                let mut next = 0..;
                // A struct expression evaluates its fields in the order they are written.
                Ok($name {
                    $($field: copy.get(next.next().unwrap_or(0), concat!($kernel, ".", $path))),*
                })
            }

            /// Keeps the structure at `at` for later.
            pub fn touch(&self, mem: &$crate::paging::KernelMem<'_>, at: $crate::addr::Kva) {
                self.0.touch(mem, at);
            }

            /// The members this kernel lacks.
            pub fn absent(&self) -> impl Iterator<Item = &$crate::btf::FieldMissing> {
                self.0.absent()
            }
        }

        impl $name {
            /// All members by the kernel's names.
            pub fn node(&self) -> $crate::node::Node {
                use $crate::kernel::mirror::Member as _;
                $crate::node::Node::nested([
                    $(($path, $crate::node::Node::reading(&self.$field, |value| value.node()))),*
                ])
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(offset: u64, size: u64) -> Result<Field, FieldMissing> {
        Ok(Field { offset, size, bits: None, kind: FieldKind::Unsigned })
    }

    #[test]
    fn near_members_are_copied_together() {
        let fields = [field(600, 8), field(0, 4), field(100, 4), Err(FieldMissing::Struct { name: "x" })];
        let joined = pieces(&fields);
        let expected = [Piece { from: 0, len: 104, into: 0 }, Piece { from: 600, len: 8, into: 104 }];
        assert_eq!(joined, expected);
    }

    #[test]
    fn masks_are_shown_as_ranges() {
        let mask = CpuMask::new(vec![0b1000_1111, 1, 0]);
        assert_eq!(mask.to_string(), "0-3,7-8");
        assert_eq!(mask.within(&CpuMask::new(vec![0b11, 0, 0])).to_string(), "0-1");
        assert_eq!(CpuMask::default().to_string(), "");
    }
}

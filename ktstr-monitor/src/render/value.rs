//! What a value is, independent of how it is printed.

use super::build::Space;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number without sign.
    Unsigned(u64),
    /// A number with sign.
    Signed(i64),
    /// A truth value.
    Bool(bool),
    /// A floating-point number.
    Float(f64),
    /// A single `char`.
    Char(u8),
    /// A member of an enumeration; several names where it is made of flags, none where it is unknown.
    Enum {
        /// The number.
        raw: i128,
        /// Its names.
        names: Vec<String>,
    },
    /// Characters up to the first NUL of an array; nothing but NULs came after it.
    Text(String),
    /// CPUs, as ranges with both ends.
    Cpus(Vec<(u32, u32)>),
    /// Bytes that have no type, or one too large for a number.
    Bytes(Vec<u8>),
    /// A pointer.
    Pointer(Pointer),
    /// Elements.
    Array {
        /// Runs of equal ones.
        runs: Vec<Run>,
        /// How many were left out at the end.
        left_off: u64,
    },
    /// A structure or union.
    Composite {
        /// Its type, as C writes it.
        ty: String,
        /// Members overlap.
        union: bool,
        /// Names and values; an anonymous member has an empty name.
        members: Vec<(String, Value)>,
    },
    /// No value, and why.
    Missing(String),
}

/// Consecutive equal elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Where it begins.
    pub first: u64,
    /// How many there are.
    pub count: u64,
    /// What they are.
    pub value: Value,
}

/// A pointer.
#[derive(Clone, Debug, PartialEq)]
pub struct Pointer {
    /// Its number.
    pub raw: u64,
    /// What it points at, as C writes it.
    pub to: String,
    /// Where it leads, if that is known.
    pub space: Option<Space>,
    /// Its declared type is a number: what programs do with it showed that it is a pointer.
    pub cast: bool,
    /// The slot of an arena's allocator that it leads into.
    pub slot: Option<String>,
    /// What is there.
    pub target: Target,
}

/// What a pointer leads to.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// It is NULL, or was not followed on request.
    None,
    /// A function or variable of the kernel, by name.
    Symbol(String),
    /// The value there.
    Value(Box<Value>),
    /// Shown already further out: following it again would not end.
    Cycle,
    /// It could not be followed, and why.
    Lost(String),
}

impl Value {
    /// The number, where it is one; a pointer's address, an enum's raw value.
    pub fn as_number(&self) -> Option<i128> {
        Some(match self {
            Self::Unsigned(value) => (*value).into(),
            Self::Signed(value) => (*value).into(),
            Self::Bool(value) => (*value).into(),
            Self::Char(value) => (*value).into(),
            Self::Enum { raw, .. } => *raw,
            Self::Pointer(pointer) => pointer.raw.into(),
            _ => return None,
        })
    }

    /// The part of it that `name` means: a member (anonymous ones looked through, pointers followed),
    /// or the element of that number.
    pub fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Composite { members, .. } => {
                let own = members.iter().find(|(own, _)| own == name).map(|(_, value)| value);
                own.or_else(|| {
                    members.iter().filter(|(own, _)| own.is_empty()).find_map(|(_, inner)| inner.get(name))
                })
            }
            Self::Pointer(Pointer { target: Target::Value(value), .. }) => value.get(name),
            Self::Array { runs, .. } => {
                let index: u64 = name.parse().ok()?;
                let holds = |run: &&Run| index.checked_sub(run.first).is_some_and(|into| into < run.count);
                runs.iter().find(holds).map(|run| &run.value)
            }
            _ => None,
        }
    }

    /// As [`Value::get`], along names separated by dots.
    pub fn at(&self, path: &str) -> Option<&Self> {
        path.split('.').try_fold(self, |here, name| here.get(name))
    }
}

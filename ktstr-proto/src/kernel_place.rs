//! Places in the guest's kernel that a test has its host read and write, from outside, through guest memory.
//!
//! Nothing here is checked: the monitor looks for the place by symbols and BTF, and refuses what it does not find.

use serde::{Deserialize, Serialize};

/// Longest piece of memory that is read or written at once, bytes.
pub const MAX_PIECE: u32 = 1024;
/// Writes of one request, at most.
pub const MAX_WRITES: usize = 64;

/// A place in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelTarget {
    /// A variable of the kernel, or `MODULE:NAME`; behind it `@CPU` for a per-CPU one.
    Symbol(String),
    /// A kernel-virtual address.
    Kva(u64),
    /// A member of a per-CPU variable: `runqueues`, `cfs.h_nr_queued`, CPU 1.
    PerCpuField {
        /// The variable.
        symbol: String,
        /// The member, pointers followed: `curr->pid`.
        field: String,
        /// The CPU.
        cpu: u32,
    },
    /// A member of a task's `task_struct`.
    TaskField {
        /// Its thread id.
        pid: i32,
        /// `task_struct.start_time`: where it is another, the id has been given to somebody else.
        expected_start_time_ns: Option<u64>,
        /// The member: `se.vruntime`, `comm`.
        field: String,
    },
}

impl std::fmt::Display for KernelTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Symbol(name) => f.write_str(name),
            Self::Kva(at) => write!(f, "{at:#x}"),
            Self::PerCpuField { symbol, field, cpu } => write!(f, "{symbol}@{cpu} {field}"),
            Self::TaskField { pid, field, .. } => write!(f, "task {pid} {field}"),
        }
    }
}

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelWidth {
    /// A number of four bytes.
    U32,
    /// A number of eight bytes.
    U64,
    /// So many bytes, at most [`MAX_PIECE`].
    Bytes(u32),
}

impl KernelWidth {
    /// In bytes.
    pub const fn len(self) -> u32 {
        match self {
            Self::U32 => 4,
            Self::U64 => 8,
            Self::Bytes(len) => len,
        }
    }

    /// Whether it is nothing.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// What is read or written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelValue {
    /// A number of four bytes.
    U32(u32),
    /// A number of eight bytes.
    U64(u64),
    /// Bytes as they lie there.
    Bytes(Vec<u8>),
    /// Bits that are set in a number of four bytes, whose others stay. Never what is read.
    OrU32(u32),
}

impl KernelValue {
    /// How much of memory it takes.
    pub fn width(&self) -> KernelWidth {
        match self {
            Self::U32(_) | Self::OrU32(_) => KernelWidth::U32,
            Self::U64(_) => KernelWidth::U64,
            Self::Bytes(bytes) => KernelWidth::Bytes(bytes.len().try_into().unwrap_or(u32::MAX)),
        }
    }

    /// As a number, if it is one.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::U32(value) | Self::OrU32(value) => Some((*value).into()),
            Self::U64(value) => Some(*value),
            Self::Bytes(_) => None,
        }
    }
}

impl std::fmt::Display for KernelValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::U32(value) => value.fmt(f),
            Self::U64(value) => value.fmt(f),
            Self::Bytes(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            Self::OrU32(value) => write!(f, "|{value:#x}"),
        }
    }
}

/// A value for a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelWrite {
    /// The place.
    pub target: KernelTarget,
    /// What is to be there.
    pub value: KernelValue,
}

impl KernelWrite {
    /// `value` at `target`.
    pub const fn new(target: KernelTarget, value: KernelValue) -> Self {
        Self { target, value }
    }
}

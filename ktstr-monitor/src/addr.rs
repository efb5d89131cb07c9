//! Addresses that must not be mixed up: guest-physical, kernel-virtual, and CPU numbers.
//!
//! There is no conversion between [`Gpa`] and [`Kva`] here: going from one to the other is what
//! [`crate::paging`] does, and it can fail.

use std::fmt;

/// A guest-physical address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// A kernel-virtual address of the guest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kva(pub u64);

/// A logical CPU number of the guest kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(pub u32);

impl Gpa {
    /// The address `bytes` further on, or `None` past the end of the address space.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl Kva {
    /// The address `bytes` further on, or `None` past the end of the address space.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }

    /// The address shifted by a two's-complement amount: per-CPU offsets and KASLR shifts wrap.
    pub fn wrapping_add(self, shift: u64) -> Self {
        Self(self.0.wrapping_add(shift))
    }

    /// Whether this is the kernel's NULL.
    pub fn is_null(self) -> bool {
        self.0 == 0
    }
}

macro_rules! hex {
    ($type:ident, $prefix:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "({:#x})"), self.0)
            }
        }
    };
}

hex!(Gpa, "Gpa");
hex!(Kva, "Kva");

impl fmt::Display for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuId({})", self.0)
    }
}

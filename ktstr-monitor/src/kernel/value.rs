//! A value read from the guest, or the reason why there is none.

use thiserror::Error;

use super::mirror::scalar;
use crate::addr::{CpuId, Kva};
use crate::btf::{Field, FieldMissing};
use crate::paging::{AccessError, KernelMem};

/// A value, or why there is none. Nothing unreadable is ever reported as 0.
pub type Reading<T> = Result<T, Gap>;

/// Why a value is missing from a sample.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Gap {
    /// This kernel has no such thing.
    #[error(transparent)]
    Absent(#[from] FieldMissing),
    /// This kernel has no such variable.
    #[error("this kernel has no symbol `{symbol}`")]
    NoSymbol {
        /// The symbol.
        symbol: &'static str,
    },
    /// The kernel can do it and does not.
    #[error("{what} is switched off")]
    Off {
        /// What is.
        what: &'static str,
    },
    /// There is nothing that it could be said of.
    #[error("{why}")]
    Nothing {
        /// Why not.
        why: &'static str,
    },
    /// It could not be read just now.
    #[error("cannot read `{what}`")]
    Unreadable {
        /// What was read, in the kernel's terms.
        what: &'static str,
        /// Why not.
        #[source]
        source: AccessError,
    },
    /// It changed under the reading.
    #[error("`{what}` changed while it was read")]
    Torn {
        /// What changed.
        what: &'static str,
    },
    /// What lies there is not the CPU's run queue.
    #[error("the run queue of CPU {cpu} says it belongs to CPU {found}")]
    ForeignRq {
        /// Whose run queue was looked for.
        cpu: CpuId,
        /// What its `cpu` member says.
        found: i64,
    },
    /// The type information gives it a size that no scalar has.
    #[error("`{what}` has {size} bytes, which is no scalar")]
    NotScalar {
        /// What it is.
        what: &'static str,
        /// Its size.
        size: u64,
    },
    /// The value is out of its type's range.
    #[error("`{what}` has the impossible value {value}")]
    Implausible {
        /// What it is.
        what: &'static str,
        /// What was read.
        value: i128,
    },
}

/// Reads the scalar `field` of the structure at `base`, sign-extended where the kernel's type is.
pub fn read_field(mem: &KernelMem<'_>, base: Kva, field: &Field, what: &'static str) -> Reading<i128> {
    let size = usize::try_from(field.size).ok().filter(|size| matches!(size, 1 | 2 | 4 | 8));
    let size = size.ok_or(Gap::NotScalar { what, size: field.size })?;
    let mut bytes = [0; 8];
    let at = base
        .checked_add(field.offset)
        .ok_or(Gap::Unreadable { what, source: AccessError::Wraps { kva: base, len: size } })?;
    mem.read(at, &mut bytes[..size]).map_err(|source| Gap::Unreadable { what, source })?;
    scalar(&bytes[..size], field, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Gpa;
    use crate::arch::x86_64::{Levels, PageTable};
    use crate::btf::FieldKind;
    use crate::mem::{GuestMem, Layout};

    fn read(bytes: [u8; 8], size: u64, bits: Option<(u8, u8)>, kind: FieldKind) -> Reading<i128> {
        // One table at 0 whose entry 511 is itself: the last page is the table.
        let mut memory = vec![0; 0x1000];
        memory[0xff8..].copy_from_slice(&1u64.to_le_bytes());
        memory[0x100..0x108].copy_from_slice(&bytes);
        let mem = GuestMem::from_bytes(&memory, Layout::flat(0x1000).unwrap()).unwrap();
        let table = PageTable { root: Gpa(0), levels: Levels::Four };
        let mem = KernelMem::new(&mem, table);
        read_field(&mem, Kva(u64::MAX - 0xfff), &Field { offset: 0x100, size, bits, kind }, "x")
    }

    #[test]
    fn extends_by_the_kernels_type() {
        let bytes = [0xfe, 0xff, 0xff, 0xff, 1, 0, 0, 0];
        assert_eq!(read(bytes, 4, None, FieldKind::Signed), Ok(-2));
        assert_eq!(read(bytes, 4, None, FieldKind::Unsigned), Ok(0xffff_fffe));
        assert_eq!(read(bytes, 8, None, FieldKind::Unsigned), Ok(0x1_ffff_fffe));
        assert_eq!(read([0xff; 8], 8, None, FieldKind::Pointer), Ok(i128::from(u64::MAX)));
    }

    #[test]
    fn cuts_bitfields_out() {
        let bytes = [0b1011_0100, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(read(bytes, 1, Some((2, 1)), FieldKind::Unsigned), Ok(1));
        assert_eq!(read(bytes, 1, Some((3, 1)), FieldKind::Unsigned), Ok(0));
        assert_eq!(read(bytes, 4, Some((4, 5)), FieldKind::Unsigned), Ok(0b11011));
        assert_eq!(read(bytes, 4, Some((4, 5)), FieldKind::Signed), Ok(-5));
    }

    #[test]
    fn refuses_what_is_no_scalar() {
        let no_scalar = Err(Gap::NotScalar { what: "x", size: 3 });
        assert_eq!(read([0; 8], 3, None, FieldKind::Unsigned), no_scalar);
        assert!(read([0; 8], 8, None, FieldKind::Aggregate).is_err());
    }
}

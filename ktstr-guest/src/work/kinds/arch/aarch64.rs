//! 64-bit Arm: general registers and NEON.

use std::arch::asm;

use crate::work::SimdWidth;

/// A function that does so many rounds of four multiplications; `None` if this CPU lacks the width.
pub(in crate::work::kinds) fn multiplier(width: SimdWidth) -> Option<fn(u64)> {
    match width {
        SimdWidth::Scalar => Some(scalar),
        SimdWidth::Vec128 | SimdWidth::Widest => Some(vec128),
        SimdWidth::Vec256 | SimdWidth::Vec512 | SimdWidth::Amx => None,
    }
}

/// Nothing to give back.
pub(in crate::work::kinds) fn leave() {}

fn scalar(rounds: u64) {
    if rounds == 0 {
        return;
    }
    // SAFETY: changes only the registers it names.
    unsafe {
        asm!(
            "2:",
            "mul {a}, {a}, {k}",
            "mul {b}, {b}, {k}",
            "mul {c}, {c}, {k}",
            "mul {d}, {d}, {k}",
            "subs {n}, {n}, #1",
            "b.ne 2b",
            a = inout(reg) 1u64 => _,
            b = inout(reg) 3u64 => _,
            c = inout(reg) 5u64 => _,
            d = inout(reg) 7u64 => _,
            k = in(reg) 6_364_136_223_846_793_005u64,
            n = inout(reg) rounds => _,
            options(nomem, nostack),
        );
    }
}

fn vec128(rounds: u64) {
    if rounds == 0 {
        return;
    }
    // SAFETY: NEON is part of every 64-bit Arm; changes only the registers it names.
    unsafe {
        asm!(
            "dup v0.4s, {seed:w}",
            "dup v1.4s, {seed:w}",
            "dup v2.4s, {seed:w}",
            "dup v3.4s, {seed:w}",
            "dup v4.4s, {seed:w}",
            "2:",
            "mul v0.4s, v0.4s, v4.4s",
            "mul v1.4s, v1.4s, v4.4s",
            "mul v2.4s, v2.4s, v4.4s",
            "mul v3.4s, v3.4s, v4.4s",
            "subs {n}, {n}, #1",
            "b.ne 2b",
            seed = in(reg) 0x9e37_79b1u64,
            n = inout(reg) rounds => _,
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _,
            options(nomem, nostack),
        );
    }
}

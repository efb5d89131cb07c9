//! x86-64: general registers, SSE2, AVX2, AVX-512, AMX tiles.
//!
//! A round is four multiplications that do not depend on each other; every vector is different in each
//! round, so that whoever looks at a worker's registers sees the width in use.

use std::arch::{asm, x86_64::__cpuid_count};

use crate::work::SimdWidth;

/// A function that does so many rounds of four multiplications; `None` if this CPU lacks the width.
pub(in crate::work::kinds) fn multiplier(width: SimdWidth) -> Option<fn(u64)> {
    let has_avx2 = is_x86_feature_detected!("avx2");
    let has_avx512 = is_x86_feature_detected!("avx512f");
    match width {
        SimdWidth::Scalar => Some(scalar),
        SimdWidth::Vec128 => Some(vec128),
        SimdWidth::Vec256 => has_avx2.then_some(vec256 as fn(u64)),
        SimdWidth::Vec512 => has_avx512.then_some(vec512 as fn(u64)),
        SimdWidth::Amx => tiles_permitted().then_some(amx as fn(u64)),
        SimdWidth::Widest if has_avx512 => Some(vec512),
        SimdWidth::Widest if has_avx2 => Some(vec256),
        SimdWidth::Widest => Some(vec128),
    }
}

/// Gives wide registers back, so that later switches of this thread are cheap again.
pub(in crate::work::kinds) fn leave() {
    if is_x86_feature_detected!("avx") {
        // SAFETY: AVX is there; the instruction changes upper halves of vector registers only, which no
        // code keeps values in across a call.
        unsafe { asm!("vzeroupper", options(nomem, nostack), out("xmm0") _) };
    }
}

fn scalar(rounds: u64) {
    if rounds == 0 {
        return;
    }
    // SAFETY: changes only the registers it names.
    unsafe {
        asm!(
            "2:",
            "imul {a}, {k}",
            "imul {b}, {k}",
            "imul {c}, {k}",
            "imul {d}, {k}",
            "dec {n}",
            "jnz 2b",
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

/// A loop of four vector multiplications; lanes are odd numbers, whose products never become zero.
macro_rules! vector {
    ($name:ident, $reg:literal, $load:literal, $mul:literal) => {
        fn $name(rounds: u64) {
            const SEED: [u32; 16] = {
                let mut seed = [0; 16];
                let mut lane = 0;
                while lane < 16 {
                    seed[lane] = 0x9e37_79b1 + 2 * lane as u32;
                    lane += 1;
                }
                seed
            };
            if rounds == 0 {
                return;
            }
            // SAFETY: `multiplier` hands this out only where the CPU has these instructions; reads 64 bytes
            // of a constant, changes only the registers it names.
            unsafe {
                asm!(
                    concat!($load, " ", $reg, "0, [{seed}]"),
                    concat!($load, " ", $reg, "1, [{seed}]"),
                    concat!($load, " ", $reg, "2, [{seed}]"),
                    concat!($load, " ", $reg, "3, [{seed}]"),
                    concat!($load, " ", $reg, "4, [{seed}]"),
                    "2:",
                    $mul,
                    "dec {n}",
                    "jnz 2b",
                    seed = in(reg) SEED.as_ptr(),
                    n = inout(reg) rounds => _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _,
                    options(readonly, nostack),
                );
            }
        }
    };
}

vector!(
    vec128,
    "xmm",
    "movdqu",
    "pmullw xmm0, xmm4\npmullw xmm1, xmm4\npmullw xmm2, xmm4\npmullw xmm3, xmm4"
);
vector!(
    vec256,
    "ymm",
    "vmovdqu",
    "vpmulld ymm0, ymm0, ymm4\nvpmulld ymm1, ymm1, ymm4\nvpmulld ymm2, ymm2, ymm4\nvpmulld ymm3, ymm3, ymm4"
);
vector!(
    vec512,
    "zmm",
    "vmovdqu32",
    "vpmulld zmm0, zmm0, zmm4\nvpmulld zmm1, zmm1, zmm4\nvpmulld zmm2, zmm2, zmm4\nvpmulld zmm3, zmm3, zmm4"
);

/// Whether the CPU multiplies 8-bit tiles and the kernel lets this thread's process use them.
fn tiles_permitted() -> bool {
    /// `arch_prctl` request of `arch/x86/include/uapi/asm/prctl.h`.
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    /// State component of the tiles' data.
    const XFEATURE_XTILEDATA: u64 = 18;
    let leaf = __cpuid_count(7, 0);
    let has_tiles = leaf.edx >> 24 & 1 == 1 && leaf.edx >> 25 & 1 == 1;
    // SAFETY: takes numbers only.
    has_tiles
        && unsafe { nix::libc::syscall(nix::libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) }
            == 0
}

fn amx(rounds: u64) {
    /// Palette 1; tiles 0 to 5 of 16 rows with 64 bytes each.
    const CONFIG: [u8; 64] = {
        let mut config = [0; 64];
        config[0] = 1;
        let mut tile = 0;
        while tile < 6 {
            config[16 + 2 * tile] = 64;
            config[48 + tile] = 16;
            tile += 1;
        }
        config
    };
    const DATA: [u8; 1024] = [3; 1024];
    if rounds == 0 {
        return;
    }
    // SAFETY: `multiplier` hands this out only where the CPU has tiles and the kernel permits them; reads
    // the two constants, 1024 bytes a tile, and releases the tiles at the end, which no other code uses.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "tileloadd tmm4, [{data} + {stride}]",
            "tileloadd tmm5, [{data} + {stride}]",
            "2:",
            "tdpbssd tmm0, tmm4, tmm5",
            "tdpbssd tmm1, tmm4, tmm5",
            "tdpbssd tmm2, tmm4, tmm5",
            "tdpbssd tmm3, tmm4, tmm5",
            "dec {n}",
            "jnz 2b",
            "tilerelease",
            config = in(reg) CONFIG.as_ptr(),
            data = in(reg) DATA.as_ptr(),
            stride = in(reg) 0u64,
            n = inout(reg) rounds => _,
            options(readonly, nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_this_machine_has_runs() {
        for width in [
            SimdWidth::Scalar,
            SimdWidth::Vec128,
            SimdWidth::Vec256,
            SimdWidth::Vec512,
            SimdWidth::Amx,
            SimdWidth::Widest,
        ] {
            if let Some(multiply) = multiplier(width) {
                multiply(0);
                multiply(100);
            }
        }
        leave();
        assert!(multiplier(SimdWidth::Scalar).is_some() && multiplier(SimdWidth::Widest).is_some());
    }
}

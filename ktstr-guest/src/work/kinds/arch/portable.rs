//! Processors without assembly of their own: scalar multiplications only.

use crate::work::SimdWidth;

/// A function that does so many rounds of four multiplications; `None` if this CPU lacks the width.
pub(in crate::work::kinds) fn multiplier(width: SimdWidth) -> Option<fn(u64)> {
    matches!(width, SimdWidth::Scalar | SimdWidth::Widest).then_some(scalar as fn(u64))
}

/// Nothing to give back.
pub(in crate::work::kinds) fn leave() {}

fn scalar(rounds: u64) {
    let mut chains = [1u64, 3, 5, 7];
    for _ in 0..rounds {
        for chain in &mut chains {
            *chain = chain.wrapping_mul(6_364_136_223_846_793_005);
        }
        std::hint::black_box(&mut chains);
    }
}

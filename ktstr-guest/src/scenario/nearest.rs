//! The known word nearest to one that is not known.

use ktstr_proto::word::edits;

/// The nearest of `known`, when it is near enough to be what was meant.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let (steps, near) = known.iter().map(|candidate| (edits(name, candidate), *candidate)).min()?;
    (steps <= 1 + near.chars().count() / 3).then_some(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_recognised_and_far_ones_are_not() {
        assert_eq!(nearest("cg_o", &["cg_0", "heavy"]), Some("cg_0"));
        assert_eq!(nearest("havy", &["cg_0", "heavy"]), Some("heavy"));
        assert_eq!(nearest("frobnicate", &["cg_0", "heavy"]), None);
        assert_eq!(nearest("x", &[]), None);
    }
}

//! The known word nearest to one that is not known.

/// The nearest of `known`, when it is near enough to be what was meant.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let (steps, near) = known.iter().map(|candidate| (distance(name, candidate), *candidate)).min()?;
    (steps <= 1 + near.chars().count() / 3).then_some(near)
}

/// Edits that turn one word into the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replace = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
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

//! How far one word is from another, for "did you mean". What counts as near is the caller's to say.

/// Least number of characters to insert, delete or replace to get from `from` to `to` (Levenshtein).
/// Takes time in proportion to the product of the lengths: cut what may be long.
pub fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, given) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, wanted) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(given != *wanted);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!((edits("", "abc"), edits("abc", ""), edits("ä", "ä")), (3, 3, 0));
    }
}

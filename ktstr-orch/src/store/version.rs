//! Kernel versions: how releases are ordered and how a series prefix matches.
//!
//! A release is what `uname -r` prints (`7.2.12+deb13-cloud-amd64`). Its
//! leading dotted numbers decide the order, a release candidate comes before
//! its release, and the rest breaks ties by dpkg's rules so that `deb14` is
//! newer than `deb13`.

use std::cmp::Ordering;
use std::fmt;

/// A release string with its parsed leading numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelVersion {
    numbers: Vec<u32>,
    candidate: Option<u32>,
    release: String,
}

impl KernelVersion {
    /// Parses a release; `None` when it does not start with a number.
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = Vec::new();
        let mut rest = release;
        loop {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            numbers.push(rest[..digits].parse().ok()?);
            rest = &rest[digits..];
            match rest.strip_prefix('.') {
                Some(next) if next.starts_with(|c: char| c.is_ascii_digit()) => rest = next,
                _ => break,
            }
        }
        let candidate = rest
            .strip_prefix("-rc")
            .or_else(|| rest.strip_prefix("~rc"))
            .map(|tail| tail.split(|c: char| !c.is_ascii_digit()).next().unwrap_or(""))
            .and_then(|digits| digits.parse().ok());
        Some(Self { numbers, candidate, release: release.to_owned() })
    }

    /// The whole release string.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The upstream part: `7.2.12`, `6.15-rc3`.
    pub fn upstream(&self) -> String {
        let dotted: Vec<String> = self.numbers.iter().map(u32::to_string).collect();
        match self.candidate {
            Some(n) => format!("{}-rc{n}", dotted.join(".")),
            None => dotted.join("."),
        }
    }

    /// The first two numbers: `7.2`.
    pub fn series(&self) -> String {
        self.numbers.iter().take(2).map(u32::to_string).collect::<Vec<_>>().join(".")
    }

    /// The first `count` numbers; those that it does not have are 0.
    pub fn first(&self, count: usize) -> Vec<u32> {
        self.numbers.iter().copied().chain(std::iter::repeat(0)).take(count).collect()
    }

    /// Whether the first numbers are at least `floor`.
    pub fn at_least(&self, floor: &[u32]) -> bool {
        self.numbers.as_slice() >= floor
    }

    /// Whether `wanted` names this version: the whole release, the upstream
    /// version, or a prefix of its numbers (`7`, `7.2`).
    pub fn matches(&self, wanted: &str) -> bool {
        if wanted == self.release || wanted == self.upstream() {
            return true;
        }
        let numbers: Option<Vec<u32>> = wanted.split('.').map(|part| part.parse().ok()).collect();
        numbers.is_some_and(|numbers| self.numbers.starts_with(&numbers))
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.release)
    }
}

impl Ord for KernelVersion {
    fn cmp(&self, other: &Self) -> Ordering {
        self.numbers
            .cmp(&other.numbers)
            // No candidate number means the final release, which is newer.
            .then_with(|| self.candidate.unwrap_or(u32::MAX).cmp(&other.candidate.unwrap_or(u32::MAX)))
            .then_with(|| compare_debian(&self.release, &other.release))
    }
}

impl PartialOrd for KernelVersion {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Orders two version strings by the rules of the Debian policy manual,
/// chapter 5.6.12, without the epoch: runs of non-digits compare by character
/// with `~` first and letters before the rest, runs of digits as numbers.
pub(super) fn compare_debian(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    while !left.is_empty() || !right.is_empty() {
        let (text_left, rest_left) = split_run(left, |b| !b.is_ascii_digit());
        let (text_right, rest_right) = split_run(right, |b| !b.is_ascii_digit());
        let longest = text_left.len().max(text_right.len());
        for at in 0..longest {
            let order = rank(text_left.get(at)).cmp(&rank(text_right.get(at)));
            if order != Ordering::Equal {
                return order;
            }
        }
        let (digits_left, next_left) = split_run(rest_left, |b| b.is_ascii_digit());
        let (digits_right, next_right) = split_run(rest_right, |b| b.is_ascii_digit());
        let order = compare_digits(digits_left, digits_right);
        if order != Ordering::Equal {
            return order;
        }
        (left, right) = (next_left, next_right);
    }
    Ordering::Equal
}

fn split_run(bytes: &[u8], belongs: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|&b| !belongs(b)).unwrap_or(bytes.len());
    bytes.split_at(end)
}

fn rank(byte: Option<&u8>) -> i32 {
    match byte {
        Some(b'~') => -1,
        None => 0,
        Some(b) if b.is_ascii_alphabetic() => i32::from(*b),
        Some(b) => i32::from(*b) + 256,
    }
}

fn compare_digits(left: &[u8], right: &[u8]) -> Ordering {
    let strip = |digits: &[u8]| -> Vec<u8> { digits.iter().copied().skip_while(|&b| b == b'0').collect() };
    let (left, right) = (strip(left), strip(right));
    left.len().cmp(&right.len()).then_with(|| left.cmp(&right))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(release: &str) -> KernelVersion {
        KernelVersion::parse(release).unwrap()
    }

    #[test]
    fn order_is_numeric_then_candidates_then_suffix() {
        let sorted = [
            "6.9.1",
            "6.15.0-rc3",
            "6.15.0",
            "6.18.15+deb13-cloud-amd64",
            "7.2.9+deb13-cloud-amd64",
            "7.2.12+deb13-cloud-amd64",
            "7.2.12+deb14-cloud-amd64",
        ];
        for pair in sorted.windows(2) {
            assert!(version(pair[0]) < version(pair[1]), "{pair:?}");
        }
    }

    #[test]
    fn series_match_whole_numbers_only() {
        let kernel = version("7.2.12+deb13-cloud-amd64");
        for yes in ["7", "7.2", "7.2.12", "7.2.12+deb13-cloud-amd64"] {
            assert!(kernel.matches(yes), "{yes}");
        }
        for no in ["", "7.", "7.20", "7.2.1", "7.2.12.1", "7.2.12+deb13", "x"] {
            assert!(!kernel.matches(no), "{no}");
        }
    }

    #[test]
    fn candidates() {
        let rc = version("6.15-rc3");
        assert_eq!(rc.upstream(), "6.15-rc3");
        assert!(rc.matches("6.15-rc3") && rc.matches("6.15"));
        assert!(rc < version("6.15"));
    }

    #[test]
    fn debian_order() {
        for (older, newer) in [
            ("7.2.12-1~bpo13+1", "7.2.12-1"),
            ("7.2.9-1", "7.2.12-1"),
            ("1.0~rc1", "1.0"),
            ("1.0", "1.0+b1"),
            ("1.0a", "1.0+"),
            ("1.09", "1.10"),
        ] {
            assert_eq!(compare_debian(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare_debian(newer, older), Ordering::Greater, "{older} {newer}");
        }
        assert_eq!(compare_debian("1.00", "1.0"), Ordering::Equal);
    }

    #[test]
    fn no_number_is_no_version() {
        for text in ["", "v7.2", "deb13", "99999999999.1"] {
            assert_eq!(KernelVersion::parse(text), None, "{text}");
        }
    }
}

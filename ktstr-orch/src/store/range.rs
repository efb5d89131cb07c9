//! Kernels by series: `7.2`, `6.17..=7.2`, `6.17..7.2`, `6.17..`, `..=7.2`. A bound is a series, so
//! `..=7.2` holds every 7.2.x.
//!
//! Refuses what is no such text; which kernels there are is [`super::Store`]'s.

use std::str::FromStr;

use super::KernelVersion;

/// Kernels that a scheduler is meant for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelRange {
    /// One version or series.
    Series(String),
    /// From one series to another.
    Between {
        /// The first; none is from the beginning.
        low: Option<Vec<u32>>,
        /// The last, or the first that is no longer meant; none is without end.
        high: Option<High>,
    },
}

/// Where a range ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum High {
    /// With this series.
    With(Vec<u32>),
    /// Before this series.
    Before(Vec<u32>),
}

/// The text names no kernels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` names no kernels: write a series, `6.18`, or a range of them, `6.17..=7.2`")]
pub struct NoRange {
    /// The text.
    pub text: String,
}

impl FromStr for KernelRange {
    type Err = NoRange;

    fn from_str(text: &str) -> Result<Self, NoRange> {
        let wrong = || NoRange { text: text.into() };
        let Some((low, high)) = text.split_once("..") else {
            // A whole release has a suffix, which must then be the kernel's.
            let whole = |version: &KernelVersion| version.upstream() == text || text.contains('-');
            let version = KernelVersion::parse(text).filter(whole);
            return version.map(|_| Self::Series(text.into())).ok_or_else(wrong);
        };
        let series = |text: &str| -> Result<Option<Vec<u32>>, NoRange> {
            if text.is_empty() {
                return Ok(None);
            }
            text.split('.').map(|part| part.parse().ok()).collect::<Option<_>>().map(Some).ok_or_else(wrong)
        };
        let high = match high.strip_prefix('=') {
            Some(last) => Some(High::With(series(last)?.ok_or_else(wrong)?)),
            None => series(high)?.map(High::Before),
        };
        Ok(Self::Between { low: series(low)?, high })
    }
}

impl KernelRange {
    /// Whether it holds this kernel.
    pub fn holds(&self, kernel: &KernelVersion) -> bool {
        match self {
            Self::Series(series) => kernel.matches(series),
            Self::Between { low, high } => {
                low.as_ref().is_none_or(|low| kernel.first(low.len()) >= *low)
                    && match high {
                        None => true,
                        Some(High::With(high)) => kernel.first(high.len()) <= *high,
                        Some(High::Before(high)) => kernel.first(high.len()) < *high,
                    }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_a_series() {
        for (range, within, without) in [
            ("6.18", &["6.18.15+deb13-cloud-amd64", "6.18", "6.18-rc2"][..], &["6.1.8", "7.0"][..]),
            ("6.15..=7.0", &["6.15", "6.15.3", "6.18.1", "7.0", "7.0.9"], &["6.14.9", "7.1", "7.1-rc1"]),
            ("6.15..7.0", &["6.15", "6.19.2"], &["7.0", "7.0.1", "6.9"]),
            ("6.17..", &["6.17", "7.2.13", "10.1"], &["6.9", "6.16.12"]),
            ("..=6.18.2", &["5.4", "6.18.2", "6.18"], &["6.18.3", "6.19"]),
            ("7..=7", &["7.0", "7.2.1"], &["6.18", "8.0"]),
        ] {
            let range: KernelRange = range.parse().unwrap();
            let holds = |release: &str| range.holds(&KernelVersion::parse(release).unwrap());
            within.iter().for_each(|release| assert!(holds(release), "{range:?} {release}"));
            without.iter().for_each(|release| assert!(!holds(release), "{range:?} {release}"));
        }
    }

    #[test]
    fn what_names_no_kernels_is_refused() {
        for text in ["", "newest", "6.17..=", "a..b", "6.17..=x", "6..7..8", "6,18", "6.18x"] {
            assert!(text.parse::<KernelRange>().is_err(), "{text}");
        }
    }
}

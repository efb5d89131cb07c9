//! Which packages of a mirror's listing make up a bootable cloud kernel.
//!
//! Up to 6.18 one package `linux-image-R` holds everything; later kernels are
//! split into `linux-binary-R`, `linux-modules-R` and `linux-base-R`. Mirrors
//! keep remains of old kernels and publish new ones piecewise, so a set counts
//! only when every part is there in one version. The small `linux-image-R` of
//! a split kernel holds no kernel and is told apart by what it depends on.

use std::collections::{BTreeMap, BTreeSet};

use super::super::version::{KernelVersion, compare_debian};
use super::control::Paragraph;

const SPLIT: [&str; 3] = ["binary", "modules", "base"];

/// A package as the listing names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Package version.
    pub version: String,
    /// Bytes to download.
    pub size: u64,
}

/// A complete kernel on the mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Its release.
    pub version: KernelVersion,
    /// What to download.
    pub packages: Vec<Package>,
}

impl Offer {
    /// Bytes to download.
    pub fn size(&self) -> u64 {
        self.packages.iter().map(|p| p.size).sum()
    }
}

/// Why no offer could be chosen.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OfferError {
    /// No complete kernel of that series.
    #[error("the mirror has no complete cloud kernel {series}; it offers {offered}")]
    NoSeries {
        /// What was wanted.
        series: String,
        /// The series and versions there are.
        offered: String,
    },
    /// No kernel with sched_ext at all.
    #[error("the mirror has no complete cloud kernel with sched_ext (6.16 or later); it offers {offered}")]
    NoSchedExt {
        /// The series and versions there are.
        offered: String,
    },
}

/// The complete kernels in a listing, newest first.
pub(super) fn complete(records: &[Paragraph], arch: &str) -> Vec<Offer> {
    let suffix = format!("-cloud-{arch}");
    let mut releases: BTreeMap<&str, BTreeMap<&str, Vec<&Paragraph>>> = BTreeMap::new();
    for record in records {
        let Some((part, release)) = record
            .get("package")
            .and_then(|name| name.strip_prefix("linux-")?.split_once('-'))
            .filter(|(_, release)| release.ends_with(&suffix))
        else {
            continue;
        };
        releases.entry(release).or_default().entry(part).or_default().push(record);
    }
    let mut offers: Vec<Offer> = releases
        .into_iter()
        .filter_map(|(release, parts)| {
            let version = KernelVersion::parse(release)?;
            let packages = monolithic(&parts).or_else(|| split(&parts))?;
            Some(Offer { version, packages })
        })
        .collect();
    offers.sort_by(|a, b| b.version.cmp(&a.version));
    offers
}

fn monolithic(parts: &BTreeMap<&str, Vec<&Paragraph>>) -> Option<Vec<Package>> {
    let newest = parts
        .get("image")?
        .iter()
        .filter(|record| !record.get("depends").is_some_and(|depends| depends.contains("linux-binary-")))
        .filter_map(|record| package(record))
        .max_by(|a, b| compare_debian(&a.version, &b.version))?;
    Some(vec![newest])
}

fn split(parts: &BTreeMap<&str, Vec<&Paragraph>>) -> Option<Vec<Package>> {
    let of =
        |part: &str| parts.get(part).map(Vec::as_slice).unwrap_or_default().iter().filter_map(|r| package(r));
    let versions: BTreeSet<String> = of(SPLIT[0]).map(|p| p.version).collect();
    versions
        .into_iter()
        .filter_map(|version| {
            SPLIT.iter().map(|part| of(part).find(|p| p.version == version)).collect::<Option<Vec<Package>>>()
        })
        .max_by(|a, b| compare_debian(&a[0].version, &b[0].version))
}

fn package(record: &Paragraph) -> Option<Package> {
    Some(Package {
        name: record.get("package")?.clone(),
        version: record.get("version")?.clone(),
        size: record.get("size")?.parse().ok()?,
    })
}

/// The newest offer that fits.
pub(super) fn choose<'a>(
    offers: &'a [Offer],
    fits: impl Fn(&Offer) -> bool,
    series: Option<&str>,
) -> Result<&'a Offer, OfferError> {
    offers.iter().find(|offer| fits(offer)).ok_or_else(|| {
        let offered = describe(offers);
        match series {
            Some(series) => OfferError::NoSeries { series: series.to_owned(), offered },
            None => OfferError::NoSchedExt { offered },
        }
    })
}

/// `7.2 (7.2.12, 7.2.9), 6.18 (6.18.15)`.
fn describe(offers: &[Offer]) -> String {
    let mut series: Vec<(String, Vec<String>)> = Vec::new();
    for offer in offers {
        let (name, upstream) = (offer.version.series(), offer.version.upstream());
        match series.last_mut().filter(|(last, _)| *last == name) {
            Some((_, versions)) => versions.push(upstream),
            None => series.push((name, vec![upstream])),
        }
    }
    let texts: Vec<_> = series.into_iter().map(|(name, v)| format!("{name} ({})", v.join(", "))).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::super::control::paragraphs;
    use super::*;

    /// Recorded from a mirror's listing, fields that are not read left out.
    const LISTING: &str = include_str!("testdata/listing.txt");

    fn offers() -> Vec<Offer> {
        complete(&paragraphs(LISTING), "amd64")
    }

    #[test]
    fn only_complete_sets_are_offered() {
        let releases: Vec<String> = offers().iter().map(|o| o.version.upstream()).collect();
        let expected = [
            "7.2.13", "7.2.12", "7.2.11", "7.2.9", "7.2.6", "6.18.15", "6.18.12", "6.18.9", "6.18.5",
            "6.17.13", "6.17.8", "6.16.12", "6.16.3",
        ];
        assert_eq!(releases, expected, "7.3.4 lacks its binary package, 6.19 to 7.1 their modules");
    }

    #[test]
    fn both_packagings() {
        let offers = offers();
        let names = |series: &str| -> Vec<String> {
            let offer = choose(&offers, |o| o.version.matches(series), Some(series)).unwrap();
            offer.packages.iter().map(|p| p.name.clone()).collect()
        };
        assert_eq!(names("6.18"), ["linux-image-6.18.15+deb13-cloud-amd64"]);
        assert_eq!(
            names("7.2.12"),
            [
                "linux-binary-7.2.12+deb13-cloud-amd64",
                "linux-modules-7.2.12+deb13-cloud-amd64",
                "linux-base-7.2.12+deb13-cloud-amd64",
            ]
        );
        assert!(names("7")[0].contains("7.2.13"));
    }

    #[test]
    fn an_unknown_series_lists_the_offers() {
        let error = choose(&offers(), |o| o.version.matches("6.1"), Some("6.1")).unwrap_err().to_string();
        assert!(error.contains("cloud kernel 6.1;"), "{error}");
        assert!(error.contains("6.18 (6.18.15, 6.18.12"), "{error}");
        let none = choose(&[], |_| true, None).unwrap_err().to_string();
        assert!(none.ends_with("it offers none"), "{none}");
    }

    #[test]
    fn parts_of_different_versions_are_no_set() {
        let record = |part: &str, version: &str| {
            format!("Package: linux-{part}-9.1-cloud-amd64\nVersion: {version}\nSize: 5\n\n")
        };
        let torn = [record("binary", "9.1-2"), record("modules", "9.1-1"), record("base", "9.1-2")].concat();
        assert_eq!(complete(&paragraphs(&torn), "amd64"), []);
        let both = [torn, record("binary", "9.1-1"), record("base", "9.1-1")].concat();
        let offers = complete(&paragraphs(&both), "amd64");
        assert_eq!(offers[0].packages.iter().map(|p| p.version.as_str()).collect::<Vec<_>>(), ["9.1-1"; 3]);
        assert_eq!(offers[0].size(), 15);
        assert_eq!(complete(&paragraphs(&both), "arm64"), []);
    }
}

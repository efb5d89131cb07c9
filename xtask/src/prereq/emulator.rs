//! The emulator, in a version known to be sound.
//!
//! QEMU before 10 lets the guest's kernel oops by itself under several
//! threads. Debian releases that carry an older one have a sound one in
//! `<codename>-backports`. That suite is added for single apt calls, from a
//! private copy of the machine's sources with lists of its own; the mirror is
//! the one the machine is configured for.

use super::apt::{self, Release};
use super::sources::Source;
use super::{Group, Step, private_apt_dir, run};
use anyhow::{Context, Result, bail};
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const PACKAGE: &str = "qemu-system-x86";
const EXECUTABLE: &str = "qemu-system-x86_64";

/// Major and minor version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

/// The first version shown to be sound under several threads.
pub const SOUND: Version = Version(10, 0);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Version {
    /// From `1:10.0.2+ds-2` or `10.0.2`.
    fn parse(text: &str) -> Option<Self> {
        let text = text.split_once(':').map_or(text, |(_, rest)| rest);
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        let major = numbers.next()?.parse().ok()?;
        Some(Self(major, numbers.next().and_then(|part| part.parse().ok()).unwrap_or(0)))
    }

    /// From the output of `--version`.
    fn parse_banner(text: &str) -> Option<Self> {
        Self::parse(text.split("version ").nth(1)?.split_whitespace().next()?)
    }
}

/// Version of the installed emulator, `None` when there is none.
pub fn emulator_version() -> Option<Version> {
    let output = Command::new(EXECUTABLE).arg("--version").stderr(Stdio::null()).output().ok()?;
    Version::parse_banner(&String::from_utf8_lossy(&output.stdout))
}

/// Whether a sound emulator is to be installed.
pub fn is_missing(groups: &[Group]) -> bool {
    !groups.is_empty() && emulator_version().is_none_or(|version| version < SOUND)
}

/// How to get a sound one. With `may_change` lists of ours are downloaded, so
/// that what the step says is known to be there.
pub fn step(release: &Release, may_change: bool) -> Result<Step> {
    let why = match emulator_version() {
        Some(old) => format!("emulates the machine; the installed {old} is not sound with several threads"),
        None => "emulates the machine where hardware KVM is missing".to_owned(),
    };
    let offered = apt::candidate(&[], PACKAGE)?
        .filter(|version| Version::parse(version).is_some_and(|version| version >= SOUND));
    if let Some(version) = offered {
        return Ok(Step {
            reasons: vec![format!("{PACKAGE} {version}: {why}")],
            argv: apt::install_argv(&[], &[PACKAGE.to_owned()]),
            needs_root: true,
        });
    }
    let (true, Some(codename)) = (release.is_debian, &release.codename) else {
        bail!(
            "{} offers no QEMU {} or later through apt: install one from elsewhere, so that `{EXECUTABLE}` in PATH is it",
            release.name,
            SOUND.0
        );
    };
    let suite = format!("{codename}-backports");
    let mirror = mirror_of(codename, &apt::configured_sources()?)
        .with_context(|| format!("no configured apt source carries suite {codename}, component main: from where should {suite} come?"))?;
    let options = private_sources(&private_apt_dir()?, &mirror, &suite)?;
    let found = if may_change { Some(refresh_and_check(&options, &suite)?) } else { None };
    Ok(Step {
        reasons: vec![format!("{PACKAGE} {} from {suite}: {why}", found.as_deref().unwrap_or(">= 10"))],
        argv: if may_change { install_line(&options) } else { update_and_install(&options) },
        needs_root: true,
    })
}

fn install_line(options: &[String]) -> Vec<String> {
    apt::install_argv(options, &[PACKAGE.to_owned()])
}

/// One line for people: the private lists are not there yet.
fn update_and_install(options: &[String]) -> Vec<String> {
    let mut update = vec!["apt-get".to_owned()];
    update.extend(options.iter().filter(|option| !option.starts_with("APT::Default-Release")).cloned());
    // `-o` stands before each option; drop the one left without its value.
    if update.last().is_some_and(|last| last == "-o") {
        update.pop();
    }
    update.push("update".to_owned());
    let line = format!("{} && {}", super::shell_line(&update), super::shell_line(&install_line(options)));
    ["sh", "-c", &line].map(str::to_owned).to_vec()
}

fn refresh_and_check(options: &[String], suite: &str) -> Result<String> {
    let mut argv = vec!["apt-get".to_owned()];
    argv.extend_from_slice(options);
    argv.extend(["update", "-q"].map(str::to_owned));
    println!("+ {}", super::shell_line(&argv));
    run(&argv)?;
    let version = apt::candidate(options, PACKAGE)?.with_context(|| format!("{suite} has no {PACKAGE}"))?;
    if Version::parse(&version).is_none_or(|found| found < SOUND) {
        bail!("{suite} offers {PACKAGE} {version}, and {SOUND} is the first sound one");
    }
    Ok(version)
}

/// The mirror of the release's own suite.
fn mirror_of(codename: &str, sources: &[Source]) -> Option<Source> {
    sources
        .iter()
        .find(|source| source.suite == codename && source.components.iter().any(|part| part == "main"))
        .cloned()
}

/// Copies the machine's sources, adds the suite, returns apt's options for it.
fn private_sources(dir: &Path, mirror: &Source, suite: &str) -> Result<Vec<String>> {
    let parts = dir.join("sources.list.d");
    if parts.exists() {
        fs::remove_dir_all(&parts).with_context(|| format!("clearing {}", parts.display()))?;
    }
    for sub in ["sources.list.d", "lists/partial"] {
        fs::create_dir_all(dir.join(sub)).with_context(|| format!("creating {}", dir.join(sub).display()))?;
    }
    for file in apt::source_files() {
        let name = file.file_name().context("source file without a name")?;
        fs::copy(&file, parts.join(name)).with_context(|| format!("copying {}", file.display()))?;
    }
    let added = parts.join(format!("{suite}.sources"));
    fs::write(&added, mirror.stanza_for(suite)).with_context(|| format!("writing {}", added.display()))?;
    let dir = dir.to_str().context("the target directory's path is not UTF-8")?;
    let settings = [
        "Dir::Etc::sourcelist=/dev/null".to_owned(),
        format!("Dir::Etc::sourceparts={dir}/sources.list.d"),
        format!("Dir::State::lists={dir}/lists"),
        // In memory: the machine's caches describe other sources.
        "Dir::Cache::pkgcache=".to_owned(),
        "Dir::Cache::srcpkgcache=".to_owned(),
        // Libraries the backport needs in a newer version come along.
        format!("APT::Default-Release={suite}"),
    ];
    Ok(settings.into_iter().flat_map(|setting| ["-o".to_owned(), setting]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_from_packages_and_banners() {
        assert_eq!(Version::parse("1:10.0.2+ds-2+deb13u1~bpo12+1"), Some(Version(10, 0)));
        assert_eq!(Version::parse("1:7.2+dfsg-7+deb12u18+b3"), Some(Version(7, 2)));
        assert_eq!(Version::parse("1:11~rc1"), Some(Version(11, 0)));
        assert_eq!(Version::parse("(none)"), None);
        let banner = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright (c)\n";
        assert_eq!(Version::parse_banner(banner), Some(Version(10, 0)));
        assert!(Version::parse_banner("QEMU emulator version 8.2.2").unwrap() < SOUND);
        assert!(Version::parse("100.1").unwrap() > SOUND);
    }

    #[test]
    fn the_mirror_is_that_of_the_release_itself() {
        let source = |uri: &str, suite: &str, part: &str| Source {
            uri: uri.into(),
            suite: suite.into(),
            components: vec![part.into()],
            signed_by: None,
        };
        let sources = [
            source("http://sec", "bookworm-security", "main"),
            source("http://c", "bookworm", "contrib"),
            source("http://m", "bookworm", "main"),
        ];
        assert_eq!(mirror_of("bookworm", &sources).unwrap().uri, "http://m");
        assert_eq!(mirror_of("trixie", &sources), None);
    }

    #[test]
    fn the_line_for_people_updates_without_a_default_release() {
        let options = ["-o", "Dir::State::lists=/x", "-o", "APT::Default-Release=s"].map(str::to_owned);
        let line = update_and_install(&options).pop().unwrap();
        let (update, install) = line.split_once(" && ").unwrap();
        assert_eq!(update, "apt-get -o Dir::State::lists=/x update");
        assert!(install.contains("APT::Default-Release=s install"), "{install}");
    }
}

//! Talking to apt: what it offers, and installing.

use super::run;
use super::sources::{Source, parse_deb822, parse_list};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which distribution this is.
#[derive(Debug)]
pub struct Release {
    /// For people.
    pub name: String,
    /// `ID` is debian: then `<codename>-backports` exists and fits.
    pub is_debian: bool,
    /// As in suite names.
    pub codename: Option<String>,
    pub has_apt: bool,
}

impl Release {
    pub fn of_this_machine() -> Result<Self> {
        let text = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
        Ok(Self { has_apt: Path::new("/usr/bin/apt-get").exists(), ..Self::parse(&text) })
    }

    fn parse(os_release: &str) -> Self {
        let field = |name: &str| {
            os_release
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .map(|value| value.trim_matches('"').to_owned())
        };
        Self {
            name: field("PRETTY_NAME").unwrap_or_else(|| "an unnamed distribution".into()),
            is_debian: field("ID").as_deref() == Some("debian"),
            codename: field("VERSION_CODENAME"),
            has_apt: false,
        }
    }
}

/// Whether apt would let us install.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Refreshes the machine's package lists.
pub fn update() -> Result<()> {
    let argv = ["apt-get", "update", "-q"].map(str::to_owned);
    println!("+ {}", super::shell_line(&argv));
    run(&argv)
}

/// `apt-get install` of these, with options in front.
pub fn install_argv(options: &[String], packages: &[String]) -> Vec<String> {
    let mut argv = vec!["apt-get".to_owned()];
    argv.extend_from_slice(options);
    argv.extend(["install", "-y", "-q", "--no-install-recommends"].map(str::to_owned));
    argv.extend_from_slice(packages);
    argv
}

/// The first of these packages that apt offers; the first one when it offers
/// none, so that the error names it.
pub fn available(package: &str, alternatives: &[&str]) -> Result<String> {
    for name in alternatives {
        if candidate(&[], name)?.is_some() {
            return Ok((*name).to_owned());
        }
    }
    Ok(package.to_owned())
}

/// The version apt would install.
pub fn candidate(options: &[String], package: &str) -> Result<Option<String>> {
    let output = Command::new("apt-cache")
        .args(options)
        .args(["policy", package])
        .env("LC_ALL", "C")
        .output()
        .context("starting `apt-cache policy`")?;
    if !output.status.success() {
        bail!("`apt-cache policy {package}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(parse_candidate(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_candidate(policy: &str) -> Option<String> {
    let value = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (value != "(none)").then(|| value.to_owned())
}

/// Files that configure this machine's sources.
pub fn source_files() -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    for entry in fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten() {
        files.push(entry.path());
    }
    // apt itself reads only these two suffixes.
    files.retain(|path| {
        path.is_file() && path.extension().is_some_and(|ext| ext == "list" || ext == "sources")
    });
    files.sort();
    files
}

/// All configured sources.
pub fn configured_sources() -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for path in source_files() {
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let deb822 = path.extension().is_some_and(|ext| ext == "sources");
        sources.extend(if deb822 { parse_deb822(&text) } else { parse_list(&text) });
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_names_the_candidate_or_none() {
        let text = "qemu-system-x86:\n  Installed: (none)\n  Candidate: 1:7.2+dfsg-7+deb12u15\n  Version table:\n     1:7.2 500\n";
        assert_eq!(parse_candidate(text).as_deref(), Some("1:7.2+dfsg-7+deb12u15"));
        assert_eq!(parse_candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(parse_candidate(""), None);
    }

    #[test]
    fn os_release_tells_debian_from_others() {
        let debian = Release::parse(
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n",
        );
        assert!(debian.is_debian);
        assert_eq!(debian.codename.as_deref(), Some("bookworm"));
        let other = Release::parse("PRETTY_NAME=\"Fedora Linux 43\"\nID=fedora\nVERSION_CODENAME=\"\"\n");
        assert!(!other.is_debian);
        assert_eq!(other.name, "Fedora Linux 43");
    }
}

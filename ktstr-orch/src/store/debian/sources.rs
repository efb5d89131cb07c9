//! Finds a Debian mirror among the host's configured package sources, in both
//! forms (deb822 `.sources` files and one-line `.list` files).
//!
//! Only entries for one of Debian's own suites count, not its security archive
//! and no third party's. Options that decide about trust travel along as
//! written.

use std::fs;
use std::path::{Path, PathBuf};

use super::control::paragraphs;

/// Names a Debian suite can have, without `-updates` and the like.
const DEBIAN_SUITES: &[&str] = &[
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
    "sid",
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
];

/// Why the host offers no mirror.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SourcesError {
    /// No entry for a Debian suite.
    #[error(
        "no Debian mirror among this host's package sources ({seen}); on such a host name a kernel file \
         (`--kernel /path/to/vmlinuz` or vmlinux), import package files (`ktstr kernel pull FILE.deb…`), \
         or build one from source"
    )]
    NoMirror {
        /// What was found instead.
        seen: String,
    },
}

/// A mirror and what the host trusts it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    /// As configured.
    pub uri: String,
    /// Keyring path, key, or embedded key block.
    pub signed_by: Option<String>,
    /// Explicit `Trusted:` option.
    pub trusted: Option<String>,
}

impl Mirror {
    /// A deb822 source for other suites of this mirror.
    pub fn source_for(&self, suites: &[&str], arch: &str) -> String {
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\nArchitectures: {arch}\n",
            self.uri,
            suites.join(" "),
        );
        for (field, value) in [("Signed-By", &self.signed_by), ("Trusted", &self.trusted)] {
            if let Some(value) = value {
                text.push_str(&format!("{field}: {value}\n"));
            }
        }
        text
    }
}

/// The first mirror in `list` and the files of the directory `parts`.
pub(super) fn mirror(list: &Path, parts: &Path) -> Result<Mirror, SourcesError> {
    let mut files = vec![list.to_owned()];
    let mut found: Vec<PathBuf> =
        fs::read_dir(parts).into_iter().flatten().flatten().map(|f| f.path()).collect();
    found.sort();
    files.extend(found);
    let mut seen = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let entries = match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => deb822(&text),
            Some("list") => one_line(&text),
            _ => continue,
        };
        for entry in entries {
            if let Some(mirror) = entry.mirror() {
                return Ok(mirror);
            }
            seen.push(format!("{} {}", entry.uris.join(" "), entry.suites.join(" ")));
        }
    }
    let seen =
        if seen.is_empty() { "there are none".to_owned() } else { format!("seen: {}", seen.join(", ")) };
    Err(SourcesError::NoMirror { seen })
}

struct Entry {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<String>,
    trusted: Option<String>,
}

impl Entry {
    fn mirror(&self) -> Option<Mirror> {
        let debian = self.suites.iter().any(|suite| {
            let base = ["-updates", "-proposed-updates", "-backports"]
                .iter()
                .find_map(|tail| suite.strip_suffix(tail))
                .unwrap_or(suite);
            DEBIAN_SUITES.contains(&base)
        });
        let main = self.components.iter().any(|c| c == "main");
        let uri = self.uris.first().filter(|_| debian && main)?;
        Some(Mirror { uri: uri.clone(), signed_by: self.signed_by.clone(), trusted: self.trusted.clone() })
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn deb822(text: &str) -> Vec<Entry> {
    paragraphs(text)
        .into_iter()
        .filter(|p| p.get("enabled").is_none_or(|v| !v.eq_ignore_ascii_case("no")))
        .filter(|p| p.get("types").is_some_and(|types| words(types).iter().any(|t| t == "deb")))
        .map(|p| {
            let list = |name: &str| p.get(name).map(|v| words(v)).unwrap_or_default();
            Entry {
                uris: list("uris"),
                suites: list("suites"),
                components: list("components"),
                signed_by: p.get("signed-by").cloned(),
                trusted: p.get("trusted").cloned(),
            }
        })
        .collect()
}

fn one_line(text: &str) -> Vec<Entry> {
    let line = |line: &str| {
        let line = line.split('#').next()?.trim().strip_prefix("deb")?;
        let (options, rest) = match line.trim_start().strip_prefix('[') {
            Some(inner) => inner.split_once(']')?,
            None if line.starts_with(char::is_whitespace) => ("", line),
            None => return None,
        };
        let option = |name: &str| {
            words(options)
                .iter()
                .find_map(|o| Some(o.strip_prefix(name)?.strip_prefix('=')?.replace(',', " ")))
        };
        let mut rest = words(rest).into_iter();
        Some(Entry {
            uris: vec![rest.next()?],
            suites: vec![rest.next()?],
            components: rest.collect(),
            signed_by: option("signed-by"),
            trusted: option("trusted"),
        })
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(files: &[(&str, &str)]) -> Result<Mirror, SourcesError> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        mirror(&dir.path().join("none.list"), dir.path())
    }

    fn plain(uri: &str, signed_by: Option<&str>) -> Mirror {
        Mirror { uri: uri.into(), signed_by: signed_by.map(str::to_owned), trusted: None }
    }

    const SECURITY: &str = "Types: deb\nURIs: http://m/sec\nSuites: bookworm-security\nComponents: main\n\n";

    #[test]
    fn deb822_entry() {
        let text = format!(
            "{SECURITY}Types: deb deb-src\nURIs: http://m/debian\nSuites: bookworm bookworm-updates\n\
             Components: main contrib\nSigned-By: /k.gpg\n"
        );
        assert_eq!(find(&[("a.sources", &text)]), Ok(plain("http://m/debian", Some("/k.gpg"))));
    }

    #[test]
    fn one_line_entries() {
        let text = "# deb http://no bookworm main\ndeb-src http://no bookworm main\n\
                    deb http://vendor/apt tools main\n\
                    deb [arch=amd64 signed-by=/k.gpg] https://m/d trixie main # c\n";
        assert_eq!(find(&[("a.list", text)]), Ok(plain("https://m/d", Some("/k.gpg"))));
        assert_eq!(find(&[("a.list", "deb http://m/d sid main\n")]), Ok(plain("http://m/d", None)));
    }

    #[test]
    fn embedded_keys_travel_whole() {
        let text = "Types: deb\nURIs: http://m/d\nSuites: sid\nComponents: main\nSigned-By:\n -----BEGIN\n .\n -----END\n";
        let source = find(&[("a.sources", text)]).unwrap().source_for(&["x", "y"], "amd64");
        assert!(source.ends_with("Signed-By: \n -----BEGIN\n .\n -----END\n"), "{source}");
        assert!(source.contains("Suites: x y\n") && source.contains("URIs: http://m/d\n"));
    }

    #[test]
    fn other_hosts_get_the_alternatives() {
        let disabled = "Enabled: no\nTypes: deb\nURIs: http://m/d\nSuites: sid\nComponents: main\n";
        let ubuntu = "deb http://u/ubuntu noble main\n";
        let error = find(&[
            ("a.sources", disabled),
            ("b.sources", SECURITY),
            ("c.list", ubuntu),
            ("d.save", "deb http://m sid main"),
        ])
        .unwrap_err()
        .to_string();
        for part in ["http://u/ubuntu noble", "vmlinuz", "FILE.deb", "source"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(find(&[]).unwrap_err().to_string().contains("there are none"));
    }
}

//! Reads apt's configured sources, one-line and deb822, to learn the mirror
//! this machine uses. Pure text; `emulator.rs` decides what to do with it.

/// One mirror of one suite, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub uri: String,
    pub suite: String,
    pub components: Vec<String>,
    /// Value of `Signed-By`: a key file, or an embedded key as it was written.
    pub signed_by: Option<String>,
}

/// Parses a `.list` file; lines it does not understand are no mirrors.
pub fn parse_list(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t', '[']) {
        return None; // deb-src
    }
    let mut rest = rest.trim_start();
    let mut signed_by = None;
    if let Some(options) = rest.strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(str::to_owned);
        rest = after;
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source { uri: words.next()?, suite: words.next()?, components: words.collect(), signed_by })
}

/// Parses a deb822 `.sources` file; disabled and source-only stanzas are left out.
pub fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut stanza: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(stanza_sources(&stanza));
            stanza.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((key, value)) = line.split_once(':') {
            stanza.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn stanza_sources(stanza: &[(String, String)]) -> Vec<Source> {
    let field = |name: &str| stanza.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let words =
        |name: &str| field(name).unwrap_or("").split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let disabled = field("enabled").is_some_and(|value| ["no", "false", "0", "off"].contains(&value));
    if disabled || !words("types").iter().any(|kind| kind == "deb") {
        return Vec::new();
    }
    let mut sources = Vec::new();
    for uri in words("uris") {
        for suite in words("suites") {
            sources.push(Source {
                uri: uri.clone(),
                suite,
                components: words("components"),
                signed_by: field("signed-by").map(str::to_owned),
            });
        }
    }
    sources
}

impl Source {
    /// The same mirror, another suite, as a deb822 stanza.
    pub fn stanza_for(&self, suite: &str) -> String {
        let signed_by =
            self.signed_by.as_ref().map(|value| format!("Signed-By: {value}\n")).unwrap_or_default();
        format!("Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n{signed_by}", self.uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb\n# snapshot comment\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
        Components: main\nSigned-By: /usr/share/keyrings/k.gpg\n\nTypes: deb-src\nURIs: http://src.example/debian\nSuites: bookworm\n\
        Components: main\n\nEnabled: no\nTypes: deb\nURIs: http://off.example\nSuites: bookworm\nComponents: main\n";

    #[test]
    fn deb822_gives_a_source_per_suite() {
        let sources = parse_deb822(DEB822);
        assert_eq!(
            sources.iter().map(|source| source.suite.as_str()).collect::<Vec<_>>(),
            ["bookworm", "bookworm-updates"]
        );
        assert_eq!(sources[0].uri, "http://mirror.example/debian");
        assert_eq!(sources[0].signed_by.as_deref(), Some("/usr/share/keyrings/k.gpg"));
    }

    #[test]
    fn an_embedded_key_survives() {
        let text = "Types: deb\nURIs: http://m.example\nSuites: trixie\nComponents: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n";
        let stanza = parse_deb822(text)[0].stanza_for("trixie-backports");
        assert!(stanza.contains("Suites: trixie-backports\n"), "{stanza}");
        assert!(
            stanza.contains("Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n"),
            "{stanza}"
        );
    }

    #[test]
    fn one_line_sources_with_and_without_options() {
        let text = "# deb http://old.example x main\ndeb [arch=amd64 signed-by=/k.gpg] http://a.example/debian bookworm main contrib # hi\n\
            deb-src http://s.example bookworm main\ndeb\thttp://b.example/debian bookworm main\n";
        let sources = parse_list(text);
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[0].signed_by.as_deref(), Some("/k.gpg"));
        assert_eq!(sources[0].components, ["main", "contrib"]);
        assert_eq!(sources[1].uri, "http://b.example/debian");
    }
}

//! Paragraphs of `Field: value` lines, the form of package records and of
//! deb822 source files.
//!
//! Comments are dropped, continuation lines kept verbatim, field names
//! lower-cased. Lines that are neither end nothing and mean nothing.

use std::collections::BTreeMap;

/// One paragraph: lower-case field name to value, continuation lines joined
/// by newlines.
pub(super) type Paragraph = BTreeMap<String, String>;

/// Splits a text into its paragraphs.
pub(super) fn paragraphs(text: &str) -> Vec<Paragraph> {
    let mut all = vec![Paragraph::new()];
    let mut field: Option<String> = None;
    for line in text.lines() {
        if line.trim().is_empty() {
            all.push(Paragraph::new());
            field = None;
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let Some(paragraph) = all.last_mut() else { continue };
        if line.starts_with([' ', '\t']) {
            if let Some(value) = field.as_ref().and_then(|name| paragraph.get_mut(name)) {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            let name = name.trim().to_ascii_lowercase();
            paragraph.insert(name.clone(), value.trim().to_owned());
            field = Some(name);
        }
    }
    all.retain(|paragraph| !paragraph.is_empty());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_comments_and_continuations() {
        let text = "# c\nTypes: deb\n# in between\nSigned-By:\n -----BEGIN\n .\n abc\n\n\nTypes: x\njunk\n";
        let all = paragraphs(text);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0]["types"], "deb");
        assert_eq!(all[0]["signed-by"], "\n -----BEGIN\n .\n abc");
        assert_eq!(all[1].len(), 1);
        assert!(paragraphs(" leading continuation\n\n").is_empty());
    }
}

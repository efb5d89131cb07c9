//! The book's page about the kinds of work is made of what stands here: documentation of [`WorkType`], its defaults,
//! groups and old names. `KTSTR_WRITE_DOCS=1` writes the page; without it a page that says something else fails.

use std::{fmt::Write, path::PathBuf};

use super::{WorkType, catalogue::ALIASES};

const KINDS: &str = include_str!("work_type.rs");
const BENCHES: &str = include_str!("bench.rs");
const POLICIES: &str = include_str!("../attributes/policy.rs");

/// A variant or a field, and what its documentation says.
struct Item {
    name: String,
    doc: String,
    /// Fields of a variant.
    fields: Vec<Item>,
}

/// What is declared between `begin` and the closing brace in the first column.
fn items(source: &str, begin: &str) -> Vec<Item> {
    let (_, rest) = source.split_once(begin).unwrap_or_else(|| panic!("no {begin}"));
    let (body, _) = rest.split_once("\n}").expect("the list ends");
    let (mut found, mut doc): (Vec<Item>, _) = (Vec::new(), String::new());
    let mut inside = false;
    for line in body.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("#[")) {
        if let Some(more) = line.strip_prefix("///") {
            doc.push_str(more);
        } else if line == "}," {
            inside = false;
        } else {
            let line = line.strip_prefix("pub ").unwrap_or(line);
            let name = line.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
            let item = Item { name: name.into(), doc: plain(&std::mem::take(&mut doc)), fields: Vec::new() };
            match found.last_mut().filter(|_| inside) {
                Some(variant) => variant.fields.push(item),
                None => found.push(item),
            }
            inside |= line.ends_with('{');
        }
    }
    found
}

/// Documentation without its links.
fn plain(doc: &str) -> String {
    doc.trim().replace("[`WorkType::", "[`").replace("[`", "`").replace("`]", "`")
}

/// Names and values of the parameters of a kind made by its name, as `Debug` shows them.
fn defaults(kind: &WorkType) -> Vec<(String, String)> {
    let shown = format!("{kind:?}");
    let Some((_, inner)) = shown.split_once("{ ") else { return Vec::new() };
    let inner = inner.trim_end_matches(')').trim_end_matches('}').trim();
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for c in inner.chars() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        match (c, depth) {
            (',', 0) => parts.push(String::new()),
            _ => parts.last_mut().expect("there is one").push(c),
        }
    }
    let split = |part: String| part.split_once(": ").map(|(name, value)| (name.trim().into(), value.into()));
    parts.into_iter().map(|part| split(part).expect("a name and a value")).collect()
}

fn section(kind: &Item) -> String {
    let mut text = format!("## {}\n\n", kind.name);
    let Ok(made) = WorkType::from_name(&kind.name) else {
        return text
            + &kind.doc
            + " Made by `Custom` with a name and a function; see `CustomCfg` and `WorkerCtx`.\n\n";
    };
    let (does, presses) =
        kind.doc.split_once("Presses on ").unwrap_or_else(|| panic!("{}: on what?", kind.name));
    // A sentence ends where the next begins with a capital letter.
    let end = presses
        .match_indices(". ")
        .map(|(at, _)| at + 1)
        .find(|at| presses[*at..].trim_start().starts_with(char::is_uppercase))
        .unwrap_or(presses.len());
    let (presses, more) = presses.split_at(end);
    let _ = writeln!(text, "{}\n", format!("{}{more}", does.trim_end()).trim());
    let _ = writeln!(text, "**Presses on** {presses}\n");
    let mut remarks = Vec::new();
    if made.group_size() > 1 {
        remarks.push(format!("With these parameters in groups of {}.", made.group_size()));
    }
    for (old, _) in ALIASES.iter().filter(|(_, new)| *new == kind.name) {
        remarks.push(format!("Old name: `{old}`."));
    }
    if !made.metric_names().is_empty() {
        let names: Vec<String> = made.metric_names().iter().map(|name| format!("`{name}`")).collect();
        remarks.push(format!("Figures of its own: {}.", names.join(", ")));
    }
    if !remarks.is_empty() {
        let _ = writeln!(text, "{}\n", remarks.join(" "));
    }
    let values = defaults(&made);
    let documented = match &made {
        WorkType::Schbench(_) => &items(BENCHES, "pub struct SchbenchConfig {"),
        WorkType::Taobench(_) => &items(BENCHES, "pub struct TaobenchConfig {"),
        _ => &kind.fields,
    };
    assert_eq!(values.len(), documented.len(), "{}", kind.name);
    if !values.is_empty() {
        text.push_str("| parameter | default | meaning |\n|---|---|---|\n");
        for ((name, value), field) in values.iter().zip(documented) {
            assert_eq!(*name, field.name, "{}", kind.name);
            let _ = writeln!(text, "| `{name}` | `{value}` | {} |", field.doc);
        }
        text.push('\n');
    }
    text
}

fn page() -> String {
    let mut text = String::from(
        "# Kinds of work\n\nWhat each kind does, which path of the kernel it presses on, its parameters with what \
         `WorkType::from_name` and the\nconstructors (`WorkType::pipe_io()`) give them. How workers live and what is \
         measured, and what each kind did to a\nkernel, is on [the page of work types](../work-types.md). \
         Made from the source by the test that compares them.\n\n",
    );
    let kinds = items(KINDS, "pub enum WorkType {");
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name.as_str()).collect();
    let known: Vec<&str> = WorkType::ALL_NAMES.into_iter().chain(["Custom"]).collect();
    assert_eq!(names, known);
    kinds.iter().for_each(|kind| text.push_str(&section(kind)));
    text.push_str("## Values of parameters\n\n");
    let choices = [
        ("SimdWidth", KINDS),
        ("WakeMechanism", KINDS),
        ("PiMode", KINDS),
        ("Reap", KINDS),
        ("SequencePhase", KINDS),
        ("SchedPolicy", POLICIES),
    ];
    for (name, source) in choices {
        let _ = writeln!(text, "| `{name}` | |\n|---|---|");
        for item in items(source, &format!("pub enum {name} {{")) {
            let _ = writeln!(text, "| `{}` | {} |", item.name, item.doc);
        }
        text.push('\n');
    }
    text.trim_end().to_owned() + "\n"
}

#[test]
fn the_page_says_what_the_source_says() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/kinds-of-work.md");
    let page = page();
    assert!(page.contains("| `burst_iters` | `1024` |") && page.contains("Old name: `CpuSpin`."), "{page}");
    if std::env::var_os("KTSTR_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    for (said, source) in written.lines().zip(page.lines()) {
        assert_eq!(
            said,
            source,
            "KTSTR_WRITE_DOCS=1 cargo test -p ktstr-guest the_page writes {}",
            path.display()
        );
    }
    assert_eq!(written.len(), page.len(), "KTSTR_WRITE_DOCS=1 writes {}", path.display());
}

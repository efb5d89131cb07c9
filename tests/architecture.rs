//! ARCHITECTURE.md tells the truth: its paths exist, its edges are cargo's, the dev-dependency is light.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

const DOCUMENT: &str = include_str!("../ARCHITECTURE.md");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Lines of `cargo tree`, one crate each.
fn tree(package: &str, more: &[&str]) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args([
            "tree",
            "--locked",
            "--prefix",
            "none",
            "--format",
            "{p}",
            "-e",
            "normal,build",
            "-p",
            package,
        ])
        .args(more)
        .output()
        .expect("cargo tree runs");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(|l| l.trim_end_matches(" (*)").to_owned()).collect()
}

#[test]
fn every_path_in_the_document_exists() {
    let named: BTreeSet<&str> = DOCUMENT
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|text| text.contains('/') && !text.contains([' ', '\n', '<']) && !text.starts_with('/'))
        .collect();
    assert!(named.len() > 15, "only {} paths found", named.len());
    let missing: Vec<&&str> = named.iter().filter(|path| !root().join(path).exists()).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md names paths that do not exist: {missing:?}");
}

#[test]
fn edges_are_what_cargo_says() {
    let section =
        DOCUMENT.split("## Edges").nth(1).and_then(|s| s.split("## ").next()).expect("an Edges section");
    let documented: BTreeMap<&str, BTreeSet<&str>> = section
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| package"))
        .filter_map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let package = cells.next()?;
            Some((package, cells.next()?.split(", ").filter(|d| !d.is_empty()).collect()))
        })
        .collect();
    assert_eq!(documented.len(), 11, "one row for each package");
    for (package, expected) in documented {
        let lines = tree(package, &["--depth", "1"]);
        let actual: BTreeSet<&str> = lines
            .iter()
            .skip(1)
            .filter_map(|line| line.split(' ').next())
            .filter(|name| name.contains("ktstr") || *name == "xtask")
            .collect();
        assert_eq!(actual, expected, "dependencies of {package}");
    }
}

#[test]
fn the_dev_dependency_is_light() {
    let crates: BTreeSet<String> = tree("ktstr", &[]).into_iter().collect();
    assert!(crates.len() <= 60, "{} crates: {crates:#?}", crates.len());
    let heavy = [
        "kvm",
        "vm-memory",
        "vmm-sys",
        "libbpf",
        "btf",
        "rustls",
        "openssl",
        "native-tls",
        "hyper",
        "polars",
    ];
    let found: Vec<_> = crates.iter().filter(|c| heavy.iter().any(|h| c.starts_with(h))).collect();
    assert!(found.is_empty(), "the dev-dependency must stay light, found {found:?}");
}

/// Names of an enum's variants or of what a macro lists, as the source has them.
fn names_in<'s>(source: &'s str, begin: &str) -> Vec<&'s str> {
    let (_, rest) = source.split_once(begin).expect("the source has this");
    let (list, _) = rest.split_once("\n}").expect("the list ends");
    let bare =
        |line: &'s str| line.trim().strip_suffix(',').filter(|name| name.chars().all(char::is_alphanumeric));
    list.lines().filter_map(bare).collect()
}

#[test]
fn every_operation_and_threshold_is_in_the_book() {
    let operations = names_in(include_str!("../ktstr-guest/src/scenario/op/kind.rs"), "pub enum OpKind {");
    assert!(operations.len() >= 24, "{operations:?}");
    let rows = ktstr::prelude::Assert::NO_OVERRIDES.rows();
    let thresholds = rows.iter().map(|(name, _)| *name);
    let pages = [
        (include_str!("../docs/reference/operations.md"), operations),
        (include_str!("../docs/reference/checks.md"), thresholds.collect()),
    ];
    for (page, names) in pages {
        let missing: Vec<_> = names.iter().filter(|name| !page.contains(&format!("`{name}`"))).collect();
        assert!(
            missing.is_empty(),
            "{} says nothing of {missing:?}",
            page.lines().next().unwrap_or_default()
        );
    }
}

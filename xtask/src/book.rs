//! `cargo xtask book`: the book's Rust blocks are a crate of their own and its outputs come from runs.
//!
//! Every ```` ```rust ```` block of the pages named in `docs/SUMMARY.md`, and of the README, goes into one
//! test executable under `target/book`, a module per page, as a user's own crate would have it; a block marked
//! `rust,mod=NAME` is a module of its own in it. A ```` ```console ```` block is one command, `$ ` before it,
//! and what it printed: `--record` runs it in that crate and writes its output into the page. What a
//! ```` ```rust,refused ```` block is for: [`refused`].

mod refused;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::workspace;

/// Options of `cargo xtask book`.
#[derive(Args, Debug)]
pub struct BookArgs {
    /// Run the commands of these pages (of all, if none is named) and write what they print into them
    #[arg(long, value_name = "PAGE", num_args = 0..)]
    record: Option<Vec<PathBuf>>,
}

/// Name of the crate the blocks make, as it appears in commands that the pages show.
const PACKAGE: &str = "scheduler-tests";

/// 0 when every block compiles.
pub fn command(args: &BookArgs) -> Result<u8> {
    let pages = pages()?;
    check(&pages)?;
    let Some(wanted) = &args.record else { return Ok(0) };
    workspace::build_executables()?;
    for page in pages.iter().filter(|page| wanted.is_empty() || wanted.iter().any(|w| page.ends_with(w))) {
        record(page)?;
    }
    Ok(0)
}

/// Compiles every Rust block of every page.
pub fn compile() -> Result<()> {
    check(&pages()?)
}

fn check(pages: &[PathBuf]) -> Result<()> {
    check_links(pages)?;
    let refused = generate(pages)?;
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--no-run", "--quiet", "--manifest-path"]).arg(directory().join("Cargo.toml"));
    cargo.env("CARGO_TARGET_DIR", workspace::target_dir());
    workspace::step("compile the book's examples", &mut cargo)?;
    refused::check(&refused, &directory())
}

fn directory() -> PathBuf {
    workspace::target_dir().join("book")
}

/// The README and what `SUMMARY.md` links to.
fn pages() -> Result<Vec<PathBuf>> {
    let docs = workspace::root().join("docs");
    let summary = docs.join("SUMMARY.md");
    let text = fs::read_to_string(&summary).with_context(|| format!("cannot read {}", summary.display()))?;
    let mut pages = vec![workspace::root().join("README.md")];
    for link in text.lines().filter_map(|line| line.split_once("](")?.1.strip_suffix(')')) {
        let page = docs.join(link);
        ensure!(page.is_file(), "{} links to {link}, which is not there", summary.display());
        ensure!(!pages.contains(&page), "{} links to {link} twice", summary.display());
        pages.push(page);
    }
    Ok(pages)
}

/// What a page of the book links to beside itself is in the book, and so is every page there is.
fn check_links(pages: &[PathBuf]) -> Result<()> {
    let docs = workspace::root().join("docs");
    for page in pages.iter().filter(|page| page.starts_with(&docs)) {
        let text = fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
        let folder = page.parent().context("a page lies in a folder")?;
        for link in links(&text) {
            let target = fs::canonicalize(folder.join(link)).ok();
            let known = target.is_some_and(|target| pages.contains(&target));
            ensure!(known, "{} links to {link}, which is no page of the book", page.display());
        }
    }
    let mut folders = vec![docs.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            let is_page = path.extension().is_some_and(|extension| extension == "md");
            if path.is_dir() {
                folders.push(path);
            } else if is_page && path != docs.join("SUMMARY.md") {
                ensure!(pages.contains(&path), "{} is not in docs/SUMMARY.md", path.display());
            }
        }
    }
    Ok(())
}

/// Links to files, without the place in them.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let inline = text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
    let apart = text.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: ").map(|(_, to)| to));
    let files = inline.chain(apart).map(|link| link.split('#').next().unwrap_or_default());
    files.filter(|link| !link.is_empty() && !link.contains("://") && !link.contains(char::is_whitespace))
}

/// A fenced block: where its first line is (counted from 0), its language, what is in it.
struct Block<'t> {
    line: usize,
    language: &'t str,
    text: Vec<&'t str>,
}

fn blocks(page: &str) -> Result<Vec<Block<'_>>> {
    let mut blocks = Vec::new();
    let mut open: Option<Block<'_>> = None;
    for (number, line) in page.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => {
                open = Some(Block { line: number + 1, language: language.trim(), text: Vec::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text.push(line),
            (None, None) => {}
        }
    }
    match open {
        Some(block) => bail!("the block in line {} does not end", block.line),
        None => Ok(blocks),
    }
}

/// Writes the crate; files that are as they should be stay untouched, so that cargo sees no change. Gives what
/// of it must not compile.
fn generate(pages: &[PathBuf]) -> Result<Vec<refused::Refused>> {
    let (root, crate_dir) = (workspace::root(), directory());
    let tests = crate_dir.join("tests/examples");
    fs::create_dir_all(&tests).with_context(|| format!("cannot create {}", tests.display()))?;
    fs::create_dir_all(crate_dir.join("src"))?;
    let workspace_manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    let manifest = format!(
        "[package]\nname = \"{PACKAGE}\"\nversion = \"0.0.0\"\nedition = \"2024\"\npublish = false\n\n\
         [dev-dependencies]\nktstr = {{ path = {root:?} }}\n\n[lints.rust]\nwarnings = \"deny\"\n\n[workspace]\n\n{}{}",
        refused::manifest(),
        section(&workspace_manifest, "[profile.dev]"),
    );
    write(&crate_dir.join("Cargo.toml"), &manifest)?;
    write(&crate_dir.join("src/lib.rs"), "//! Nothing: the tests are what there is.\n")?;
    write(&crate_dir.join("Cargo.lock"), &fs::read_to_string(root.join("Cargo.lock"))?)?;
    let mut main = String::from("//! The examples of the book.\n\n");
    let mut refused = Vec::new();
    for page in pages {
        let text = fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
        let shown = page.strip_prefix(&root).unwrap_or(page).display();
        let (blocks, shown) = (blocks(&text).with_context(|| shown.to_string())?, shown.to_string());
        let (code, module) = (code(&blocks, &shown)?, module_name(page)?);
        refused.extend(refused::of(&blocks, &module, &shown)?);
        if !code.is_empty() {
            main.push_str(&format!("mod {module};\n"));
            write(&tests.join(format!("{module}.rs")), &code)?;
        }
    }
    write(&tests.join("main.rs"), &main)?;
    refused::generate(&refused, &crate_dir)?;
    Ok(refused)
}

/// A table of a manifest, as it stands there.
fn section(manifest: &str, header: &str) -> String {
    let mut lines = manifest.lines().skip_while(|line| *line != header);
    let first = lines.next().into_iter();
    first.chain(lines.take_while(|line| !line.starts_with('['))).map(|line| format!("{line}\n")).collect()
}

fn module_name(page: &Path) -> Result<String> {
    let stem = page.file_stem().and_then(|stem| stem.to_str()).context("a page has a name")?;
    Ok(stem.replace('-', "_").to_lowercase())
}

fn code(blocks: &[Block<'_>], page: &str) -> Result<String> {
    let mut code = String::new();
    for block in blocks {
        let mut words = block.language.split(',');
        if words.next() != Some("rust") {
            continue;
        }
        let module = match words.next() {
            None => None,
            Some("refused") => continue,
            Some(word) => Some(word.strip_prefix("mod=").with_context(|| {
                format!(
                    "{page}:{}: `{}`: say `rust`, `rust,mod=NAME` or `rust,refused`",
                    block.line, block.language
                )
            })?),
        };
        code.push_str(&format!("\n// {page}:{}\n", block.line + 1));
        let text = block.text.join("\n");
        match module {
            Some(name) => code.push_str(&format!("mod {name} {{\n{text}\n}}\n")),
            None => code.push_str(&format!("{text}\n")),
        }
    }
    Ok(code)
}

fn write(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Runs each command of a page and puts what it printed in the place of what stood there.
fn record(page: &Path) -> Result<()> {
    let text = fs::read_to_string(page)?;
    let lines: Vec<&str> = text.lines().collect();
    let (mut written, mut from) = (Vec::new(), 0);
    for block in blocks(&text)?.iter().filter(|block| block.language == "console") {
        let command = block.text.first().and_then(|line| line.strip_prefix("$ ")).with_context(|| {
            format!("{}:{}: the first line is `$ ` and a command", page.display(), block.line + 1)
        })?;
        println!("==> {command}");
        written.extend(lines[from..=block.line].iter().map(|line| (*line).to_owned()));
        written.extend(printed(command)?);
        from = block.line + block.text.len();
    }
    written.extend(lines[from..].iter().map(|line| (*line).to_owned()));
    write(page, &(written.join("\n") + "\n"))
}

/// What a command says, with the places of this machine taken out.
fn printed(command: &str) -> Result<Vec<String>> {
    let path = env::var("PATH").unwrap_or_default();
    let output = Command::new("sh")
        .args(["-c", &format!("{{ {command}\n}} 2>&1")])
        .current_dir(directory())
        .env("PATH", format!("{}:{path}", workspace::bin_dir().display()))
        .env("KTSTR_BIN_DIR", workspace::bin_dir())
        .env("CARGO_TARGET_DIR", workspace::target_dir())
        .envs([("NO_COLOR", "1"), ("CARGO_TERM_COLOR", "never"), ("CARGO_TERM_QUIET", "true")])
        .output()
        .with_context(|| format!("cannot run `{command}`"))?;
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    let places = [
        (directory(), "."),
        (workspace::target_dir(), "target"),
        (workspace::root(), "ktstr"),
        (env::var_os("HOME").map(PathBuf::from).unwrap_or_default(), "~"),
    ];
    for (place, name) in places {
        let place = place.display().to_string();
        if !place.is_empty() {
            said = said.replace(&place, name);
        }
    }
    ensure!(!said.contains("```"), "`{command}` prints a fence");
    Ok(said.trim_end().lines().map(|line| line.trim_end().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_become_modules_that_name_their_place() {
        let page = "a\n```rust\nfn one() {}\n```\n```sh\nls\n```\n```rust,mod=second\nfn one() {}\n```\n";
        let blocks = blocks(page).unwrap();
        let text = code(&blocks, "p.md").unwrap();
        assert_eq!(text, "\n// p.md:3\nfn one() {}\n\n// p.md:9\nmod second {\nfn one() {}\n}\n");
    }

    #[test]
    fn the_book_has_every_page_and_links_to_no_other() {
        check_links(&pages().unwrap()).unwrap();
    }

    #[test]
    fn links_to_files_are_found_in_both_forms() {
        let text = "a [b](c.md#d) [e](https://f.g) `x[0](1, 2)`\n\n[h]: ../i.md\n[j](#k)\n";
        assert_eq!(links(text).collect::<Vec<_>>(), ["c.md", "../i.md"]);
    }

    #[test]
    fn what_is_no_example_is_refused() {
        assert!(blocks("```rust\nfn one() {}\n").is_err());
        let ignored = blocks("```rust,ignore\nfn one() {}\n```\n").unwrap();
        assert!(code(&ignored, "p.md").unwrap_err().to_string().contains("p.md:1: `rust,ignore`"));
    }

    #[test]
    fn a_section_ends_where_the_next_begins() {
        assert_eq!(section("[a]\nx = 1\n[b]\ny = 2\n\n[c]\n", "[b]"), "[b]\ny = 2\n\n");
    }
}

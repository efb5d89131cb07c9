//! What the compiler must refuse: blocks marked `rust,refused`, each followed by a `text` block with the
//! compiler's words.
//!
//! All of them make one test executable that never comes to be; a module of its own for each says whose words are
//! whose. Refuses a block that compiles, one that fails for another reason, and words that no block provokes.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result, ensure};

use super::{Block, write};
use crate::workspace;

/// The target and the feature that it hides behind, so that nothing else builds it.
const TARGET: &str = "refused";

/// What the crate's manifest says of them.
pub fn manifest() -> String {
    format!(
        "[features]\n{TARGET} = []\n\n[[test]]\nname = \"{TARGET}\"\npath = \"{TARGET}/main.rs\"\n\
         required-features = [\"{TARGET}\"]\n\n"
    )
}

/// Code that is refused, and with which words.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    module: String,
    code: String,
    words: String,
}

/// Those of one page.
pub fn of(blocks: &[Block<'_>], module: &str, page: &str) -> Result<Vec<Refused>> {
    let mut all = Vec::new();
    for (at, block) in blocks.iter().enumerate().filter(|(_, block)| block.language == "rust,refused") {
        let words = blocks.get(at + 1).filter(|next| next.language == "text").with_context(|| {
            format!("{page}:{}: the next block is `text` and says what the compiler says", block.line)
        })?;
        all.push(Refused {
            module: format!("{module}_{}", block.line),
            code: format!("//! {page}:{}\n\n{}\n", block.line + 1, block.text.join("\n")),
            words: words.text.join("\n"),
        });
    }
    Ok(all)
}

/// Writes the target into the crate.
pub fn generate(all: &[Refused], crate_dir: &Path) -> Result<()> {
    let dir = crate_dir.join(TARGET);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut main = String::from("//! What the book says is refused.\n\n");
    for refused in all {
        let _ = writeln!(main, "mod {};", refused.module);
        write(&dir.join(format!("{}.rs", refused.module)), &refused.code)?;
    }
    write(&dir.join("main.rs"), &main)
}

/// Compiles the target, which must fail as the pages say and in no other way.
pub fn check(all: &[Refused], crate_dir: &Path) -> Result<()> {
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--no-run", "--quiet", "--message-format", "short", "--color", "never"]);
    cargo.args(["--features", TARGET, "--test", TARGET, "--manifest-path"]).arg(crate_dir.join("Cargo.toml"));
    cargo.env("CARGO_TARGET_DIR", workspace::target_dir());
    println!("==> see that the compiler refuses what the book says it refuses");
    let output = cargo.output().context("cannot run cargo")?;
    let said = String::from_utf8_lossy(&output.stderr);
    compare(all, &said).with_context(|| format!("the compiler said:\n{said}"))
}

fn compare(all: &[Refused], said: &str) -> Result<()> {
    let mut of_module: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in said.lines() {
        // `refused/page_12.rs:5:1: error[E0080]: …`
        let Some((place, error)) = line.split_once(": error") else { continue };
        let file = place.split(':').next().unwrap_or_default();
        let module = Path::new(file).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        of_module.entry(module).or_default().push(error);
    }
    for Refused { module, words, .. } in all {
        let errors = of_module.remove(module.as_str()).unwrap_or_default();
        ensure!(!errors.is_empty(), "{module} is not refused");
        let others = errors.iter().find(|error| !error.contains(words.as_str()));
        ensure!(others.is_none(), "{module} is refused otherwise: {}", others.unwrap_or(&""));
    }
    ensure!(of_module.is_empty(), "errors where none belong: {of_module:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(module: &str, words: &str) -> Refused {
        Refused { module: module.into(), code: String::new(), words: words.into() }
    }

    #[test]
    fn a_block_needs_the_compilers_words() {
        let blocks = |page| super::super::blocks(page).unwrap();
        let page = "```rust,refused\nx\n```\nso\n```text\nno x\n```\n";
        let found = of(&blocks(page), "p", "p.md").unwrap();
        assert_eq!(found, [Refused { code: "//! p.md:2\n\nx\n".into(), ..refused("p_1", "no x") }]);
        assert!(of(&blocks("```rust,refused\nx\n```\n"), "p", "p.md").is_err());
    }

    #[test]
    fn every_block_fails_by_its_own_words_and_nothing_else_does() {
        let all = [refused("p_1", "no x"), refused("q_7", "no y")];
        let said = "refused/p_1.rs:3:1: error[E0080]: no x here\nrefused/q_7.rs:2:9: error: no y\nerror: could not compile\n";
        compare(&all, said).unwrap();
        let fails = |said: &str| compare(&all, said).unwrap_err().to_string();
        assert_eq!(fails("refused/p_1.rs:3:1: error: no x\n"), "q_7 is not refused");
        assert!(
            fails(&format!("{said}refused/p_1.rs:1:1: error: no z\n")).contains("p_1 is refused otherwise")
        );
        assert!(fails(&format!("{said}src/lib.rs:1:1: error: no z\n")).contains("where none belong"));
    }
}

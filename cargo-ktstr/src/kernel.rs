//! `kernel pull`, `kernel list`, `kernel clean`.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use ktstr_orch::store::{
    self, EntryState, Kernel, KernelRef, ListedEntry, Metadata, PullError, Store, import_image,
    import_packages,
};

use crate::cli::KernelAction;
use crate::exit::{Exit, coded, print, print_json};
use crate::progress::Progress;

/// Runs one action.
pub fn run(action: &KernelAction) -> anyhow::Result<ExitCode> {
    let store = open_store()?;
    match action {
        KernelAction::Pull { what } => pull(&store, what)?,
        KernelAction::List { json } => list(&store, *json)?,
        KernelAction::Clean { keep, corrupt_only, force } => clean(&store, *keep, *corrupt_only, *force)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The store of this user.
pub fn open_store() -> anyhow::Result<Store> {
    Ok(Store::open(store::store_root(|name| std::env::var_os(name))?)?)
}

/// The kernel to use, from an option's value or the environment. A kernel
/// that is missing means "not run".
pub fn find(store: &Store, selector: Option<&str>) -> anyhow::Result<Kernel> {
    store.discover(selector, |name| std::env::var_os(name)).map_err(|e| coded(Exit::NotRun, e))
}

fn pull(store: &Store, what: &[String]) -> anyhow::Result<()> {
    let wanted: Vec<KernelRef> = what.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    if let [KernelRef::Debian(series)] = wanted.as_slice() {
        let mut progress = Progress::for_stderr();
        let pulled =
            store::pull(store, series.as_deref(), |name| std::env::var_os(name), &mut |e| progress.show(e));
        drop(progress);
        let pulled = pulled.map_err(not_run_when_missing)?;
        describe(store, &pulled.metadata, pulled.cached);
        return Ok(());
    }
    let mut packages = Vec::new();
    for kernel in wanted {
        match kernel {
            KernelRef::Image(path) => describe(store, &import_image(store, &path)?, false),
            KernelRef::Packages(paths) => packages.extend(paths),
            KernelRef::Debian(_) => bail!("give one `debian[:SERIES]`, or files"),
            KernelRef::Cached(name) => {
                bail!(
                    "{name:?} is no file; for a distribution kernel write `ktstr kernel pull debian:{name}`"
                )
            }
        }
    }
    if !packages.is_empty() {
        describe(store, &import_packages(store, &packages)?, false);
    }
    Ok(())
}

/// A host or mirror that has no kernel for us is no failure of a test.
fn not_run_when_missing(error: PullError) -> anyhow::Error {
    coded(Exit::NotRun, error)
}

fn describe(store: &Store, metadata: &Metadata, cached: bool) {
    let how = if cached { "already cached" } else { "cached" };
    println!("{how}: {} ({}) in {}", metadata.key, facts(metadata), store.path(&metadata.key).display());
}

fn facts(metadata: &Metadata) -> String {
    let sched_ext = match metadata.sched_ext {
        Some(true) => "sched_ext",
        Some(false) => "no sched_ext",
        None => "sched_ext unknown",
    };
    format!("{sched_ext}, {}", if metadata.btf { "BTF" } else { "no BTF" })
}

fn list(store: &Store, json: bool) -> anyhow::Result<()> {
    let entries = store.list()?;
    if json {
        let value = |entry| json_entry(store, entry);
        let values: Vec<serde_json::Value> = entries.iter().map(value).collect::<Result<_, _>>()?;
        return print_json(&values);
    }
    if entries.is_empty() {
        eprintln!("no kernels cached in {}; fetch one with `ktstr kernel pull`", store.root().display());
        return Ok(());
    }
    let mut rows = vec![["KEY", "VERSION", "SOURCE", "ARCH", "CREATED", "FACTS"].map(str::to_owned)];
    for entry in &entries {
        rows.push(match &entry.state {
            EntryState::Valid(m) => [
                m.key.clone(),
                m.version.clone(),
                m.source.kind().to_owned(),
                m.arch.clone(),
                m.created.clone(),
                facts(m),
            ],
            EntryState::Corrupt(reason) => {
                let dash = || "-".to_owned();
                [entry.key.clone(), dash(), dash(), dash(), dash(), format!("(corrupt: {reason})")]
            }
        });
    }
    print(&table(&rows))
}

fn json_entry(store: &Store, entry: &ListedEntry) -> serde_json::Result<serde_json::Value> {
    match &entry.state {
        EntryState::Valid(metadata) => {
            let mut value = serde_json::to_value(metadata)?;
            value["valid"] = true.into();
            value["path"] = store.path(&entry.key).to_string_lossy().into();
            Ok(value)
        }
        EntryState::Corrupt(reason) => {
            Ok(serde_json::json!({ "key": entry.key, "valid": false, "reason": reason }))
        }
    }
}

/// Columns as wide as their widest cell, the last one as long as it is.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn clean(store: &Store, keep: Option<usize>, corrupt_only: bool, force: bool) -> anyhow::Result<()> {
    let doomed = doomed(store.list()?, keep, corrupt_only);
    if doomed.is_empty() {
        println!("nothing to remove in {}", store.root().display());
        return Ok(());
    }
    if !force && !confirmed(&doomed)? {
        bail!("nothing was removed");
    }
    for key in doomed {
        store.remove(&key).with_context(|| format!("cannot remove {key}"))?;
        println!("removed {key}");
    }
    Ok(())
}

/// Keys to remove: `entries` has the newest first, damaged ones take no place
/// among the kept.
fn doomed(entries: Vec<ListedEntry>, keep: Option<usize>, corrupt_only: bool) -> Vec<String> {
    let mut kept = 0;
    let mut keys = Vec::new();
    for ListedEntry { key, state } in entries {
        let valid = matches!(state, EntryState::Valid(_));
        if valid && (corrupt_only || kept < keep.unwrap_or(0)) {
            kept += 1;
        } else {
            keys.push(key);
        }
    }
    keys
}

fn confirmed(keys: &[String]) -> anyhow::Result<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!("stdin is no terminal, so nobody can confirm; give --force to remove {}", keys.join(", "));
    }
    eprint!("remove {}? [y/N] ", keys.join(", "));
    std::io::stderr().flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, valid: bool) -> ListedEntry {
        let metadata = || {
            serde_json::from_str(
                r#"{"format":1,"key":"k","release":"7.2","version":"7.2","series":"7.2","arch":"x86_64",
                   "source":{"kind":"image","path":"/x"},"sched_ext":true,"btf":true,"files":{},"modules":[],
                   "created":"","ktstr":""}"#,
            )
            .unwrap()
        };
        let state = if valid { EntryState::Valid(metadata()) } else { EntryState::Corrupt("bad".into()) };
        ListedEntry { key: key.into(), state }
    }

    #[test]
    fn what_clean_removes() {
        let entries = || vec![entry("a", true), entry("b", true), entry("c", true), entry("x", false)];
        assert_eq!(doomed(entries(), None, false), ["a", "b", "c", "x"]);
        assert_eq!(doomed(entries(), Some(2), false), ["c", "x"], "damaged ones take no place");
        assert_eq!(doomed(entries(), Some(9), false), ["x"]);
        assert_eq!(doomed(entries(), None, true), ["x"]);
    }

    #[test]
    fn columns_line_up() {
        let rows = [["a", "long cell", "z"], ["bbbb", "c", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "a     long cell  z\nbbbb  c\n");
    }

    #[test]
    fn json_marks_damage() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("k")).unwrap();
        assert_eq!(json_entry(&store, &entry("a", false)).unwrap()["reason"], "bad");
        let valid = json_entry(&store, &entry("a", true)).unwrap();
        assert_eq!(valid["path"], store.path("a").to_str().unwrap());
        assert_eq!((&valid["valid"], &valid["sched_ext"]), (&true.into(), &true.into()));
    }
}

//! `show-thresholds`: what a test is judged by, under each accelerator. The test executables know it
//! themselves; they are built by cargo and asked.

use ktstr_proto::word::edits;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::cli::ShowThresholdsArgs;
use crate::exit::{Exit, print, print_json};

/// Variable that makes a test executable say what its tests are judged by, and end.
const SHOW_ENV: &str = "KTSTR_SHOW_THRESHOLDS";

/// A test as its executable describes it.
#[derive(Debug, Deserialize, serde::Serialize)]
struct Judged {
    test: String,
    package: String,
    scheduler: String,
    /// Thresholds that the test or its scheduler says itself.
    own: Vec<String>,
    thresholds: std::collections::BTreeMap<String, std::collections::BTreeMap<String, Option<String>>>,
}

/// Prints them.
pub fn show(args: &ShowThresholdsArgs) -> anyhow::Result<ExitCode> {
    let mut all: Vec<Judged> = Vec::new();
    for executable in executables(args.package.as_deref())? {
        // One that does not know the variable lists its tests instead of running them.
        let output = Command::new(&executable)
            .arg("--list")
            .env(SHOW_ENV, "1")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {executable}"))?;
        all.extend(serde_json::from_slice::<Vec<Judged>>(&output.stdout).unwrap_or_default());
    }
    let Some(found) = find(&all, &args.test) else {
        let names: Vec<&str> = all.iter().map(|judged| judged.test.as_str()).collect();
        match near(&args.test, &names) {
            Some(near) => bail!("there is no test `{}`; did you mean `{near}`?", args.test),
            None => bail!("there is no test `{}`; known are: {}", args.test, names.join(", ")),
        }
    };
    if args.json {
        print_json(found)?;
    } else {
        print(&render(found))?;
    }
    Ok(Exit::Pass.into())
}

/// Test executables, built if need be.
fn executables(package: Option<&str>) -> anyhow::Result<Vec<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["test", "--no-run", "--message-format=json"]);
    match package {
        Some(package) => command.args(["-p", package]),
        None => command.arg("--workspace"),
    };
    let output =
        command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the tests do not build");
    }
    let lines = String::from_utf8_lossy(&output.stdout);
    let artifact = |line: &str| -> Option<String> {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_test = message["profile"]["test"].as_bool()?;
        is_test.then(|| message["executable"].as_str().map(str::to_owned))?
    };
    Ok(lines.lines().filter_map(artifact).collect())
}

/// The test of this name, with or without its modules.
fn find<'a>(all: &'a [Judged], name: &str) -> Option<&'a Judged> {
    let last = |judged: &&Judged| judged.test.rsplit("::").next() == Some(name);
    all.iter().find(|judged| judged.test == name).or_else(|| all.iter().find(last))
}

fn near<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let last = |full: &'a str| full.rsplit("::").next().unwrap_or(full);
    let steps = |full: &&'a str| edits(name, last(full)).min(edits(name, full));
    known.iter().min_by_key(|full| steps(full)).filter(|full| steps(full) <= 1 + full.len() / 3).copied()
}

fn render(judged: &Judged) -> String {
    let mut text = format!("{} (package {}, scheduler {})\n", judged.test, judged.package, judged.scheduler);
    let accels: Vec<&String> = judged.thresholds.keys().collect();
    text.push_str(&format!("  {:32}", "threshold"));
    accels.iter().for_each(|accel| text.push_str(&format!("{accel:>10}")));
    text.push('\n');
    let names = judged.thresholds.values().next().into_iter().flat_map(|rows| rows.keys());
    for name in names {
        let mark = if judged.own.contains(name) { "*" } else { " " };
        text.push_str(&format!("{mark} {name:32}"));
        for rows in judged.thresholds.values() {
            let value = rows.get(name).and_then(Option::as_deref).unwrap_or("-");
            text.push_str(&format!("{value:>10}"));
        }
        text.push('\n');
    }
    text.push_str("* said by the test or its scheduler; the rest are defaults; - is not checked\n");
    text.push_str("tests on this host itself are judged as under tcg, since others use it, too\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(test: &str) -> Judged {
        let rows = |gap: &str| {
            [("max_gap_ms".to_owned(), Some(gap.to_owned())), ("min_work_rate".to_owned(), None)].into()
        };
        Judged {
            test: test.into(),
            package: "p".into(),
            scheduler: "EEVDF".into(),
            own: vec!["max_gap_ms".into()],
            thresholds: [("kvm".to_owned(), rows("2000")), ("tcg".to_owned(), rows("3000"))].into(),
        }
    }

    #[test]
    fn tests_are_found_by_either_name_and_near_misses_are_named() {
        let all = [judged("a::steady"), judged("b::other")];
        assert_eq!(find(&all, "steady").map(|j| j.test.as_str()), Some("a::steady"));
        assert!(find(&all, "a::other").is_none());
        assert_eq!(near("stedy", &["a::steady", "b::other"]), Some("a::steady"));
        assert_eq!(near("frobnicate", &["a::steady"]), None);
    }

    #[test]
    fn the_table_fits_80_columns() {
        let text = render(&judged("a::steady"));
        assert!(text.contains("* max_gap_ms") && text.contains("      2000      3000"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
}

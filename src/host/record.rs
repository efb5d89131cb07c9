//! Reports that no orchestrator writes: of a test that is left out, that could not be asked for, or that
//! ran on this host. Whoever counts verdicts reads `sidecar.json` of each run directory, so each of these
//! has a directory too.
//!
//! That nothing could be written is said and changes no verdict.

use std::{
    fs, io,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use ktstr_proto::{
    run::RunId,
    verdict::{Cause, Outcome, RunReport},
};

use super::{KtstrTestEntry, Variant, replay, spec};

/// A report of nothing yet; `what` ends the name of its directory, below `runs_root`.
pub fn blank(entry: &KtstrTestEntry, variant: &Variant, runs_root: PathBuf, what: &str) -> RunReport {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    let name = variant.name.replace([':', '/'], "_");
    let id = format!("{name}-{millis:x}-{:x}-{what}", std::process::id());
    let seed = spec::seed(&variant.name).unwrap_or_default();
    let shape = variant.topology.or(entry.topology().ok()).unwrap_or(KtstrTestEntry::DEFAULT_SHAPE);
    RunReport {
        kernel: spec::kernel(variant).unwrap_or_default(),
        scheduler: entry.scheduler.map_or("EEVDF", |scheduler| scheduler.name).into(),
        seed,
        replay: unfilled(&replay::replay_of(entry, variant, seed), &spec::kernel(variant)),
        allow_inconclusive: entry.allow_inconclusive,
        ..RunReport::blank(RunId(id.clone()), runs_root.join(&id), &variant.name, shape)
    }
}

/// A replay line in which nobody has said which kernel and accelerator were used: what was asked for.
fn unfilled(replay: &str, kernel: &Option<String>) -> String {
    let filled = |text: &str, variable: &str, place: &str, value: Option<&str>| match value {
        Some(value) => text.replace(place, value),
        None => text.replace(&format!("{variable}={place} "), ""),
    };
    let accel = std::env::var("KTSTR_ACCEL").ok().filter(|accel| !accel.is_empty());
    let text = filled(replay, "KTSTR_KERNEL", "{kernel}", kernel.as_deref());
    filled(&text, "KTSTR_ACCEL", "{accel}", accel.as_deref())
}

/// The report of a run that did not take place.
pub fn left_out(entry: &KtstrTestEntry, variant: &Variant, runs_root: PathBuf, reason: &str) -> RunReport {
    let mut report = blank(entry, variant, runs_root, "left-out");
    report.cause = Some(Cause::Missing { reason: reason.into() });
    write(&mut report);
    report
}

/// The report of a run of which there is none because ktstr failed; `run` is its directory's name, if it
/// came to that.
pub fn broken(
    entry: &KtstrTestEntry,
    variant: &Variant,
    runs_root: PathBuf,
    cause: Cause,
    run: Option<&RunId>,
) -> RunReport {
    let mut report = blank(entry, variant, runs_root.clone(), "broken");
    (report.outcome, report.infrastructure, report.cause) = (Outcome::Fail, true, Some(cause));
    if let Some(run) = run {
        (report.run_dir, report.run_id) = (runs_root.join(&run.0), run.clone());
    }
    write(&mut report);
    report
}

/// Writes the report into its run directory, in one step.
pub fn write(report: &mut RunReport) {
    let written = || -> io::Result<()> {
        fs::create_dir_all(&report.run_dir)?;
        let (path, new) = (report.run_dir.join("sidecar.json"), report.run_dir.join(".sidecar.json"));
        fs::write(&new, serde_json::to_vec_pretty(report)?)?;
        fs::rename(new, path)
    };
    if let Err(error) = written() {
        report.notes.push(format!("{} is not recorded as it is told here: {error}", report.run_id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(report: &RunReport) -> RunReport {
        let text = fs::read(report.run_dir.join("sidecar.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn what_is_left_out_is_recorded_where_verdicts_are_counted() {
        let root = tempfile::tempdir().unwrap();
        let entry = crate::host::tests::entry("a::t", crate::host::Constraints::NONE);
        let report = left_out(entry, &Variant::of(entry), root.path().into(), "no reason");
        let recorded = read(&report);
        assert_eq!((recorded.outcome, recorded.name.as_str()), (Outcome::NotRun, "a::t"));
        assert_eq!(recorded.cause, Some(Cause::Missing { reason: "no reason".into() }));
        assert_eq!(report.notes, Vec::<String>::new());
    }

    #[test]
    fn what_broke_is_recorded_in_the_run_that_it_broke() {
        let root = tempfile::tempdir().unwrap();
        let entry = crate::host::tests::entry("a::t", crate::host::Constraints::NONE);
        let run = RunId("a__t-7".into());
        fs::create_dir(root.path().join(&run.0)).unwrap();
        let cause = Cause::BadRequest { reason: "x".into() };
        for run in [Some(&run), None] {
            let report = broken(entry, &Variant::of(entry), root.path().into(), cause.clone(), run);
            let recorded = read(&report);
            assert!(recorded.infrastructure && recorded.exit_code() == 4, "{recorded:?}");
        }
        let directories = fs::read_dir(root.path()).unwrap().count();
        assert_eq!(directories, 2, "one of them was there");
    }

    #[test]
    fn a_replay_line_has_no_holes() {
        let line = "KTSTR_KERNEL={kernel} KTSTR_SEED=7 cargo nextest run";
        assert_eq!(unfilled(line, &None), "KTSTR_SEED=7 cargo nextest run");
        assert!(unfilled(line, &Some("6.18".into())).starts_with("KTSTR_KERNEL=6.18 "));
    }

    #[test]
    fn where_nothing_can_be_written_that_is_said() {
        let entry = crate::host::tests::entry("t", crate::host::Constraints::NONE);
        let report = left_out(entry, &Variant::of(entry), "/proc/nowhere".into(), "x");
        assert!(report.notes.iter().any(|note| note.contains("is not recorded")), "{:?}", report.notes);
    }
}

//! Tests that are not run, decided on the client's side: said, and recorded like any other verdict.
//!
//! Whoever counts verdicts reads them from `sidecar.json` of each run directory, so a test that is left
//! out has a directory too. That nothing could be written is said and changes no verdict.

use std::{
    fs, io,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use ktstr_proto::{
    run::{Job, RunId, RunSpec},
    verdict::{Cause, Outcome, RunReport},
};

/// The report of a run that did not take place.
pub fn report(spec: &RunSpec, reason: &str) -> RunReport {
    let scheduler = match &spec.job {
        Job::Test(test) => test.scheduler.as_ref().map(|scheduler| scheduler.name.clone()),
        Job::Shell(_) => None,
    };
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    let id = format!("{}-{millis:x}-{:x}-left-out", spec.name.replace([':', '/'], "_"), std::process::id());
    let mut report = RunReport {
        run_dir: spec.runs_root.join(&id),
        run_id: RunId(id),
        name: spec.name.clone(),
        outcome: Outcome::NotRun,
        infrastructure: false,
        cause: Some(Cause::Missing { reason: reason.into() }),
        result: None,
        timeline: Vec::new(),
        captures: Vec::new(),
        assert: None,
        monitor: None,
        host: None,
        notes: Vec::new(),
        scheduler_log: Vec::new(),
        console_tail: Vec::new(),
        accel: None,
        accel_detail: String::new(),
        kernel: spec.kernel.clone().unwrap_or_default(),
        scheduler: scheduler.unwrap_or_else(|| "EEVDF".into()),
        topology: spec.topology,
        exit_status: None,
        seed: spec.seed,
        replay: spec.replay.clone(),
        host_ms: (0, 0),
        boot: Default::default(),
    };
    if let Err(error) = write(&report.run_dir, &report) {
        report.notes.push(format!("{} is not recorded: {error}", report.run_id));
    }
    report
}

fn write(dir: &Path, report: &RunReport) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("sidecar.json"), serde_json::to_vec_pretty(report)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_recorded_where_verdicts_are_counted() {
        let root = tempfile::tempdir().unwrap();
        let entry = crate::host::tests::entry("a::t", crate::host::Constraints::NONE);
        let spec = crate::host::spec_of(entry).unwrap();
        let spec = RunSpec { runs_root: root.path().into(), ..spec };
        let left_out = report(&spec, "no reason");
        let read = fs::read(left_out.run_dir.join("sidecar.json")).unwrap();
        let read: RunReport = serde_json::from_slice(&read).unwrap();
        assert_eq!((read.outcome, read.name.as_str()), (Outcome::NotRun, "a::t"));
        assert_eq!(read.cause, Some(Cause::Missing { reason: "no reason".into() }));
        assert_eq!(left_out.notes, Vec::<String>::new());
    }
}

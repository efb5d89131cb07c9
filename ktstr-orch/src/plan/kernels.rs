//! Kernels that a test's schedulers are meant for: on others the test is not run.

use ktstr_proto::run::Job;

use super::PlanError;
use crate::store::{KernelRange, KernelVersion};

/// Every scheduler of the test must be meant for this kernel.
pub(super) fn check_kernel(job: &Job, release: &str, notes: &mut Vec<String>) -> Result<(), PlanError> {
    let Job::Test(test) = job else { return Ok(()) };
    for scheduler in test.scheduler.iter().chain(&test.staged).filter(|s| !s.kernels.is_empty()) {
        let name = || scheduler.name.clone();
        let ranges = scheduler.kernels.iter().map(|text| text.parse::<KernelRange>());
        let ranges: Vec<KernelRange> = ranges
            .collect::<Result<_, _>>()
            .map_err(|source| PlanError::NoRange { scheduler: name(), source })?;
        let Some(version) = KernelVersion::parse(release) else {
            notes.push(format!(
                "kernel release `{release}` is no version, so nobody knows whether {} is meant for it",
                scheduler.name
            ));
            continue;
        };
        if !ranges.iter().any(|range| range.holds(&version)) {
            return Err(PlanError::OtherKernels {
                scheduler: name(),
                kernels: scheduler.kernels.join(", "),
                kernel: release.into(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ktstr_proto::{run::SchedulerJob, verdict::Assert};

    use super::*;

    #[test]
    fn a_scheduler_is_only_tested_on_kernels_it_is_meant_for() {
        let job = |kernels: &[&str]| SchedulerJob {
            name: "s".into(),
            source: ktstr_proto::run::SchedulerSource::Program("/s".into()),
            args: Vec::new(),
            cgroup_parent: None,
            kernels: kernels.iter().map(|text| text.to_string()).collect(),
        };
        let check = |scheduler: SchedulerJob, staged: Vec<SchedulerJob>, release: &str| {
            let test = ktstr_proto::run::TestJob {
                binary: "/t".into(),
                test: "t".into(),
                duration_ms: 1000,
                scheduler: Some(scheduler),
                include: Vec::new(),
                assert: Assert::NO_OVERRIDES,
                staged,
                files: Vec::new(),
                expect: Default::default(),
                snapshots: 0,
            };
            let mut notes = Vec::new();
            check_kernel(&Job::Test(test), release, &mut notes).map(|()| notes)
        };
        let release = "7.2.13+deb14-cloud-amd64";
        assert_eq!(check(job(&[]), vec![], release).unwrap(), Vec::<String>::new());
        assert!(check(job(&["6.18", "7.0..=7.2"]), vec![], release).is_ok());
        let error = check(job(&["6.14", "6.15..=7.0"]), vec![], release).unwrap_err();
        assert!(error.is_missing(), "a test that cannot be made here is not run");
        let text = error.to_string();
        assert!(text.contains("6.14, 6.15..=7.0") && text.contains(release), "{text}");
        assert!(check(job(&["7.2"]), vec![job(&["6.18"])], release).is_err(), "one that may take over");
        assert!(!check(job(&["newest"]), vec![], release).unwrap_err().is_missing());
        assert_eq!(check(job(&["7.2"]), vec![], "custom").unwrap().len(), 1);
    }
}

//! One test under many seeds: looks for the interleaving that breaks it.
//!
//! Under `det` a run is decided by its seed alone, and the seed also chooses how fast the CPUs are and
//! how long the boot takes, so every seed is another interleaving that can be had again. Each way to
//! end other than in a pass is reported in full once, with the first seed that showed it and the line
//! that repeats it. So many seeds choose `det` unless an accelerator is named. Under a named other one a
//! seed only decides the workload's choices: a test that declares `seeds` is not run there, one that
//! the user asks to repeat (`KTSTR_SEEDS`) is, and that is said.

use std::{collections::BTreeMap, env};

use ktstr_proto::{
    run::{Accel, RunSpec},
    verdict::{Outcome, RunReport},
};

/// Number of seeds to try.
const SEEDS: &str = "KTSTR_SEEDS";

/// How often a test is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Once, with the seed and the accelerator of the request.
    Once,
    /// Under so many seeds, with this accelerator.
    Many(u32, Accel),
    /// Not at all: with this accelerator a seed decides too little.
    NotUnder(Accel),
}

impl Plan {
    /// What the environment and the test ask for; a run that is to vary as a seed says is that one run.
    pub fn of(spec: &RunSpec, declared: Option<u32>) -> Result<Self, String> {
        match (spec.vary, wanted(env::var(SEEDS).ok().as_deref())?) {
            (true, _) => Ok(Self::Once),
            (false, asked) => Ok(Self::choose(asked, declared, spec.accel)),
        }
    }

    fn choose(asked: Option<u32>, declared: Option<u32>, accel: Accel) -> Self {
        let own = if accel == Accel::Auto { Accel::Det } else { accel };
        match (asked, declared) {
            (Some(count), _) => Self::Many(count, own),
            (None, Some(count)) if own == Accel::Det => Self::Many(count, own),
            (None, Some(_)) => Self::NotUnder(own),
            (None, None) => Self::Once,
        }
    }
}

/// How many seeds the variable asks for, if any.
fn wanted(value: Option<&str>) -> Result<Option<u32>, String> {
    match value.filter(|value| !value.is_empty()) {
        None => Ok(None),
        Some(value) => match value.parse() {
            Ok(0) | Err(_) => Err(format!("{SEEDS}=`{value}` is no number of seeds; give 1 or more")),
            Ok(count) => Ok(Some(count)),
        },
    }
}

/// The requests, one per seed from the one in `spec` on.
pub fn requests(spec: &RunSpec, count: u32) -> impl Iterator<Item = RunSpec> {
    (0..u64::from(count)).map(move |n| {
        let seed = spec.seed.wrapping_add(n);
        let replay = spec.replay.replacen(
            &format!("KTSTR_SEED={} ", spec.seed),
            &format!("KTSTR_SEED={seed} KTSTR_VARY=1 "),
            1,
        );
        RunSpec { seed, vary: true, replay, ..spec.clone() }
    })
}

/// Ends of runs, by kind.
#[derive(Default)]
pub struct Ends {
    kinds: BTreeMap<String, End>,
    runs: u32,
}

struct End {
    first: RunReport,
    seeds: Vec<u64>,
}

impl Ends {
    /// Adds a report; true when it ended in a way not seen before that is no pass.
    pub fn add(&mut self, report: RunReport) -> bool {
        self.runs += 1;
        let kind = kind(&report);
        let seed = report.seed;
        let passed = report.outcome == Outcome::Pass && !report.infrastructure;
        match self.kinds.get_mut(&kind) {
            Some(end) => {
                end.seeds.push(seed);
                false
            }
            None => {
                self.kinds.insert(kind, End { first: report, seeds: vec![seed] });
                !passed
            }
        }
    }

    /// The report that decides: the worst kind's first.
    pub fn worst(&self) -> Option<&RunReport> {
        self.kinds.values().map(|end| &end.first).max_by_key(|report| (report.infrastructure, report.outcome))
    }

    /// How many runs there were.
    pub fn runs(&self) -> u32 {
        self.runs
    }

    /// How many seeds ended in which way.
    pub fn summary(&self) -> String {
        let mut text = format!("seeds: {} tried, {} ways to end\n", self.runs, self.kinds.len());
        for (kind, end) in &self.kinds {
            let shown: Vec<String> = end.seeds.iter().take(5).map(u64::to_string).collect();
            let more = if end.seeds.len() > shown.len() { ", …" } else { "" };
            text.push_str(&format!("  {:>4}  {kind} (seeds {}{more})\n", end.seeds.len(), shown.join(", ")));
            if end.first.outcome != Outcome::Pass {
                text.push_str(&format!("        replay: {}\n", end.first.replay));
            }
        }
        text
    }
}

/// Verdict, cause and the kinds of what failed, without figures, which differ between seeds.
fn kind(report: &RunReport) -> String {
    let mut words = vec![if report.infrastructure {
        "infrastructure".to_owned()
    } else {
        format!("{:?}", report.outcome).to_lowercase()
    }];
    if let Some(cause) = &report.cause {
        let name = format!("{cause:?}");
        words.push(name.split([' ', '(', '{']).next().unwrap_or_default().to_owned());
    }
    let details = report.result.iter().flat_map(|result| &result.details);
    let mut findings: Vec<String> =
        details.filter(|d| d.outcome == report.outcome).map(|d| format!("{:?}", d.kind)).collect();
    findings.sort();
    findings.dedup();
    if report.outcome != Outcome::Pass {
        words.extend(findings);
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::tests::sample;

    fn report(seed: u64, outcome: Outcome) -> RunReport {
        let mut report = RunReport { seed, outcome, ..sample() };
        if outcome == Outcome::Pass {
            (report.cause, report.result) = (None, None);
        }
        report
    }

    #[test]
    fn each_way_to_end_is_told_once_with_its_first_seed() {
        let mut ends = Ends::default();
        let new: Vec<bool> = [(1, Outcome::Pass), (2, Outcome::Fail), (3, Outcome::Pass), (4, Outcome::Fail)]
            .map(|(seed, outcome)| ends.add(report(seed, outcome)))
            .to_vec();
        assert_eq!(new, [false, true, false, false]);
        let text = ends.summary();
        assert!(text.contains("4 tried, 2 ways to end"), "{text}");
        assert!(text.contains("fail Assertion Gap (seeds 2, 4)"), "{text}");
        assert_eq!(ends.worst().map(|report| report.seed), Some(2));
    }

    #[test]
    fn many_seeds_choose_det_and_say_so_where_it_is_not() {
        use Accel::{Auto, Det, Kvm, Tcg};
        assert_eq!(Plan::choose(None, None, Auto), Plan::Once);
        assert_eq!(Plan::choose(None, Some(9), Auto), Plan::Many(9, Det));
        assert_eq!(Plan::choose(None, Some(9), Det), Plan::Many(9, Det));
        assert_eq!(Plan::choose(None, Some(9), Kvm), Plan::NotUnder(Kvm));
        assert_eq!(Plan::choose(Some(3), Some(9), Auto), Plan::Many(3, Det));
        assert_eq!(Plan::choose(Some(3), None, Tcg), Plan::Many(3, Tcg));
        assert_eq!(wanted(Some("12")), Ok(Some(12)));
        assert_eq!(wanted(Some("")), Ok(None));
        for wrong in ["0", "-1", "many"] {
            assert!(wanted(Some(wrong)).unwrap_err().contains("give 1 or more"));
        }
    }

    #[test]
    fn one_seed_that_is_to_be_repeated_is_one_run() {
        let entry = crate::host::tests::entry("t", crate::host::Constraints::NONE);
        let spec = RunSpec { vary: true, ..crate::host::spec_of(entry).unwrap() };
        assert_eq!(Plan::of(&spec, Some(200)), Ok(Plan::Once));
    }

    #[test]
    fn every_seed_has_its_own_replay_line() {
        let entry = crate::host::tests::entry("t", crate::host::Constraints::NONE);
        let spec = RunSpec { seed: 7, ..crate::host::spec_of(entry).unwrap() };
        let spec = RunSpec { replay: "KTSTR_SEED=7 cargo nextest run".into(), ..spec };
        let all: Vec<RunSpec> = requests(&spec, 2).collect();
        assert!(all.iter().all(|spec| spec.vary));
        assert_eq!(all[1].replay, "KTSTR_SEED=8 KTSTR_VARY=1 cargo nextest run");
    }
}

//! One test under many seeds: looks for the interleaving that breaks it.
//!
//! Under `det` a run is decided by its seed alone, and the seed also chooses how fast the CPUs are and
//! how long the boot takes, so every seed is another interleaving that can be had again. Each way to
//! end other than in a pass ([`RunReport::ending`]) is reported in full once, with the first seed that showed it and the line
//! that repeats it. So many seeds choose `det` unless an accelerator is named. Under a named other one a
//! seed only decides the workload's choices: a test that declares `seeds` is not run there, one that
//! the user asks to repeat (`KTSTR_SEEDS`) is, and that is said.

use std::{collections::BTreeMap, env};

use ktstr_proto::{
    run::{Accel, RunSpec},
    verdict::{Outcome, RunReport},
};

use crate::render;

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

/// How many runs a test is, and under what, where `accel` is asked for.
pub(crate) fn under(declared: Option<u32>, accel: &str) -> (u32, String) {
    let asked = wanted(env::var(SEEDS).ok().as_deref()).ok().flatten();
    match accel.parse().map(|accel| Plan::choose(asked, declared, accel)) {
        Ok(Plan::Many(count, accel)) => (count, accel.to_string()),
        Ok(Plan::Once | Plan::NotUnder(_)) | Err(_) => (1, accel.to_owned()),
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
        // A seed that fails has its replay line; that run is looked into.
        RunSpec { seed, vary: true, replay, auto_repro: false, ..spec.clone() }
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
        let kind = report.ending();
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
            let line = format!("{kind} (seeds {}{more})", shown.join(", "));
            render::wrapped(&mut text, &format!("  {:>4}  ", end.seeds.len()), &line);
            if end.first.outcome != Outcome::Pass {
                text.push_str(&format!("        replay: {}\n", end.first.replay));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use ktstr_proto::verdict::{AssertResult, Cause, DetailKind};

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
        let kind = "2  fail Assertion; Gap: tid # stuck # on cpu# at +# (threshold #) in cg_0\n";
        assert!(text.contains(kind) && text.contains("(seeds 2, 4)"), "{text}");
        assert!(text.lines().filter(|l| !l.contains("replay")).all(|l| l.chars().count() <= 80), "{text}");
        assert_eq!(ends.worst().map(|report| report.seed), Some(2));
    }

    #[test]
    fn another_message_is_another_way_to_end_and_another_figure_is_not() {
        let mut ends = Ends::default();
        let mut add = |seed, cause: Cause| {
            ends.add(RunReport { cause: Some(cause), result: None, ..report(seed, Outcome::Fail) })
        };
        let panic = |message: &str| Cause::TestPanic { message: message.into(), backtrace: String::new() };
        assert!(add(1, panic("lost 3 of 7 tokens, at t.rs:9:1")));
        assert!(!add(2, panic("lost 4 of 7 tokens, at t.rs:9:1")));
        assert!(add(3, panic("a token came twice, at t.rs:12:1")));
        assert!(add(10, panic("a token came twice, at t.rs:19:1")));
        let error = |reason: &str| Cause::SchedulerError { reason: reason.into() };
        assert!(add(4, error("scx_bpf_error: layer0 lost its cpu 3")));
        assert!(add(5, error("scx_bpf_error: no such dsq 0x8")));
        assert!(!add(6, error("scx_bpf_error: no such dsq 0x1f")));
        let mut claim = |seed, text: &str| {
            let result = Some(AssertResult::fail(DetailKind::Claim, text));
            ends.add(RunReport { result, ..report(seed, Outcome::Fail) })
        };
        assert!(claim(7, "workers: 3 is below 4"));
        assert!(claim(8, "iterations: 3 is below 4"));
        assert!(!claim(9, "workers: 2 is below 4"));
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

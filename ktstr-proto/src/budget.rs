//! Which tests to run when there is not time for all: the most new ground per second.
//!
//! Test executables offer what they hold ([`Offer`]), whoever starts them all chooses among it and tells
//! them ([`Plan`]); an executable that is asked alone chooses among its own.
//!
//! Each candidate has features (scheduler, test, kernel, size classes of its machine) and every pair
//! of them is ground to cover, since faults live where two things meet. Greedy: always the
//! candidate that covers the most new pairs per estimated second and still fits. The estimate is the
//! median of earlier runs where there are any. Same input, same choice.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Names a directory: test executables that are asked for their list put an [`Offer`] there, as JSON in a
/// file `EXECUTABLE.json`, and list everything that could be chosen as if it had been.
pub const OFFERS: &str = "KTSTR_BUDGET_OFFERS";
/// Names the file with the [`Plan`], as JSON, by which test executables go.
pub const PLAN: &str = "KTSTR_BUDGET_PLAN";

/// Something that may be chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// What it covers, each once.
    pub features: Vec<String>,
    /// How long it is expected to take.
    pub estimate: Duration,
}

/// What one test executable holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// File name of the executable.
    pub executable: String,
    /// What can be chosen, by the names of the tests.
    pub candidates: Vec<Candidate>,
}

/// What is to be run: names of tests by the file name of their executable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan(pub BTreeMap<String, BTreeSet<String>>);

/// What was chosen.
#[derive(Debug, PartialEq)]
pub struct Choice {
    /// Names, in the order in which they were chosen.
    pub chosen: Vec<String>,
    /// Names left out, in the order of their names.
    pub left_out: Vec<String>,
    /// Expected time of what was chosen.
    pub used: Duration,
    /// Pairs covered, and pairs there are.
    pub covered: (usize, usize),
}

impl Choice {
    /// It in a line.
    pub fn in_words(&self, candidates: usize, limit: Duration) -> String {
        format!(
            "{} of {candidates} tests, {} of {} s used, {} of {} pairs of features covered",
            self.chosen.len(),
            self.used.as_secs(),
            limit.as_secs(),
            self.covered.0,
            self.covered.1
        )
    }
}

type Pair<'a> = (&'a str, &'a str);

fn pairs(candidate: &Candidate) -> BTreeSet<Pair<'_>> {
    let features = &candidate.features;
    let ordered = |a: &'_ str, b: &'_ str| a <= b;
    let mut all = BTreeSet::new();
    for a in features {
        all.extend(features.iter().filter(|b| ordered(a, b)).map(|b| (a.as_str(), b.as_str())));
    }
    all
}

/// Chooses within `budget`.
pub fn choose(candidates: &[Candidate], budget: Duration) -> Choice {
    let ground: Vec<BTreeSet<Pair<'_>>> = candidates.iter().map(pairs).collect();
    let all: BTreeSet<Pair<'_>> = ground.iter().flatten().copied().collect();
    let mut covered: BTreeSet<Pair<'_>> = BTreeSet::new();
    let mut open: BTreeSet<usize> = (0..candidates.len()).collect();
    let (mut chosen, mut used) = (Vec::new(), Duration::ZERO);
    loop {
        let worth = |&index: &usize| {
            let new = ground[index].difference(&covered).count();
            let seconds = candidates[index].estimate.as_secs_f64().max(0.1);
            (new > 0 && used + candidates[index].estimate <= budget).then(|| (index, new as f64 / seconds))
        };
        let better = |a: (usize, f64), b: (usize, f64)| {
            let by_name = || candidates[a.0].name.cmp(&candidates[b.0].name);
            if b.1.total_cmp(&a.1).then_with(by_name).is_gt() { b } else { a }
        };
        let Some((best, _)) = open.iter().filter_map(worth).reduce(better) else { break };
        open.remove(&best);
        covered.extend(ground[best].iter().copied());
        used += candidates[best].estimate;
        chosen.push(candidates[best].name.clone());
    }
    let mut left_out: Vec<String> = open.iter().map(|&index| candidates[index].name.clone()).collect();
    left_out.sort();
    Choice { chosen, left_out, used, covered: (covered.len(), all.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, features: &[&str], seconds: u64) -> Candidate {
        Candidate {
            name: name.into(),
            features: features.iter().map(|f| f.to_string()).collect(),
            estimate: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn new_ground_per_second_goes_first_and_repeats_are_left_out() {
        let all = [
            candidate("slow", &["a", "b"], 60),
            candidate("quick", &["a", "b"], 5),
            candidate("other", &["a", "c"], 10),
        ];
        let choice = choose(&all, Duration::from_secs(300));
        assert_eq!(choice.chosen, ["quick", "other"]);
        assert_eq!(choice.left_out, ["slow"], "it covers nothing new");
        assert_eq!(choice.covered, (5, 5));
        assert_eq!(choice.used, Duration::from_secs(15));
    }

    #[test]
    fn the_budget_holds_and_a_smaller_candidate_fills_it() {
        let all = [
            candidate("large", &["a", "b", "c", "d"], 50),
            candidate("small", &["e"], 9),
            candidate("tiny", &["f"], 1),
        ];
        let choice = choose(&all, Duration::from_secs(10));
        assert_eq!(choice.chosen, ["tiny", "small"]);
        assert!(choice.used <= Duration::from_secs(10));
        assert_eq!(choose(&all, Duration::ZERO).chosen.len(), 0);
    }

    #[test]
    fn equals_go_by_name() {
        let all = [candidate("b", &["x"], 5), candidate("a", &["y"], 5)];
        assert_eq!(choose(&all, Duration::from_secs(5)).chosen, ["a"]);
    }
}

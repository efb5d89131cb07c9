//! Which tests to run when there is not time for all: the most new ground per second.
//!
//! Each candidate has features (scheduler, test, kernel, size classes of its machine) and every pair
//! of them is ground to cover, since faults live where two things meet. Greedy: always the
//! candidate that covers the most new pairs per estimated second and still fits. The estimate is the
//! median of earlier runs where there are any. Same input, same choice.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ktstr_proto::Topology;

/// Something that may be chosen.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// What it covers, each once.
    pub features: Vec<String>,
    /// How long it is expected to take.
    pub estimate: Duration,
}

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

/// What a run on this machine covers.
pub fn features(test: &str, scheduler: &str, kernel: Option<&str>, shape: &Topology) -> Vec<String> {
    let class = |value: u32, bounds: &[u32]| {
        let above = bounds.iter().filter(|bound| value > **bound).count();
        bounds.get(above).map_or_else(|| "more".to_owned(), |bound| format!("<={bound}"))
    };
    vec![
        format!("test {test}"),
        format!("scheduler {scheduler}"),
        format!("kernel {}", kernel.unwrap_or("default")),
        format!("cpus {}", class(shape.cpus(), &[4, 8, 16, 64, 128])),
        format!("llcs {}", class(shape.llcs, &[1, 2, 4, 8])),
        format!("nodes {}", class(shape.numa_nodes, &[1, 2, 4])),
        format!("smt {}", shape.threads > 1),
    ]
}

/// A guess where nothing was learned: a boot, the scenario, and what emulation adds to both.
pub fn guess(accel: &str, shape: &Topology, scenario: Duration) -> Duration {
    let (cpus, scenario) = (f64::from(shape.cpus()), scenario.as_secs_f64());
    let seconds = match accel {
        "kvm" => 4.0 + cpus / 10.0 + scenario,
        "det" => 15.0 + cpus + scenario * (1.0 + cpus),
        _ => 6.0 + cpus / 2.0 + scenario,
    };
    Duration::from_secs_f64(seconds)
}

/// The learned time, or the guess.
pub fn estimate(
    name: &str,
    learned: &BTreeMap<String, Duration>,
    guess: impl FnOnce() -> Duration,
) -> Duration {
    learned.get(name).copied().unwrap_or_else(guess)
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

    #[test]
    fn size_classes() {
        let shape = Topology { numa_nodes: 1, llcs: 4, cores: 4, threads: 2 };
        let features = features("t", "EEVDF", None, &shape);
        for wanted in ["cpus <=64", "llcs <=4", "nodes <=1", "smt true", "kernel default"] {
            assert!(features.iter().any(|f| f == wanted), "{wanted}: {features:?}");
        }
    }
}

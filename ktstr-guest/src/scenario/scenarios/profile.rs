//! What a scheduler under test can do, as far as scenarios press on it: `ktstr run --flags llc,borrow`.
//!
//! A profile is the set of features with which the user started the scheduler. It configures nothing; it
//! chooses the scenarios that make sense: those all of whose features are in it.

use super::super::nearest;

/// A feature of schedulers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// Queues by last-level cache.
    Llc,
    /// An idle CPU takes work that another cgroup or cell left waiting.
    Borrow,
    /// A cache with nothing to do takes work from another one.
    Steal,
    /// CPUs are divided anew when loads change.
    Rebal,
    /// Tasks pinned against their cgroup's CPUs are refused.
    RejectPin,
    /// It works where the cpu controller is off.
    NoCtrl,
}

use Feature::{Borrow, Llc, NoCtrl, Rebal, RejectPin, Steal};

impl Feature {
    /// All of them, in the order in which profiles name them.
    pub const ALL: [Self; 6] = [Llc, Borrow, Steal, Rebal, RejectPin, NoCtrl];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Llc => "llc",
            Borrow => "borrow",
            Steal => "steal",
            Rebal => "rebal",
            RejectPin => "reject-pin",
            NoCtrl => "no-ctrl",
        }
    }

    /// What a scheduler that has it must have, too.
    const fn needs(self) -> Option<Self> {
        match self {
            Steal => Some(Llc),
            _ => None,
        }
    }
}

/// Scenarios that press on features; the others make sense with any scheduler.
const PRESSED: &[(&str, &[Feature])] = &[
    ("cgroup_4way_load_imbalance", &[Rebal]),
    ("cgroup_add_load_imbalance", &[Rebal]),
    ("cgroup_all_loaded", &[Borrow]),
    ("cgroup_bursty_imbalance", &[Borrow]),
    ("cgroup_bursty_load_shift", &[Rebal]),
    ("cgroup_cpuset_change_imbalance", &[Borrow]),
    ("cgroup_cpuset_cross_llc_race", &[Llc, Rebal]),
    ("cgroup_cpuset_imbalance_combined", &[Borrow, Rebal]),
    ("cgroup_cpuset_llc_affinity", &[Llc]),
    ("cgroup_cpuset_load_shift", &[Rebal]),
    ("cgroup_cpuset_overlap_imbalance_combined", &[Borrow, Rebal]),
    ("cgroup_cpuset_workload_imbalance", &[Borrow]),
    ("cgroup_idle_overloaded", &[Borrow]),
    ("cgroup_imbalance_mixed_workload", &[Borrow, Rebal]),
    ("cgroup_io_compute_imbalance", &[Borrow]),
    ("cgroup_llc_overflow", &[Llc, Steal]),
    ("cgroup_load_imbalance", &[Rebal]),
    ("cgroup_load_oscillation", &[Rebal]),
    ("cgroup_multicpu_pin", &[RejectPin]),
    ("cgroup_no_ctrl_cpuset_change", &[NoCtrl]),
    ("cgroup_no_ctrl_imbalance", &[Borrow, NoCtrl]),
    ("cgroup_no_ctrl_load_imbalance", &[NoCtrl]),
    ("cgroup_no_ctrl_task_migration", &[NoCtrl]),
    ("nested_cgroup_no_ctrl", &[NoCtrl]),
];

/// The features a scenario presses on.
pub fn pressed(scenario: &str) -> &'static [Feature] {
    PRESSED.iter().find(|(name, _)| *name == scenario).map_or(&[], |(_, features)| features)
}

/// Why words are no profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// A word is no feature.
    #[error("there is no flag `{word}`{near}; known are: llc, borrow, steal, rebal, reject-pin, no-ctrl")]
    Unknown {
        /// The word.
        word: String,
        /// A suggestion, if one is near.
        near: String,
    },
    /// A feature stands without the one it builds on.
    #[error("flag `{feature}` needs `{needed}`: no scheduler has the one without the other")]
    Needs {
        /// The feature.
        feature: &'static str,
        /// What is missing.
        needed: &'static str,
    },
}

/// Features that a scheduler has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Profile([bool; Feature::ALL.len()]);

impl Profile {
    /// Reads `llc,borrow`; `default`, and nothing, is a scheduler with none of them.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        let mut profile = Self::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty() && *word != "default") {
            let known = Feature::ALL.map(Feature::name);
            let Some(feature) = Feature::ALL.into_iter().find(|feature| feature.name() == word) else {
                let near =
                    nearest(word, &known).map_or(String::new(), |near| format!(" (did you mean `{near}`?)"));
                return Err(ProfileError::Unknown { word: word.into(), near });
            };
            profile.0[feature as usize] = true;
        }
        for feature in Feature::ALL.into_iter().filter(|feature| profile.has(*feature)) {
            if let Some(needed) = feature.needs().filter(|needed| !profile.has(*needed)) {
                return Err(ProfileError::Needs { feature: feature.name(), needed: needed.name() });
            }
        }
        Ok(profile)
    }

    /// Whether it is among them.
    pub const fn has(self, feature: Feature) -> bool {
        self.0[feature as usize]
    }

    /// Whether a scenario makes sense with such a scheduler.
    pub fn admits(self, scenario: &str) -> bool {
        pressed(scenario).iter().all(|feature| self.has(*feature))
    }
}

/// `llc+steal`, or `default` without any.
impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> =
            Feature::ALL.into_iter().filter(|feature| self.has(*feature)).map(Feature::name).collect();
        f.write_str(if names.is_empty() { "default" } else { "" })?;
        f.write_str(&names.join("+"))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::catalogue, *};

    #[test]
    fn every_scenario_that_is_named_exists_and_asks_for_what_can_be() {
        for (name, features) in PRESSED {
            assert!(catalogue().any(|canned| canned.name == *name), "{name}");
            let words: Vec<&str> = features.iter().map(|feature| feature.name()).collect();
            let profile = Profile::parse(&words.join(",")).unwrap();
            assert!(profile.admits(name));
            assert!(!Profile::default().admits(name), "{name} presses on nothing");
        }
    }

    #[test]
    fn there_are_48_profiles() {
        let valid = (0..64_u32).filter(|set| {
            let words: Vec<&str> =
                Feature::ALL.into_iter().filter(|f| set >> *f as u32 & 1 == 1).map(Feature::name).collect();
            Profile::parse(&words.join(",")).is_ok()
        });
        assert_eq!(valid.count(), 48);
    }

    #[test]
    fn mistakes_are_named_and_profiles_shown() {
        let error = |text: &str| Profile::parse(text).unwrap_err().to_string();
        assert!(
            error("lcc").starts_with("there is no flag `lcc` (did you mean `llc`?); known are: llc, borrow")
        );
        assert_eq!(error("steal"), "flag `steal` needs `llc`: no scheduler has the one without the other");
        assert_eq!(Profile::parse("steal, llc").unwrap().to_string(), "llc+steal");
        assert_eq!(Profile::parse("default").unwrap(), Profile::default());
        assert_eq!(Profile::default().to_string(), "default");
    }
}

//! Names by which scenarios are known beside their own: those of their functions elsewhere, the short ones of
//! [`super`], and those of catalogues of old.

use super::{Canned, catalogue};

/// Before any name: the function that carries the scenario out.
const FUNCTION: &str = "custom_";

/// Other names, and whose they are.
const OTHER: &[(&str, &str)] = &[
    ("affinity_change", "cgroup_affinity_change"),
    ("affinity_pinned", "cgroup_multicpu_pin"),
    ("cgroup_add", "cgroup_add_midrun"),
    ("cgroup_cpuset_overlap_imbalance", "cgroup_cpuset_overlap_imbalance_combined"),
    ("cgroup_cpuset_overlap_load_imbalance", "cgroup_cpuset_overlap_imbalance_combined"),
    ("cgroup_remove", "cgroup_remove_midrun"),
    ("cpuset_apply", "cgroup_cpuset_apply_midrun"),
    ("cpuset_clear", "cgroup_cpuset_clear_midrun"),
    ("cpuset_resize", "cgroup_cpuset_resize"),
    ("host_contention", "host_cgroup_contention"),
    ("nested_steady", "nested_cgroup_steady"),
    ("nested_task_move", "nested_cgroup_task_move"),
    ("oversubscribed", "cgroup_oversubscribed"),
    ("steady", "cgroup_steady"),
    ("steady_llc", "cgroup_cpuset_llc_steady"),
];

/// The scenario of this name, its own or another.
pub fn find(name: &str) -> Option<&'static Canned> {
    let name = name.strip_prefix(FUNCTION).unwrap_or(name);
    let own = OTHER.iter().find(|(other, _)| *other == name).map_or(name, |(_, own)| own);
    catalogue().find(|canned| canned.name == own)
}

/// Names that [`find`] takes for this scenario beside its own.
pub fn others(canned: &Canned) -> Vec<String> {
    let other = OTHER.iter().filter(|(_, own)| *own == canned.name).map(|(other, _)| (*other).to_owned());
    std::iter::once(format!("{FUNCTION}{}", canned.name)).chain(other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_name_is_of_one_scenario_and_of_no_other_s_own() {
        for (other, own) in OTHER {
            assert!(catalogue().any(|canned| canned.name == *own), "{own}");
            assert!(catalogue().all(|canned| canned.name != *other), "{other} is a name of its own");
            assert_eq!(find(other).map(|canned| canned.name), Some(*own));
        }
        for canned in catalogue() {
            for name in others(canned) {
                assert_eq!(find(&name).map(|found| found.name), Some(canned.name), "{name}");
            }
        }
        assert!(find("custom_").is_none() && find("custom_nothing").is_none());
    }

    #[test]
    fn other_names_are_in_the_book() {
        let page = include_str!("../../../../docs/reference/commands.md");
        for (other, own) in OTHER {
            let row = page.lines().find(|line| line.starts_with(&format!("| `{other}` |")));
            assert!(row.is_some_and(|row| row.contains(&format!("`{own}`"))), "no row says what {other} is");
        }
    }
}

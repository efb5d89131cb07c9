//! Which of the host's CPUs a machine runs on, where a test gives it a number of them.
//!
//! CPUs that share a cache stay together. A machine is held to them by its VMM's affinity, which every
//! thread and the emulator inherit; nobody else is kept away from them.

use std::{collections::BTreeMap, fs, path::Path};

use nix::{errno::Errno, sched, unistd::Pid};

/// The CPUs this process may use, ascending.
pub fn allowed() -> Vec<usize> {
    let set = sched::sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    (0..sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect()
}

/// `count` of the CPUs of `allowed`: of groups that share a cache, from group number `first` on; `None`
/// when there are fewer.
pub fn choose(allowed: &[usize], count: u32, first: usize) -> Option<Vec<usize>> {
    choose_among(&groups(allowed, Path::new("/sys/devices/system/cpu")), count, first)
}

fn choose_among(groups: &[Vec<usize>], count: u32, first: usize) -> Option<Vec<usize>> {
    let mut turned = groups.to_vec();
    turned.rotate_left(first % groups.len().max(1));
    let mut chosen: Vec<usize> = turned.into_iter().flatten().take(count as usize).collect();
    chosen.sort_unstable();
    (chosen.len() == count as usize).then_some(chosen)
}

/// By last-level cache, in order of their first CPUs.
fn groups(allowed: &[usize], root: &Path) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for cpu in allowed {
        let shared = (0..=4).rev().find_map(|level| {
            fs::read_to_string(root.join(format!("cpu{cpu}/cache/index{level}/shared_cpu_list"))).ok()
        });
        groups.entry(shared.unwrap_or_default()).or_default().push(*cpu);
    }
    let mut groups: Vec<Vec<usize>> = groups.into_values().collect();
    groups.sort();
    groups
}

/// Holds a process, and all it starts from now on, to `cpus`.
pub fn hold(pid: u32, cpus: &[usize]) -> Result<(), Errno> {
    let mut set = sched::CpuSet::new();
    cpus.iter().try_for_each(|cpu| set.set(*cpu))?;
    sched::sched_setaffinity(Pid::from_raw(pid.cast_signed()), &set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_that_share_a_cache_stay_together() {
        let root = tempfile::tempdir().unwrap();
        for (cpu, shared) in [(0, "0,2"), (1, "1,3"), (2, "0,2"), (3, "1,3")] {
            let cache = root.path().join(format!("cpu{cpu}/cache/index3"));
            fs::create_dir_all(&cache).unwrap();
            fs::write(cache.join("shared_cpu_list"), shared).unwrap();
        }
        let groups = groups(&[0, 1, 2, 3], root.path());
        assert_eq!(groups, [[0, 2], [1, 3]]);
        assert_eq!(choose_among(&groups, 2, 0), Some(vec![0, 2]));
        assert_eq!(choose_among(&groups, 2, 1), Some(vec![1, 3]), "other machines begin elsewhere");
        assert_eq!(choose_among(&groups, 3, 1), Some(vec![0, 1, 3]));
        assert_eq!(choose_among(&groups, 5, 0), None);
        assert_eq!(choose_among(&[], 1, 3), None);
    }

    #[test]
    fn a_process_is_held_to_what_was_chosen() {
        let allowed = allowed();
        let chosen = choose(&allowed, 1, std::process::id() as usize).unwrap();
        assert!(choose(&allowed, allowed.len() as u32 + 1, 0).is_none());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let held = hold(child.id(), &chosen);
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        held.unwrap();
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        assert_eq!(list.trim(), chosen[0].to_string());
    }
}

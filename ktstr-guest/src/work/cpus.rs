//! Which CPUs and nodes a worker may use, as the kernel says.

use std::{fs, path::Path};

use nix::unistd::Pid;

use crate::scenario::parse_cpu_list;

const CPUS: &str = "/sys/devices/system/cpu";
const NODES: &str = "/sys/devices/system/node";

/// CPUs the calling thread may run on, ascending.
pub(super) fn allowed() -> Vec<u32> {
    let Ok(set) = nix::sched::sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    (0..nix::sched::CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .map(|cpu| cpu as u32)
        .collect()
}

/// Cores of which two or more of `cpus` are threads, each with its threads.
pub(super) fn sibling_groups(cpus: &[u32]) -> Vec<Vec<u32>> {
    siblings_below(Path::new(CPUS), cpus)
}

fn siblings_below(root: &Path, cpus: &[u32]) -> Vec<Vec<u32>> {
    let mut groups: Vec<Vec<u32>> = Vec::new();
    for cpu in cpus {
        let list = fs::read_to_string(root.join(format!("cpu{cpu}/topology/thread_siblings_list")));
        let mut siblings = parse_list(&list.unwrap_or_default());
        siblings.retain(|sibling| cpus.contains(sibling));
        if siblings.len() > 1 && !groups.contains(&siblings) {
            groups.push(siblings);
        }
    }
    groups
}

/// NUMA nodes with those of `cpus` that are on them; nodes without any are left out.
pub(super) fn nodes_of(cpus: &[u32]) -> Vec<(u32, Vec<u32>)> {
    let mut nodes = Vec::new();
    for node in parse_list(&fs::read_to_string(format!("{NODES}/has_cpu")).unwrap_or_default()) {
        let list = fs::read_to_string(format!("{NODES}/node{node}/cpulist")).unwrap_or_default();
        let own: Vec<u32> = parse_list(&list).into_iter().filter(|cpu| cpus.contains(cpu)).collect();
        if !own.is_empty() {
            nodes.push((node, own));
        }
    }
    nodes
}

/// NUMA nodes that have memory and that the calling thread may allocate from.
pub(super) fn memory_nodes() -> Vec<u32> {
    let with_memory = parse_list(&fs::read_to_string(format!("{NODES}/has_memory")).unwrap_or_default());
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Mems_allowed_list:")).map(parse_list);
    with_memory
        .into_iter()
        .filter(|node| allowed.as_ref().is_none_or(|allowed| allowed.contains(node)))
        .collect()
}

/// A list as the kernel prints it, e.g. `0-3,8`; of what is no list nothing.
pub(super) fn parse_list(text: &str) -> Vec<u32> {
    parse_cpu_list(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_garbage_is_not() {
        assert_eq!(parse_list("0-3,8\n"), [0, 1, 2, 3, 8]);
        assert!(parse_list("\n").is_empty() && parse_list("x-y").is_empty());
    }

    #[test]
    fn siblings_are_grouped_within_the_allowed_cpus() {
        let dir = tempfile::tempdir().unwrap();
        for (cpu, list) in [(0, "0,4"), (4, "0,4"), (1, "1,5"), (5, "1,5"), (2, "2")] {
            let topology = dir.path().join(format!("cpu{cpu}/topology"));
            fs::create_dir_all(&topology).unwrap();
            fs::write(topology.join("thread_siblings_list"), format!("{list}\n")).unwrap();
        }
        assert_eq!(siblings_below(dir.path(), &[0, 1, 2, 4, 5]), [vec![0, 4], vec![1, 5]]);
        assert_eq!(siblings_below(dir.path(), &[0, 1, 2]), Vec::<Vec<u32>>::new());
        assert!(!allowed().is_empty());
    }
}

//! The machine a scenario runs on: which CPUs share a core, a last-level cache, a NUMA node.
//!
//! In a guest it follows from the shape that was asked for; on a host it is read from sysfs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use ktstr_proto::Topology;

/// More nodes than kernels are built for (`CONFIG_NODES_SHIFT` of at most 10).
const MAX_NODES: usize = 1024;

/// CPUs in groups; every group ascending, groups ordered by their first CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestTopology {
    cpus: Vec<u32>,
    cores: Vec<Vec<u32>>,
    llcs: Vec<Vec<u32>>,
    nodes: Vec<Vec<u32>>,
    name: String,
    /// Where the kernel describes it, if it is that of a running one.
    system: Option<PathBuf>,
}

/// What the kernel says of a NUMA node's memory, KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeMeminfo {
    /// All of it.
    pub total_kib: u64,
    /// What is free.
    pub free_kib: u64,
}

impl TestTopology {
    /// A guest of this shape: CPUs are numbered node > LLC > core > thread.
    pub fn of_shape(shape: Topology) -> Self {
        let total = shape.cpus();
        let groups = |each: u32| -> Vec<Vec<u32>> {
            (0..total.checked_div(each).unwrap_or(0)).map(|i| (i * each..(i + 1) * each).collect()).collect()
        };
        Self {
            cpus: (0..total).collect(),
            cores: groups(shape.threads),
            llcs: groups(shape.cpus_per_llc()),
            nodes: groups(shape.cpus_per_llc() * shape.llcs_per_node()),
            name: shape.to_string(),
            system: None,
        }
    }

    /// As [`Self::of_shape`], for the guest that runs: what its kernel says of its nodes is known, too.
    pub fn from_vm_topology(shape: Topology) -> Self {
        Self { system: Some("/sys/devices/system".into()), ..Self::of_shape(shape) }
    }

    /// The running system as `root`, usually `/sys/devices/system`, describes it. A system that
    /// describes no caches or nodes has one for all.
    pub fn from_system(root: &Path) -> io::Result<Self> {
        let list = |path: &Path| -> io::Result<Vec<u32>> {
            let text = fs::read_to_string(path)?;
            parse_list(&text).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{} holds `{}`", path.display(), text.trim()),
                )
            })
        };
        let cpus = list(&root.join("cpu/online"))?;
        let per_cpu = |shared: &dyn Fn(u32) -> Vec<u32>| -> Vec<Vec<u32>> {
            let groups = cpus.iter().map(|cpu| {
                let group: Vec<u32> = shared(*cpu).into_iter().filter(|c| cpus.contains(c)).collect();
                (group.first().copied().unwrap_or(*cpu), if group.is_empty() { vec![*cpu] } else { group })
            });
            groups.collect::<BTreeMap<_, _>>().into_values().collect()
        };
        let cores = per_cpu(&|cpu| {
            list(&root.join(format!("cpu/cpu{cpu}/topology/thread_siblings_list"))).unwrap_or_default()
        });
        let llcs = per_cpu(&|cpu| {
            let dirs = fs::read_dir(root.join(format!("cpu/cpu{cpu}/cache"))).into_iter().flatten().flatten();
            let levels = dirs.filter_map(|index| {
                let level: u32 = fs::read_to_string(index.path().join("level")).ok()?.trim().parse().ok()?;
                Some((level, list(&index.path().join("shared_cpu_list")).ok()?))
            });
            levels.max_by_key(|(level, _)| *level).map_or_else(|| cpus.clone(), |(_, shared)| shared)
        });
        let by_number: Vec<(usize, Vec<u32>)> = fs::read_dir(root.join("node"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|item| {
                let number = item.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
                Some((number, list(&item.path().join("cpulist")).ok()?))
            })
            .filter(|(number, _)| *number < MAX_NODES)
            .collect();
        // By the kernel's numbers: one without CPUs, or a number that is not given, is an empty one.
        let count = by_number.iter().map(|(number, _)| number + 1).max().unwrap_or(0);
        let mut nodes = vec![Vec::new(); count];
        for (number, cpus) in by_number {
            nodes[number] = cpus;
        }
        if nodes.iter().all(Vec::is_empty) {
            nodes = vec![cpus.clone()];
        }
        let name = format!("{} CPUs, {} LLCs, {} NUMA nodes", cpus.len(), llcs.len(), nodes.len());
        Ok(Self { cpus, cores, llcs, nodes, name, system: Some(root.to_owned()) })
    }

    /// Number of CPUs.
    pub fn total_cpus(&self) -> u32 {
        self.cpus.len() as u32
    }

    /// All CPUs, ascending.
    pub fn all_cpus(&self) -> &[u32] {
        &self.cpus
    }

    /// CPUs for workloads, ascending: all but the last, which is left to everybody else, where there are more than two.
    pub fn usable_cpus(&self) -> &[u32] {
        match &self.cpus[..] {
            [first @ .., _] if self.cpus.len() > 2 => first,
            all => all,
        }
    }

    /// [`Self::usable_cpus`] as a set.
    pub fn usable_cpuset(&self) -> BTreeSet<u32> {
        self.usable_cpus().iter().copied().collect()
    }

    /// Number of last-level caches.
    pub fn num_llcs(&self) -> u32 {
        self.llcs.len() as u32
    }

    /// Number of NUMA nodes.
    pub fn num_numa_nodes(&self) -> u32 {
        self.nodes.len() as u32
    }

    /// CPUs of each last-level cache.
    pub fn llcs(&self) -> &[Vec<u32>] {
        &self.llcs
    }

    /// CPUs of each NUMA node.
    pub fn nodes(&self) -> &[Vec<u32>] {
        &self.nodes
    }

    /// CPUs of each core.
    pub fn cores(&self) -> &[Vec<u32>] {
        &self.cores
    }

    /// CPUs of one last-level cache; empty when there is no such.
    pub fn cpus_in_llc(&self, llc: u32) -> &[u32] {
        self.llcs.get(llc as usize).map_or(&[], Vec::as_slice)
    }

    /// CPUs of one last-level cache as a set; empty when there is no such.
    pub fn llc_aligned_cpuset(&self, llc: u32) -> BTreeSet<u32> {
        self.cpus_in_llc(llc).iter().copied().collect()
    }

    /// CPUs of one NUMA node as a set; empty when there is no such, or when it has memory alone.
    pub fn numa_aligned_cpuset(&self, node: u32) -> BTreeSet<u32> {
        self.nodes.get(node as usize).into_iter().flatten().copied().collect()
    }

    /// NUMA nodes that a set of CPUs belongs to.
    pub fn numa_nodes_for_cpuset(&self, cpus: &BTreeSet<u32>) -> BTreeSet<u32> {
        self.nodes_of(&cpus.iter().copied().collect::<Vec<_>>()).into_iter().collect()
    }

    /// How far a NUMA node's memory is from another's CPUs, as ACPI counts: 10 is near. Where no kernel says it, 10 for
    /// the node itself and 20 for others; 255 where there is no such node.
    pub fn numa_distance(&self, from: u32, to: u32) -> u32 {
        const UNKNOWN: u32 = 255;
        let said = self.of_node(from, "distance");
        let said = said.map(|text| text.split_whitespace().map_while(|word| word.parse().ok()).collect());
        match said {
            Some::<Vec<u32>>(distances) => distances.get(to as usize).copied().unwrap_or(UNKNOWN),
            None if from.max(to) as usize >= self.nodes.len() => UNKNOWN,
            None => [20, 10][usize::from(from == to)],
        }
    }

    /// What the kernel says of a NUMA node's memory; none where no kernel was asked or there is no such node.
    pub fn node_meminfo(&self, node: u32) -> Option<NodeMeminfo> {
        let text = self.of_node(node, "meminfo")?;
        let kib = |key: &str| {
            let (_, rest) = text.lines().find_map(|line| line.split_once(key))?;
            rest.split_whitespace().next()?.parse().ok()
        };
        Some(NodeMeminfo { total_kib: kib("MemTotal:")?, free_kib: kib("MemFree:")? })
    }

    /// Whether a NUMA node has memory and no CPU.
    pub fn is_memory_only(&self, node: u32) -> bool {
        self.numa_aligned_cpuset(node).is_empty()
            && self.node_meminfo(node).is_some_and(|memory| memory.total_kib > 0)
    }

    fn of_node(&self, node: u32, file: &str) -> Option<String> {
        fs::read_to_string(self.system.as_ref()?.join(format!("node/node{node}/{file}"))).ok()
    }

    /// NUMA nodes that `cpus` belong to, ascending.
    pub fn nodes_of(&self, cpus: &[u32]) -> Vec<u32> {
        let has = |node: &Vec<u32>| cpus.iter().any(|cpu| node.contains(cpu));
        (0..).zip(&self.nodes).filter(|(_, node)| has(node)).map(|(index, _)| index).collect()
    }

    /// Whether some core has more than one thread.
    pub fn has_smt(&self) -> bool {
        self.cores.iter().any(|core| core.len() > 1)
    }
}

impl std::fmt::Display for TestTopology {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// `0-3,8` → 0, 1, 2, 3, 8.
pub(crate) fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_numbers_nodes_caches_cores_threads() {
        let topo = TestTopology::of_shape(Topology::new(2, 4, 1, 2).unwrap());
        assert_eq!((topo.total_cpus(), topo.num_llcs(), topo.num_numa_nodes()), (8, 4, 2));
        assert_eq!(topo.cpus_in_llc(3), [6, 7]);
        assert_eq!(topo.nodes(), [vec![0, 1, 2, 3], vec![4, 5, 6, 7]]);
        assert_eq!(topo.cores()[1], [2, 3]);
        assert_eq!(topo.nodes_of(&[3, 4]), [0, 1]);
        assert!(topo.has_smt() && topo.cpus_in_llc(4).is_empty());
        assert_eq!((topo.usable_cpus().len(), topo.usable_cpuset().last()), (7, Some(&6)));
        assert_eq!(topo.llc_aligned_cpuset(1), BTreeSet::from([2, 3]));
        assert_eq!(topo.numa_aligned_cpuset(1), BTreeSet::from([4, 5, 6, 7]));
        assert_eq!(topo.numa_nodes_for_cpuset(&BTreeSet::from([3, 4])), BTreeSet::from([0, 1]));
        let distances = [(0, 0), (0, 1), (1, 0), (0, 2), (9, 9)].map(|(a, b)| topo.numa_distance(a, b));
        assert_eq!(distances, [10, 20, 20, 255, 255]);
        assert!(topo.node_meminfo(0).is_none() && !topo.is_memory_only(0));
        assert_eq!(TestTopology::of_shape(Topology::new(1, 1, 2, 1).unwrap()).usable_cpus(), [0, 1]);
    }

    #[test]
    fn a_system_is_read_from_sysfs() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("cpu/online", "0-2\n");
        for (cpu, siblings) in [(0, "0,2"), (1, "1"), (2, "0,2")] {
            write(&format!("cpu/cpu{cpu}/topology/thread_siblings_list"), siblings);
            write(&format!("cpu/cpu{cpu}/cache/index3/level"), "3");
            write(&format!("cpu/cpu{cpu}/cache/index3/shared_cpu_list"), siblings);
        }
        write("node/node0/cpulist", "0-2\n");
        write("node/node2/cpulist", "\n");
        let topo = TestTopology::from_system(root.path()).unwrap();
        assert_eq!(topo.llcs(), [vec![0, 2], vec![1]]);
        assert_eq!((topo.cores().len(), topo.num_numa_nodes()), (2, 3));
        assert_eq!(topo.nodes(), [vec![0, 1, 2], vec![], vec![]], "nodes go by the kernel's numbers");
        assert_eq!(topo.to_string(), "3 CPUs, 2 LLCs, 3 NUMA nodes");
        write("node/node0/distance", "10 20 30\n");
        write("node/node2/meminfo", "\nNode 2 MemTotal:      2048 kB\nNode 2 MemFree:       1024 kB\n");
        assert_eq!([0, 2, 3].map(|to| topo.numa_distance(0, to)), [10, 30, 255]);
        assert_eq!(topo.node_meminfo(2), Some(NodeMeminfo { total_kib: 2048, free_kib: 1024 }));
        assert!(topo.is_memory_only(2) && !topo.is_memory_only(0) && !topo.is_memory_only(1));
        write("cpu/online", "0-x\n");
        assert!(TestTopology::from_system(root.path()).unwrap_err().to_string().contains("0-x"));
    }
}

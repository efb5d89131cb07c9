//! The host's CPUs, last-level caches, NUMA nodes and large pages, read from a sysfs tree.
//!
//! Files: Documentation/ABI/stable/sysfs-devices-node, Documentation/admin-guide/cputopology.rst. A host
//! that describes no caches or nodes (some virtual machines) has one of each.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

/// Numbers of host CPUs.
pub type CpuSet = BTreeSet<u32>;

/// Why the host is not known.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// A file cannot be read.
    #[error("read the host's CPUs from {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{path} holds `{text}`, which is no list of CPUs")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
}

/// CPUs that share a last-level cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Llc {
    /// Its node.
    pub node: u32,
    /// The hardware threads of each core, lowest first.
    pub cores: Vec<Vec<u32>>,
}

impl Llc {
    /// All CPUs, ascending.
    pub fn cpus(&self) -> CpuSet {
        self.cores.iter().flatten().copied().collect()
    }
}

/// A NUMA node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its CPUs; none for a node of memory alone.
    pub cpus: CpuSet,
    /// Its pages of 2 MiB.
    pub large_pages: LargePages,
}

/// Pages of 2 MiB set apart (`vm.nr_hugepages`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LargePages {
    /// All of them.
    pub reserved: u64,
    /// Those that nobody uses now.
    pub free: u64,
}

/// The host as its kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostTopology {
    /// By their lowest CPU; the position is an LLC's number.
    pub llcs: Vec<Llc>,
    /// By number.
    pub nodes: BTreeMap<u32, Node>,
}

impl HostTopology {
    /// Reads a tree, usually `/sys`.
    pub fn read(sys: &Path) -> Result<Self, TopologyError> {
        let devices = sys.join("devices/system");
        let online = list(&devices.join("cpu/online"))?;
        let nodes = nodes(&devices.join("node"), sys, &online)?;
        let node_of = |cpu: u32| nodes.iter().find(|(_, n)| n.cpus.contains(&cpu)).map_or(0, |(n, _)| *n);
        let mut llcs: BTreeMap<CpuSet, BTreeMap<CpuSet, Vec<u32>>> = BTreeMap::new();
        for &cpu in &online {
            let own = devices.join(format!("cpu/cpu{cpu}"));
            let shared = last_level(&own)?.unwrap_or_else(|| package(&own, &devices, &online));
            let cache: CpuSet = shared.intersection(&online).copied().collect();
            let siblings = match list(&own.join("topology/core_cpus_list")) {
                Ok(siblings) => siblings,
                Err(_) => {
                    list(&own.join("topology/thread_siblings_list")).unwrap_or_else(|_| CpuSet::from([cpu]))
                }
            };
            llcs.entry(cache).or_default().entry(siblings).or_default().push(cpu);
        }
        let llcs = llcs.into_iter().map(|(cpus, cores)| Llc {
            node: cpus.first().map_or(0, |cpu| node_of(*cpu)),
            cores: cores.into_values().collect(),
        });
        Ok(Self { llcs: llcs.collect(), nodes })
    }

    /// Every CPU that is online.
    pub fn cpus(&self) -> CpuSet {
        self.llcs.iter().flat_map(Llc::cpus).collect()
    }

    /// The LLCs (by number) that these CPUs belong to.
    pub fn llcs_of(&self, cpus: &CpuSet) -> BTreeSet<usize> {
        let touched = |llc: &Llc| llc.cores.iter().flatten().any(|cpu| cpus.contains(cpu));
        self.llcs.iter().enumerate().filter(|(_, llc)| touched(llc)).map(|(number, _)| number).collect()
    }
}

/// CPUs that share the data cache of the highest level, if caches are described.
fn last_level(cpu: &Path) -> Result<Option<CpuSet>, TopologyError> {
    let Ok(caches) = fs::read_dir(cpu.join("cache")) else { return Ok(None) };
    let deepest = caches.flatten().filter_map(|index| {
        let kind = fs::read_to_string(index.path().join("type")).unwrap_or_default();
        let level: u32 = fs::read_to_string(index.path().join("level")).ok()?.trim().parse().ok()?;
        (kind.trim() != "Instruction").then(|| (level, index.path().join("shared_cpu_list")))
    });
    deepest.max_by_key(|(level, _)| *level).map(|(_, path)| list(&path)).transpose()
}

/// CPUs of the same package; all where packages are not told.
fn package(cpu: &Path, devices: &Path, online: &CpuSet) -> CpuSet {
    let of = |path: &Path| fs::read_to_string(path.join("topology/physical_package_id")).ok();
    let own = of(cpu);
    online.iter().copied().filter(|other| of(&devices.join(format!("cpu/cpu{other}"))) == own).collect()
}

fn nodes(dir: &Path, sys: &Path, online: &CpuSet) -> Result<BTreeMap<u32, Node>, TopologyError> {
    let mut nodes = BTreeMap::new();
    for item in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = item.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("node")?.parse().ok());
        let Some(number) = number else { continue };
        let cpus = list(&item.path().join("cpulist"))?.intersection(online).copied().collect();
        nodes.insert(number, Node { cpus, large_pages: LargePages::below(&item.path()) });
    }
    if nodes.is_empty() {
        let large_pages = LargePages::below(&sys.join("kernel/mm"));
        nodes.insert(0, Node { cpus: online.clone(), large_pages });
    }
    Ok(nodes)
}

impl LargePages {
    /// As the files of a node, or of the memory as a whole, have them.
    fn below(dir: &Path) -> Self {
        let number = |name: &str| {
            let path = dir.join("hugepages/hugepages-2048kB").join(name);
            fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
        };
        Self { reserved: number("nr_hugepages"), free: number("free_hugepages") }
    }
}

fn list(path: &Path) -> Result<CpuSet, TopologyError> {
    let text =
        fs::read_to_string(path).map_err(|source| TopologyError::Read { path: path.to_owned(), source })?;
    parse_list(&text)
        .ok_or_else(|| TopologyError::Parse { path: path.to_owned(), text: text.trim().to_owned() })
}

/// `0-3,8` → {0, 1, 2, 3, 8}; the empty list is an empty set.
pub fn parse_list(text: &str) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        set.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(set)
}

/// {0, 1, 2, 3, 8} → `0-3,8`.
pub fn format_list(set: &CpuSet) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &cpu in set {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let texts = ranges.into_iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    texts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
pub(crate) mod recorded {
    //! Hosts as sysfs trees: one recorded from a machine, others written as their kernels would.

    use super::*;

    /// Lines of `path<TAB>content`, recorded with `find … -printf` below `/sys`.
    pub const TWO_CORES: &str = include_str!("testdata/two-cores.sys");

    pub fn plant(lines: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for line in lines.lines() {
            let (path, content) = line.split_once('\t').unwrap();
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{content}\n")).unwrap();
        }
        root
    }

    pub fn host(lines: &str) -> HostTopology {
        HostTopology::read(plant(lines).path()).unwrap()
    }

    /// What a server is made of. SMT siblings have numbers `cores of the machine` apart, as Linux gives them.
    #[derive(Clone, Copy)]
    pub struct Shape {
        pub nodes: u32,
        pub llcs_per_node: u32,
        pub cores_per_llc: u32,
        pub threads: u32,
        pub large_pages_per_node: u64,
    }

    pub const DESKTOP: Shape =
        Shape { nodes: 1, llcs_per_node: 1, cores_per_llc: 8, threads: 2, large_pages_per_node: 1024 };
    pub const SERVER: Shape =
        Shape { nodes: 2, llcs_per_node: 4, cores_per_llc: 8, threads: 2, large_pages_per_node: 4096 };

    pub fn written(shape: Shape) -> HostTopology {
        host(&lines(shape))
    }

    pub fn lines(shape: Shape) -> String {
        let cores = shape.nodes * shape.llcs_per_node * shape.cores_per_llc;
        let of = |cores: std::ops::Range<u32>, all: u32| -> CpuSet {
            cores.flat_map(|core| (0..shape.threads).map(move |thread| core + thread * all)).collect()
        };
        let mut text = format!("devices/system/cpu/online\t0-{}\n", cores * shape.threads - 1);
        for core in 0..cores {
            let llc = core / shape.cores_per_llc;
            let sharing = of(llc * shape.cores_per_llc..(llc + 1) * shape.cores_per_llc, cores);
            let siblings = of(core..core + 1, cores);
            for cpu in &siblings {
                let mut put = |path: &str, content: &str| {
                    text.push_str(&format!("devices/system/cpu/cpu{cpu}/{path}\t{content}\n"));
                };
                put("topology/core_cpus_list", &format_list(&siblings));
                let caches = [("1", "Data"), ("1", "Instruction"), ("2", "Unified"), ("3", "Unified")];
                for (index, (level, kind)) in caches.into_iter().enumerate() {
                    let shared = if level == "3" { &sharing } else { &siblings };
                    put(&format!("cache/index{index}/level"), level);
                    put(&format!("cache/index{index}/type"), kind);
                    put(&format!("cache/index{index}/shared_cpu_list"), &format_list(shared));
                }
            }
        }
        for node in 0..shape.nodes {
            let per = shape.llcs_per_node * shape.cores_per_llc;
            let path = format!("devices/system/node/node{node}");
            text.push_str(&format!(
                "{path}/cpulist\t{}\n",
                format_list(&of(node * per..(node + 1) * per, cores))
            ));
            let free = shape.large_pages_per_node;
            for name in ["nr", "free"] {
                text.push_str(&format!("{path}/hugepages/hugepages-2048kB/{name}_hugepages\t{free}\n"));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{recorded::*, *};

    #[test]
    fn lists() {
        let set = parse_list("0-3,8,10-11\n").unwrap();
        assert_eq!((set.len(), format_list(&set).as_str()), (7, "0-3,8,10-11"));
        assert_eq!((parse_list("\n"), parse_list("0-x")), (Some(CpuSet::new()), None));
    }

    #[test]
    fn a_small_machine_as_it_was_recorded() {
        let host = host(TWO_CORES);
        assert_eq!(host.llcs, [Llc { node: 0, cores: vec![vec![0], vec![1]] }]);
        assert_eq!(host.nodes[&0], Node { cpus: CpuSet::from([0, 1]), large_pages: LargePages::default() });
    }

    #[test]
    fn a_desktop_and_a_server() {
        let desktop = written(DESKTOP);
        assert_eq!((desktop.llcs.len(), desktop.cpus().len()), (1, 16));
        assert_eq!(desktop.llcs[0].cores[3], [3, 11]);
        let server = written(SERVER);
        assert_eq!((server.llcs.len(), server.nodes.len(), server.cpus().len()), (8, 2, 128));
        assert_eq!(server.llcs[5].node, 1);
        assert_eq!(server.llcs[5].cores[0], [40, 104]);
        assert_eq!(server.llcs_of(&CpuSet::from([0, 104])), BTreeSet::from([0, 5]));
    }

    #[test]
    fn what_a_host_does_not_describe_is_one() {
        let host = host("devices/system/cpu/online\t0-2\n");
        assert_eq!(host.llcs, [Llc { node: 0, cores: vec![vec![0], vec![1], vec![2]] }]);
        let packages = "devices/system/cpu/online\t0-1\ndevices/system/cpu/cpu0/topology/physical_package_id\t0\n\
                        devices/system/cpu/cpu1/topology/physical_package_id\t1\n";
        assert_eq!(recorded::host(packages).llcs.len(), 2);
        let offline = format!("{TWO_CORES}devices/system/cpu/online\t0\n");
        assert_eq!(recorded::host(&offline).cpus(), CpuSet::from([0]));
    }

    #[test]
    fn a_tree_that_is_none_is_refused() {
        assert!(matches!(HostTopology::read(Path::new("/nonexistent")), Err(TopologyError::Read { .. })));
        let broken = plant("devices/system/cpu/online\tmany\n");
        let error = HostTopology::read(broken.path()).unwrap_err();
        assert!(error.to_string().ends_with("holds `many`, which is no list of CPUs"), "{error}");
    }
}

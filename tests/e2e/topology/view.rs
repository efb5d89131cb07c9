//! What a guest's kernel says its machine looks like, and what it should say of a requested shape.
//!
//! The guest prints files of sysfs; here they are read back and compared fact by fact, so that a
//! difference names the file, what it said and what was expected.

use std::{collections::BTreeMap, fmt::Write as _};

use ktstr_proto::topology::{Numa, Shape};

/// Prints every fact as `path:value`, paths relative to /sys/devices/system.
pub const SCRIPT: &str = "\
cd /sys/devices/system; C='cpu/cpu[0-9]*'; N='node/node[0-9]*'; \
grep -sH '' cpu/possible cpu/online node/online node/has_cpu node/has_memory; \
for f in physical_package_id core_id thread_siblings_list core_siblings_list die_cpus_list \
cluster_cpus_list; do grep -sH '' $C/topology/$f; done; \
for f in level type id shared_cpu_list; do grep -sH '' $C/cache/index*/$f; done; \
for f in cpulist distance; do grep -sH '' $N/$f; done; \
for a in 0 1; do for f in read_latency write_latency read_bandwidth write_bandwidth; do \
grep -sH '' $N/access$a/initiators/$f; done; done; \
ls -d $N/access[01]/initiators/node* 2>/dev/null; \
grep -E '^Node|present ' /proc/zoneinfo";

/// Memory of a node that its kernel does not count: the guest channel and what firmware keeps.
const UNCOUNTED_KB: u64 = 20 << 10;

/// What a guest printed.
pub struct View(BTreeMap<String, String>);

impl View {
    /// Reads the output of [`SCRIPT`].
    pub fn read(output: &str) -> View {
        let mut facts = BTreeMap::new();
        let mut node = None;
        for line in output.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("Node ") {
                node = rest.split(',').next().and_then(|n| n.parse::<usize>().ok());
            } else if let (Some(pages), Some(node)) = (line.strip_prefix("present"), node) {
                let sum: &mut String = facts.entry(format!("node/node{node}/present")).or_default();
                let before: u64 = sum.parse().unwrap_or(0);
                *sum = (before + pages.trim().parse::<u64>().unwrap_or(0)).to_string();
            } else if let Some((path, value)) = line.split_once(':') {
                facts.insert(path.to_owned(), value.trim().to_owned());
            } else {
                facts.insert(line.to_owned(), String::new());
            }
        }
        View(facts)
    }

    fn says(&self, path: &str) -> &str {
        self.0.get(path).map_or("(nothing)", String::as_str)
    }

    /// Every fact that is not as a machine of this shape with `memory_mb` of RAM has it.
    pub fn differences(&self, shape: &Shape, memory_mb: u32) -> Vec<String> {
        let mut differences = Vec::new();
        let mut expect = |path: &str, expected: String| {
            if self.says(path) != expected {
                differences.push(format!("{path} says `{}`, expected `{expected}`", self.says(path)));
            }
        };
        self.machine(shape, &mut expect);
        for cpu in 0..shape.topology.cpus() {
            self.cpu(shape, cpu, &mut expect);
        }
        for node in 0..shape.numa.count(&shape.topology) {
            self.node(shape, node, &mut expect);
        }
        differences.extend(self.memory_differences(shape, memory_mb));
        differences
    }

    fn memory_differences(&self, shape: &Shape, memory_mb: u32) -> Vec<String> {
        let shares = shape.numa.shares_mb(&shape.topology, memory_mb).expect("the machine was built");
        let differs = |(node, share_mb): (usize, u32)| {
            let present_kb = 4 * self.says(&format!("node/node{node}/present")).parse::<u64>().unwrap_or(0);
            let share_kb = u64::from(share_mb) << 10;
            let fits = present_kb <= share_kb && present_kb + UNCOUNTED_KB >= share_kb;
            (!fits).then(|| format!("node {node} has {present_kb} kB, expected {share_kb} kB"))
        };
        shares.into_iter().enumerate().filter_map(differs).collect()
    }

    fn machine(&self, shape: &Shape, expect: &mut impl FnMut(&str, String)) {
        let (topology, nodes) = (&shape.topology, shape.numa.count(&shape.topology) as u32);
        expect("cpu/possible", list(0, topology.cpus()));
        expect("cpu/online", list(0, topology.cpus()));
        expect("node/online", list(0, nodes));
        expect("node/has_cpu", list(0, topology.numa_nodes));
        expect("node/has_memory", list(0, nodes));
    }

    fn cpu(&self, shape: &Shape, cpu: u32, expect: &mut impl FnMut(&str, String)) {
        let threads = shape.topology.threads;
        let per_llc = shape.topology.cpus_per_llc();
        let core = list(cpu / threads * threads, threads);
        let llc = list(cpu / per_llc * per_llc, per_llc);
        let mut topology = |file: &str, expected: &str| {
            expect(&format!("cpu/cpu{cpu}/topology/{file}"), expected.to_owned());
        };
        topology("physical_package_id", &(cpu / per_llc).to_string());
        topology("core_id", &(cpu % per_llc / threads).to_string());
        topology("thread_siblings_list", &core);
        topology("cluster_cpus_list", &core);
        topology("die_cpus_list", &llc);
        topology("core_siblings_list", &llc);
        let caches =
            [(1, "Data", &core), (1, "Instruction", &core), (2, "Unified", &core), (3, "Unified", &llc)];
        for (index, (level, kind, sharing)) in caches.into_iter().enumerate() {
            let mut cache = |file: &str, expected: String| {
                expect(&format!("cpu/cpu{cpu}/cache/index{index}/{file}"), expected);
            };
            cache("level", level.to_string());
            cache("type", kind.to_owned());
            cache("shared_cpu_list", sharing.clone());
            if level == 3 {
                cache("id", (cpu / per_llc).to_string());
            }
        }
    }

    fn node(&self, shape: &Shape, node: usize, expect: &mut impl FnMut(&str, String)) {
        let Shape { topology, numa } = shape;
        let nodes = numa.count(topology);
        let per_node = topology.cpus() / topology.numa_nodes;
        let cpus = if Numa::has_cpus(topology, node) {
            list(node as u32 * per_node, per_node)
        } else {
            String::new()
        };
        expect(&format!("node/node{node}/cpulist"), cpus);
        let mut distances = String::new();
        for to in 0..nodes {
            write!(distances, "{} ", numa.distance(node, to)).expect("text grows");
        }
        expect(&format!("node/node{node}/distance"), distances.trim().to_owned());
        if nodes > 1 {
            let initiator = numa.initiator(topology, node);
            let access = numa.access(topology, initiator, node);
            // From the nearest of all, and from the nearest with CPUs: here the same.
            for class in [0, 1].map(|class| format!("node/node{node}/access{class}/initiators")) {
                expect(&format!("{class}/node{initiator}"), String::new());
                for (file, figure) in [("latency", access.latency_ns), ("bandwidth", access.bandwidth_mbs)] {
                    for way in ["read", "write"] {
                        expect(&format!("{class}/{way}_{file}"), figure.to_string());
                    }
                }
            }
        }
    }
}

/// A kernel's list of `count` CPUs or nodes from `first` on.
fn list(first: u32, count: u32) -> String {
    if count == 1 { first.to_string() } else { format!("{first}-{}", first + count - 1) }
}

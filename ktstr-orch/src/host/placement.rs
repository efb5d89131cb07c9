//! A host CPU for every vCPU, such that what the guest believes of its caches and cores is so.
//!
//! vCPUs of one guest LLC get CPUs of one host LLC, two threads of a guest core get two threads of one host
//! core, two guest cores never share one, and LLCs of one guest node lie on one host node. One CPU more is
//! for everything that is not a vCPU. Guest memory comes as 2 MiB pages of the nodes chosen. Whatever
//! of that is not to be had is a [`Refusal`]; all are collected, so that one run tells everything that is
//! to be changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ktstr_proto::topology::{Numa, Topology, numa::NumaError};

use super::topology::{CpuSet, HostTopology, Llc, format_list};

/// Something that was asked of the host and is not to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not enough CPUs altogether.
    #[error("CPUs: {wanted} vCPUs and a CPU for the rest need {}, this run may use {usable}", wanted + 1)]
    Cpus {
        /// vCPUs.
        wanted: u32,
        /// Host CPUs in the affinity mask of this process.
        usable: usize,
    },
    /// The host's cores have too few threads.
    #[error("SMT: cores of {wanted} threads, the host's have {found}")]
    Threads {
        /// Threads of a guest core.
        wanted: u32,
        /// Threads of the host's widest usable core.
        found: usize,
    },
    /// Not enough LLCs that are large enough, on nodes that have enough of them.
    #[error(
        "LLC mirroring: {nodes} node(s) of {llcs} LLC(s) of {cores} core(s) on as many nodes of the host; it has {found}{busy}"
    )]
    Llcs {
        /// Guest nodes with CPUs.
        nodes: u32,
        /// LLCs of each.
        llcs: u32,
        /// Cores of each LLC.
        cores: u32,
        /// Per host node, how many LLCs have so many cores of so many threads.
        found: String,
        /// What others hold of them.
        busy: String,
    },
    /// No CPU is left beside those of the vCPUs.
    #[error("service CPU: vCPUs take all {usable} usable CPUs, and one more must run what is not a vCPU")]
    Service {
        /// Host CPUs.
        usable: usize,
    },
    /// No node for a guest node of memory alone.
    #[error("NUMA: {wanted} node(s) of memory alone need nodes of the host of their own, {found} are left")]
    MemoryNodes {
        /// In the guest.
        wanted: usize,
        /// On the host.
        found: usize,
    },
    /// Not enough large pages.
    #[error(
        "hugepages: {wanted} pages of 2 MiB on host node {node}, {reserved} are set apart; `echo N > /sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages` as root reserves them"
    )]
    LargePages {
        /// Host node.
        node: u32,
        /// Wanted there.
        wanted: u64,
        /// Set apart there, used ones among them.
        reserved: u64,
    },
    /// The kernel does not pin.
    #[error("pinning to CPU {cpu}: {why}")]
    Pin {
        /// Host CPU.
        cpu: u32,
        /// What the kernel said.
        why: String,
    },
    /// The kernel does not grant a real-time class.
    #[error("SCHED_FIFO: {why}; it takes CAP_SYS_NICE or a limit `rtprio` of at least 1")]
    Realtime {
        /// What the kernel said.
        why: String,
    },
    /// The guest's memory cannot be divided.
    #[error("NUMA: {0}")]
    Nodes(NumaError),
}

/// All that a host refuses, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusals(pub Vec<Refusal>);

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("performance mode: the host refuses ")?;
        for (index, refusal) in self.0.iter().enumerate() {
            write!(f, "{}{refusal}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusals {}

/// Where a machine runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Host CPU of each vCPU.
    pub cpus: Vec<u32>,
    /// Host CPU of everything else.
    pub service: u32,
    /// Number of the host LLC of each guest LLC.
    pub llcs: Vec<usize>,
    /// Host node of each guest node, those of memory alone behind the others.
    pub nodes: Vec<u32>,
    /// 2 MiB pages by host node.
    pub large_pages: BTreeMap<u32, u64>,
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |numbers: &[u32]| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let pages: u64 = self.large_pages.values().sum();
        write!(
            f,
            "vCPUs on host CPUs {} (SCHED_FIFO), the rest on CPU {}, ",
            list(&self.cpus),
            self.service
        )?;
        write!(f, "memory on node {} in {pages} pages of 2 MiB", list(&self.nodes))
    }
}

/// Pages that are set apart, and that others use now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagesInUse {
    /// Host node.
    pub node: u32,
    /// Wanted there.
    pub wanted: u64,
    /// Free there.
    pub free: u64,
}

impl Placement {
    /// What is missing of its pages as long as others use theirs.
    pub fn pages_in_use(&self, host: &HostTopology) -> Option<PagesInUse> {
        self.large_pages.iter().find_map(|(&node, &wanted)| {
            let free = host.nodes.get(&node).map_or(0, |node| node.large_pages.free);
            (free < wanted).then_some(PagesInUse { node, wanted, free })
        })
    }
}

/// What a machine is, as far as the host is concerned.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// Its CPUs.
    pub topology: &'a Topology,
    /// Its nodes.
    pub numa: &'a Numa,
    /// Its memory, MiB.
    pub memory_mb: u32,
}

/// Finds a place on CPUs of `allowed`, leaving out the LLCs that others hold.
pub fn place(
    host: &HostTopology,
    allowed: &CpuSet,
    held: &BTreeSet<usize>,
    machine: &Machine<'_>,
) -> Result<Placement, Refusals> {
    let Topology { numa_nodes, llcs, cores, threads } = *machine.topology;
    let per_node = (llcs / numa_nodes) as usize;
    let usable = host.cpus().intersection(allowed).count();
    let mut refusals = Vec::new();
    if usable < machine.topology.cpus() as usize + 1 {
        refusals.push(Refusal::Cpus { wanted: machine.topology.cpus(), usable });
    }
    let widest = host.llcs.iter().flat_map(|llc| &llc.cores).map(|core| on(core, allowed).len()).max();
    if widest.unwrap_or(0) < threads as usize {
        refusals.push(Refusal::Threads { wanted: threads, found: widest.unwrap_or(0) });
    }
    let fitting = fitting(host, allowed, cores as usize, threads as usize);
    let free = |llcs: &[usize]| llcs.iter().copied().filter(|l| !held.contains(l)).collect::<Vec<_>>();
    let with_room: Vec<(u32, Vec<usize>)> = fitting
        .iter()
        .map(|(node, llcs)| (*node, free(llcs)))
        .filter(|(_, llcs)| llcs.len() >= per_node)
        .take(numa_nodes as usize)
        .collect();
    if with_room.len() < numa_nodes as usize {
        let found = fitting.iter().map(|(node, llcs)| format!("{} on node {node}", llcs.len()));
        let busy: Vec<String> =
            fitting.values().flatten().filter(|l| held.contains(l)).map(usize::to_string).collect();
        let busy = if busy.is_empty() {
            String::new()
        } else {
            format!(", of which others hold LLC {}", busy.join(","))
        };
        let found = Some(found.collect::<Vec<_>>().join(", ")).filter(|text| !text.is_empty());
        let found = found.unwrap_or_else(|| "none".into());
        refusals.push(Refusal::Llcs { nodes: numa_nodes, llcs: per_node as u32, cores, found, busy });
        return Err(Refusals(refusals));
    }
    let chosen: Vec<usize> = with_room.iter().flat_map(|(_, llcs)| &llcs[..per_node]).copied().collect();
    let mut cpus = Vec::new();
    for llc in &chosen {
        let wide = wide_cores(&host.llcs[*llc], allowed, threads as usize);
        cpus.extend(wide.iter().take(cores as usize).flat_map(|core| core[..threads as usize].to_vec()));
    }
    let mut nodes: Vec<u32> = with_room.iter().map(|(node, _)| *node).collect();
    let service = service(host, allowed, &cpus, &nodes);
    if service.is_none() && !matches!(refusals.first(), Some(Refusal::Cpus { .. })) {
        refusals.push(Refusal::Service { usable });
    }
    let alone = machine.numa.count(machine.topology).saturating_sub(numa_nodes as usize);
    match memory_nodes(host, &nodes, alone) {
        Ok(more) => nodes.extend(more),
        Err(refusal) => refusals.push(refusal),
    }
    let large_pages = large_pages(host, machine, &nodes, &mut refusals);
    match service {
        Some(service) if refusals.is_empty() => {
            Ok(Placement { cpus, service, llcs: chosen, nodes, large_pages })
        }
        _ => Err(Refusals(refusals)),
    }
}

fn on(core: &[u32], allowed: &CpuSet) -> Vec<u32> {
    core.iter().copied().filter(|cpu| allowed.contains(cpu)).collect()
}

/// Cores with enough usable threads. That of CPU 0 comes last: interrupts and housekeeping are there.
fn wide_cores(llc: &Llc, allowed: &CpuSet, threads: usize) -> Vec<Vec<u32>> {
    let usable = llc.cores.iter().map(|core| on(core, allowed));
    let mut wide: Vec<_> = usable.filter(|core| core.len() >= threads.max(1)).collect();
    wide.sort_by_key(|core| (core.contains(&0), core.clone()));
    wide
}

/// Per host node, the LLCs that have enough such cores.
fn fitting(host: &HostTopology, allowed: &CpuSet, cores: usize, threads: usize) -> BTreeMap<u32, Vec<usize>> {
    let mut fitting: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (number, llc) in host.llcs.iter().enumerate() {
        let of_node = fitting.entry(llc.node).or_default();
        if wide_cores(llc, allowed, threads).len() >= cores {
            of_node.push(number);
        }
    }
    fitting
}

/// A CPU that no vCPU has, if possible on a core that no vCPU has, then near their memory.
fn service(host: &HostTopology, allowed: &CpuSet, taken: &[u32], nodes: &[u32]) -> Option<u32> {
    let of_core = |llc: &Llc, core: &[u32]| {
        let (shared, far) = (core.iter().any(|cpu| taken.contains(cpu)), !nodes.contains(&llc.node));
        let free = core.iter().copied().filter(|cpu| allowed.contains(cpu) && !taken.contains(cpu));
        free.map(|cpu| (shared, far, cpu)).min()
    };
    let cores = host.llcs.iter().flat_map(|llc| llc.cores.iter().filter_map(move |core| of_core(llc, core)));
    cores.min().map(|(_, _, cpu)| cpu)
}

/// Nodes for memory alone: of the host's, those without CPUs first.
fn memory_nodes(host: &HostTopology, taken: &[u32], wanted: usize) -> Result<Vec<u32>, Refusal> {
    let mut left: Vec<_> = host.nodes.iter().filter(|(number, _)| !taken.contains(number)).collect();
    left.sort_by_key(|(number, node)| (!node.cpus.is_empty(), **number));
    if left.len() < wanted {
        return Err(Refusal::MemoryNodes { wanted, found: left.len() });
    }
    Ok(left.into_iter().take(wanted).map(|(number, _)| *number).collect())
}

fn large_pages(
    host: &HostTopology,
    machine: &Machine<'_>,
    nodes: &[u32],
    refusals: &mut Vec<Refusal>,
) -> BTreeMap<u32, u64> {
    let mut wanted = BTreeMap::new();
    match machine.numa.shares_mb(machine.topology, machine.memory_mb) {
        Ok(shares) => {
            for (share, node) in shares.iter().zip(nodes) {
                *wanted.entry(*node).or_insert(0) += u64::from(share.div_ceil(2));
            }
        }
        Err(error) => refusals.push(Refusal::Nodes(error)),
    }
    for (&node, &wanted) in &wanted {
        let reserved = host.nodes.get(&node).map_or(0, |node| node.large_pages.reserved);
        if reserved < wanted {
            refusals.push(Refusal::LargePages { node, wanted, reserved });
        }
    }
    wanted
}

/// The CPUs of a placement, for people.
pub fn all_cpus(placement: &Placement) -> String {
    format_list(&placement.cpus.iter().copied().chain([placement.service]).collect())
}

#[cfg(test)]
mod tests {
    use ktstr_proto::topology::Shape;

    use super::{
        super::topology::recorded::{self, DESKTOP, SERVER, TWO_CORES},
        *,
    };

    fn placed_beside(
        host: &HostTopology,
        allowed: &CpuSet,
        held: &[usize],
        shape: &str,
        memory_mb: u32,
    ) -> Result<Placement, Refusals> {
        let Shape { topology, numa } = shape.parse().unwrap();
        let machine = Machine { topology: &topology, numa: &numa, memory_mb };
        place(host, allowed, &held.iter().copied().collect(), &machine)
    }

    fn placed(host: &HostTopology, shape: &str, memory_mb: u32) -> Result<Placement, Refusals> {
        placed_beside(host, &host.cpus(), &[], shape, memory_mb)
    }

    fn refused(host: &HostTopology, shape: &str, memory_mb: u32) -> Vec<String> {
        placed(host, shape, memory_mb).unwrap_err().0.iter().map(Refusal::to_string).collect()
    }

    #[test]
    fn a_desktop_gives_cores_of_their_own_and_keeps_the_first_for_itself() {
        let host = recorded::written(DESKTOP);
        let four = placed(&host, "1n1l4c1t", 512).unwrap();
        assert_eq!((four.cpus, four.service), (vec![1, 2, 3, 4], 0));
        assert_eq!((four.llcs, four.nodes, four.large_pages), (vec![0], vec![0], BTreeMap::from([(0, 256)])));
        let smt = placed(&host, "1n1l4c2t", 512).unwrap();
        assert_eq!((smt.cpus, smt.service), (vec![1, 9, 2, 10, 3, 11, 4, 12], 0));
        // Every core has a vCPU, and what is no vCPU gets the other half of one.
        let eight = placed(&host, "1n1l8c1t", 512).unwrap();
        assert_eq!((eight.cpus, eight.service), (vec![1, 2, 3, 4, 5, 6, 7, 0], 8));
    }

    #[test]
    fn a_desktop_refuses_by_name_what_it_lacks() {
        let host = recorded::written(DESKTOP);
        assert_eq!(
            refused(&host, "1n2l2c1t", 512),
            [
                "LLC mirroring: 1 node(s) of 2 LLC(s) of 2 core(s) on as many nodes of the host; it has 1 on node 0"
            ]
        );
        assert_eq!(
            refused(&host, "1n1l8c2t", 4096),
            [
                "CPUs: 16 vCPUs and a CPU for the rest need 17, this run may use 16",
                "hugepages: 2048 pages of 2 MiB on host node 0, 1024 are set apart; `echo N > \
                 /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages` as root reserves them"
            ]
        );
        let wide = refused(&host, "1n1l1c4t", 512);
        assert_eq!(wide[0], "SMT: cores of 4 threads, the host's have 2");
        // Cores of the guest do not share one of the host, though it has CPUs enough.
        assert!(refused(&host, "1n1l9c1t", 512)[0].starts_with("LLC mirroring"));
        assert_eq!(
            refused(&host, "1n1l2c1t/cxl=256", 1024),
            ["NUMA: 1 node(s) of memory alone need nodes of the host of their own, 0 are left"]
        );
    }

    #[test]
    fn a_server_mirrors_nodes_and_caches() {
        let host = recorded::written(SERVER);
        let two = placed(&host, "2n4l4c2t", 4096).unwrap();
        assert_eq!((&two.llcs, &two.nodes), (&vec![0, 1, 4, 5], &vec![0, 1]));
        assert_eq!(two.cpus[..4], [1, 65, 2, 66]);
        assert_eq!(two.cpus[8..10], [8, 72], "the second guest LLC is in the second of the host");
        assert_eq!(two.cpus[16..18], [32, 96], "the second guest node is on the second of the host");
        assert_eq!((two.service, &two.large_pages), (0, &BTreeMap::from([(0, 1024), (1, 1024)])));
        // Every LLC, and no core twice.
        let whole = placed(&host, "2n8l7c2t", 4096).unwrap();
        assert_eq!(whole.cpus.iter().collect::<BTreeSet<_>>().len(), 112);
        assert!(refused(&host, "4n4l1c1t", 512)[0].starts_with("LLC mirroring: 4 node(s)"));
        // A node of memory alone takes the second node, whose CPUs stay idle.
        let cxl = placed(&host, "1n1l2c1t/cxl=512", 1024).unwrap();
        assert_eq!((cxl.nodes, cxl.large_pages), (vec![0, 1], BTreeMap::from([(0, 256), (1, 256)])));
    }

    #[test]
    fn what_others_hold_and_what_is_not_allowed_is_left_alone() {
        let host = recorded::written(SERVER);
        let all = host.cpus();
        let beside = placed_beside(&host, &all, &[0, 1], "1n2l4c1t", 512).unwrap();
        assert_eq!(beside.llcs, [2, 3]);
        let other_node = placed_beside(&host, &all, &[0, 1, 2], "1n2l4c1t", 512).unwrap();
        assert_eq!((other_node.llcs, other_node.nodes), (vec![4, 5], vec![1]));
        let busy = placed_beside(&host, &all, &[0, 1, 2, 5, 6, 7], "1n2l4c1t", 512).unwrap_err();
        assert!(busy.to_string().ends_with("4 on node 0, 4 on node 1, of which others hold LLC 0,1,2,5,6,7"));
        let few: CpuSet = (0..3).collect();
        assert_eq!(placed_beside(&host, &few, &[], "1n1l2c1t", 512).unwrap().cpus, [1, 2]);
        let none = placed_beside(&host, &few, &[], "1n1l1c2t", 512).unwrap_err();
        assert!(matches!(none.0[0], Refusal::Threads { wanted: 2, found: 1 }));
    }

    #[test]
    fn the_recorded_machine_has_room_for_one_cpu_and_no_large_page() {
        let host = recorded::host(TWO_CORES);
        assert_eq!(refused(&host, "1n1l1c1t", 256).len(), 1);
        assert!(
            refused(&host, "1n1l1c1t", 256)[0]
                .starts_with("hugepages: 128 pages of 2 MiB on host node 0, 0 are")
        );
        let pages = TWO_CORES.replace(
            "node0/hugepages/hugepages-2048kB/nr_hugepages\t0",
            "node0/hugepages/hugepages-2048kB/nr_hugepages\t128",
        );
        let placement = placed(&recorded::host(&pages), "1n1l1c1t", 256).unwrap();
        assert_eq!((&placement.cpus, placement.service), (&vec![1], 0));
        let in_use = Some(PagesInUse { node: 0, wanted: 128, free: 0 });
        assert_eq!(placement.pages_in_use(&recorded::host(&pages)), in_use);
        assert_eq!(
            placement.to_string(),
            "vCPUs on host CPUs 1 (SCHED_FIFO), the rest on CPU 0, memory on node 0 in 128 pages of 2 MiB"
        );
        assert!(
            refused(&host, "1n1l2c1t", 256)[0].starts_with("CPUs: 2 vCPUs and a CPU for the rest need 3")
        );
    }
}

//! What a machine's NUMA nodes are beside their CPUs: memory, distances, access figures, and nodes
//! of memory alone (as CXL expanders are).
//!
//! Everything is plain data and arithmetic; the machine that is built from it and the test that
//! compares it with what a guest sees use the same functions. It refuses what firmware could not
//! describe: a distance of less than 10, a node without memory.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Topology;

/// Most NUMA nodes of a machine, those of memory alone included.
pub const MAX_NODES: usize = 64;
/// Distance of a node to itself (ACPI, System Locality Information Table).
pub const LOCAL_DISTANCE: u8 = 10;
/// Distance of two nodes where none is given.
pub const REMOTE_DISTANCE: u8 = 20;
/// Memory is given to nodes in steps of this many MiB.
pub const MEMORY_STEP_MB: u32 = 2;

/// How fast a node's memory is for a CPU beside it; for others it is scaled by the distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Access {
    /// Nanoseconds to the first byte, at least 1.
    pub latency_ns: u16,
    /// Megabytes per second, at least 1.
    pub bandwidth_mbs: u16,
}

impl Access {
    /// Memory of a node with CPUs.
    pub const DRAM: Access = Access { latency_ns: 100, bandwidth_mbs: 50_000 };
    /// Memory of a node without.
    pub const CXL: Access = Access { latency_ns: 300, bandwidth_mbs: 20_000 };

    /// The figures at a distance. They stay in what the firmware table can hold (1 to 65534).
    pub fn at(self, distance: u8) -> Access {
        let (distance, local) = (u32::from(distance.max(1)), u32::from(LOCAL_DISTANCE));
        let fit = |figure: u32| figure.clamp(1, 65_534) as u16;
        Access {
            latency_ns: fit(u32::from(self.latency_ns) * distance / local),
            bandwidth_mbs: fit(u32::from(self.bandwidth_mbs) * local / distance),
        }
    }
}

/// One node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NumaNode {
    /// Its memory in MiB; `None` is an equal share of what the others leave.
    pub memory_mb: Option<u32>,
    /// How fast that is; `None` is [`Access::DRAM`] beside CPUs, else [`Access::CXL`].
    pub access: Option<Access>,
}

/// What is special about a machine's nodes; the default is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Numa {
    /// Empty, or the nodes with CPUs and behind them those of memory alone.
    pub nodes: Vec<NumaNode>,
    /// Empty, or one row per node with its distance to each.
    pub distances: Vec<Vec<u8>>,
}

/// Why nodes are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NumaError {
    /// Some nodes with CPUs are described and others are not.
    #[error("topology {topology} has {} nodes with CPUs, memory is given for {given}; give each of them one (`-` is an equal share)", topology.numa_nodes)]
    Missing {
        /// The CPUs' shape.
        topology: Topology,
        /// Described.
        given: usize,
    },
    /// Too many nodes.
    #[error("{nodes} NUMA nodes, the limit is {MAX_NODES}")]
    TooMany {
        /// Asked for.
        nodes: usize,
    },
    /// A node of memory alone without a size.
    #[error("node {node} has no CPUs, so its memory has to be given")]
    NoSize {
        /// Which.
        node: usize,
    },
    /// Memory in no step.
    #[error(
        "node {node} has {memory_mb} MiB: give a multiple of {MEMORY_STEP_MB}, at least {MEMORY_STEP_MB}"
    )]
    Memory {
        /// Which.
        node: usize,
        /// Asked for.
        memory_mb: u32,
    },
    /// No figure at all.
    #[error("node {node}: latency and bandwidth are at least 1")]
    Access {
        /// Which.
        node: usize,
    },
    /// The matrix is no square.
    #[error("the distances must be {nodes} rows of {nodes}, one for each node")]
    NotSquare {
        /// How many nodes there are.
        nodes: usize,
    },
    /// A distance that cannot be.
    #[error(
        "distance {distance} from node {from} to node {to}: it is {LOCAL_DISTANCE} to the node itself, and 11 to 254 to others, the same both ways"
    )]
    Distance {
        /// From.
        from: usize,
        /// To.
        to: usize,
        /// Asked for.
        distance: u8,
    },
    /// Memory given and memory of the nodes differ.
    #[error("the nodes' memory adds up to {nodes_mb} MiB, the machine is to have {machine_mb} MiB")]
    Sum {
        /// Of the nodes.
        nodes_mb: u64,
        /// Of the machine.
        machine_mb: u32,
    },
    /// Nothing is left for a node.
    #[error(
        "{machine_mb} MiB are too little: {given_mb} MiB are given to nodes by name, and {sharing} nodes share the rest"
    )]
    NothingLeft {
        /// Of the machine.
        machine_mb: u32,
        /// Given away.
        given_mb: u64,
        /// How many would share.
        sharing: usize,
    },
}

impl Numa {
    /// How many nodes the machine has, those of memory alone included.
    pub fn count(&self, topology: &Topology) -> usize {
        self.nodes.len().max(topology.numa_nodes as usize)
    }

    /// Whether a node has CPUs.
    pub fn has_cpus(topology: &Topology, node: usize) -> bool {
        node < topology.numa_nodes as usize
    }

    /// Whether all of it can be built around these CPUs.
    pub fn check(&self, topology: &Topology) -> Result<(), NumaError> {
        let count = self.count(topology);
        if count > MAX_NODES {
            return Err(NumaError::TooMany { nodes: count });
        }
        if !self.nodes.is_empty() && self.nodes.len() < topology.numa_nodes as usize {
            return Err(NumaError::Missing { topology: *topology, given: self.nodes.len() });
        }
        for (node, described) in self.nodes.iter().enumerate() {
            match described.memory_mb {
                None if !Self::has_cpus(topology, node) => return Err(NumaError::NoSize { node }),
                Some(memory_mb) if memory_mb == 0 || !memory_mb.is_multiple_of(MEMORY_STEP_MB) => {
                    return Err(NumaError::Memory { node, memory_mb });
                }
                _ => {}
            }
            if described.access.is_some_and(|a| a.latency_ns == 0 || a.bandwidth_mbs == 0) {
                return Err(NumaError::Access { node });
            }
        }
        self.check_distances(count)
    }

    fn check_distances(&self, count: usize) -> Result<(), NumaError> {
        if self.distances.is_empty() {
            return Ok(());
        }
        if self.distances.len() != count || self.distances.iter().any(|row| row.len() != count) {
            return Err(NumaError::NotSquare { nodes: count });
        }
        for (from, row) in self.distances.iter().enumerate() {
            for (to, &distance) in row.iter().enumerate() {
                let possible = if from == to {
                    distance == LOCAL_DISTANCE
                } else {
                    (LOCAL_DISTANCE + 1..=254).contains(&distance) && self.distances[to][from] == distance
                };
                if !possible {
                    return Err(NumaError::Distance { from, to, distance });
                }
            }
        }
        Ok(())
    }

    /// The machine's memory in MiB, if the nodes say it all.
    pub fn memory_mb(&self) -> Option<u64> {
        if self.nodes.is_empty() {
            return None;
        }
        self.nodes.iter().map(|node| node.memory_mb.map(u64::from)).sum()
    }

    /// The memory of nodes without CPUs in MiB. It comes on top of what a guest needs to boot.
    pub fn memory_only_mb(&self, topology: &Topology) -> u64 {
        let beyond = self.nodes.iter().skip(topology.numa_nodes as usize);
        beyond.map(|node| u64::from(node.memory_mb.unwrap_or(0))).sum()
    }

    /// Each node's memory in MiB on a machine of `machine_mb`. What is not given away by name is
    /// shared equally by the rest; the last of them takes what does not divide.
    pub fn shares_mb(&self, topology: &Topology, machine_mb: u32) -> Result<Vec<u32>, NumaError> {
        let count = self.count(topology);
        let given = |node: usize| self.nodes.get(node).and_then(|node| node.memory_mb);
        let given_mb: u64 = (0..count).filter_map(given).map(u64::from).sum();
        let sharing = (0..count).filter(|node| given(*node).is_none()).count();
        if sharing == 0 && given_mb != u64::from(machine_mb) {
            return Err(NumaError::Sum { nodes_mb: given_mb, machine_mb });
        }
        let nothing_left = NumaError::NothingLeft { machine_mb, given_mb, sharing };
        let Some(rest) = u64::from(machine_mb).checked_sub(given_mb) else { return Err(nothing_left) };
        let each = (rest as u32).checked_div(sharing as u32).unwrap_or(0) / MEMORY_STEP_MB * MEMORY_STEP_MB;
        if sharing > 0 && each == 0 {
            return Err(nothing_left);
        }
        let last = (0..count).rfind(|node| given(*node).is_none());
        let remainder = rest as u32 - each * sharing as u32;
        let share = |node| given(node).unwrap_or(each + if Some(node) == last { remainder } else { 0 });
        Ok((0..count).map(share).collect())
    }

    /// Distance between two nodes.
    pub fn distance(&self, from: usize, to: usize) -> u8 {
        let given = self.distances.get(from).and_then(|row| row.get(to)).copied();
        given.unwrap_or(if from == to { LOCAL_DISTANCE } else { REMOTE_DISTANCE })
    }

    /// How fast the memory of node `to` is for a CPU of node `from`.
    pub fn access(&self, topology: &Topology, from: usize, to: usize) -> Access {
        let default = if Self::has_cpus(topology, to) { Access::DRAM } else { Access::CXL };
        let local = self.nodes.get(to).and_then(|node| node.access).unwrap_or(default);
        local.at(self.distance(from, to))
    }

    /// The node whose CPUs are nearest to a node's memory; the first of equals.
    pub fn initiator(&self, topology: &Topology, node: usize) -> usize {
        if Self::has_cpus(topology, node) {
            return node;
        }
        (0..topology.numa_nodes as usize).min_by_key(|from| self.distance(*from, node)).unwrap_or(0)
    }
}

impl fmt::Display for NumaNode {
    /// `MiB`, `MiB@ns@MB/s`, with `-` for an equal share.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.memory_mb {
            Some(mb) => write!(f, "{mb}")?,
            None => f.write_str("-")?,
        }
        match self.access {
            Some(access) => write!(f, "@{}@{}", access.latency_ns, access.bandwidth_mbs),
            None => Ok(()),
        }
    }
}

impl NumaNode {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('@');
        let memory_mb = match parts.next()? {
            "-" => None,
            mb => Some(mb.parse().ok()?),
        };
        let access = match (parts.next(), parts.next(), parts.next()) {
            (None, None, None) => None,
            (Some(ns), Some(mbs), None) => {
                Some(Access { latency_ns: ns.parse().ok()?, bandwidth_mbs: mbs.parse().ok()? })
            }
            _ => return None,
        };
        Some(Self { memory_mb, access })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(nodes: u32) -> Topology {
        Topology::new(nodes, nodes, 1, 1).unwrap()
    }

    fn numa(memory: &[Option<u32>]) -> Numa {
        let nodes = memory.iter().map(|&memory_mb| NumaNode { memory_mb, access: None }).collect();
        Numa { nodes, distances: Vec::new() }
    }

    #[test]
    fn memory_goes_where_it_is_wanted() {
        let two = topology(2);
        assert_eq!(Numa::default().shares_mb(&two, 1002), Ok(vec![500, 502]));
        assert_eq!(Numa::default().shares_mb(&topology(3), 1000), Ok(vec![332, 332, 336]));
        assert_eq!(numa(&[None, Some(100)]).shares_mb(&two, 1000), Ok(vec![900, 100]));
        let cxl = numa(&[Some(200), None, Some(64)]);
        assert_eq!(cxl.check(&two), Ok(()));
        assert_eq!(cxl.shares_mb(&two, 1000), Ok(vec![200, 736, 64]));
        assert_eq!((cxl.memory_only_mb(&two), cxl.memory_mb()), (64, None));
        let fixed = numa(&[Some(200), Some(300)]);
        assert_eq!(fixed.memory_mb(), Some(500));
        assert!(matches!(fixed.shares_mb(&two, 600), Err(NumaError::Sum { nodes_mb: 500, machine_mb: 600 })));
        assert!(matches!(cxl.shares_mb(&two, 264), Err(NumaError::NothingLeft { .. })));
        assert!(matches!(cxl.shares_mb(&two, 100), Err(NumaError::NothingLeft { .. })));
    }

    #[test]
    fn nodes_that_cannot_be_say_why() {
        let two = topology(2);
        assert!(matches!(numa(&[Some(64)]).check(&two), Err(NumaError::Missing { given: 1, .. })));
        assert_eq!(numa(&[None, None, None]).check(&two), Err(NumaError::NoSize { node: 2 }));
        assert!(matches!(numa(&[Some(3), None]).check(&two), Err(NumaError::Memory { node: 0, .. })));
        assert!(matches!(numa(&[Some(2); 65]).check(&two), Err(NumaError::TooMany { nodes: 65 })));
        let distances = |rows: &[&[u8]]| {
            let distances = rows.iter().map(|row| row.to_vec()).collect();
            Numa { nodes: Vec::new(), distances }.check(&two)
        };
        assert_eq!(distances(&[&[10, 32], &[32, 10]]), Ok(()));
        assert!(matches!(distances(&[&[10, 32]]), Err(NumaError::NotSquare { nodes: 2 })));
        assert!(matches!(
            distances(&[&[10, 10], &[10, 10]]),
            Err(NumaError::Distance { from: 0, to: 1, .. })
        ));
        assert!(matches!(distances(&[&[10, 32], &[33, 10]]), Err(NumaError::Distance { .. })));
        assert!(matches!(distances(&[&[11, 32], &[32, 10]]), Err(NumaError::Distance { to: 0, .. })));
    }

    #[test]
    fn what_is_far_is_slow() {
        let one = topology(1);
        let numa = numa(&[None, Some(64)]);
        assert_eq!(numa.access(&one, 0, 0), Access::DRAM);
        assert_eq!(numa.access(&one, 0, 1), Access { latency_ns: 600, bandwidth_mbs: 10_000 });
        assert_eq!(numa.initiator(&one, 1), 0);
        let far = Access { latency_ns: u16::MAX, bandwidth_mbs: 1 }.at(254);
        assert_eq!(far, Access { latency_ns: 65_534, bandwidth_mbs: 1 });
    }
}

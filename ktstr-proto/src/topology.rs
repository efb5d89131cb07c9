//! The shape of a machine: NUMA nodes, last-level caches, cores, threads.
//!
//! Next: `preset` names shapes, `numa` says more about nodes, `shape` puts both into one line.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub mod numa;
pub mod preset;
pub mod shape;

pub use numa::Numa;
pub use preset::{PRESETS, Preset};
pub use shape::Shape;

/// Machine shape. `llcs` counts the whole machine and is a multiple of `numa_nodes`.
///
/// Written `{numa}n{llcs}l{cores}c{threads}t`, e.g. `1n2l4c1t`. Guest CPUs are numbered
/// node > LLC > core > thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Topology {
    /// NUMA nodes.
    pub numa_nodes: u32,
    /// Last-level caches of the whole machine.
    pub llcs: u32,
    /// Cores per LLC.
    pub cores: u32,
    /// Hardware threads per core.
    pub threads: u32,
}

/// Most CPUs a guest may have.
pub const MAX_CPUS: u32 = 512;

/// Why a machine shape is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// A dimension is zero.
    #[error("topology {shape}: {dimension} is 0, every dimension is at least 1")]
    Zero {
        /// The shape as requested.
        shape: Topology,
        /// The dimension that is zero.
        dimension: &'static str,
    },
    /// LLCs cannot be spread evenly.
    #[error("topology {shape}: {llcs} LLCs cannot be divided evenly among {nodes} NUMA nodes; `llcs` counts the whole machine", llcs = shape.llcs, nodes = shape.numa_nodes)]
    Uneven {
        /// The shape as requested.
        shape: Topology,
    },
    /// Too many CPUs.
    #[error("topology {shape} has {cpus} CPUs, the limit is {MAX_CPUS}")]
    TooLarge {
        /// The shape as requested.
        shape: Topology,
        /// CPUs it would have.
        cpus: u64,
    },
    /// Too many CPUs with those that are not there.
    #[error("topology {shape} with {absent} absent LLCs has {cpus} possible CPUs, the limit is {MAX_CPUS}")]
    Absent {
        /// The shape as requested.
        shape: Topology,
        /// LLCs that are not there.
        absent: u32,
        /// CPUs that would be possible.
        cpus: u64,
    },
    /// The text is no topology.
    #[error(
        "`{text}` is no topology: write nodes,llcs,cores,threads (1,2,4,1), 1n2l4c1t or the name of a preset"
    )]
    Syntax {
        /// The text given.
        text: String,
    },
    /// The text looks like the name of a preset, and none is called so.
    #[error("there is no preset `{text}`; did you mean `{nearest}`?")]
    UnknownPreset {
        /// The text given.
        text: String,
        /// The likeliest of the names there are.
        nearest: &'static str,
    },
    /// Too many nodes.
    #[error("topology {shape} has {nodes} NUMA nodes, the limit is {}", numa::MAX_NODES, nodes = shape.numa_nodes)]
    TooManyNodes {
        /// The shape as requested.
        shape: Topology,
    },
}

impl Topology {
    /// A checked shape.
    pub fn new(numa_nodes: u32, llcs: u32, cores: u32, threads: u32) -> Result<Self, TopologyError> {
        Self { numa_nodes, llcs, cores, threads }.checked()
    }

    /// The shape itself if it can be built.
    pub fn checked(self) -> Result<Self, TopologyError> {
        let named = [
            ("numa_nodes", self.numa_nodes),
            ("llcs", self.llcs),
            ("cores", self.cores),
            ("threads", self.threads),
        ];
        if let Some((dimension, _)) = named.iter().find(|(_, n)| *n == 0) {
            return Err(TopologyError::Zero { shape: self, dimension });
        }
        if !self.llcs.is_multiple_of(self.numa_nodes) {
            return Err(TopologyError::Uneven { shape: self });
        }
        let cpus = u64::from(self.llcs).saturating_mul(self.cores.into()).saturating_mul(self.threads.into());
        if cpus > MAX_CPUS.into() {
            return Err(TopologyError::TooLarge { shape: self, cpus });
        }
        if self.numa_nodes as usize > numa::MAX_NODES {
            return Err(TopologyError::TooManyNodes { shape: self });
        }
        Ok(self)
    }

    /// Number of guest CPUs.
    pub fn cpus(&self) -> u32 {
        self.llcs * self.cores * self.threads
    }

    /// CPUs that a machine of this shape may have if so many more LLCs are possible than present. The kernel
    /// sizes what it keeps per CPU by them (`/sys/devices/system/cpu/possible`, `nr_cpu_ids`).
    pub fn possible_cpus(&self, absent_llcs: u32) -> Result<u32, TopologyError> {
        let absent = u64::from(absent_llcs).saturating_mul(self.cpus_per_llc().into());
        let cpus = u64::from(self.cpus()).saturating_add(absent);
        match u32::try_from(cpus) {
            Ok(fits) if fits <= MAX_CPUS => Ok(fits),
            _ => Err(TopologyError::Absent { shape: *self, absent: absent_llcs, cpus }),
        }
    }

    /// CPUs that share one LLC.
    pub fn cpus_per_llc(&self) -> u32 {
        self.cores * self.threads
    }

    /// LLCs in one NUMA node.
    pub fn llcs_per_node(&self) -> u32 {
        self.llcs / self.numa_nodes
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}n{}l{}c{}t", self.numa_nodes, self.llcs, self.cores, self.threads)
    }
}

impl FromStr for Topology {
    type Err = TopologyError;

    fn from_str(text: &str) -> Result<Self, TopologyError> {
        let syntax = || TopologyError::Syntax { text: text.into() };
        if let Some(preset) = preset::find(text) {
            return Ok(preset.topology);
        }
        if text.contains('-') {
            return Err(TopologyError::UnknownPreset { text: text.into(), nearest: preset::nearest(text) });
        }
        let numbers: Vec<&str> = if text.contains(',') {
            text.split(',').map(str::trim).collect()
        } else {
            let rest = text.strip_suffix('t').ok_or_else(syntax)?;
            let (nodes, rest) = rest.split_once('n').ok_or_else(syntax)?;
            let (llcs, rest) = rest.split_once('l').ok_or_else(syntax)?;
            let (cores, threads) = rest.split_once('c').ok_or_else(syntax)?;
            vec![nodes, llcs, cores, threads]
        };
        let parsed: Result<Vec<u32>, _> = numbers.iter().map(|n| n.parse()).collect();
        match parsed.as_deref() {
            Ok(&[nodes, llcs, cores, threads]) => Self::new(nodes, llcs, cores, threads),
            _ => Err(syntax()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_notations_mean_the_same() {
        let shape = Topology::new(2, 4, 3, 2).unwrap();
        assert_eq!("2,4,3,2".parse(), Ok(shape));
        assert_eq!("2n4l3c2t".parse(), Ok(shape));
        assert_eq!(shape.to_string().parse(), Ok(shape));
        assert_eq!(shape.cpus(), 24);
    }

    #[test]
    fn shapes_that_cannot_be_built_say_why() {
        assert!(matches!(Topology::new(1, 0, 1, 1), Err(TopologyError::Zero { dimension: "llcs", .. })));
        assert!(matches!(Topology::new(2, 3, 1, 1), Err(TopologyError::Uneven { .. })));
        assert!(matches!(Topology::new(1, u32::MAX, u32::MAX, 2), Err(TopologyError::TooLarge { .. })));
        assert!(matches!(Topology::new(65, 65, 1, 1), Err(TopologyError::TooManyNodes { .. })));
        assert!(matches!(
            "smt-2lcl".parse::<Topology>(),
            Err(TopologyError::UnknownPreset { nearest: "smt-2llc", .. })
        ));
        assert!(matches!("4".parse::<Topology>(), Err(TopologyError::Syntax { .. })));
        assert!(matches!("1,2,3".parse::<Topology>(), Err(TopologyError::Syntax { .. })));
    }
}

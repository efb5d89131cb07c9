//! A whole machine as one line of text: CPUs, and whatever is special about its nodes.
//!
//! `SHAPE[/mem=N,…][/cxl=N,…][/dist=ROW:ROW:…]`, where `SHAPE` is anything a [`Topology`] is read
//! from. `mem` gives each node with CPUs its memory in MiB (`-` is an equal share), `cxl` adds nodes
//! of memory alone; each may carry `@ns@MB/s`. `dist` has one comma-separated row per node.
//! Example: `2n4l2c1t/mem=512,1024/cxl=256@400@16000/dist=10,20,30:20,10,40:30,40,10`.

use std::{fmt, str::FromStr};

use super::numa::{Numa, NumaError, NumaNode};
use super::{Topology, TopologyError};

/// CPUs and nodes of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Its CPUs and their caches.
    pub topology: Topology,
    /// What is special about its nodes.
    pub numa: Numa,
}

/// Why a text is no machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// The CPUs.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The nodes.
    #[error(transparent)]
    Numa(#[from] NumaError),
    /// A part of the text that is not understood.
    #[error(
        "`{part}` says nothing about NUMA nodes: write mem=512,1024 or cxl=256 (MiB, each also as 256@LATENCY_NS@MB_PER_S) or dist=10,20:20,10, each once"
    )]
    Part {
        /// The part.
        part: String,
    },
}

impl Shape {
    /// The shape itself if it can be built.
    pub fn checked(self) -> Result<Self, ShapeError> {
        self.topology.checked()?;
        self.numa.check(&self.topology)?;
        Ok(self)
    }
}

impl From<Topology> for Shape {
    fn from(topology: Topology) -> Self {
        Self { topology, numa: Numa::default() }
    }
}

impl FromStr for Shape {
    type Err = ShapeError;

    fn from_str(text: &str) -> Result<Self, ShapeError> {
        let mut parts = text.split('/');
        let topology: Topology = parts.next().unwrap_or_default().parse()?;
        let [mut mem, mut cxl, mut dist] = [const { None }; 3];
        for part in parts {
            let wrong = || ShapeError::Part { part: part.to_owned() };
            let (key, value) = part.split_once('=').ok_or_else(wrong)?;
            let slot = match key {
                "mem" => &mut mem,
                "cxl" => &mut cxl,
                "dist" => &mut dist,
                _ => return Err(wrong()),
            };
            if slot.replace((part, value)).is_some() {
                return Err(wrong());
            }
        }
        let nodes = |given: Option<(&str, &str)>| -> Result<Option<Vec<NumaNode>>, ShapeError> {
            let Some((part, value)) = given else { return Ok(None) };
            let nodes: Option<Vec<_>> = value.split(',').map(NumaNode::parse).collect();
            nodes.map(Some).ok_or_else(|| ShapeError::Part { part: part.to_owned() })
        };
        let mut numa = Numa::default();
        if let Some(mem) = nodes(mem)? {
            if mem.len() != topology.numa_nodes as usize {
                return Err(NumaError::Missing { topology, given: mem.len() }.into());
            }
            numa.nodes = mem;
        }
        if let Some(cxl) = nodes(cxl)? {
            numa.nodes.resize(topology.numa_nodes as usize, NumaNode::default());
            numa.nodes.extend(cxl);
        }
        if let Some((part, value)) = dist {
            let row = |row: &str| row.split(',').map(|n| n.trim().parse().ok()).collect();
            let rows: Option<Vec<Vec<u8>>> = value.split(':').map(row).collect();
            numa.distances = rows.ok_or_else(|| ShapeError::Part { part: part.to_owned() })?;
        }
        Self { topology, numa }.checked()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, key: &str, nodes: &[NumaNode]| {
            for (index, node) in nodes.iter().enumerate() {
                if index == 0 { write!(f, "/{key}={node}")? } else { write!(f, ",{node}")? }
            }
            Ok(())
        };
        self.topology.fmt(f)?;
        let beside = self.numa.nodes.len().min(self.topology.numa_nodes as usize);
        let (beside, alone) = self.numa.nodes.split_at(beside);
        if beside.iter().any(|node| *node != NumaNode::default()) {
            list(f, "mem", beside)?;
        }
        list(f, "cxl", alone)?;
        for (index, row) in self.numa.distances.iter().enumerate() {
            f.write_str(if index == 0 { "/dist=" } else { ":" })?;
            let row: Vec<String> = row.iter().map(u8::to_string).collect();
            f.write_str(&row.join(","))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::numa::Access;
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in [
            "1n2l4c1t",
            "2n4l2c1t/mem=512,1024",
            "2n4l2c1t/mem=-,1024@90@40000/cxl=256@400@16000/dist=10,20,30:20,10,40:30,40,10",
            "1n1l1c1t/cxl=64,128",
        ] {
            let shape: Shape = text.parse().unwrap();
            assert_eq!(shape.to_string(), text);
        }
        let shape: Shape = "smt-2llc/cxl=64@400@16000".parse().unwrap();
        assert_eq!(shape.topology.to_string(), "1n2l2c2t");
        assert_eq!(shape.numa.nodes.len(), 2);
        assert_eq!(shape.numa.nodes[1].access, Some(Access { latency_ns: 400, bandwidth_mbs: 16_000 }));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let error = |text: &str| text.parse::<Shape>().unwrap_err().to_string();
        for (text, word) in [
            ("2n2l1c1t/ram=1", "ram=1"),
            ("2n2l1c1t/mem=512,x", "mem=512,x"),
            ("2n2l1c1t/mem=512", "each of them"),
            ("2n2l1c1t/mem=512@1,512", "mem=512@1,512"),
            ("2n2l1c1t/cxl=-", "no CPUs"),
            ("2n2l1c1t/cxl=2/cxl=2", "once"),
            ("2n2l1c1t/dist=10,20:20,999", "dist=10,20:20,999"),
            ("2n2l1c1t/dist=10,20", "2 rows of 2"),
            ("smt-2lcl/cxl=64", "smt-2llc"),
        ] {
            assert!(error(text).contains(word), "{}", error(text));
        }
    }
}

//! How one RAM file is divided among NUMA nodes: what both backends describe to the guest.
//!
//! Nodes follow each other in the file, those with CPUs first. It refuses what does not add up. Next:
//! `kvm::x86_64::acpi` and `emulator::args` tell the guest.

use std::ops::RangeInclusive;

use ktstr_proto::topology::numa::NumaError;
use ktstr_proto::topology::{Numa, Topology};

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Offset of its memory in the RAM file.
    pub file_offset: u64,
    /// Length of its memory in bytes.
    pub len: u64,
    /// Its CPUs; `None` is a node of memory alone.
    pub cpus: Option<RangeInclusive<u32>>,
    /// The node whose CPUs are nearest to its memory.
    pub initiator: usize,
}

/// Divides CPUs and RAM of a machine with `bytes` of it (a multiple of 2 MiB).
pub fn divide(topology: &Topology, numa: &Numa, bytes: u64) -> Result<Vec<Node>, NumaError> {
    numa.check(topology)?;
    let machine_mb = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
    let cpus = topology.cpus() / topology.numa_nodes;
    let mut file_offset = 0;
    let mut nodes = Vec::new();
    for (index, share_mb) in numa.shares_mb(topology, machine_mb)?.into_iter().enumerate() {
        let first = index as u32 * cpus;
        let len = u64::from(share_mb) << 20;
        nodes.push(Node {
            file_offset,
            len,
            cpus: Numa::has_cpus(topology, index).then(|| first..=first + cpus - 1),
            initiator: numa.initiator(topology, index),
        });
        file_offset += len;
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use ktstr_proto::topology::Shape;

    use super::*;

    fn divided(shape: &str, mib: u64) -> Vec<Node> {
        let shape: Shape = shape.parse().unwrap();
        divide(&shape.topology, &shape.numa, mib << 20).unwrap()
    }

    #[test]
    fn nodes_cover_everything_once() {
        for (shape, mib) in
            [("3n3l2c2t", 1000), ("1n1l1c1t", 128), ("2n2l1c1t/cxl=64,32", 512), ("2n2l1c1t/mem=64,-", 514)]
        {
            let nodes = divided(shape, mib);
            let mut at = 0;
            for node in &nodes {
                assert_eq!(node.file_offset, at);
                at += node.len;
            }
            assert_eq!(at, mib << 20);
        }
        let cpus: Vec<_> = divided("3n3l2c2t", 1000).into_iter().map(|node| node.cpus).collect();
        assert_eq!(cpus, [Some(0..=3), Some(4..=7), Some(8..=11)]);
    }

    #[test]
    fn memory_alone_is_near_to_some_cpus() {
        let nodes = divided("2n2l1c1t/cxl=64/dist=10,20,40:20,10,30:40,30,10", 512);
        assert_eq!(nodes.iter().map(|node| node.initiator).collect::<Vec<_>>(), [0, 1, 1]);
        assert_eq!((nodes[2].cpus.clone(), nodes[2].len), (None, 64 << 20));
    }
}

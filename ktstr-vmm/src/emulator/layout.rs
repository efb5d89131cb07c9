//! Where the emulated machine puts guest RAM, and how the RAM file is divided among NUMA nodes.
//!
//! The q35 machine keeps everything below 4 GiB while RAM is smaller than 2.75 GiB; from there on
//! 2 GiB stay low and the rest starts at 4 GiB. The RAM file is linear over both parts.

use crate::machine::{Gpa, RamRegion, Topology};

/// RAM size from which q35 moves part of it above 4 GiB.
const SPLIT_FROM: u64 = 0xb000_0000;
/// What stays low then.
const LOW_WHEN_SPLIT: u64 = 0x8000_0000;
const FOUR_GIB: u64 = 1 << 32;
/// From here on the machine would move high RAM out of the way of an address hole of AMD CPUs.
const LARGEST: u64 = 512 << 30;
const GRANULE: u64 = 2 << 20;
/// A distribution kernel with its initramfs does not boot in less.
const SMALLEST: u64 = 128 << 20;

/// Why a RAM size is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not a multiple of 2 MiB.
    #[error("guest RAM of {bytes} bytes is no multiple of 2 MiB")]
    Unaligned {
        /// Requested size.
        bytes: u64,
    },
    /// Outside of what the machine can have.
    #[error("guest RAM of {mib} MiB is outside of {min} to {max} MiB", min = SMALLEST >> 20, max = LARGEST >> 20)]
    OutOfRange {
        /// Requested size.
        mib: u64,
    },
    /// A node would get nothing.
    #[error("guest RAM of {mib} MiB cannot be divided among {nodes} NUMA nodes in steps of 2 MiB")]
    TooSmallForNodes {
        /// Requested size.
        mib: u64,
        /// Requested nodes.
        nodes: u32,
    },
}

/// The guest-physical regions of a RAM size.
pub fn regions(bytes: u64) -> Result<Vec<RamRegion>, LayoutError> {
    if !bytes.is_multiple_of(GRANULE) {
        return Err(LayoutError::Unaligned { bytes });
    }
    if !(SMALLEST..=LARGEST).contains(&bytes) {
        return Err(LayoutError::OutOfRange { mib: bytes >> 20 });
    }
    let low = if bytes >= SPLIT_FROM { LOW_WHEN_SPLIT } else { bytes };
    let mut regions = vec![RamRegion { gpa: Gpa(0), file_offset: 0, len: low }];
    if bytes > low {
        regions.push(RamRegion { gpa: Gpa(FOUR_GIB), file_offset: low, len: bytes - low });
    }
    Ok(regions)
}

/// The share of one NUMA node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeShare {
    /// Offset in the RAM file.
    pub file_offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// First CPU.
    pub first_cpu: u32,
    /// Last CPU.
    pub last_cpu: u32,
}

/// Divides RAM and CPUs evenly; the last node takes what does not divide.
pub fn nodes(topology: &Topology, bytes: u64) -> Result<Vec<NodeShare>, LayoutError> {
    let nodes = topology.numa_nodes;
    let each = bytes / u64::from(nodes) / GRANULE * GRANULE;
    if each == 0 {
        return Err(LayoutError::TooSmallForNodes { mib: bytes >> 20, nodes });
    }
    let cpus = topology.cpus() / nodes;
    Ok((0..nodes)
        .map(|node| {
            let file_offset = each * u64::from(node);
            let len = if node + 1 == nodes { bytes - file_offset } else { each };
            NodeShare { file_offset, len, first_cpu: node * cpus, last_cpu: (node + 1) * cpus - 1 }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn plain(bytes: u64) -> Vec<(u64, u64, u64)> {
        regions(bytes).unwrap().iter().map(|r| (r.gpa.0, r.file_offset, r.len)).collect()
    }

    #[test]
    fn ram_is_split_where_the_machine_splits_it() {
        assert_eq!(plain(1024 * MIB), [(0, 0, 1024 * MIB)]);
        assert_eq!(plain(2814 * MIB), [(0, 0, 2814 * MIB)]);
        assert_eq!(plain(2816 * MIB), [(0, 0, 2048 * MIB), (FOUR_GIB, 2048 * MIB, 768 * MIB)]);
        assert_eq!(plain(8192 * MIB), [(0, 0, 2048 * MIB), (FOUR_GIB, 2048 * MIB, 6144 * MIB)]);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert_eq!(regions(MIB + 1), Err(LayoutError::Unaligned { bytes: MIB + 1 }));
        assert_eq!(regions(0), Err(LayoutError::OutOfRange { mib: 0 }));
        assert_eq!(regions(1 << 40), Err(LayoutError::OutOfRange { mib: 1 << 20 }));
    }

    #[test]
    fn nodes_cover_everything_once() {
        let topology = Topology { numa_nodes: 3, llcs: 3, cores_per_llc: 2, threads_per_core: 2 };
        let shares = nodes(&topology, 1000 * MIB).unwrap();
        assert_eq!(shares.iter().map(|s| s.len).sum::<u64>(), 1000 * MIB);
        assert_eq!(
            shares.iter().map(|s| (s.first_cpu, s.last_cpu)).collect::<Vec<_>>(),
            [(0, 3), (4, 7), (8, 11)]
        );
        for pair in shares.windows(2) {
            assert_eq!(pair[0].file_offset + pair[0].len, pair[1].file_offset);
        }
    }
}

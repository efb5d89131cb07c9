//! The ACPI tables about CPUs and what is near to them: MADT, SRAT, SLIT, HMAT.
//!
//! Written entry by entry as the ACPI specification 6.5 lays them out (sections 5.2.12, 5.2.16, 5.2.17,
//! 5.2.28). CPUs whose APIC id does not fit a byte get the x2APIC forms of their entries. Next: `acpi`
//! links these tables with the rest.

use acpi_tables::sdt::Sdt;

use super::acpi::{Description, table};
use super::layout;
use crate::apic::MAX_XAPIC_ID;
use crate::machine::RamRegion;
use crate::nodes::Node;

/// Entry is in use.
const ENABLED: u32 = 1;
/// The CPU is not there and might come (ACPI 6.3 and later).
const ONLINE_CAPABLE: u32 = 2;
/// Figures of the HMAT: latency in steps of so many picoseconds, bandwidth of so many MB/s.
const LATENCY_STEP_PS: u64 = 1000;
const BANDWIDTH_STEP_MBS: u64 = 1;
/// Kinds of figures in the HMAT, for reading and writing alike.
const ACCESS_LATENCY: u8 = 0;
const ACCESS_BANDWIDTH: u8 = 3;

fn is_xapic(id: u32) -> Option<u8> {
    (id <= MAX_XAPIC_ID).then_some(id as u8)
}

/// CPUs, those that are not there behind the others, and the I/O APIC.
pub(super) fn madt(description: &Description<'_>) -> Sdt {
    let mut madt = Vec::new();
    madt.extend(layout::LAPIC.to_le_bytes());
    // No 8259 beside it.
    madt.extend(0u32.to_le_bytes());
    for cpu in 0..description.ids.possible() {
        let id = description.ids.of(cpu);
        let flags = if cpu < description.topology.cpus() { ENABLED } else { ONLINE_CAPABLE };
        match is_xapic(id) {
            // There are no more CPUs than ids, so the number fits where the id does.
            Some(id) => madt.extend([0, 8, cpu as u8, id]),
            None => {
                madt.extend([9, 16, 0, 0]);
                madt.extend(id.to_le_bytes());
            }
        }
        madt.extend(flags.to_le_bytes());
        if is_xapic(id).is_none() {
            madt.extend(cpu.to_le_bytes());
        }
    }
    madt.extend([1, 12, 0, 0]);
    madt.extend(layout::IOAPIC.to_le_bytes());
    madt.extend(0u32.to_le_bytes());
    table(*b"APIC", 5, &madt)
}

/// The pieces of RAM that each node has: `(node, start, length)`.
fn node_ranges(ram: &[RamRegion], nodes: &[Node]) -> Vec<(u32, u64, u64)> {
    let mut ranges = Vec::new();
    for region in ram {
        for (index, node) in nodes.iter().enumerate() {
            let start = node.file_offset.max(region.file_offset);
            let end = (node.file_offset + node.len).min(region.file_offset + region.len);
            if start < end {
                ranges.push((index as u32, region.gpa.0 + start - region.file_offset, end - start));
            }
        }
    }
    ranges
}

/// Which node every CPU and every piece of RAM belongs to.
pub(super) fn srat(description: &Description<'_>) -> Sdt {
    let mut srat = Vec::new();
    srat.extend(1u32.to_le_bytes());
    srat.extend(0u64.to_le_bytes());
    for (index, node) in description.nodes.iter().enumerate() {
        for cpu in node.cpus.clone().into_iter().flatten() {
            processor_affinity(&mut srat, index as u32, description.ids.of(cpu));
        }
    }
    for (node, start, len) in node_ranges(description.ram, description.nodes) {
        srat.extend([1, 40]);
        srat.extend(node.to_le_bytes());
        srat.extend(0u16.to_le_bytes());
        srat.extend(start.to_le_bytes());
        srat.extend(len.to_le_bytes());
        srat.extend(0u32.to_le_bytes());
        srat.extend(ENABLED.to_le_bytes());
        srat.extend(0u64.to_le_bytes());
    }
    table(*b"SRAT", 3, &srat)
}

fn processor_affinity(srat: &mut Vec<u8>, node: u32, id: u32) {
    match is_xapic(id) {
        Some(id) => {
            let [low, high @ ..] = node.to_le_bytes();
            srat.extend([0, 16, low, id]);
            srat.extend(ENABLED.to_le_bytes());
            srat.extend([0]);
            srat.extend(high);
            srat.extend(0u32.to_le_bytes());
        }
        None => {
            srat.extend([2, 24, 0, 0]);
            srat.extend(node.to_le_bytes());
            srat.extend(id.to_le_bytes());
            srat.extend(ENABLED.to_le_bytes());
            srat.extend(0u64.to_le_bytes());
        }
    }
}

/// How far nodes are from each other.
pub(super) fn slit(description: &Description<'_>) -> Sdt {
    let count = description.nodes.len();
    let mut slit = Vec::new();
    slit.extend((count as u64).to_le_bytes());
    for from in 0..count {
        let row: Vec<u8> = (0..count).map(|to| description.numa.distance(from, to)).collect();
        slit.extend(&row);
    }
    table(*b"SLIT", 1, &slit)
}

/// How fast each node's memory is for the CPUs of each.
pub(super) fn hmat(description: &Description<'_>) -> Sdt {
    let mut hmat = Vec::new();
    hmat.extend(0u32.to_le_bytes());
    for (index, node) in description.nodes.iter().enumerate() {
        // Memory proximity domain attributes; the flag says that the initiator is named.
        hmat.extend([0, 0, 0, 0]);
        hmat.extend(40u32.to_le_bytes());
        hmat.extend(1u16.to_le_bytes());
        hmat.extend(0u16.to_le_bytes());
        hmat.extend((node.initiator as u32).to_le_bytes());
        hmat.extend((index as u32).to_le_bytes());
        hmat.extend([0; 20]);
    }
    let figures = |from, to| description.numa.access(&description.topology, from, to);
    locality(&mut hmat, description, ACCESS_LATENCY, LATENCY_STEP_PS, |a, b| figures(a, b).latency_ns);
    locality(&mut hmat, description, ACCESS_BANDWIDTH, BANDWIDTH_STEP_MBS, |a, b| {
        figures(a, b).bandwidth_mbs
    });
    table(*b"HMAT", 2, &hmat)
}

fn locality(
    hmat: &mut Vec<u8>,
    description: &Description<'_>,
    kind: u8,
    step: u64,
    figure: impl Fn(usize, usize) -> u16,
) {
    let targets = description.nodes.len();
    let initiators = description.topology.numa_nodes as usize;
    let len = 32 + 4 * (initiators + targets) + 2 * initiators * targets;
    hmat.extend([1, 0, 0, 0]);
    hmat.extend((len as u32).to_le_bytes());
    // Of the memory itself, not of a cache before it.
    hmat.extend([0, kind, 0, 0]);
    hmat.extend((initiators as u32).to_le_bytes());
    hmat.extend((targets as u32).to_le_bytes());
    hmat.extend(0u32.to_le_bytes());
    hmat.extend(step.to_le_bytes());
    for node in (0..initiators).chain(0..targets) {
        hmat.extend((node as u32).to_le_bytes());
    }
    for from in 0..initiators {
        for to in 0..targets {
            hmat.extend(figure(from, to).to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes;

    #[test]
    fn the_ram_of_a_node_is_cut_at_the_device_hole() {
        let ram = layout::ram_regions(6 << 30).unwrap();
        let shape: ktstr_proto::topology::Shape = "2n2l1c1t/mem=-,512/cxl=1024".parse().unwrap();
        let nodes = nodes::divide(&shape.topology, &shape.numa, 6 << 30).unwrap();
        let (low, high) = (layout::GAP_START, layout::GAP_END);
        let first = (6 << 30) - (1536u64 << 20);
        assert_eq!(
            node_ranges(&ram, &nodes),
            [
                (0, 0, low),
                (0, high, first - low),
                (1, high + first - low, 512 << 20),
                (2, high + first - low + (512 << 20), 1 << 30),
            ]
        );
    }
}

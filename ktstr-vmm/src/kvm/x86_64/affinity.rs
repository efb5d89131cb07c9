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
/// Figures of the HMAT: latency in steps of so many picoseconds, bandwidth of so many MB/s.
const LATENCY_STEP_PS: u64 = 1000;
const BANDWIDTH_STEP_MBS: u64 = 1;
/// Kinds of figures in the HMAT, for reading and writing alike.
const ACCESS_LATENCY: u8 = 0;
const ACCESS_BANDWIDTH: u8 = 3;

fn is_xapic(id: u32) -> Option<u8> {
    (id <= MAX_XAPIC_ID).then_some(id as u8)
}

/// CPUs and the I/O APIC.
pub(super) fn madt(description: &Description<'_>) -> Sdt {
    let mut madt = table(*b"APIC", 5);
    madt.append(layout::LAPIC);
    // No 8259 beside it.
    madt.append(0u32);
    for cpu in 0..description.topology.cpus() {
        let id = description.ids.of(cpu);
        match is_xapic(id) {
            // There are no more CPUs than ids, so the number fits where the id does.
            Some(id) => madt.append_slice(&[0, 8, cpu as u8, id]),
            None => {
                madt.append_slice(&[9, 16, 0, 0]);
                madt.append(id);
            }
        }
        madt.append(ENABLED);
        if is_xapic(id).is_none() {
            madt.append(cpu);
        }
    }
    madt.append_slice(&[1, 12, 0, 0]);
    madt.append(layout::IOAPIC);
    madt.append(0u32);
    madt
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
    let mut srat = table(*b"SRAT", 3);
    srat.append(1u32);
    srat.append(0u64);
    for (index, node) in description.nodes.iter().enumerate() {
        for cpu in node.cpus.clone().into_iter().flatten() {
            processor_affinity(&mut srat, index as u32, description.ids.of(cpu));
        }
    }
    for (node, start, len) in node_ranges(description.ram, description.nodes) {
        srat.append_slice(&[1, 40]);
        srat.append(node);
        srat.append(0u16);
        srat.append(start);
        srat.append(len);
        srat.append(0u32);
        srat.append(ENABLED);
        srat.append(0u64);
    }
    srat
}

fn processor_affinity(srat: &mut Sdt, node: u32, id: u32) {
    match is_xapic(id) {
        Some(id) => {
            let [low, high @ ..] = node.to_le_bytes();
            srat.append_slice(&[0, 16, low, id]);
            srat.append(ENABLED);
            srat.append_slice(&[0]);
            srat.append_slice(&high);
            srat.append(0u32);
        }
        None => {
            srat.append_slice(&[2, 24, 0, 0]);
            srat.append(node);
            srat.append(id);
            srat.append(ENABLED);
            srat.append(0u64);
        }
    }
}

/// How far nodes are from each other.
pub(super) fn slit(description: &Description<'_>) -> Sdt {
    let count = description.nodes.len();
    let mut slit = table(*b"SLIT", 1);
    slit.append(count as u64);
    for from in 0..count {
        let row: Vec<u8> = (0..count).map(|to| description.numa.distance(from, to)).collect();
        slit.append_slice(&row);
    }
    slit
}

/// How fast each node's memory is for the CPUs of each.
pub(super) fn hmat(description: &Description<'_>) -> Sdt {
    let mut hmat = table(*b"HMAT", 2);
    hmat.append(0u32);
    for (index, node) in description.nodes.iter().enumerate() {
        // Memory proximity domain attributes; the flag says that the initiator is named.
        hmat.append_slice(&[0, 0, 0, 0]);
        hmat.append(40u32);
        hmat.append(1u16);
        hmat.append(0u16);
        hmat.append(node.initiator as u32);
        hmat.append(index as u32);
        hmat.append_slice(&[0; 20]);
    }
    let figures = |from, to| description.numa.access(&description.topology, from, to);
    locality(&mut hmat, description, ACCESS_LATENCY, LATENCY_STEP_PS, |a, b| figures(a, b).latency_ns);
    locality(&mut hmat, description, ACCESS_BANDWIDTH, BANDWIDTH_STEP_MBS, |a, b| {
        figures(a, b).bandwidth_mbs
    });
    hmat
}

fn locality(
    hmat: &mut Sdt,
    description: &Description<'_>,
    kind: u8,
    step: u64,
    figure: impl Fn(usize, usize) -> u16,
) {
    let targets = description.nodes.len();
    let initiators = description.topology.numa_nodes as usize;
    let len = 32 + 4 * (initiators + targets) + 2 * initiators * targets;
    hmat.append_slice(&[1, 0, 0, 0]);
    hmat.append(len as u32);
    // Of the memory itself, not of a cache before it.
    hmat.append_slice(&[0, kind, 0, 0]);
    hmat.append(initiators as u32);
    hmat.append(targets as u32);
    hmat.append(0u32);
    hmat.append(step);
    for node in (0..initiators).chain(0..targets) {
        hmat.append(node as u32);
    }
    for from in 0..initiators {
        for to in 0..targets {
            hmat.append(figure(from, to));
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

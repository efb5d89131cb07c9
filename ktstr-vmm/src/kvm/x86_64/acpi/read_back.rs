//! Reads MADT, SRAT, SLIT and HMAT back as a kernel does, and compares what they say with the request.
//!
//! Offsets are those of the ACPI specification 6.5, sections 5.2.12, 5.2.16, 5.2.17 and 5.2.28.

use std::collections::BTreeMap;

use ktstr_proto::topology::{Numa, PRESETS, Shape, Topology};

use super::layout;
use super::tests::{THREE_NODES, block_with, u32_at, u64_at, walk};

const MEMORY_MB: u32 = 6 << 10;
const ENABLED: usize = 1;
const ONLINE_CAPABLE: usize = 2;

fn u16_at(block: &[u8], at: usize) -> usize {
    u16::from_le_bytes(block[at..at + 2].try_into().unwrap()).into()
}

/// The tables of a machine by their signatures.
struct Tables(BTreeMap<[u8; 4], Vec<u8>>);

impl Tables {
    fn of(shape: &str, absent_llcs: u32) -> Tables {
        let block = block_with(shape, absent_llcs, u64::from(MEMORY_MB) << 20);
        Tables(walk(&block).into_iter().map(|table| (table[..4].try_into().unwrap(), table)).collect())
    }

    fn get(&self, signature: &[u8; 4]) -> &[u8] {
        &self.0[signature]
    }

    /// The entries of a table whose first byte is a kind and whose second is a length.
    fn entries(&self, signature: &[u8; 4], from: usize) -> Vec<&[u8]> {
        let mut rest = &self.get(signature)[from..];
        let mut all = Vec::new();
        while !rest.is_empty() {
            let (entry, behind) = rest.split_at(rest[1].into());
            all.push(entry);
            rest = behind;
        }
        all
    }

    /// Of each CPU in order: its number, its APIC id, its flags.
    fn cpus(&self) -> Vec<(usize, usize, usize)> {
        let cpu = |entry: &&[u8]| match (entry[0], entry.len()) {
            (0, 8) => Some((entry[2].into(), entry[3].into(), u32_at(entry, 4))),
            (9, 16) => Some((u32_at(entry, 12), u32_at(entry, 4), u32_at(entry, 8))),
            (1, 12) => {
                assert_eq!((u32_at(entry, 4) as u64, u32_at(entry, 8)), (layout::IOAPIC.into(), 0));
                None
            }
            _ => panic!("an entry of kind {} in the MADT", entry[0]),
        };
        self.entries(b"APIC", 44).iter().filter_map(cpu).collect()
    }

    /// Node by APIC id, and the pieces of memory as node, start, length.
    fn affinities(&self) -> (BTreeMap<usize, usize>, Vec<(usize, u64, u64)>) {
        let (mut cpus, mut memory) = (BTreeMap::new(), Vec::new());
        for entry in self.entries(b"SRAT", 48) {
            let flags_at = match (entry[0], entry.len()) {
                (0, 16) => {
                    let node = u32::from_le_bytes([entry[2], entry[9], entry[10], entry[11]]);
                    assert_eq!(cpus.insert(entry[3].into(), node as usize), None);
                    4
                }
                (2, 24) => {
                    assert_eq!(cpus.insert(u32_at(entry, 8), u32_at(entry, 4)), None);
                    12
                }
                (1, 40) => {
                    memory.push((u32_at(entry, 2), u64_at(entry, 8), u64_at(entry, 16)));
                    28
                }
                _ => panic!("an entry of kind {} in the SRAT", entry[0]),
            };
            assert_eq!(u32_at(entry, flags_at), ENABLED);
        }
        (cpus, memory)
    }

    /// Of each node its initiator, and by data type, initiator and target the figure in ps or MB/s.
    fn figures(&self) -> (BTreeMap<usize, usize>, BTreeMap<(u8, usize, usize), u64>) {
        let mut rest = &self.get(b"HMAT")[40..];
        let (mut initiators, mut figures) = (BTreeMap::new(), BTreeMap::new());
        while !rest.is_empty() {
            let (entry, behind) = rest.split_at(u32_at(rest, 4));
            rest = behind;
            if u16_at(entry, 0) == 0 {
                assert_eq!(u16_at(entry, 8), 1, "the initiator counts");
                initiators.insert(u32_at(entry, 16), u32_at(entry, 12));
                continue;
            }
            assert_eq!((u16_at(entry, 0), entry[8]), (1, 0), "figures of the memory itself");
            let [from, to] = [12, 16].map(|at| u32_at(entry, at));
            let (unit, matrix) = (u64_at(entry, 24), 32 + 4 * (from + to));
            for (row, column) in (0..from).flat_map(|row| (0..to).map(move |column| (row, column))) {
                let place = (u32_at(entry, 32 + 4 * row), u32_at(entry, 32 + 4 * (from + column)));
                let figure = u16_at(entry, matrix + 2 * (row * to + column)) as u64 * unit;
                figures.insert((entry[9], place.0, place.1), figure);
            }
        }
        (initiators, figures)
    }
}

/// The id that hardware of this shape gives, from the place of the CPU.
fn apic_id(topology: &Topology, cpu: u32) -> usize {
    let wide = |count: u32| count.next_power_of_two();
    let (core, thread) = (cpu / topology.threads, cpu % topology.threads);
    let (llc, core) = (core / topology.cores, core % topology.cores);
    ((llc * wide(topology.cores) + core) * wide(topology.threads) + thread) as usize
}

fn cpus_are_listed(tables: &Tables, topology: &Topology, absent_llcs: u32) {
    let all = topology.cpus() + absent_llcs * topology.cpus_per_llc();
    let flags = |cpu| if cpu < topology.cpus() { ENABLED } else { ONLINE_CAPABLE };
    let expected: Vec<_> = (0..all).map(|cpu| (cpu as usize, apic_id(topology, cpu), flags(cpu))).collect();
    assert_eq!(tables.cpus(), expected);
}

fn nodes_are_described(tables: &Tables, topology: &Topology, numa: &Numa) {
    let (cpus, memory) = tables.affinities();
    let per_node = topology.cpus() / topology.numa_nodes;
    let expected = (0..topology.cpus()).map(|cpu| (apic_id(topology, cpu), (cpu / per_node) as usize));
    assert_eq!(cpus, expected.collect());

    let count = numa.count(topology);
    for (node, share_mb) in numa.shares_mb(topology, MEMORY_MB).unwrap().into_iter().enumerate() {
        let held: u64 = memory.iter().filter(|piece| piece.0 == node).map(|piece| piece.2).sum();
        assert_eq!(held, u64::from(share_mb) << 20, "node {node}");
    }
    let mut pieces: Vec<_> = memory.iter().map(|(_, start, len)| (*start, start + len)).collect();
    pieces.sort_unstable();
    assert!(pieces.is_sorted_by(|a, b| a.1 <= b.0), "{pieces:x?}");
    assert!(pieces.iter().all(|(start, end)| *end <= layout::GAP_START || *start >= layout::GAP_END));

    let slit = tables.get(b"SLIT");
    assert_eq!((u64_at(slit, 36), slit.len()), (count as u64, 44 + count * count));
    let (initiators, figures) = tables.figures();
    for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
        assert_eq!(slit[44 + from * count + to], numa.distance(from, to), "{from} to {to}");
        if !Numa::has_cpus(topology, from) {
            assert!((0..=5).all(|kind| !figures.contains_key(&(kind, from, to))), "{from} has no CPUs");
            continue;
        }
        let access = numa.access(topology, from, to);
        assert_eq!(figures[&(0, from, to)], u64::from(access.latency_ns) * 1000);
        assert_eq!(figures[&(3, from, to)], u64::from(access.bandwidth_mbs));
    }
    let nearest = (0..count).map(|node| (node, numa.initiator(topology, node)));
    assert_eq!(initiators, nearest.collect());
}

fn says_its_shape(name: &str, absent_llcs: u32) {
    println!("{name}");
    let Shape { topology, numa } = name.parse().unwrap();
    let tables = Tables::of(name, absent_llcs);
    cpus_are_listed(&tables, &topology, absent_llcs);
    let several = numa.count(&topology) > 1;
    for signature in [b"SRAT", b"SLIT", b"HMAT"] {
        assert_eq!(tables.0.contains_key(signature), several);
    }
    if several {
        nodes_are_described(&tables, &topology, &numa);
    }
}

#[test]
fn the_acpi_tables_of_all_presets_say_their_shapes() {
    PRESETS.iter().for_each(|preset| says_its_shape(preset.name, 0));
    for shape in [THREE_NODES, "64n64l4c2t", "1n64l4c2t", "2n4l2c1t/mem=-,1024/cxl=256@400@16000"] {
        says_its_shape(shape, 0);
    }
}

#[test]
fn cpus_that_may_come_are_listed_behind_those_that_are_there() {
    says_its_shape("2n4l2c2t", 3);
    says_its_shape("1n1l254c1t", 1);
}

//! What CPUID tells the guest: the host's features with the topology of the requested machine.
//!
//! Every LLC is one package, so that each vendor's rules for finding the LLC agree, and CPU families with rules
//! of their own are presented as others. Next: `acpi` lists the same APIC ids in the MADT.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::apic::ApicIds;

/// KVM's paravirtual features (Documentation/virt/kvm/x86/cpuid.rst).
const KVM_FEATURES: u32 = 0x4000_0001;
/// Interrupt messages carry 15 bits of destination; `devices::ioapic` passes them on.
const MSI_EXT_DEST_ID: u32 = 1 << 15;

/// EDX of that leaf: no vCPU is ever kept off its host CPU, so waiting for one may be spinning.
const HINTS_REALTIME: u32 = 1 << 0;

/// Tells the guest that its vCPUs have host CPUs of their own.
pub fn promise_time(table: &mut [kvm_cpuid_entry2]) {
    for entry in table.iter_mut().filter(|entry| entry.function == KVM_FEATURES) {
        entry.edx |= HINTS_REALTIME;
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Vendor {
    Intel,
    Amd,
}

/// "AuthenticAMD" as EBX, ECX, EDX.
const AUTHENTIC_AMD: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65];
/// Family 17h, model 31h: the first whose last-level caches a kernel finds by leaf 0x8000001D.
const BY_CACHE_LEAF: u32 = 0x0083_0f10;

/// The signature to present for one of AMD's kind. Of models of family 17h before that, and of all of family
/// 18h (Hygon), Linux takes bit 3 of the APIC id for the LLC, whatever the leaves say
/// (arch/x86/kernel/cpu/cacheinfo.c), and no shape but theirs could be shown.
fn presented(signature: u32) -> u32 {
    let base = signature >> 8 & 0xf;
    let family = if base == 0xf { base + (signature >> 20 & 0xff) } else { base };
    let model = signature >> 4 & 0xf | signature >> 12 & 0xf0;
    if family == 0x17 && model <= 0x1f || family == 0x18 { BY_CACHE_LEAF } else { signature }
}

fn vendor(entries: &[kvm_cpuid_entry2]) -> Vendor {
    match entries.iter().find(|e| e.function == 0).map(|e| e.ebx) {
        // "Auth" of AuthenticAMD, "Hygo" of HygonGenuine.
        Some(0x6874_7541 | 0x6f67_7948) => Vendor::Amd,
        _ => Vendor::Intel,
    }
}

/// The CPUID table of one vCPU, from what KVM supports on this host.
#[must_use]
pub fn for_cpu(supported: &[kvm_cpuid_entry2], ids: &ApicIds, cpu: u32) -> Vec<kvm_cpuid_entry2> {
    let vendor = vendor(supported);
    let rewritten =
        |f: u32| matches!(f, 0x4 | 0xb | 0x1f | 0x8000_001d) || f > 0x8000_0022 && f < 0xc000_0000;
    let mut table: Vec<_> = supported.iter().filter(|e| !rewritten(e.function)).copied().collect();
    for leaf in [0, 1, 0x8000_0000, 0x8000_0001, 0x8000_0008] {
        if !table.iter().any(|e| e.function == leaf) {
            table.push(kvm_cpuid_entry2 { function: leaf, ..Default::default() });
        }
    }
    if vendor == Vendor::Amd && !table.iter().any(|e| e.function == 0x8000_001e) {
        table.push(kvm_cpuid_entry2 { function: 0x8000_001e, ..Default::default() });
    }
    for entry in &mut table {
        patch(entry, vendor, ids, ids.of(cpu));
    }
    table.extend(extended_topology(0xb, ids, ids.of(cpu)));
    if vendor == Vendor::Intel {
        table.extend(extended_topology(0x1f, ids, ids.of(cpu)));
    }
    table.extend(caches(supported, vendor, ids));
    table
}

fn patch(entry: &mut kvm_cpuid_entry2, vendor: Vendor, ids: &ApicIds, apic: u32) {
    let per_package = ids.topology().cpus_per_llc();
    if vendor == Vendor::Amd {
        match entry.function {
            0 | 0x8000_0000 => [entry.ebx, entry.ecx, entry.edx] = AUTHENTIC_AMD,
            1 | 0x8000_0001 => entry.eax = presented(entry.eax),
            _ => {}
        }
    }
    match entry.function {
        0 => entry.eax = entry.eax.max(if vendor == Vendor::Intel { 0x1f } else { 0xd }),
        1 => {
            let logical = (1u32 << ids.package_shift()).min(255);
            entry.ebx = entry.ebx & 0xffff | apic << 24 | logical << 16;
            // x2APIC, TSC deadline timer, "runs under a hypervisor".
            entry.ecx |= 1 << 21 | 1 << 24 | 1 << 31;
            entry.edx = entry.edx & !(1 << 28) | u32::from(per_package > 1) << 28;
        }
        KVM_FEATURES if ids.need_x2apic() => entry.eax |= MSI_EXT_DEST_ID,
        0x8000_0000 if vendor == Vendor::Amd => entry.eax = entry.eax.clamp(0x8000_001e, 0x8000_0022),
        0x8000_0001 if vendor == Vendor::Amd => {
            // Topology extensions; legacy multi-core bit.
            entry.ecx = entry.ecx & !2 | 1 << 22 | u32::from(per_package > 1) << 1;
        }
        0x8000_0008 if vendor == Vendor::Amd => {
            entry.ecx = ids.package_shift() << 12 | (per_package - 1).min(255);
        }
        0x8000_001e => {
            let core = apic >> ids.thread_bits() & ((1 << ids.core_bits()) - 1);
            entry.eax = apic;
            entry.ebx = (ids.topology().threads - 1) << 8 | core;
            // Families before 17h take the node id for the LLC id, so it is the LLC's number, as far as
            // its eight bits go.
            entry.ecx = apic >> ids.package_shift() & 0xff;
        }
        _ => {}
    }
}

fn extended_topology(function: u32, ids: &ApicIds, apic: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        edx: apic,
        ..Default::default()
    };
    [
        level(0, ids.thread_bits(), ids.topology().threads, 1),
        level(1, ids.package_shift(), ids.topology().cpus_per_llc(), 2),
        level(2, 0, 0, 0),
    ]
}

/// L1 data, L1 instruction, L2, L3: `type | level << 5`, and EBX/ECX where the host tells nothing.
const DEFAULT_CACHES: [(u32, u32, u32); 4] = [
    (1 | 1 << 5, 7 << 22 | 63, 63),
    (2 | 1 << 5, 7 << 22 | 63, 63),
    (3 | 2 << 5, 7 << 22 | 63, 1023),
    (3 | 3 << 5, 15 << 22 | 63, 16383),
];

fn caches(supported: &[kvm_cpuid_entry2], vendor: Vendor, ids: &ApicIds) -> Vec<kvm_cpuid_entry2> {
    let function = if vendor == Vendor::Amd { 0x8000_001d } else { 4 };
    let mut table: Vec<_> = DEFAULT_CACHES
        .iter()
        .enumerate()
        .map(|(index, &(kind, ebx, ecx))| {
            let host = supported.iter().find(|e| e.function == function && e.eax & 0xff == kind);
            let level = kind >> 5;
            let sharing = 1u32 << if level == 3 { ids.package_shift() } else { ids.thread_bits() };
            let cores = if vendor == Vendor::Intel { ((1 << ids.core_bits()) - 1).min(63) << 26 } else { 0 };
            kvm_cpuid_entry2 {
                function,
                index: index as u32,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                // Bit 8: self-initialising.
                eax: kind | 1 << 8 | (sharing - 1) << 14 | cores,
                ebx: host.map_or(ebx, |e| e.ebx),
                ecx: host.map_or(ecx, |e| e.ecx),
                edx: host.map_or(0, |e| e.edx),
                ..Default::default()
            }
        })
        .collect();
    table.push(kvm_cpuid_entry2 {
        function,
        index: DEFAULT_CACHES.len() as u32,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        ..Default::default()
    });
    table
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use ktstr_proto::topology::PRESETS;
    use proptest::prelude::*;

    use super::*;
    use crate::machine::Topology;

    const AMD: u32 = 0x6874_7541;
    const INTEL: u32 = 0x756e_6547;

    fn host(vendor: u32) -> Vec<kvm_cpuid_entry2> {
        let leaf = |function, eax, ebx| kvm_cpuid_entry2 { function, eax, ebx, ..Default::default() };
        vec![
            leaf(0, 0xd, vendor),
            leaf(1, 0xf00, 0x800),
            leaf(0xb, 9, 9),
            leaf(KVM_FEATURES, 0, 0),
            leaf(0x8000_0000, 0x8000_0028, 0),
        ]
    }

    fn leaf(table: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found: Vec<_> = table.iter().filter(|e| e.function == function && e.index == index).collect();
        assert_eq!(found.len(), 1, "leaf {function:#x}.{index} appears once");
        *found[0]
    }

    /// Reads (llc, core, thread) back the way a kernel does, from the shifts of leaf 0xB.
    fn decode(table: &[kvm_cpuid_entry2]) -> (u32, u32, u32) {
        let (smt, core) = (leaf(table, 0xb, 0), leaf(table, 0xb, 1));
        let apic = smt.edx;
        assert_eq!(apic & 0xff, leaf(table, 1, 0).ebx >> 24);
        (apic >> core.eax, apic >> smt.eax & ((1 << (core.eax - smt.eax)) - 1), apic & ((1 << smt.eax) - 1))
    }

    /// Every CPU's table decodes to its place in the shape.
    fn check(topology: Topology, vendor: u32) {
        let Topology { cores, threads, .. } = topology;
        let ids = ApicIds::new(topology).unwrap();
        let host = host(vendor);
        let mut seen = HashSet::new();
        for cpu in 0..topology.cpus() {
            let table = for_cpu(&host, &ids, cpu);
            let want = (cpu / threads / cores, cpu / threads % cores, cpu % threads);
            assert_eq!(decode(&table), want);
            let apic = leaf(&table, 0xb, 0).edx;
            assert!(seen.insert(apic));
            assert_eq!(leaf(&table, 0xb, 1).ebx, cores * threads);
            assert_eq!(leaf(&table, 1, 0).edx >> 28 & 1, u32::from(cores * threads > 1));
            let remapped = leaf(&table, KVM_FEATURES, 0).eax & MSI_EXT_DEST_ID != 0;
            assert_eq!(remapped, ids.need_x2apic());
            let l3 = leaf(&table, if vendor == AMD { 0x8000_001d } else { 4 }, 3);
            let sharing = ((l3.eax >> 14 & 0xfff) + 1).next_power_of_two();
            assert_eq!(apic / sharing, want.0);
            if vendor == AMD {
                let node = leaf(&table, 0x8000_001e, 0);
                assert_eq!((node.eax, node.ecx & 0xff, node.ebx & 0xff), (apic, want.0, want.1));
                assert_eq!(leaf(&table, 0x8000_0008, 0).ecx >> 12 & 0xf, leaf(&table, 0xb, 1).eax);
                assert!(leaf(&table, 0x8000_0000, 0).eax < 0x8000_0026);
            } else {
                assert_eq!(leaf(&table, 0x1f, 1).eax, leaf(&table, 0xb, 1).eax);
            }
        }
    }

    #[test]
    fn the_tables_of_all_presets_decode_to_their_shapes() {
        for preset in &PRESETS {
            check(preset.topology, AMD);
            check(preset.topology, INTEL);
        }
    }

    #[test]
    fn no_cpu_is_presented_whose_caches_are_found_by_its_ids_alone() {
        const HYGON: u32 = 0x6f67_7948;
        let ids = ApicIds::new(Topology::new(1, 2, 2, 1).unwrap()).unwrap();
        // Naples, Raven, Dhyana; then Rome and Milan, which are shown as they are.
        for (vendor, signature, shown) in [
            (AMD, 0x0080_0f12, BY_CACHE_LEAF),
            (AMD, 0x0081_0f10, BY_CACHE_LEAF),
            (HYGON, 0x0090_0f02, BY_CACHE_LEAF),
            (AMD, 0x0083_0f12, 0x0083_0f12),
            (AMD, 0x00a0_0f11, 0x00a0_0f11),
        ] {
            let mut host = host(vendor);
            host.iter_mut().filter(|e| e.function == 1).for_each(|e| e.eax = signature);
            let extended = kvm_cpuid_entry2 { function: 0x8000_0001, eax: signature, ..Default::default() };
            host.push(extended);
            let table = for_cpu(&host, &ids, 0);
            for (function, with) in [(1, 0), (0x8000_0001, 0)] {
                assert_eq!(leaf(&table, function, with).eax, shown, "{signature:#x}");
            }
            for function in [0, 0x8000_0000] {
                let leaf = leaf(&table, function, 0);
                assert_eq!([leaf.ebx, leaf.ecx, leaf.edx], AUTHENTIC_AMD);
            }
        }
        assert_eq!(presented(0x000b_06f2), 0x000b_06f2);
    }

    proptest! {
        #[test]
        fn the_tables_decode_to_the_shape(llcs in 1u32..22, cores in 1u32..12, threads in 1u32..3, amd: bool) {
            check(Topology::new(1, llcs, cores, threads).unwrap(), if amd { AMD } else { INTEL });
        }
    }
}

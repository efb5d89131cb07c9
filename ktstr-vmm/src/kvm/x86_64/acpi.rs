//! The ACPI tables: who the CPUs are (MADT), what the machine can do (FADT), which devices there are
//! (DSDT), and, with several nodes, what is near to what (SRAT, SLIT).
//!
//! The machine is hardware-reduced: no PIC, no PIT, no RTC, no PM timer. That spares the guest
//! seconds of probing, and power-off and reset are one byte written to a port each. Next: `layout`
//! says where the tables lie, `devices::power` listens on the ports.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::slit::SLIT;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};

use super::cpuid::ApicIds;
use super::layout;
use crate::kvm::devices::power;
use crate::machine::{RamRegion, Topology};

const OEM: [u8; 6] = *b"KTSTR ";
const OEM_TABLE: [u8; 8] = *b"KTSTRVMM";
/// Sleep type written to the sleep control register to power off.
const S5: u8 = 5;
/// Distance between two nodes in the SLIT (10 is local).
const REMOTE_DISTANCE: u8 = 20;
/// FADT boot flags: no VGA, no MSI restrictions left unset, no CMOS clock.
const NO_VGA_NO_RTC: u16 = 1 << 2 | 1 << 5;

/// What the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct Description<'a> {
    /// The machine's shape.
    pub topology: Topology,
    /// Its APIC ids.
    pub ids: &'a ApicIds,
    /// Its RAM.
    pub ram: &'a [RamRegion],
    /// How many virtio-mmio windows are in use.
    pub virtio: usize,
}

/// The tables do not fit where they have to lie.
#[derive(Debug, thiserror::Error)]
#[error("the ACPI tables take {len} bytes, there is room for {room}; use fewer CPUs")]
pub struct TablesTooLarge {
    len: u64,
    room: u64,
}

/// All tables as one block for [`layout::ACPI_TABLES`], the RSDP first.
pub fn tables(description: &Description<'_>) -> Result<Vec<u8>, TablesTooLarge> {
    let base = layout::ACPI_TABLES.0;
    let mut block = vec![0u8; Rsdp::len().next_multiple_of(16)];
    let mut place = |table: &dyn Aml| {
        let at = base + block.len() as u64;
        table.to_aml_bytes(&mut block);
        block.resize(block.len().next_multiple_of(16), 0);
        at
    };

    let dsdt = place(&dsdt(description.virtio));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, 1);
    xsdt.add_entry(place(&fadt(dsdt)));
    xsdt.add_entry(place(&madt(description)));
    if description.topology.numa_nodes > 1 {
        xsdt.add_entry(place(&srat(description)));
        xsdt.add_entry(place(&slit(description.topology.numa_nodes)));
    }
    let xsdt = place(&xsdt);

    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    block[..rsdp.len()].copy_from_slice(&rsdp);
    let (len, room) = (block.len() as u64, layout::ACPI_END - base);
    if len > room { Err(TablesTooLarge { len, room }) } else { Ok(block) }
}

fn port(address: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address.into())
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, 1)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Wbinvd)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = NO_VGA_NO_RTC.into();
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS);
    fadt.reset_reg = port(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.finalize()
}

fn madt(description: &Description<'_>) -> MADT {
    let mut madt = MADT::new(OEM, OEM_TABLE, 1, LocalInterruptController::Address(layout::LAPIC));
    for cpu in 0..description.topology.cpus() {
        // Both fit a byte: `ApicIds` refuses ids above 254, and there are no more CPUs than ids.
        madt.add_structure(ProcessorLocalApic::new(
            cpu as u8,
            description.ids.of(cpu) as u8,
            EnabledStatus::Enabled,
        ));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    madt
}

/// RAM of each node: equal shares in address order, cut at the device hole.
fn node_ranges(ram: &[RamRegion], nodes: u32) -> Vec<(u32, u64, u64)> {
    let total: u64 = ram.iter().map(|r| r.len).sum();
    let share = (total / u64::from(nodes)) & !(layout::RAM_STEP - 1);
    let mut ranges = Vec::new();
    for region in ram {
        let mut offset = region.file_offset;
        let end = region.file_offset + region.len;
        while offset < end {
            let node = (offset / share.max(1)).min(u64::from(nodes - 1));
            let node_end = if node == u64::from(nodes - 1) { total } else { (node + 1) * share };
            let stop = end.min(node_end);
            ranges.push((node as u32, region.gpa.0 + offset - region.file_offset, stop - offset));
            offset = stop;
        }
    }
    ranges
}

fn srat(description: &Description<'_>) -> Sdt {
    let topology = description.topology;
    let mut srat = Sdt::new(*b"SRAT", 36, 3, OEM, OEM_TABLE, 1);
    srat.append(1u32);
    srat.append(0u64);
    let cpus_per_node = topology.cpus() / topology.numa_nodes;
    for cpu in 0..topology.cpus() {
        let node = (cpu / cpus_per_node).to_le_bytes();
        // Processor local APIC affinity: enabled.
        srat.append_slice(&[
            0,
            16,
            node[0],
            description.ids.of(cpu) as u8,
            1,
            0,
            0,
            0,
            0,
            node[1],
            node[2],
            node[3],
        ]);
        srat.append(0u32);
    }
    for (node, start, len) in node_ranges(description.ram, topology.numa_nodes) {
        let affinity = acpi_tables::srat::MemoryAffinity::new(node, start, len).enabled();
        let mut bytes = Vec::new();
        affinity.to_aml_bytes(&mut bytes);
        srat.append_slice(&bytes);
    }
    srat
}

fn slit(nodes: u32) -> SLIT {
    let mut slit = SLIT::new(OEM, OEM_TABLE, 1, nodes);
    for a in 0..nodes as usize {
        for b in 0..a {
            slit.set_distance(a, b, REMOTE_DISTANCE);
        }
    }
    slit
}

fn dsdt(virtio: usize) -> Sdt {
    let mut body = Vec::new();
    let sleep_type = Package::new(vec![&S5, &aml::ZERO, &aml::ZERO, &aml::ZERO]);
    Name::new(Path::new("_S5_"), &sleep_type).to_aml_bytes(&mut body);

    let mut devices = Vec::new();
    com(&mut devices, "COM1", 1, 0x3f8, layout::COM1_IRQ);
    com(&mut devices, "COM2", 2, 0x2f8, layout::COM2_IRQ);
    for (index, irq) in layout::VIRTIO_IRQS.iter().take(virtio).enumerate() {
        virtio_mmio(&mut devices, index as u32, *irq);
    }
    let contents = Raw(devices);
    Scope::new(Path::new("_SB_"), vec![&contents]).to_aml_bytes(&mut body);

    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, 1);
    dsdt.append_slice(&body);
    dsdt
}

/// AML that is already encoded.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn com(out: &mut Vec<u8>, name: &str, uid: u8, base: u16, irq: u32) {
    let hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0501"));
    let uid = Name::new(Path::new("_UID"), &uid);
    let (ports, line) = (IO::new(base, base, 0, 8), Interrupt::new(true, true, false, false, irq));
    let resources = ResourceTemplate::new(vec![&line, &ports]);
    let crs = Name::new(Path::new("_CRS"), &resources);
    Device::new(Path::new(name), vec![&hid, &uid, &crs]).to_aml_bytes(out);
}

fn virtio_mmio(out: &mut Vec<u8>, index: u32, irq: u32) {
    let base = (layout::VIRTIO_MMIO + u64::from(index) * layout::VIRTIO_MMIO_SIZE) as u32;
    let hid = Name::new(Path::new("_HID"), &"LNRO0005");
    let uid = Name::new(Path::new("_UID"), &index);
    let coherent = Name::new(Path::new("_CCA"), &aml::ONE);
    let window = Memory32Fixed::new(true, base, layout::VIRTIO_MMIO_SIZE as u32);
    let line = Interrupt::new(true, true, false, false, irq);
    let resources = ResourceTemplate::new(vec![&window, &line]);
    let crs = Name::new(Path::new("_CRS"), &resources);
    Device::new(Path::new(&format!("VR{index:02}")), vec![&hid, &uid, &coherent, &crs]).to_aml_bytes(out);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(topology: Topology, memory: u64) -> Vec<u8> {
        let ids = ApicIds::new(topology).unwrap();
        let ram = layout::ram_regions(memory).unwrap();
        tables(&Description { topology, ids: &ids, ram: &ram, virtio: 2 }).unwrap()
    }

    const TWO_NODES: Topology = Topology { numa_nodes: 2, llcs: 4, cores_per_llc: 3, threads_per_core: 2 };

    fn u32_at(block: &[u8], at: usize) -> usize {
        u32::from_le_bytes(block[at..at + 4].try_into().unwrap()) as usize
    }

    fn u64_at(block: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(block[at..at + 8].try_into().unwrap())
    }

    /// Walks from the RSDP, as a kernel does, and returns every table.
    fn walk(block: &[u8]) -> Vec<Vec<u8>> {
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |a, b| a.wrapping_add(*b));
        assert_eq!(&block[..8], b"RSD PTR ");
        assert_eq!((sum(&block[..20]), sum(&block[..36])), (0, 0));
        let table = |address: u64| {
            let at = (address - layout::ACPI_TABLES.0) as usize;
            let table = block[at..at + u32_at(block, at + 4)].to_vec();
            assert_eq!(sum(&table), 0, "checksum of {}", String::from_utf8_lossy(&table[..4]));
            table
        };
        let xsdt = table(u64_at(block, 24));
        let mut all: Vec<_> = xsdt[36..].chunks(8).map(|c| table(u64_at(c, 0))).collect();
        let dsdt = u64_at(all.iter().find(|t| &t[..4] == b"FACP").unwrap(), 140);
        all.push(table(dsdt));
        all
    }

    #[test]
    fn every_table_is_reachable_and_sums_to_zero() {
        let names = |topology| -> Vec<_> {
            walk(&block(topology, 4 << 30))
                .iter()
                .map(|t| String::from_utf8(t[..4].to_vec()).unwrap())
                .collect()
        };
        assert_eq!(names(TWO_NODES), ["FACP", "APIC", "SRAT", "SLIT", "DSDT"]);
        let flat = Topology { numa_nodes: 1, llcs: 1, cores_per_llc: 255, threads_per_core: 1 };
        assert_eq!(names(flat), ["FACP", "APIC", "DSDT"]);
    }

    #[test]
    fn the_srat_gives_every_node_its_share() {
        let ram = layout::ram_regions(6 << 30).unwrap();
        for nodes in [2, 3, 5] {
            let ranges = node_ranges(&ram, nodes);
            assert_eq!(ranges.iter().map(|r| r.2).sum::<u64>(), 6 << 30);
            for node in 0..nodes {
                let share: u64 = ranges.iter().filter(|r| r.0 == node).map(|r| r.2).sum();
                assert!(share.abs_diff((6 << 30) / u64::from(nodes)) <= u64::from(nodes) * layout::RAM_STEP);
            }
        }
    }

    #[test]
    fn the_acpi_compiler_can_read_the_tables() {
        if std::process::Command::new("iasl").arg("-v").output().is_err() {
            println!("NOT RUN: `iasl` is not installed (package acpica-tools)");
            assert!(
                !std::env::var("KTSTR_REQUIRE").is_ok_and(|v| v.contains("iasl")),
                "KTSTR_REQUIRE asks for iasl"
            );
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for table in walk(&block(TWO_NODES, 4 << 30)) {
            let path = dir.path().join(format!("{}.dat", String::from_utf8_lossy(&table[..4])));
            std::fs::write(&path, &table).unwrap();
            let out = std::process::Command::new("iasl").arg("-d").arg(&path).output().unwrap();
            let text =
                format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            assert!(out.status.success(), "{text}");
            for bad in ["Error", "Invalid", "Warning", "incorrect checksum"] {
                assert!(!text.contains(bad), "{text}");
            }
            let source = std::fs::read_to_string(path.with_extension("dsl")).unwrap();
            assert!(!source.contains("Error") && !source.contains("Invalid"), "{source}");
            if &table[..4] == b"DSDT" {
                let out =
                    std::process::Command::new("iasl").arg(path.with_extension("dsl")).output().unwrap();
                let text = String::from_utf8_lossy(&out.stdout).into_owned();
                assert!(text.contains("0 Errors, 0 Warnings"), "{text}");
            }
        }
    }
}

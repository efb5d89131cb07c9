//! The ACPI tables: who the CPUs are (MADT), what the machine can do (FADT), which devices there are
//! (DSDT), and, with several nodes, what is near to what (SRAT, SLIT, HMAT).
//!
//! The machine is hardware-reduced: no PIC, no PIT, no RTC, no PM timer. That spares the guest
//! seconds of probing, and power-off and reset are one byte written to a port each. Next: `affinity`
//! has the tables about CPUs and nodes, `layout` says where all lie, `devices::power` listens on the
//! ports.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};

use super::{affinity, layout};
use crate::apic::ApicIds;
use crate::kvm::devices::power;
use crate::machine::{Numa, RamRegion, Topology};
use crate::nodes::Node;

const OEM: [u8; 6] = *b"KTSTR ";
const OEM_TABLE: [u8; 8] = *b"KTSTRVMM";
/// Sleep type written to the sleep control register to power off.
const S5: u8 = 5;
/// FADT boot flags: no VGA, no MSI restrictions left unset, no CMOS clock.
const NO_VGA_NO_RTC: u16 = 1 << 2 | 1 << 5;

/// What the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct Description<'a> {
    /// The machine's shape.
    pub topology: Topology,
    /// Distances and access figures.
    pub numa: &'a Numa,
    /// Its nodes.
    pub nodes: &'a [Node],
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
    xsdt.add_entry(place(&affinity::madt(description)));
    if description.nodes.len() > 1 {
        xsdt.add_entry(place(&affinity::srat(description)));
        xsdt.add_entry(place(&affinity::slit(description)));
        xsdt.add_entry(place(&affinity::hmat(description)));
    }
    let xsdt = place(&xsdt);

    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    block[..rsdp.len()].copy_from_slice(&rsdp);
    let (len, room) = (block.len() as u64, layout::ACPI_END - base);
    if len > room { Err(TablesTooLarge { len, room }) } else { Ok(block) }
}

/// A table of a format revision. The body comes whole: the sum is taken over everything at each addition.
pub(super) fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(signature, 36, revision, OEM, OEM_TABLE, 1);
    table.append_slice(body);
    table
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

    table(*b"DSDT", 6, &body)
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
mod read_back;

#[cfg(test)]
mod tests {
    use ktstr_proto::topology::{PRESETS, Shape};

    use super::*;
    use crate::nodes;

    fn block(shape: &str, memory: u64) -> Vec<u8> {
        block_with(shape, 0, memory)
    }

    pub(super) fn block_with(shape: &str, absent_llcs: u32, memory: u64) -> Vec<u8> {
        let Shape { topology, numa } = shape.parse().unwrap();
        let ids = ApicIds::new(topology).unwrap().with_absent(absent_llcs).unwrap();
        let ram = layout::ram_regions(memory).unwrap();
        let nodes = &nodes::divide(&topology, &numa, memory).unwrap();
        tables(&Description { topology, numa: &numa, nodes, ids: &ids, ram: &ram, virtio: 2 }).unwrap()
    }

    pub(super) const THREE_NODES: &str = "2n4l3c2t/cxl=512/dist=10,21,30:21,10,40:30,40,10";

    pub(super) fn u32_at(block: &[u8], at: usize) -> usize {
        u32::from_le_bytes(block[at..at + 4].try_into().unwrap()) as usize
    }

    pub(super) fn u64_at(block: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(block[at..at + 8].try_into().unwrap())
    }

    /// Walks from the RSDP, as a kernel does, and returns every table.
    pub(super) fn walk(block: &[u8]) -> Vec<Vec<u8>> {
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
        let names = |shape| -> Vec<_> {
            walk(&block(shape, 4 << 30)).iter().map(|t| String::from_utf8(t[..4].to_vec()).unwrap()).collect()
        };
        assert_eq!(names(THREE_NODES), ["FACP", "APIC", "SRAT", "SLIT", "HMAT", "DSDT"]);
        assert_eq!(names("1n1l255c1t"), ["FACP", "APIC", "DSDT"]);
        assert_eq!(names("64n64l4c2t"), ["FACP", "APIC", "SRAT", "SLIT", "HMAT", "DSDT"]);
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
        let mut shapes: Vec<_> = PRESETS.iter().map(|preset| preset.name).collect();
        shapes.extend([THREE_NODES, "64n64l4c2t"]);
        for shape in shapes {
            println!("{shape}");
            compile(&walk(&block(shape, 4 << 30)));
        }
    }

    /// Takes tables apart and, where that gives a program, translates it back.
    fn compile(tables: &[Vec<u8>]) {
        let dir = tempfile::tempdir().unwrap();
        for table in tables {
            let path = dir.path().join(format!("{}.dat", String::from_utf8_lossy(&table[..4])));
            std::fs::write(&path, table).unwrap();
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

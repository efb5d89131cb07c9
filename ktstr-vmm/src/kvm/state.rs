//! A whole machine that stands, without its RAM: vCPUs, interrupt controllers, clock, serial ports.
//!
//! The bytes begin with a magic and a version of their own, so that a snapshot of another accelerator or of
//! another build is refused before it is decoded. Machines with a console, disks or networks are refused:
//! what people and other processes hold of those is in no snapshot. There is no timer chip to be saved, as
//! this machine has none. Next: `x86_64::state` is one vCPU.

use std::sync::Mutex;

use ktstr_proto::codec::{self, CodecError};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::control::CollectError;
use super::devices::ioapic::{Ioapic, Registers};
use super::devices::serial::PortState;
use super::devices::{Devices, lock};
use super::vcpu::Vcpu;
use super::x86_64::state::{StateError, VcpuState};

const MAGIC: [u8; 4] = *b"KVMS";
/// KVM's interrupt controllers.
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
/// Version of the layout behind it.
pub const VERSION: u32 = 1;

/// Why a machine has no state that can be kept or used.
#[derive(Debug, thiserror::Error)]
pub enum MachineStateError {
    /// Something of the machine is elsewhere.
    #[error("keep a machine with {what}: {why}")]
    Elsewhere {
        /// What it has.
        what: &'static str,
        /// Why that is a reason.
        why: &'static str,
    },
    /// The vCPUs.
    #[error("read the state of the vCPUs")]
    Collect(#[from] CollectError),
    /// KVM refuses.
    #[error("{action}")]
    Kvm {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: vmm_sys_util::errno::Error,
    },
    /// A vCPU.
    #[error("restore vCPU {cpu}")]
    Vcpu {
        /// Which.
        cpu: u32,
        /// Why.
        #[source]
        source: StateError,
    },
    /// The encoding.
    #[error("encode or decode the machine's state")]
    Codec(#[from] CodecError),
    /// It begins otherwise.
    #[error("the snapshot's devices are of another kind or version than this machine's")]
    Foreign,
    /// It is another machine.
    #[error("the snapshot is of a machine with {found} {what}, this one has {wanted}")]
    Shape {
        /// Of what.
        what: &'static str,
        /// How many it has.
        found: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// A serial port.
    #[error("restore a serial port: {detail}")]
    Port {
        /// Why not.
        detail: String,
    },
}

impl MachineStateError {
    /// Whether the state itself is to blame. CPUs with other features are not: on hosts whose CPUs are not all
    /// alike, it depends on the one that asks, and the next may fit again.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::Vcpu { source: StateError::Features, .. })
    }
}

fn kvm(action: &'static str) -> impl FnOnce(vmm_sys_util::errno::Error) -> MachineStateError {
    move |source| MachineStateError::Kvm { action, source }
}

/// A machine that stands.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    vcpus: Vec<VcpuState>,
    /// KVM's own, where it has them.
    chips: Vec<kvm_irqchip>,
    /// Ours, where KVM has none.
    ioapic: Option<Registers>,
    clock: kvm_clock_data,
    ports: [PortState; 2],
}

impl MachineState {
    /// Of a machine whose vCPUs stand and have told what they are.
    pub fn save(
        vm: &VmFd,
        devices: &Devices,
        vcpus: Vec<VcpuState>,
    ) -> Result<MachineState, MachineStateError> {
        devices.catch_up();
        let ioapic = devices.ioapic.as_ref().map(|(ioapic, _)| lock(ioapic).registers());
        let ids: &[u32] = if ioapic.is_some() { &[] } else { &CHIPS };
        let mut chips = Vec::new();
        for chip_id in ids {
            let mut chip = kvm_irqchip { chip_id: *chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map_err(kvm("read an interrupt controller"))?;
            chips.push(chip);
        }
        let clock = vm.get_clock().map_err(kvm("read KVM's clock"))?;
        let ports = [lock(&devices.com1).state(), lock(&devices.com2).state()];
        Ok(MachineState { vcpus, chips, ioapic, clock, ports })
    }

    /// Refuses machines of which a part is elsewhere.
    pub fn check(devices: &Devices) -> Result<(), MachineStateError> {
        if devices.virtio.is_empty() {
            return Ok(());
        }
        let why = "what people and other processes hold of it is in no snapshot";
        Err(MachineStateError::Elsewhere { what: "a console, disks or networks", why })
    }

    /// Its bytes.
    pub fn encode(&self) -> Result<Vec<u8>, MachineStateError> {
        let mut bytes = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
        bytes.extend(codec::encode(self)?);
        Ok(bytes)
    }

    /// From such bytes.
    pub fn decode(bytes: &[u8]) -> Result<MachineState, MachineStateError> {
        let body = bytes.strip_prefix(&MAGIC).and_then(|rest| rest.strip_prefix(&VERSION.to_le_bytes()));
        Ok(codec::decode(body.ok_or(MachineStateError::Foreign)?)?)
    }

    /// The registers of this process' own I/O APIC, if the machine has one.
    #[must_use]
    pub fn ioapic(&self) -> Option<Ioapic> {
        self.ioapic.as_ref().map(Ioapic::from_registers)
    }

    /// The serial ports' registers, in order.
    #[must_use]
    pub fn ports(&self) -> &[PortState; 2] {
        &self.ports
    }

    /// Makes fresh vCPUs and KVM's parts of the machine what they were. The vCPUs come first: what the
    /// controllers still have to deliver goes to their local APICs.
    pub fn restore(
        &self,
        vm: &VmFd,
        vcpus: &[Vcpu],
        ioapic: Option<&Mutex<Ioapic>>,
    ) -> Result<(), MachineStateError> {
        let shape = |what, found, wanted| MachineStateError::Shape { what, found, wanted };
        let (Some((first, state)), true) =
            (vcpus.first().zip(self.vcpus.first()), vcpus.len() == self.vcpus.len())
        else {
            return Err(shape("vCPUs", self.vcpus.len(), vcpus.len()));
        };
        let own = usize::from(ioapic.is_some());
        if usize::from(self.ioapic.is_some()) != own {
            return Err(shape(
                "interrupt controllers of this process",
                usize::from(self.ioapic.is_some()),
                own,
            ));
        }
        let failed = |vcpu: &Vcpu| {
            let cpu = vcpu.number();
            move |source| MachineStateError::Vcpu { cpu, source }
        };
        let base = first.tsc_base(state).map_err(failed(first))?;
        for (vcpu, state) in vcpus.iter().zip(&self.vcpus) {
            vcpu.restore(state, base).map_err(failed(vcpu))?;
        }
        let chips = if ioapic.is_some() { 0 } else { CHIPS.len() };
        if self.chips.len() != chips {
            return Err(shape("interrupt controllers of KVM", self.chips.len(), chips));
        }
        for chip in &self.chips {
            vm.set_irqchip(chip).map_err(kvm("set an interrupt controller"))?;
        }
        if let Some(routing) = ioapic.and_then(|ioapic| lock(ioapic).routing()) {
            vm.set_gsi_routing(&routing).map_err(kvm("route the interrupt lines"))?;
        }
        // As it was, and not as it would be by now.
        let clock = kvm_clock_data { clock: self.clock.clock, ..Default::default() };
        vm.set_clock(&clock).map_err(kvm("set KVM's clock"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::x86_64::state::tests::planted;
    use super::*;

    fn machine() -> MachineState {
        let chip = |chip_id| kvm_irqchip { chip_id, ..Default::default() };
        MachineState {
            vcpus: (0..3).map(planted).collect(),
            chips: (0..3).map(chip).collect(),
            ioapic: Some(Ioapic::default().registers()),
            clock: kvm_clock_data { clock: 42, ..Default::default() },
            ports: Default::default(),
        }
    }

    #[test]
    fn a_machine_survives_its_bytes() {
        let bytes = machine().encode().unwrap();
        let read = MachineState::decode(&bytes).unwrap();
        assert_eq!(read.encode().unwrap(), bytes);
        assert_eq!((read.clock.clock, read.vcpus.len(), read.chips[2].chip_id), (42, 3, 2));
        assert_eq!(format!("{:?}", read.vcpus), format!("{:?}", machine().vcpus));
    }

    #[test]
    fn other_kinds_versions_and_lengths_are_refused() {
        let bytes = machine().encode().unwrap();
        for at in 0..8 {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert!(matches!(MachineState::decode(&other), Err(MachineStateError::Foreign)), "byte {at}");
        }
        for len in 0..bytes.len().min(3000) {
            assert!(MachineState::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
        assert!(MachineState::decode(&bytes[..bytes.len() - 1]).is_err());
        assert!(MachineState::decode(&[&bytes[..], b"x"].concat()).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_decode_or_fail_without_panic(body: Vec<u8>) {
            let _ = MachineState::decode(&[&MAGIC[..], &VERSION.to_le_bytes(), &body].concat());
        }
    }
}

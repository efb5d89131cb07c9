//! What a vCPU is beside the memory it sees: read from KVM while it stands, and given to another one.
//!
//! The orders in which parts are read and written matter (Documentation/virt/kvm/api.rst): asking for the
//! MP state delivers what waits in the local APIC, the APIC takes its base from the system registers, its
//! timer from the counter, and pending events come last. The counter goes on where it stood, the same
//! distance between CPUs, however long ago that was. A vCPU whose CPUID differs is refused: whoever was
//! told of a feature uses it. Next: `crate::kvm::state` is the rest of a machine.

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_device_attr,
    kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

/// IA32_TIME_STAMP_COUNTER.
const TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE.
const TSC_DEADLINE: u32 = 0x6e0;
/// Memory types: those of ranges and of fixed places, and the default (SDM volume 4, table 2-2).
const MTRRS: [std::ops::RangeInclusive<u32>; 6] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x277..=0x277, 0x2ff..=0x2ff];
/// MSRs per call; KVM takes up to 256.
const AT_ONCE: usize = 128;
/// Base of KVM's requests.
const KVMIO: u8 = 0xae;

nix::ioctl_write_ptr!(
    /// KVM_SET_DEVICE_ATTR of a vCPU.
    set_device_attr, KVMIO, 0xe1, kvm_device_attr
);
nix::ioctl_write_ptr!(
    /// KVM_GET_DEVICE_ATTR of a vCPU; the kernel's definition has this direction, too.
    get_device_attr, KVMIO, 0xe2, kvm_device_attr
);

/// Why the state of a vCPU is not had or not taken.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// KVM refuses.
    #[error("{action}")]
    Kvm {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// KVM does not take the value that it once gave.
    #[error("KVM does not set MSR {index:#x} to {value:#x}")]
    Msr {
        /// Which.
        index: u32,
        /// To what.
        value: u64,
    },
    /// Features differ.
    #[error("the snapshot's CPUs have other features than this host's KVM gives now")]
    Features,
    /// An access to a device never came to its end.
    #[error("complete what the vCPU does at a device")]
    Unfinished,
}

fn failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> StateError {
    move |source| StateError::Kvm { action, source: source.into() }
}

/// A vCPU that stands.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debugregs: kvm_debugregs,
    lapic: kvm_lapic_state,
    /// All but the next two.
    msrs: Vec<kvm_msr_entry>,
    tsc: u64,
    tsc_deadline: u64,
    /// What KVM adds to the host's counter, where it says so.
    tsc_offset: Option<u64>,
    events: kvm_vcpu_events,
}

/// Where the counters of a machine go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TscBase {
    /// This is added to what was added to the host's counter.
    Shift(u64),
    /// With this value, on every CPU.
    Value(u64),
}

impl TscBase {
    /// The counter of this vCPU, which has not run, is to go on where it was.
    pub fn of(fd: &VcpuFd, state: &VcpuState) -> Result<TscBase, StateError> {
        let (Some(now), Some(was)) = (tsc_offset(fd), state.tsc_offset) else {
            return Ok(Self::Value(state.tsc));
        };
        let counter = read_msr(fd, TSC)?.unwrap_or(0);
        let offset = now.wrapping_add(state.tsc).wrapping_sub(counter);
        Ok(Self::Shift(offset.wrapping_sub(was)))
    }
}

impl VcpuState {
    /// Reads it. `cpuid` is what the vCPU was created with, `msrs` what KVM lists for saving.
    pub fn save(fd: &VcpuFd, cpuid: &[kvm_cpuid_entry2], msrs: &[u32]) -> Result<VcpuState, StateError> {
        let mp_state = fd.get_mp_state().map_err(failed("read whether the vCPU waits"))?;
        let regs = fd.get_regs().map_err(failed("read the registers"))?;
        let sregs = fd.get_sregs().map_err(failed("read the system registers"))?;
        let xsave = fd.get_xsave().map_err(failed("read the extended registers"))?;
        let xcrs = fd.get_xcrs().map_err(failed("read the extended control registers"))?;
        let debugregs = fd.get_debug_regs().map_err(failed("read the debug registers"))?;
        let lapic = fd.get_lapic().map_err(failed("read the local APIC"))?;
        let tsc_offset = tsc_offset(fd);
        let tsc = read_msr(fd, TSC)?.unwrap_or(0);
        let tsc_deadline = read_msr(fd, TSC_DEADLINE)?.unwrap_or(0);
        let msrs = read_msrs(fd, &list(msrs))?;
        let events = fd.get_vcpu_events().map_err(failed("read the pending events"))?;
        let cpuid = cpuid.to_vec();
        Ok(VcpuState {
            cpuid,
            mp_state,
            regs,
            sregs,
            xsave,
            xcrs,
            debugregs,
            lapic,
            msrs,
            tsc,
            tsc_deadline,
            tsc_offset,
            events,
        })
    }

    /// Gives it to a vCPU that has not run and was created with this `cpuid`.
    pub fn restore(&self, fd: &VcpuFd, cpuid: &[kvm_cpuid_entry2], base: TscBase) -> Result<(), StateError> {
        if self.cpuid != cpuid {
            return Err(StateError::Features);
        }
        fd.set_sregs(&self.sregs).map_err(failed("set the system registers"))?;
        fd.set_regs(&self.regs).map_err(failed("set the registers"))?;
        fd.set_xcrs(&self.xcrs).map_err(failed("set the extended control registers"))?;
        // SAFETY: the structure has the 4096 bytes that KVM reads; larger states were never saved.
        unsafe { fd.set_xsave(&self.xsave) }.map_err(failed("set the extended registers"))?;
        fd.set_debug_regs(&self.debugregs).map_err(failed("set the debug registers"))?;
        match (base, self.tsc_offset) {
            (TscBase::Shift(by), Some(was)) => set_tsc_offset(fd, was.wrapping_add(by))?,
            (TscBase::Shift(_), None) => write_msr(fd, TSC, self.tsc)?,
            (TscBase::Value(value), _) => write_msr(fd, TSC, value)?,
        }
        fd.set_lapic(&self.lapic).map_err(failed("set the local APIC"))?;
        write_msrs(fd, &self.msrs)?;
        // One that is over is told as zero, whether or not its interrupt was seen. One too many does no harm.
        let deadline = if self.tsc_deadline == 0 { self.tsc } else { self.tsc_deadline };
        if self.has(TSC_DEADLINE_FEATURE) {
            write_msr(fd, TSC_DEADLINE, deadline)?;
        }
        fd.set_vcpu_events(&self.events).map_err(failed("set the pending events"))?;
        fd.set_mp_state(self.mp_state).map_err(failed("set whether the vCPU waits"))
    }

    /// Whether CPUID leaf 1 has this bit of ECX.
    fn has(&self, bit: u32) -> bool {
        self.cpuid.iter().any(|leaf| leaf.function == 1 && leaf.ecx & bit != 0)
    }
}

/// In ECX of CPUID leaf 1: the local APIC's timer may wait for a value of the counter.
const TSC_DEADLINE_FEATURE: u32 = 1 << 24;

/// What is saved of the MSRs that KVM lists, and the memory types, which it does not.
fn list(known: &[u32]) -> Vec<u32> {
    let mut list: Vec<u32> = known.iter().copied().chain(MTRRS.into_iter().flatten()).collect();
    list.sort_unstable();
    list.dedup();
    list.retain(|index| ![TSC, TSC_DEADLINE].contains(index));
    list
}

fn of(entries: &[kvm_msr_entry]) -> Result<Msrs, StateError> {
    Msrs::from_entries(entries)
        .map_err(|error| io::Error::other(format!("{error:?}")))
        .map_err(failed("build a list of MSRs"))
}

/// Those of the list that this vCPU has.
fn read_msrs(fd: &VcpuFd, list: &[u32]) -> Result<Vec<kvm_msr_entry>, StateError> {
    let mut rest: Vec<_> =
        list.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
    let mut read = Vec::new();
    while !rest.is_empty() {
        let asked = rest.len().min(AT_ONCE);
        let mut msrs = of(&rest[..asked])?;
        let count = fd.get_msrs(&mut msrs).map_err(failed("read the MSRs"))?.min(asked);
        read.extend_from_slice(&msrs.as_slice()[..count]);
        // It stops before one that is not there.
        rest.drain(..asked.min(count + 1));
    }
    Ok(read)
}

/// Sets them. One that cannot be set is an error unless it has the value already.
fn write_msrs(fd: &VcpuFd, msrs: &[kvm_msr_entry]) -> Result<(), StateError> {
    let mut rest = msrs;
    while !rest.is_empty() {
        let asked = rest.len().min(AT_ONCE);
        let count = fd.set_msrs(&of(&rest[..asked])?).map_err(failed("set the MSRs"))?.min(asked);
        rest = &rest[count..];
        if count < asked {
            let kvm_msr_entry { index, data, .. } = rest[0];
            if read_msr(fd, index)? != Some(data) {
                return Err(StateError::Msr { index, value: data });
            }
            rest = &rest[1..];
        }
    }
    Ok(())
}

fn read_msr(fd: &VcpuFd, index: u32) -> Result<Option<u64>, StateError> {
    Ok(read_msrs(fd, &[index])?.first().map(|entry| entry.data))
}

fn write_msr(fd: &VcpuFd, index: u32, data: u64) -> Result<(), StateError> {
    write_msrs(fd, &[kvm_msr_entry { index, data, ..Default::default() }])
}

/// What KVM adds to the host's counter; kernels before 5.16 do not tell.
fn tsc_offset(fd: &VcpuFd) -> Option<u64> {
    let mut offset = 0u64;
    let attribute = tsc_attribute(&raw mut offset);
    // SAFETY: the attribute names a word of this function's, to which the kernel writes its eight bytes.
    unsafe { get_device_attr(fd.as_raw_fd(), &raw const attribute) }.ok()?;
    Some(offset)
}

fn set_tsc_offset(fd: &VcpuFd, mut offset: u64) -> Result<(), StateError> {
    let attribute = tsc_attribute(&raw mut offset);
    // SAFETY: the attribute names a word of this function's, of which the kernel reads its eight bytes.
    unsafe { set_device_attr(fd.as_raw_fd(), &raw const attribute) }
        .map(drop)
        .map_err(failed("set the distance to the host's counter"))
}

fn tsc_attribute(word: *mut u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: word as u64,
        ..Default::default()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A vCPU of which no two parts look alike.
    pub(crate) fn planted(cpu: u64) -> VcpuState {
        let msrs = (0..300).map(|n| kvm_msr_entry {
            index: n,
            data: cpu << 32 | u64::from(n),
            ..Default::default()
        });
        VcpuState {
            cpuid: vec![kvm_cpuid_entry2 { function: 1, ecx: TSC_DEADLINE_FEATURE, ..Default::default() }],
            mp_state: kvm_mp_state { mp_state: 3 },
            regs: kvm_regs { rip: 0xffff_ffff_8100_0000 + cpu, ..Default::default() },
            sregs: kvm_sregs { cr3: 0x1000 + cpu, ..Default::default() },
            xsave: kvm_xsave { region: std::array::from_fn(|n| n as u32), ..Default::default() },
            xcrs: kvm_xcrs { nr_xcrs: 1, ..Default::default() },
            debugregs: kvm_debugregs { dr7: 0x400, ..Default::default() },
            lapic: kvm_lapic_state { regs: std::array::from_fn(|n| n as _) },
            msrs: msrs.collect(),
            tsc: 7 + cpu,
            tsc_deadline: 9,
            tsc_offset: Some(11),
            events: kvm_vcpu_events { sipi_vector: 5, ..Default::default() },
        }
    }

    #[test]
    fn the_list_has_each_msr_once_and_neither_counter_nor_deadline() {
        let list = list(&[TSC, 0xc000_0080, 0x277, TSC_DEADLINE, 0x174]);
        assert_eq!(list.iter().filter(|index| **index == 0x277).count(), 1);
        for index in [0x174, 0x200, 0x20f, 0x26f, 0x2ff, 0xc000_0080] {
            assert!(list.contains(&index), "{index:#x}");
        }
        assert!(!list.contains(&TSC) && !list.contains(&TSC_DEADLINE));
        assert!(list.is_sorted());
    }

    #[test]
    fn a_feature_is_found_in_its_leaf() {
        let mut state = planted(0);
        assert!(state.has(TSC_DEADLINE_FEATURE) && !state.has(1));
        state.cpuid[0].function = 2;
        assert!(!state.has(TSC_DEADLINE_FEATURE));
    }
}

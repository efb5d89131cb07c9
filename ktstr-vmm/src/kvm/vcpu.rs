//! One vCPU: its first state and the loop that runs it.
//!
//! Every way out of `KVM_RUN` is either served or ends the machine with a typed reason; none is
//! ignored silently. Next: `control` decides whether the loop goes on, `devices` serves the exits.

use std::sync::Arc;

use ktstr_proto::capture::WatchPoint;
use ktstr_proto::registers::{ControlRegisters, DescriptorTable, TripleFault, VcpuRegisters};
use kvm_bindings::{
    CpuId, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, Msrs, kvm_cpuid_entry2, kvm_dtable,
    kvm_msr_entry,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use super::control::{Control, ToldRegisters, Turn, Wanted};
use super::devices::{Devices, lock};
use super::kick::{RunPage, ThreadId};
use super::port_ring::PortRing;
use super::statistics::Source;
use super::x86_64::boot::{self, Entry};
use super::x86_64::state::{StateError, TscBase, VcpuState};
use super::x86_64::watch;
use crate::machine::Exit;

const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// In IA32_APIC_BASE: the local APIC is on, in x2APIC mode.
const X2APIC_ENABLED: u64 = 1 << 11 | 1 << 10;
/// MTRRs on, everything write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// An access to a device is served in fewer pieces (a page of string input, byte by byte).
const MOST_PIECES: u32 = 8192;

/// How a stay in the guest ended.
enum Stay {
    /// With an exit that was served.
    Served,
    /// With nothing to serve.
    Interrupted,
    /// With the machine.
    Ended(Exit),
}

/// Why a vCPU could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("{action} of vCPU {cpu}")]
pub struct VcpuError {
    action: &'static str,
    cpu: u32,
    #[source]
    source: std::io::Error,
}

fn failed<E: Into<std::io::Error>>(action: &'static str, cpu: u32) -> impl FnOnce(E) -> VcpuError {
    move |source| VcpuError { action, cpu, source: source.into() }
}

/// A vCPU that has not run yet.
#[derive(Debug)]
pub struct Vcpu {
    cpu: u32,
    fd: VcpuFd,
    page: Arc<RunPage>,
    /// What CPUID tells it.
    cpuid: Vec<kvm_cpuid_entry2>,
    /// The MSRs that make it up.
    msrs: Arc<[u32]>,
    /// What is watched, and as of which change.
    watched: (u64, Vec<WatchPoint>),
}

impl Vcpu {
    /// Creates the vCPU with this APIC id. The first CPU gets the boot entry, the others wait for the
    /// guest to start them. With `x2apic` the first CPU starts in that mode: a kernel that does not find
    /// it so leaves out every CPU that other modes cannot name.
    pub fn create(
        vm: &VmFd,
        cpu: u32,
        apic: u32,
        cpuid: &[kvm_cpuid_entry2],
        entry: Option<Entry>,
        x2apic: bool,
        msrs: Arc<[u32]>,
    ) -> Result<Self, VcpuError> {
        let fd = vm.create_vcpu(apic.into()).map_err(failed("create the KVM descriptor", cpu))?;
        let table = CpuId::from_entries(cpuid)
            .map_err(|e| std::io::Error::other(format!("{e:?}")))
            .map_err(failed("build the CPUID table", cpu))?;
        fd.set_cpuid2(&table).map_err(failed("set the CPUID table", cpu))?;
        let msr = kvm_msr_entry { index: MSR_MTRR_DEF_TYPE, data: MTRR_WRITE_BACK, ..Default::default() };
        let default = Msrs::from_entries(&[msr])
            .map_err(|e| std::io::Error::other(format!("{e:?}")))
            .map_err(failed("build the MSR list", cpu))?;
        fd.set_msrs(&default).map_err(failed("set the MTRR default", cpu))?;
        if let Some(entry) = entry {
            let mut sregs = fd.get_sregs().map_err(failed("read the system registers", cpu))?;
            boot::enter_protected_mode(&mut sregs);
            if x2apic {
                sregs.apic_base |= X2APIC_ENABLED;
            }
            fd.set_sregs(&sregs).map_err(failed("set the system registers", cpu))?;
            fd.set_regs(&boot::entry_regs(entry)).map_err(failed("set the registers", cpu))?;
        }
        let page = RunPage::map(borrow(&fd)).map_err(failed("map the run page", cpu))?;
        let (page, cpuid) = (Arc::new(page), cpuid.to_vec());
        Ok(Self { cpu, fd, page, cpuid, msrs, watched: (0, Vec::new()) })
    }

    /// How far the counters have to be moved for this vCPU's to go on where it was.
    pub fn tsc_base(&self, state: &VcpuState) -> Result<TscBase, StateError> {
        TscBase::of(&self.fd, state)
    }

    /// Makes it what it was. It has not run yet.
    pub fn restore(&self, state: &VcpuState, base: TscBase) -> Result<(), StateError> {
        state.restore(&self.fd, &self.cpuid, base)
    }

    /// Runs guest code until the machine stops. The thread's whole life.
    pub fn run(mut self, control: &Control, devices: &Devices) {
        let thread = match ThreadId::current() {
            Ok(thread) => thread,
            Err(error) => {
                let detail = format!("prepare the thread of vCPU {}: {error}", self.cpu);
                return control.finish(Exit::InternalError { detail });
            }
        };
        control.join(self.cpu, self.page.clone(), thread);
        loop {
            self.page.set_immediate_exit(false);
            let frozen = control.wanted() == Wanted::Pause;
            match control.turn(self.cpu, || self.registers()) {
                Turn::Run => {}
                Turn::Stop => return,
                Turn::Save => match self.save(control, devices) {
                    Ok(told) => {
                        control.tell(self.cpu, told);
                        continue;
                    }
                    Err(exit) => return control.finish(exit),
                },
            }
            if frozen {
                // Tells the guest's watchdogs that it was not its fault. Fails if it has no kvm-clock.
                let _ = self.fd.kvmclock_ctrl();
            }
            if let Some(exit) = self.take_watches(control) {
                return control.finish(exit);
            }
            if let Stay::Ended(exit) = self.step(control, devices) {
                control.stood(self.cpu, self.registers());
                return control.finish(exit);
            }
        }
    }

    /// What it is. What its last exit was about is completed by entering the kernel once more, which leaves
    /// again before any guest code runs (Documentation/virt/kvm/api.rst, KVM_RUN).
    fn save(
        &mut self,
        control: &Control,
        devices: &Devices,
    ) -> Result<Result<Box<VcpuState>, StateError>, Exit> {
        for _ in 0..MOST_PIECES {
            self.page.set_immediate_exit(true);
            match self.step(control, devices) {
                Stay::Served => {}
                Stay::Interrupted => {
                    return Ok(VcpuState::save(&self.fd, &self.cpuid, &self.msrs).map(Box::new));
                }
                Stay::Ended(exit) => return Err(exit),
            }
        }
        Ok(Err(StateError::Unfinished))
    }

    /// Takes over what is to be watched, if that has changed.
    fn take_watches(&mut self, control: &Control) -> Option<Exit> {
        let (seen, watched) = &mut self.watched;
        *watched = control.new_watches(seen)?;
        let set = self.fd.set_guest_debug(&watch::registers(watched));
        let detail = |e| format!("vCPU {}: set the debug registers: {e}", self.cpu);
        set.err().map(|e| Exit::InternalError { detail: detail(e) })
    }

    /// One stay in the guest.
    fn step(&mut self, control: &Control, devices: &Devices) -> Stay {
        let cpu = self.cpu;
        let internal =
            |detail: String| Stay::Ended(Exit::InternalError { detail: format!("vCPU {cpu}: {detail}") });
        let ended = self.fd.run();
        devices.catch_up();
        let exit = match ended {
            Ok(VcpuExit::IoIn(port, data)) => {
                devices.port_read(port, data);
                None
            }
            Ok(VcpuExit::IoOut(port, data)) => devices.port_write(port, data),
            Ok(VcpuExit::MmioRead(address, data)) => {
                devices.mmio_read(address, data);
                None
            }
            Ok(VcpuExit::MmioWrite(address, data)) => devices.mmio_write(address, data),
            // HLT is served in the kernel; the others mean "go on".
            Ok(VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_)) => None,
            Ok(VcpuExit::Debug(debug)) => {
                // What is no write was left over from places that are watched no more.
                if let Some(place) = watch::written(debug.dr6, &self.watched.1) {
                    control.written(place, cpu);
                }
                None
            }
            Ok(VcpuExit::Shutdown) => Some(Exit::TripleFault(Box::new(self.triple_fault()))),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Some(Exit::PowerOff),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => Some(Exit::Reset),
            Ok(VcpuExit::InternalError) => {
                let detail = self.describe_internal_error();
                return internal(detail);
            }
            Ok(VcpuExit::FailEntry(reason, host_cpu)) => {
                return internal(format!(
                    "the processor refused to enter the guest (reason {reason:#x} on host CPU {host_cpu})"
                ));
            }
            Ok(other) => {
                let detail = format!("exit that nobody asked for: {other:?}");
                return internal(detail);
            }
            // Interrupted by a kick; or a CPU that waits to be started was woken.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                return Stay::Interrupted;
            }
            Err(error) => return internal(format!("KVM_RUN failed: {error}; {}", self.position())),
        };
        exit.map_or(Stay::Served, Stay::Ended)
    }

    fn describe_internal_error(&mut self) -> String {
        // SAFETY: the exit reason says that this member of the union is the valid one.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        let what = match internal.suberror {
            1 => "KVM cannot emulate an instruction".to_owned(),
            2 => "simultaneous exceptions".to_owned(),
            3 => "a fault while an event was delivered".to_owned(),
            other => format!("KVM internal error {other}"),
        };
        let count = (internal.ndata as usize).min(internal.data.len());
        format!("{what}; {}; data {:x?}", self.position(), &internal.data[..count])
    }

    fn registers(&self) -> ToldRegisters {
        let (regs, sregs) = (self.fd.get_regs()?, self.fd.get_sregs()?);
        Ok(VcpuRegisters {
            rax: regs.rax,
            rbx: regs.rbx,
            rcx: regs.rcx,
            rdx: regs.rdx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            rbp: regs.rbp,
            rsp: regs.rsp,
            r8_to_r15: [regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15],
            rip: regs.rip,
            rflags: regs.rflags,
            cs: sregs.cs.selector,
            ss: sregs.ss.selector,
            ds: sregs.ds.selector,
            es: sregs.es.selector,
            fs: sregs.fs.selector,
            gs: sregs.gs.selector,
            fs_base: sregs.fs.base,
            gs_base: sregs.gs.base,
            cr3: sregs.cr3,
        })
    }

    /// Whoever announces the end adds the registers of all vCPUs.
    fn triple_fault(&self) -> TripleFault {
        let table = |of: kvm_dtable| DescriptorTable { base: of.base, limit: of.limit };
        let control = self.fd.get_sregs().ok().map(|sregs| ControlRegisters {
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr4: sregs.cr4,
            efer: sregs.efer,
            gdt: table(sregs.gdt),
            idt: table(sregs.idt),
        });
        TripleFault { cpu: self.cpu, control, registers: Err("not gathered".into()) }
    }

    fn position(&self) -> String {
        match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => format!(
                "rip {:#x} rsp {:#x} rflags {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
                regs.rip, regs.rsp, regs.rflags, sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer
            ),
            _ => "registers unreadable".to_owned(),
        }
    }

    /// The ring of collected port writes, which every vCPU shows.
    pub fn map_port_ring(&self) -> Result<PortRing, VcpuError> {
        PortRing::map(borrow(&self.fd)).map_err(failed("map the ring of port writes", self.cpu))
    }

    /// What KVM counts for it.
    #[must_use]
    pub fn statistics(&self) -> Option<Source> {
        Source::of(&self.fd)
    }

    /// The number of this vCPU.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.cpu
    }
}

fn borrow(fd: &VcpuFd) -> std::os::fd::BorrowedFd<'_> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor lives as long as `fd`, which the result borrows.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

/// What a vCPU thread leaves behind, however it ends: a panic is a typed exit too.
#[derive(Debug)]
pub struct Departure {
    /// Which vCPU.
    pub cpu: u32,
    /// Shared state.
    pub control: Arc<Control>,
    /// Flushed by the last one.
    pub devices: Arc<Devices>,
}

impl Drop for Departure {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let detail =
                format!("the thread of vCPU {} panicked; its message is on standard error", self.cpu);
            self.control.finish(Exit::InternalError { detail });
        }
        if self.control.leave(self.cpu) {
            self.devices.catch_up();
            lock(&self.devices.com1).flush_partial_line();
            lock(&self.devices.com2).flush_partial_line();
            self.control.announce_exit();
        }
    }
}

//! The smallest machine that can show whether guest code runs on the CPU: two megabytes of RAM,
//! identity-mapped, one vCPU in long mode, one loop.
//!
//! The loop's bytes are one piece of position-independent machine code that both the host and the
//! guest execute. It refuses nothing and decides nothing; `probe` judges what is measured here.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region, kvm_xcr, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::kvm::kick::{RunPage, ThreadId};

const RAM: usize = 2 << 20;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const CODE: u64 = 0x8000;
const STACK: u64 = 0x10000;
/// Where the guest leaves its result.
const RESULT_PORT: u16 = 0xf4;

// `probe_loop(turns: edi) -> eax`, once with VEX encoding and once without; ends with `ret`.
// `probe_guest` is the guest's start: calls the function in rax and hands the result to a port.
std::arch::global_asm!(
    ".pushsection .text",
    ".globl ktstr_probe_vex, ktstr_probe_sse, ktstr_probe_guest, ktstr_probe_end",
    "ktstr_probe_vex:",
    "vpxor %xmm0, %xmm0, %xmm0",
    "vpcmpeqd %xmm1, %xmm1, %xmm1",
    "vpxor %xmm3, %xmm3, %xmm3",
    "2: vpsubd %xmm1, %xmm0, %xmm0",
    "vpxor %xmm0, %xmm1, %xmm2",
    "vpaddd %xmm2, %xmm3, %xmm3",
    "dec %edi",
    "jnz 2b",
    "vpxor %xmm3, %xmm0, %xmm0",
    "vmovd %xmm0, %eax",
    "ret",
    "ktstr_probe_sse:",
    "pxor %xmm0, %xmm0",
    "pcmpeqd %xmm1, %xmm1",
    "pxor %xmm3, %xmm3",
    "2: psubd %xmm1, %xmm0",
    "movdqa %xmm0, %xmm2",
    "pxor %xmm1, %xmm2",
    "paddd %xmm2, %xmm3",
    "dec %edi",
    "jnz 2b",
    "pxor %xmm3, %xmm0",
    "movd %xmm0, %eax",
    "ret",
    "ktstr_probe_guest:",
    "call *%rax",
    "outl %eax, $0xf4",
    "2: hlt",
    "jmp 2b",
    "ktstr_probe_end:",
    ".popsection",
    options(att_syntax)
);

unsafe extern "C" {
    fn ktstr_probe_vex(turns: u32) -> u32;
    fn ktstr_probe_sse(turns: u32) -> u32;
    static ktstr_probe_guest: u8;
    static ktstr_probe_end: u8;
}

/// Why the guest could not be built or started.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// An ioctl on KVM failed.
    #[error("KVM cannot {action}")]
    Kvm {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: vmm_sys_util::errno::Error,
    },
    /// The host refused something.
    #[error("the probe cannot {action}: {detail}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// Why not.
        detail: String,
    },
}

fn kvm(action: &'static str) -> impl FnOnce(vmm_sys_util::errno::Error) -> GuestError {
    move |source| GuestError::Kvm { action, source }
}

fn host<E: std::fmt::Display>(action: &'static str) -> impl FnOnce(E) -> GuestError {
    move |error| GuestError::Host { action, detail: error.to_string() }
}

/// How one run of the loop ended.
#[derive(Debug)]
pub enum Attempt {
    /// It came to its end.
    Finished {
        /// What it computed.
        result: u32,
        /// Time from entry to exit.
        took: Duration,
    },
    /// The deadline passed first.
    TimedOut,
    /// KVM gave up.
    Failed {
        /// What it said.
        detail: String,
    },
}

/// Runs the loop on the host CPU: shortest of three times, and the result.
pub fn on_host(turns: u64, vex: bool) -> (Duration, u32) {
    let mut best = Duration::MAX;
    let mut result = 0;
    for _ in 0..3 {
        let start = Instant::now();
        // SAFETY: plain arithmetic on caller-saved registers; `vex` is set only if the CPU has AVX.
        result = unsafe { if vex { ktstr_probe_vex(turns as u32) } else { ktstr_probe_sse(turns as u32) } };
        best = best.min(start.elapsed());
    }
    (best, result)
}

/// The machine. The memory must outlive the vCPU, so it comes last.
#[derive(Debug)]
pub struct Guest {
    vcpu: VcpuFd,
    page: RunPage,
    _vm: VmFd,
    vex: bool,
    _memory: GuestMemoryMmap,
}

impl Guest {
    /// Whether the loop uses VEX encoding (the CPU has AVX and KVM offers it).
    pub fn vex(&self) -> bool {
        self.vex
    }

    /// Builds the machine up to, but not including, its first instruction.
    pub fn build(fd: OwnedFd) -> Result<Self, GuestError> {
        // SAFETY: the descriptor is owned and given away here; if it is no KVM, ioctls fail.
        let kvm_fd = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
        let found = kvm_fd.get_api_version();
        if found != 12 {
            let detail = format!("API version {found} instead of 12");
            return Err(GuestError::Host { action: "talk to /dev/kvm", detail });
        }
        let vm = kvm_fd.create_vm().map_err(kvm("create a VM"))?;
        vm.set_tss_address(0xfffb_d000).map_err(kvm("place its task state segment"))?;
        let memory = memory()?;
        let pointer = memory.get_host_address(GuestAddress(0)).map_err(host("find guest memory"))?;
        let region = kvm_userspace_memory_region {
            memory_size: RAM as u64,
            userspace_addr: pointer as u64,
            ..Default::default()
        };
        // SAFETY: the mapping has this length and lives as long as the vCPU.
        unsafe { vm.set_user_memory_region(region) }.map_err(kvm("give memory to a VM"))?;
        let vcpu = vm.create_vcpu(0).map_err(kvm("create a vCPU"))?;
        let cpuid = kvm_fd.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm("list its CPUID table"))?;
        vcpu.set_cpuid2(&cpuid).map_err(kvm("set a CPUID table"))?;
        let vex = has_avx(&cpuid) && std::arch::is_x86_feature_detected!("avx");
        enter_long_mode(&vcpu, vex)?;
        // SAFETY: the descriptor is open as long as `vcpu`.
        let page = RunPage::map(unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) })
            .map_err(host("map a run page"))?;
        Ok(Self { vcpu, page, _vm: vm, vex, _memory: memory })
    }

    /// Runs the loop once; after `deadline` it is interrupted.
    pub fn attempt(&mut self, turns: u64, deadline: Duration) -> Result<Attempt, GuestError> {
        let function = if self.vex { ktstr_probe_vex as *const () } else { ktstr_probe_sse as *const () };
        let regs = kvm_regs {
            rax: guest_address(function as usize),
            rdi: turns,
            rip: guest_address(&raw const ktstr_probe_guest as usize),
            rsp: STACK,
            rflags: 2,
            ..Default::default()
        };
        self.vcpu.set_regs(&regs).map_err(kvm("set registers"))?;
        self.page.set_immediate_exit(false);
        let thread = ThreadId::current().map_err(host("install its signal handler"))?;
        let (page, vcpu) = (&self.page, &mut self.vcpu);
        std::thread::scope(|scope| {
            let (done, waiting) = mpsc::channel::<()>();
            let watchdog =
                std::thread::Builder::new().name("probe-watchdog".into()).spawn_scoped(scope, move || {
                    if waiting.recv_timeout(deadline) == Err(mpsc::RecvTimeoutError::Timeout) {
                        page.set_immediate_exit(true);
                        thread.interrupt();
                    }
                });
            watchdog.map_err(host("start its watchdog"))?;
            let start = Instant::now();
            let ended = run(vcpu, start);
            drop(done);
            Ok(ended)
        })
    }
}

fn run(vcpu: &mut VcpuFd, start: Instant) -> Attempt {
    loop {
        return match vcpu.run() {
            Ok(VcpuExit::IoOut(RESULT_PORT, &[a, b, c, d])) => {
                Attempt::Finished { result: u32::from_le_bytes([a, b, c, d]), took: start.elapsed() }
            }
            Ok(VcpuExit::Intr) => continue,
            Ok(VcpuExit::InternalError) => {
                // SAFETY: the exit reason says that this member of the union is the valid one.
                let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
                let detail = if suberror == 1 {
                    "KVM emulates it in software and met an instruction it cannot emulate".to_owned()
                } else {
                    format!("KVM internal error {suberror}")
                };
                Attempt::Failed { detail }
            }
            Ok(other) => Attempt::Failed { detail: format!("unexpected exit {other:?}") },
            Err(error) if error.errno() == libc::EINTR => Attempt::TimedOut,
            Err(error) if error.errno() == libc::EAGAIN => continue,
            Err(error) => Attempt::Failed { detail: format!("KVM_RUN fails: {error}") },
        };
    }
}

/// Where a byte of the shared machine code lies in the guest.
fn guest_address(host: usize) -> u64 {
    CODE + (host - code_start()) as u64
}

fn code_start() -> usize {
    ktstr_probe_vex as *const () as usize
}

fn memory() -> Result<GuestMemoryMmap, GuestError> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).map_err(host("map guest memory"))?;
    let len = &raw const ktstr_probe_end as usize - code_start();
    // SAFETY: from the first to behind the last byte of the code above, which is never written.
    let code = unsafe { std::slice::from_raw_parts(ktstr_probe_vex as *const u8, len) };
    let write = |value: u64, at: u64| memory.write_obj(value, GuestAddress(at));
    // Present and writable; the last level is one 2 MiB page.
    write(PDPT | 3, PML4)
        .and_then(|()| write(PD | 3, PDPT))
        .and_then(|()| write(0x83, PD))
        .and_then(|()| memory.write_slice(code, GuestAddress(CODE)))
        .map_err(host("fill guest memory"))?;
    Ok(memory)
}

fn has_avx(cpuid: &CpuId) -> bool {
    // XSAVE and AVX.
    cpuid.as_slice().iter().any(|e| e.function == 1 && e.ecx & (1 << 26) != 0 && e.ecx & (1 << 28) != 0)
}

fn enter_long_mode(vcpu: &VcpuFd, vex: bool) -> Result<(), GuestError> {
    let mut sregs = vcpu.get_sregs().map_err(kvm("read system registers"))?;
    let data = kvm_segment {
        limit: 0xffff_ffff,
        selector: 0x10,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment { selector: 8, type_: 0xb, db: 0, l: 1, ..data };
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    sregs.tr = kvm_segment { selector: 0x18, type_: 0xb, s: 0, db: 0, g: 0, limit: 0x67, ..data };
    sregs.cr3 = PML4;
    // Protection, monitor coprocessor, extension type, paging.
    sregs.cr0 = 1 << 31 | 0b1_0011;
    // PAE, FXSR, unmasked SIMD exceptions; XSAVE for AVX.
    sregs.cr4 = 1 << 5 | 1 << 9 | 1 << 10 | u64::from(vex) << 18;
    // Long mode enabled and active.
    sregs.efer = 1 << 8 | 1 << 10;
    vcpu.set_sregs(&sregs).map_err(kvm("enter long mode"))?;
    if vex {
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        // x87, SSE, AVX state.
        xcrs.xcrs[0] = kvm_xcr { xcr: 0, reserved: 0, value: 7 };
        vcpu.set_xcrs(&xcrs).map_err(kvm("enable AVX (XCR0)"))?;
    }
    Ok(())
}

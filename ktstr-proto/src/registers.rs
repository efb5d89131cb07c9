//! Registers of vCPUs that stand.

use serde::{Deserialize, Serialize};

/// Those of all vCPUs, by number, or why there are none.
pub type Registers = Result<Vec<VcpuRegisters>, String>;

/// What one vCPU was about to do; names as in `struct user_regs_struct` of the kernel's
/// arch/x86/include/asm/user_64.h, and CR3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the processor's")]
pub struct VcpuRegisters {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    /// R8 to R15.
    pub r8_to_r15: [u64; 8],
    pub rip: u64,
    pub rflags: u64,
    pub cs: u16,
    pub ss: u16,
    pub ds: u16,
    pub es: u16,
    pub fs: u16,
    pub gs: u16,
    pub fs_base: u64,
    pub gs_base: u64,
    pub cr3: u64,
}

/// What rules how a CPU finds memory and handlers; names as in the SDM, volume 3, chapter 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the processor's")]
pub struct ControlRegisters {
    pub cr0: u64,
    pub cr2: u64,
    pub cr4: u64,
    pub efer: u64,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u16,
}

/// A vCPU found no handler for an exception, and none for the double fault that this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TripleFault {
    /// The vCPU.
    pub cpu: u32,
    /// Those of the vCPU, if they were had.
    pub control: Option<ControlRegisters>,
    /// Of all vCPUs, where each was when the machine ended for it.
    pub registers: Registers,
}

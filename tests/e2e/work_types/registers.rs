//! Which vector registers a worker uses, seen by stopping it: the multiplicand of `AluHot` stays in one
//! register of the width asked for.

use std::arch::x86_64::__cpuid_count;

use anyhow::{Result, ensure};
use nix::{
    libc,
    sys::{
        ptrace,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

/// Register set of the extended state, `include/uapi/linux/elf.h`.
const NT_X86_XSTATE: usize = 0x202;
/// Where the first 128 bits of vector register 4 lie in the state, Intel SDM volume 1, 10.5.1 and 13.4.
const XMM4: usize = 160 + 4 * 16;

/// Vector register 4, its first 128 bits and the next.
pub type Vector = ([u32; 4], [u32; 4]);

/// Looks at a running worker's vector register 4 once; the words after its first 256 bits are none where the CPU has
/// no wider ones.
pub fn vector4(tid: u32) -> Result<(Vector, [u32; 8])> {
    let pid = Pid::from_raw(tid as i32);
    ptrace::seize(pid, ptrace::Options::empty())?;
    ptrace::interrupt(pid)?;
    waitpid(pid, Some(WaitPidFlag::__WALL))?;
    let state = extended_state(pid);
    ptrace::detach(pid, None)?;
    let state = state?;
    let upper = __cpuid_count(0xd, 2).ebx as usize + 4 * 16;
    let word = |at: usize| -> u32 {
        let bytes = state.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        u32::from_le_bytes(bytes.unwrap_or_default())
    };
    let words = |at: usize| -> [u32; 4] { std::array::from_fn(|n| word(at + 4 * n)) };
    // Its upper 256 bits, component 6 of the state (13.5.6).
    let highest = __cpuid_count(0xd, 6);
    let beyond = |n: usize| if highest.eax == 0 { 0 } else { word(highest.ebx as usize + 4 * 32 + 4 * n) };
    Ok(((words(XMM4), words(upper)), std::array::from_fn(beyond)))
}

fn extended_state(pid: Pid) -> Result<Vec<u8>> {
    let mut state = vec![0u8; 16384];
    let mut vector = libc::iovec { iov_base: state.as_mut_ptr().cast(), iov_len: state.len() };
    // SAFETY: the kernel writes at most `iov_len` bytes to the buffer and the length to the structure.
    let done = unsafe {
        libc::ptrace(
            libc::PTRACE_GETREGSET,
            pid.as_raw(),
            NT_X86_XSTATE,
            (&raw mut vector).cast::<libc::c_void>(),
        )
    };
    ensure!(done == 0, "cannot read the extended state: {}", std::io::Error::last_os_error());
    state.truncate(vector.iov_len);
    Ok(state)
}

//! Getting a vCPU thread out of `KVM_RUN`, without the race of a signal that arrives just before it.
//!
//! The order is: note what is wanted, set `immediate_exit` in the vCPU's shared page, send the signal.
//! The vCPU clears `immediate_exit` first and looks at what is wanted afterwards, so it either sees
//! the wish or leaves `KVM_RUN` at once. Next: `control` is the state it looks at.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use vmm_sys_util::signal::{register_signal_handler, unblock_signal};

const PAGE: usize = 4096;

/// A second mapping of a vCPU's `kvm_run` page. `VcpuFd` holds the first; through this one the flag
/// can be set from any thread without touching what the vCPU thread has borrowed.
#[derive(Debug)]
pub struct RunPage {
    page: NonNull<libc::c_void>,
}

// SAFETY: the page is only accessed through an atomic, and stays mapped until the value is dropped.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// Maps the page of this vCPU.
    pub fn map(vcpu: impl AsFd) -> nix::Result<Self> {
        let len = NonZeroUsize::MIN.saturating_add(PAGE - 1);
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let page = unsafe {
            mmap(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, vcpu, 0)?
        };
        Ok(Self { page })
    }

    /// Makes the next (or current, once interrupted) `KVM_RUN` return at once, or not.
    pub fn set_immediate_exit(&self, on: bool) {
        let at = self.page.as_ptr().cast::<u8>().wrapping_add(std::mem::offset_of!(kvm_run, immediate_exit));
        // SAFETY: inside the mapped page, one byte, shared with the kernel which reads it once per run.
        unsafe { AtomicU8::from_ptr(at) }.store(on.into(), Ordering::SeqCst);
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: mapped in `map`, with this length, and no reference into it remains.
        let _ = unsafe { munmap(self.page, PAGE) };
    }
}

/// A thread that can be interrupted in a system call.
#[derive(Clone, Copy, Debug)]
pub struct ThreadId(libc::pid_t);

impl ThreadId {
    /// The calling thread, made receptive: handler installed, signal unblocked.
    pub fn current() -> io::Result<Self> {
        static HANDLER: Once = Once::new();
        let mut installed = Ok(());
        HANDLER.call_once(|| installed = register_signal_handler(signal(), ignore));
        installed.map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        unblock_signal(signal()).map_err(|e| io::Error::other(format!("unblock the kick signal: {e:?}")))?;
        // SAFETY: no arguments, cannot fail.
        Ok(Self(unsafe { libc::gettid() }))
    }

    /// Interrupts whatever system call the thread is in. The caller keeps the thread from ending
    /// meanwhile, or the id might belong to another thread of this process, which then sees EINTR.
    pub fn interrupt(self) {
        // SAFETY: plain system call; the handler does nothing.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.0, signal()) };
    }
}

fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Its only purpose is that system calls return EINTR.
extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

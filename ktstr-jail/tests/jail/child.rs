//! Forked children that enter a jail and report through their exit status.

use std::process::ExitStatus;

use ktstr_jail::{JailSpec, Role, enter};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The probe's value: 0, or an error number.
    Value(i32),
    /// The filter killed it.
    Killed,
    /// Anything else.
    Other(WaitStatus),
}

/// The jail could not be entered; the message is on standard error.
pub const NO_JAIL: i32 = 250;
/// The probe panicked.
pub const PANICKED: i32 = 251;

pub fn spec(role: Role) -> JailSpec {
    match role {
        Role::Vmm => JailSpec::vmm(),
        Role::Monitor => JailSpec::monitor(),
        Role::Device => JailSpec::device(),
        Role::Emulator => JailSpec::emulator(&[]),
        Role::EmulatorWithNetworks => JailSpec::emulator(&[]).with_networks(),
    }
}

/// Runs `body` in a jailed child and waits for it.
pub fn jailed(role: Role, body: fn() -> i32) -> Outcome {
    outcome(start(role, body))
}

/// Starts a jailed child.
pub fn start(role: Role, body: fn() -> i32) -> Pid {
    in_child(move || match enter(&spec(role)) {
        Ok(confined) if confined.role() == role => body(),
        Ok(_) => NO_JAIL,
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            eprintln!("{error}: {source:?}");
            NO_JAIL
        }
    })
}

/// Starts a child that ends with the value of `body`.
pub fn in_child(body: impl FnOnce() -> i32) -> Pid {
    // SAFETY: the child runs `body` and leaves by _exit; glibc's fork handlers keep its allocator
    // usable.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let value = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(PANICKED);
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(value) }
        }
    }
}

pub fn outcome(pid: Pid) -> Outcome {
    match waitpid(pid, None).expect("wait for the child") {
        WaitStatus::Exited(_, code) => Outcome::Value(code),
        WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGSYS, _) => Outcome::Killed,
        other => Outcome::Other(other),
    }
}

/// A system call's error number, 0 for success.
pub fn syscall(number: libc::c_long, args: [usize; 6]) -> i32 {
    // SAFETY: every caller passes arguments that are harmless should the call be allowed.
    let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4], args[5]) };
    if result < 0 { nix::errno::Errno::last_raw() } else { 0 }
}

/// How a program ended, with its standard error for the message.
pub fn assert_success(status: ExitStatus, stderr: &str) {
    assert!(status.success(), "{status}: {stderr}");
}

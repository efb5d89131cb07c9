//! Is there a hardware KVM that can run a stock kernel?
//!
//! Opening `/dev/kvm` and creating a VM proves nothing: there are hosts whose KVM emulates every guest
//! instruction in software until it meets one it does not know. So a small 64-bit guest runs a loop of
//! VEX-coded instructions, and both its result and its time are compared with the same loop run on the
//! host CPU. The comparison is a ratio, because under an emulated CPU (a KVM lab) everything is slow.
//!
//! It refuses to guess: whatever goes wrong is a reason, with what to do about it. `guest` is the
//! machine that is probed with.

mod guest;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use self::guest::{Attempt, GuestError};

/// What the probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// KVM runs guest code on the CPU.
    Usable {
        /// The figures, in one line.
        detail: String,
    },
    /// It does not, or there is none.
    Unusable {
        /// Why, and what to do, in one line.
        reason: String,
    },
}

impl Verdict {
    /// Whether the KVM backend can be chosen.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        matches!(self, Self::Usable { .. })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usable { detail } => write!(f, "hardware KVM is usable: {detail}"),
            Self::Unusable { reason } => write!(f, "hardware KVM is not usable: {reason}"),
        }
    }
}

/// Turns of the loop: about a millisecond on a CPU, tens of milliseconds on an emulated one.
const TURNS: u64 = 200_000;
/// Slower than the host CPU by this factor is not "on the CPU" any more. Software emulation is slower
/// by hundreds.
const WORST_RATIO: u32 = 20;
/// What entering and leaving the guest, and a host that is busy, may cost on top.
const SLACK: Duration = Duration::from_millis(120);
/// A busy host may delay one attempt; it does not delay all of them.
const ATTEMPTS: u32 = 3;

/// Probes `/dev/kvm`. Takes milliseconds where KVM works and well under a second where it does not.
#[must_use]
pub fn probe() -> Verdict {
    match open() {
        Ok(kvm) => probe_fd(kvm),
        Err(error) => Verdict::Unusable { reason: explain_open(&error) },
    }
}

fn open() -> io::Result<OwnedFd> {
    Ok(std::fs::File::options().read(true).write(true).open("/dev/kvm")?.into())
}

/// Probes an open `/dev/kvm`.
#[must_use]
pub fn probe_fd(kvm: OwnedFd) -> Verdict {
    match run(kvm) {
        Ok(detail) => Verdict::Usable { detail },
        Err(reason) => Verdict::Unusable { reason },
    }
}

fn explain_open(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "/dev/kvm does not exist; enable virtualisation in the firmware or the hypervisor \
             of this machine and load kvm-amd or kvm-intel"
            .into(),
        Some(libc::EACCES | libc::EPERM) => {
            "/dev/kvm may not be opened by this user; add the user to the group `kvm` (or grant the container the device)".into()
        }
        Some(libc::ENODEV | libc::ENXIO) => {
            "/dev/kvm exists but no KVM module serves it; load kvm-amd or kvm-intel".into()
        }
        Some(libc::EBUSY) => "/dev/kvm is held by another hypervisor; stop that one".into(),
        _ => format!("/dev/kvm cannot be opened: {error}"),
    }
}

fn run(kvm: OwnedFd) -> Result<String, String> {
    let mut guest = guest::Guest::build(kvm).map_err(|e| describe(&e))?;
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        let (native, expected) = guest::on_host(TURNS, guest.vex());
        let deadline = native * WORST_RATIO + SLACK;
        match guest.attempt(TURNS, deadline).map_err(|e| describe(&e))? {
            Attempt::Finished { result, took } if result == expected => {
                let ratio = took.as_secs_f64() / native.as_secs_f64().max(1e-9);
                return Ok(format!(
                    "{TURNS} turns of a {} loop took {:.2} ms in a guest, {ratio:.1} times as long as on the host",
                    if guest.vex() { "AVX" } else { "SSE" },
                    took.as_secs_f64() * 1e3,
                ));
            }
            Attempt::Finished { result, .. } => {
                return Err(format!(
                    "a guest loop computed {result:#x} instead of {expected:#x}{}",
                    module()
                ));
            }
            Attempt::TimedOut => {
                last = format!(
                    "a guest loop that takes {:.2} ms on the host CPU did not end within {} ms: guest code is not run by the CPU{}",
                    native.as_secs_f64() * 1e3,
                    deadline.as_millis(),
                    module()
                );
            }
            Attempt::Failed { detail } => {
                return Err(format!("guest code is not run by the CPU: {detail}{}", module()));
            }
        }
    }
    Err(last)
}

fn describe(error: &GuestError) -> String {
    let source = std::error::Error::source(error).map_or_else(String::new, |s| format!(": {s}"));
    format!("{error}{source}{}", module())
}

/// Names the KVM module where that can be seen: it tells the reader what kind of host this is.
fn module() -> String {
    let loaded = |name: &&&str| std::path::Path::new("/sys/module").join(name).exists();
    match ["kvm_pvm", "kvm_intel", "kvm_amd"].iter().find(loaded) {
        Some(name) => format!(" (module {name})"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_probe_decides() {
        let start = Instant::now();
        let verdict = probe();
        println!("{verdict} (after {:?})", start.elapsed());
        if !verdict.is_usable() {
            println!("NOT RUN: {verdict}");
            assert!(!std::env::var("KTSTR_REQUIRE").is_ok_and(|v| v.contains("kvm")), "{verdict}");
        }
    }

    #[test]
    fn each_way_of_having_no_kvm_has_its_own_advice() {
        let codes = [libc::ENOENT, libc::EACCES, libc::ENODEV, libc::EBUSY, libc::EMFILE];
        let said: std::collections::HashSet<_> =
            codes.iter().map(|code| explain_open(&io::Error::from_raw_os_error(*code))).collect();
        assert_eq!(said.len(), codes.len());
        assert!(said.iter().all(|s| s.contains("/dev/kvm") && !s.contains('\n')));
    }

    #[test]
    fn a_descriptor_that_is_no_kvm_is_unusable() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(probe_fd(null.into()), Verdict::Unusable { .. }));
    }
}

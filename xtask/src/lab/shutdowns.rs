//! Guests that shut down in a triple fault, as the lab's KVM saw it.
//!
//! KVM for AMD's processors puts such a vCPU back to its initial state before it tells anybody; only its tracepoint
//! `kvm:kvm_exit` (arch/x86/kvm/trace.h) has the address at which it stood.

use std::fs;
use std::io;

const TRACING: &str = "/sys/kernel/tracing";
/// `SVM_EXIT_SHUTDOWN` of arch/x86/include/uapi/asm/svm.h.
const SHUTDOWN: u32 = 0x7f;
/// More is not told at once.
const MOST: usize = 16;

/// In the environment of whoever boots the lab, and then in the lab's own: triple faults are to be noted.
pub const ASKED: &str = "KTSTR_LAB_SHUTDOWNS";

/// Has the kernel note them from now on, if that was asked for: each exit of a guest then costs more.
pub fn note() {
    if std::env::var_os(ASKED).is_none() {
        return;
    }
    let event = format!("{TRACING}/events/kvm/kvm_exit");
    let noted = fs::write(format!("{event}/filter"), format!("exit_reason == {SHUTDOWN}"))
        .and_then(|()| fs::write(format!("{event}/enable"), "1"));
    if let Err(err) = noted {
        println!("lab: triple faults of guests are not noted: {err}");
    }
}

/// Those noted since this was last asked, as lines to print; empty where there were none.
pub fn take() -> String {
    let path = format!("{TRACING}/trace");
    let Ok(trace) = fs::read_to_string(&path) else { return String::new() };
    let told = lines(&trace);
    if !told.is_empty()
        && let Err(err) = forget(&path)
    {
        println!("lab: the notes of triple faults stay: {err}");
    }
    told
}

/// Whoever opens it to truncate it empties it.
fn forget(path: &str) -> io::Result<()> {
    fs::File::create(path).map(drop)
}

fn lines(trace: &str) -> String {
    let noted = trace.lines().filter(|line| line.contains(" kvm_exit: "));
    noted
        .take(MOST)
        .map(|line| format!("lab: a guest shut down in a triple fault: {}\n", line.trim()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exits_are_told() {
        let trace =
            "# tracer: nop\n#\n  vcpu0-188 [001] d..1. 23.4: kvm_exit: vcpu 0 reason shutdown rip 0x12\n";
        assert!(lines(trace).ends_with("kvm_exit: vcpu 0 reason shutdown rip 0x12\n"));
        assert_eq!(lines("# tracer: nop\n#\n"), "");
    }
}

//! The kernel's command line, and what of it is not the caller's to say.

use std::fs;

use ktstr_proto::{
    AccelKind,
    ring::RingRegion,
    run::{Job, RunSpec},
};

use super::PlanError;
use crate::store::Kernel;

/// Nanoseconds of an instruction under `det`, as powers of two: what a seed may choose.
pub(super) const SHIFTS: [u8; 3] = [2, 1, 3];
/// The longest that PID 1 computes for a seed's sake, microseconds.
pub(super) const MOST_JITTER_US: u64 = 20_000;

/// How fast the CPUs are under `det`.
pub fn instruction_shift(spec: &RunSpec) -> u8 {
    if spec.vary { SHIFTS[(spec.seed % SHIFTS.len() as u64) as usize] } else { SHIFTS[0] }
}

/// All words but those of [`clock_words`].
pub(super) fn cmdline(spec: &RunSpec, accel: AccelKind, ring: RingRegion) -> Vec<String> {
    let verbose = matches!(&spec.job, Job::Shell(shell) if shell.dmesg);
    let mut words = vec![
        "console=ttyS0".to_owned(),
        "panic=-1".into(),
        "rdinit=/init".into(),
        "mitigations=off".into(),
        "random.trust_cpu=on".into(),
        format!("loglevel={}", if verbose { 7 } else { 5 }),
        format!("memmap={}K${:#x}", ring.len >> 10, ring.gpa),
    ];
    words.push("no_timer_check".into());
    if accel != AccelKind::Kvm {
        words.push("tsc=reliable".into());
    }
    words.extend(spec.kernel_args.iter().cloned());
    words
}

/// How fast the guest's counter runs, which is measured.
pub(super) fn clock_words(accel: AccelKind, hz: Option<u64>) -> Vec<String> {
    let emulated_tsc_khz = match accel {
        AccelKind::Kvm => None,
        AccelKind::Tcg => crate::tsc::host_khz(),
        // One instruction takes 2^2 ns, and the emulator's counter runs at 1 GHz of virtual time.
        AccelKind::Det => Some(1_000_000),
    };
    let mut words = Vec::new();
    if let Some(khz) = emulated_tsc_khz {
        words.push(format!("tsc_early_khz={khz}"));
        // Counter ticks per jiffy. Untold, the first CPU of every package but one measures its delay
        // loop anew, one after the other.
        words.extend(hz.map(|hz| format!("lpj={}", khz * 1000 / hz)));
    }
    words
}

/// Timer interrupts per second, as the kernel was configured.
pub(super) fn kernel_hz(kernel: &Kernel) -> Option<u64> {
    let config = fs::read_to_string(kernel.config()?).ok()?;
    config.lines().find_map(|line| line.strip_prefix("CONFIG_HZ=")?.parse().ok()).filter(|hz| *hz > 0)
}

/// What a guest is started with and reports through is not the caller's to change.
pub(super) fn check_kernel_arg(word: &str) -> Result<(), PlanError> {
    let name = word.split('=').next().unwrap_or_default();
    let reason = match name {
        "" => "it has no name",
        "rdinit" | "init" | "initrd" => "ktstr's own init has to start",
        "memmap" => "the channel's memory is reserved with it",
        _ if word.contains(|c: char| c.is_control() || c == ' ') => {
            "it contains white space; give each parameter as a word of its own"
        }
        _ => return Ok(()),
    };
    Err(PlanError::KernelArg { word: word.escape_default().to_string(), reason })
}

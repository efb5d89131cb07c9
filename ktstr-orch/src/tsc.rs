//! The host's time-stamp counter, for guests that see it through an emulator.
//!
//! QEMU without hardware passes the host's counter through. A guest that calibrates it against a timer
//! on a busy host may come out wrong by a large factor, and then every watchdog in it fires too early;
//! told the frequency (`tsc_early_khz`), it only refines it.

use std::time::{Duration, Instant};

/// How long is measured.
const WINDOW: Duration = Duration::from_millis(20);
/// A pair of readings that took longer was interrupted.
const TOGETHER: Duration = Duration::from_micros(2);

/// Frequency in kHz; `None` when the host has no such counter or never let us read it undisturbed.
pub fn host_khz() -> Option<u64> {
    let (at, ticks) = reading()?;
    std::thread::sleep(WINDOW);
    let (later, more) = reading()?;
    let micros = u64::try_from((later - at).as_micros()).ok()?;
    more.checked_sub(ticks)?.saturating_mul(1000).checked_div(micros).filter(|khz| *khz > 0)
}

/// Clock and counter read together.
fn reading() -> Option<(Instant, u64)> {
    (0..1000).find_map(|_| {
        let at = Instant::now();
        let ticks = counter()?;
        (at.elapsed() <= TOGETHER).then_some((at, ticks))
    })
}

#[cfg(target_arch = "x86_64")]
fn counter() -> Option<u64> {
    // SAFETY: every x86_64 CPU has the instruction, and Linux lets user space use it unless a process
    // forbids it to itself, which this one does not.
    Some(unsafe { core::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> Option<u64> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (one, two) = (host_khz().unwrap(), host_khz().unwrap());
        assert!(one.abs_diff(two) * 100 < one, "{one} and {two} kHz");
    }
}

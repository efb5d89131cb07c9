//! The processor's debug registers: how writes to up to four places are watched.
//!
//! Intel SDM volume 3, section 18.2 (debug registers), AMD APM volume 2, section 13.1. While anything is
//! watched they belong to the host; breakpoints that the guest sets in them do not fire.

use ktstr_proto::capture::WatchPoint;
use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug, kvm_guest_debug_arch};

/// Bit 10 of DR7 reads as one.
const DR7_FIXED: u64 = 1 << 10;
/// Break on writes.
const ON_WRITE: u64 = 0b01;

/// What KVM is to put into the registers; nothing for no place.
#[must_use]
pub fn registers(places: &[WatchPoint]) -> kvm_guest_debug {
    let mut arch = kvm_guest_debug_arch::default();
    if places.is_empty() {
        return kvm_guest_debug { control: 0, pad: 0, arch };
    }
    arch.debugreg[7] = DR7_FIXED;
    for (nth, place) in places.iter().enumerate().take(4) {
        let len = match place.len {
            1 => 0b00,
            2 => 0b01,
            4 => 0b11,
            _ => 0b10,
        };
        arch.debugreg[nth] = place.kva;
        // Its global enable bit, and its four bits of kind and length.
        arch.debugreg[7] |= 0b10 << (2 * nth) | (ON_WRITE | len << 2) << (16 + 4 * nth);
    }
    kvm_guest_debug { control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, pad: 0, arch }
}

/// Which of the places was written, by DR6 as it was at the exit.
#[must_use]
pub fn written(dr6: u64, places: &[WatchPoint]) -> Option<WatchPoint> {
    places.iter().enumerate().find(|(nth, _)| dr6 & 1 << nth != 0).map(|(_, place)| *place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_become_registers() {
        let place = |kva, len| WatchPoint { kva, len };
        let places = [place(0x1000, 4), place(0x2008, 8), place(0x3001, 1), place(0x4002, 2)];
        let set = registers(&places);
        assert_eq!(set.control, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP);
        assert_eq!(set.arch.debugreg[..4], [0x1000, 0x2008, 0x3001, 0x4002]);
        // Kinds and lengths from the fourth down, then all four enabled.
        assert_eq!(set.arch.debugreg[7], 0b0101_0001_1001_1101 << 16 | DR7_FIXED | 0b1010_1010);
        assert_eq!(written(0xffff_0ff4, &places), Some(places[2]));
        assert_eq!(written(0xffff_0ff0, &places), None);
        assert_eq!(written(0x8, &places[..1]), None);
        assert_eq!((registers(&[]).control, registers(&[]).arch.debugreg), (0, [0; 8]));
    }
}

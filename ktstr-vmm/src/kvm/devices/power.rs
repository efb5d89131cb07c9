//! Power-off and reset: the registers that the FADT names, and the keyboard controller's reset line
//! that kernels try when ACPI fails them.

use crate::machine::Exit;

/// ACPI sleep control register.
pub const SLEEP_CONTROL: u16 = 0x600;
/// ACPI sleep status register.
pub const SLEEP_STATUS: u16 = 0x601;
/// ACPI reset register.
pub const RESET: u16 = 0x602;
/// What is written to it.
pub const RESET_VALUE: u8 = 1;

const SLEEP_ENABLE: u8 = 1 << 5;
const I8042_COMMAND: u16 = 0x64;
const I8042_PULSE_RESET: u8 = 0xfe;

/// The guest reads one of these ports.
#[must_use]
pub fn read(port: u16) -> Option<u8> {
    // An idle keyboard controller; nothing pending in the sleep registers.
    matches!(port, SLEEP_CONTROL | SLEEP_STATUS | RESET | I8042_COMMAND).then_some(0)
}

/// The guest writes one of these ports.
#[must_use]
pub fn write(port: u16, value: u8) -> Option<Exit> {
    match (port, value) {
        // The DSDT offers S5 and nothing else, so the sleep type need not be looked at.
        (SLEEP_CONTROL, value) if value & SLEEP_ENABLE != 0 => Some(Exit::PowerOff),
        (RESET, RESET_VALUE) | (I8042_COMMAND, I8042_PULSE_RESET) => Some(Exit::Reset),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_documented_writes_end_the_machine() {
        assert_eq!(write(SLEEP_CONTROL, 5 << 2 | SLEEP_ENABLE), Some(Exit::PowerOff));
        assert_eq!(write(SLEEP_CONTROL, 5 << 2), None);
        assert_eq!(write(RESET, RESET_VALUE), Some(Exit::Reset));
        assert_eq!(write(I8042_COMMAND, 0xfe), Some(Exit::Reset));
        assert_eq!(write(I8042_COMMAND, 0xd1), None);
        assert_eq!(write(0x80, 0xff), None);
    }
}

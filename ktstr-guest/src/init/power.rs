//! The end of the machine. PID 1 never exits: the kernel would panic.

use nix::{
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, kill},
    },
    unistd::Pid,
};

/// Switches the machine off. Where the kernel did not announce that it can, it would stop for ever
/// instead; there a reset ends the virtual machine as well.
pub fn power_off(can_power_off: bool) -> ! {
    // Everybody but PID 1; nobody left is fine.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    nix::unistd::sync();
    if can_power_off {
        let _ = reboot(RebootMode::RB_POWER_OFF);
    }
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    loop {
        nix::unistd::pause();
    }
}

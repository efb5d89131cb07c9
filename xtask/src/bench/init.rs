//! The trivial init of the benchmark's baseline: prints a marker, powers off.
//!
//! A hand-made static ELF file, so that nothing but the kernel is measured and
//! no second compiler target is needed. x86-64 only, like the baseline.

use crate::lab::Archive;
use std::path::Path;

/// What a run must have printed to count.
pub const MARKER: &str = "bench-init: up";

const LOAD_ADDRESS: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// What it does when it has printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// `reboot(POWER_OFF)`, then `reboot(RESTART)` for a machine that has no power switch.
    PowerOff,
    /// `pause()`, again and again.
    Wait,
}

/// An initramfs with the init and the console it writes to.
pub fn initramfs(then: Then) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.console();
    archive.file(Path::new("/init"), &executable(then));
    archive.finish()
}

/// `write(1, marker)`, then what is to be done.
fn code(then: Then, message_address: u64, message_len: u32) -> Vec<u8> {
    const WRITE: u32 = 1;
    const PAUSE: u32 = 34;
    const REBOOT: u32 = 169;
    const POWER_OFF: u32 = 0x4321_fedc;
    const RESTART: u32 = 0x0123_4567;
    let mut code = Vec::new();
    let mut syscall = |number: u32, edi: u32, esi: u32, edx: u32| {
        for (opcode, value) in [(0xb8, number), (0xbf, edi), (0xbe, esi), (0xba, edx)] {
            code.push(opcode); // mov eax/edi/esi/edx, imm32
            code.extend_from_slice(&value.to_le_bytes());
        }
        code.extend_from_slice(&[0x0f, 0x05]); // syscall
    };
    syscall(WRITE, 1, message_address as u32, message_len);
    match then {
        Then::PowerOff => {
            for command in [POWER_OFF, RESTART] {
                syscall(REBOOT, 0xfee1_dead, 0x2812_1969, command);
            }
            code.extend_from_slice(&[0xeb, 0xfe]); // jump to itself
        }
        Then::Wait => {
            let before = code.len();
            let mut syscall = vec![0xb8]; // mov eax, imm32
            syscall.extend(PAUSE.to_le_bytes());
            syscall.extend([0x0f, 0x05]); // syscall
            code.extend(syscall);
            let back = before as i64 - (code.len() as i64 + 2);
            code.extend([0xeb, back as i8 as u8]); // jump back to it
        }
    }
    code
}

fn executable(then: Then) -> Vec<u8> {
    let message = format!("{MARKER}\n");
    let code_len = code(then, 0, 0).len() as u64;
    let code = code(then, LOAD_ADDRESS + HEADERS + code_len, message.len() as u32);
    let total = HEADERS + code_len + message.len() as u64;
    let mut file = Vec::new();
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2u16, 62] {
        file.extend_from_slice(&half.to_le_bytes()); // executable, x86-64
    }
    file.extend_from_slice(&1u32.to_le_bytes());
    for word in [LOAD_ADDRESS + HEADERS, 64, 0] {
        file.extend_from_slice(&word.to_le_bytes()); // entry, program headers, no sections
    }
    file.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    for word in [1u32, 5] {
        file.extend_from_slice(&word.to_le_bytes()); // load, read and execute
    }
    for word in [0, LOAD_ADDRESS, LOAD_ADDRESS, total, total, 4096] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&code);
    file.extend_from_slice(message.as_bytes());
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn headers_have_their_sizes() {
        for then in [Then::PowerOff, Then::Wait] {
            let file = executable(then);
            assert_eq!(u16::from_le_bytes([file[52], file[53]]), 64);
            assert_eq!(file.len() as u64, HEADERS + code(then, 0, 0).len() as u64 + MARKER.len() as u64 + 1);
        }
        assert_eq!(code(Then::Wait, 0, 0)[22..], [0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]);
    }

    /// Without the right to reboot it prints and then spins. A user namespace
    /// takes that right away from a superuser, too; where there is none, only
    /// the headers are tested.
    #[test]
    fn it_runs_and_prints() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("init");
        std::fs::write(&path, executable(Then::PowerOff)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let probe = Command::new("unshare").args(["-U", "true"]).status();
        if !probe.is_ok_and(|status| status.success()) {
            eprintln!("NOT RUN: no user namespaces here");
            return;
        }
        let output =
            Command::new("timeout").args(["-s", "KILL", "1", "unshare", "-U"]).arg(&path).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{MARKER}\n"));
        assert_ne!(output.status.signal(), Some(11));
    }
}

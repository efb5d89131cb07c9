//! Why the kernel ended the scheduler, and the exit code that says so.
//!
//! Decodes the record that the program's `exit` callback wrote. Knows nothing of BPF: bytes in,
//! words and a number out.

use std::fmt;
use std::process::ExitCode;

/// The values of the kernel's `enum scx_exit_kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// Our own detach.
    Unreg,
    /// `scx_bpf_exit()` in the program; this one never calls it.
    UnregBpf,
    /// The kernel's decision, CPU hotplug for one.
    UnregKern,
    /// Somebody pressed SysRq-S.
    Sysrq,
    /// A misuse that the kernel noticed.
    Error,
    /// `scx_bpf_error()` in the program.
    ErrorBpf,
    /// The watchdog found a task that waited too long.
    ErrorStall,
    /// A kind this version does not know.
    Other(u32),
}

impl ExitKind {
    /// `None` for `SCX_EXIT_NONE` and `SCX_EXIT_DONE`: it has not ended yet.
    pub fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            0 | 1 => return None,
            64 => Self::Unreg,
            65 => Self::UnregBpf,
            66 => Self::UnregKern,
            67 => Self::Sysrq,
            1024 => Self::Error,
            1025 => Self::ErrorBpf,
            1026 => Self::ErrorStall,
            other => Self::Other(other),
        })
    }

    /// The process's exit code, as `--help` lists them.
    pub fn code(self) -> u8 {
        match self {
            Self::Unreg => 0,
            Self::ErrorStall => code::STALL,
            Self::ErrorBpf => code::CRASH,
            Self::Error => code::KERNEL_ERROR,
            Self::Other(raw) if raw >= 1024 => code::KERNEL_ERROR,
            Self::UnregBpf | Self::UnregKern | Self::Sysrq | Self::Other(_) => code::UNREGISTERED,
        }
    }
}

impl fmt::Display for ExitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreg => f.write_str("unregistered"),
            Self::UnregBpf => f.write_str("unregistered-by-program"),
            Self::UnregKern => f.write_str("unregistered-by-kernel"),
            Self::Sysrq => f.write_str("sysrq"),
            Self::Error => f.write_str("error"),
            Self::ErrorBpf => f.write_str("crash"),
            Self::ErrorStall => f.write_str("stall"),
            Self::Other(raw) => write!(f, "kind-{raw}"),
        }
    }
}

/// The kernel's `SCX_ECODE_ACT_RESTART`: who is sent away is to start anew.
const ACT_RESTART: i64 = 1 << 48;

/// Exit codes beside 0 and clap's 2.
pub mod code {
    /// The program was not accepted.
    pub const LOAD: u8 = 10;
    /// The program was accepted but not made the scheduler.
    pub const ATTACH: u8 = 11;
    /// Ended by the watchdog.
    pub const STALL: u8 = 12;
    /// Ended by its own `scx_bpf_error()`.
    pub const CRASH: u8 = 13;
    /// Ended by the kernel for another error.
    pub const KERNEL_ERROR: u8 = 14;
    /// Unregistered, and not by us.
    pub const UNREGISTERED: u8 = 15;
}

/// The end of one run.
#[derive(Debug, PartialEq, Eq)]
pub struct ExitReport {
    kind: ExitKind,
    exit_code: i64,
    reason: String,
    msg: String,
    dump: String,
    crash_requested: bool,
}

impl ExitReport {
    /// Decodes the program's buffers, each zero-terminated or full. `crash_requested` is the
    /// program's global `crash`: where the kernel hides `scx_bpf_error()` from programs, the
    /// program crashes through an error that the kernel counts as its own.
    pub fn decode(
        kind: ExitKind,
        exit_code: i64,
        reason: &[u8],
        msg: &[u8],
        dump: &[u8],
        crash_requested: bool,
    ) -> Self {
        let [reason, msg, dump] = [reason, msg, dump].map(text);
        Self { kind, exit_code, reason, msg, dump, crash_requested }
    }

    /// What the process returns.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.raw_code())
    }

    /// Whether the kernel sent it away only for a while.
    pub fn asks_to_start_anew(&self) -> bool {
        self.kind == ExitKind::UnregKern && self.exit_code & ACT_RESTART != 0
    }

    fn raw_code(&self) -> u8 {
        match self.kind {
            ExitKind::Error if self.crash_requested => code::CRASH,
            kind => kind.code(),
        }
    }
}

impl fmt::Display for ExitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, exit_code, reason, msg, dump, .. } = self;
        write!(f, "scx-ktstr: exit kind={kind} code={exit_code} reason={reason:?} msg={msg:?}")?;
        if !dump.is_empty() {
            write!(f, "\nscx-ktstr: dump begin\n{}\nscx-ktstr: dump end", dump.trim_end())?;
        }
        Ok(())
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(raw: u32, crash_requested: bool) -> ExitReport {
        let kind = ExitKind::from_raw(raw).unwrap();
        ExitReport::decode(kind, 7, b"why\0junk", b"no terminator", b"\0", crash_requested)
    }

    #[test]
    fn running_is_no_exit() {
        assert_eq!(ExitKind::from_raw(0), None);
        assert_eq!(ExitKind::from_raw(1), None);
    }

    #[test]
    fn each_cause_has_its_code() {
        let codes = [64, 65, 66, 67, 1024, 1025, 1026, 68, 1027].map(|k| report(k, false).raw_code());
        assert_eq!(codes, [0, 15, 15, 15, 14, 13, 12, 15, 14]);
    }

    #[test]
    fn only_the_kernel_asks_to_start_anew() {
        let asks = |kind, code| {
            ExitReport::decode(ExitKind::from_raw(kind).unwrap(), code, b"", b"", b"", false)
                .asks_to_start_anew()
        };
        assert!(asks(66, 1 << 48 | 1 << 32));
        assert!(!asks(66, 1 << 32) && !asks(65, 1 << 48) && !asks(1024, -1));
    }

    #[test]
    fn requested_crash_is_a_crash_whoever_raised_it() {
        assert_eq!(report(1024, true).raw_code(), code::CRASH);
        assert_eq!(report(1026, true).raw_code(), code::STALL);
    }

    #[test]
    fn buffers_end_at_zero_or_at_their_end() {
        assert_eq!(
            report(1025, true).to_string(),
            r#"scx-ktstr: exit kind=crash code=7 reason="why" msg="no terminator""#
        );
    }

    #[test]
    fn a_dump_is_framed() {
        let dump = b"CPU 0\n\0";
        let report = ExitReport::decode(ExitKind::ErrorStall, 0, b"", b"", dump, false);
        assert!(report.to_string().ends_with("dump begin\nCPU 0\nscx-ktstr: dump end"));
    }
}

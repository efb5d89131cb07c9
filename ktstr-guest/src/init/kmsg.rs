//! Follows the kernel log for what it says about the BPF scheduler.
//!
//! Wording, the same from 6.12 to 7.2 (`kernel/sched/ext.c`):
//!
//! ```text
//! sched_ext: BPF scheduler "NAME" enabled
//! sched_ext: BPF scheduler "NAME" disabled (REASON)
//! sched_ext: NAME: DETAIL                              only after an error
//! ```
//!
//! Only records of the kernel itself count; what user space writes to `/dev/kmsg` does not.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
};

use nix::{errno::Errno, fcntl::OFlag};

/// Longest record the kernel hands out.
const RECORD_MAX: usize = 8192;

/// What the kernel said about a BPF scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SchedExt {
    /// It is in charge.
    Enabled {
        /// Name of its operations.
        name: String,
    },
    /// It is no more in charge.
    Disabled {
        /// Name of its operations.
        name: String,
        /// The kernel's reason.
        reason: String,
    },
    /// More about the reason.
    Detail {
        /// Name of its operations.
        name: String,
        /// The kernel's or the scheduler's words.
        text: String,
    },
}

/// The text of a record that the kernel itself wrote.
pub fn kernel_text(record: &str) -> Option<&str> {
    let (prefix, text) = record.split_once(';')?;
    let level: u32 = prefix.split(',').next()?.parse().ok()?;
    let facility = level >> 3;
    // Continuation lines (` KEY=value`) follow the first.
    (facility == 0).then(|| text.split('\n').next().unwrap_or_default())
}

/// What a line of the kernel says about a BPF scheduler.
pub fn parse_line(line: &str) -> Option<SchedExt> {
    let said = line.strip_prefix("sched_ext: ")?;
    let Some((_, rest)) = said.strip_prefix("BPF ").and_then(|s| s.split_once("scheduler \"")) else {
        let (name, text) = said.split_once(": ")?;
        let text = text.trim();
        return (!name.contains(' ') && !text.is_empty())
            .then(|| SchedExt::Detail { name: name.into(), text: text.into() });
    };
    let (name, what) = rest.split_once("\" ")?;
    let name = name.to_string();
    if what.starts_with("enabled") {
        return Some(SchedExt::Enabled { name });
    }
    let reason = what.strip_prefix("disabled")?.trim();
    let reason = reason.strip_prefix('(').and_then(|r| r.strip_suffix(')')).unwrap_or(reason);
    Some(SchedExt::Disabled { name, reason: reason.into() })
}

/// Whether a line of the kernel says that ACPI can switch the machine off.
fn says_power_off(line: &str) -> bool {
    line.contains("PM: (supports") && line.split([' ', '(', ')']).any(|word| word == "S5")
}

/// The log, read to its present end at opening.
#[derive(Debug)]
pub struct Kmsg {
    file: File,
    record: Vec<u8>,
    can_power_off: bool,
}

impl Kmsg {
    /// Opens the log and goes through what it already holds.
    pub fn open() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("/dev/kmsg")?;
        let mut kmsg = Self { file, record: vec![0; RECORD_MAX], can_power_off: false };
        while let Some(line) = kmsg.next_line()? {
            kmsg.can_power_off |= says_power_off(&line);
        }
        Ok(kmsg)
    }

    /// Whether the kernel said at boot that it can switch the machine off.
    pub fn can_power_off(&self) -> bool {
        self.can_power_off
    }

    /// The next thing said about a BPF scheduler; `None` when nothing new is there.
    pub fn next(&mut self) -> io::Result<Option<SchedExt>> {
        while let Some(line) = self.next_line()? {
            if let Some(said) = parse_line(&line) {
                return Ok(Some(said));
            }
        }
        Ok(None)
    }

    /// The next line of the kernel itself.
    fn next_line(&mut self) -> io::Result<Option<String>> {
        loop {
            match self.file.read(&mut self.record) {
                Ok(n) => {
                    let record = String::from_utf8_lossy(&self.record[..n]);
                    if let Some(text) = kernel_text(&record) {
                        return Ok(Some(text.to_owned()));
                    }
                }
                Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                    Errno::EAGAIN => return Ok(None),
                    // Records were overwritten before they were read; the next read goes on behind them.
                    Errno::EPIPE | Errno::EINTR => {}
                    _ => return Err(error),
                },
            }
        }
    }
}

impl AsFd for Kmsg {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disabled(name: &str, reason: &str) -> Option<SchedExt> {
        Some(SchedExt::Disabled { name: name.into(), reason: reason.into() })
    }

    #[test]
    fn lines_of_the_series_in_use_are_understood() {
        let line = |text| parse_line(text);
        assert_eq!(
            line(r#"sched_ext: BPF scheduler "ktstr" enabled"#),
            Some(SchedExt::Enabled { name: "ktstr".into() })
        );
        assert_eq!(
            line(r#"sched_ext: BPF scheduler "ktstr" disabled (runnable task stall)"#),
            disabled("ktstr", "runnable task stall")
        );
        assert_eq!(
            line(
                r#"sched_ext: BPF scheduler "bpfland_1.0.20_x86_64_unknown_linux_gnu" disabled (unregistered from user space)"#
            ),
            disabled("bpfland_1.0.20_x86_64_unknown_linux_gnu", "unregistered from user space")
        );
        assert_eq!(
            line(r#"sched_ext: BPF scheduler "a" disabled (scx_bpf_error (nested))"#),
            disabled("a", "scx_bpf_error (nested)")
        );
        assert_eq!(
            line(r#"sched_ext: BPF sub-scheduler "a" disabled (runtime error)"#),
            disabled("a", "runtime error")
        );
        assert_eq!(line(r#"sched_ext: BPF scheduler "a" disabled"#), disabled("a", ""));
        assert_eq!(
            line("sched_ext: ktstr: busybox[138] failed to run for 6.324s"),
            Some(SchedExt::Detail {
                name: "ktstr".into(),
                text: "busybox[138] failed to run for 6.324s".into()
            })
        );
    }

    #[test]
    fn other_lines_are_not() {
        for line in
            ["", "sched_ext:", "sched_ext: ", "   scx_watchdog_workfn+0x16a/0x1f0", "ext4: disabled (x)"]
        {
            assert_eq!(parse_line(line), None, "{line}");
        }
        assert_eq!(parse_line(r#"sched_ext: BPF scheduler "a"#), None);
        assert_eq!(parse_line("sched_ext: some words: more"), None);
    }

    #[test]
    fn only_the_kernels_own_records_count() {
        assert_eq!(kernel_text("3,812,4445116,-;sched_ext: x: y\n SUBSYSTEM=z\n"), Some("sched_ext: x: y"));
        assert_eq!(kernel_text("6,1,0,-,caller=T1;hello"), Some("hello"));
        assert_eq!(kernel_text("11,812,4445116,-;sched_ext: x: y"), None);
        for broken in ["", "6,1,0,-", ";text", "x,1;text", "-6,1;text"] {
            assert_eq!(kernel_text(broken), None, "{broken}");
        }
    }

    #[test]
    fn the_sleep_states_tell_whether_power_off_works() {
        assert!(says_power_off("ACPI: PM: (supports S0 S5)"));
        assert!(says_power_off("ACPI: PM: (supports S0 S3 S4 S5)"));
        assert!(says_power_off("ACPI: (supports S0 S5) PM: (supports S0 S5)"));
        assert!(!says_power_off("ACPI: PM: (supports S0)"));
        assert!(!says_power_off("reboot: S5"));
    }
}

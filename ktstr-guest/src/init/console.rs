//! The last words of PID 1 when there is no ring: one line on the kernel's console and on COM2.
//!
//! The host looks for [`PREFIX`] in what it captured.

use std::{io::Write, os::unix::fs::OpenOptionsExt};

use nix::{
    fcntl::OFlag,
    sys::stat::{Mode, SFlag, makedev, mknod},
};

/// How the line begins.
pub const PREFIX: &str = "ktstr-guest: FATAL";

/// The line for a failed step; line breaks in the reason would cut it.
pub fn fatal_line(step: &str, reason: &str) -> String {
    let reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("{PREFIX} step={step}: {reason}")
}

/// Writes the line wherever the host may see it. There is nobody to tell if that fails.
pub fn say_fatal(step: &str, reason: &str) {
    let line = fatal_line(step, reason);
    let console = write_line("/dev/console", &line) || {
        let _ = mknod("/console", SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, makedev(5, 1));
        write_line("/console", &line)
    };
    if !console {
        write_kmsg(&line);
    }
    write_line("/dev/ttyS1", &line);
}

/// A line for the kernel log, and so for the console if its level is shown.
pub fn write_kmsg(line: &str) {
    if let Ok(mut kmsg) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = kmsg.write_all(format!("<0>{line}").as_bytes());
    }
}

fn write_line(device: &str, line: &str) -> bool {
    let flags = OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
    let device = std::fs::OpenOptions::new().write(true).custom_flags(flags.bits()).open(device);
    device.is_ok_and(|mut device| device.write_all(format!("\n{line}\n").as_bytes()).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_stays_one_line() {
        assert_eq!(fatal_line("job", "a\nb\tc"), "ktstr-guest: FATAL step=job: a b c");
    }
}

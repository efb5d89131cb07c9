//! The interactive console's second port: the size of the user's terminal, for as long as it is open.
//!
//! One line per size, rows first, from whoever holds the terminal to PID 1. The device's own message for it
//! (`VIRTIO_CONSOLE_RESIZE`) is not used: the emulator has none, and of its two numbers the specification
//! names the columns first, the Linux driver the rows.

use std::fmt;
use std::str::FromStr;

/// How the port is called in the guest (`/sys/class/virtio-ports/*/name`).
pub const SIZE_PORT: &str = "ktstr.size";
/// Longest line there is, with its end.
pub const LONGEST_LINE: usize = 12;

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub cols: u16,
}

/// A line that holds no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line:?} is no size of a terminal: wanted are rows and columns, two numbers from 1 to 65535")]
pub struct NoSize {
    line: String,
}

impl WindowSize {
    /// The line that says it.
    #[must_use]
    pub fn line(self) -> String {
        format!("{self}\n")
    }
}

impl fmt::Display for WindowSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.rows, self.cols)
    }
}

impl FromStr for WindowSize {
    type Err = NoSize;

    fn from_str(line: &str) -> Result<Self, NoSize> {
        let number = |word: &str| word.parse().ok().filter(|number| *number > 0);
        let size = line
            .trim_end()
            .split_once(' ')
            .and_then(|(rows, cols)| Some(WindowSize { rows: number(rows)?, cols: number(cols)? }));
        size.ok_or_else(|| NoSize { line: line.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_survives_its_line() {
        for size in [WindowSize { rows: 24, cols: 80 }, WindowSize { rows: u16::MAX, cols: u16::MAX }] {
            assert_eq!(size.line().parse(), Ok(size));
            assert!(size.line().len() <= LONGEST_LINE);
        }
        for line in ["", "24", "24 80 1", "0 80", "24 0", "-1 80", "24 65536", "a b", " 24 80"] {
            assert!(line.parse::<WindowSize>().is_err(), "{line:?}");
        }
    }
}

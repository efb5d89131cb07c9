//! Serial output on its way out: a machine appends to a memory file, we take what is new.
//!
//! A file never makes the machine wait, so nothing the host does can change a replayable run. What
//! has been taken is given back to the host at once, and a guest that never stops talking is cut off
//! at [`LIMIT`] bytes, with a note in the stream.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Most bytes of one port that are passed on.
pub const LIMIT: u64 = 256 << 20;
const PIECE: usize = 64 << 10;

/// Why a port's output cannot be collected.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The memory file could not be made.
    #[error("make the memory file for {port}")]
    Create {
        /// Which port.
        port: &'static str,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The memory file could not be read.
    #[error("read the output of {port} at byte {offset}")]
    Read {
        /// Which port.
        port: &'static str,
        /// Where.
        offset: u64,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// The reading side of one port.
#[derive(Debug)]
pub struct PortOutput {
    port: &'static str,
    file: File,
    taken: u64,
    limit: u64,
    cut: bool,
}

impl PortOutput {
    /// Makes the file and its writing side for the machine.
    pub fn new(port: &'static str) -> Result<(PortOutput, OwnedFd), ConsoleError> {
        let create = |source| ConsoleError::Create { port, source };
        let file = File::from(memfd_create(c"console", MFdFlags::MFD_CLOEXEC).map_err(|e| create(e.into()))?);
        // Opened anew: the machine's position is its own, and appending.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let sink = File::options().append(true).open(path).map_err(create)?;
        Ok((PortOutput { port, file, taken: 0, limit: LIMIT, cut: false }, sink.into()))
    }

    /// Whether everything written so far has been taken.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.length().is_ok_and(|length| length == self.taken)
    }

    /// The next piece, empty when nothing is new.
    pub fn take(&mut self) -> Result<Vec<u8>, ConsoleError> {
        let offset = self.taken;
        let read = |source| ConsoleError::Read { port: self.port, offset, source };
        let length = self.length().map_err(read)?;
        let new = length.saturating_sub(offset).min(PIECE as u64) as usize;
        let mut bytes = vec![0; new];
        self.file.read_exact_at(&mut bytes, offset).map_err(read)?;
        self.taken += new as u64;
        self.give_back(offset);
        if self.taken <= self.limit {
            return Ok(bytes);
        }
        // Nothing more is passed on: skip to the end at once.
        let skipped = std::mem::replace(&mut self.taken, length);
        self.give_back(skipped);
        if std::mem::replace(&mut self.cut, true) {
            return Ok(Vec::new());
        }
        Ok(format!("\n[{}: cut off after {} bytes]\n", self.port, self.limit).into_bytes())
    }

    /// By seeking: asking for the file's status is refused in the jail, and its position is unused.
    fn length(&self) -> std::io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    /// Pages that were read entirely hold memory for nothing. If the host cannot take them back, the
    /// file only stays larger than needed.
    fn give_back(&self, from: u64) {
        let page = PIECE as u64;
        let (start, end) = (from / page * page, self.taken / page * page);
        if end > start {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let _ = fallocate(&self.file, flags, start as i64, (end - start) as i64);
        }
    }
}

/// Finds a text in a byte stream that arrives in pieces, and keeps what follows it on its line.
#[derive(Debug)]
pub struct LineWatch {
    marker: &'static str,
    line: Vec<u8>,
    found: Option<String>,
}

/// Longest line looked at; the rest of a longer one is skipped.
const LONGEST_LINE: usize = 4096;

impl LineWatch {
    /// Watches for lines that contain `marker`.
    #[must_use]
    pub fn new(marker: &'static str) -> LineWatch {
        LineWatch { marker, line: Vec::new(), found: None }
    }

    /// Looks at the next piece.
    pub fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte != b'\n' {
                if self.line.len() < LONGEST_LINE {
                    self.line.push(*byte);
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            if self.found.is_none() {
                let text = String::from_utf8_lossy(&line);
                self.found = text.split_once(self.marker).map(|(_, rest)| rest.trim().to_owned());
            }
        }
    }

    /// What followed the marker on the first line that had it.
    #[must_use]
    pub fn found(&self) -> Option<&str> {
        self.found.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn everything(output: &mut PortOutput) -> Vec<u8> {
        let mut all = Vec::new();
        while !output.is_drained() {
            all.extend(output.take().unwrap());
        }
        all
    }

    #[test]
    fn output_arrives_once_and_in_order() {
        let (mut output, sink) = PortOutput::new("com1").unwrap();
        let mut sink = File::from(sink);
        assert!(output.take().unwrap().is_empty());
        sink.write_all(b"first ").unwrap();
        assert_eq!(everything(&mut output), b"first ");
        let long: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        sink.write_all(&long).unwrap();
        assert_eq!(everything(&mut output), long);
        assert!(output.take().unwrap().is_empty());
    }

    #[test]
    fn what_was_taken_holds_no_memory() {
        let (mut output, sink) = PortOutput::new("com1").unwrap();
        let mut sink = File::from(sink);
        for _ in 0..64 {
            sink.write_all(&[7; PIECE]).unwrap();
            everything(&mut output);
        }
        let held = output.file.metadata().unwrap().blocks() * 512;
        assert!(held <= 2 * PIECE as u64, "{held} bytes held");
    }

    #[test]
    fn endless_output_is_cut_off_once() {
        let (mut output, sink) = PortOutput::new("com2").unwrap();
        output.limit = 100_000;
        File::from(sink).write_all(&vec![b'x'; 400_000]).unwrap();
        let all = everything(&mut output);
        assert!(all.len() < 100_100);
        assert_eq!(String::from_utf8_lossy(&all).matches("cut off").count(), 1);
    }

    #[test]
    fn a_marker_is_found_across_pieces() {
        let mut watch = LineWatch::new("STATUS=");
        for piece in ["noise\nmore STA", "TUS=", "7 \r", "\nSTATUS=8\n"] {
            watch.feed(piece.as_bytes());
        }
        assert_eq!(watch.found(), Some("7"));
        let mut none = LineWatch::new("STATUS=");
        none.feed(&vec![b'y'; 100_000]);
        none.feed(b"STATUS=1\n");
        assert_eq!(none.found(), None);
    }
}

//! Output of a child process on its way to the ring.

use std::{
    io::{PipeReader, Read},
    os::fd::{AsFd, BorrowedFd},
};

use ktstr_proto::guest::LogSource;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Most bytes taken at once; one log frame is at most about this long.
const PIECE: usize = 16 << 10;

/// The reading end of a pipe, and whose text comes out of it.
#[derive(Debug)]
pub struct Stream {
    pipe: PipeReader,
    source: LogSource,
    text: TextPieces,
    closed: bool,
}

impl Stream {
    /// Follows a pipe without ever waiting for it.
    pub fn new(pipe: PipeReader, source: LogSource) -> nix::Result<Self> {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { pipe, source, text: TextPieces::default(), closed: false })
    }

    /// Whose text it is.
    pub fn source(&self) -> LogSource {
        self.source
    }

    /// Whether every writer is gone.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// The next piece of text; `None` when nothing more is there now.
    pub fn next_piece(&mut self) -> Option<String> {
        let mut piece = [0; PIECE];
        while !self.closed {
            match self.pipe.read(&mut piece) {
                Ok(0) => {
                    self.closed = true;
                    return self.text.rest();
                }
                Ok(n) => {
                    let text = self.text.push(&piece[..n]);
                    if !text.is_empty() {
                        return Some(text);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
                Err(_) => self.closed = true,
            }
        }
        None
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// Turns bytes into text, however they are cut; a character cut in two is held back.
#[derive(Debug, Default)]
struct TextPieces {
    held: Vec<u8>,
}

impl TextPieces {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let cut = match std::str::from_utf8(&self.held) {
            Ok(whole) => whole.len(),
            Err(_) => self.held.len() - unfinished(&self.held),
        };
        let text = String::from_utf8_lossy(&self.held[..cut]).into_owned();
        self.held.drain(..cut);
        text
    }

    fn rest(&mut self) -> Option<String> {
        let held = std::mem::take(&mut self.held);
        (!held.is_empty()).then(|| String::from_utf8_lossy(&held).into_owned())
    }
}

/// Bytes at the end that may be the beginning of a character.
fn unfinished(bytes: &[u8]) -> usize {
    let tail = bytes.len().min(3);
    (1..=tail)
        .find(|n| {
            let end = &bytes[bytes.len() - n..];
            std::str::from_utf8(end).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn text_survives_every_cut() {
        let text = "a\u{e9}\u{20ac}\u{1f600}z\n";
        for cut in 0..text.len() {
            let mut pieces = TextPieces::default();
            let (a, b) = text.as_bytes().split_at(cut);
            let got = pieces.push(a) + &pieces.push(b);
            assert_eq!(got, text, "cut at {cut}");
            assert_eq!(pieces.rest(), None);
        }
    }

    #[test]
    fn invalid_bytes_are_replaced_and_nothing_is_held_for_ever() {
        let mut pieces = TextPieces::default();
        assert_eq!(pieces.push(b"a\xffb"), "a\u{fffd}b");
        assert_eq!(pieces.push(b"\xe2\x82"), "");
        assert_eq!(pieces.rest().as_deref(), Some("\u{fffd}"));
    }

    #[test]
    fn a_pipe_is_read_to_its_end_without_waiting() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut stream = Stream::new(reader, LogSource::Stdout).unwrap();
        assert_eq!(stream.next_piece(), None);
        assert!(!stream.is_closed());
        writer.write_all("half \u{20ac}".as_bytes()).unwrap();
        assert_eq!(stream.next_piece().as_deref(), Some("half \u{20ac}"));
        drop(writer);
        assert_eq!(stream.next_piece(), None);
        assert!(stream.is_closed());
    }
}

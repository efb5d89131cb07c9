//! Frames between the client on the host and the agent in the lab, over one
//! virtio-serial port.
//!
//! A serial port has no connections: bytes of a client that died may still sit
//! in its buffers when the next one arrives. So every frame carries the nonce
//! of its session, [`Decoder`] skips to the next frame start when it meets
//! anything else, and the client repeats `Hello` until its own nonce answers.
//! File contents do not travel here, see `exchange.rs`.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

const MAGIC: [u8; 4] = *b"KLB1";
const HEADER: usize = 4 + 8 + 1 + 4;
/// Longest body; keeps a lying length from stalling the decoder for long.
pub const MAX_BODY: usize = 32 * 1024;

/// What a frame means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Client: a session begins; earlier sessions are over.
    Hello = 1,
    /// Agent: body is the boot id.
    Ready = 2,
    /// Client: the exchange image holds a payload.
    Push = 3,
    /// Agent: the payload is unpacked.
    Pushed = 4,
    /// Client: body is [`RunRequest`].
    Run = 5,
    /// Agent: bytes the command wrote to stdout.
    Stdout = 6,
    /// Agent: bytes the command wrote to stderr.
    Stderr = 7,
    /// Agent: body is [`Exit`]; all output went before it.
    Exit = 8,
    /// Client: body is one byte, the signal for the command's process group.
    Signal = 9,
    /// Agent: the request failed; body says why.
    Refused = 10,
    /// Client: power off.
    PowerOff = 11,
    /// Client: bytes for the command's stdin; an empty body is its end.
    Stdin = 12,
    /// Agent: room for this many (u32) further stdin bytes.
    StdinCredit = 13,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::*;
        [Hello, Ready, Push, Pushed, Run, Stdout, Stderr, Exit, Signal, Refused, PowerOff, Stdin, StdinCredit]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// What to run in the lab.
#[derive(Debug, Serialize, Deserialize)]
pub struct RunRequest {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Whole environment of the command.
    pub env: BTreeMap<String, String>,
    /// Working directory, created when missing.
    pub cwd: PathBuf,
}

/// How the command ended.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Processes it left behind (killed by the agent).
    pub leftovers: usize,
}

/// One decoded frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub nonce: u64,
    pub kind: Kind,
    pub body: Vec<u8>,
}

/// Appends one frame to `out`; `body` is at most [`MAX_BODY`] long.
pub fn encode(out: &mut Vec<u8>, nonce: u64, kind: Kind, body: &[u8]) {
    assert!(body.len() <= MAX_BODY, "frame body of {} bytes", body.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&nonce.to_le_bytes());
    out.push(kind as u8);
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(body);
}

/// Splits a body too long for one frame; the pieces end with an empty frame
/// of the same kind.
pub fn encode_long(out: &mut Vec<u8>, nonce: u64, kind: Kind, body: &[u8]) {
    for piece in body.chunks(MAX_BODY) {
        encode(out, nonce, kind, piece);
    }
    encode(out, nonce, kind, &[]);
}

/// Turns received bytes into frames.
#[derive(Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Adds received bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Forgets an incomplete frame.
    pub fn clear(&mut self) {
        self.buffer.clear();
    }

    /// The next whole frame, skipping whatever is none.
    pub fn next_frame(&mut self) -> Option<Frame> {
        loop {
            let start = self.buffer.windows(MAGIC.len()).position(|w| w == MAGIC);
            match start {
                Some(start) => drop(self.buffer.drain(..start)),
                None => {
                    let keep = self.buffer.len().min(MAGIC.len() - 1);
                    self.buffer.drain(..self.buffer.len() - keep);
                    return None;
                }
            }
            if self.buffer.len() < HEADER {
                return None;
            }
            let nonce = u64::from_le_bytes(self.buffer[4..12].try_into().expect("eight bytes"));
            let kind = Kind::from_byte(self.buffer[12]);
            let len = u32::from_le_bytes(self.buffer[13..17].try_into().expect("four bytes")) as usize;
            let (Some(kind), true) = (kind, len <= MAX_BODY) else {
                self.buffer.drain(..1);
                continue;
            };
            if self.buffer.len() < HEADER + len {
                return None;
            }
            let body = self.buffer[HEADER..HEADER + len].to_vec();
            self.buffer.drain(..HEADER + len);
            return Some(Frame { nonce, kind, body });
        }
    }
}

/// Decodes a JSON body.
pub fn json<'a, T: Deserialize<'a>>(body: &'a [u8], what: &str) -> Result<T> {
    serde_json::from_slice(body).with_context(|| format!("decoding {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_split() {
        let mut bytes = Vec::new();
        encode(&mut bytes, 7, Kind::Stdout, b"abc");
        encode(&mut bytes, 7, Kind::Exit, b"");
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for byte in bytes {
            decoder.feed(&[byte]);
            frames.extend(decoder.next_frame());
        }
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0], Frame { nonce: 7, kind: Kind::Stdout, body: b"abc".to_vec() });
        assert_eq!(frames[1].kind, Kind::Exit);
    }

    #[test]
    fn garbage_before_a_frame_is_skipped() {
        let mut decoder = Decoder::default();
        decoder.feed(b"KLKLB");
        assert_eq!(decoder.next_frame(), None);
        let mut bytes = Vec::new();
        encode(&mut bytes, 1, Kind::Ready, b"id");
        decoder.feed(&bytes);
        assert_eq!(decoder.next_frame().unwrap().kind, Kind::Ready);
    }

    #[test]
    fn a_lying_length_is_no_frame() {
        let mut bytes = Vec::new();
        encode(&mut bytes, 1, Kind::Ready, b"");
        bytes[13..17].copy_from_slice(&u32::MAX.to_le_bytes());
        encode(&mut bytes, 2, Kind::Exit, b"x");
        let mut decoder = Decoder::default();
        decoder.feed(&bytes);
        assert_eq!(decoder.next_frame().unwrap().nonce, 2);
    }
}

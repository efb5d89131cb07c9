//! The shared-memory ring through which everything leaves the guest.
//!
//! A region of guest RAM, reserved on the kernel command line. One producer (PID 1), one consumer
//! (the VMM, which copies bytes and never looks into them); frames are decoded by the orchestrator.
//!
//! ```text
//! 0      magic u64 | 8 version u32 | 12 mode u32 | 16 capacity u64
//! 64     write index u64 (guest)      bytes ever written
//! 128    read index u64 (host)        bytes ever taken; stays 0 in linear mode
//! 192    host signal u32 (host)       see [`HostSignal`]
//! 256    what [`crate::handover`] uses before there is a ring
//! 2048   number u32 (host) of the question that is answered, 2052 length u32, 2064 the answer
//! 4096   data, `capacity` bytes
//! ```
//!
//! The words outside of the data are slots: each is written by one side, seen by the other when it looks,
//! and costs the guest no exit. [`crate::handover`] has the one in which PID 1 says that it is ready. A guest that
//! wrote into the host's slots changes only what it reads there itself.
//!
//! In [`Mode::Wrap`] the producer waits while the ring is full. In [`Mode::Linear`] (accelerator
//! `det`) nothing on the host writes into the guest, so the ring never wraps and a full ring is an
//! error of the guest. Frame: `magic u32 | length u32 | sequence u64 | crc32 u32 | zero u32 | body`,
//! the checksum covering length, sequence and body.

use serde::{Deserialize, Serialize};

use crate::{codec, guest::GuestMessage};

/// `KTSTRING` in the first eight bytes once the guest has set the ring up.
pub const MAGIC: u64 = u64::from_le_bytes(*b"KTSTRING");
/// Version of this layout.
pub const VERSION: u32 = 1;
/// Offset of the write index.
pub const WRITE_INDEX: u64 = 64;
/// Offset of the read index.
pub const READ_INDEX: u64 = 128;
/// Offset of the host's signal word.
pub const HOST_SIGNAL: u64 = 192;
/// Offset of the number of the question that is answered.
pub(crate) const ANSWERED: u64 = 2048;
/// Offset of the answer's length.
const ANSWER_LENGTH: u64 = 2052;
/// Offset of the answer.
const ANSWER: u64 = 2064;
/// Longest answer in bytes.
pub const MAX_ANSWER: usize = (DATA - ANSWER) as usize;
/// Offset of the data area.
pub const DATA: u64 = 4096;
/// First bytes of each frame.
pub const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"KTFR");
/// Frame header size in bytes.
pub const FRAME_HEADER: usize = 24;
/// Longest frame body in bytes.
pub const MAX_FRAME: usize = 1 << 20;

/// Where the ring lies in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingRegion {
    /// Guest-physical start, page aligned.
    pub gpa: u64,
    /// Length in bytes, header page included.
    pub len: u64,
    /// How it is used.
    pub mode: Mode,
}

/// How the ring is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Circular, with back-pressure.
    Wrap,
    /// Filled once; overflow is an error.
    Linear,
}

/// What the host asks of the guest through the signal word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum HostSignal {
    /// Nothing.
    None = 0,
    /// End the run: stop the test, flush logs, power off.
    Shutdown = 0xdd,
}

/// Access to the region; offsets are bounds-checked by the implementation, accesses are volatile and
/// a store of an index is ordered after the data it covers.
pub trait RingMemory {
    /// Length of the region in bytes.
    fn len(&self) -> u64;
    /// Whether the region is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Reads a `u32`.
    fn load_u32(&self, offset: u64) -> u32;
    /// Reads a `u64`.
    fn load_u64(&self, offset: u64) -> u64;
    /// Writes a `u32`.
    fn store_u32(&mut self, offset: u64, value: u32);
    /// Writes a `u64`.
    fn store_u64(&mut self, offset: u64, value: u64);
    /// Copies bytes out.
    fn read(&self, offset: u64, out: &mut [u8]);
    /// Copies bytes in.
    fn write(&mut self, offset: u64, bytes: &[u8]);
}

/// Why the ring cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The region is too small to be one.
    #[error("ring region of {len} bytes is smaller than its header and one frame")]
    TooSmall {
        /// Region length in bytes.
        len: u64,
    },
    /// The header does not fit the region.
    #[error(
        "guest announces a ring of {capacity} bytes, version {version}, mode {mode}: the region holds {available}"
    )]
    Header {
        /// Announced capacity in bytes.
        capacity: u64,
        /// Announced version.
        version: u32,
        /// Announced mode.
        mode: u32,
        /// Bytes available.
        available: u64,
    },
    /// The answer is too long.
    #[error("an answer of {length} bytes is longer than the {MAX_ANSWER} there is room for")]
    Answer {
        /// Its length in bytes.
        length: usize,
    },
    /// The write index is impossible.
    #[error(
        "guest moved the ring's write index to {write} while {read} were taken from a ring of {capacity} bytes"
    )]
    Index {
        /// Write index found.
        write: u64,
        /// Bytes taken so far.
        read: u64,
        /// Capacity in bytes.
        capacity: u64,
    },
    /// A linear ring has no room left.
    #[error(
        "ring of {capacity} bytes is full and is not emptied under this accelerator: raise the run's ring size"
    )]
    Full {
        /// Capacity in bytes.
        capacity: u64,
    },
    /// A frame longer than any frame may be.
    #[error("frame of {length} bytes, the limit is {MAX_FRAME}")]
    FrameTooLong {
        /// Length in bytes.
        length: usize,
    },
    /// The message cannot be encoded.
    #[error("cannot encode a frame: {reason}")]
    Encode {
        /// The encoder's reason.
        reason: String,
    },
}

/// Producer's side.
pub struct RingWriter<M> {
    memory: M,
    capacity: u64,
    mode: Mode,
    write: u64,
    sequence: u64,
}

impl<M: RingMemory> RingWriter<M> {
    /// Sets the ring up; the magic is stored last.
    pub fn create(mut memory: M, mode: Mode) -> Result<Self, RingError> {
        let capacity = memory.len().saturating_sub(DATA);
        if capacity < 2 * FRAME_HEADER as u64 {
            return Err(RingError::TooSmall { len: memory.len() });
        }
        memory.store_u32(8, VERSION);
        memory.store_u32(12, mode as u32);
        memory.store_u64(16, capacity);
        memory.store_u64(WRITE_INDEX, 0);
        memory.store_u64(0, MAGIC);
        Ok(Self { memory, capacity, mode, write: 0, sequence: 0 })
    }

    /// Room left now, in bytes.
    fn room(&self) -> u64 {
        let read = self.memory.load_u64(READ_INDEX);
        let taken = match self.mode {
            Mode::Wrap => read,
            Mode::Linear => 0,
        };
        self.capacity.saturating_sub(self.write.saturating_sub(taken))
    }

    /// Writes one message; `wait` is called while a wrapping ring is full.
    pub fn send(&mut self, message: &GuestMessage, mut wait: impl FnMut()) -> Result<(), RingError> {
        let frame = encode_frame(self.sequence, message)?;
        if self.mode == Mode::Linear && self.room() < frame.len() as u64 {
            return Err(RingError::Full { capacity: self.capacity });
        }
        let mut rest = &frame[..];
        while !rest.is_empty() {
            let at = self.write % self.capacity;
            let n = (rest.len() as u64).min(self.room()).min(self.capacity - at) as usize;
            if n == 0 {
                wait();
                continue;
            }
            self.memory.write(DATA + at, &rest[..n]);
            self.write += n as u64;
            self.memory.store_u64(WRITE_INDEX, self.write);
            rest = &rest[n..];
        }
        self.sequence += 1;
        Ok(())
    }

    /// Whether the host has taken everything (always true in linear mode, where nobody says).
    pub fn is_drained(&self) -> bool {
        self.mode == Mode::Linear || self.memory.load_u64(READ_INDEX) >= self.write
    }

    /// The host's answer to question number `id`, if it is there; `None` also for one that no host of ours
    /// can have written.
    pub fn host_answer(&self, id: u32) -> Option<Vec<u8>> {
        if id == 0 || self.memory.load_u32(ANSWERED) != id {
            return None;
        }
        let length = self.memory.load_u32(ANSWER_LENGTH) as usize;
        let mut answer = vec![0; Some(length).filter(|length| *length <= MAX_ANSWER)?];
        self.memory.read(ANSWER, &mut answer);
        Some(answer)
    }

    /// The host's signal word.
    pub fn host_signal(&self) -> HostSignal {
        if self.memory.load_u32(HOST_SIGNAL) == HostSignal::Shutdown as u32 {
            HostSignal::Shutdown
        } else {
            HostSignal::None
        }
    }
}

/// Consumer's side; believes nothing the guest wrote.
pub struct RingReader<M> {
    memory: M,
    mode: Mode,
    capacity: Option<u64>,
    read: u64,
}

impl<M: RingMemory> RingReader<M> {
    /// Watches a region the guest has not set up yet.
    pub fn new(memory: M, mode: Mode) -> Self {
        Self { memory, mode, capacity: None, read: 0 }
    }

    /// Bytes taken so far.
    pub fn taken(&self) -> u64 {
        self.read
    }

    /// Copies out up to `limit` new bytes; `None` when there are none. In [`Mode::Wrap`] the guest
    /// may reuse their room afterwards.
    pub fn take(&mut self, limit: usize) -> Result<Option<Vec<u8>>, RingError> {
        let Some(capacity) = self.capacity()? else { return Ok(None) };
        let write = self.memory.load_u64(WRITE_INDEX);
        let bound = match self.mode {
            Mode::Wrap => self.read.saturating_add(capacity),
            Mode::Linear => capacity,
        };
        if write < self.read || write > bound {
            return Err(RingError::Index { write, read: self.read, capacity });
        }
        let at = self.read % capacity;
        let n = (write - self.read).min(capacity - at).min(limit as u64) as usize;
        if n == 0 {
            return Ok(None);
        }
        let mut out = vec![0; n];
        self.memory.read(DATA + at, &mut out);
        self.read += n as u64;
        if self.mode == Mode::Wrap {
            self.memory.store_u64(READ_INDEX, self.read);
        }
        Ok(Some(out))
    }

    /// Sets the signal word. Never called under `det`.
    pub fn signal(&mut self, signal: HostSignal) {
        self.memory.store_u32(HOST_SIGNAL, signal as u32);
    }

    /// Answers question number `id`, which the guest waits for. Never called under `det`.
    pub fn answer(&mut self, id: u32, answer: &[u8]) -> Result<(), RingError> {
        if answer.len() > MAX_ANSWER {
            return Err(RingError::Answer { length: answer.len() });
        }
        self.memory.write(ANSWER, answer);
        self.memory.store_u32(ANSWER_LENGTH, answer.len() as u32);
        // Whoever sees the number sees all of the answer.
        self.memory.store_u32(ANSWERED, id);
        Ok(())
    }

    fn capacity(&mut self) -> Result<Option<u64>, RingError> {
        if self.capacity.is_none() && self.memory.load_u64(0) == MAGIC {
            let available = self.memory.len().saturating_sub(DATA);
            let (version, mode) = (self.memory.load_u32(8), self.memory.load_u32(12));
            let capacity = self.memory.load_u64(16);
            if version != VERSION || mode != self.mode as u32 || capacity == 0 || capacity > available {
                return Err(RingError::Header { capacity, version, mode, available });
            }
            self.capacity = Some(capacity);
        }
        Ok(self.capacity)
    }
}

fn checksum(length: u32, sequence: u64, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length.to_le_bytes());
    hasher.update(&sequence.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// One message as a frame.
pub fn encode_frame(sequence: u64, message: &GuestMessage) -> Result<Vec<u8>, RingError> {
    let body = codec::encode(message).map_err(|e| RingError::Encode { reason: crate::link::chain(&e) })?;
    if body.len() > MAX_FRAME {
        return Err(RingError::FrameTooLong { length: body.len() });
    }
    let length = body.len() as u32;
    let mut frame = Vec::with_capacity(FRAME_HEADER + body.len());
    frame.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&sequence.to_le_bytes());
    frame.extend_from_slice(&checksum(length, sequence, &body).to_le_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Why the byte stream of the ring is not a sequence of frames.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// No frame starts here.
    #[error("no frame at ring offset {offset}: found {found:#010x}")]
    Magic {
        /// Offset in the stream.
        offset: u64,
        /// Word found.
        found: u32,
    },
    /// The announced length is impossible.
    #[error("frame at ring offset {offset} announces {length} bytes, the limit is {MAX_FRAME}")]
    Length {
        /// Offset in the stream.
        offset: u64,
        /// Announced length.
        length: u32,
    },
    /// A frame is missing or repeated.
    #[error("frame at ring offset {offset} has sequence {found}, expected {expected}")]
    Sequence {
        /// Offset in the stream.
        offset: u64,
        /// Sequence found.
        found: u64,
        /// Sequence expected.
        expected: u64,
    },
    /// The bytes were damaged.
    #[error("frame {sequence} at ring offset {offset} fails its checksum")]
    Checksum {
        /// Offset in the stream.
        offset: u64,
        /// Its sequence number.
        sequence: u64,
    },
    /// The body is no message.
    #[error("frame {sequence} at ring offset {offset} holds no message")]
    Body {
        /// Offset in the stream.
        offset: u64,
        /// Its sequence number.
        sequence: u64,
        /// The decoder's reason.
        #[source]
        source: codec::CodecError,
    },
}

/// Turns the ring's byte stream into messages. After an error the stream is lost and stays so.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    offset: u64,
    sequence: u64,
}

impl FrameDecoder {
    /// Adds bytes as they came out of the ring.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that do not yet make a whole frame.
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }

    /// The next whole message.
    pub fn next_message(&mut self) -> Result<Option<GuestMessage>, FrameError> {
        let Some(&[m0, m1, m2, m3, l0, l1, l2, l3, ref rest @ ..]) =
            self.buffer.first_chunk::<FRAME_HEADER>()
        else {
            return Ok(None);
        };
        let offset = self.offset;
        let found = u32::from_le_bytes([m0, m1, m2, m3]);
        if found != FRAME_MAGIC {
            return Err(FrameError::Magic { offset, found });
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if length as usize > MAX_FRAME {
            return Err(FrameError::Length { offset, length });
        }
        let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, ..] = *rest;
        let sequence = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let crc = u32::from_le_bytes([c0, c1, c2, c3]);
        if sequence != self.sequence {
            return Err(FrameError::Sequence { offset, found: sequence, expected: self.sequence });
        }
        let end = FRAME_HEADER + length as usize;
        let Some(body) = self.buffer.get(FRAME_HEADER..end) else { return Ok(None) };
        if checksum(length, sequence, body) != crc {
            return Err(FrameError::Checksum { offset, sequence });
        }
        let message = codec::decode(body).map_err(|source| FrameError::Body { offset, sequence, source })?;
        self.buffer.drain(..end);
        self.offset += end as u64;
        self.sequence += 1;
        Ok(Some(message))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{cell::RefCell, rc::Rc};

    use super::*;
    use crate::guest::{GuestFrame, Log, LogSource};

    #[derive(Clone)]
    pub(crate) struct Shared(Rc<RefCell<Vec<u8>>>);

    impl Shared {
        pub(crate) fn new(len: usize) -> Self {
            Self(Rc::new(RefCell::new(vec![0; len])))
        }
    }

    impl RingMemory for Shared {
        fn len(&self) -> u64 {
            self.0.borrow().len() as u64
        }
        fn load_u32(&self, o: u64) -> u32 {
            let mut b = [0; 4];
            self.read(o, &mut b);
            u32::from_le_bytes(b)
        }
        fn load_u64(&self, o: u64) -> u64 {
            let mut b = [0; 8];
            self.read(o, &mut b);
            u64::from_le_bytes(b)
        }
        fn store_u32(&mut self, o: u64, v: u32) {
            self.write(o, &v.to_le_bytes());
        }
        fn store_u64(&mut self, o: u64, v: u64) {
            self.write(o, &v.to_le_bytes());
        }
        fn read(&self, o: u64, out: &mut [u8]) {
            out.copy_from_slice(&self.0.borrow()[o as usize..o as usize + out.len()]);
        }
        fn write(&mut self, o: u64, bytes: &[u8]) {
            self.0.borrow_mut()[o as usize..o as usize + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn message(n: usize) -> GuestMessage {
        let text = "x".repeat(n);
        GuestMessage { t_ns: n as u64, body: GuestFrame::Log(Log { source: LogSource::Init, text }) }
    }

    #[test]
    fn messages_longer_than_the_ring_pass_through_it() {
        let memory = Shared::new(DATA as usize + 100);
        let mut writer = RingWriter::create(memory.clone(), Mode::Wrap).unwrap();
        let mut reader = RingReader::new(memory, Mode::Wrap);
        let mut decoder = FrameDecoder::default();
        for n in [0, 1, 50, 400, 3] {
            writer
                .send(&message(n), || {
                    while let Some(bytes) = reader.take(33).unwrap() {
                        decoder.push(&bytes);
                    }
                })
                .unwrap();
            while let Some(bytes) = reader.take(7).unwrap() {
                decoder.push(&bytes);
            }
            assert_eq!(decoder.next_message().unwrap(), Some(message(n)));
        }
        assert!(writer.is_drained());
    }

    #[test]
    fn a_linear_ring_is_never_written_by_the_reader_and_overflow_is_an_error() {
        let memory = Shared::new(DATA as usize + 200);
        let mut writer = RingWriter::create(memory.clone(), Mode::Linear).unwrap();
        writer.send(&message(10), || unreachable!()).unwrap();
        let before = memory.0.borrow().clone();
        let mut reader = RingReader::new(memory.clone(), Mode::Linear);
        assert!(reader.take(1000).unwrap().is_some());
        assert_eq!(*memory.0.borrow(), before);
        assert_eq!(writer.send(&message(300), || unreachable!()), Err(RingError::Full { capacity: 200 }));
    }

    #[test]
    fn a_lying_header_or_index_is_an_error() {
        let memory = Shared::new(DATA as usize + 100);
        let mut writer = RingWriter::create(memory.clone(), Mode::Wrap).unwrap();
        let mut raw = memory.clone();
        raw.store_u64(WRITE_INDEX, 1 << 40);
        let mut reader = RingReader::new(memory.clone(), Mode::Wrap);
        assert!(matches!(reader.take(10), Err(RingError::Index { .. })));
        raw.store_u64(16, 1 << 30);
        assert!(matches!(RingReader::new(memory, Mode::Wrap).take(10), Err(RingError::Header { .. })));
        let _ = writer.send(&message(1), || ());
    }

    #[test]
    fn garbage_in_the_ring_names_its_offset() {
        let good = encode_frame(0, &message(4)).unwrap();
        let mut decoder = FrameDecoder::default();
        decoder.push(&good);
        decoder.push(&[0xaa; 64]);
        assert!(decoder.next_message().unwrap().is_some());
        let offset = good.len() as u64;
        assert!(matches!(decoder.next_message(), Err(FrameError::Magic { offset: o, .. }) if o == offset));
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let mut decoder = FrameDecoder::default();
        decoder.push(&flipped);
        assert!(matches!(decoder.next_message(), Err(FrameError::Checksum { .. })));
    }

    proptest::proptest! {
        #[test]
        fn any_stream_decodes_or_fails_without_panic(bytes: Vec<u8>) {
            let mut decoder = FrameDecoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_message() {}
        }
    }
}

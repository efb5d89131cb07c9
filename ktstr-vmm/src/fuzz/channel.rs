//! Both directions of the guest channel, while the guest changes what it likes between any two steps of the
//! host: the ring, the signal word, answers, and what a waiting guest is given.

use std::cell::RefCell;
use std::rc::Rc;

use ktstr_proto::handover::Giver;
use ktstr_proto::ring::{self, FrameDecoder, HostSignal, Mode, RingMemory, RingReader};

use super::{Input, Memory};

/// Header page and two pages of data.
const LEN: usize = 3 * 4096;
/// Words of the header page that mean something to one side or the other.
const WORDS: [u64; 14] = [0, 8, 12, 16, 64, 128, 192, 256, 320, 328, 336, 344, 384, 2048];

/// One side's view of the region.
#[derive(Clone)]
struct Side {
    memory: Rc<RefCell<Memory>>,
    /// Under `det` the host must not.
    writes: bool,
}

impl RingMemory for Side {
    fn len(&self) -> u64 {
        self.memory.borrow().len()
    }

    fn load_u32(&self, offset: u64) -> u32 {
        self.memory.borrow().load_u32(offset)
    }

    fn load_u64(&self, offset: u64) -> u64 {
        self.memory.borrow().load_u64(offset)
    }

    fn store_u32(&mut self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    fn store_u64(&mut self, offset: u64, value: u64) {
        self.write(offset, &value.to_le_bytes());
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        self.memory.borrow().read(offset, out);
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        assert!(self.writes, "the host wrote {} bytes at {offset} of a linear ring", bytes.len());
        self.memory.borrow_mut().write(offset, bytes);
    }
}

/// The guest channel, step by step: no access outside, no write where none may be, no more bytes than the
/// region holds, and frames or an error come out.
pub fn channel(data: &[u8]) {
    let mut input = Input(data);
    let mode = if input.byte() & 3 == 0 { Mode::Linear } else { Mode::Wrap };
    let memory = Rc::new(RefCell::new(Memory(vec![0; LEN])));
    let mut guest = Side { memory, writes: true };
    let host = Side { writes: mode == Mode::Wrap, ..guest.clone() };
    let mut reader = RingReader::new(host.clone(), mode);
    let mut giver = Giver::new(host);
    let mut decoder = FrameDecoder::default();
    while !input.0.is_empty() {
        let step = input.byte();
        let word = WORDS[usize::from(step >> 4) % WORDS.len()];
        match step & 7 {
            0 => guest.store_u32(word, u32::from_le_bytes(input.take())),
            1 => guest.store_u64(word, u64::from_le_bytes(input.take())),
            // What a guest would have to say for the host to go on.
            2 => match step >> 4 & 3 {
                0 => guest.store_u64(0, ring::MAGIC),
                1 => guest.store_u32(8, ring::VERSION),
                2 => guest.store_u32(12, mode as u32),
                _ => guest.store_u64(256, ktstr_proto::handover::READY),
            },
            3 => guest.write(ring::DATA + u64::from(input.short() & 0x1fc0), &input.take::<64>()),
            4 | 5 => {
                let limit = usize::from(input.byte()) * 16 + 1;
                // Whoever gets an error takes nothing more, and a stream that is none is not read on.
                let Ok(taken) = reader.take(limit) else { return };
                let bytes = taken.unwrap_or_default();
                assert!(bytes.len() <= limit.min(LEN - ring::DATA as usize));
                decoder.push(&bytes);
                while let Some(_message) = match decoder.next_message() {
                    Ok(message) => message,
                    Err(_) => return,
                } {}
            }
            6 if mode == Mode::Wrap && giver.is_awaited() => {
                let unspoken = giver.is_unspoken();
                let piece = vec![0x5a; usize::from(input.short()) % (giver.room() + 1)];
                giver.give(&piece, u64::from(step), 0);
                assert!(!giver.is_awaited(), "what was given has not been taken");
                assert!(!(unspoken && giver.is_unspoken()), "a piece can be seen");
            }
            7 if mode == Mode::Wrap && step & 8 == 0 => reader.signal(HostSignal::Shutdown),
            7 if mode == Mode::Wrap => {
                let answer = vec![0xa5; usize::from(input.short()) % 4096];
                let _ = reader.answer(u32::from(step), &answer);
            }
            _ => {}
        }
    }
}

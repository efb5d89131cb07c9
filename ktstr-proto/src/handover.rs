//! How a guest that waits, ready for anything, gets what it shall do: an archive, piece by piece,
//! through the region in which the [`crate::ring`] is set up afterwards.
//!
//! ```text
//! 256    ready u64 (guest)            [`READY`] while the guest waits for pieces
//! 264    taint u64 (guest)            what its kernel is tainted by
//! 320    piece u32 (host)             number of the piece that lies in the data area, from 1
//! 328    length u64 (host)            its length in bytes
//! 336    left u64 (host)              bytes of the archive that come after it
//! 344    wall clock u64 (host)        nanoseconds since the Unix epoch when it was put there
//! 384    taken u32 (guest)            number of the piece that was taken last
//! 4096   the piece
//! ```
//!
//! While `ready` stands there is no ring: its magic is stored when the last piece has been taken. A
//! snapshot of the machine is taken when `ready` stands and no piece has been put: whatever is started
//! from it is told everything anew. None is taken when the host has said anything yet, and none of a kernel
//! to which something has happened ([`TROUBLE`]): everybody would have it. Never used under `det`: the host
//! writes here.

use crate::ring::{ANSWERED, DATA, HOST_SIGNAL, READ_INDEX, RingMemory};

/// `KTSTWAIT` in the guest's word while it waits.
pub const READY: u64 = u64::from_le_bytes(*b"KTSTWAIT");
/// Bits of the kernel's taint that say that something happened to it (Documentation/admin-guide/
/// tainted-kernels.rst): machine check, bad page, oops, warning, soft lockup.
pub const TROUBLE: u64 = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 9 | 1 << 14;
const GUEST_READY: u64 = 256;
const TAINT: u64 = 264;
const PIECE: u64 = 320;
const LENGTH: u64 = 328;
const LEFT: u64 = 336;
const WALL_CLOCK: u64 = 344;
const TAKEN: u64 = 384;

/// The host's side.
#[derive(Debug)]
pub struct Giver<M> {
    memory: M,
    given: u32,
}

impl<M: RingMemory> Giver<M> {
    /// Watches a region the guest has not said anything in yet.
    pub fn new(memory: M) -> Self {
        Self { memory, given: 0 }
    }

    /// Whether the guest waits and has taken everything given so far.
    pub fn is_awaited(&self) -> bool {
        self.memory.load_u64(GUEST_READY) == READY && self.memory.load_u32(TAKEN) == self.given
    }

    /// Those of [`TROUBLE`] that the guest's kernel has; says something only of a guest that waits.
    pub fn taint(&self) -> u64 {
        self.memory.load_u64(TAINT) & TROUBLE
    }

    /// Whether no slot of the host's says anything. What one says would be told to every machine that begins
    /// from a snapshot taken now: to end at once, that a question was answered, that bytes were taken.
    pub fn is_unspoken(&self) -> bool {
        let words = [HOST_SIGNAL, ANSWERED, PIECE];
        words.iter().all(|word| self.memory.load_u32(*word) == 0) && self.memory.load_u64(READ_INDEX) == 0
    }

    /// Longest piece in bytes.
    pub fn room(&self) -> usize {
        self.memory.len().saturating_sub(DATA) as usize
    }

    /// Puts a piece no longer than [`Self::room`]; `left` bytes come after it.
    pub fn give(&mut self, piece: &[u8], left: u64, wall_clock_ns: u64) {
        self.given += 1;
        self.memory.write(DATA, piece);
        self.memory.store_u64(LENGTH, piece.len() as u64);
        self.memory.store_u64(LEFT, left);
        self.memory.store_u64(WALL_CLOCK, wall_clock_ns);
        self.memory.store_u32(PIECE, self.given);
    }
}

/// A piece that lies ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its length in bytes.
    pub len: u64,
    /// Bytes that come after it.
    pub left: u64,
    /// The host's wall clock when it was put there, nanoseconds since the Unix epoch.
    pub wall_clock_ns: u64,
}

/// The guest's side.
#[derive(Debug)]
pub struct Taker<M> {
    memory: M,
    taken: u32,
}

impl<M: RingMemory> Taker<M> {
    /// Says that the guest waits, and what its kernel is tainted by.
    pub fn announce(mut memory: M, taint: u64) -> Self {
        memory.store_u32(TAKEN, 0);
        memory.store_u64(TAINT, taint);
        memory.store_u64(GUEST_READY, READY);
        Self { memory, taken: 0 }
    }

    /// The next piece, if it is there.
    pub fn piece(&self) -> Option<Piece> {
        (self.memory.load_u32(PIECE) == self.taken + 1).then(|| Piece {
            len: self.memory.load_u64(LENGTH).min(self.memory.len().saturating_sub(DATA)),
            left: self.memory.load_u64(LEFT),
            wall_clock_ns: self.memory.load_u64(WALL_CLOCK),
        })
    }

    /// Copies out of the piece that is there, from `offset` of it on.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        self.memory.read(DATA + offset, out);
    }

    /// The piece has been copied; its room may be used again.
    pub fn taken(&mut self) {
        self.taken += 1;
        self.memory.store_u32(TAKEN, self.taken);
    }

    /// Nothing more is expected; the region is the ring's.
    pub fn finish(mut self) -> M {
        self.memory.store_u64(GUEST_READY, 0);
        self.memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{HostSignal, Mode, RingReader, tests::Shared};

    #[test]
    fn an_archive_arrives_whole_however_the_sides_take_turns() {
        let archive: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        for room in [100, 4096, 20_000] {
            let region = Shared::new(DATA as usize + room);
            let mut giver = Giver::new(region.clone());
            assert!(!giver.is_awaited(), "nobody is there yet");
            let mut taker = Taker::announce(region.clone(), 1 << 12 | 1 << 9);
            assert_eq!(giver.taint(), 1 << 9, "a module from elsewhere is no trouble, a warning is");
            assert_eq!((taker.piece(), giver.room()), (None, room));
            let (mut rest, mut got) = (&archive[..], Vec::new());
            while got.len() < archive.len() {
                assert!(giver.is_awaited());
                let (piece, after) = rest.split_at(rest.len().min(room));
                rest = after;
                giver.give(piece, rest.len() as u64, 7);
                assert!(!giver.is_awaited(), "not before it is taken");
                let Piece { len, left, wall_clock_ns } = taker.piece().unwrap();
                assert_eq!((left, wall_clock_ns), (rest.len() as u64, 7));
                let mut out = vec![0; len as usize];
                taker.read(0, &mut out);
                got.extend(out);
                taker.taken();
                assert_eq!(taker.piece(), None);
            }
            assert_eq!(got, archive);
            taker.finish();
            assert!(!giver.is_awaited());
        }
    }

    #[test]
    fn whatever_the_host_has_said_is_in_its_slots() {
        let said: [fn(Shared); 4] = [
            |region| RingReader::new(region, Mode::Wrap).signal(HostSignal::Shutdown),
            |region| RingReader::new(region, Mode::Wrap).answer(1, b"yes").unwrap(),
            |region| Giver::new(region).give(b"piece", 0, 7),
            |mut region| region.store_u64(READ_INDEX, 1 << 32),
        ];
        for said in said {
            let region = Shared::new(DATA as usize + 64);
            let giver = Giver::new(region.clone());
            let _taker = Taker::announce(region.clone(), 0);
            assert!(giver.is_unspoken() && giver.is_awaited(), "what the guest says is not the host's");
            said(region);
            assert!(!giver.is_unspoken());
        }
    }

    #[test]
    fn a_length_beyond_the_region_is_cut() {
        let region = Shared::new(DATA as usize + 64);
        let taker = Taker::announce(region.clone(), 0);
        let mut memory = region.clone();
        memory.store_u64(LENGTH, u64::MAX);
        memory.store_u32(PIECE, 1);
        assert_eq!(taker.piece().unwrap().len, 64);
    }
}

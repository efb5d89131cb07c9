//! A virtio block device over a regular file (Virtual I/O Device specification 1.2, section 5.2).
//!
//! A request is carried out whole before its status is written; a flush has reached the disk of the
//! host (fdatasync) before it is completed, and without the flush feature every write has. Whatever a
//! request says is checked against the file's size first: nothing here can grow it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use ktstr_proto::device::DiskConfig;
use nix::fcntl::{FallocateFlags, fallocate};
use vm_memory::GuestMemoryMmap;

use super::buffers::{ChainError, Request};

/// The unit of all positions, bytes.
const SECTOR: u64 = 512;
/// Length of a request's header, bytes.
const HEADER: u64 = 16;
/// The largest request carried out, bytes; the driver is told less (`SEGMENTS` × `SEGMENT`).
const LARGEST: u64 = 8 << 20;
/// Buffers of data in a request at most.
const SEGMENTS: u32 = 126;
/// The largest buffer of data, bytes.
const SEGMENT: u32 = 64 << 10;
/// Sectors of a discard, or of writing zeros, at most.
const MOST_CLEARED: u32 = 1 << 21;
/// Ranges in one discard, or writing of zeros, at most.
const RANGES: u32 = 16;
/// Bytes copied at a time.
const PIECE: usize = 64 << 10;

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// How a part of the image becomes zeros.
const PUNCH: FallocateFlags = FallocateFlags::FALLOC_FL_PUNCH_HOLE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE);

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
    Identify,
    Discard,
    WriteZeroes,
    Unknown(u32),
}

impl Kind {
    fn of(number: u32) -> Kind {
        match number {
            0 => Kind::Read,
            1 => Kind::Write,
            4 => Kind::Flush,
            8 => Kind::Identify,
            11 => Kind::Discard,
            13 => Kind::WriteZeroes,
            other => Kind::Unknown(other),
        }
    }
}

/// Why a request is answered with an error.
#[derive(Debug)]
enum Refused {
    Unsupported,
    Io(io::Error),
    /// Its buffers or its ranges are wrong.
    Wrong,
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Refused::Io(error)
    }
}

impl From<ChainError> for Refused {
    fn from(_: ChainError) -> Self {
        Refused::Wrong
    }
}

/// A disk's content and how it may be used.
#[derive(Debug)]
pub struct Block {
    image: File,
    bytes: u64,
    read_only: bool,
    /// Whether parts of it become zeros without being written, which a throttle could not count.
    clears: bool,
    /// The host's file has failed before, which has been said.
    host_failed: AtomicBool,
    /// Returns when what was written is durable.
    sync: fn(&File) -> io::Result<()>,
}

impl Block {
    /// A disk over `image`, which must be a file of the size asked for.
    pub fn new(image: File, config: &DiskConfig) -> io::Result<Block> {
        let found = image.metadata()?;
        if !found.is_file() || found.len() != config.bytes() {
            let message = format!("the image is no file of {} bytes", config.bytes());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        // Behind the end, where it changes nothing.
        let clears = !config.read_only && fallocate(&image, PUNCH, found.len() as i64, SECTOR as i64).is_ok();
        Ok(Block {
            image,
            bytes: config.bytes(),
            read_only: config.read_only,
            clears,
            host_failed: AtomicBool::new(false),
            sync: File::sync_data,
        })
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Feature bits of the device type.
    #[must_use]
    pub fn features(&self) -> u64 {
        let common = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH;
        let clears = if self.clears { F_DISCARD | F_WRITE_ZEROES } else { 0 };
        common | clears | if self.read_only { F_RO } else { 0 }
    }

    /// The configuration space (`struct virtio_blk_config`).
    #[must_use]
    pub fn config(&self) -> [u8; 60] {
        let mut space = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.bytes / SECTOR).to_le_bytes());
        put(8, &SEGMENT.to_le_bytes());
        put(12, &SEGMENTS.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(34, &1_u16.to_le_bytes());
        put(36, &MOST_CLEARED.to_le_bytes());
        put(40, &RANGES.to_le_bytes());
        put(44, &8_u32.to_le_bytes());
        put(48, &MOST_CLEARED.to_le_bytes());
        put(52, &RANGES.to_le_bytes());
        put(56, &[1]);
        space
    }

    /// How many bytes of data a request moves, for a throttle.
    #[must_use]
    pub fn weight(&self, request: &Request) -> u64 {
        request.readable.len().saturating_sub(HEADER) + request.writable.len().saturating_sub(1)
    }

    /// Carries a request out and writes its status; returns how many bytes the guest was given.
    ///
    /// `write_through`: every write must be durable by itself. Errors are requests without a place for
    /// their status.
    pub fn serve(
        &self,
        memory: &GuestMemoryMmap,
        request: &Request,
        write_through: bool,
    ) -> Result<u32, ChainError> {
        let (given, status) = match self.carry_out(memory, request, write_through) {
            Ok(given) => (given, OK),
            Err(Refused::Unsupported) => (0, UNSUPPORTED),
            Err(Refused::Wrong) => (0, IOERR),
            Err(Refused::Io(error)) => {
                if !self.host_failed.swap(true, Ordering::Relaxed) {
                    eprintln!("ktstr-vmm device: the disk's image fails, the guest sees I/O errors: {error}");
                }
                (0, IOERR)
            }
        };
        let at = request.writable.len().checked_sub(1).ok_or(ChainError::Short {
            what: "status",
            from: 0,
            to: 1,
            end: 0,
        })?;
        request.writable.write(memory, "status", at, &[status])?;
        Ok(u32::try_from(given + 1).unwrap_or(u32::MAX))
    }

    fn carry_out(
        &self,
        memory: &GuestMemoryMmap,
        request: &Request,
        write_through: bool,
    ) -> Result<u64, Refused> {
        let mut header = [0; HEADER as usize];
        request.readable.read(memory, "header", 0, &mut header)?;
        let number = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let mut sector = [0; 8];
        sector.copy_from_slice(&header[8..]);
        let at = u64::from_le_bytes(sector).checked_mul(SECTOR).ok_or(Refused::Wrong)?;
        match Kind::of(number) {
            Kind::Read => self.read(memory, request, at),
            Kind::Identify => identify(memory, request),
            Kind::Flush => Ok((self.sync)(&self.image).map(|()| 0)?),
            Kind::Unknown(_) => Err(Refused::Unsupported),
            Kind::Write | Kind::Discard | Kind::WriteZeroes if self.read_only => Err(Refused::Wrong),
            Kind::Discard | Kind::WriteZeroes if !self.clears => Err(Refused::Unsupported),
            kind => {
                match kind {
                    Kind::Write => self.write(memory, request, at)?,
                    _ => self.clear(memory, request, kind)?,
                }
                if write_through {
                    (self.sync)(&self.image)?;
                }
                Ok(0)
            }
        }
    }

    /// A range of whole sectors within the disk.
    fn check(&self, at: u64, len: u64) -> Result<(), Refused> {
        let end = at.checked_add(len).ok_or(Refused::Wrong)?;
        let whole = at.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
        if whole && end <= self.bytes { Ok(()) } else { Err(Refused::Wrong) }
    }

    fn read(&self, memory: &GuestMemoryMmap, request: &Request, at: u64) -> Result<u64, Refused> {
        let len = request.writable.len().checked_sub(1).ok_or(Refused::Wrong)?;
        self.check(at, len)?;
        let mut piece = buffer(len)?;
        let mut done = 0;
        while done < len {
            let size = (len - done).min(piece.len() as u64) as usize;
            self.image.read_exact_at(&mut piece[..size], at + done)?;
            request.writable.write(memory, "data", done, &piece[..size])?;
            done += size as u64;
        }
        Ok(len)
    }

    fn write(&self, memory: &GuestMemoryMmap, request: &Request, at: u64) -> Result<(), Refused> {
        let len = request.readable.len().checked_sub(HEADER).ok_or(Refused::Wrong)?;
        self.check(at, len)?;
        let mut piece = buffer(len)?;
        let mut done = 0;
        while done < len {
            let size = (len - done).min(piece.len() as u64) as usize;
            request.readable.read(memory, "data", HEADER + done, &mut piece[..size])?;
            self.image.write_all_at(&piece[..size], at + done)?;
            done += size as u64;
        }
        Ok(())
    }

    /// Makes ranges read as zeros and gives their room back.
    fn clear(&self, memory: &GuestMemoryMmap, request: &Request, kind: Kind) -> Result<(), Refused> {
        let len = request.readable.len().checked_sub(HEADER).ok_or(Refused::Wrong)?;
        if len == 0 || !len.is_multiple_of(16) || len / 16 > u64::from(RANGES) {
            return Err(Refused::Wrong);
        }
        for index in 0..len / 16 {
            let mut range = [0; 16];
            request.readable.read(memory, "range", HEADER + 16 * index, &mut range)?;
            let [sector, count_and_flags] = [&range[..8], &range[8..]].map(|half| {
                let mut word = [0; 8];
                word.copy_from_slice(half);
                u64::from_le_bytes(word)
            });
            let (count, flags) = (count_and_flags as u32, (count_and_flags >> 32) as u32);
            let unmap = flags & 1 != 0;
            // Unmapping is a choice of writing zeros alone; other flags are not known.
            if flags & !1 != 0 || (unmap && kind == Kind::Discard) {
                return Err(Refused::Unsupported);
            }
            if count > MOST_CLEARED {
                return Err(Refused::Wrong);
            }
            let at = sector.checked_mul(SECTOR).ok_or(Refused::Wrong)?;
            let len = u64::from(count) * SECTOR;
            self.check(at, len)?;
            if len > 0 {
                // Both lie within the disk, whose size is far below 2^63.
                fallocate(&self.image, PUNCH, at as i64, len as i64).map_err(io::Error::from)?;
            }
        }
        Ok(())
    }
}

fn buffer(len: u64) -> Result<Vec<u8>, Refused> {
    if len > LARGEST {
        return Err(Refused::Wrong);
    }
    Ok(vec![0; (len as usize).min(PIECE)])
}

/// Twenty bytes, as `/sys/block/vda/serial` shows them.
fn identify(memory: &GuestMemoryMmap, request: &Request) -> Result<u64, Refused> {
    let mut name = [0; 20];
    name[..5].copy_from_slice(b"disk0");
    let room = request.writable.len().saturating_sub(1).min(name.len() as u64);
    request.writable.write(memory, "name", 0, &name[..room as usize])?;
    Ok(room)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use vm_memory::{Bytes, GuestAddress};

    use super::super::buffers::Buffers;
    use super::*;

    const DATA: u64 = 0x1000;
    const STATUS: u64 = 0x100;

    struct Guest {
        memory: GuestMemoryMmap,
        block: Block,
        write_through: bool,
    }

    impl Guest {
        fn new(config: DiskConfig) -> Guest {
            let image = tempfile::tempfile().unwrap();
            image.set_len(config.bytes()).unwrap();
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
            Guest { memory, block: Block::new(image, &config).unwrap(), write_through: false }
        }

        /// Status and how many bytes came, of a request with `len` bytes at [`DATA`].
        fn ask(&self, kind: u32, sector: u64, len: u32) -> (u8, u32) {
            let mut header = kind.to_le_bytes().to_vec();
            header.extend([0; 4]);
            header.extend(sector.to_le_bytes());
            self.memory.write_slice(&header, GuestAddress(0)).unwrap();
            self.memory.write_slice(&[0xee], GuestAddress(STATUS)).unwrap();
            let (mut readable, mut writable) = (Buffers::default(), Buffers::default());
            readable.add(GuestAddress(0), 16);
            let from_guest = matches!(Kind::of(kind), Kind::Write | Kind::Discard | Kind::WriteZeroes);
            (if from_guest { &mut readable } else { &mut writable }).add(GuestAddress(DATA), len);
            writable.add(GuestAddress(STATUS), 1);
            let given =
                self.block.serve(&self.memory, &Request { readable, writable }, self.write_through).unwrap();
            (self.memory.read_obj(GuestAddress(STATUS)).unwrap(), given)
        }

        fn put(&self, bytes: &[u8]) {
            self.memory.write_slice(bytes, GuestAddress(DATA)).unwrap();
        }

        fn get(&self, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            self.memory.read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
            bytes
        }

        /// A discard or a writing of zeros.
        fn clear(&self, kind: u32, sector: u64, count: u32, flags: u32) -> u8 {
            let mut range = sector.to_le_bytes().to_vec();
            range.extend(count.to_le_bytes());
            range.extend(flags.to_le_bytes());
            self.put(&range);
            self.ask(kind, 0, 16).0
        }
    }

    #[test]
    fn what_is_written_is_read_and_flushed() {
        let guest = Guest::new(DiskConfig::new().capacity_mib(1));
        let content: Vec<u8> = (0..200 << 10).map(|n: u32| (n % 251) as u8).collect();
        guest.put(&content);
        assert_eq!(guest.ask(1, 3, 200 << 10), (OK, 1));
        assert_eq!(guest.ask(4, 0, 0), (OK, 1));
        guest.put(&vec![0; 200 << 10]);
        assert_eq!(guest.ask(0, 3, 200 << 10), (OK, (200 << 10) + 1));
        assert_eq!(guest.get(200 << 10), content);
        assert_eq!(guest.ask(8, 0, 20), (OK, 21));
        assert_eq!(guest.get(6), b"disk0\0");
    }

    #[test]
    fn nothing_lies_beyond_the_end() {
        let guest = Guest::new(DiskConfig::new().capacity_mib(1));
        for kind in [0, 1] {
            assert_eq!(guest.ask(kind, 2047, 512).0, OK);
            for (sector, len) in [(2047, 1024), (2048, 512), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 100)]
            {
                assert_eq!(guest.ask(kind, sector, len), (IOERR, 1), "{kind} {sector} {len}");
            }
        }
        assert_eq!(guest.ask(77, 0, 0).0, UNSUPPORTED);
        assert_eq!(guest.block.image.metadata().unwrap().len(), 1 << 20);
    }

    #[test]
    fn a_read_only_disk_is_not_written() {
        let guest = Guest::new(DiskConfig::new().capacity_mib(1).read_only());
        assert_ne!(guest.block.features() & F_RO, 0);
        guest.put(&[7; 512]);
        assert_eq!(guest.ask(1, 0, 512).0, IOERR);
        assert_eq!(guest.clear(11, 0, 8, 0), IOERR);
        assert_eq!(guest.ask(0, 0, 512).0, OK);
        assert_eq!(guest.get(512), [0; 512]);
    }

    #[test]
    fn discards_give_room_back_and_zeros_are_zeros() {
        let guest = Guest::new(DiskConfig::new().capacity_mib(1));
        guest.put(&[7; 512 << 10]);
        assert_eq!(guest.ask(1, 0, 512 << 10).0, OK);
        guest.block.image.sync_all().unwrap();
        let full = guest.block.image.metadata().unwrap().blocks();
        assert_eq!(guest.clear(11, 0, 512, 0), OK);
        assert!(guest.block.image.metadata().unwrap().blocks() < full, "{full}");
        assert_eq!(guest.clear(13, 512, 1, 1), OK);
        assert_eq!(guest.ask(0, 512, 1024).0, OK);
        let read = guest.get(1024);
        assert!(read[..512].iter().all(|byte| *byte == 0) && read[512..].iter().all(|byte| *byte == 7));
        for (kind, sector, count, flags, status) in [
            (11, 2047, 2, 0, IOERR),
            (11, u64::MAX, 1, 0, IOERR),
            (11, 0, u32::MAX, 0, IOERR),
            (11, 0, 1, 1, UNSUPPORTED),
            (13, 0, 1, 2, UNSUPPORTED),
        ] {
            assert_eq!(guest.clear(kind, sector, count, flags), status, "{kind} {sector} {count} {flags}");
        }
    }

    /// Zeros that would have to be written are the guest's to write, where a throttle counts them.
    #[test]
    fn a_host_that_cannot_punch_holes_offers_no_discard() {
        let mut guest = Guest::new(DiskConfig::new().capacity_mib(1));
        assert_eq!(guest.block.features() & (F_DISCARD | F_WRITE_ZEROES), F_DISCARD | F_WRITE_ZEROES);
        guest.block.clears = false;
        assert_eq!(guest.block.features() & (F_DISCARD | F_WRITE_ZEROES), 0);
        assert_eq!([11, 13].map(|kind| guest.clear(kind, 0, 8, 0)), [UNSUPPORTED; 2]);
    }

    thread_local! {
        /// How often this thread's disk was made durable, and what its file says to that.
        static SYNCED: std::cell::Cell<(u32, bool)> = const { std::cell::Cell::new((0, true)) };
    }

    fn synced(_: &File) -> io::Result<()> {
        let (count, works) = SYNCED.get();
        SYNCED.set((count + 1, works));
        if works { Ok(()) } else { Err(io::Error::other("the host's disk is gone")) }
    }

    #[test]
    fn a_flush_is_done_when_the_host_says_so() {
        let mut guest = Guest::new(DiskConfig::new().capacity_mib(1));
        guest.block.sync = synced;
        assert_eq!(guest.ask(1, 0, 512).0, OK);
        assert_eq!(SYNCED.get().0, 0, "a write may wait");
        assert_eq!(guest.ask(4, 0, 0).0, OK);
        assert_eq!(SYNCED.get().0, 1);
        assert_eq!(guest.ask(0, 0, 512).0, OK);
        assert_eq!(SYNCED.get().0, 1, "nothing is read for good");
        // A driver that knows no flush wants each write to be durable.
        guest.write_through = true;
        assert_eq!(guest.ask(1, 0, 512).0, OK);
        assert_eq!(SYNCED.get().0, 2);
        SYNCED.set((0, false));
        assert_eq!(guest.ask(1, 0, 512).0, IOERR);
        guest.write_through = false;
        assert_eq!(guest.ask(4, 0, 0).0, IOERR);
        assert_eq!(SYNCED.get().0, 2);
    }

    #[test]
    fn a_request_without_a_status_is_no_request() {
        let guest = Guest::new(DiskConfig::new().capacity_mib(1));
        let mut readable = Buffers::default();
        readable.add(GuestAddress(0), 16);
        let request = Request { readable, writable: Buffers::default() };
        assert!(matches!(guest.block.serve(&guest.memory, &request, false), Err(ChainError::Short { .. })));
    }
}

//! Writes and reads the file of a snapshot, see [`ktstr_proto::snapshot`] for its layout.
//!
//! RAM goes from file to file by way of a buffer; what is zero is not kept. Nothing here knows what the
//! devices' state means, and nothing is used whose checksum does not fit. Who decides that a snapshot
//! suits a machine is the orchestrator.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use ktstr_proto::snapshot::{self, ENTRY, HEADER, Header, MAX_PIECE, MAX_STATE, Piece, SnapshotError};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

const PAGE: usize = 4096;

/// Why a snapshot cannot be taken or used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotFileError {
    /// The file itself.
    #[error(transparent)]
    File(#[from] SnapshotError),
    /// It is of another machine.
    #[error("the snapshot holds {found} bytes of RAM, the machine has {wanted}")]
    Ram {
        /// Bytes found.
        found: u64,
        /// Bytes of this machine.
        wanted: u64,
    },
    /// More state than any machine has.
    #[error("the devices' state of {bytes} bytes is too large for a snapshot")]
    State {
        /// Its length.
        bytes: usize,
    },
    /// Copying failed.
    #[error("{action}")]
    Copy {
        /// What was copied.
        action: &'static str,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

impl SnapshotFileError {
    /// Whether the file is to blame.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::File(_) | Self::Ram { .. })
    }
}

fn copying<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> SnapshotFileError {
    move |source| SnapshotFileError::Copy { action, source: source.into() }
}

/// Writes a machine that stands: `ram` bytes of the RAM file and the devices' `state`. Returns the
/// file's length in bytes. The header comes last.
pub fn write(
    file: &File,
    ram_file: BorrowedFd<'_>,
    ram: u64,
    state: &[u8],
    description: &str,
) -> Result<u64, SnapshotFileError> {
    if state.len() as u64 > MAX_STATE {
        return Err(SnapshotFileError::State { bytes: state.len() });
    }
    let mut contents = Contents { file, at: HEADER as u64, pieces: Vec::new() };
    let source = clone(ram_file)?;
    let mut buffer = vec![0; MAX_PIECE as usize];
    let mut at = 0;
    while let Some((mut start, end)) = next_data(ram_file, at, ram)? {
        while start < end {
            let n = (end - start).min(MAX_PIECE.into()) as usize;
            source.read_exact_at(&mut buffer[..n], start).map_err(copying("read guest RAM"))?;
            contents.add_nonzero(start, &buffer[..n])?;
            start += n as u64;
        }
        at = end;
    }
    let table = snapshot::encode_table(&contents.pieces);
    let header = Header {
        description: description.to_owned(),
        ram,
        content: contents.at - HEADER as u64,
        state: state.len() as u64,
        state_crc: crc32fast::hash(state),
        pieces: contents.pieces.len() as u32,
        table_crc: crc32fast::hash(&table),
    };
    let put = |bytes: &[u8], at| file.write_all_at(bytes, at).map_err(copying("write the snapshot"));
    put(state, header.state_at())?;
    put(&table, header.table_at())?;
    put(&header.encode()?, 0)?;
    Ok(header.file_len())
}

/// The next piece of `file` from `at` on that may hold something, cut at `limit`.
fn next_data(file: BorrowedFd<'_>, at: u64, limit: u64) -> Result<Option<(u64, u64)>, SnapshotFileError> {
    let seek = |at: u64, whence| lseek(file, at as i64, whence).map(|found| found as u64);
    let start = match seek(at, Whence::SeekData) {
        Ok(start) if start < limit => start,
        Ok(_) | Err(Errno::ENXIO) => return Ok(None),
        Err(errno) => return Err(copying("find what guest RAM holds")(errno)),
    };
    let end = seek(start, Whence::SeekHole).map_err(copying("find what guest RAM holds"))?;
    // Both lie on page boundaries of the host, and RAM is a multiple of larger ones.
    Ok(Some((start, end.min(limit))))
}

struct Contents<'a> {
    file: &'a File,
    at: u64,
    pieces: Vec<Piece>,
}

impl Contents<'_> {
    /// Keeps the runs of pages that are not zero.
    fn add_nonzero(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SnapshotFileError> {
        const ZERO: [u8; PAGE] = [0; PAGE];
        let mut run: Option<usize> = None;
        for at in (0..bytes.len()).step_by(PAGE) {
            let page = &bytes[at..(at + PAGE).min(bytes.len())];
            let zero = *page == ZERO[..page.len()];
            match run {
                Some(start) if zero => {
                    self.add(offset + start as u64, &bytes[start..at])?;
                    run = None;
                }
                None if !zero => run = Some(at),
                _ => {}
            }
        }
        run.map_or(Ok(()), |start| self.add(offset + start as u64, &bytes[start..]))
    }

    fn add(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SnapshotFileError> {
        self.file.write_all_at(bytes, self.at).map_err(copying("write the snapshot"))?;
        self.pieces.push(Piece { offset, len: bytes.len() as u32, crc: crc32fast::hash(bytes) });
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// A snapshot whose header and table are sound; RAM and state have not been looked at.
#[derive(Debug)]
pub struct SnapshotFile {
    file: File,
    header: Header,
    pieces: Vec<Piece>,
}

impl SnapshotFile {
    /// Reads header and table of a snapshot of a machine with `ram` bytes.
    pub fn open(mut file: File, ram: u64) -> Result<SnapshotFile, SnapshotFileError> {
        let header = Header::read(&mut file)?;
        if header.ram != ram {
            return Err(SnapshotFileError::Ram { found: header.ram, wanted: ram });
        }
        let mut table = vec![0; header.pieces as usize * ENTRY];
        file.read_exact_at(&mut table, header.table_at()).map_err(SnapshotError::Read)?;
        let pieces = snapshot::decode_table(&header, &table)?;
        Ok(SnapshotFile { file, header, pieces })
    }

    /// The devices' state.
    pub fn state(&self) -> Result<Vec<u8>, SnapshotFileError> {
        let mut state = vec![0; self.header.state as usize];
        self.file.read_exact_at(&mut state, self.header.state_at()).map_err(SnapshotError::Read)?;
        if crc32fast::hash(&state) != self.header.state_crc {
            return Err(SnapshotError::Damaged { part: "its devices' state" }.into());
        }
        Ok(state)
    }

    /// Fills a RAM file that holds nothing yet.
    pub fn fill(&self, ram_file: &File) -> Result<(), SnapshotFileError> {
        let mut buffer = vec![0; MAX_PIECE as usize];
        let mut at = HEADER as u64;
        for piece in &self.pieces {
            let bytes = &mut buffer[..piece.len as usize];
            self.file.read_exact_at(bytes, at).map_err(SnapshotError::Read)?;
            if crc32fast::hash(bytes) != piece.crc {
                return Err(SnapshotError::Damaged { part: "its copy of RAM" }.into());
            }
            ram_file.write_all_at(bytes, piece.offset).map_err(copying("fill guest RAM"))?;
            at += u64::from(piece.len);
        }
        Ok(())
    }
}

fn clone(fd: BorrowedFd<'_>) -> Result<File, SnapshotFileError> {
    fd.as_fd().try_clone_to_owned().map(File::from).map_err(copying("duplicate the descriptor of guest RAM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: u64 = 8 << 20;

    fn ram() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(RAM).unwrap();
        file
    }

    /// RAM with a bit here and there: at both ends, across the longest piece, zeroes written out.
    fn planted() -> File {
        let file = ram();
        for (at, len) in [(0, 10), (5000, 5000), (1 << 20, 3 << 20), (RAM - 1, 1)] {
            file.write_all_at(&vec![0xa5; len], at).unwrap();
        }
        file.write_all_at(&vec![0; 1 << 20], 5 << 20).unwrap();
        file
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; RAM as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn snapshot() -> (File, u64) {
        let file = tempfile::tempfile().unwrap();
        let length = write(&file, planted().as_fd(), RAM, b"devices", "a machine").unwrap();
        (file, length)
    }

    #[test]
    fn a_machine_comes_back_as_it_was_and_zeroes_are_not_kept() {
        let (file, length) = snapshot();
        assert_eq!(file.metadata().unwrap().len(), length);
        assert!((3 << 20..4 << 20).contains(&length), "{length}");
        let read = SnapshotFile::open(file.try_clone().unwrap(), RAM).unwrap();
        assert_eq!(read.state().unwrap(), b"devices");
        let fresh = ram();
        read.fill(&fresh).unwrap();
        assert!(content(&fresh) == content(&planted()));
        assert!(matches!(SnapshotFile::open(file, 2 * RAM), Err(SnapshotFileError::Ram { .. })));
    }

    #[test]
    fn damage_anywhere_is_seen_before_the_machine_runs() {
        let (file, length) = snapshot();
        let usable = || {
            let read = SnapshotFile::open(file.try_clone().unwrap(), RAM)?;
            read.state()?;
            read.fill(&ram())
        };
        usable().unwrap();
        for at in (0..length).step_by(65_521).chain(length - 100..length) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
            assert!(usable().is_err(), "byte {at} of {length}");
            file.write_all_at(&byte, at).unwrap();
        }
        usable().unwrap();
        file.set_len(length - 1).unwrap();
        assert!(usable().is_err(), "cut by one byte");
    }
}

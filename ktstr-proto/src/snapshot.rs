//! The file of a snapshot: a machine that stands, in a form whose header says everything about it
//! before anything of its body is read.
//!
//! ```text
//! 0       header, [`HEADER`] bytes, description included
//! 4096    contents of the pieces, one after the other
//!         what the backend knows of its devices
//!         table of pieces: offset in RAM u64, length u32, CRC-32 u32
//! ```
//!
//! The header is written last, so a file cut short in writing has none. Its checksum covers itself and
//! the table's, the table's every piece: no byte is used that differs from what was written. A reader
//! of another [`VERSION`] refuses it. RAM that no piece covers is zero.

use std::io::{self, Read, Seek, SeekFrom};

/// First bytes of the file.
pub const MAGIC: [u8; 8] = *b"KTSTWARM";
/// Version of the layout.
pub const VERSION: u32 = 1;
/// Bytes of the header with its description; the pieces' contents follow.
pub const HEADER: usize = 4096;
/// Longest description in bytes.
pub const MAX_DESCRIPTION: usize = HEADER - FIELDS - 4;
/// Bytes of an entry of the table of pieces.
pub const ENTRY: usize = 16;
/// Longest piece in bytes.
pub const MAX_PIECE: u32 = 1 << 20;
/// More than any backend has to say about its devices, in bytes.
pub const MAX_STATE: u64 = 64 << 20;
/// Most pieces.
pub const MAX_PIECES: u32 = 1 << 24;
const FIELDS: usize = 64;

/// What the header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the machine is: the same text, the same machine.
    pub description: String,
    /// Guest RAM in bytes.
    pub ram: u64,
    /// Bytes of all pieces together.
    pub content: u64,
    /// Bytes of the devices' state.
    pub state: u64,
    /// Its CRC-32.
    pub state_crc: u32,
    /// Number of pieces.
    pub pieces: u32,
    /// CRC-32 of their table.
    pub table_crc: u32,
}

/// Why a file is no snapshot that can be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It cannot be read.
    #[error("read the snapshot")]
    Read(#[from] io::Error),
    /// It begins otherwise.
    #[error("the file is no snapshot, or was never finished")]
    Magic,
    /// Written by another version.
    #[error("the snapshot has version {found}, this program knows {VERSION}")]
    Version {
        /// Version found.
        found: u32,
    },
    /// A checksum does not fit.
    #[error("the snapshot is damaged: {part}")]
    Damaged {
        /// Where.
        part: &'static str,
    },
    /// The description is too long for the header.
    #[error("a description of {length} bytes, {MAX_DESCRIPTION} have room")]
    Description {
        /// Its length.
        length: usize,
    },
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, SnapshotError> {
        let length = self.description.len();
        if length > MAX_DESCRIPTION {
            return Err(SnapshotError::Description { length });
        }
        let mut out = Vec::with_capacity(HEADER);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(length as u32).to_le_bytes());
        for word in [self.ram, self.content, self.state] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for word in [self.state_crc, self.pieces, self.table_crc] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.resize(FIELDS, 0);
        out.extend_from_slice(self.description.as_bytes());
        out.resize(HEADER - 4, 0);
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        Ok(out)
    }

    /// Reads and checks the first bytes of a file.
    pub fn read(file: &mut (impl Read + Seek)) -> Result<Header, SnapshotError> {
        let mut bytes = Vec::with_capacity(HEADER);
        file.seek(SeekFrom::Start(0))?;
        file.take(HEADER as u64).read_to_end(&mut bytes)?;
        Self::decode(&bytes)
    }

    /// Checks the first [`HEADER`] bytes of a file.
    pub fn decode(bytes: &[u8]) -> Result<Header, SnapshotError> {
        let u32_at = |at: usize| bytes.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let u64_at = |at: usize| Some(u64::from(u32_at(at)?) | u64::from(u32_at(at + 4)?) << 32);
        if !bytes.starts_with(&MAGIC) {
            return Err(SnapshotError::Magic);
        }
        let damaged = SnapshotError::Damaged { part: "its header" };
        match u32_at(8) {
            Some(VERSION) => {}
            Some(found) => return Err(SnapshotError::Version { found }),
            None => return Err(damaged),
        }
        if bytes.len() != HEADER || u32_at(HEADER - 4) != Some(crc32fast::hash(&bytes[..HEADER - 4])) {
            return Err(damaged);
        }
        let fields = || {
            let length = u32_at(12)? as usize;
            let description = std::str::from_utf8(bytes[..HEADER - 4].get(FIELDS..FIELDS + length)?).ok()?;
            let header = Header {
                description: description.to_owned(),
                ram: u64_at(16)?,
                content: u64_at(24)?,
                state: u64_at(32)?,
                state_crc: u32_at(40)?,
                pieces: u32_at(44)?,
                table_crc: u32_at(48)?,
            };
            let sane = header.state <= MAX_STATE
                && header.pieces <= MAX_PIECES
                && header.content <= u64::from(header.pieces) * u64::from(MAX_PIECE);
            sane.then_some(header)
        };
        fields().ok_or(damaged)
    }

    /// Offset of the devices' state.
    pub fn state_at(&self) -> u64 {
        HEADER as u64 + self.content
    }

    /// Offset of the table of pieces.
    pub fn table_at(&self) -> u64 {
        self.state_at() + self.state
    }

    /// Length of the whole file.
    pub fn file_len(&self) -> u64 {
        self.table_at() + u64::from(self.pieces) * ENTRY as u64
    }
}

/// One piece of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Offset in RAM.
    pub offset: u64,
    /// Length in bytes, not 0.
    pub len: u32,
    /// CRC-32 of its content.
    pub crc: u32,
}

/// The bytes of a table.
pub fn encode_table(pieces: &[Piece]) -> Vec<u8> {
    let mut out = Vec::with_capacity(pieces.len() * ENTRY);
    for piece in pieces {
        out.extend_from_slice(&piece.offset.to_le_bytes());
        out.extend_from_slice(&piece.len.to_le_bytes());
        out.extend_from_slice(&piece.crc.to_le_bytes());
    }
    out
}

/// Checks a table against its header: ascending, apart, inside of RAM, adding up.
pub fn decode_table(header: &Header, bytes: &[u8]) -> Result<Vec<Piece>, SnapshotError> {
    let damaged = || SnapshotError::Damaged { part: "its table of pieces" };
    if bytes.len() != header.pieces as usize * ENTRY || crc32fast::hash(bytes) != header.table_crc {
        return Err(damaged());
    }
    let (mut pieces, mut end, mut content) = (Vec::with_capacity(header.pieces as usize), 0u64, 0u64);
    for entry in bytes.chunks_exact(ENTRY) {
        let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        let piece =
            Piece { offset: u64::from(word(0)) | u64::from(word(4)) << 32, len: word(8), crc: word(12) };
        let after = piece.offset.checked_add(piece.len.into()).ok_or_else(damaged)?;
        if piece.offset < end || after > header.ram || !(1..=MAX_PIECE).contains(&piece.len) {
            return Err(damaged());
        }
        end = after;
        content += u64::from(piece.len);
        pieces.push(piece);
    }
    if content == header.content { Ok(pieces) } else { Err(damaged()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces() -> Vec<Piece> {
        vec![Piece { offset: 4096, len: 8192, crc: 1 }, Piece { offset: 1 << 20, len: 4096, crc: 2 }]
    }

    fn header() -> Header {
        Header {
            description: "kernel 7.2, 2 CPUs".into(),
            ram: 2 << 20,
            content: 12288,
            state: 100,
            state_crc: 9,
            pieces: 2,
            table_crc: crc32fast::hash(&encode_table(&pieces())),
        }
    }

    #[test]
    fn a_header_comes_back_and_every_flipped_bit_is_seen() {
        let bytes = header().encode().unwrap();
        assert_eq!(bytes.len(), HEADER);
        assert_eq!(Header::read(&mut io::Cursor::new(&bytes)).unwrap(), header());
        assert_eq!(header().file_len(), 4096 + 12288 + 100 + 32);
        for at in 0..HEADER {
            let mut broken = bytes.clone();
            broken[at] ^= 4;
            assert!(Header::decode(&broken).is_err(), "byte {at}");
        }
        for end in [0, 8, 12, 100, HEADER - 1] {
            assert!(Header::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn another_version_and_an_unfinished_file_are_told_apart() {
        let mut bytes = header().encode().unwrap();
        bytes[8] = 2;
        assert!(matches!(Header::decode(&bytes), Err(SnapshotError::Version { found: 2 })));
        assert!(matches!(Header::decode(&[0; HEADER]), Err(SnapshotError::Magic)));
        let long = Header { description: "x".repeat(MAX_DESCRIPTION + 1), ..header() };
        assert!(matches!(long.encode(), Err(SnapshotError::Description { .. })));
    }

    #[test]
    fn tables_that_do_not_add_up_are_damaged() {
        assert_eq!(decode_table(&header(), &encode_table(&pieces())).unwrap(), pieces());
        let wrong = |change: fn(&mut Vec<Piece>)| {
            let mut pieces = pieces();
            change(&mut pieces);
            let bytes = encode_table(&pieces);
            let header =
                Header { pieces: pieces.len() as u32, table_crc: crc32fast::hash(&bytes), ..header() };
            assert!(decode_table(&header, &bytes).is_err(), "{pieces:?}");
        };
        wrong(|pieces| pieces[0].len = 0);
        wrong(|pieces| pieces[0].len = MAX_PIECE + 1);
        wrong(|pieces| pieces[1].offset = 8192);
        wrong(|pieces| pieces[1].offset = u64::MAX);
        wrong(|pieces| pieces[1].offset = 2 << 20);
        wrong(|pieces| pieces.truncate(1));
        assert!(decode_table(&header(), &encode_table(&pieces())[..16]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_header_or_an_error(bytes: Vec<u8>) {
            let _ = Header::decode(&bytes);
            let _ = decode_table(&header(), &bytes);
        }
    }
}

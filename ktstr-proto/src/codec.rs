//! The encoding: a fixed header in front of a bincode body. The only file that knows either.
//!
//! Header, 16 bytes, little endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `KTST` |
//! | 4 | 2 | protocol version |
//! | 6 | 1 | link |
//! | 7 | 1 | kind |
//! | 8 | 4 | body length in bytes |
//! | 12 | 1 | descriptors attached |
//! | 13 | 3 | zero |

use serde::{Serialize, de::DeserializeOwned};

use crate::VERSION;

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"KTST";
/// Size of the encoded header in bytes.
pub const HEADER_LEN: usize = 16;
/// Longest body any link accepts, in bytes. Bulk data (console, ring) is sent in smaller pieces.
pub const MAX_BODY: usize = 16 << 20;
/// Most descriptors one frame may carry: what serves a disk and four networks takes fourteen.
pub const MAX_FDS: usize = 24;

/// What role a frame plays in the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// First frame in each direction: who is speaking.
    Hello = 0,
    /// Asks for exactly one reply.
    Request = 1,
    /// Answers one request.
    Reply = 2,
    /// Tells something unasked.
    Event = 3,
}

/// The decoded header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Protocol version of the sender.
    pub version: u16,
    /// Which link the frame belongs to, [`crate::Link::ID`].
    pub link: u8,
    /// Role of the frame.
    pub kind: Kind,
    /// Body length in bytes.
    pub length: u32,
    /// Number of descriptors that travel with the frame.
    pub fds: u8,
}

/// Why bytes are not a frame of this protocol.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The stream does not speak this protocol, or lost its framing.
    #[error("frame starts with {found:02x?} instead of {MAGIC:02x?}: the peer does not speak this protocol")]
    Magic {
        /// The four bytes found.
        found: [u8; 4],
    },
    /// The peer was built from another version.
    #[error(
        "peer speaks protocol version {found}, this build speaks {VERSION}: install all ktstr executables from one build"
    )]
    Version {
        /// The peer's version.
        found: u16,
    },
    /// A frame of another link arrived.
    #[error("frame belongs to link {found}, expected link {expected}")]
    WrongLink {
        /// Link number in the header.
        found: u8,
        /// Link number of this connection.
        expected: u8,
    },
    /// The kind byte has no meaning.
    #[error("unknown frame kind {found}")]
    UnknownKind {
        /// The kind byte.
        found: u8,
    },
    /// The header announces more than is ever sent.
    #[error("frame announces {length} bytes, the limit is {limit}")]
    TooLong {
        /// Announced length in bytes.
        length: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The header announces too many descriptors.
    #[error("frame announces {count} descriptors, the limit is {MAX_FDS}")]
    TooManyFds {
        /// Announced count.
        count: u8,
    },
    /// The body is not an encoding of the expected type.
    #[error("cannot decode {what} of {length} bytes")]
    Decode {
        /// Type expected.
        what: &'static str,
        /// Body length in bytes.
        length: usize,
        /// The decoder's reason.
        #[source]
        source: bincode::error::DecodeError,
    },
    /// The body decodes but bytes are left over.
    #[error("{extra} bytes left over after decoding {what}")]
    Trailing {
        /// Type expected.
        what: &'static str,
        /// Number of bytes left.
        extra: usize,
    },
    /// The value cannot be encoded.
    #[error("cannot encode {what}")]
    Encode {
        /// Type to be encoded.
        what: &'static str,
        /// The encoder's reason.
        #[source]
        source: bincode::error::EncodeError,
    },
}

impl Header {
    /// The bytes that go in front of a body.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&self.version.to_le_bytes());
        out[6] = self.link;
        out[7] = self.kind as u8;
        out[8..12].copy_from_slice(&self.length.to_le_bytes());
        out[12] = self.fds;
        out
    }

    /// Decodes and bounds a header; the version is checked first, since later fields may mean
    /// something else in another version.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, CodecError> {
        let [m0, m1, m2, m3, v0, v1, link, kind, l0, l1, l2, l3, fds, ..] = *bytes;
        let found = [m0, m1, m2, m3];
        if found != MAGIC {
            return Err(CodecError::Magic { found });
        }
        let version = u16::from_le_bytes([v0, v1]);
        if version != VERSION {
            return Err(CodecError::Version { found: version });
        }
        let kind = match kind {
            0 => Kind::Hello,
            1 => Kind::Request,
            2 => Kind::Reply,
            3 => Kind::Event,
            found => return Err(CodecError::UnknownKind { found }),
        };
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if length as usize > MAX_BODY {
            return Err(CodecError::TooLong { length: length.into(), limit: MAX_BODY as u64 });
        }
        if usize::from(fds) > MAX_FDS {
            return Err(CodecError::TooManyFds { count: fds });
        }
        Ok(Self { version, link, kind, length, fds })
    }
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_BODY>()
}

/// Encodes one value as a body.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let what = std::any::type_name::<T>();
    let body = bincode::serde::encode_to_vec(value, config())
        .map_err(|source| CodecError::Encode { what, source })?;
    if body.len() > MAX_BODY {
        return Err(CodecError::TooLong { length: body.len() as u64, limit: MAX_BODY as u64 });
    }
    Ok(body)
}

/// Decodes a body that must hold exactly one value.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CodecError> {
    let what = std::any::type_name::<T>();
    let (value, used) = bincode::serde::decode_from_slice(body, config())
        .map_err(|source| CodecError::Decode { what, length: body.len(), source })?;
    match body.len() - used {
        0 => Ok(value),
        extra => Err(CodecError::Trailing { what, extra }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header { version: VERSION, link: 2, kind: Kind::Event, length: 77, fds: 1 }
    }

    #[test]
    fn header_survives_the_wire() {
        assert_eq!(Header::decode(&header().encode()).unwrap(), header());
    }

    #[test]
    fn hostile_headers_are_refused_before_any_allocation() {
        let mut future = header().encode();
        future[4] = 0xff;
        assert!(matches!(Header::decode(&future), Err(CodecError::Version { found: 0xff })));
        let mut huge = header().encode();
        huge[8..12].copy_from_slice(&(1u32 << 30).to_le_bytes());
        assert!(matches!(Header::decode(&huge), Err(CodecError::TooLong { length: 0x4000_0000, .. })));
        let mut alien = header().encode();
        alien[0] = b'G';
        assert!(matches!(Header::decode(&alien), Err(CodecError::Magic { .. })));
        let mut kind = header().encode();
        kind[7] = 9;
        assert!(matches!(Header::decode(&kind), Err(CodecError::UnknownKind { found: 9 })));
        let mut fds = header().encode();
        fds[12] = 200;
        assert!(matches!(Header::decode(&fds), Err(CodecError::TooManyFds { count: 200 })));
    }

    #[test]
    fn trailing_and_truncated_bodies_are_errors() {
        let mut body = encode(&(1u32, String::from("x"))).unwrap();
        body.push(0);
        assert!(matches!(decode::<(u32, String)>(&body), Err(CodecError::Trailing { extra: 1, .. })));
        body.truncate(2);
        assert!(matches!(decode::<(u32, String)>(&body), Err(CodecError::Decode { .. })));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_decode_or_fail_without_panic(bytes: Vec<u8>) {
            let _ = decode::<crate::guest::GuestMessage>(&bytes);
            let _ = decode::<crate::run::RunSpec>(&bytes);
        }
    }
}

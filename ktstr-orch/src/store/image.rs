//! Kernel images: telling a bzImage from an ELF `vmlinux`, and getting the
//! latter out of the former.
//!
//! A bzImage says in its setup header (boot protocol 2.08 and later, fields
//! `payload_offset` and `payload_length`; Documentation/arch/x86/boot.rst of
//! the kernel) where its compressed payload lies. Every length is checked
//! against the file before use, and the output is bounded. EFI stubs of other
//! architectures and images without that field are refused.

use std::io::{self, Read};

/// More than any kernel with debug information needs.
const LARGEST_VMLINUX: u64 = 4 << 30;

/// Why a kernel image could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Neither magic is there.
    #[error("neither a bzImage (no 'HdrS' at 0x202) nor an ELF file; it starts with {start:02x?}")]
    Unrecognised {
        /// The first bytes.
        start: Vec<u8>,
    },
    /// The setup header is older than the payload fields.
    #[error("bzImage with boot protocol {major}.{minor:02}: the payload position is known from 2.08 on")]
    OldProtocol {
        /// Major number.
        major: u8,
        /// Minor number.
        minor: u8,
    },
    /// The header points outside the file.
    #[error("bzImage is damaged: payload at {offset:#x}+{length:#x}, but the file has {size:#x} bytes")]
    PayloadOutside {
        /// Payload start in the file.
        offset: u64,
        /// Payload length.
        length: u64,
        /// File length.
        size: u64,
    },
    /// A compression that is not supported.
    #[error(
        "bzImage payload starts with {start:02x?}: that compression is not supported \
         (gzip, xz, zstd and lz4 are)"
    )]
    Compression {
        /// The first bytes of the payload.
        start: Vec<u8>,
    },
    /// The decompressor failed.
    #[error("cannot decompress the {format} payload")]
    Decompress {
        /// Compression format.
        format: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The payload is not a kernel.
    #[error("the decompressed payload is no ELF file; it starts with {start:02x?}")]
    PayloadNotElf {
        /// The first bytes.
        start: Vec<u8>,
    },
}

/// What a kernel file turned out to be.
#[derive(Debug)]
pub(super) enum KernelFile {
    /// A bzImage: its decompressed ELF, and the release its header names.
    BzImage { vmlinux: Vec<u8>, release: Option<String> },
    /// An ELF file already.
    Vmlinux,
}

/// Recognises `bytes` and decompresses the payload of a bzImage.
pub(super) fn inspect(bytes: &[u8]) -> Result<KernelFile, ImageError> {
    if bytes.starts_with(b"\x7fELF") {
        return Ok(KernelFile::Vmlinux);
    }
    if bytes.get(0x202..0x206) != Some(b"HdrS") {
        return Err(ImageError::Unrecognised { start: head(bytes) });
    }
    let vmlinux = decompress(payload(bytes)?)?;
    if !vmlinux.starts_with(b"\x7fELF") {
        return Err(ImageError::PayloadNotElf { start: head(&vmlinux) });
    }
    Ok(KernelFile::BzImage { vmlinux, release: header_release(bytes) })
}

fn payload(bytes: &[u8]) -> Result<&[u8], ImageError> {
    let size = bytes.len() as u64;
    // Everything up to the last field read here, so that the reads below hold.
    if bytes.len() < 0x250 {
        return Err(ImageError::PayloadOutside { offset: 0x1f1, length: 0x5f, size });
    }
    let (minor, major) = (bytes[0x206], bytes[0x207]);
    if (major, minor) < (2, 8) {
        return Err(ImageError::OldProtocol { major, minor });
    }
    // A zero here means four, for the oldest boot loaders' sake.
    let setup_sectors = if bytes[0x1f1] == 0 { 4 } else { u64::from(bytes[0x1f1]) };
    let offset = (setup_sectors + 1) * 512 + u64::from(word(bytes, 0x248));
    let length = u64::from(word(bytes, 0x24c));
    bytes
        .get(offset as usize..(offset + length) as usize)
        .filter(|payload| !payload.is_empty())
        .ok_or(ImageError::PayloadOutside { offset, length, size })
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The NUL-terminated string `kernel_version` points at, up to its first space.
fn header_release(bytes: &[u8]) -> Option<String> {
    let at = usize::from(u16::from_le_bytes([*bytes.get(0x20e)?, *bytes.get(0x20f)?]));
    let text = bytes.get(at + 0x200..)?;
    let text = &text[..text.iter().take(256).position(|&b| b == 0 || b == b' ')?];
    let text = std::str::from_utf8(text).ok()?;
    (at != 0 && text.starts_with(|c: char| c.is_ascii_digit())).then(|| text.to_owned())
}

fn head(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.len().min(8)].to_vec()
}

/// Decompresses what the kernel's build put into a bzImage. The build appends
/// the uncompressed size to the stream, so bytes after its end are expected.
fn decompress(payload: &[u8]) -> Result<Vec<u8>, ImageError> {
    let failed = |format| move |source| ImageError::Decompress { format, source };
    match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd::stream::read::Decoder::new(payload)
            .and_then(|decoder| bounded(decoder.single_frame()))
            .map_err(failed("zstd")),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            bounded(liblzma::read::XzDecoder::new(payload)).map_err(failed("xz"))
        }
        [0x1f, 0x8b, ..] => bounded(flate2::read::GzDecoder::new(payload)).map_err(failed("gzip")),
        [0x02, 0x21, 0x4c, 0x18, ..] => lz4_legacy(payload).map_err(failed("lz4")),
        _ => Err(ImageError::Compression { start: head(payload) }),
    }
}

fn bounded(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    reader.take(LARGEST_VMLINUX + 1).read_to_end(&mut out)?;
    if out.len() as u64 > LARGEST_VMLINUX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "more than 4 GiB of output"));
    }
    Ok(out)
}

/// The legacy lz4 container: magic, then blocks of up to 8 MiB each behind its
/// compressed length. The length word after the last block is the appended
/// uncompressed size.
fn lz4_legacy(payload: &[u8]) -> io::Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let (blocks, size) = payload[4..]
        .split_last_chunk::<4>()
        .map(|(blocks, size)| (blocks, u32::from_le_bytes(*size) as usize))
        .ok_or_else(|| damaged("no size after the last block"))?;
    let mut out = Vec::new();
    let mut rest = blocks;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let block = after.get(..length).ok_or_else(|| damaged("a block runs past the end"))?;
        let plain = lz4_flex::block::decompress(block, BLOCK).map_err(|e| damaged(&e.to_string()))?;
        out.extend_from_slice(&plain);
        rest = &after[length..];
    }
    if out.len() != size {
        return Err(damaged("the blocks do not add up to the recorded size"));
    }
    Ok(out)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;

    /// A bzImage around `payload`, with the release string of its header.
    pub(in crate::store) fn bzimage(payload: &[u8], release: &str) -> Vec<u8> {
        let mut image = vec![0u8; 5 * 512];
        image[0x1f1] = 4;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&[0x0f, 2]);
        image[0x20e..0x210].copy_from_slice(&0x200u16.to_le_bytes());
        let text = format!("{release} (builder@host) #1\0");
        image[0x400..0x400 + text.len()].copy_from_slice(text.as_bytes());
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend([0u8; 16]);
        image.extend(payload);
        image
    }

    fn elf() -> Vec<u8> {
        let mut elf = b"\x7fELF".to_vec();
        elf.extend((0..100_000u32).flat_map(|n| (n / 3).to_le_bytes()));
        elf
    }

    fn with_size(mut compressed: Vec<u8>, plain: &[u8]) -> Vec<u8> {
        compressed.extend((plain.len() as u32).to_le_bytes());
        compressed
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn lz4(plain: &[u8]) -> Vec<u8> {
        let mut out = vec![0x02, 0x21, 0x4c, 0x18];
        for chunk in plain.chunks(8 << 20) {
            let block = lz4_flex::block::compress(chunk);
            out.extend((block.len() as u32).to_le_bytes());
            out.extend(block);
        }
        out
    }

    #[test]
    fn every_supported_compression() {
        let plain = elf();
        let xz = {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
            encoder.write_all(&plain).unwrap();
            encoder.finish().unwrap()
        };
        let payloads = [
            with_size(zstd::encode_all(plain.as_slice(), 1).unwrap(), &plain),
            with_size(xz, &plain),
            gzip(&plain),
            with_size(lz4(&plain), &plain),
        ];
        for payload in payloads {
            match inspect(&bzimage(&payload, "7.2.12-test")).unwrap() {
                KernelFile::BzImage { vmlinux, release } => {
                    assert!(vmlinux == plain, "{:02x?}", &payload[..4]);
                    assert_eq!(release.as_deref(), Some("7.2.12-test"));
                }
                KernelFile::Vmlinux => panic!("a bzImage was taken for an ELF file"),
            }
        }
    }

    #[test]
    fn what_is_refused() {
        assert!(matches!(inspect(b""), Err(ImageError::Unrecognised { .. })));
        assert!(matches!(inspect(b"#!/bin/sh\n"), Err(ImageError::Unrecognised { .. })));
        assert!(matches!(inspect(&bzimage(b"BZh9", "1")), Err(ImageError::Compression { .. })));
        let not_elf = bzimage(&gzip(b"hello"), "1");
        assert!(matches!(inspect(&not_elf), Err(ImageError::PayloadNotElf { .. })));
        let mut old = not_elf.clone();
        old[0x206] = 7;
        assert!(matches!(inspect(&old), Err(ImageError::OldProtocol { major: 2, minor: 7 })));
        let mut outside = not_elf;
        outside[0x24f] = 0xff;
        assert!(matches!(inspect(&outside), Err(ImageError::PayloadOutside { .. })));
    }

    #[test]
    fn every_truncation_is_an_error_and_no_panic() {
        let plain = elf();
        let image = bzimage(&with_size(lz4(&plain), &plain), "1.2");
        for end in (0..image.len()).step_by(97) {
            assert!(inspect(&image[..end]).is_err(), "{end}");
        }
    }
}

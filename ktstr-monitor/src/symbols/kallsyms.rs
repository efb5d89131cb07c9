//! Finds and decodes the kallsyms tables in a stripped kernel image.
//!
//! The tables as `scripts/kallsyms.c` writes them since Linux 6.5, one after the other, each aligned
//! to 4 bytes (7.x) or 8:
//!
//! ```text
//! num_syms: u32 │ names: num_syms × (length, token bytes) │ markers: u32 per 256 names
//! token_table: 256 strings │ token_index: u16 × 256 │ offsets: s32 × num_syms │ [relative_base: u64]
//! ```
//!
//! Nothing points at them, so they are found by shape: the tokens of the ten digits stand side by
//! side in the token table, because digits are never compressed away. Every candidate is validated
//! against all other tables, down to each marker and the end of the names; what remains decides by
//! itself how offsets are meant ([`Encoding`]): under the right reading `_text` is where the code
//! segment starts and addresses ascend. Limit: kernels before 6.5 order the tables differently.

use std::ops::Range;

use thiserror::Error;

use super::{SymbolSource, Symbols};
use crate::addr::Kva;
use crate::image::KernelImage;

/// `0\01\0…9\0`: how the digits stand in the token table.
const DIGITS: [u8; 20] = *b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";
const TOKENS: usize = 256;
/// Names between two markers.
const STRIDE: usize = 256;
/// More symbols than any kernel has.
const MAX_SYMBOLS: usize = 4 << 20;
/// `KSYM_NAME_LEN`, doubled: room for longer ones.
const MAX_NAME: usize = 1024;

/// How the offsets table gives addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Unsigned distance from the base that follows the table.
    Base(Kva),
    /// As `Base` for negative values counted down from it; positive values are absolute (per-CPU
    /// symbols of kernels whose per-CPU area is linked at 0).
    BaseOrAbsolute(Kva),
    /// Signed distance from the place of the offset itself.
    PlaceRelative,
}

/// Why no table was decoded.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum KallsymsError {
    /// Nothing in the image looks like a token table.
    #[error("no kallsyms token table in the image: CONFIG_KALLSYMS is off, or the format is unknown")]
    NoTokenTable,
    /// Something does, but what should surround it does not fit.
    #[error("a kallsyms token table at file offset {offset:#x}, but {what}")]
    Inconsistent {
        /// Where the token table is.
        offset: usize,
        /// What does not fit.
        what: &'static str,
    },
}

/// Finds the tables in `image` and decodes all symbols.
pub fn decode(image: &KernelImage) -> Result<Symbols, KallsymsError> {
    let bytes = image.bytes();
    let mut error = KallsymsError::NoTokenTable;
    for digits in digit_runs(bytes) {
        let Some(tokens) = TokenTable::around(bytes, digits) else { continue };
        match decode_around(image, &tokens) {
            Ok(symbols) => return Ok(symbols),
            Err(what) => {
                error = KallsymsError::Inconsistent { offset: tokens.table.start, what };
            }
        }
    }
    Err(error)
}

fn decode_around(image: &KernelImage, tokens: &TokenTable) -> Result<Symbols, &'static str> {
    let bytes = image.bytes();
    let markers = Markers::before(bytes, tokens.table.start).ok_or("no marker table precedes it")?;
    let names = Names::before(bytes, &markers).ok_or("no name table agrees with the markers")?;
    let text = names.expand(bytes, tokens).ok_or("a name does not decode")?;
    let (encoding, addresses) = [4, 8]
        .iter()
        .filter_map(|&align| Offsets::read(image, align_up(tokens.index_end, align), text.len()))
        .find_map(|offsets| offsets.interpret(image, &text))
        .ok_or("no reading of the offsets puts _text at the start of the code")?;
    // The first character is the type letter of /proc/kallsyms.
    let pairs = text.iter().map(|name| &name[1..]).zip(addresses);
    Ok(Symbols::from_pairs(pairs, SymbolSource::Kallsyms(encoding)))
}

/// The token table and its index.
struct TokenTable {
    table: Range<usize>,
    starts: Vec<u16>,
    index_end: usize,
}

impl TokenTable {
    /// Takes the digits at `digits` for those of a token table and looks whether the rest fits.
    fn around(bytes: &[u8], digits: usize) -> Option<Self> {
        let first = usize::from(b'0');
        let mut end = digits;
        for _ in first..TOKENS {
            end += bytes.get(end..(end + MAX_NAME).min(bytes.len()))?.iter().position(|&b| b == 0)? + 1;
        }
        [2, 4, 8].iter().find_map(|&align| {
            let index = align_up(end, align);
            let starts: Vec<u16> = bytes
                .get(index..index + 2 * TOKENS)?
                .chunks_exact(2)
                .map(|two| u16::from_le_bytes([two[0], two[1]]))
                .collect();
            let start = digits.checked_sub(usize::from(starts[first]))?;
            let table = Self { table: start..end, starts, index_end: index + 2 * TOKENS };
            table.is_consistent(bytes).then_some(table)
        })
    }

    /// Each token starts right after the NUL of the one before.
    fn is_consistent(&self, bytes: &[u8]) -> bool {
        let table = &bytes[self.table.clone()];
        self.starts[0] == 0
            && self.starts.windows(2).all(|pair| {
                let (from, to) = (usize::from(pair[0]), usize::from(pair[1]));
                from < to && to <= table.len() && table[to - 1] == 0 && !table[from..to - 1].contains(&0)
            })
    }

    fn token<'b>(&self, bytes: &'b [u8], token: u8) -> &'b [u8] {
        let table = &bytes[self.table.clone()];
        let from = usize::from(self.starts[usize::from(token)]);
        let to = self.starts.get(usize::from(token) + 1).map_or(table.len(), |&next| usize::from(next));
        &table[from..to - 1]
    }
}

/// The offsets into the names of every 256th name.
struct Markers {
    start: usize,
    values: Vec<u32>,
}

impl Markers {
    /// Reads backwards from `end`: values descend to 0.
    fn before(bytes: &[u8], end: usize) -> Option<Self> {
        let word = |at: usize| u32_at(bytes, at);
        let mut at = end.checked_sub(4)? & !3;
        // Padding to 8 bytes is at most one zero word.
        if word(at)? == 0 {
            at = at.checked_sub(4)?;
        }
        let mut values = vec![word(at)?];
        while *values.last()? != 0 {
            at = at.checked_sub(4)?;
            let value = word(at)?;
            if value >= *values.last()? || values.len() > MAX_SYMBOLS / STRIDE {
                return None;
            }
            values.push(value);
        }
        values.reverse();
        Some(Self { start: at, values })
    }
}

/// The compressed names, in order of address.
struct Names {
    spans: Vec<Range<usize>>,
}

impl Names {
    /// Searches backwards for the count whose names fit the markers exactly.
    fn before(bytes: &[u8], markers: &Markers) -> Option<Self> {
        let last = usize::try_from(*markers.values.last()?).ok()?;
        let highest = markers.start.checked_sub(last)? & !3;
        let lowest = highest.saturating_sub(STRIDE * (MAX_NAME + 2));
        let counts = (markers.values.len() - 1) * STRIDE + 1..=markers.values.len() * STRIDE;
        (lowest..=highest).rev().step_by(4).find_map(|start| {
            [4, 8].iter().find_map(|&gap| {
                let count = u32_at(bytes, start.checked_sub(gap)?)? as usize;
                counts.contains(&count).then(|| Self::walk(bytes, start, count, markers))?
            })
        })
    }

    fn walk(bytes: &[u8], start: usize, count: usize, markers: &Markers) -> Option<Self> {
        let mut at = start;
        let mut spans = Vec::with_capacity(count);
        for nth in 0..count {
            if nth % STRIDE == 0 && markers.values[nth / STRIDE] as usize != at - start {
                return None;
            }
            let (len, from) = match *bytes.get(at)? {
                low if low & 0x80 == 0 => (usize::from(low), at + 1),
                low => (usize::from(low & 0x7f) | usize::from(*bytes.get(at + 1)?) << 7, at + 2),
            };
            at = from + len;
            if len == 0 || at > markers.start {
                return None;
            }
            spans.push(from..at);
        }
        (markers.start - at < 8).then_some(Self { spans })
    }

    fn expand(&self, bytes: &[u8], tokens: &TokenTable) -> Option<Vec<String>> {
        self.spans
            .iter()
            .map(|span| {
                let mut name = Vec::with_capacity(32);
                for &token in &bytes[span.clone()] {
                    name.extend_from_slice(tokens.token(bytes, token));
                    if name.len() > MAX_NAME {
                        return None;
                    }
                }
                // The type letter must be there, and be one byte long.
                name.first().filter(|letter| letter.is_ascii())?;
                String::from_utf8(name).ok()
            })
            .collect()
    }
}

/// The offsets table as it stands.
struct Offsets {
    at: Kva,
    values: Vec<i32>,
    base: Option<Kva>,
}

impl Offsets {
    fn read(image: &KernelImage, start: usize, count: usize) -> Option<Self> {
        let bytes = image.bytes();
        let end = start.checked_add(count.checked_mul(4)?)?;
        let values = bytes
            .get(start..end)?
            .chunks_exact(4)
            .map(|four| i32::from_le_bytes([four[0], four[1], four[2], four[3]]))
            .collect();
        let base = bytes
            .get(align_up(end, 8)..)
            .and_then(|rest| rest.first_chunk())
            .map(|eight| Kva(u64::from_le_bytes(*eight)));
        Some(Self { at: image.kva_of_offset(start as u64)?, values, base })
    }

    /// Tries each encoding and keeps the one that makes sense of all symbols.
    fn interpret(&self, image: &KernelImage, names: &[String]) -> Option<(Encoding, Vec<Kva>)> {
        let based = self.base.iter().flat_map(|&b| [Encoding::Base(b), Encoding::BaseOrAbsolute(b)]);
        let code = image.segments().iter().find(|s| s.executable)?.start;
        std::iter::once(Encoding::PlaceRelative).chain(based).find_map(|encoding| {
            let addresses = self.addresses(encoding);
            let text = names.iter().position(|name| &name[1..] == "_text")?;
            (addresses[text] == code && self.ascends(encoding, &addresses)).then_some((encoding, addresses))
        })
    }

    fn addresses(&self, encoding: Encoding) -> Vec<Kva> {
        let address = |(nth, &value): (usize, &i32)| match encoding {
            Encoding::Base(base) => base.wrapping_add(u64::from(value as u32)),
            Encoding::BaseOrAbsolute(_) if value >= 0 => Kva(value as u64),
            // base - 1 - value, value being negative
            Encoding::BaseOrAbsolute(base) => base.wrapping_add((-1 - i64::from(value)) as u64),
            Encoding::PlaceRelative => {
                self.at.wrapping_add(nth as u64 * 4).wrapping_add(i64::from(value) as u64)
            }
        };
        self.values.iter().enumerate().map(address).collect()
    }

    fn ascends(&self, encoding: Encoding, addresses: &[Kva]) -> bool {
        let absolute = |nth: usize| matches!(encoding, Encoding::BaseOrAbsolute(_)) && self.values[nth] >= 0;
        let mut last = Kva(0);
        addresses.iter().enumerate().filter(|&(nth, _)| !absolute(nth)).all(|(_, &at)| {
            let ascends = last <= at;
            last = at;
            ascends
        })
    }
}

/// Where [`DIGITS`] stands. Looks at every tenth pair of bytes only: the pattern covers at least one.
fn digit_runs(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    (0..bytes.len().saturating_sub(1)).step_by(DIGITS.len() / 2).filter_map(|at| {
        let into = match (bytes[at], bytes[at + 1]) {
            (digit @ b'0'..=b'9', 0) => usize::from(digit - b'0') * 2,
            (0, digit @ b'1'..=b'9') => usize::from(digit - b'0') * 2 - 1,
            _ => return None,
        };
        let start = at.checked_sub(into)?;
        (bytes.get(start..start + DIGITS.len())? == DIGITS).then_some(start)
    })
}

fn align_up(value: usize, align: usize) -> usize {
    value.div_ceil(align) * align
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_le_bytes(*four))
}

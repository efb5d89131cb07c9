//! The buffers of one request, as the guest lists them in a descriptor chain.
//!
//! Everything here is the guest's word: a chain is walked to a bound, its lengths are added with care
//! and each range is looked up in guest memory before anything is copied. Bytes are copied in and out
//! through volatile accesses; no reference into guest memory leaves this file.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

/// Buffers of a request at most. More would be an indirect table larger than any driver makes.
const MOST: usize = 1024;

/// What is wrong with a chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Too many buffers.
    #[error("a request lists more than {MOST} buffers")]
    TooMany,
    /// A buffer for the device's reading after one for its writing.
    #[error("a request lists a buffer to be read after one to be written")]
    Order,
    /// A buffer outside of guest memory.
    #[error("a request lists a buffer outside of memory: {len} bytes at {address:#x}")]
    Outside {
        /// Its address.
        address: u64,
        /// Its length.
        len: u32,
    },
    /// Fewer bytes than the request needs.
    #[error("a request's buffers end at byte {end}, its {what} needs bytes {from} to {to}")]
    Short {
        /// What was being copied.
        what: &'static str,
        /// First byte wanted.
        from: u64,
        /// One past the last byte wanted.
        to: u64,
        /// How many there are.
        end: u64,
    },
}

/// One direction of a request: a list of ranges seen as one.
#[derive(Debug, Clone, Default)]
pub struct Buffers {
    ranges: Vec<(GuestAddress, u32)>,
    len: u64,
}

impl Buffers {
    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn add(&mut self, address: GuestAddress, len: u32) {
        self.ranges.push((address, len));
        // At most `MOST` lengths below 2^32.
        self.len += u64::from(len);
    }

    /// Calls `act` with each piece of `[from, from + len)` and its offset in it.
    fn pieces(
        &self,
        what: &'static str,
        from: u64,
        len: u64,
        mut act: impl FnMut(GuestAddress, usize, usize) -> Result<(), ChainError>,
    ) -> Result<(), ChainError> {
        let to = from.saturating_add(len);
        if to > self.len {
            return Err(ChainError::Short { what, from, to, end: self.len });
        }
        let (mut at, mut done) = (0_u64, 0_u64);
        for (address, size) in &self.ranges {
            let end = at + u64::from(*size);
            if done < len && from + done < end {
                let skip = from + done - at;
                let take = (u64::from(*size) - skip).min(len - done);
                act(GuestAddress(address.0 + skip), done as usize, take as usize)?;
                done += take;
            }
            at = end;
        }
        Ok(())
    }

    /// Copies bytes out of the guest, from `from` on.
    pub fn read(
        &self,
        memory: &GuestMemoryMmap,
        what: &'static str,
        from: u64,
        to: &mut [u8],
    ) -> Result<(), ChainError> {
        let len = to.len() as u64;
        self.pieces(what, from, len, |address, at, size| {
            memory.read_slice(&mut to[at..at + size], address).map_err(|_| outside(address, size))
        })
    }

    /// Copies bytes into the guest, from `at` on.
    pub fn write(
        &self,
        memory: &GuestMemoryMmap,
        what: &'static str,
        at: u64,
        bytes: &[u8],
    ) -> Result<(), ChainError> {
        self.pieces(what, at, bytes.len() as u64, |address, from, size| {
            memory.write_slice(&bytes[from..from + size], address).map_err(|_| outside(address, size))
        })
    }
}

fn outside(address: GuestAddress, size: usize) -> ChainError {
    ChainError::Outside { address: address.0, len: size as u32 }
}

/// The buffers of a request: those the device reads, those it writes.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// From the driver.
    pub readable: Buffers,
    /// For the driver.
    pub writable: Buffers,
}

impl Request {
    /// Walks a chain.
    pub fn gather<M>(memory: &GuestMemoryMmap, chain: DescriptorChain<M>) -> Result<Request, ChainError>
    where
        M: Deref,
        M::Target: GuestMemory,
    {
        let mut request = Request::default();
        for (index, descriptor) in chain.enumerate() {
            let (address, len) = (descriptor.addr(), descriptor.len());
            if index == MOST {
                return Err(ChainError::TooMany);
            }
            let access = if descriptor.is_write_only() { Permissions::Write } else { Permissions::Read };
            if len > 0 && !memory.check_range(address, len as usize, access) {
                return Err(ChainError::Outside { address: address.0, len });
            }
            if descriptor.is_write_only() {
                request.writable.add(address, len);
            } else if request.writable.ranges.is_empty() {
                request.readable.add(address, len);
            } else {
                return Err(ChainError::Order);
            }
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x2000), 0x1000)]).unwrap()
    }

    fn list(ranges: &[(u64, u32)]) -> Buffers {
        let mut buffers = Buffers::default();
        for (address, len) in ranges {
            buffers.add(GuestAddress(*address), *len);
        }
        buffers
    }

    #[test]
    fn ranges_are_seen_as_one() {
        let memory = memory();
        let buffers = list(&[(0x10, 3), (0x500, 0), (0x2000, 5)]);
        buffers.write(&memory, "test", 0, b"abcdefgh").unwrap();
        let mut bytes = [0; 4];
        buffers.read(&memory, "test", 2, &mut bytes).unwrap();
        assert_eq!(&bytes, b"cdef");
        memory.read_slice(&mut bytes, GuestAddress(0x2000)).unwrap();
        assert_eq!(&bytes, b"defg");
    }

    #[test]
    fn what_is_not_there_is_not_copied() {
        let memory = memory();
        let buffers = list(&[(0, 8), (0x1800, 8)]);
        let short = buffers.read(&memory, "header", 8, &mut [0; 9]).unwrap_err();
        assert_eq!(short.to_string(), "a request's buffers end at byte 16, its header needs bytes 8 to 17");
        let outside = buffers.read(&memory, "header", 4, &mut [0; 8]).unwrap_err();
        assert_eq!(outside, ChainError::Outside { address: 0x1800, len: 4 });
        assert!(buffers.read(&memory, "header", u64::MAX, &mut [0; 8]).is_err());
    }
}

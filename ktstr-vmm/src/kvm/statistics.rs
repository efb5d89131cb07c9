//! What KVM counts for each vCPU: exits by reason, halts and polls (Documentation/virt/kvm/api.rst,
//! KVM_GET_STATS_FD).
//!
//! Counters are named by the kernel; what it calls histograms is left out. Sizes and offsets of the kernel's
//! description are checked like anybody's.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use ktstr_proto::vmm::VcpuStatistics;
use kvm_ioctls::VcpuFd;

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
/// `struct kvm_stats_header` and the part of `struct kvm_stats_desc` before the name.
const HEADER: usize = 24;
const DESCRIPTION: usize = 16;
/// More than any kernel describes.
const MOST_COUNTERS: u32 = 4096;
const LONGEST_NAME: u32 = 256;

/// One vCPU's counters, readable as long as this lives; it keeps the VM alive.
#[derive(Debug)]
pub struct Source(File);

impl Source {
    /// Nothing where the kernel (before 5.14) does not count like this.
    pub fn of(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: an ioctl without an argument.
        let fd = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_STATS_FD, 0) };
        // SAFETY: the kernel has just returned this descriptor to us.
        (fd >= 0).then(|| Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// The counters as they are now.
    pub fn read(&self) -> io::Result<VcpuStatistics> {
        read(&self.0)
    }
}

fn malformed() -> io::Error {
    io::Error::other("the kernel describes its counters in another way")
}

fn read(file: &File) -> io::Result<VcpuStatistics> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    let word = |bytes: &[u8], at: usize| {
        u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let [name_size, count, _, descriptions, data] = [4, 8, 12, 16, 20].map(|at| word(&header, at));
    if name_size > LONGEST_NAME || count > MOST_COUNTERS {
        return Err(malformed());
    }
    let length = DESCRIPTION + name_size as usize;
    let mut block = vec![0; length * count as usize];
    file.read_exact_at(&mut block, descriptions.into())?;
    let mut counters = Vec::new();
    for description in block.chunks_exact(length) {
        // The number of values; more than one is a histogram.
        if u16::from_ne_bytes([description[6], description[7]]) != 1 {
            continue;
        }
        let name = description[DESCRIPTION..].split(|byte| *byte == 0).next().unwrap_or_default();
        let name = std::str::from_utf8(name).map_err(|_| malformed())?;
        let mut value = [0; 8];
        file.read_exact_at(&mut value, u64::from(data) + u64::from(word(description, 8)))?;
        counters.push((name.to_owned(), u64::from_ne_bytes(value)));
    }
    Ok(VcpuStatistics { counters })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// As the kernel lays it out: header, id, descriptions, data.
    fn file(name_size: u32, count: u32) -> File {
        let mut bytes: Vec<u8> = Vec::new();
        for word in [0, name_size, count, 24, 32, 32 + 3 * 24] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(*b"kvm-1/0\0");
        for (size, offset, name) in
            [(1u16, 0u32, b"exits\0\0\0"), (32, 16, b"hist\0\0\0\0"), (1, 8, b"polls\0\0\0")]
        {
            bytes.extend([0; 6]);
            bytes.extend(size.to_ne_bytes());
            bytes.extend(offset.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(name);
        }
        bytes.extend(7u64.to_ne_bytes());
        bytes.extend(9u64.to_ne_bytes());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn counters_are_read_by_name_and_histograms_left_out() {
        let read = read(&file(8, 3)).unwrap();
        assert_eq!(read.counters, [("exits".to_owned(), 7), ("polls".to_owned(), 9)]);
    }

    #[test]
    fn sizes_that_cannot_be_are_errors() {
        assert!(read(&file(1 << 20, 3)).is_err());
        assert!(read(&file(8, u32::MAX)).is_err());
        assert!(read(&file(8, 300)).is_err(), "descriptions beyond the end");
    }
}

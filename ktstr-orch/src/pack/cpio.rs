//! Writes the "newc" archive format that the kernel extracts an initramfs
//! from (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Entries go out in the order they come in; names are relative to the root.
//! Times are zero and inode numbers count up, so that the bytes depend on
//! nothing else. Hard links are not written.

use std::io::{self, Write};

const TRAILER: &str = "TRAILER!!!";

/// What kind of entry a header announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    Symlink,
    /// Major and minor number.
    CharDevice(u32, u32),
}

impl Kind {
    fn type_bits(self) -> u32 {
        match self {
            Kind::Directory => 0o040_000,
            Kind::File => 0o100_000,
            Kind::Symlink => 0o120_000,
            Kind::CharDevice(..) => 0o020_000,
        }
    }
}

/// An archive being written.
pub(super) struct Archive<W> {
    out: W,
    written: u64,
    inode: u32,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, written: 0, inode: 0 }
    }

    /// Writes an entry whose content is at hand.
    pub(super) fn entry(&mut self, name: &str, kind: Kind, mode: u32, content: &[u8]) -> io::Result<()> {
        self.stream(name, kind, mode, content.len() as u64, &mut &*content)
    }

    /// Writes an entry of exactly `size` bytes. A source that ends early is an
    /// error, one that goes on is cut: both are files changing under us.
    pub(super) fn stream(
        &mut self,
        name: &str,
        kind: Kind,
        mode: u32,
        size: u64,
        content: &mut dyn io::Read,
    ) -> io::Result<()> {
        self.inode += 1;
        self.header(name, kind, kind.type_bits() | mode, size, self.inode)?;
        let copied = io::copy(&mut io::Read::take(content, size), &mut self.out)?;
        if copied != size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was packed",
            ));
        }
        self.written += size;
        self.pad()
    }

    /// Writes the end marker and gives the archive's size.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.header(TRAILER, Kind::File, 0, 0, 0)?;
        self.out.flush()?;
        Ok(self.written)
    }

    fn header(&mut self, name: &str, kind: Kind, mode: u32, size: u64, inode: u32) -> io::Result<()> {
        let size = u32::try_from(size)
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "newc holds files below 4 GiB only"))?;
        let links = if kind == Kind::Directory { 2 } else { 1 };
        let (major, minor) = if let Kind::CharDevice(major, minor) = kind { (major, minor) } else { (0, 0) };
        let name_size = name.len() as u32 + 1;
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        let mut text = String::from("070701");
        for field in fields {
            text.push_str(&format!("{field:08x}"));
        }
        text.push_str(name);
        text.push('\0');
        self.out.write_all(text.as_bytes())?;
        self.written += text.len() as u64;
        self.pad()
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = (4 - self.written % 4) % 4;
        self.out.write_all(&[0; 3][..missing as usize])?;
        self.written += missing;
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An entry as read back.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(in crate::pack) struct Entry {
        pub name: String,
        pub mode: u32,
        pub device: (u32, u32),
        pub content: Vec<u8>,
    }

    /// Reads an archive back, as strictly as the kernel does.
    pub(in crate::pack) fn read(archive: &[u8]) -> Vec<Entry> {
        let mut at = 0;
        let mut entries = Vec::new();
        loop {
            assert_eq!(at % 4, 0, "headers are aligned");
            assert_eq!(&archive[at..at + 6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&archive[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let name = std::str::from_utf8(&archive[at + 110..at + 110 + name_size - 1]).unwrap().to_owned();
            assert_eq!(archive[at + 110 + name_size - 1], 0);
            assert_eq!(field(5), 0, "no times");
            let start = (at + 110 + name_size).next_multiple_of(4);
            if name == TRAILER {
                assert_eq!(start, archive.len());
                return entries;
            }
            let content = archive[start..start + size].to_vec();
            entries.push(Entry { name, mode: field(1), device: (field(9), field(10)), content });
            at = (start + size).next_multiple_of(4);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            files in proptest::collection::vec(("[a-z/]{1,40}", proptest::collection::vec(any::<u8>(), 0..50)), 0..8)
        ) {
            let mut out = Vec::new();
            let mut archive = Archive::new(&mut out);
            for (name, content) in &files {
                archive.entry(name, Kind::File, 0o644, content).unwrap();
            }
            let size = archive.finish().unwrap();
            prop_assert_eq!(size, out.len() as u64);
            let back: Vec<_> = read(&out).into_iter().map(|e| (e.name, e.content)).collect();
            prop_assert_eq!(back, files);
        }
    }

    #[test]
    fn kinds() {
        let mut out = Vec::new();
        let mut archive = Archive::new(&mut out);
        archive.entry("dev", Kind::Directory, 0o755, b"").unwrap();
        archive.entry("dev/console", Kind::CharDevice(5, 1), 0o600, b"").unwrap();
        archive.entry("lib", Kind::Symlink, 0o777, b"usr/lib").unwrap();
        archive.finish().unwrap();
        let entries = read(&out);
        assert_eq!(entries.iter().map(|e| e.mode).collect::<Vec<_>>(), [0o040_755, 0o020_600, 0o120_777]);
        assert_eq!(entries[1].device, (5, 1));
        assert_eq!(entries[2].content, b"usr/lib");
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let mut archive = Archive::new(Vec::new());
        let error = archive.stream("x", Kind::File, 0o644, 10, &mut b"short".as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let huge = archive.stream("x", Kind::File, 0o644, 1 << 33, &mut io::empty()).unwrap_err();
        assert_eq!(huge.kind(), io::ErrorKind::FileTooLarge);
    }
}

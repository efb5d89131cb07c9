//! A second, tiny initramfs archive that tells PID 1 what to do.
//!
//! The kernel unpacks concatenated archives one after the other, so the caller's own archive needs no
//! change. Format: `Documentation/driver-api/early-userspace/buffer-format.rst` of the kernel.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;

use ktstr_proto::codec::{self, CodecError};
use ktstr_proto::guest::{GuestJob, JOB_PATH};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Why the archive cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The job cannot be encoded.
    #[error("encode the guest's job")]
    Encode {
        /// The reason.
        #[from]
        source: CodecError,
    },
    /// The memory file cannot be written.
    #[error("write the guest's job into an archive")]
    Write {
        /// The operating system's reason.
        #[from]
        source: std::io::Error,
    },
}

/// An archive that holds nothing but the job.
pub fn job_archive(job: &GuestJob) -> Result<OwnedFd, ArchiveError> {
    let body = codec::encode(job)?;
    let path = JOB_PATH.trim_start_matches('/');
    let mut archive = Vec::new();
    if let Some((directory, _)) = path.rsplit_once('/') {
        member(&mut archive, directory, 0o040_755, &[]);
    }
    member(&mut archive, path, 0o100_644, &body);
    member(&mut archive, "TRAILER!!!", 0, &[]);
    let memfd = memfd_create(c"job", MFdFlags::MFD_CLOEXEC).map_err(std::io::Error::from)?;
    let mut file = File::from(memfd);
    file.write_all(&archive)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file.into())
}

fn member(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    // ino, mode, uid, gid, nlink, mtime, filesize, four device numbers, namesize, check.
    let fields = [0, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use ktstr_proto::Topology;
    use ktstr_proto::guest::GuestTask;
    use ktstr_proto::ring::{Mode, RingRegion};

    use super::*;

    #[test]
    fn the_job_is_in_the_archive() {
        let job = GuestJob {
            ring: RingRegion { gpa: 0x800_0000, len: 1 << 20, mode: Mode::Wrap },
            topology: Topology::new(1, 1, 1, 1).unwrap(),
            seed: 1,
            jitter_us: 0,
            env: Vec::new(),
            scheduler: None,
            task: GuestTask::Exec("true".into()),
            disk: None,
            probing: None,
        };
        let file = File::from(job_archive(&job).unwrap());
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes.len().is_multiple_of(4) && bytes.starts_with(b"070701"));
        let body = codec::encode(&job).unwrap();
        let name = JOB_PATH.trim_start_matches('/').as_bytes();
        let named = bytes.windows(name.len()).position(|window| window == name).unwrap();
        let start = (named + name.len() + 1).next_multiple_of(4);
        assert_eq!(&bytes[start..start + body.len()], body);
    }
}

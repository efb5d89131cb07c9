//! The job packed into the initramfs, as PID 1 and the test process read it.

use std::{io, path::Path};

use ktstr_proto::{codec, guest::GuestJob};

/// Why there is no job.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The file cannot be read.
    #[error("cannot read the job at {path}")]
    Read {
        /// Where it should be.
        path: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file holds no job.
    #[error("the job at {path} cannot be decoded: the initramfs was made by another build of ktstr")]
    Decode {
        /// Where it is.
        path: String,
        /// The decoder's reason.
        #[source]
        source: codec::CodecError,
    },
    /// The machine shape in it cannot exist.
    #[error("the job at {path} asks for an impossible machine")]
    Shape {
        /// Where it is.
        path: String,
        /// What is wrong.
        #[source]
        source: ktstr_proto::topology::TopologyError,
    },
}

/// Reads and checks a job; in the guest at [`ktstr_proto::guest::JOB_PATH`].
pub fn read_job(path: &Path) -> Result<GuestJob, JobError> {
    let named = || path.display().to_string();
    let bytes = std::fs::read(path).map_err(|source| JobError::Read { path: named(), source })?;
    let job: GuestJob = codec::decode(&bytes).map_err(|source| JobError::Decode { path: named(), source })?;
    job.topology.checked().map_err(|source| JobError::Shape { path: named(), source })?;
    Ok(job)
}

#[cfg(test)]
mod tests {
    use ktstr_proto::{
        guest::GuestTask,
        ring::{Mode, RingRegion},
        topology::Topology,
    };

    use super::*;

    fn job(cores: u32) -> GuestJob {
        GuestJob {
            ring: RingRegion { gpa: 0x1000_0000, len: 4 << 20, mode: Mode::Wrap },
            topology: Topology { numa_nodes: 1, llcs: 1, cores, threads: 1 },
            seed: 3,
            jitter_us: 0,
            env: vec![("A".into(), "b".into())],
            scheduler: None,
            task: GuestTask::Exec("true".into()),
            disk: None,
            probing: None,
        }
    }

    #[test]
    fn a_job_comes_back_as_it_was_packed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job");
        std::fs::write(&path, codec::encode(&job(2)).unwrap()).unwrap();
        assert_eq!(read_job(&path).unwrap(), job(2));
    }

    #[test]
    fn absent_cut_lengthened_and_impossible_jobs_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job");
        assert!(matches!(read_job(&path), Err(JobError::Read { .. })));
        let whole = codec::encode(&job(2)).unwrap();
        for end in 0..whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            assert!(matches!(read_job(&path), Err(JobError::Decode { .. })), "cut at {end}");
        }
        std::fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
        assert!(matches!(read_job(&path), Err(JobError::Decode { .. })));
        std::fs::write(&path, codec::encode(&job(0)).unwrap()).unwrap();
        assert!(matches!(read_job(&path), Err(JobError::Shape { .. })));
    }
}

//! A guest without a job waits for one: any number of machines may have been started from the moment at
//! which it waits, so what must differ between them is made different when the job comes.
//!
//! The job and everything it needs come through [`ktstr_proto::handover`] and are unpacked into the root.
//! Then the wall clock is set, and the kernel's random numbers begin anew from the host's.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::AsRawFd,
    path::Path,
    time::Duration,
};

use ktstr_proto::{
    codec,
    guest::{BASE_PATH, ENTROPY_PATH, GuestBase, GuestJob, JOB_PATH},
    handover::Taker,
};
use nix::{
    errno::Errno,
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};

use super::{
    clock,
    unpack::{UnpackError, Unpacker},
};
use crate::{
    job::{JobError, read_job},
    ring_memory::{MapError, MappedRing},
};

/// How often the host is looked for.
const LOOK_US: u64 = 500;
/// How much is copied at once.
const COPY: usize = 128 << 10;

/// Why there is no job.
#[derive(Debug, thiserror::Error)]
pub enum AwaitError {
    /// What was packed for every job cannot be read.
    #[error("cannot read {BASE_PATH}")]
    Base(#[source] io::Error),
    /// It is something else.
    #[error("{BASE_PATH} cannot be decoded: the initramfs was made by another build of ktstr")]
    Decode(#[source] codec::CodecError),
    /// The host cannot be heard.
    #[error("the memory for the job is not usable")]
    Map(#[from] MapError),
    /// What came is no archive.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// There is no job in it.
    #[error(transparent)]
    Job(#[from] JobError),
    /// It asks for a machine other than the one that waits.
    #[error("the job that came is for another machine")]
    OtherMachine,
    /// The clock cannot be set.
    #[error("cannot set the wall clock")]
    Clock(#[source] Errno),
    /// Random numbers would be those of another machine.
    #[error("cannot renew the kernel's random numbers")]
    Entropy(#[source] io::Error),
}

/// What is known before there is a job; `None` where the initramfs holds the job itself.
pub fn read_base() -> Result<Option<GuestBase>, AwaitError> {
    match fs::read(BASE_PATH) {
        Ok(bytes) => codec::decode(&bytes).map(Some).map_err(AwaitError::Decode),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AwaitError::Base(source)),
    }
}

/// Waits for the job, for as long as it takes. All that belongs to it is in place when it returns; the memory it came
/// through is the ring's now.
pub fn await_job(base: &GuestBase) -> Result<(GuestJob, MappedRing), AwaitError> {
    let (memory, entropy) = take_archive(base)?;
    renew_entropy(&entropy).map_err(AwaitError::Entropy)?;
    let job = read_job(Path::new(JOB_PATH))?;
    let fits = job.ring == base.ring && job.topology == base.topology;
    if fits { Ok((job, memory)) } else { Err(AwaitError::OtherMachine) }
}

/// What the kernel is tainted by; nothing where it does not say.
fn taint() -> u64 {
    let said = fs::read_to_string("/proc/sys/kernel/tainted");
    said.ok().and_then(|taint| taint.trim().parse().ok()).unwrap_or(0)
}

/// Returns the memory through which it came, and the host's random bytes, which nobody else shall see: they never lie
/// in a file.
fn take_archive(base: &GuestBase) -> Result<(MappedRing, Vec<u8>), AwaitError> {
    let memory = MappedRing::open(base.ring)?;
    let mut unpacker = Unpacker::new(Path::new("/"), Path::new(ENTROPY_PATH));
    // The machine is kept as soon as it is announced: all that can be done before is done once and not by every machine.
    // Written to, the pages are there.
    let mut copy = vec![1; COPY];
    let mut taker = Taker::announce(memory, taint());
    let mut first = true;
    loop {
        let Some(piece) = taker.piece() else {
            clock::sleep_us(LOOK_US);
            continue;
        };
        if std::mem::take(&mut first) {
            set_wall_clock(piece.wall_clock_ns).map_err(AwaitError::Clock)?;
        }
        let mut at = 0;
        while at < piece.len {
            let n = (piece.len - at).min(COPY as u64) as usize;
            taker.read(at, &mut copy[..n]);
            unpacker.push(&copy[..n])?;
            at += n as u64;
        }
        taker.taken();
        if piece.left == 0 {
            break;
        }
    }
    let entropy = unpacker.finish()?.ok_or_else(|| AwaitError::Entropy(io::ErrorKind::NotFound.into()))?;
    // Giving the pages back would cost more than they are worth.
    std::mem::forget(copy);
    Ok((taker.finish(), entropy))
}

fn set_wall_clock(ns: u64) -> nix::Result<()> {
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(Duration::from_nanos(ns)))
}

/// `struct rand_pool_info` of include/uapi/linux/random.h.
#[repr(C)]
struct PoolInfo {
    bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u8; POOL],
}

const POOL: usize = 64;

nix::ioctl_write_ptr_bad!(add_entropy, nix::request_code_write!(b'R', 0x03, 8), PoolInfo);
nix::ioctl_none!(reseed, b'R', 0x07);

/// Mixes the bytes in and lets every generator of the kernel begin anew.
fn renew_entropy(bytes: &[u8]) -> io::Result<()> {
    let buffer: [u8; POOL] = bytes
        .try_into()
        .map_err(|_| io::Error::other(format!("{} random bytes came, not {POOL}", bytes.len())))?;
    let info = PoolInfo { bits: POOL as libc::c_int * 8, bytes: POOL as libc::c_int, buffer };
    let random: File = OpenOptions::new().write(true).open("/dev/urandom")?;
    // SAFETY: the structure is as the request wants it, with as many bytes as it says, and outlives
    // the calls, which only read it.
    unsafe {
        add_entropy(random.as_raw_fd(), &raw const info)?;
        reseed(random.as_raw_fd())?;
    }
    Ok(())
}

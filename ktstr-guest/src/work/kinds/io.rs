//! Work that reads and writes: the disk that `KTSTR_WORK_DISK` names, a stripe for each worker; else in a
//! guest a loop device over memory each, where the kernel has those; else an unnamed temporary file each. A
//! disk is never guessed: what is on it is overwritten.

use std::{
    fs::{File, OpenOptions},
    io::{Seek, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
};

use nix::libc::{O_DIRECT, O_SYNC, O_TMPFILE};

use super::disk;
use crate::work::{
    WorkType,
    board::Series,
    not_run::{Missing, NotRun},
    region::Region,
    sys::now_ns,
    worker::{Done, Worker},
};

/// Variable that names the block device which workers may overwrite.
pub const DISK_ENV: &str = "KTSTR_WORK_DISK";

/// Bytes of one access.
const BLOCK: u64 = 4096;
/// Size of a worker's temporary file or least size of its stripe, bytes.
const SPAN: u64 = 1 << 20;
/// Writes before each `fdatasync` of `IoSyncWrite`, rounds of `IoConvoy`.
const BATCH: u64 = 16;

/// A part of a file, in blocks.
struct Target {
    file: File,
    start: u64,
    blocks: u64,
}

impl Target {
    fn open(w: &Worker<'_>, flags: i32) -> Result<Self, NotRun> {
        let file = |error: std::io::Error| NotRun {
            missing: Missing::File,
            errno: error.raw_os_error().map(nix::errno::Errno::from_raw),
        };
        match std::env::var_os(DISK_ENV) {
            Some(disk) => {
                let mut disk =
                    OpenOptions::new().read(true).write(true).custom_flags(flags).open(disk).map_err(file)?;
                let blocks = disk.seek(SeekFrom::End(0)).map_err(file)? / BLOCK / w.board.slots() as u64;
                if blocks < SPAN / BLOCK {
                    return Err(Missing::File.into());
                }
                Ok(Self { file: disk, start: blocks * w.place.index as u64, blocks })
            }
            None => {
                let own = match &w.links.disk {
                    Some(device) => device.try_clone(),
                    None => temporary(flags).and_then(|own| own.set_len(SPAN).map(|()| own)),
                };
                Ok(Self { file: own.map_err(file)?, start: 0, blocks: SPAN / BLOCK })
            }
        }
    }

    fn offset(&self, block: u64) -> u64 {
        (self.start + block % self.blocks) * BLOCK
    }
}

/// The device of one worker of this kind, made before it starts, since that takes its time; `None` where
/// it needs none or there is none.
pub(in crate::work) fn own_disk(work_type: &WorkType) -> Option<File> {
    let flags = match work_type {
        WorkType::IoSyncWrite => O_SYNC,
        WorkType::IoRandRead | WorkType::IoConvoy => O_DIRECT,
        _ => return None,
    };
    if std::env::var_os(DISK_ENV).is_some() || !disk::is_guest() {
        return None;
    }
    let backing = temporary(0).ok()?;
    backing.set_len(SPAN).ok()?;
    disk::over(&backing, flags)
}

fn temporary(flags: i32) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(O_TMPFILE | flags);
    options.open(std::env::temp_dir())
}

/// A temporary file without a name.
pub(super) fn scratch_file() -> Result<File, NotRun> {
    temporary(0).map_err(|_| Missing::File.into())
}

fn io_failed(error: &std::io::Error) -> NotRun {
    NotRun { missing: Missing::File, errno: error.raw_os_error().map(nix::errno::Errno::from_raw) }
}

/// One transfer: a blocking call whose time is the cost of the round.
fn timed(w: &mut Worker<'_>, call: impl Fn() -> std::io::Result<()>) -> Done {
    let start = now_ns();
    let result = w.meter.blocking(&call);
    w.meter.record(Series::Iteration, now_ns().saturating_sub(start));
    w.meter.did(1, 0);
    match result {
        // The stop signal.
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(()),
        other => other.map_err(|error| io_failed(&error)),
    }
}

fn block() -> Result<Region, NotRun> {
    Region::new(BLOCK as usize).map_err(|errno| Missing::Memory.because(errno))
}

pub(super) fn sync_write(w: &mut Worker<'_>) -> Done {
    let target = Target::open(w, O_SYNC)?;
    let mut memory = block()?;
    let mut at = 0;
    while !w.stopped() {
        let bytes = &*memory.bytes_mut();
        for _ in 0..BATCH {
            timed(w, || target.file.write_all_at(bytes, target.offset(at)))?;
            at += 1;
        }
        timed(w, || target.file.sync_data())?;
        w.meter.did(0, 1);
        w.meter.checkpoint();
    }
    Ok(())
}

pub(super) fn rand_read(w: &mut Worker<'_>) -> Done {
    let target = Target::open(w, O_DIRECT)?;
    let mut memory = block()?;
    while !w.stopped() {
        let offset = target.offset(w.rng.below(target.blocks));
        let start = now_ns();
        let bytes = memory.bytes_mut();
        let result = w.meter.blocking(|| target.file.read_exact_at(bytes, offset));
        w.meter.record(Series::Iteration, now_ns().saturating_sub(start));
        result.map_err(|error| io_failed(&error))?;
        w.meter.did(1, 1);
        w.meter.checkpoint();
    }
    Ok(())
}

pub(super) fn convoy(w: &mut Worker<'_>) -> Done {
    let target = Target::open(w, O_DIRECT)?;
    let (mut written, mut read) = (block()?, block()?);
    let mut round = 0;
    while !w.stopped() {
        let bytes = &*written.bytes_mut();
        timed(w, || target.file.write_all_at(bytes, target.offset(round)))?;
        let offset = target.offset(w.rng.below(target.blocks));
        let bytes = read.bytes_mut();
        w.meter.blocking(|| target.file.read_exact_at(bytes, offset)).map_err(|error| io_failed(&error))?;
        round += 1;
        if round % BATCH == 0 {
            timed(w, || target.file.sync_data())?;
        }
        w.meter.did(1, 1);
        w.meter.checkpoint();
    }
    Ok(())
}

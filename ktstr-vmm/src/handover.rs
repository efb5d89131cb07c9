//! Gives a guest that waits for its job what it shall do, piece by piece; see
//! [`ktstr_proto::handover`]. The moment before the first piece is the one at which the machine may be
//! kept as a snapshot.
//!
//! It never looks into the archive, and believes the guest no more than that it waits.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::time::{SystemTime, UNIX_EPOCH};

use ktstr_proto::handover::Giver;

use crate::ring::GuestRing;

/// A snapshot that was asked for.
#[derive(Debug)]
pub struct Keep {
    /// Where it is written.
    pub file: File,
    /// What its header says about the machine.
    pub description: String,
}

/// An archive on its way.
#[derive(Debug)]
pub struct Handover {
    giver: Giver<GuestRing>,
    archive: File,
    at: u64,
    len: u64,
    keep: Option<Keep>,
    seen: bool,
}

impl Handover {
    /// Of everything in `archive`, through a ring's region.
    pub fn new(region: GuestRing, archive: File, keep: Option<Keep>) -> io::Result<Handover> {
        let len = (&archive).seek(SeekFrom::End(0))?;
        Ok(Handover { giver: Giver::new(region), archive, at: 0, len, keep, seen: false })
    }

    /// Whether the guest waits for the next piece.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.giver.is_awaited()
    }

    /// Whether nobody has asked before.
    pub fn is_new(&mut self) -> bool {
        !std::mem::replace(&mut self.seen, true)
    }

    /// What has happened to the kernel of a guest that waits: [`ktstr_proto::handover::TROUBLE`].
    #[must_use]
    pub fn taint(&self) -> u64 {
        self.giver.taint()
    }

    /// Whether the host has said nothing in the guest's memory yet.
    #[must_use]
    pub fn is_unspoken(&self) -> bool {
        self.giver.is_unspoken()
    }

    /// The snapshot to be taken now, once.
    pub fn keep(&mut self) -> Option<Keep> {
        self.keep.take()
    }

    /// Gives the next piece; `false` when it was the last.
    pub fn give(&mut self) -> io::Result<bool> {
        let left = self.len - self.at;
        let mut piece = vec![0; left.min(self.giver.room() as u64) as usize];
        self.archive.read_exact_at(&mut piece, self.at)?;
        self.at += piece.len() as u64;
        let left = self.len - self.at;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.giver.give(&piece, left, now.as_nanos() as u64);
        Ok(left > 0)
    }
}

//! Work that touches memory in strides.

use nix::sched::sched_yield;

use crate::work::{
    not_run::Missing,
    region::Region,
    worker::{Done, Worker},
};

/// Touches in one unit of work.
const TOUCHES_PER_UNIT: u64 = 64;

pub(super) fn pressure(w: &mut Worker<'_>, size_kib: u32, stride: u32, yields: bool) -> Done {
    let mut strider = Strider::new(size_kib, stride)?;
    let touches = u64::from(size_kib) * 1024 / u64::from(stride);
    while !w.stopped() {
        strider.touch(w, touches);
        w.meter.did(0, 1);
        if yields {
            // Fails never on Linux.
            let _ = sched_yield();
        }
        w.meter.checkpoint();
    }
    Ok(())
}

/// Memory with a place in it.
pub(super) struct Strider {
    memory: Region,
    stride: usize,
    at: usize,
}

impl Strider {
    pub fn new(size_kib: u32, stride: u32) -> Result<Self, crate::work::not_run::NotRun> {
        let memory = Region::new(size_kib as usize * 1024).map_err(|errno| Missing::Memory.because(errno))?;
        Ok(Self { memory, stride: stride as usize, at: 0 })
    }

    /// Reads, changes and writes back so many places, counted as work.
    pub fn touch(&mut self, w: &mut Worker<'_>, touches: u64) {
        for _ in 0..touches {
            self.memory.touch(self.at);
            self.at = (self.at + self.stride) % self.memory.len();
        }
        w.meter.did(touches.div_ceil(TOUCHES_PER_UNIT).max(1), 0);
    }
}

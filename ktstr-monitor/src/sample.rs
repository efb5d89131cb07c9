//! Samples: what all CPUs look like at one moment, read without stopping them.
//!
//! A sample is not a snapshot: CPUs are read one after the other within some ten microseconds.
//! Each value stands for itself, and one that could not be read is a [`Gap`] with its reason.

use std::time::{Duration, Instant};

use crate::addr::CpuId;
use crate::kernel::rq::Rq;
use crate::kernel::scx::Scx;
use crate::kernel::{Gap, LiveKernel, NotReady, Profile, Reading};
use crate::mem::GuestMem;

/// Searching all of memory for a moved image is left out after a failure for this many attempts.
const LOST_AFTER: u32 = 3;

/// One CPU in a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuSample {
    /// Which one.
    pub cpu: CpuId,
    /// Whether the guest has it online.
    pub online: Reading<bool>,
    /// Its run queue.
    pub rq: Rq,
}

/// All possible CPUs at about one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// How long reading took.
    pub took: Duration,
    /// In ascending order.
    pub cpus: Vec<CpuSample>,
    /// The BPF scheduler.
    pub scx: Scx,
}

/// Takes samples of one guest.
#[derive(Debug)]
pub struct Sampler {
    profile: Profile,
    live: Option<LiveKernel>,
    lost: u32,
}

impl Sampler {
    /// For the kernel that `profile` describes; it need not run yet.
    pub fn new(profile: Profile) -> Self {
        Self { profile, live: None, lost: 0 }
    }

    /// The kernel's description.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The running kernel, once it was found.
    pub fn live(&self) -> Option<&LiveKernel> {
        self.live.as_ref()
    }

    /// Reads all CPUs, after finding the kernel if that is still to be done.
    ///
    /// When several samples in a row hold no run queue at all the guest has probably started another
    /// kernel, and the next call looks for it anew.
    pub fn sample(&mut self, mem: &GuestMem) -> Result<Sample, NotReady> {
        let began = Instant::now();
        if self.live.is_none() {
            self.live = Some(LiveKernel::locate(&self.profile, mem)?);
            self.lost = 0;
        }
        let live = self.live.as_ref().expect("located above");
        let mut sample = read_all(&self.profile, live, mem);
        self.lost = if sample.cpus.iter().any(|c| c.rq.clock.is_ok()) { 0 } else { self.lost + 1 };
        if self.lost >= LOST_AFTER {
            self.live = None;
        }
        sample.took = began.elapsed();
        Ok(sample)
    }
}

fn read_all(profile: &Profile, live: &LiveKernel, mem: &GuestMem) -> Sample {
    let view = live.view(mem);
    let online = live
        .cpu_mask(profile, mem, profile.online_mask())
        .map_err(|source| Gap::Unreadable { what: "__cpu_online_mask", source });
    let cpus = live.cpus().iter().map(|&area| CpuSample {
        cpu: area.cpu,
        online: online.as_ref().map(|set| set.contains(&area.cpu)).map_err(Gap::clone),
        rq: profile.rq.read(&view, live.per_cpu(profile.runqueues(), area), area.cpu),
    });
    let scx = match profile.scx_root {
        Some(root) => profile.scx.read(&view, live, live.at(root)),
        None => Scx::Unknown(Gap::NoSymbol { symbol: "scx_root" }),
    };
    Sample { took: Duration::ZERO, cpus: cpus.collect(), scx }
}

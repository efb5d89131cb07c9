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
}

impl Sampler {
    /// For the kernel that `profile` describes; it need not run yet.
    pub fn new(profile: Profile) -> Self {
        Self { profile, live: None }
    }

    /// The kernel's description.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The running kernel, once it was found.
    pub fn live(&self) -> Option<&LiveKernel> {
        self.live.as_ref()
    }

    /// Both, as they were found last.
    pub fn located(&self) -> Option<(&Profile, &LiveKernel)> {
        Some((&self.profile, self.live.as_ref()?))
    }

    /// The kernel's description and the running kernel, looked for if it is not known yet.
    pub fn locate(&mut self, mem: &GuestMem) -> Result<(&Profile, &LiveKernel), NotReady> {
        let live = match self.live.take().filter(|live| live.still_holds(&self.profile, mem)) {
            Some(live) => live,
            None => LiveKernel::locate(&self.profile, mem)?,
        };
        Ok((&self.profile, self.live.insert(live)))
    }

    /// Reads all CPUs, after finding the kernel if that is still to be done.
    ///
    /// When the per-CPU areas are no longer where they were the guest has started another kernel,
    /// and it is looked for anew.
    pub fn sample(&mut self, mem: &GuestMem) -> Result<Sample, NotReady> {
        let began = Instant::now();
        let (profile, live) = self.locate(mem)?;
        let mut sample = read_all(profile, live, mem);
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

//! Readings as messages of the monitor link: the typed reasons become words here, nowhere earlier.

use std::collections::BTreeSet;
use std::time::Duration;

use ktstr_proto::link::chain;
use ktstr_proto::monitor as wire;

use crate::addr::CpuId;
use crate::btf::FieldMissing;
use crate::judge::Summary;
use crate::kernel::scx::Scx;
use crate::kernel::{Gap, Profile, Reading};
use crate::sample::{CpuSample, Sample};

/// Distinct reasons told per run; a guest that makes up new ones is not listened to for ever.
const MAX_REASONS: usize = 32;

/// A sample for the wire. Offline CPUs have no values: their run queues are leftovers.
pub fn sample(sample: &Sample, at: Duration) -> wire::Sample {
    let mut cpus = Vec::new();
    for cpu in &sample.cpus {
        cpus.resize_with(cpu.cpu.0 as usize, wire::CpuSample::default);
        cpus.push(cpu_sample(cpu));
    }
    wire::Sample { t_ns: nanos(at), took_us: micros(sample.took), cpus, events: events(&sample.scx) }
}

fn cpu_sample(cpu: &CpuSample) -> wire::CpuSample {
    if cpu.online != Ok(true) {
        return wire::CpuSample::default();
    }
    let rq = cpu.rq.clone();
    wire::CpuSample {
        nr_running: rq.nr_running.ok(),
        clock: rq.clock.ok(),
        scx_nr_running: rq.scx_nr_running.ok(),
        local_dsq_nr: rq.local_dsq_nr.ok(),
        scx_flags: rq.scx_flags.ok(),
    }
}

fn events(scx: &Scx) -> Vec<(String, i64)> {
    let Scx::Loaded { events, .. } = scx else { return Vec::new() };
    events.iter().filter_map(|e| Some((e.name.clone(), *e.count.as_ref().ok()?))).collect()
}

/// The summary for the wire.
pub fn summary(summary: Summary, reasons: &Reasons) -> wire::MonitorSummary {
    let (depth, cpu) = summary.max_dsq_depth.unwrap_or((0, CpuId(0)));
    let mut unavailable: Vec<String> = reasons.told.to_vec();
    if reasons.more {
        unavailable.push(format!("more is missing for other reasons than these {MAX_REASONS}"));
    }
    if summary.standstills > 0 {
        unavailable.push(format!(
            "in {} intervals no run-queue clock advanced on any CPU: the guest was paused, starved of \
             host CPU time, or dead; these say nothing about the scheduler",
            summary.standstills
        ));
    }
    if summary.implausible > 0 {
        unavailable.push(format!(
            "{} samples showed a kernel still being set up and were left out",
            summary.implausible
        ));
    }
    wire::MonitorSummary {
        samples: summary.samples,
        failed_samples: summary.unreadable,
        max_imbalance_ratio: summary.max_imbalance,
        sustained_imbalance_ratio: summary.sustained_imbalance,
        max_local_dsq_depth: depth,
        max_local_dsq_cpu: cpu.0,
        sustained_local_dsq_depth: summary.sustained_dsq_depth.map(|(depth, _)| depth),
        sustained_local_dsq_cpu: summary.sustained_dsq_depth.map_or(0, |(_, cpu)| cpu.0),
        stuck_cpus: summary.stuck.iter().map(|cpu| cpu.0).collect(),
        vcpu_time_known: false,
        events: summary.events.into_iter().collect(),
        unavailable,
        median_sample_us: micros(summary.median_took),
        watched: Vec::new(),
        busy_places: Vec::new(),
        symbols: None,
        stood: Vec::new(),
    }
}

/// Members the kernel lacks, as `struct.member`.
pub fn absent(profile: &Profile) -> Vec<String> {
    let name = |missing: &FieldMissing| match missing {
        FieldMissing::Struct { name } | FieldMissing::Enum { name } => (*name).to_owned(),
        FieldMissing::Member { name, path }
        | FieldMissing::Ambiguous { name, path }
        | FieldMissing::Damaged { name, path, .. } => format!("{name}.{path}"),
    };
    let layouts = profile.rq.absent().chain(profile.scx.absent()).chain(profile.state.absent());
    let names: BTreeSet<_> = layouts.map(name).collect();
    names.into_iter().collect()
}

/// Which reasons were told already.
#[derive(Debug, Default)]
pub struct Reasons {
    seen: BTreeSet<String>,
    told: Vec<String>,
    /// There were others, which are not told.
    more: bool,
}

impl Reasons {
    /// The full text of `error` if it is new; errors that differ only in their causes count as one.
    pub fn tell(&mut self, error: &dyn std::error::Error) -> Option<String> {
        let reason = error.to_string();
        if self.seen.contains(&reason) {
            return None;
        }
        if self.seen.len() >= MAX_REASONS {
            self.more = true;
            return None;
        }
        self.seen.insert(reason);
        let text = chain(error);
        self.told.push(text.clone());
        Some(text)
    }

    /// Everything in `sample` that is missing for a new reason. Members the kernel lacks were
    /// reported when it was attached.
    pub fn of_sample(&mut self, sample: &Sample) -> Vec<String> {
        let mut found = Vec::new();
        let mut note = |gap: &Gap| {
            if !matches!(gap, Gap::Absent(_)) {
                found.extend(self.tell(gap));
            }
        };
        for cpu in &sample.cpus {
            note_gap(&cpu.online, &mut note);
            note_gap(&cpu.rq.nr_running, &mut note);
            note_gap(&cpu.rq.clock, &mut note);
            note_gap(&cpu.rq.scx_nr_running, &mut note);
            note_gap(&cpu.rq.scx_flags, &mut note);
            note_gap(&cpu.rq.local_dsq_nr, &mut note);
        }
        match &sample.scx {
            Scx::NotLoaded => {}
            Scx::Unknown(gap) => note(gap),
            Scx::Loaded { events, .. } => {
                for event in events {
                    note_gap(&event.count, &mut note);
                }
            }
        }
        found
    }
}

fn note_gap<T>(reading: &Reading<T>, note: &mut impl FnMut(&Gap)) {
    if let Err(gap) = reading {
        note(gap);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Observation;

    /// A reason by its number.
    #[derive(Debug, thiserror::Error)]
    #[error("reason {0}")]
    struct Reason(usize);

    #[test]
    fn reasons_that_are_too_many_are_told_of() {
        let mut reasons = Reasons::default();
        let told: Vec<_> = (0..MAX_REASONS).filter_map(|nth| reasons.tell(&Reason(nth))).collect();
        assert_eq!(told.len(), MAX_REASONS);
        assert_eq!(reasons.tell(&Reason(0)), None);
        assert_eq!(
            summary(Observation::new(5).summary(), &reasons).unavailable,
            told,
            "the same again is none more"
        );
        assert_eq!(reasons.tell(&Reason(MAX_REASONS)), None);
        let all = summary(Observation::new(5).summary(), &reasons).unavailable;
        assert_eq!(all[..MAX_REASONS], told);
        assert_eq!(all[MAX_REASONS..], ["more is missing for other reasons than these 32"]);
    }
}

//! What samples amount to: imbalance, DSQ depth, run-queue clocks that stand still, event increases.
//!
//! Pure arithmetic over [`Sample`]s, and no thresholds: figures are given as "the most that held for
//! N samples in a row", so whoever judges compares with whatever limit applies. What must not be
//! mistaken for a scheduler's fault is left out here:
//!
//! * samples that show a kernel still being set up (all clocks equal, absurd DSQ depth);
//! * CPUs that are offline, and clocks of CPUs with nothing to run;
//! * intervals in which no clock of any CPU advanced: the guest was paused, starved or is dead, and
//!   from memory alone these look the same. The time each vCPU really ran tells them apart where
//!   the caller knows it ([`Observation::add`]).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::addr::{CpuId, Kva};
use crate::kernel::scx::Scx;
use crate::sample::{CpuSample, Sample};

/// A deeper local DSQ is uninitialised memory.
const ABSURD_DSQ_DEPTH: u32 = 10_000;
/// A vCPU that ran less than this between two samples had no chance to tick: 10 ticks of 250 Hz.
pub const MIN_VCPU_TIME: Duration = Duration::from_millis(40);

/// The largest value that held for N samples in a row: the maximum over all windows of their minimum.
#[derive(Clone, Debug)]
struct Sustained {
    window: usize,
    recent: std::collections::VecDeque<f64>,
    /// None until the window was full.
    best: Option<f64>,
}

impl Sustained {
    fn new(window: u32) -> Self {
        Self { window: window.max(1) as usize, recent: Default::default(), best: None }
    }

    fn add(&mut self, value: f64) {
        self.recent.push_back(value);
        if self.recent.len() > self.window {
            self.recent.pop_front();
        }
        if self.recent.len() == self.window {
            let least = self.recent.iter().copied().fold(f64::INFINITY, f64::min);
            self.best = Some(self.best.map_or(least, |best| best.max(least)));
        }
    }

    fn interrupt(&mut self) {
        self.recent.clear();
    }
}

/// What one sample was good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Counted.
    Counted,
    /// No run queue could be read.
    Unreadable,
    /// The kernel is not set up yet: such values are no measurements.
    Implausible,
}

impl Use {
    fn of_online(online: &[&CpuSample]) -> Self {
        if !online.iter().any(|c| c.rq.nr_running.is_ok()) {
            Self::Unreadable
        } else if is_implausible(online) {
            Self::Implausible
        } else {
            Self::Counted
        }
    }
}

fn online(sample: &Sample) -> Vec<&CpuSample> {
    sample.cpus.iter().filter(|c| c.online == Ok(true)).collect()
}

/// One CPU's history.
#[derive(Clone, Debug)]
struct CpuHistory {
    last: Option<(u64, u32)>,
    stuck_for: u32,
    longest_stuck: u32,
    depth: Sustained,
}

/// The figures of a whole observation.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Samples counted.
    pub samples: u32,
    /// Samples in which no run queue could be read.
    pub unreadable: u32,
    /// Samples of a kernel still being set up.
    pub implausible: u32,
    /// Intervals in which no clock advanced anywhere.
    pub standstills: u32,
    /// Largest imbalance in one sample.
    pub max_imbalance: f64,
    /// Largest imbalance that was sustained; none without enough samples in a row.
    pub sustained_imbalance: Option<f64>,
    /// Deepest local DSQ in one sample, with its CPU.
    pub max_dsq_depth: Option<(u32, CpuId)>,
    /// Deepest local DSQ that was sustained on one CPU, with that CPU; none without enough samples in a row.
    pub sustained_dsq_depth: Option<(u32, CpuId)>,
    /// CPUs whose clock stood still with work waiting, sustained.
    pub stuck: Vec<CpuId>,
    /// Increase of each event counter while it could be read.
    pub events: BTreeMap<String, i64>,
    /// Half of the samples took less.
    pub median_took: Duration,
}

/// An observation in progress.
#[derive(Clone, Debug)]
pub struct Observation {
    sustained: u32,
    cpus: BTreeMap<CpuId, CpuHistory>,
    imbalance: Sustained,
    scheduler: Option<(Kva, BTreeMap<String, i64>)>,
    took: Vec<Duration>,
    summary: Summary,
}

impl Observation {
    /// Begins; `sustained` is how many samples in a row make something sustained, at least 1.
    pub fn new(sustained: u32) -> Self {
        Self {
            sustained: sustained.max(1),
            cpus: BTreeMap::new(),
            imbalance: Sustained::new(sustained),
            scheduler: None,
            took: Vec::new(),
            summary: Summary {
                samples: 0,
                unreadable: 0,
                implausible: 0,
                standstills: 0,
                max_imbalance: 0.0,
                sustained_imbalance: None,
                max_dsq_depth: None,
                sustained_dsq_depth: None,
                stuck: Vec::new(),
                events: BTreeMap::new(),
                median_took: Duration::ZERO,
            },
        }
    }

    /// Adds a sample. `vcpu_ran` is how long each vCPU thread ran on the host since the sample
    /// before, where that is known.
    pub fn add(&mut self, sample: &Sample, vcpu_ran: Option<&BTreeMap<CpuId, Duration>>) -> Use {
        let online = online(sample);
        let used = Use::of_online(&online);
        match used {
            Use::Counted => {}
            Use::Unreadable => self.summary.unreadable += 1,
            Use::Implausible => self.summary.implausible += 1,
        }
        if used != Use::Counted {
            self.interrupt();
            return used;
        }
        self.summary.samples += 1;
        self.took.push(sample.took);
        self.add_imbalance(&online);
        self.add_depths(&online);
        self.add_clocks(&online, vcpu_ran);
        self.add_events(&sample.scx);
        Use::Counted
    }

    /// Something was missing between the samples: nothing is sustained across it.
    pub fn interrupt(&mut self) {
        self.imbalance.interrupt();
        for cpu in self.cpus.values_mut() {
            cpu.last = None;
            cpu.stuck_for = 0;
            cpu.depth.interrupt();
        }
    }

    /// The figures so far.
    pub fn summary(&self) -> Summary {
        let mut took = self.took.clone();
        took.sort();
        let depths = self.cpus.iter().filter_map(|(cpu, own)| Some((own.depth.best? as u32, *cpu)));
        Summary {
            sustained_imbalance: self.imbalance.best,
            sustained_dsq_depth: depths.max_by_key(|(depth, cpu)| (*depth, std::cmp::Reverse(*cpu))),
            stuck: self
                .cpus
                .iter()
                .filter(|(_, history)| history.longest_stuck >= self.sustained)
                .map(|(&cpu, _)| cpu)
                .collect(),
            median_took: took.get(took.len() / 2).copied().unwrap_or_default(),
            ..self.summary.clone()
        }
    }

    fn history(&mut self, cpu: CpuId) -> &mut CpuHistory {
        let depth = Sustained::new(self.sustained);
        let fresh = || CpuHistory { last: None, stuck_for: 0, longest_stuck: 0, depth };
        self.cpus.entry(cpu).or_insert_with(fresh)
    }

    fn add_imbalance(&mut self, online: &[&CpuSample]) {
        match imbalance(online) {
            Some(ratio) => {
                self.summary.max_imbalance = self.summary.max_imbalance.max(ratio);
                self.imbalance.add(ratio);
            }
            None => self.imbalance.interrupt(),
        }
    }

    fn add_depths(&mut self, online: &[&CpuSample]) {
        for cpu in online {
            let Ok(depth) = cpu.rq.local_dsq_nr else {
                self.history(cpu.cpu).depth.interrupt();
                continue;
            };
            self.history(cpu.cpu).depth.add(f64::from(depth));
            if self.summary.max_dsq_depth.is_none_or(|(deepest, _)| depth > deepest) {
                self.summary.max_dsq_depth = Some((depth, cpu.cpu));
            }
        }
    }

    fn add_clocks(&mut self, online: &[&CpuSample], vcpu_ran: Option<&BTreeMap<CpuId, Duration>>) {
        let mut advanced = false;
        let mut compared = false;
        let mut still = Vec::new();
        for cpu in online {
            let (Ok(clock), Ok(nr_running)) = (&cpu.rq.clock, &cpu.rq.nr_running) else {
                self.history(cpu.cpu).last = None;
                continue;
            };
            let before = self.history(cpu.cpu).last.replace((*clock, *nr_running));
            compared |= before.is_some();
            match before {
                Some((was, had)) if was == *clock && had > 0 && *nr_running > 0 => still.push(cpu.cpu),
                Some((was, _)) => {
                    advanced |= was != *clock;
                    self.history(cpu.cpu).stuck_for = 0;
                }
                None => self.history(cpu.cpu).stuck_for = 0,
            }
        }
        let standstill = compared && !advanced;
        self.summary.standstills += u32::from(standstill);
        for cpu in still {
            let had_a_chance = match vcpu_ran {
                Some(ran) => ran.get(&cpu).is_some_and(|&ran| ran >= MIN_VCPU_TIME),
                None => !standstill,
            };
            let history = self.history(cpu);
            if had_a_chance {
                history.stuck_for += 1;
                history.longest_stuck = history.longest_stuck.max(history.stuck_for);
            }
        }
        // A CPU that went offline comes back with a new history.
        let present: Vec<_> = online.iter().map(|c| c.cpu).collect();
        for (cpu, history) in &mut self.cpus {
            if !present.contains(cpu) {
                history.last = None;
                history.stuck_for = 0;
                history.depth.interrupt();
            }
        }
    }

    /// Begins anew, now: event counters count from where they were last seen.
    pub fn restart(&mut self) {
        let scheduler = self.scheduler.take();
        *self = Self { scheduler, ..Self::new(self.sustained) };
    }

    /// Passes over a sample that is not to count; says what it would have been good for.
    pub fn skip(&mut self, sample: &Sample) -> Use {
        let counted = std::mem::take(&mut self.summary.events);
        self.add_events(&sample.scx);
        self.summary.events = counted;
        self.interrupt();
        Use::of_online(&online(sample))
    }

    fn add_events(&mut self, scx: &Scx) {
        let Scx::Loaded { instance, events } = scx else {
            if *scx == Scx::NotLoaded {
                self.scheduler = None;
            }
            return;
        };
        let now: BTreeMap<String, i64> =
            events.iter().filter_map(|e| Some((e.name.clone(), *e.count.as_ref().ok()?))).collect();
        // A scheduler's counters begin at 0 when it is loaded; one that cannot be read just now keeps
        // its last value.
        let before = self.scheduler.take().filter(|(last, _)| last == instance);
        let mut latest = before.map(|(_, counts)| counts).unwrap_or_default();
        for (name, count) in now {
            let was = latest.insert(name.clone(), count).unwrap_or(0);
            let increase = count.checked_sub(was).filter(|&more| more >= 0).unwrap_or(0);
            let total = self.summary.events.entry(name).or_insert(0);
            *total = total.saturating_add(increase);
        }
        self.scheduler = Some((*instance, latest));
    }
}

/// `max(nr_running) / max(1, min(nr_running))` over the CPUs; `None` when one of them is unknown.
pub fn imbalance(online: &[&CpuSample]) -> Option<f64> {
    let counts: Option<Vec<u32>> = online.iter().map(|c| c.rq.nr_running.as_ref().ok().copied()).collect();
    let counts = counts?;
    let (most, least) = (counts.iter().max()?, counts.iter().min()?);
    Some(f64::from(*most) / f64::from((*least).max(1)))
}

fn is_implausible(online: &[&CpuSample]) -> bool {
    let absurd = online.iter().any(|c| c.rq.local_dsq_nr.as_ref().is_ok_and(|&n| n > ABSURD_DSQ_DEPTH));
    let clocks: Vec<_> = online.iter().filter_map(|c| c.rq.clock.as_ref().ok()).collect();
    let equal = clocks.len() > 1 && clocks.windows(2).all(|pair| pair[0] == pair[1]);
    absurd || equal || clocks.iter().any(|&&clock| clock == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Gap;
    use crate::kernel::rq::Rq;
    use crate::kernel::scx::Event;

    /// A CPU as (online, nr_running, clock, local DSQ depth).
    type Cpu = (bool, u32, u64, u32);

    fn sample(cpus: &[Cpu]) -> Sample {
        let cpus = cpus.iter().enumerate().map(|(n, &(online, nr, clock, depth))| CpuSample {
            cpu: CpuId(n as u32),
            online: Ok(online),
            rq: Rq {
                nr_running: Ok(nr),
                clock: Ok(clock),
                scx_nr_running: Ok(0),
                scx_flags: Ok(1),
                local_dsq_nr: Ok(depth),
            },
        });
        Sample { took: Duration::from_micros(100), cpus: cpus.collect(), scx: Scx::NotLoaded }
    }

    fn observe(samples: impl IntoIterator<Item = Sample>) -> Summary {
        let mut observation = Observation::new(5);
        for sample in samples {
            observation.add(&sample, None);
        }
        observation.summary()
    }

    /// CPU 0 with a clock that stands still, CPU 1 with one that runs.
    fn stuck(n: u64, nr_running: u32) -> Sample {
        sample(&[(true, nr_running, 7, 0), (true, 1, 1000 + n, 0)])
    }

    #[test]
    fn imbalance_counts_once_it_is_sustained() {
        let uneven = |n: u64| sample(&[(true, 9, n + 1, 0), (true, 2, n + 2, 0)]);
        let even = |n: u64| sample(&[(true, 2, n + 1, 0), (true, 2, n + 2, 0)]);
        let four = observe((0..4).map(uneven).chain((4..8).map(even)).chain((8..12).map(uneven)));
        assert_eq!(four.max_imbalance, 4.5);
        assert_eq!(four.sustained_imbalance, Some(1.0));
        let five = observe((0..5).map(uneven).chain((5..8).map(even)));
        assert_eq!(five.sustained_imbalance, Some(4.5));
    }

    #[test]
    fn an_empty_run_queue_divides_by_one() {
        let summary = observe([sample(&[(true, 6, 1, 0), (true, 0, 2, 0)])]);
        assert_eq!(summary.max_imbalance, 6.0);
    }

    #[test]
    fn offline_cpus_count_for_nothing() {
        let summary = observe((0..9).map(|n| sample(&[(true, 3, n + 1, 0), (false, 40, 7, 60)])));
        assert_eq!(summary.max_imbalance, 1.0);
        assert_eq!(summary.max_dsq_depth, Some((0, CpuId(0))));
        assert_eq!(summary.stuck, []);
    }

    #[test]
    fn an_unreadable_queue_makes_no_ratio() {
        let mut holey = sample(&[(true, 9, 1, 0), (true, 2, 2, 0)]);
        holey.cpus[1].rq.nr_running = Err(Gap::Torn { what: "x" });
        let summary = observe([holey]);
        assert_eq!((summary.samples, summary.max_imbalance), (1, 0.0));
    }

    #[test]
    fn dsq_depth_is_sustained_on_one_cpu_only() {
        let turns = |n: u64| {
            let (a, b) = if n.is_multiple_of(2) { (60, 0) } else { (0, 60) };
            sample(&[(true, 1, n + 1, a), (true, 1, n + 2, b)])
        };
        let summary = observe((0..10).map(turns));
        assert_eq!(summary.max_dsq_depth, Some((60, CpuId(0))));
        assert_eq!(summary.sustained_dsq_depth, Some((0, CpuId(0))));
        let stays = |n: u64| sample(&[(true, 1, n + 1, 0), (true, 1, n + 2, 55 + n as u32)]);
        let summary = observe((0..5).map(stays));
        assert_eq!(summary.max_dsq_depth, Some((59, CpuId(1))));
        assert_eq!(summary.sustained_dsq_depth, Some((55, CpuId(1))));
    }

    #[test]
    fn a_clock_that_stands_still_with_work_is_stuck() {
        assert_eq!(observe((0..5).map(|n| stuck(n, 1))).stuck, []);
        assert_eq!(observe((0..6).map(|n| stuck(n, 1))).stuck, [CpuId(0)]);
    }

    #[test]
    fn an_idle_cpu_may_stop_its_clock() {
        assert_eq!(observe((0..20).map(|n| stuck(n, 0))).stuck, []);
        let now_and_then = |n: u64| stuck(n, u32::from(!n.is_multiple_of(4)));
        assert_eq!(observe((0..20).map(now_and_then)).stuck, []);
    }

    #[test]
    fn a_guest_that_stands_still_altogether_is_not_the_schedulers_fault() {
        let summary = observe((0..20).map(|_| sample(&[(true, 1, 7, 0), (true, 2, 8, 0)])));
        assert_eq!((summary.stuck, summary.standstills), (vec![], 19));
    }

    #[test]
    fn vcpu_time_decides_where_it_is_known() {
        let ran = |ms| BTreeMap::from([(CpuId(0), Duration::from_millis(ms))]);
        let with = |ms, standing_still| {
            let mut observation = Observation::new(5);
            for n in 0..10 {
                let sample = if standing_still { sample(&[(true, 1, 7, 0)]) } else { stuck(n, 1) };
                observation.add(&sample, Some(&ran(ms)));
            }
            observation.summary().stuck
        };
        assert_eq!(with(39, false), []);
        assert_eq!(with(40, false), [CpuId(0)]);
        assert_eq!(with(100, true), [CpuId(0)]);
    }

    #[test]
    fn a_gap_breaks_every_series() {
        let mut observation = Observation::new(5);
        for n in 0..4 {
            observation.add(&stuck(n, 9), None);
        }
        observation.interrupt();
        for n in 4..8 {
            observation.add(&stuck(n, 9), None);
        }
        let summary = observation.summary();
        assert_eq!((summary.stuck, summary.sustained_imbalance), (vec![], None));
    }

    #[test]
    fn a_kernel_still_being_set_up_is_no_measurement() {
        let mut observation = Observation::new(5);
        for cpus in [
            [(true, 1, 5, 0), (true, 1, 5, 0)],
            [(true, 1, 5, 10_001), (true, 1, 6, 0)],
            [(true, 1, 0, 0), (true, 1, 6, 0)],
        ] {
            assert_eq!(observation.add(&sample(&cpus), None), Use::Implausible);
        }
        assert_eq!(observation.add(&sample(&[]), None), Use::Unreadable);
        let summary = observation.summary();
        assert_eq!((summary.samples, summary.implausible, summary.unreadable), (0, 3, 1));
    }

    fn with_events(instance: u64, count: Result<i64, Gap>) -> Sample {
        let events = vec![Event { name: "SCX_EV_X".into(), count }];
        let scx = Scx::Loaded { instance: Kva(instance), events };
        Sample { scx, ..sample(&[(true, 1, 1, 0)]) }
    }

    #[test]
    fn only_what_lies_in_the_window_counts() {
        let mut observation = Observation::new(1);
        observation.add(&with_events(0x1000, Ok(5)), None);
        observation.restart();
        observation.add(&with_events(0x1000, Ok(7)), None);
        assert_eq!(observation.skip(&with_events(0x1000, Ok(20))), Use::Counted);
        observation.add(&with_events(0x1000, Ok(21)), None);
        let summary = observation.summary();
        assert_eq!(summary.samples, 2);
        assert_eq!(summary.events, BTreeMap::from([("SCX_EV_X".to_owned(), 3)]));
    }

    #[test]
    fn event_increases_add_up_over_schedulers() {
        let summary = observe([
            with_events(0x1000, Ok(5)),
            with_events(0x1000, Ok(7)),
            with_events(0x1000, Err(Gap::Torn { what: "x" })),
            with_events(0x1000, Ok(8)),
            with_events(0x2000, Ok(2)),
            sample(&[(true, 1, 1, 0)]),
            with_events(0x2000, Ok(1)),
        ]);
        assert_eq!(summary.events, BTreeMap::from([("SCX_EV_X".to_owned(), 11)]));
    }
}

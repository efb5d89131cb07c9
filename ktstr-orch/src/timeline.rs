//! One clock for everything that is known of a run: what the scenario did, what its processes and the
//! kernel said, what the monitor sampled and captured.
//!
//! ```text
//! guest frames    carry the guest's time ─────────────────────┐
//! samples, console, captures  come when the host sees them ───┴─▶ milliseconds after the scenario's start
//! ```
//!
//! Time in which the guest stood for captures does not count. Where the host's time says nothing about
//! the guest's (`det`), samples have the time of the run queues' clocks and console lines that of the
//! kernel's own stamp. The whole is `timeline.jsonl` in the run's directory; the report has a part.

use std::time::Duration;

use ktstr_proto::{
    guest::{GuestFrame, GuestMessage, LogSource, Phase},
    monitor::Sample,
    stats::{PhaseBucket, PhaseMonitor},
    verdict::{CaptureMark, TimelineMark, TimelineSource},
};

/// Events kept; what comes after is counted.
const MAX_EVENTS: usize = 200_000;
/// Bytes of one line.
const MAX_LINE: usize = 2048;
/// Marks of the scenario in a report.
const MOST_STIMULI: usize = 300;
/// Other marks in a report: the last ones.
const MOST_OTHERS: usize = 200;

/// When something happened.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Stamp {
    /// The guest's `CLOCK_MONOTONIC` or what runs like it, nanoseconds.
    guest_ns: Option<u64>,
    /// The host's time since the run began, without that in which the guest stood.
    host: Duration,
}

#[derive(Debug)]
struct Event {
    stamp: Stamp,
    source: TimelineSource,
    what: String,
    iterations: u64,
}

/// One sample in figures.
#[derive(Debug)]
struct Seen {
    stamp: Stamp,
    nr_running: u32,
    imbalance_ratio: f64,
    local_dsq_depth: u32,
    /// Counters that rose since the sample before.
    events: Vec<(String, i64)>,
}

/// Events as they come.
#[derive(Debug, Default)]
pub struct Timeline {
    events: Vec<Event>,
    left_off: u64,
    stood: Duration,
    /// Pieces of lines, of each stream.
    partial: std::collections::HashMap<&'static str, String>,
    /// Values of the last sample, to tell what changed.
    last_events: Vec<(String, i64)>,
    /// Samples with readable run queues.
    samples: Vec<Seen>,
    start: Option<Stamp>,
}

impl Timeline {
    fn push(&mut self, stamp: Stamp, source: TimelineSource, what: String, iterations: u64) {
        if self.events.len() >= MAX_EVENTS {
            self.left_off += 1;
            return;
        }
        let mut what = what;
        if let Some((cut, _)) = what.char_indices().nth(MAX_LINE) {
            what.truncate(cut);
            what.push('…');
        }
        self.events.push(Event { stamp, source, what, iterations });
    }

    /// The guest stood for so long.
    pub fn stood(&mut self, stood: Duration) {
        self.stood += stood;
    }

    fn now(&self, elapsed: Duration) -> Duration {
        elapsed.saturating_sub(self.stood)
    }

    /// The guest has said something; `elapsed` is the host's time since the run began, here and below.
    pub fn guest(&mut self, message: &GuestMessage, elapsed: Duration) {
        let stamp = Stamp { guest_ns: Some(message.t_ns), host: self.now(elapsed) };
        let (source, what, iterations) = match &message.body {
            GuestFrame::Phase(phase) => {
                if *phase == Phase::ScenarioStarted {
                    self.start.get_or_insert(stamp);
                }
                let (source, what) = match phase {
                    Phase::ScenarioEnded => (TimelineSource::Stimulus, "workers stopped".to_owned()),
                    phase => (TimelineSource::Station, station(*phase).to_owned()),
                };
                (source, what, 0)
            }
            GuestFrame::Stimulus { what, iterations } => {
                (TimelineSource::Stimulus, what.clone(), *iterations)
            }
            GuestFrame::ScxDisabled { reason } => {
                (TimelineSource::Stimulus, format!("scheduler disabled: {reason}"), 0)
            }
            GuestFrame::SchedulerEnded { end, expected: false } => {
                (TimelineSource::Stimulus, format!("the scheduler {end}"), 0)
            }
            GuestFrame::Answered(Err(reason)) => (TimelineSource::Stimulus, format!("not done: {reason}"), 0),
            GuestFrame::Log(log) => {
                let (stream, source) = match log.source {
                    LogSource::Scheduler => ("scheduler", TimelineSource::Scheduler),
                    LogSource::Init => ("init", TimelineSource::Output),
                    LogSource::Stdout => ("stdout", TimelineSource::Output),
                    LogSource::Stderr => ("stderr", TimelineSource::Output),
                };
                return self.lines(stream, &log.text, stamp, source);
            }
            _ => return,
        };
        self.push(stamp, source, what, iterations);
    }

    /// The kernel's console has said something.
    pub fn console(&mut self, text: &str, elapsed: Duration) {
        let stamp = Stamp { guest_ns: None, host: self.now(elapsed) };
        self.lines("console", text, stamp, TimelineSource::Console);
    }

    fn lines(&mut self, stream: &'static str, text: &str, stamp: Stamp, source: TimelineSource) {
        let mut partial = self.partial.remove(stream).unwrap_or_default();
        for piece in text.split_inclusive('\n') {
            partial.push_str(piece);
            if piece.ends_with('\n') || partial.len() > MAX_LINE {
                let line = std::mem::take(&mut partial);
                self.line(line.trim_end(), stamp, source);
            }
        }
        if !partial.is_empty() {
            self.partial.insert(stream, partial);
        }
    }

    fn line(&mut self, line: &str, stamp: Stamp, source: TimelineSource) {
        if line.is_empty() {
            return;
        }
        let stamp = match (source, printk_ns(line)) {
            (TimelineSource::Console, Some(ns)) => Stamp { guest_ns: Some(ns), ..stamp },
            _ => stamp,
        };
        self.push(stamp, source, line.to_owned(), 0);
    }

    /// The monitor has taken a sample.
    pub fn sample(&mut self, sample: &Sample, elapsed: Duration) {
        let clock = sample.cpus.iter().filter_map(|cpu| cpu.clock).max();
        let stamp = Stamp { guest_ns: clock, host: self.now(elapsed) };
        let each = |get: fn(&ktstr_proto::monitor::CpuSample) -> Option<u32>| {
            let shown = sample.cpus.iter().map(|cpu| get(cpu).map_or("?".to_owned(), |n| n.to_string()));
            shown.collect::<Vec<_>>().join(" ")
        };
        let mut what = format!("running {}", each(|cpu| cpu.nr_running));
        if sample.cpus.iter().any(|cpu| cpu.local_dsq_nr.is_some_and(|nr| nr > 0)) {
            what.push_str(&format!("; local DSQs {}", each(|cpu| cpu.local_dsq_nr)));
        }
        let mut rose = Vec::new();
        for (name, value) in &sample.events {
            let before = self.last_events.iter().find(|(own, _)| own == name).map_or(0, |(_, value)| *value);
            if *value > before {
                what.push_str(&format!("; {name} +{}", value - before));
                rose.push((name.clone(), value - before));
            }
        }
        self.keep(sample, stamp, rose);
        self.last_events.clone_from(&sample.events);
        self.push(stamp, TimelineSource::Monitor, what, 0);
    }

    fn keep(&mut self, sample: &Sample, stamp: Stamp, events: Vec<(String, i64)>) {
        let running = || sample.cpus.iter().filter_map(|cpu| cpu.nr_running);
        let (Some(most), Some(least)) = (running().max(), running().min()) else { return };
        if self.samples.len() < MAX_EVENTS {
            self.samples.push(Seen {
                stamp,
                nr_running: running().fold(0, u32::saturating_add),
                imbalance_ratio: f64::from(most) / f64::from(least.max(1)),
                local_dsq_depth: sample.cpus.iter().filter_map(|cpu| cpu.local_dsq_nr).max().unwrap_or(0),
                events,
            });
        }
    }

    /// Tells each phase what the monitor saw in it, whatever the guest says of that.
    pub fn tell_phases(&self, phases: &mut [PhaseBucket], guest_time: bool) {
        phases.iter_mut().for_each(|phase| phase.monitor = None);
        let Some(start) = self.start else { return };
        for seen in &self.samples {
            let at_ms = span_ms(seen.stamp, start, guest_time);
            let index = at_ms.and_then(|at_ms| phase_at(phases, at_ms));
            let Some(phase) = index.and_then(|n| phases.iter_mut().find(|phase| phase.index == n)) else {
                continue;
            };
            let figures = phase.monitor.get_or_insert_with(PhaseMonitor::default);
            let before = f64::from(figures.samples);
            figures.samples += 1;
            figures.mean_nr_running =
                (figures.mean_nr_running * before + f64::from(seen.nr_running)) / (before + 1.0);
            figures.max_imbalance_ratio = figures.max_imbalance_ratio.max(seen.imbalance_ratio);
            figures.max_local_dsq_depth = figures.max_local_dsq_depth.max(seen.local_dsq_depth);
            for (name, rose) in &seen.events {
                match figures.events.iter_mut().find(|(known, _)| known == name) {
                    Some((_, sum)) => *sum = sum.saturating_add(*rose),
                    None => figures.events.push((name.clone(), *rose)),
                }
            }
        }
    }

    /// Everything in the order of time, `captures` among it, each with its phase. `guest_time` says that
    /// the host's time means nothing here.
    pub fn finish(
        &mut self,
        captures: &[CaptureMark],
        phases: &[PhaseBucket],
        guest_time: bool,
    ) -> Vec<TimelineMark> {
        for (stream, rest) in std::mem::take(&mut self.partial) {
            let source = match stream {
                "console" => TimelineSource::Console,
                "scheduler" => TimelineSource::Scheduler,
                _ => TimelineSource::Output,
            };
            let host = self.events.last().map_or(Duration::ZERO, |last| last.stamp.host);
            self.line(&rest, Stamp { guest_ns: None, host }, source);
        }
        let Some(start) = self.start else { return Vec::new() };
        let mut last = i64::MIN;
        let mut marks = Vec::with_capacity(self.events.len() + captures.len());
        for event in &self.events {
            let at_ms = at_ms(event, start, guest_time).unwrap_or(last);
            last = last.max(at_ms);
            let (source, what) = (event.source, event.what.clone());
            let phase = phase_at(phases, at_ms);
            marks.push(TimelineMark { at_ms, source, what, iterations: event.iterations, phase });
        }
        marks.extend(captures.iter().map(|capture| TimelineMark {
            at_ms: capture.at_ms,
            source: TimelineSource::Capture,
            what: match &capture.file {
                Ok(file) => format!("{} in {file}: {}", capture.tag, capture.why),
                Err(why) => format!("{} was not taken: {why}", capture.tag),
            },
            iterations: 0,
            phase: phase_at(phases, capture.at_ms),
        }));
        // Equal times keep the order in which they came.
        marks.sort_by_key(|mark| mark.at_ms);
        if self.left_off > 0 {
            marks.push(TimelineMark {
                at_ms: marks.last().map_or(0, |mark| mark.at_ms),
                source: TimelineSource::Station,
                what: format!("{} more events were not kept", self.left_off),
                iterations: 0,
                phase: None,
            });
        }
        marks
    }
}

/// What of it a report holds: what the scenario did, the captures, and the last of everything else.
pub fn for_report(marks: &[TimelineMark]) -> Vec<TimelineMark> {
    let is_stimulus =
        |mark: &TimelineMark| matches!(mark.source, TimelineSource::Stimulus | TimelineSource::Capture);
    let others = marks.iter().filter(|mark| !is_stimulus(mark)).count();
    let (mut stimuli, mut seen) = (0, 0);
    let kept = marks.iter().filter(|mark| match is_stimulus(mark) {
        true => {
            stimuli += 1;
            stimuli <= MOST_STIMULI
        }
        false => {
            seen += 1;
            seen + MOST_OTHERS > others
        }
    });
    kept.cloned().collect()
}

fn at_ms(event: &Event, start: Stamp, guest_time: bool) -> Option<i64> {
    // Only frames carry the very clock that the scenario's start is told in.
    let framed = !matches!(event.source, TimelineSource::Console | TimelineSource::Monitor);
    span_ms(event.stamp, start, framed || guest_time)
}

/// From the scenario's start, by the guest's clock or by the host's.
fn span_ms(stamp: Stamp, start: Stamp, guest_time: bool) -> Option<i64> {
    if guest_time {
        let span = i128::from(stamp.guest_ns?) - i128::from(start.guest_ns?);
        return i64::try_from(span.div_euclid(1_000_000)).ok();
    }
    let ms = |time: Duration| time.as_millis() as i64;
    Some(ms(stamp.host) - ms(start.host))
}

fn phase_at(phases: &[PhaseBucket], at_ms: i64) -> Option<u32> {
    let holds = |phase: &&PhaseBucket| (phase.start_ms as i64..phase.end_ms as i64).contains(&at_ms);
    phases.iter().find(holds).map(|phase| phase.index)
}

/// The kernel's own stamp: `[    3.123456] text`.
fn printk_ns(line: &str) -> Option<u64> {
    let (stamp, _) = line.strip_prefix('[')?.split_once(']')?;
    let (seconds, micros) = stamp.trim().split_once('.')?;
    let (seconds, micros): (u64, u64) = (seconds.parse().ok()?, micros.parse().ok()?);
    (micros < 1_000_000).then(|| seconds.checked_mul(1_000_000_000)?.checked_add(micros * 1000))?
}

fn station(phase: Phase) -> &'static str {
    match phase {
        Phase::InitStarted => "init started",
        Phase::SystemReady => "system ready",
        Phase::SchedulerStarted => "scheduler started",
        Phase::SchedulerAttached => "scheduler attached",
        Phase::TestStarted => "test started",
        Phase::ScenarioStarted => "scenario started",
        Phase::ScenarioEnded => "scenario ended",
        Phase::TestEnded => "test ended",
        Phase::TeardownStarted => "teardown started",
        Phase::PoweringOff => "powering off",
    }
}

#[cfg(test)]
mod tests {
    use ktstr_proto::{guest::Log, monitor::CpuSample};

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn frame(t_ms: u64, body: GuestFrame) -> GuestMessage {
        GuestMessage { t_ns: t_ms * 1_000_000, body }
    }

    fn log(text: &str) -> GuestFrame {
        GuestFrame::Log(Log { source: LogSource::Scheduler, text: text.into() })
    }

    fn told(marks: &[TimelineMark]) -> Vec<String> {
        marks.iter().map(|mark| format!("{:+} {}", mark.at_ms, mark.what)).collect()
    }

    /// A guest that is 500 ms into its life when the host has counted 2000.
    fn run() -> Timeline {
        let mut timeline = Timeline::default();
        timeline.console("[    0.100000] Linux\n[    0.4", ms(1600));
        timeline.guest(&frame(400, log("attached\nwait")), ms(1900));
        timeline.guest(&frame(500, GuestFrame::Phase(Phase::ScenarioStarted)), ms(2000));
        let cpu = CpuSample { nr_running: Some(3), clock: Some(600_000_000), ..CpuSample::default() };
        let events = vec![("SCX_EV_X".to_owned(), 4)];
        timeline.sample(&Sample { cpus: vec![cpu], events, ..Sample::default() }, ms(2110));
        timeline.stood(ms(1000));
        let what = "cgroup added".to_owned();
        timeline.guest(&frame(700, GuestFrame::Stimulus { what, iterations: 9 }), ms(3210));
        timeline.guest(&frame(800, log("ing\n")), ms(3300));
        timeline.console("50000] half\n", ms(3350));
        timeline
    }

    fn capture() -> CaptureMark {
        CaptureMark {
            tag: "periodic_000".into(),
            why: "y".into(),
            at_ms: 150,
            boundary_ms: None,
            stood_us: 1,
            file: Ok("capture-0.json".into()),
            stats: Err(ktstr_proto::scx_stats::MissingStatsReason::NotHeard),
        }
    }

    #[test]
    fn everything_is_on_one_clock() {
        let phases = [PhaseBucket { index: 1, start_ms: 100, end_ms: 250, ..PhaseBucket::default() }];
        let marks = run().finish(&[capture()], &phases, false);
        let expected = [
            "-400 [    0.100000] Linux",
            "-100 attached",
            "+0 scenario started",
            "+110 running 3; SCX_EV_X +4",
            "+150 periodic_000 in capture-0.json: y",
            "+200 cgroup added",
            "+300 waiting",
            "+350 [    0.450000] half",
        ];
        assert_eq!(told(&marks), expected);
        assert_eq!(marks.iter().filter(|mark| mark.phase == Some(1)).count(), 3);
    }

    #[test]
    fn a_phase_knows_what_the_monitor_saw_in_it() {
        let mut timeline = run();
        let cpu = |nr, depth| CpuSample {
            nr_running: Some(nr),
            clock: Some(650_000_000),
            local_dsq_nr: Some(depth),
            ..CpuSample::default()
        };
        let events = vec![("SCX_EV_X".to_owned(), 9)];
        timeline.sample(&Sample { cpus: vec![cpu(4, 0), cpu(1, 2)], events, ..Sample::default() }, ms(3160));
        timeline.sample(&Sample { cpus: vec![CpuSample::default()], ..Sample::default() }, ms(3170));
        let phase = |index, start_ms, end_ms| PhaseBucket {
            index,
            start_ms,
            end_ms,
            monitor: Some(PhaseMonitor { samples: 77, ..PhaseMonitor::default() }),
            ..PhaseBucket::default()
        };
        let mut phases = [phase(0, 0, 50), phase(1, 50, 250)];
        timeline.tell_phases(&mut phases, false);
        assert_eq!(phases[0].monitor, None, "the guest is not believed");
        let expected = PhaseMonitor {
            samples: 2,
            mean_nr_running: 4.0,
            max_imbalance_ratio: 4.0,
            max_local_dsq_depth: 2,
            events: vec![("SCX_EV_X".to_owned(), 4 + 5)],
        };
        assert_eq!(phases[1].monitor, Some(expected));
    }

    #[test]
    fn where_the_hosts_time_says_nothing_the_guests_stamps_count() {
        let marks = run().finish(&[], &[], true);
        let at = |what: &str| marks.iter().find(|mark| mark.what.contains(what)).unwrap().at_ms;
        assert_eq!((at("Linux"), at("half"), at("running 3")), (-400, -50, 100));
    }

    #[test]
    fn a_report_has_what_the_scenario_did_and_the_last_of_the_rest() {
        let mut timeline = run();
        for nth in 0..1000 {
            timeline.guest(&frame(900 + nth, log("again\n")), ms(3400 + nth));
        }
        let marks = timeline.finish(&[capture()], &[], false);
        let kept = for_report(&marks);
        assert_eq!(kept.len(), 200 + 2);
        assert_eq!(kept.last().unwrap().at_ms, 900 + 999 - 500);
        assert!(kept.iter().any(|mark| mark.what == "cgroup added"));
    }

    #[test]
    fn a_run_without_a_scenario_has_no_timeline() {
        let mut timeline = Timeline::default();
        timeline.console("x\n", ms(1));
        assert_eq!(timeline.finish(&[], &[], false), []);
        assert_eq!(printk_ns("[ 12.5] x"), Some(12_000_005_000));
        assert_eq!(printk_ns("[abc] x"), None);
    }
}

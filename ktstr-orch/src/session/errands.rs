//! Looks into the guest that somebody asked for: one after another, the guest standing where that is
//! wanted, and never for longer than agreed.
//!
//! ```text
//!            Pause            Ask, Capture              Resume
//! waiting ──────────▶ Stopping ──────────▶ Reading ──────────────▶ Thawing ──Resumed──▶ done
//!    │                    │ refused, late     │ late, monitor gone     │ late
//!    └── unfrozen ────────┼───────▶ Reading   └──────▶ Thawing         └──▶ the run ends
//!                         └──▶ Thawing
//! ```
//!
//! Whatever the monitor does while the guest stands, the guest goes on at the deadline. A reply that
//! comes after its deadline is dropped; until it comes, nothing more is asked of the monitor.

mod queue;

use std::{
    fs::File,
    path::PathBuf,
    time::{Duration, Instant},
};

use ktstr_proto::{
    Fds, RunId,
    capture::{
        Ask, Capture, CaptureTaken, NumberSet, PlaceWritten, Query, QueryAnswer, SetNumber, TakeCapture,
        Thawed,
    },
    client::ClientReply,
    guest::{HostRefusal, HostRequest, Phase},
    link::{ErrorCode, FdSlot, RemoteError},
    monitor::{MonitorReply, MonitorRequest},
    run::AccelKind,
    scx_stats::{Stats, StatsOf, boundary},
    verdict::Process,
    vmm::{Pause, Resume, VmmReply, VmmRequest},
};

pub(super) use self::queue::Errands;
pub use self::queue::{Answered, Asker};
use self::queue::{Cause, Errand, Found, GuestTime, Stage, Underway, ValueAsker};
use super::{Session, State, Stopped, asked};
use crate::plan::stats_asked;

/// How long the VMM may take to stop all vCPUs, or to let them go on. A busy host delays threads.
const SWITCH_LIMIT: Duration = Duration::from_secs(15);
/// More than this are refused: who asks so much should wait for answers.
const MAX_WAITING: usize = 64;
/// Captures that a run takes by itself because of what it sees, at most.
const MAX_AUTOMATIC: u32 = 16;
/// Captures planned for a scenario, at most.
const MAX_PLANNED: u32 = 1000;

fn error(code: ErrorCode, message: impl Into<String>) -> RemoteError {
    RemoteError { code, message: message.into() }
}

impl Session {
    /// Somebody asks; the answer comes through [`Session::take_answers`].
    pub fn query(&mut self, asker: Asker, query: Query) {
        self.enqueue(Errand::Query { asker, query });
    }

    /// Somebody wants a capture.
    pub fn capture(&mut self, asker: Asker, wanted: &TakeCapture) {
        let why = "asked for".to_owned();
        let (cause, vmcore) = (Cause::Asked(asker), wanted.vmcore);
        self.enqueue(Errand::Capture { cause, why, vmcore, boundary: None, watched: None });
    }

    /// The run takes a capture by itself, unless it has taken too many.
    pub(super) fn capture_now(&mut self, why: String) {
        if self.errands.automatic < MAX_AUTOMATIC && self.monitor_attached && self.state == State::Running {
            self.errands.automatic += 1;
            let (cause, vmcore) = (Cause::Seen, false);
            self.enqueue(Errand::Capture { cause, why, vmcore, boundary: None, watched: None });
        }
    }

    /// A watched place was written and the guest stands: it is captured before it goes on, if the answer
    /// is true.
    pub(super) fn capture_written_place(&mut self, watched: PlaceWritten) -> bool {
        let mut why = format!("CPU {} wrote to {}", watched.cpu, watched.what);
        if self.errands.underway.as_ref().is_some_and(|underway| underway.errand.freezes()) {
            // Whatever stops and starts it now does not know of the write.
            why.push_str(" (the guest went on before it was looked at)");
        }
        let (cause, vmcore) = (Cause::Written, false);
        let errand = Errand::Capture { cause, why, vmcore, boundary: None, watched: Some(watched) };
        let possible = self.monitor.is_some() && self.monitor_attached && self.state == State::Running;
        // A monitor that is late is asked nothing, and the guest stands.
        let possible = possible && self.errands.late.is_none() && self.errands.waiting.len() < MAX_WAITING;
        match possible {
            true => {
                // Before everything that can wait.
                self.errands.waiting.push_front(errand);
                self.next_errand();
            }
            false => self.came_to_nothing(&errand, "nobody could look at it"),
        }
        possible
    }

    /// A place that was to be watched and is not.
    pub(super) fn no_watch_capture(&mut self, what: &str, why_not: &str) {
        let mark = self.errands.mark(Cause::Written, &format!("watch {what}"), Instant::now(), None);
        mark.file = Err(why_not.to_owned());
    }

    /// The same, unless something has been captured already: for what shows when it is over.
    pub(super) fn capture_if_none(&mut self, why: &str) {
        if self.errands.automatic == 0 {
            self.capture_now(why.to_owned());
        }
    }

    /// `count` captures, evenly spread between 10 % and 90 % of the `length` of a scenario that begins
    /// now: neither its first moments nor its last ones are like the rest.
    pub(super) fn plan_captures(&mut self, count: u32, length: Duration) {
        let now = Instant::now();
        let planned = (0..count).map(|nth| boundary(nth, count, length)).map(|due| (now + due, due));
        self.errands.planned = planned.collect();
        self.errands.nr_planned = count;
        let asked = self.plan.as_ref().map_or(0, |plan| stats_asked(&self.spec, plan.accel));
        // Statistics of other moments are not those of these.
        self.errands.told.expect(if asked == count { asked } else { 0 });
    }

    /// The guest sends what the scheduler says of itself.
    pub(super) fn scheduler_said(&mut self, of: StatsOf, stats: &Stats) {
        self.errands.told.hear(of, stats, &self.dir.path);
    }

    /// What the server is to deliver.
    pub fn take_answers(&mut self) -> Vec<Answered> {
        std::mem::take(&mut self.errands.answers)
    }

    /// Whoever asked over this connection is gone; what has begun is finished nevertheless.
    pub fn forget_connection(&mut self, connection: usize) {
        self.errands.waiting.retain(|errand| errand.asker().is_none_or(|a| a.connection != connection));
    }

    /// The test wants a capture.
    pub(super) fn capture_for_test(&mut self, id: u32, name: &str) {
        let (cause, why) = (Cause::Test(id), name.to_owned());
        self.enqueue(Errand::Capture { cause, why, vmcore: false, boundary: None, watched: None });
    }

    /// The test wants something in a BPF map.
    pub(super) fn value_for_test(&mut self, id: u32, request: HostRequest) {
        self.enqueue(Errand::Value { by: ValueAsker::Test(id), request });
    }

    /// Somebody who attached for writing sets a number in a BPF map.
    pub fn set_number(&mut self, asker: Asker, wanted: &SetNumber) {
        self.record("map-write-asked", &(&wanted.map, &wanted.path, wanted.value));
        let SetNumber { map, path, value, .. } = wanted.clone();
        let request = HostRequest::WriteMap { map, path, value };
        self.enqueue(Errand::Value { by: ValueAsker::Client(asker), request });
    }

    /// How many captures were taken so far, or came to nothing.
    pub(super) fn captures(&self) -> usize {
        self.errands.marks.len()
    }

    fn enqueue(&mut self, errand: Errand) {
        let refused = match &self.monitor {
            _ if matches!(self.state, State::Planning | State::Starting) => {
                Some((ErrorCode::NotYet, "the machine does not run yet"))
            }
            _ if self.state != State::Running => {
                Some((ErrorCode::Unavailable, "the machine does not run any more"))
            }
            None => Some((
                ErrorCode::Unavailable,
                "no monitor observes this run (KTSTR_OBSERVE=0, a shell without KTSTR_OBSERVE=1, or it has died)",
            )),
            // The test waits for its answer; somebody who looks in from outside may ask again.
            Some(_) if !self.monitor_attached && errand.test().is_none() => {
                Some((ErrorCode::NotYet, "the monitor is still reading the kernel file"))
            }
            Some(_) if !self.kernel_readable && errand.asker().is_some() => Some((
                ErrorCode::NotYet,
                "the guest has not brought its kernel up so far that it can be read",
            )),
            Some(_) if self.errands.waiting.len() >= MAX_WAITING => {
                Some((ErrorCode::Unavailable, "too many questions wait already"))
            }
            Some(_) => None,
        };
        match (refused, errand.asker()) {
            (None, _) => self.errands.waiting.push_back(errand),
            (Some((code, why)), Some(asker)) => {
                self.errands.answers.push((asker, Err(error(code, why))));
            }
            (Some((_, why)), None) => {
                self.notice(format!("{} was not taken: {why}", errand.name()));
                self.came_to_nothing(&errand, why);
                if let Some(id) = errand.test() {
                    // That nobody observes was the user's wish.
                    let not_here = !self.spec.observe;
                    self.tell_guest(id, Err(HostRefusal { not_here, ..asked::refusal(why) }));
                }
            }
        }
        self.next_errand();
    }

    /// A capture that will not be there.
    fn came_to_nothing(&mut self, errand: &Errand, why_not: &str) {
        if let Errand::Capture { cause, why, boundary, .. } = errand {
            let mark = self.errands.mark(*cause, why, Instant::now(), *boundary);
            mark.file = Err(why_not.to_owned());
        }
    }

    pub(super) fn next_errand(&mut self) {
        let busy = self.errands.underway.is_some() || self.errands.unwritten.is_some();
        let reading = self.monitor.is_some() && !self.monitor_attached;
        let late = self.errands.late.is_some() || self.errands.late_files;
        if busy || reading || late || self.state != State::Running {
            return;
        }
        let Some(errand) = self.errands.waiting.pop_front() else { return };
        let path = self.dir.path.join(format!("capture-{}", self.errands.begun));
        self.errands.begun += u32::from(matches!(errand, Errand::Capture { .. }));
        self.errands.written = None;
        let (until, placeholder) = (Instant::now() + SWITCH_LIMIT, Stage::Stopping { request: 0 });
        let (freezes, registers) = (errand.freezes(), errand.wants_registers());
        self.errands.underway = Some(Underway {
            errand,
            stage: placeholder,
            until,
            at: None,
            registers: None,
            found: None,
            path,
        });
        if freezes {
            match self.ask_vmm(VmmRequest::Pause(Pause { registers })) {
                Some(request) => self.set_stage(Stage::Stopping { request }, SWITCH_LIMIT),
                None => self.abandon("the VMM is gone"),
            }
        } else {
            self.read(false);
        }
    }

    fn set_stage(&mut self, stage: Stage, limit: Duration) {
        if let Some(underway) = &mut self.errands.underway {
            underway.stage = stage;
            underway.until = Instant::now() + limit;
        }
    }

    pub(super) fn ask_vmm(&mut self, request: VmmRequest) -> Option<u32> {
        let vmm = self.vmm.as_mut()?;
        let asked = vmm.channel.queue_request(request, Fds::default());
        // A socket that is closed shows in its pidfd.
        let _ = vmm.channel.flush();
        asked.ok()
    }

    /// The guest stands, or need not: ask the monitor.
    fn read(&mut self, frozen: bool) {
        let Some(underway) = &mut self.errands.underway else { return };
        underway.at = frozen.then(Instant::now);
        let limit = underway.errand.limit();
        let mut fds = Fds::default();
        let request = match &underway.errand {
            Errand::Query { query, .. } => {
                Ok(MonitorRequest::Ask(Ask { question: query.question.clone(), frozen }))
            }
            Errand::Capture { why, vmcore, watched, .. } => {
                let registers = underway.registers.take();
                let registers = registers.unwrap_or_else(|| Err("the VMM told none".to_owned()));
                let files = capture_files(underway.path.clone(), *vmcore, &mut fds);
                files.map(|(json, text, vmcore)| {
                    let (why, watched) = (why.clone(), watched.clone());
                    MonitorRequest::Capture(Capture { why, json, text, vmcore, watched, registers })
                })
            }
            Errand::Value { request, .. } => {
                asked::value_request(request, self.ram.as_ref(), frozen, &mut fds)
            }
        };
        let sent = request.and_then(|request| {
            let monitor = self.monitor.as_mut().ok_or("the monitor is gone")?;
            let id = monitor.channel.queue_request(request, fds).map_err(|e| e.to_string())?;
            monitor.channel.flush().map_err(|e| e.to_string())?;
            Ok::<_, String>(id)
        });
        match sent {
            Ok(request) => self.set_stage(Stage::Reading { request, frozen }, limit),
            Err(why) => self.found(Found::Nothing(error(ErrorCode::Infrastructure, why)), frozen),
        }
    }

    fn found(&mut self, found: Found, frozen: bool) {
        let Some(underway) = &mut self.errands.underway else { return };
        underway.found = Some(found);
        if !frozen {
            return self.conclude(None);
        }
        match self.ask_vmm(VmmRequest::Resume(Resume)) {
            Some(request) => self.set_stage(Stage::Thawing { request }, SWITCH_LIMIT),
            // Its end is told by the pidfd and ends the run.
            None => self.conclude(None),
        }
    }

    /// A reply of the VMM, if it belongs to an errand.
    pub(super) fn vmm_switched(&mut self, id: u32, result: &Result<VmmReply, RemoteError>) -> bool {
        let Some(underway) = &self.errands.underway else { return false };
        match (underway.stage, result) {
            (Stage::Stopping { request }, Ok(VmmReply::Pause(paused))) if request == id => {
                if let Some(underway) = &mut self.errands.underway {
                    underway.registers = paused.registers.clone();
                }
                self.read(true);
            }
            // Some vCPUs may stand, others not: all shall run.
            (Stage::Stopping { request }, Err(why)) if request == id => {
                self.found(Found::Nothing(why.clone()), true);
            }
            (Stage::Thawing { request }, Ok(VmmReply::Resume(resumed))) if request == id => {
                self.conclude(Some(Duration::from_micros(resumed.stood_us)));
            }
            (Stage::Thawing { request }, Err(why)) if request == id => {
                self.record("resume-refused", why);
                self.conclude(None);
                // Otherwise it has ended meanwhile, which its exit tells.
                if why.code == ErrorCode::Infrastructure {
                    let how = format!("could not let the machine go on after it stood: {}", why.message);
                    self.stop(Stopped::Died(Process::Vmm, how));
                }
            }
            _ => return false,
        }
        true
    }

    /// A reply of the monitor, if it belongs to an errand.
    pub(super) fn monitor_answered(
        &mut self,
        id: u32,
        result: Result<MonitorReply, RemoteError>,
    ) -> Unclaimed {
        if self.errands.late == Some(id) {
            self.errands.late = None;
            self.errands.late_files = matches!(result, Ok(MonitorReply::Capture(_)));
            self.next_errand();
            return None;
        }
        let Some(underway) = &self.errands.underway else { return Some(result) };
        let Stage::Reading { request, frozen } = underway.stage else { return Some(result) };
        if request != id {
            return Some(result);
        }
        let path = underway.path.clone();
        let found = match result {
            Ok(MonitorReply::Ask(answer)) => Found::Answer(answer),
            Ok(MonitorReply::Capture(read)) => Found::Captured { read, path },
            Ok(MonitorReply::WriteMap(written)) => Found::Written(written.what),
            Ok(MonitorReply::WriteKernel(written)) => Found::Written(written.what),
            Ok(_) => Found::Nothing(error(ErrorCode::Infrastructure, "the monitor answered something else")),
            Err(why) => Found::Nothing(why),
        };
        self.found(found, frozen);
        None
    }

    /// The monitor is gone: nobody will answer.
    pub(super) fn monitor_lost(&mut self) {
        self.errands.late = None;
        self.errands.late_files = false;
        if self.errands.unwritten.is_some() {
            self.capture_written(Err("the monitor died while it wrote a capture".into()));
        }
        let gone = || error(ErrorCode::Infrastructure, "the monitor died before it answered");
        for errand in std::mem::take(&mut self.errands.waiting) {
            if let Some(asker) = errand.asker() {
                self.errands.answers.push((asker, Err(gone())));
            }
            if let Some(id) = errand.test() {
                self.tell_guest(id, Err(asked::refusal(&gone().message)));
            }
            if matches!(errand, Errand::Capture { cause: Cause::Written, .. }) {
                self.came_to_nothing(&errand, "the monitor died before it could look");
                self.go_on();
            }
        }
        if let Some(Underway { stage: Stage::Reading { frozen, .. }, .. }) = self.errands.underway {
            self.found(Found::Nothing(gone()), frozen);
        }
    }

    /// The machine is gone: what is under way ends.
    pub(super) fn abandon(&mut self, why: &str) {
        let gone = || error(ErrorCode::Unavailable, why);
        let underway = self.errands.underway.take();
        if let Some(Underway { stage: Stage::Reading { request, .. }, .. }) = underway {
            self.errands.late = Some(request);
        }
        let underway = underway.map(|underway| underway.errand);
        for errand in underway.into_iter().chain(std::mem::take(&mut self.errands.waiting)) {
            if let Some(asker) = errand.asker() {
                self.errands.answers.push((asker, Err(gone())));
            }
            self.came_to_nothing(&errand, why);
        }
        let left = std::mem::take(&mut self.errands.planned);
        let why_left = match self.monitor_attached {
            true => "the run ended before",
            false => "no monitor observed the run",
        };
        if !left.is_empty() {
            self.notice(format!("{} snapshots were not taken: {why_left}", left.len()));
        }
        for (_, boundary) in left {
            let mark = self.errands.mark(Cause::Planned, "snapshot", Instant::now(), Some(boundary));
            mark.file = Err(why_left.to_owned());
        }
    }

    /// Time has passed.
    pub(super) fn errands_tick(&mut self, now: Instant) {
        if self.errands.is_idle()
            && self.monitor_attached
            && self.errands.is_due(now)
            && let Some((_, boundary)) = self.errands.planned.pop_front()
        {
            let why = format!("snapshot at {} ms", boundary.as_millis());
            let boundary = Some(boundary);
            let (cause, vmcore) = (Cause::Planned, false);
            self.enqueue(Errand::Capture { cause, why, vmcore, boundary, watched: None });
        }
        let Some(underway) = &self.errands.underway else { return };
        if now < underway.until {
            return;
        }
        let name = underway.errand.name();
        match underway.stage {
            Stage::Stopping { .. } => {
                self.notice(format!("{name} failed: the vCPUs did not stop in {} s", SWITCH_LIMIT.as_secs()));
                let why = error(ErrorCode::Infrastructure, "the vCPUs did not stop in time");
                self.found(Found::Nothing(why), true);
            }
            Stage::Reading { request, frozen } => {
                let limit = underway.errand.limit().as_secs();
                self.errands.late = Some(request);
                self.notice(format!(
                    "{name} failed: ktstr-monitor did not answer in {limit} s; the guest goes on"
                ));
                let why = error(ErrorCode::Infrastructure, "the monitor did not answer in time");
                self.found(Found::Nothing(why), frozen);
            }
            Stage::Thawing { .. } => {
                self.abandon("the guest did not go on");
                let how = format!("did not let the guest go on in {} s", SWITCH_LIMIT.as_secs());
                self.stop(Stopped::Died(Process::Vmm, how));
            }
        }
    }

    /// The guest runs; tell everybody.
    fn conclude(&mut self, stood: Option<Duration>) {
        let Some(underway) = self.errands.underway.take() else { return };
        let at = underway.at.unwrap_or_else(Instant::now);
        let marked = match (&underway.errand, &underway.found) {
            (Errand::Capture { cause, why, boundary, .. }, Some(Found::Captured { path, read })) => {
                self.errands.guest_time(read.clock_ns);
                let mark = self.errands.mark(*cause, why, at, *boundary);
                mark.stood_us = stood.map_or(0, |stood| stood.as_micros() as u64);
                let name = path.with_extension("json");
                mark.file = Ok(name.file_name().unwrap_or_default().to_string_lossy().into_owned());
                true
            }
            _ => false,
        };
        if !marked {
            let why_not = match &underway.found {
                Some(Found::Nothing(why)) => why.message.clone(),
                _ => "it came to nothing".to_owned(),
            };
            self.came_to_nothing(&underway.errand, &why_not);
        }
        if let Some(stood) = stood {
            self.timeline.stood(stood);
            self.errands.began = self.errands.began.map(|began| began + stood);
            // Time that did not pass for the guest is not taken from its deadline either.
            self.give_up = self.give_up.map(|at| at + stood);
            for (at, _) in &mut self.errands.planned {
                *at += stood;
            }
            if self.monitor.is_some() {
                let stood_us = stood.as_micros() as u64;
                self.ask_monitor(MonitorRequest::Thawed(Thawed { stood_us }));
            }
        }
        let stood_us = stood.map(|stood| stood.as_micros() as u64);
        let name = underway.errand.name();
        let asker = underway.errand.asker();
        if let Some(id) = underway.errand.test() {
            let reply = match &underway.found {
                Some(Found::Answer(answer)) => Ok(answer.json.clone()),
                Some(Found::Written(what)) => {
                    self.record("map-written", what);
                    Ok(String::new())
                }
                Some(Found::Captured { .. }) => Ok(String::new()),
                Some(Found::Nothing(why)) => Err(asked::refusal(&why.message)),
                None => Err(asked::refusal("it came to nothing")),
            };
            self.tell_guest(id, reply);
        }
        let cause = match underway.errand {
            Errand::Query { asker, .. } => Cause::Asked(asker),
            Errand::Capture { cause, .. } => cause,
            Errand::Value { by: ValueAsker::Client(asker), .. } => Cause::Asked(asker),
            // The test was told whatever came of it.
            Errand::Value { .. } => return self.next_errand(),
        };
        let result = match underway.found {
            Some(Found::Answer(answer)) => {
                let ktstr_proto::capture::Answer { json, text, read_us } = answer;
                Ok(ClientReply::Query(QueryAnswer { json, text, read_us, stood_us }))
            }
            Some(Found::Captured { read, path }) => {
                if let Some(why) = &read.no_core {
                    self.notice(format!("{name} has no core file: {why}"));
                }
                if let Some(why) = &read.no_registers {
                    self.notice(format!("{name}: its core file has no registers: {why}"));
                }
                let taken = CaptureTaken { path, stood_us: stood_us.unwrap_or(0), read };
                self.record("capture", &(&name, &taken));
                self.errands.unwritten = Some((cause, taken));
                if let Some(written) = self.errands.written.take() {
                    self.capture_written(written);
                }
                return;
            }
            Some(Found::Nothing(why)) => Err(why),
            Some(Found::Written(what)) => {
                self.record("map-written", &what);
                // Whoever reads the report shall know that the run was not left alone.
                self.notice(format!("somebody attached wrote into a map: {what}"));
                Ok(ClientReply::SetNumber(NumberSet { what, stood_us: stood_us.unwrap_or(0) }))
            }
            None => Err(error(ErrorCode::Infrastructure, "it came to nothing")),
        };
        match (asker, result) {
            (Some(asker), result) => self.errands.answers.push((asker, result)),
            (None, Ok(_)) => {}
            (None, Err(why)) => self.notice(format!("{name} failed: {}", why.message)),
        }
        self.next_errand();
    }

    /// The monitor has written the files of a capture, or says why it could not.
    pub(super) fn capture_written(&mut self, written: Result<(), String>) {
        if std::mem::take(&mut self.errands.late_files) {
            return self.next_errand();
        }
        if self.errands.unwritten.is_none() && self.errands.underway.is_some() {
            self.errands.written = Some(written);
            return;
        }
        // Files are written one capture after the other: it is the last one that has any.
        if let (Err(why), Some(mark)) = (&written, self.errands.marks.iter_mut().rfind(|m| m.file.is_ok())) {
            mark.file = Err(why.clone());
        }
        match (self.errands.unwritten.take(), written) {
            (Some((Cause::Asked(asker), taken)), Ok(())) => {
                self.errands.answers.push((asker, Ok(ClientReply::TakeCapture(taken))));
            }
            (Some((Cause::Asked(asker), _)), Err(why)) => {
                self.errands.answers.push((asker, Err(error(ErrorCode::Infrastructure, why))));
            }
            (Some((Cause::Seen, taken)), Ok(())) => {
                let why = self.errands.marks.last().map_or("", |mark| mark.why.as_str());
                let text = taken.path.with_extension("txt");
                self.notice(format!("{why}: the guest's state at that moment is in {}", text.display()));
            }
            (_, Ok(())) => {}
            (_, Err(why)) => self.notice(why),
        }
        self.next_errand();
    }

    /// Whether a request for this run is meant for it.
    pub fn is(&self, run: &RunId) -> bool {
        self.dir.id == *run
    }

    /// The scenario begins, at this time of the guest: snapshots that the test asked for are planned.
    pub(super) fn scenario_began(&mut self, phase: Phase, t_ns: u64) {
        // Snapshots belong to the first scenario of a test.
        let first = phase == Phase::ScenarioStarted && self.errands.began.is_none();
        if first {
            self.errands.began = Some(Instant::now());
            let virtual_time = self.plan.as_ref().is_some_and(|plan| plan.accel == AccelKind::Det);
            self.errands.guest = virtual_time.then_some(GuestTime { began_ns: t_ns, now_ns: t_ns });
        }
        if first
            && let ktstr_proto::run::Job::Test(test) = &self.spec.job
            && self.spec.snapshots > 0
        {
            let (count, length) =
                (self.spec.snapshots.min(MAX_PLANNED), Duration::from_millis(test.duration_ms));
            self.plan_captures(count, length);
        }
    }
}

/// A reply that belongs to nothing here.
pub(super) type Unclaimed = Option<Result<MonitorReply, RemoteError>>;

/// Makes the files of a capture for the monitor: JSON, text, core.
fn capture_files(
    path: PathBuf,
    vmcore: bool,
    fds: &mut Fds,
) -> Result<(FdSlot, FdSlot, Option<FdSlot>), String> {
    let mut open = |ending: &str| {
        let path = path.with_extension(ending);
        let file = File::create(&path).map_err(|e| format!("cannot create {}: {e}", path.display()))?;
        Ok::<_, String>(fds.attach(file.into()))
    };
    let (json, text) = (open("json")?, open("txt")?);
    let vmcore = vmcore.then(|| open("vmcore")).transpose()?;
    Ok((json, text, vmcore))
}

#[cfg(test)]
mod tests;

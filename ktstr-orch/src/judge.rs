//! From evidence to verdict. Pure: no process, no file, no clock.
//!
//! The order of the questions is the order of blame: first whether ktstr itself or the host failed,
//! then whether the guest got far enough to say anything, then the scheduler, then the test, and
//! last what the monitor saw.

mod clock;
mod digest;
mod excuse;
mod expect;
mod observed;
mod tail;
mod triple_fault;

use ktstr_proto::{
    AccelKind,
    guest::{BY_KERNEL, GuestFrame, GuestMessage, Log, LogSource, Phase, ProcessEnd, TestEnd},
    host::HostTime,
    monitor::MonitorSummary,
    run::Expectation,
    symbols::SymbolsTold,
    verdict::{Assert, AssertResult, Cause, DetailKind, Outcome, Process},
    vmm::VmExit,
};

use self::{
    clock::Given,
    observed::{
        add_event_findings, add_monitor_findings, add_symbols, add_unjudged, add_unmeasured, monitor_limits,
    },
    tail::{FATAL, NOT_UNPACKED, PANIC, STALE_TEXT},
};
pub use self::{clock::GuestClock, digest::digest, tail::Tail};

/// What ended a run from outside the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped {
    /// The client asked, or is gone.
    Cancelled,
    /// The wall-clock limit was reached.
    Deadline {
        /// Milliseconds waited.
        waited_ms: u64,
    },
    /// A process died.
    Died(Process, String),
    /// The guest's byte stream is broken.
    Channel(String),
    /// Something needed is missing.
    Missing(String),
    /// The request makes no sense.
    BadRequest(String),
}

/// Everything gathered in a run.
#[derive(Debug, Default)]
pub struct Evidence {
    /// The guest's messages that matter for the verdict (all but logs).
    pub frames: Vec<GuestMessage>,
    /// Where the guest says that symbols lie, the first time it did.
    pub symbols: Option<SymbolsTold>,
    /// Tail of the scheduler's output, whole lines.
    pub scheduler_log: Tail,
    /// Tail of the kernel console, whole lines.
    pub console: Tail,
    /// How the machine ended, if it did.
    pub exit: Option<VmExit>,
    /// What ended the run from outside, if anything.
    pub stopped: Option<Stopped>,
    /// What the monitor saw.
    pub monitor: Option<MonitorSummary>,
    /// When on the host the guest's messages came.
    pub clock: GuestClock,
}

/// A verdict before it is dressed up as a report.
#[derive(Debug, PartialEq)]
pub struct Judgement {
    /// Judgement.
    pub outcome: Outcome,
    /// Whether ktstr or the host failed.
    pub infrastructure: bool,
    /// Why, unless it passed.
    pub cause: Option<Cause>,
    /// The test's result with the monitor's findings added.
    pub result: Option<AssertResult>,
    /// Exit status of a command.
    pub exit_status: Option<i32>,
}

impl Evidence {
    /// Notes one message.
    pub fn note(&mut self, message: GuestMessage) {
        match message.body {
            GuestFrame::Log(Log { source: LogSource::Scheduler, ref text }) => self.scheduler_log.push(text),
            GuestFrame::Log(_) | GuestFrame::SchedulerStats { .. } => {}
            GuestFrame::Symbols(told) => {
                self.symbols.get_or_insert(told);
            }
            _ => self.frames.push(message),
        }
    }

    /// The last station the guest reached.
    pub fn phase(&self) -> Option<Phase> {
        self.frames.iter().rev().find_map(|m| match m.body {
            GuestFrame::Phase(phase) => Some(phase),
            _ => None,
        })
    }

    fn reached(&self, wanted: Phase) -> bool {
        self.frames.iter().any(|m| m.body == GuestFrame::Phase(wanted))
    }

    /// The kernel release, once the guest has said it.
    pub fn release(&self) -> Option<&str> {
        self.frames.iter().find_map(|m| match &m.body {
            GuestFrame::Hello { release, .. } => Some(release.as_str()),
            _ => None,
        })
    }

    /// Comes to a judgement and weighs it against what the test expects.
    pub fn judge_expecting(
        &self,
        accel: Option<AccelKind>,
        assert: &Assert,
        host: Option<&HostTime>,
        expect: &Expectation,
    ) -> Judgement {
        let mut judgement = self.judge(accel, assert, host);
        expect::apply(&mut judgement, expect, &self.said(), self.scheduler_left_early());
        judgement
    }

    /// Comes to a judgement; `host` is what the host gave to the vCPUs.
    pub fn judge(&self, accel: Option<AccelKind>, assert: &Assert, host: Option<&HostTime>) -> Judgement {
        if let Some(cause) = self.infrastructure_cause() {
            return verdict_of(cause, None);
        }
        // Under `det` there is no host to blame.
        let host = host.filter(|_| accel != Some(AccelKind::Det));
        if let Some(cause) = self.scheduler_cause().or_else(|| self.panic_cause()) {
            let judgement = verdict_of(cause, self.returned().cloned());
            return self.excuse_stale_text(
                excuse::stall(judgement, self.given(host), self.disabled().map(|(at, _)| at)),
                accel,
            );
        }
        if let Some(end) = self.exec_end() {
            let (status, outcome) = match end {
                ProcessEnd::Exited(0) => (0, Outcome::Pass),
                ProcessEnd::Exited(code) => (*code, Outcome::Fail),
                ProcessEnd::Signaled(signal) => (128 + signal, Outcome::Fail),
            };
            let cause = (outcome == Outcome::Fail).then(|| Cause::TestDied { how: format!("command {end}") });
            return Judgement {
                outcome,
                infrastructure: false,
                cause,
                result: None,
                exit_status: Some(status),
            };
        }
        if let Some(judgement) = self.test_judgement(accel, assert, host) {
            return judgement;
        }
        excuse::stall(verdict_of(self.silent_cause(), None), self.given(host), None)
    }

    fn given<'a>(&'a self, host: Option<&'a HostTime>) -> Option<Given<'a>> {
        host.map(|time| Given { time, clock: &self.clock, any_cpu: self.reached(Phase::SchedulerAttached) })
    }

    /// When and why the kernel disabled a scheduler for good. That a test detached or replaced one says
    /// nothing of the next, nor that the kernel sent one away that came back, nor that one did not attach which the
    /// test asked for and did without.
    fn disabled(&self) -> Option<(u64, &str)> {
        self.disabled_by_kernel()
            .find(|(at, _, reason)| !self.came_back(*at, reason) && self.done_without(*at).is_none())
            .map(|(_, t, reason)| (t, reason))
    }

    /// Place among the frames, time and reason of each.
    fn disabled_by_kernel(&self) -> impl Iterator<Item = (usize, u64, &str)> {
        self.frames.iter().enumerate().filter_map(|(at, m)| match &m.body {
            GuestFrame::ScxDisabled { reason } if !unregistered(reason) => {
                Some((at, m.t_ns, reason.as_str()))
            }
            _ => None,
        })
    }

    fn came_back(&self, at: usize, reason: &str) -> bool {
        let after = &self.frames[at + 1..];
        reason.starts_with(BY_KERNEL)
            && after.iter().any(|m| m.body == GuestFrame::Phase(Phase::SchedulerAttached))
    }

    /// What the test was told of a scheduler that the kernel disabled while it attached at the test's wish; none if
    /// it was another, or if the test ended because of it.
    fn done_without(&self, at: usize) -> Option<&str> {
        let (before, after) = self.frames.split_at(at);
        let started = before.iter().rev().take_while(|m| {
            !matches!(m.body, GuestFrame::Ask(_) | GuestFrame::Phase(Phase::SchedulerAttached))
        });
        let attaching = started.into_iter().any(|m| m.body == GuestFrame::Phase(Phase::SchedulerStarted));
        let told = after.iter().find_map(|m| match &m.body {
            GuestFrame::Answered(reply) => Some(reply),
            _ => None,
        });
        let Some(Err(told)) = told.filter(|_| attaching) else { return None };
        let ended_by_it = matches!(self.test_end(), Some(TestEnd::Error(causes)) if causes.iter().any(|c| c.contains(told)));
        (!ended_by_it).then_some(told)
    }

    /// Failures outside of what was to be tested.
    fn scheduler_left_early(&self) -> bool {
        let early = self.frames.iter().take_while(|m| m.body != GuestFrame::Phase(Phase::TeardownStarted));
        early
            .into_iter()
            .any(|m| matches!(m.body, GuestFrame::ScxDisabled { .. } | GuestFrame::SchedulerEnded { .. }))
    }

    /// Everything in which the scheduler's own words or the kernel's about it can stand.
    fn said(&self) -> String {
        let reasons = self.frames.iter().filter_map(|m| match &m.body {
            GuestFrame::ScxDisabled { reason } | GuestFrame::StepFailed { reason, .. } => {
                Some(reason.clone())
            }
            _ => None,
        });
        let mut lines: Vec<String> = reasons.collect();
        lines.extend(self.scheduler_log.last(Tail::KEEP));
        lines.join("\n")
    }

    fn infrastructure_cause(&self) -> Option<Cause> {
        match &self.stopped {
            Some(Stopped::Cancelled) => return Some(Cause::Cancelled),
            Some(Stopped::Died(process, how)) => {
                return Some(Cause::ProcessDied { process: *process, how: how.clone() });
            }
            Some(Stopped::Channel(reason)) => return Some(Cause::Channel { reason: reason.clone() }),
            Some(Stopped::Missing(reason)) => return Some(Cause::Missing { reason: reason.clone() }),
            Some(Stopped::BadRequest(reason)) => return Some(Cause::BadRequest { reason: reason.clone() }),
            Some(Stopped::Deadline { .. }) | None => {}
        }
        if let Some(VmExit::EmulatorDied { how, stderr }) = &self.exit {
            let how = if stderr.is_empty() { how.clone() } else { format!("{how}; it said: {stderr}") };
            return Some(Cause::ProcessDied { process: Process::Emulator, how });
        }
        self.frames.iter().find_map(|m| match &m.body {
            GuestFrame::StepFailed { step, reason } if !step.contains("scheduler") => {
                Some(Cause::GuestInit { step: step.clone(), reason: reason.clone() })
            }
            _ => None,
        })
    }

    fn scheduler_cause(&self) -> Option<Cause> {
        let attached = self.reached(Phase::SchedulerAttached);
        let teardown = self.reached(Phase::TeardownStarted);
        let disabled = self.disabled().map(|(_, reason)| reason.to_owned());
        let ended = self.frames.iter().find_map(|m| match &m.body {
            GuestFrame::SchedulerEnded { end, expected: false } => Some(end),
            _ => None,
        });
        let step = self.frames.iter().find_map(|m| match &m.body {
            GuestFrame::StepFailed { reason, .. } => Some(reason.clone()),
            _ => None,
        });
        if let Some(reason) = disabled {
            return Some(if reason.starts_with("runnable task stall") {
                Cause::SchedulerStall { reason }
            } else {
                Cause::SchedulerError { reason }
            });
        }
        match (attached, ended, step) {
            (false, Some(end), _) => Some(Cause::SchedulerNotAttached {
                reason: format!("the scheduler {end} before sched_ext was enabled; its log says why"),
            }),
            (false, None, Some(reason)) => Some(Cause::SchedulerNotAttached { reason }),
            (true, Some(end), _) if !teardown => Some(Cause::SchedulerDied { how: end.to_string() }),
            _ => None,
        }
    }

    fn panic_cause(&self) -> Option<Cause> {
        let message = self.console.notable(PANIC)?.to_owned();
        // Without our init the kernel ends in a panic that says nothing of the reason.
        let truncated = NOT_UNPACKED.iter().find_map(|said| self.console.notable(said));
        if let (None, Some(said)) = (self.phase(), truncated) {
            let reason = format!(
                "the kernel could not unpack it ({said}), almost always because the guest has too little \
                 memory; give more with --memory-mb"
            );
            return Some(Cause::GuestInit { step: "unpack the initramfs".into(), reason });
        }
        Some(Cause::KernelPanic { message })
    }

    /// No scheduler makes the kernel run into a breakpoint of its own; a translation that is out of date does.
    fn excuse_stale_text(&self, mut judgement: Judgement, accel: Option<AccelKind>) -> Judgement {
        if let (Some(Cause::KernelPanic { message }), Some(AccelKind::Tcg), Some(oops)) =
            (&mut judgement.cause, accel, self.console.notable(STALE_TEXT))
        {
            judgement.outcome = Outcome::Inconclusive;
            message.push_str(&format!(
                "; before it `{oops}`: emulators with several threads are known to run outdated kernel text, so this is \
                 the emulator's doing and not the scheduler's"
            ));
        }
        judgement
    }

    fn exec_end(&self) -> Option<&ProcessEnd> {
        self.frames.iter().find_map(|m| match &m.body {
            GuestFrame::ExecEnded(end) => Some(end),
            _ => None,
        })
    }

    fn test_end(&self) -> Option<&TestEnd> {
        self.frames.iter().find_map(|m| match &m.body {
            GuestFrame::TestEnded(end) => Some(end),
            _ => None,
        })
    }

    fn returned(&self) -> Option<&AssertResult> {
        match self.test_end() {
            Some(TestEnd::Returned(result)) => Some(result),
            _ => None,
        }
    }

    fn test_judgement(
        &self,
        accel: Option<AccelKind>,
        assert: &Assert,
        host: Option<&HostTime>,
    ) -> Option<Judgement> {
        let cause = match self.test_end() {
            Some(TestEnd::Returned(result)) => {
                let mut result = result.clone();
                for (at, _, reason) in self.disabled_by_kernel() {
                    if self.came_back(at, reason) {
                        let message = format!("the kernel sent the scheduler away ({reason}); it came back");
                        result.push(DetailKind::Note, Outcome::Pass, message);
                    }
                    if let Some(told) = self.done_without(at) {
                        let message = format!("a scheduler that the test asked for did not attach: {told}");
                        result.push(DetailKind::Note, Outcome::Pass, message);
                    }
                }
                match (&self.monitor, accel) {
                    // The monitor looks when the host gets to it.
                    (_, Some(AccelKind::Det)) => {
                        let why = "nothing of the host decides under det";
                        add_unjudged(&mut result, assert, Outcome::NotRun, why);
                    }
                    (None, accel) => {
                        // What the test asked for itself is in doubt; what nobody asked for is only said.
                        let defaults = accel.map_or(Assert::NO_OVERRIDES, Assert::defaults_for);
                        let asked = monitor_limits(assert) != monitor_limits(&defaults);
                        let outcome = if asked { Outcome::Inconclusive } else { Outcome::NotRun };
                        add_unjudged(&mut result, assert, outcome, "there was no monitor");
                    }
                    (Some(monitor), accel) => {
                        let defaults = accel.map_or(Assert::NO_OVERRIDES, Assert::defaults_for);
                        add_unmeasured(&mut result, monitor, assert, &defaults);
                        add_monitor_findings(&mut result, monitor, assert);
                        add_event_findings(&mut result, monitor, host, assert);
                        add_symbols(&mut result, monitor);
                    }
                }
                if let Some(given) = self.given(host) {
                    excuse::by_host(&mut result, given);
                }
                let failed = matches!(result.outcome, Outcome::Fail | Outcome::Inconclusive);
                return Some(Judgement {
                    outcome: result.outcome,
                    infrastructure: false,
                    cause: failed.then_some(Cause::Assertion),
                    result: Some(result),
                    exit_status: None,
                });
            }
            Some(TestEnd::Error(causes)) => {
                let result = AssertResult::fail(
                    DetailKind::Error,
                    format!("the test returned an error: {}", causes.join(": ")),
                );
                return Some(verdict_of(Cause::Assertion, Some(result)));
            }
            Some(TestEnd::Panicked { message, backtrace }) => {
                Cause::TestPanic { message: message.clone(), backtrace: backtrace.clone() }
            }
            Some(TestEnd::Unknown(names)) => Cause::BadRequest {
                reason: format!("the test executable registers no such test; it has: {}", names.join(", ")),
            },
            None => {
                let end = self.frames.iter().find_map(|m| match &m.body {
                    GuestFrame::TestProcessEnded(end) => Some(end),
                    _ => None,
                })?;
                Cause::TestDied { how: end.to_string() }
            }
        };
        Some(verdict_of(cause, None))
    }

    /// Nobody said how it ended.
    fn silent_cause(&self) -> Cause {
        if let Some(fatal) = self.console.notable(FATAL) {
            return Cause::GuestInit { step: "init".into(), reason: fatal.into() };
        }
        if let Some(Stopped::Deadline { waited_ms }) = self.stopped {
            let phase = self.phase().map_or_else(
                || "the kernel's boot: PID 1 was never heard of".into(),
                |phase| format!("{phase:?}"),
            );
            return Cause::Deadline { phase, waited_ms };
        }
        let how = match &self.exit {
            Some(VmExit::InternalError { detail }) => format!("the machine stopped: {detail}"),
            Some(VmExit::TripleFault(fault)) => triple_fault::told(fault, self.monitor.as_ref()),
            Some(exit) => format!("{exit:?} before a result was sent"),
            None => "the machine is gone".into(),
        };
        Cause::GuestEnded { how }
    }
}

fn verdict_of(cause: Cause, result: Option<AssertResult>) -> Judgement {
    let (outcome, infrastructure) = match &cause {
        Cause::Missing { .. } => (Outcome::NotRun, false),
        Cause::BadRequest { .. }
        | Cause::Cancelled
        | Cause::ProcessDied { .. }
        | Cause::Channel { .. }
        | Cause::GuestInit { .. }
        | Cause::GuestEnded { .. } => (Outcome::Fail, true),
        Cause::Deadline { phase, .. } => (Outcome::Fail, phase.starts_with("the kernel's boot")),
        Cause::Assertion
        | Cause::TestPanic { .. }
        | Cause::TestDied { .. }
        | Cause::SchedulerStall { .. }
        | Cause::SchedulerError { .. }
        | Cause::SchedulerNotAttached { .. }
        | Cause::SchedulerDied { .. }
        | Cause::KernelPanic { .. } => (Outcome::Fail, false),
    };
    Judgement { outcome, infrastructure, cause: Some(cause), result, exit_status: None }
}

/// Whether the kernel says that the scheduler's own process ended it (kernel/sched/ext.c,
/// `scx_exit_reason()`).
pub fn unregistered(reason: &str) -> bool {
    reason.starts_with("unregistered from user")
}

#[cfg(test)]
mod tests {
    use ktstr_proto::{
        guest::SchedulerRequest,
        symbols::{ADVICE, SymbolDiffers, SymbolsCompared},
    };

    use super::*;

    fn evidence(frames: impl IntoIterator<Item = GuestFrame>) -> Evidence {
        let mut evidence = Evidence::default();
        for (n, body) in frames.into_iter().enumerate() {
            evidence.note(GuestMessage { t_ns: n as u64, body });
        }
        evidence
    }

    fn attached() -> Vec<GuestFrame> {
        [
            Phase::InitStarted,
            Phase::SystemReady,
            Phase::SchedulerStarted,
            Phase::SchedulerAttached,
            Phase::TestStarted,
        ]
        .map(GuestFrame::Phase)
        .to_vec()
    }

    fn judge(evidence: &Evidence) -> Judgement {
        evidence.judge(Some(AccelKind::Tcg), &Assert::default_checks(), None)
    }

    #[test]
    fn a_stall_an_error_and_a_death_are_three_causes() {
        let with = |last: &[GuestFrame]| judge(&evidence(attached().into_iter().chain(last.iter().cloned())));
        let disabled = |reason: &str| GuestFrame::ScxDisabled { reason: reason.into() };
        let died = GuestFrame::SchedulerEnded { end: ProcessEnd::Signaled(9), expected: false };
        assert!(matches!(with(&[disabled("runnable task stall")]).cause, Some(Cause::SchedulerStall { .. })));
        assert!(matches!(
            with(&[disabled("scx_bpf_error"), died.clone()]).cause,
            Some(Cause::SchedulerError { .. })
        ));
        let verdict = with(&[died]);
        assert!(matches!(verdict.cause, Some(Cause::SchedulerDied { .. })));
        assert_eq!((verdict.outcome, verdict.infrastructure), (Outcome::Fail, false));
    }

    #[test]
    fn a_scheduler_that_the_kernel_sent_away_may_come_back() {
        let reason = format!("{BY_KERNEL}: cpu 3 going offline, exiting scheduler");
        let judged = |comes_back: bool| {
            let mut frames = attached();
            frames.push(GuestFrame::ScxDisabled { reason: reason.clone() });
            frames.extend(comes_back.then_some(GuestFrame::Phase(Phase::SchedulerAttached)));
            frames.push(GuestFrame::TestEnded(TestEnd::Returned(AssertResult::pass())));
            judge(&evidence(frames))
        };
        let back = judged(true);
        assert_eq!((back.outcome, &back.cause), (Outcome::Pass, &None));
        let notes = back.result.unwrap().details;
        assert!(notes.iter().any(|note| note.message.contains("going offline")), "{notes:?}");
        assert!(matches!(judged(false).cause, Some(Cause::SchedulerError { .. })));
    }

    #[test]
    fn a_wish_of_the_test_that_failed_is_for_the_test_to_judge() {
        let told = "scheduler b exited with status 14 before it attached";
        let judged = |end: TestEnd, attached: bool| {
            let mut frames = self::attached();
            frames.push(GuestFrame::Ask(SchedulerRequest::Replace("b".into())));
            frames.push(GuestFrame::ScxDisabled { reason: "unregistered from user space".into() });
            frames.push(GuestFrame::Phase(Phase::SchedulerStarted));
            frames.extend(attached.then_some(GuestFrame::Phase(Phase::SchedulerAttached)));
            frames.push(GuestFrame::ScxDisabled { reason: "runtime error: ops.init() failed (-22)".into() });
            frames.push(GuestFrame::SchedulerEnded { end: ProcessEnd::Exited(14), expected: true });
            frames.push(GuestFrame::Answered(if attached { Ok(String::new()) } else { Err(told.into()) }));
            frames.push(GuestFrame::TestEnded(end));
            judge(&evidence(frames))
        };
        let passed = || TestEnd::Returned(AssertResult::pass());
        let caught = judged(passed(), false);
        assert_eq!((caught.outcome, &caught.cause), (Outcome::Pass, &None));
        let notes = caught.result.unwrap().details;
        assert!(notes.iter().any(|note| note.message.contains(told)), "{notes:?}");
        let by = |judged: Judgement| matches!(judged.cause, Some(Cause::SchedulerError { .. }));
        assert!(by(judged(TestEnd::Error(vec!["step 0".into(), told.into()]), false)), "not caught");
        assert!(by(judged(passed(), true)), "it was in charge");
        assert!(!by(judged(TestEnd::Error(vec!["something else".into()]), false)));
    }

    #[test]
    fn the_failure_of_a_scheduler_that_took_over_is_seen() {
        let disabled = |reason: &str| GuestFrame::ScxDisabled { reason: reason.into() };
        let mut frames = attached();
        frames.push(disabled("unregistered from user space"));
        frames.push(GuestFrame::Phase(Phase::SchedulerAttached));
        frames.push(disabled("runnable task stall (worker[9] failed to run for 5.1s)"));
        frames.push(GuestFrame::TestEnded(TestEnd::Returned(AssertResult::pass())));
        let judged = judge(&evidence(frames));
        assert!(matches!(judged.cause, Some(Cause::SchedulerStall { .. })), "{:?}", judged.cause);
        assert_eq!(judged.outcome, Outcome::Fail);
    }

    #[test]
    fn a_scheduler_that_never_attached_is_not_a_crash() {
        let ended = GuestFrame::SchedulerEnded { end: ProcessEnd::Exited(3), expected: false };
        let frames =
            [GuestFrame::Phase(Phase::InitStarted), GuestFrame::Phase(Phase::SchedulerStarted), ended];
        assert!(matches!(judge(&evidence(frames)).cause, Some(Cause::SchedulerNotAttached { .. })));
    }

    #[test]
    fn a_result_without_any_trouble_stands() {
        let mut frames = attached();
        frames.push(GuestFrame::TestEnded(TestEnd::Returned(AssertResult::pass())));
        frames.push(GuestFrame::TestProcessEnded(ProcessEnd::Exited(0)));
        frames.push(GuestFrame::Phase(Phase::TeardownStarted));
        frames.push(GuestFrame::SchedulerEnded { end: ProcessEnd::Exited(0), expected: true });
        frames.push(GuestFrame::ScxDisabled { reason: "unregistered from user space".into() });
        let verdict = judge(&evidence(frames));
        assert_eq!((verdict.outcome, verdict.cause), (Outcome::Pass, None));
    }

    #[test]
    fn our_own_death_is_never_the_schedulers_fault() {
        let mut evidence = evidence(attached());
        evidence.note(GuestMessage {
            t_ns: 9,
            body: GuestFrame::ScxDisabled { reason: "runnable task stall".into() },
        });
        evidence.stopped = Some(Stopped::Died(Process::Vmm, "was killed by signal 9".into()));
        let verdict = judge(&evidence);
        assert!(verdict.infrastructure);
        assert!(matches!(verdict.cause, Some(Cause::ProcessDied { process: Process::Vmm, .. })));
    }

    #[test]
    fn silence_before_init_is_told_from_silence_during_the_test() {
        let mut silent =
            Evidence { stopped: Some(Stopped::Deadline { waited_ms: 9 }), ..Evidence::default() };
        assert!(judge(&silent).infrastructure);
        silent.console.push("[    1.0] Kernel panic - not syncing: No working init found.\n");
        assert!(matches!(judge(&silent).cause, Some(Cause::KernelPanic { .. })));
        silent.console.push("[    0.9] Initramfs unpacking failed: write error\n");
        assert!(matches!(judge(&silent).cause, Some(Cause::GuestInit { .. })));
        let mut hung = evidence(attached());
        hung.stopped = Some(Stopped::Deadline { waited_ms: 9 });
        assert!(!judge(&hung).infrastructure);
    }

    #[test]
    fn without_a_monitor_a_limit_that_was_asked_for_is_in_doubt() {
        let mut frames = attached();
        frames.push(GuestFrame::TestEnded(TestEnd::Returned(AssertResult::pass())));
        let guest = evidence(frames);
        let judged = |assert: &Assert| guest.judge(Some(AccelKind::Tcg), assert, None).outcome;
        let defaults = Assert::defaults_for(AccelKind::Tcg);
        assert_eq!(judged(&defaults), Outcome::Pass);
        assert_eq!(judged(&defaults.max_fallback_rate(10.0)), Outcome::Inconclusive);
        assert_eq!(judged(&defaults.max_local_dsq_depth(3)), Outcome::Inconclusive);
    }

    #[test]
    fn a_guest_tells_of_its_symbols_once() {
        let told = |why: &str| GuestFrame::Symbols(Err(why.into()));
        let guest = evidence([told("first"), GuestFrame::Phase(Phase::SystemReady), told("second")]);
        assert_eq!(guest.symbols, Some(Err("first".into())));
        assert_eq!(guest.frames.len(), 1, "however often it repeats it");
    }

    #[test]
    fn what_was_read_of_other_places_than_the_guests_is_in_doubt() {
        let mut frames = attached();
        frames.push(GuestFrame::TestEnded(TestEnd::Returned(AssertResult::pass())));
        let mut evidence = evidence(frames);
        let differ =
            ["a", "b"].map(|symbol| SymbolDiffers { symbol: symbol.into(), guest: 16, monitor: Some(32) });
        let symbols = SymbolsCompared { agree: 3, differ: differ.into(), ..SymbolsCompared::default() };
        evidence.monitor = Some(MonitorSummary { symbols: Some(symbols), ..MonitorSummary::default() });
        let judged = evidence.judge(Some(AccelKind::Tcg), &Assert::NO_OVERRIDES, None);
        assert_eq!(judged.outcome, Outcome::Inconclusive);
        let details = judged.result.unwrap().details;
        let found: Vec<_> = details.iter().filter(|d| d.kind == DetailKind::Symbols).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0].message,
            format!("the guest has `a` at 0x10, the monitor reads it at 0x20; {ADVICE}")
        );
        assert_eq!(found[1].message, "the guest has `b` at 0x10, the monitor reads it at 0x20");
        let det = evidence.judge(Some(AccelKind::Det), &Assert::NO_OVERRIDES, None);
        assert_eq!(det.outcome, Outcome::Pass, "when it is compared is the host's affair");
    }

    #[test]
    fn a_breakpoint_nobody_set_is_the_emulators() {
        let mut guest = evidence(attached());
        guest.console.push("[   36.6] Oops: int3: 0000 [#1] SMP NOPTI\n");
        guest.console.push("[   36.7] Kernel panic - not syncing: Fatal exception in interrupt\n");
        let judged = |accel| guest.judge(Some(accel), &Assert::default_checks(), None);
        let emulated = judged(AccelKind::Tcg);
        assert_eq!(emulated.outcome, Outcome::Inconclusive);
        assert!(format!("{:?}", emulated.cause).contains("Oops: int3: 0000"), "{:?}", emulated.cause);
        assert_eq!(judged(AccelKind::Kvm).outcome, Outcome::Fail);
        assert_eq!(judged(AccelKind::Det).outcome, Outcome::Fail, "one thread");
    }

    #[test]
    fn the_monitor_informs_but_does_not_decide_under_det() {
        let mut frames = attached();
        frames.push(GuestFrame::TestEnded(TestEnd::Returned(AssertResult::pass())));
        let mut evidence = evidence(frames);
        evidence.monitor =
            Some(MonitorSummary { sustained_local_dsq_depth: Some(99), ..MonitorSummary::default() });
        let assert = Assert::default_checks();
        assert_eq!(evidence.judge(Some(AccelKind::Tcg), &assert, None).outcome, Outcome::Fail);
        let det = evidence.judge(Some(AccelKind::Det), &assert, None);
        let said = det.result.map(|r| r.details.into_iter().map(|d| d.message).collect::<Vec<_>>());
        let unjudged = "not judged, because nothing of the host decides under det: max_local_dsq_depth, fail_on_rq_clock_stuck";
        assert_eq!((det.outcome, said), (Outcome::Pass, Some(vec![unjudged.into()])));
        let asked_for_nothing = Assert::defaults_for(AccelKind::Det);
        let det = evidence.judge(Some(AccelKind::Det), &asked_for_nothing, None);
        assert_eq!(det.result.map(|r| r.details.len()), Some(0));
    }
}

//! How a run ends: the machine goes, the monitor sums up, one report goes out; that of a crash when its second run is over.

use std::time::{Duration, Instant};

use ktstr_proto::{
    Fds,
    client::ClientEvent,
    link::chain,
    monitor::{Finish, MonitorRequest},
    run::{AccelKind, Expectation, Job, RunSpec},
    verdict::{Assert, RunReport},
    vmm::VmExit,
};

use super::{SUMMARY_LIMIT, Session, State};
use crate::{
    host_time::HostWatch,
    judge::{Stopped, Tail, digest},
    repro, timeline,
};

impl Session {
    /// Ends the run for a reason outside of the guest.
    pub fn stop(&mut self, why: Stopped) {
        if self.state == State::Done {
            return;
        }
        self.record("stopped", &format!("{why:?}"));
        self.evidence.stopped.get_or_insert(why);
        self.vmm = None;
        self.wind_up();
    }

    /// The machine is gone: get the monitor's summary, then finish.
    pub(super) fn wind_up(&mut self) {
        if matches!(self.state, State::Finishing | State::Done) {
            return;
        }
        self.state = State::Finishing;
        self.abandon("the machine is gone");
        self.abandon_watches();
        let budget = self.spec.cleanup_budget_ms.map_or(SUMMARY_LIMIT, Duration::from_millis);
        self.give_up = Some(Instant::now() + budget.min(SUMMARY_LIMIT));
        match self.monitor {
            Some(_) => {
                let registers = match &self.evidence.exit {
                    Some(VmExit::TripleFault(fault)) => Some(fault.registers.clone()),
                    _ => None,
                };
                self.ask_monitor(MonitorRequest::Finish(Finish { registers }));
            }
            None => self.finish(),
        }
    }

    pub(super) fn assert(&self) -> Assert {
        match &self.spec.job {
            Job::Test(test) => match &self.plan {
                Some(plan) => Assert::defaults_for(plan.accel).merge(test.assert),
                None => test.assert,
            },
            Job::Shell(_) => Assert::NO_OVERRIDES,
        }
    }

    fn expectation(&self) -> Expectation {
        match &self.spec.job {
            Job::Test(test) => test.expect.clone(),
            Job::Shell(_) => Expectation::default(),
        }
    }

    pub(super) fn finish(&mut self) {
        if self.state == State::Done {
            return;
        }
        self.state = State::Done;
        self.vmm = None;
        self.monitor = None;
        self.device = None;
        self.release_share();
        self.unfinished = None;
        self.ram = None;
        self.give_up = None;
        let mut report = self.report();
        let phases = report.result.as_ref().map(|result| result.stats.phases.as_slice()).unwrap_or_default();
        let guest_time = report.accel == Some(AccelKind::Det);
        let timeline = self.timeline.finish(&report.captures, phases, guest_time);
        report.timeline = timeline::for_report(&timeline);
        if let Some(result) = &mut report.result {
            self.timeline.tell_phases(&mut result.stats.phases, guest_time);
        }
        let written = self
            .dir
            .write_json("sidecar.json", &report)
            .and_then(|()| self.dir.write_lines("timeline.jsonl", &timeline))
            .and_then(|()| self.dir.write_text("replay", &format!("{}\n", report.replay)));
        if let Err(error) = written {
            self.notice(chain(&error));
        }
        self.hold_or_send(report);
    }

    /// A crash waits for what its second run shows.
    fn hold_or_send(&mut self, report: RunReport) {
        let chosen = self.plan.as_ref().map(|plan| (plan.kernel_key(), plan.accel));
        let logs = [self.evidence.scheduler_log.last(Tail::KEEP), self.evidence.console.last(Tail::KEEP)];
        self.held = repro::hold(&self.spec, &report, chosen, [&logs[0], &logs[1]]);
        let event =
            if self.held.is_some() { ClientEvent::Held(report) } else { ClientEvent::Finished(report) };
        self.outbox.push((event, Fds::default()));
        // What it has of the host is the second run's, or somebody else's.
        self.plan = None;
    }

    /// The request for the second run, if there is to be one.
    pub fn second(&self) -> Option<&RunSpec> {
        self.held.as_ref().map(|held| &held.second)
    }

    /// The second run is over, or could not begin: the first's report goes out with what it showed.
    pub fn looked_into(&mut self, second: Result<&mut Self, String>) {
        let Some(held) = self.held.take() else { return };
        let told = match second {
            Ok(second) => match second.take_report() {
                Some(report) => repro::told(&held, report, std::mem::take(&mut second.gathered)),
                None => repro::not_begun(&held, "it ended without a report".into()),
            },
            Err(why) => repro::not_begun(&held, why),
        };
        let mut report = held.report;
        report.auto_repro = Some(Box::new(told));
        if let Err(error) = self.dir.write_json("sidecar.json", &report) {
            self.notice(chain(&error));
        }
        self.outbox.push((ClientEvent::Finished(report), Fds::default()));
    }

    /// Its report, instead of sending it.
    fn take_report(&mut self) -> Option<RunReport> {
        let mut reports = self.outbox.drain(..).filter_map(|(event, _)| match event {
            ClientEvent::Finished(report) => Some(report),
            _ => None,
        });
        reports.next_back()
    }

    fn report(&self) -> RunReport {
        let accel = self.plan.as_ref().map(|p| p.accel);
        let host = self.host.as_ref().and_then(HostWatch::figures);
        let judgement =
            self.evidence.judge_expecting(accel, &self.assert(), host.as_ref(), &self.expectation());
        let kernel = self
            .evidence
            .release()
            .map(str::to_owned)
            .or_else(|| self.plan.as_ref().map(|p| p.kernel_key().to_owned()))
            .or_else(|| self.spec.kernel.clone())
            .unwrap_or_else(|| "(none)".into());
        let asked = || self.spec.kernel.clone().unwrap_or_default();
        let kernel_arg = self.plan.as_ref().map_or_else(asked, |p| p.kernel_key().to_owned());
        let accel_arg = accel.map_or_else(|| self.spec.accel.to_string(), |a| a.to_string());
        let scheduler = match &self.spec.job {
            Job::Test(test) => test.scheduler.as_ref().map_or("EEVDF", |s| s.name.as_str()),
            Job::Shell(_) => "EEVDF",
        };
        let boot = self.first_frame.map_or(0, |at| (at - self.begun).as_millis() as u64);
        RunReport {
            run_id: self.dir.id.clone(),
            run_dir: self.dir.path.clone(),
            name: self.spec.name.clone(),
            outcome: judgement.outcome,
            infrastructure: judgement.infrastructure,
            cause: judgement.cause,
            result: judgement.result,
            // Filled in when everything is on one clock.
            timeline: Vec::new(),
            captures: self.errands.marks(),
            assert: matches!(self.spec.job, Job::Test(_)).then(|| self.assert()),
            monitor: self.evidence.monitor.clone(),
            host,
            notes: self.notes.clone(),
            scheduler_log: digest(&self.evidence.scheduler_log.last(Tail::KEEP)),
            console_tail: self.evidence.console.last(40),
            accel,
            accel_detail: self.accel_detail.clone(),
            kernel,
            scheduler: scheduler.to_owned(),
            topology: self.spec.topology,
            exit_status: judgement.exit_status,
            seed: self.spec.seed,
            replay: self.spec.replay.replace("{kernel}", &kernel_arg).replace("{accel}", &accel_arg),
            host_ms: (boot, self.dir.elapsed_ms()),
            boot: self.boot,
            allow_inconclusive: false,
            auto_repro: None,
        }
    }
}

//! What the guest says through the ring: kept, shown to the client, and taken for evidence; some of it starts something.
//!
//! Bytes that make no frames end the run, with their place ([`Stopped::Channel`]).

use std::time::{Duration, Instant};

use ktstr_proto::{
    Fds,
    client::ClientEvent,
    guest::{GuestFrame, Phase, TestEnd},
    link::chain,
    monitor::Window,
    run::Job,
};

use super::Session;
use crate::judge::{Stopped, unregistered};

impl Session {
    pub(super) fn ring_bytes(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
        loop {
            match self.decoder.next_message() {
                Ok(Some(message)) => {
                    if self.first_frame.is_none() {
                        self.first_frame = Some(Instant::now());
                        self.record("first-word", &());
                        let limit = self.plan.as_ref().map_or(Duration::from_secs(60), |p| p.run_limit);
                        self.give_up = Some(Instant::now() + limit);
                    }
                    self.keep(|dir| dir.guest(&message));
                    self.timeline.guest(&message, self.begun.elapsed());
                    self.errands.guest_time(Some(message.t_ns));
                    if self.gathered.take(&message.body) {
                        continue;
                    }
                    match &message.body {
                        GuestFrame::Log(log) => {
                            let (source, text) = (log.source, log.text.clone());
                            self.outbox.push((ClientEvent::Output { source, text }, Fds::default()));
                        }
                        GuestFrame::ScxDisabled { reason } => {
                            let reason = reason.clone();
                            self.record("scheduler-disabled", &reason);
                            if !unregistered(&reason) {
                                self.capture_if_none("the scheduler was disabled");
                            }
                        }
                        GuestFrame::AskHost { id, request } => self.guest_asks(*id, request),
                        GuestFrame::SchedulerStats { of, stats } => self.scheduler_said(*of, stats),
                        GuestFrame::Symbols(told) => self.guest_has_symbols(told),
                        GuestFrame::Watch(what) => self.watch(what.clone()),
                        GuestFrame::SchedulerEnded { .. } => self.scheduler_gone(),
                        GuestFrame::TestEnded(end) if self.fails_with_scheduler(end) => {
                            self.capture_if_none("the test failed");
                        }
                        GuestFrame::Phase(Phase::TestStarted) => {
                            self.isolate(true);
                            self.window(Window::Restart);
                        }
                        GuestFrame::Phase(phase @ Phase::ScenarioStarted) => {
                            self.scenario_began(*phase, message.t_ns);
                            let first = !std::mem::replace(&mut self.in_scenarios, true);
                            self.window(if first { Window::Restart } else { Window::Open });
                        }
                        GuestFrame::Phase(Phase::ScenarioEnded | Phase::TestEnded) => {
                            self.window(Window::Close)
                        }
                        GuestFrame::Phase(Phase::TeardownStarted | Phase::PoweringOff) => {
                            // What is left is bounded in the guest, too; this is for a guest that hangs in it.
                            let limit = Instant::now() + Duration::from_secs(30);
                            self.give_up = self.give_up.map(|g| g.min(limit));
                        }
                        _ => {}
                    }
                    self.evidence.clock.seen(message.t_ns, self.dir.elapsed_ms());
                    self.evidence.note(message);
                }
                Ok(None) => return,
                Err(error) => return self.stop(Stopped::Channel(chain(&error))),
            }
        }
    }

    fn fails_with_scheduler(&self, end: &TestEnd) -> bool {
        let failed = match end {
            TestEnd::Returned(result) => result.is_fail(),
            TestEnd::Error(_) | TestEnd::Panicked { .. } => true,
            TestEnd::Unknown(_) => false,
        };
        failed && matches!(&self.spec.job, Job::Test(test) if test.scheduler.is_some())
    }
}

//! The monitor of a run, as the session sees it: attached once the machine runs, told what counts and what the
//! host gave, heard. Its death ends observation and not the run.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use ktstr_proto::{
    ChannelError, Fds,
    channel::Message,
    link::{RemoteError, chain},
    monitor::{
        Attach, CompareSymbols, MonitorEvent, MonitorLink, MonitorReply, MonitorRequest, VcpuTime, Window,
    },
    run::AccelKind,
    symbols::SymbolsTold,
    vmm::Started,
};

use super::{PERIOD_MS, Session, State, pump, share};
use crate::children::{Child, describe};

impl Session {
    /// Starts it and hands it the guest's memory.
    pub(super) fn attach_monitor(&mut self, ram: OwnedFd, started: &Started) -> Result<(), String> {
        let plan = self.plan.as_ref().expect("a started machine has a plan");
        let log = self.dir.log_file("monitor.log");
        let mut monitor =
            Child::<MonitorLink>::spawn("ktstr-monitor", &[], log, self.spec.jail).map_err(|e| chain(&e))?;
        // Of a machine alone it goes to the service CPU, once the vCPUs have theirs.
        share::hold(plan, monitor.pid())?;
        // Under det nothing on the host writes into the guest.
        let det = plan.accel == AccelKind::Det;
        let kept = (!det).then(|| ram.try_clone()).transpose().map_err(|e| e.to_string())?;
        let mut fds = Fds::default();
        let attach = Attach {
            ram: fds.attach(ram),
            regions: started.regions.clone(),
            kernel: fds.attach(plan.open_kernel().map_err(|e| chain(&e))?),
            cpus: self.spec.topology.cpus(),
            absent_cpus: self.spec.absent_llcs * self.spec.topology.cpus_per_llc(),
            period_ms: PERIOD_MS,
            sustained_samples: self.assert().sustained_samples.unwrap_or(5),
            watchdog_ms: self.spec.watchdog_ms,
            watches: self.spec.watches.clone(),
        };
        let send = |monitor: &mut Child<MonitorLink>| -> Result<(), ChannelError> {
            monitor.channel.queue_hello("ktstr-orch")?;
            monitor.channel.queue_request(MonitorRequest::Attach(attach), fds)?;
            monitor.channel.flush().map(drop)
        };
        send(&mut monitor).map_err(|e| chain(&e))?;
        self.ram = kept;
        self.record("monitor-pid", &monitor.pid());
        self.monitor = Some(monitor);
        self.retired = None;
        Ok(())
    }

    /// What is observed from here on counts for the verdict, or does not.
    pub(super) fn window(&mut self, window: Window) {
        if let Some(host) = &mut self.host {
            match window {
                Window::Restart | Window::Open => host.open(window == Window::Restart),
                Window::Close => host.close(),
            }
        }
        self.window = Some(window);
        if self.monitor_attached {
            self.ask_monitor(MonitorRequest::Window(window));
        }
    }

    pub(super) fn ask_monitor(&mut self, request: MonitorRequest) {
        let asked = self.monitor.as_mut().map(|monitor| {
            monitor.channel.queue_request(request, Fds::default())?;
            monitor.channel.flush()
        });
        if let Some(Err(error)) = asked {
            self.lose_monitor(&chain(&error));
        }
    }

    /// Only what it says first is compared; a monitor that is not there yet hears it when it is.
    pub(super) fn guest_has_symbols(&mut self, told: &SymbolsTold) {
        if self.monitor_attached && self.evidence.symbols.is_none() {
            self.ask_monitor(MonitorRequest::CompareSymbols(CompareSymbols(told.clone())));
        }
    }

    pub(super) fn look_at_host(&mut self, now: Instant) {
        let at = Duration::from_millis(self.dir.elapsed_ms());
        let Some(look) = self.host.as_mut().and_then(|host| host.look(now, at)) else { return };
        if let (true, Some(ran_ns)) = (self.monitor_attached, look.ran_ns()) {
            self.ask_monitor(MonitorRequest::VcpuTime(VcpuTime { ran_ns }));
        }
    }

    /// The monitor's socket is ready.
    pub fn monitor_ready(&mut self) {
        loop {
            let Some(monitor) = &mut self.monitor else { return };
            match pump(&mut monitor.channel) {
                Ok(Some((message, _))) => self.monitor_message(message),
                Ok(None) | Err(ChannelError::Closed { .. }) => return,
                Err(error) => return self.lose_monitor(&format!("broke the protocol: {}", chain(&error))),
            }
        }
    }

    fn monitor_message(&mut self, message: Message<MonitorLink>) {
        match message {
            Message::Hello(_) => {
                let accepted = self.monitor.as_ref().map(|monitor| monitor.channel.accept_hello(message));
                self.monitor_known = true;
                if let Some(Err(error)) = accepted {
                    self.lose_monitor(&chain(&error));
                }
            }
            _ if !self.monitor_known => self.lose_monitor("spoke before its hello"),
            Message::Event(MonitorEvent::Unavailable(what)) => {
                self.record("monitor-unavailable", &what);
            }
            Message::Event(MonitorEvent::Stalling(stalling)) => {
                self.record("stalling", &stalling);
                self.capture_now(format!(
                    "{}[{}] on CPU {} is runnable for {} of the watchdog's {} jiffies",
                    stalling.comm, stalling.pid, stalling.cpu, stalling.age_jiffies, stalling.limit_jiffies
                ));
            }
            Message::Event(MonitorEvent::SchedulerExiting { kind }) => {
                self.record("scheduler-exiting", &kind);
                // Whoever started it ends it: there is nothing to explain.
                if kind != "SCX_EXIT_UNREG" && kind != "SCX_EXIT_DONE" {
                    self.capture_now(format!("the scheduler is being ended: {kind}"));
                }
            }
            Message::Event(MonitorEvent::Watchdog { written, what }) => {
                self.record("watchdog", &what);
                if !written {
                    self.notice(what);
                }
            }
            Message::Event(MonitorEvent::CaptureWritten(written)) => {
                self.record("capture-written", &written);
                self.capture_written(written);
            }
            Message::Event(event) => {
                self.kernel_readable |= event == MonitorEvent::Ready;
                if let MonitorEvent::Sample(sample) = &event {
                    self.timeline.sample(sample, self.begun.elapsed());
                    self.errands.guest_time(sample.cpus.iter().filter_map(|cpu| cpu.clock).max());
                }
                self.record("monitor", &event);
            }
            Message::Reply(reply) if self.place_located(reply.id, &reply.result) => {}
            Message::Reply(reply) => match self.monitor_answered(reply.id, reply.result) {
                None => {}
                Some(result) => self.monitor_replied(result),
            },
            Message::Request(_) => self.lose_monitor("asked instead of answering"),
        }
    }

    fn monitor_replied(&mut self, result: Result<MonitorReply, RemoteError>) {
        match result {
            Ok(MonitorReply::Finish(summary)) => {
                summary.busy_places.iter().for_each(|place| self.place_was_busy(place));
                self.evidence.monitor = Some(summary);
                self.monitor = None;
                if self.state == State::Finishing {
                    self.finish();
                }
            }
            Ok(
                MonitorReply::Window(_)
                | MonitorReply::VcpuTime(_)
                | MonitorReply::Thawed(_)
                | MonitorReply::CompareSymbols(_),
            ) => {}
            Ok(
                MonitorReply::Ask(_)
                | MonitorReply::Capture(_)
                | MonitorReply::WriteMap(_)
                | MonitorReply::WriteKernel(_)
                | MonitorReply::Locate(_),
            ) => {
                self.lose_monitor("answered what nobody had asked");
            }
            Ok(MonitorReply::Attach(attached)) => {
                self.record("monitor-attached", &attached);
                self.monitor_attached = true;
                if let Some(window) = self.window {
                    self.ask_monitor(MonitorRequest::Window(window));
                }
                if let Some(told) = self.evidence.symbols.clone() {
                    self.ask_monitor(MonitorRequest::CompareSymbols(CompareSymbols(told)));
                }
                self.next_errand();
            }
            Err(error) => self.lose_monitor(&error.message),
        }
    }

    /// Observation ends here; the run goes on.
    pub(super) fn lose_monitor(&mut self, how: &str) {
        self.monitor = None;
        self.record("observation-ended", &how);
        self.monitor_lost();
        let phase = self.evidence.phase().map_or_else(|| "boot".into(), |p| format!("{p:?}"));
        self.notice(format!(
            "observation ended after {} ms (phase {phase}): ktstr-monitor {how}",
            self.dir.elapsed_ms()
        ));
        if self.state == State::Finishing {
            self.finish();
        }
    }

    /// The monitor's pidfd is readable.
    pub fn monitor_ended(&mut self) {
        self.monitor_ready();
        if let Some(status) = self.monitor.as_mut().and_then(Child::ended) {
            self.lose_monitor(&describe(Some(status)));
        }
    }
}

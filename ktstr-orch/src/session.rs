//! One run from request to report.
//!
//! ```text
//! Planning ──plan──▶ Starting ──Started──▶ Running ──machine gone──▶ Finishing ──summary──▶ Done
//!     │                  │                     │                         │ 1 s
//!     └──── trouble ─────┴──── trouble, deadline, cancel ────────────────┴──────────────────▶ Done
//! ```
//!
//! The session owns its two children and its directory; it never blocks. Whatever happens it ends
//! in [`State::Done`] with exactly one report in the outbox and no process left.

mod asked;
mod beginning;
mod device;
mod errands;
mod observer;
mod share;
mod watch;

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant, SystemTime},
};

use ktstr_proto::{
    ChannelError, Fds, Link,
    channel::Message,
    client::ClientEvent,
    device::DeviceLink,
    guest::{GuestFrame, Phase, TestEnd},
    link::{ErrorCode, RemoteError, chain},
    monitor::{Finish, MonitorLink, MonitorRequest, Window},
    ring::FrameDecoder,
    run::{AccelKind, Boot, Expectation, Job, RunSpec},
    verdict::{Assert, Process, RunReport},
    vmm::{
        AttachDisk, AttachNetwork, Start, Started, VmExit, VmmEvent, VmmLink, VmmReply, VmmRequest, Walls,
    },
};

use crate::{
    children::{Child, describe, pid_of},
    devices,
    host_time::HostWatch,
    judge::{Evidence, Stopped, Tail, digest, unregistered},
    plan::{Plan, PlanError},
    rundir::{RunDir, RunDirError},
    timeline::{self, Timeline},
    warm::Unfinished,
};

/// How long the monitor may take to sum up once the machine is gone.
const SUMMARY_LIMIT: Duration = Duration::from_secs(1);
/// Sampling period of the monitor.
const PERIOD_MS: u32 = 100;

pub use errands::{Answered, Asker};

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Kernel, accelerator and initramfs are being prepared on another thread.
    Planning,
    /// The VMM was told to start.
    Starting,
    /// The machine runs.
    Running,
    /// The machine is gone, the monitor sums up.
    Finishing,
    /// The report is out.
    Done,
}

/// One run.
pub struct Session {
    spec: RunSpec,
    dir: RunDir,
    state: State,
    plan: Option<Plan>,
    vmm: Option<Child<VmmLink>>,
    monitor: Option<Child<MonitorLink>>,
    device: Option<Child<DeviceLink>>,
    monitor_known: bool,
    /// It has read the kernel file and takes requests.
    monitor_attached: bool,
    /// What counts, to be told to the monitor once it listens.
    window: Option<Window>,
    vmm_known: bool,
    evidence: Evidence,
    host: Option<HostWatch>,
    /// A scenario of the test has begun: what was before it does not count.
    in_scenarios: bool,
    decoder: FrameDecoder,
    notes: Vec<String>,
    accel_detail: String,
    begun: Instant,
    first_frame: Option<Instant>,
    give_up: Option<Instant>,
    errands: errands::Errands,
    watches: watch::Watches,
    timeline: Timeline,
    /// Every vCPU is on the host CPU that is its own.
    isolated: bool,
    /// How the guest came to be ready.
    boot: Boot,
    /// The snapshot that is being written.
    unfinished: Option<Unfinished>,
    /// The monitor of a machine that boots anew.
    retired: Option<Child<MonitorLink>>,
    /// Guest memory, for a monitor that is to write into it.
    ram: Option<OwnedFd>,
    /// What the client is to be told.
    pub outbox: Vec<(ClientEvent, Fds)>,
}

impl Session {
    /// Opens the run's directory and notes what was asked.
    pub fn open(spec: RunSpec) -> Result<Self, RunDirError> {
        let mut dir = RunDir::create(&spec.runs_root, &spec.name)?;
        dir.write_json("spec.json", &spec)?;
        // What lies on the one clock of the event log, on the host's.
        let opened = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        dir.event("opened-unix-ms", &(opened.as_millis() as u64).saturating_sub(dir.elapsed_ms()))?;
        Ok(Self {
            spec,
            dir,
            state: State::Planning,
            plan: None,
            vmm: None,
            monitor: None,
            device: None,
            monitor_known: false,
            monitor_attached: false,
            window: None,
            vmm_known: false,
            evidence: Evidence::default(),
            host: None,
            in_scenarios: false,
            decoder: FrameDecoder::default(),
            notes: Vec::new(),
            accel_detail: String::new(),
            begun: Instant::now(),
            first_frame: None,
            give_up: None,
            errands: errands::Errands::default(),
            watches: watch::Watches::default(),
            timeline: Timeline::default(),
            isolated: false,
            boot: Boot::Cold,
            unfinished: None,
            retired: None,
            ram: None,
            outbox: Vec::new(),
        })
    }

    /// What was asked.
    pub fn spec(&self) -> &RunSpec {
        &self.spec
    }

    /// Name and directory of the run.
    pub fn dir(&self) -> &RunDir {
        &self.dir
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// The VMM, for the readiness loop.
    pub fn vmm(&self) -> Option<&Child<VmmLink>> {
        self.vmm.as_ref()
    }

    /// The monitor, for the readiness loop.
    pub fn monitor(&self) -> Option<&Child<MonitorLink>> {
        self.monitor.as_ref()
    }

    /// When [`Self::tick`] wants to be called at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        let host = self.host.as_ref().filter(|_| self.state == State::Running).map(|h| h.next);
        // The run's own deadline waits while the guest stands: an errand has one of its own.
        let give_up = self.give_up.filter(|_| !self.errands.stands());
        let watches =
            self.watches.deadline().filter(|_| self.state == State::Running && self.monitor_attached);
        give_up
            .into_iter()
            .chain(host)
            .chain(watches)
            .chain(self.errands.deadline(self.monitor_attached))
            .min()
    }

    fn notice(&mut self, text: String) {
        self.record("notice", &text);
        self.notes.push(text.clone());
        self.outbox.push((ClientEvent::Notice(text), Fds::default()));
    }

    /// Event log lines are best effort: a full disk shows up when the report cannot be written.
    fn record<T: serde::Serialize>(&mut self, what: &str, value: &T) {
        if let Err(error) = self.dir.event(what, value) {
            tracing::warn!("{}", chain(&error));
        }
    }

    /// The plan is ready: start the machine.
    pub fn planned(&mut self, plan: Result<Plan, PlanError>) {
        if self.state != State::Planning {
            return;
        }
        match plan {
            Ok(plan) => {
                for note in &plan.notes {
                    self.notice(note.clone());
                }
                if let Err(stopped) = self.start(plan) {
                    self.stop(stopped);
                }
            }
            Err(error) => {
                let reason = chain(&error);
                self.stop(if error.is_missing() {
                    Stopped::Missing(reason)
                } else {
                    Stopped::BadRequest(reason)
                });
            }
        }
    }

    fn start(&mut self, plan: Plan) -> Result<(), Stopped> {
        let died = |e: &dyn std::error::Error| Stopped::Died(Process::Vmm, chain(e));
        let mut vmm = Child::<VmmLink>::spawn("ktstr-vmm", &[], self.dir.log_file("vmm.log"), self.spec.jail)
            .map_err(|e| died(&e))?;
        self.hold_to_share(&plan, vmm.pid())?;
        let mut fds = Fds::default();
        let (disk, networks) = self.start_devices(&plan, &mut fds)?;
        let start = Start {
            accel: plan.accel,
            topology: self.spec.topology,
            numa: self.spec.numa.clone(),
            memory_mb: plan.memory_mb,
            cmdline: plan.cmdline.clone(),
            ring: plan.ring,
            kernel: fds.attach(plan.open_kernel().map_err(|e| Stopped::BadRequest(chain(&e)))?),
            initrd: fds.attach(plan.open_initramfs().map_err(|e| Stopped::BadRequest(chain(&e)))?),
            emulator: plan.emulator.clone(),
            interactive: plan.interactive,
            seed: self.spec.seed,
            instruction_shift: crate::plan::instruction_shift(&self.spec),
            disk,
            networks,
            input: plan
                .open_input()
                .map_err(|e| Stopped::BadRequest(chain(&e)))?
                .map(|input| fds.attach(input)),
            snapshot: self.begin_from(&plan, &mut fds),
            isolation: share::isolation(&plan),
        };
        self.record("vmm-start", &start);
        self.record("kernel-file", &plan.kernel_file());
        let send = |vmm: &mut Child<VmmLink>| -> Result<(), ChannelError> {
            vmm.channel.queue_hello("ktstr-orch")?;
            vmm.channel.queue_request(VmmRequest::Start(start), fds)?;
            vmm.channel.flush().map(drop)
        };
        send(&mut vmm).map_err(|e| died(&e))?;
        self.record("vmm-pid", &vmm.pid());
        self.give_up = Some(self.must_speak_by(&plan));
        self.vmm = Some(vmm);
        self.plan = Some(plan);
        self.state = State::Starting;
        Ok(())
    }

    /// Starts what serves the machine's disks and networks, if it has any.
    fn start_devices(
        &mut self,
        plan: &Plan,
        fds: &mut Fds,
    ) -> Result<(Option<AttachDisk>, Vec<AttachNetwork>), Stopped> {
        if !devices::wanted(&self.spec) {
            return Ok((None, Vec::new()));
        }
        let image = plan.open_disk().map_err(|e| Stopped::BadRequest(chain(&e)))?;
        let (device, attached) = devices::start(&self.spec, image, self.dir.log_file("device.log"), fds)
            .map_err(|e| Stopped::Died(Process::Device, chain(&e)))?;
        self.hold_to_share(plan, device.pid())?;
        self.record("device-pid", &device.pid());
        self.device = Some(device);
        Ok((attached.disk, attached.networks))
    }

    /// The VMM's socket is ready.
    pub fn vmm_ready(&mut self) {
        loop {
            let Some(vmm) = &mut self.vmm else { return };
            let step = pump(&mut vmm.channel);
            match step {
                Ok(Some((message, fds))) => self.vmm_message(message, fds),
                Ok(None) => return,
                // Its end is told by the pidfd, with the exit status.
                Err(ChannelError::Closed { .. }) => return,
                Err(error) => {
                    let how = format!("broke the protocol: {}", chain(&error));
                    return self.stop(Stopped::Died(Process::Vmm, how));
                }
            }
        }
    }

    fn vmm_message(&mut self, message: Message<VmmLink>, fds: Fds) {
        match message {
            Message::Hello(_) => {
                let accepted = self.vmm.as_ref().map(|vmm| vmm.channel.accept_hello(message));
                self.vmm_known = true;
                if let Some(Err(error)) = accepted {
                    self.stop(Stopped::BadRequest(chain(&error)));
                }
            }
            _ if !self.vmm_known => self.stop(Stopped::Died(Process::Vmm, "spoke before its hello".into())),
            Message::Event(event) => self.vmm_event(event),
            Message::Reply(reply) if self.vmm_switched(reply.id, &reply.result) => {}
            Message::Reply(reply) if self.vmm_watches(reply.id, &reply.result) => {}
            // A stop or a start that came too late for its errand.
            Message::Reply(reply) if matches!(reply.result, Ok(VmmReply::Pause(_) | VmmReply::Resume(_))) => {
                self.record("vmm-late", &reply.result.ok());
            }
            Message::Reply(reply) => match reply.result {
                Ok(VmmReply::Start(started)) => {
                    if let Err(stopped) = self.machine_started(started, fds) {
                        self.stop(stopped);
                    }
                }
                Ok(other) => self.record("vmm-reply", &other),
                Err(error) if self.state == State::Starting && !self.device_is_gone() => {
                    if self.boot != Boot::Warm {
                        self.stop(refused(&error));
                    } else if let Err(stopped) =
                        self.start_cold(&error.message, error.code == ErrorCode::BadInput)
                    {
                        self.stop(stopped);
                    }
                }
                // The machine ended while the request was on its way: its exit is told, or the pidfd tells.
                Err(error) => self.record("vmm-late", &error),
            },
            Message::Request(_) => {
                self.stop(Stopped::Died(Process::Vmm, "asked instead of answering".into()))
            }
        }
    }

    fn machine_started(&mut self, started: Started, mut fds: Fds) -> Result<(), Stopped> {
        let wrong = |e: ktstr_proto::link::MissingFd| Stopped::Died(Process::Vmm, chain(&e));
        self.record("vmm-started", &started);
        self.accel_detail.clone_from(&started.detail);
        self.state = State::Running;
        match started.walls {
            Walls::All => {}
            Walls::NoUserNamespace => self.notice(
                "jail: this host forbids user namespaces; root's privilege made the others, and user id 0 of \
                 the processes is the host's"
                    .into(),
            ),
            Walls::None => self.notice(
                "jail: reduced: no namespaces and no root of their own; Landlock and system call filters are \
                 what confines the processes"
                    .into(),
            ),
        }
        let emulator = started.emulator.map(|slot| fds.take(slot, "emulator")).transpose().map_err(wrong)?;
        let emulator = emulator.and_then(|pidfd| pid_of(&pidfd));
        self.record("emulator-pid", &emulator);
        let runs_vcpus = emulator.or_else(|| self.vmm.as_ref().map(Child::pid));
        self.host = runs_vcpus.map(|pid| HostWatch::new(pid, self.spec.topology.cpus()));
        if let Some(slot) = started.console {
            let console = fds.take(slot, "console").map_err(wrong)?;
            let mut out = Fds::default();
            let slot = out.attach(console);
            self.outbox.push((ClientEvent::ConsoleReady(slot), out));
        }
        let ram = fds.take(started.ram, "ram").map_err(wrong)?;
        if self.spec.observe
            && let Err(error) = self.attach_monitor(ram, &started)
        {
            self.notice(format!("the monitor does not observe this run: {error}"));
        }
        Ok(())
    }

    fn vmm_event(&mut self, event: VmmEvent) {
        match event {
            VmmEvent::Console(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                self.evidence.console.push(&text);
                self.timeline.console(&text, self.begun.elapsed());
                self.keep(|dir| dir.console(&bytes));
                if matches!(&self.spec.job, Job::Shell(shell) if shell.dmesg) {
                    self.outbox.push((ClientEvent::Console(bytes), Fds::default()));
                }
            }
            VmmEvent::Com2(bytes) => {
                self.evidence.console.push(&String::from_utf8_lossy(&bytes));
                self.keep(|dir| dir.com2(&bytes));
            }
            VmmEvent::Ring(bytes) => self.ring_bytes(&bytes),
            VmmEvent::RingBroken(reason) => {
                if !self.rather_boot(&reason) {
                    self.stop(Stopped::Channel(reason));
                }
            }
            VmmEvent::Saved(saved) => self.saved(saved),
            VmmEvent::Written { place, cpu } => self.place_written(place, cpu),
            station @ VmmEvent::Station { .. } => self.record("station", &station),
            VmmEvent::Statistics(counted) => self.keep(|dir| dir.write_json("kvm-statistics.json", &counted)),
            VmmEvent::Exited(exit @ (VmExit::EmulatorDied { .. } | VmExit::InternalError { .. }))
                if self.device_is_gone() =>
            {
                self.record("vmm-exited", &exit);
            }
            VmmEvent::Exited(exit) => {
                self.record("vmm-exited", &exit);
                if self.first_frame.is_none() {
                    let why = "the guest ended before it said anything";
                    if exit.is_of_itself() && self.rather_boot(why) {
                        return;
                    }
                    self.distrust_snapshot(why);
                } else if matches!(exit, VmExit::Reset | VmExit::TripleFault) {
                    // Whatever did it may have been there before the snapshot was taken.
                    self.distrust_snapshot("a guest that began from it did not end well");
                }
                self.evidence.exit = Some(exit);
                self.wind_up();
            }
        }
    }

    fn keep(&mut self, write: impl FnOnce(&mut RunDir) -> Result<(), RunDirError>) {
        if let Err(error) = write(&mut self.dir) {
            self.stop(Stopped::Died(Process::Orchestrator, chain(&error)));
        }
    }

    fn ring_bytes(&mut self, bytes: &[u8]) {
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

    /// The VMM's pidfd is readable.
    pub fn vmm_ended(&mut self) {
        self.vmm_ready();
        let Some(status) = self.vmm.as_mut().and_then(Child::ended) else { return };
        if self.evidence.exit.is_none() && self.state != State::Done {
            self.stop(Stopped::Died(Process::Vmm, describe(Some(status))));
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) {
        if self.state == State::Running {
            self.look_at_host(now);
            self.isolate(false);
        }
        self.errands_tick(now);
        self.watches_tick(now);
        if self.errands.stands() || self.give_up.is_none_or(|at| now < at) {
            return;
        }
        if self.rather_boot("the guest said nothing") {
            return;
        }
        match self.state {
            State::Starting | State::Running => {
                let waited_ms = self.dir.elapsed_ms();
                self.stop(Stopped::Deadline { waited_ms });
            }
            State::Finishing => {
                self.lose_monitor("did not sum up in time");
            }
            State::Planning | State::Done => self.give_up = None,
        }
    }

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
    fn wind_up(&mut self) {
        if matches!(self.state, State::Finishing | State::Done) {
            return;
        }
        self.state = State::Finishing;
        self.abandon("the machine is gone");
        self.abandon_watches();
        let budget = self.spec.cleanup_budget_ms.map_or(SUMMARY_LIMIT, Duration::from_millis);
        self.give_up = Some(Instant::now() + budget.min(SUMMARY_LIMIT));
        match self.monitor {
            Some(_) => self.ask_monitor(MonitorRequest::Finish(Finish)),
            None => self.finish(),
        }
    }

    fn assert(&self) -> Assert {
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

    fn finish(&mut self) {
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
        self.outbox.push((ClientEvent::Finished(report), Fds::default()));
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
        }
    }
}

/// A refusal of the VMM, as what it means for the run.
fn refused(error: &RemoteError) -> Stopped {
    use ktstr_proto::link::ErrorCode;
    match error.code {
        ErrorCode::Unavailable | ErrorCode::Jail => Stopped::Missing(error.message.clone()),
        ErrorCode::BadRequest | ErrorCode::BadInput => Stopped::BadRequest(error.message.clone()),
        ErrorCode::Infrastructure => {
            Stopped::Died(Process::Vmm, format!("could not start the machine: {}", error.message))
        }
    }
}

/// Sends what can be sent and returns the next message, if one is complete.
pub fn pump<L: Link>(
    channel: &mut ktstr_proto::Channel<L>,
) -> Result<Option<(Message<L>, Fds)>, ChannelError> {
    use ktstr_proto::channel::Filled;
    if !channel.is_eof() {
        channel.flush()?;
    }
    loop {
        if let Some(message) = channel.next_message()? {
            return Ok(Some(message));
        }
        match channel.fill()? {
            Filled::Data => {}
            Filled::WouldBlock => return Ok(None),
            Filled::Eof => return Err(ChannelError::Closed { peer: L::NAME }),
        }
    }
}

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
mod ending;
mod errands;
mod guest;
mod machine;
mod observer;
mod share;
mod told;
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
    link::chain,
    monitor::{MonitorLink, Window},
    ring::FrameDecoder,
    run::{Boot, RunSpec},
    verdict::Process,
    vmm::{AttachDisk, AttachNetwork, Start, VmmLink, VmmRequest},
};

use crate::{
    children::Child,
    devices,
    host_time::HostWatch,
    judge::{Evidence, Stopped},
    plan::{Plan, PlanError},
    repro::{Gathered, Held},
    rundir::{RunDir, RunDirError},
    timeline::Timeline,
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
    /// It has found the running kernel.
    kernel_readable: bool,
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
    /// What the guest says of its probes.
    gathered: Gathered,
    /// The report that waits for a second run; of the second run, its own.
    held: Option<Held>,
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
            kernel_readable: false,
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
            gathered: Gathered::default(),
            held: None,
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
            absent_llcs: self.spec.absent_llcs,
            memory_mb: plan.memory_mb,
            cmdline: plan.cmdline.clone(),
            ring: plan.ring,
            kernel: fds.attach(plan.open_image().map_err(|e| Stopped::BadRequest(chain(&e)))?),
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
        send(&mut vmm).map_err(|e| Stopped::Died(Process::Vmm, vmm.why_silent(&e)))?;
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

    fn keep(&mut self, write: impl FnOnce(&mut RunDir) -> Result<(), RunDirError>) {
        if let Err(error) = write(&mut self.dir) {
            self.stop(Stopped::Died(Process::Orchestrator, chain(&error)));
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

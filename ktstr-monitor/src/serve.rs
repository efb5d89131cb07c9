//! The role process: one orchestrator on a socket, one guest, samples until told to stop.
//!
//! ```text
//! jailed, greeted ──Attach──▶ reading the kernel file ──▶ sampling ──Finish──▶ summary sent, exit 0
//!     │                              │        └─▶ refused, exit 0   │
//!     └──────── peer closes ─────────┴──────────────────────────────┴──▶ exit 0 at once
//! ```
//!
//! The jail is entered before the first byte from outside is parsed. If it cannot be, the first
//! request is answered with that and nothing is read.
//!
//! Nothing here waits for the guest or the VMM: memory is only read. A peer that stops reading gets
//! no more samples until it has caught up; one that talks nonsense ends the process. The process
//! can be killed at any moment.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ktstr_jail::{Confined, JailError, JailSpec, Namespaces};
use ktstr_proto::capture::{Answer, Capture, Captured, Located, PlaceWritten, Question, ThawNoted};
use ktstr_proto::channel::{Channel, ChannelError, Filled, Message};
use ktstr_proto::link::{ErrorCode, FdSlot, Fds, MissingFd, RemoteError, chain};
use ktstr_proto::monitor::{
    Attach, Attached, KernelWritten, MapWritten, MonitorEvent, MonitorLink, MonitorReply, MonitorRequest,
    MonitorSummary, SymbolsNoted, VcpuTimeNoted, Window, Windowed, WriteKernel, WriteMap,
};
use ktstr_proto::registers::Registers;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use crate::addr::{CpuId, Gpa};
use crate::bpf;
use crate::cross_check::CrossCheck;
use crate::freeze::Freeze;
use crate::image::{ImageError, KernelImage};
use crate::judge::{Observation, Use};
use crate::kernel::scx::Scx;
use crate::kernel::{LiveKernel, NotReady, Profile, ProfileError, View, state};
use crate::kernel_place;
use crate::map_watch::MapWatches;
use crate::mem::{GuestMem, GuestMemMut, Layout, LayoutError, MapError, Region};
use crate::place;
use crate::query::{self, QueryError};
use crate::report::{self, Reasons};
use crate::sample::Sampler;
use crate::stood;
use crate::vmcore;
use crate::watch::{Sign, Watch};
use crate::watchdog::{self, Patience};
use crate::written::{WatchedPlaces, Written};

/// How long the peer may take to greet and to take the summary.
const PATIENCE: Duration = Duration::from_secs(10);
/// Samples are left out while this much waits for the peer to read.
const MAX_BACKLOG: usize = 1 << 20;
/// Sampling faster than this would only measure itself.
const MIN_PERIOD: Duration = Duration::from_millis(1);

/// Why a guest could not be attached to.
#[derive(Debug, Error)]
enum AttachError {
    #[error("the attach message is incomplete")]
    MissingFd(#[from] MissingFd),
    #[error("the guest memory layout is wrong")]
    Layout(#[from] LayoutError),
    #[error("guest memory cannot be mapped")]
    Map(#[from] MapError),
    #[error("the kernel file is not usable")]
    Image(#[from] ImageError),
    #[error("this kernel cannot be watched")]
    Profile(#[from] ProfileError),
}

impl AttachError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::MissingFd(_) | Self::Layout(_) => ErrorCode::BadRequest,
            Self::Map(MapError::Map { .. } | MapError::Size(_)) => ErrorCode::Infrastructure,
            Self::Map(_) => ErrorCode::BadRequest,
            Self::Image(ImageError::Read(_)) => ErrorCode::Infrastructure,
            Self::Image(_) => ErrorCode::BadInput,
            Self::Profile(_) => ErrorCode::Unavailable,
        }
    }
}

/// Why the conversation ended, other than as it should.
#[derive(Debug, Error)]
enum ServeError {
    #[error("the conversation with the orchestrator broke off")]
    Channel(#[from] ChannelError),
    #[error("cannot wait for the orchestrator")]
    Poll(#[source] Errno),
}

/// How often the peer is looked after while the kernel file is read.
const WATCH: Duration = Duration::from_millis(20);

/// In the best jail that the host allows, unless one without namespaces was asked for.
fn confine(namespaces: Namespaces) -> Result<Confined, JailError> {
    let spec = JailSpec::monitor().with_namespaces(namespaces);
    match ktstr_jail::enter(&spec) {
        // It is the first step, so nothing has been given up yet; root needs no user namespace.
        Err(JailError::UserNamespaceForbidden { .. }) if nix::unistd::geteuid().is_root() => {
            ktstr_jail::enter(&spec.with_namespaces(Namespaces::OfRoot))
        }
        outcome => outcome,
    }
}

/// Runs the role on the inherited socket. Exit codes: 0 done or no longer needed, 4 broken.
pub fn role_main(namespaces: Namespaces) -> ExitCode {
    match serve(namespaces) {
        Ok(()) | Err(ServeError::Channel(ChannelError::Closed { .. })) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ktstr-monitor: {}", chain(&error));
            ExitCode::from(4)
        }
    }
}

fn serve(namespaces: Namespaces) -> Result<(), ServeError> {
    let mut channel = Channel::<MonitorLink>::inherited("the orchestrator")?;
    let confined = confine(namespaces);
    channel.handshake("ktstr-monitor", PATIENCE)?;
    let Some((id, request, fds)) = next_request(&mut channel, None)? else { return Ok(()) };
    let refused = match (confined, request) {
        (Err(error), _) => RemoteError::new(ErrorCode::Jail, &error),
        (Ok(confined), MonitorRequest::Attach(attach)) => {
            match attach_watched(&mut channel, confined, attach, fds)? {
                None => return Ok(()),
                Some(Err(error)) => RemoteError::new(error.code(), &error),
                Some(Ok((session, attached))) => {
                    channel.queue_reply(id, Ok(MonitorReply::Attach(attached)), Fds::default())?;
                    return session.run(&mut channel);
                }
            }
        }
        (Ok(_), _) => bad_request("nothing is observed yet: attach first"),
    };
    channel.queue_reply(id, Err(refused), Fds::default())?;
    Ok(channel.drain(PATIENCE)?)
}

/// Attaches on a thread of its own, so that a peer that goes away meanwhile ends the process at
/// once; `None` when it did.
fn attach_watched(
    channel: &mut Channel<MonitorLink>,
    confined: Confined,
    attach: Attach,
    fds: Fds,
) -> Result<Option<Result<Opened, AttachError>>, ServeError> {
    let reading = std::thread::spawn(move || Session::attach(confined, &attach, fds));
    while !reading.is_finished() {
        match next_request(channel, Some(Instant::now() + WATCH))? {
            Some((id, ..)) => {
                let busy = bad_request("the kernel file is still being read");
                channel.queue_reply(id, Err(busy), Fds::default())?;
            }
            None if channel.is_eof() => return Ok(None),
            None => {}
        }
    }
    match reading.join() {
        Ok(attached) => Ok(Some(attached)),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn bad_request(message: &str) -> RemoteError {
    RemoteError { code: ErrorCode::BadRequest, message: message.to_owned() }
}

/// Waits for the next request, at most until `until`; `None` when the time is up or the peer is gone.
fn next_request(
    channel: &mut Channel<MonitorLink>,
    until: Option<Instant>,
) -> Result<Option<(u32, MonitorRequest, Fds)>, ServeError> {
    loop {
        if let Some((message, fds)) = channel.next_message()? {
            let Message::Request(frame) = message else {
                let what = "a frame that is no request".to_owned();
                return Err(ChannelError::Unexpected { peer: "the orchestrator", what }.into());
            };
            return Ok(Some((frame.id, frame.request, fds)));
        }
        if channel.is_eof() {
            return Ok(None);
        }
        let all_sent = channel.flush()?;
        match channel.fill()? {
            Filled::Data | Filled::Eof => continue,
            Filled::WouldBlock => {}
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Ok(None);
        }
        let mut interest = PollFlags::POLLIN;
        interest.set(PollFlags::POLLOUT, !all_sent);
        // Rounded up: waking a little early would spin through the last millisecond.
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut [PollFd::new(channel.as_fd(), interest)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(ServeError::Poll(errno)),
        }
    }
}

/// A guest that was attached to, and what to answer.
type Opened = (Session, Attached);

/// A guest being watched.
struct Session {
    /// Guest memory is read by a confined process only.
    _confined: Confined,
    mem: GuestMem,
    sampler: Sampler,
    observation: Observation,
    window_open: bool,
    vcpu_time: VcpuTimes,
    reasons: Reasons,
    began: Instant,
    period: Duration,
    expected_cpus: u32,
    absent_cpus: u32,
    was_ready: bool,
    /// All vCPUs stand, until told otherwise.
    frozen: bool,
    freeze: Freeze,
    watch: Watch,
    patience: Option<Patience>,
    last_obstacle: Option<String>,
    watches: MapWatches,
    cross_check: CrossCheck,
    /// Guest memory for writing, once something was to be written.
    writable: Option<GuestMemMut>,
    places: WatchedPlaces,
}

impl Session {
    fn attach(confined: Confined, attach: &Attach, mut fds: Fds) -> Result<Opened, AttachError> {
        let ram = fds.take(attach.ram, "ram")?;
        let kernel = fds.take(attach.kernel, "kernel")?;
        let regions = attach.regions.iter().map(|region| Region {
            start: Gpa(region.gpa),
            len: region.len,
            offset: region.offset,
        });
        let layout = Layout::new(regions.collect())?;
        // Nobody who does not ask for it gets memory that can be written.
        let writable = |ms| GuestMemMut::map_sealed(&ram, layout.clone()).map(|ram| Patience::new(ram, ms));
        let patience = attach.watchdog_ms.map(writable).transpose()?;
        let mem = GuestMem::map_sealed(&ram, layout)?;
        let profile = Profile::of(&KernelImage::read(kernel.into())?)?;
        let attached = Attached {
            symbols: u32::try_from(profile.symbols().len()).unwrap_or(u32::MAX),
            btf_types: profile.types().len(),
            absent: report::absent(&profile),
        };
        let session = Self {
            _confined: confined,
            mem,
            sampler: Sampler::new(profile),
            observation: Observation::new(attach.sustained_samples),
            window_open: true,
            vcpu_time: VcpuTimes::default(),
            reasons: Reasons::default(),
            began: Instant::now(),
            period: Duration::from_millis(attach.period_ms.into()).max(MIN_PERIOD),
            expected_cpus: attach.cpus,
            absent_cpus: attach.absent_cpus,
            was_ready: false,
            frozen: false,
            freeze: Freeze::default(),
            watch: Watch::default(),
            patience,
            last_obstacle: None,
            watches: MapWatches::new(&attach.watches),
            cross_check: CrossCheck::default(),
            writable: None,
            places: WatchedPlaces::default(),
        };
        Ok((session, attached))
    }

    fn run(mut self, channel: &mut Channel<MonitorLink>) -> Result<(), ServeError> {
        let mut next = Instant::now();
        loop {
            match next_request(channel, Some(next))? {
                Some((id, MonitorRequest::Finish(finish), _)) => {
                    self.sample(channel)?;
                    let mut summary = self.summary();
                    if let (Some(Ok(stood)), Some((profile, live))) =
                        (finish.registers, self.sampler.located())
                    {
                        summary.stood = stood::places(profile, live, &stood);
                    }
                    channel.queue_reply(id, Ok(MonitorReply::Finish(summary)), Fds::default())?;
                    return Ok(channel.drain(PATIENCE)?);
                }
                Some((id, MonitorRequest::Window(window), _)) => {
                    self.set_window(window);
                    channel.queue_reply(id, Ok(MonitorReply::Window(Windowed)), Fds::default())?;
                }
                Some((id, MonitorRequest::VcpuTime(time), _)) => {
                    self.vcpu_time.note(&time.ran_ns);
                    channel.queue_reply(id, Ok(MonitorReply::VcpuTime(VcpuTimeNoted)), Fds::default())?;
                }
                Some((id, MonitorRequest::CompareSymbols(told), _)) => {
                    self.cross_check.hear(told.0);
                    channel.queue_reply(
                        id,
                        Ok(MonitorReply::CompareSymbols(SymbolsNoted)),
                        Fds::default(),
                    )?;
                }
                Some((id, MonitorRequest::Attach(_), _)) => {
                    let refused = bad_request("a guest is attached already: one per monitor");
                    channel.queue_reply(id, Err(refused), Fds::default())?;
                }
                Some((id, MonitorRequest::Ask(ask), _)) => {
                    self.frozen = ask.frozen;
                    let answer = self.answer(&ask.question).map(MonitorReply::Ask);
                    channel.queue_reply(id, answer, Fds::default())?;
                }
                Some((id, MonitorRequest::Capture(capture), fds)) => {
                    self.frozen = true;
                    self.capture(channel, id, &capture, fds)?;
                }
                Some((id, MonitorRequest::WriteMap(write), fds)) => {
                    self.frozen = true;
                    let written = self.write_map(&write, fds).map(MonitorReply::WriteMap);
                    channel.queue_reply(id, written, Fds::default())?;
                }
                Some((id, MonitorRequest::WriteKernel(write), fds)) => {
                    self.frozen = write.frozen;
                    let written = self.write_kernel(&write, fds).map(MonitorReply::WriteKernel);
                    channel.queue_reply(id, written, Fds::default())?;
                }
                Some((id, MonitorRequest::Locate(locate), _)) => {
                    let located = self.locate_place(&locate.what).map(MonitorReply::Locate);
                    channel.queue_reply(id, located, Fds::default())?;
                }
                Some((id, MonitorRequest::Thawed(thawed), _)) => {
                    self.thaw(Duration::from_micros(thawed.stood_us));
                    channel.queue_reply(id, Ok(MonitorReply::Thawed(ThawNoted)), Fds::default())?;
                }
                None if channel.is_eof() => return Ok(()),
                // A guest that stands has nothing new to show, and its clocks are not stuck.
                None if self.frozen => next = Instant::now() + self.period,
                None => {
                    self.sample(channel)?;
                    // A late sample shifts the following ones instead of making them bunch up.
                    next = (next + self.period).max(Instant::now());
                }
            }
        }
    }

    /// Where members lie is looked up once, before anybody waits for a capture.
    fn warm_up(&mut self) {
        if let Ok((profile, live)) = self.sampler.locate(&self.mem) {
            self.freeze.warm_up(profile, live, &self.mem);
        }
    }

    fn look_for_signs(&mut self, channel: &mut Channel<MonitorLink>) -> Result<(), ServeError> {
        let Ok((profile, live)) = self.sampler.locate(&self.mem) else { return Ok(()) };
        for sign in self.watch.look(profile, live, &self.mem) {
            let event = match sign {
                Sign::Stalling(stalling) => MonitorEvent::Stalling(stalling),
                Sign::Exiting { kind } => MonitorEvent::SchedulerExiting { kind },
            };
            channel.queue_event(&event, Fds::default())?;
        }
        Ok(())
    }

    fn set_watchdog(&mut self, channel: &mut Channel<MonitorLink>) -> Result<(), ServeError> {
        let Some(patience) = &mut self.patience else { return Ok(()) };
        let Ok((profile, live)) = self.sampler.locate(&self.mem) else { return Ok(()) };
        if let Some(done) = patience.look(profile, live) {
            let written = done.is_ok();
            let event = MonitorEvent::Watchdog { written, what: watchdog::told(&done) };
            channel.queue_event(&event, Fds::default())?;
        }
        Ok(())
    }

    fn answer(&mut self, question: &Question) -> Result<Answer, RemoteError> {
        let (profile, live) = self.sampler.locate(&self.mem).map_err(|e| not_readable(&e))?;
        let refused = |e: QueryError| RemoteError::new(ErrorCode::BadRequest, &e);
        let (node, took) = query::answer(profile, live, &self.mem, question).map_err(refused)?;
        let (json, text) = query::to_message(&node).map_err(refused)?;
        Ok(Answer { json, text, read_us: took.as_micros() as u64 })
    }

    /// Guest memory for writing: mapped when it is first asked for.
    fn map_for_writing(&mut self, ram: FdSlot, mut fds: Fds) -> Result<(), RemoteError> {
        let ram = fds.take(ram, "ram").map_err(|e| RemoteError::new(ErrorCode::BadRequest, &e))?;
        if self.writable.is_none() {
            let layout = self.mem.layout().clone();
            let mapped = GuestMemMut::map_sealed(&ram, layout);
            self.writable = Some(mapped.map_err(|e| RemoteError::new(ErrorCode::Infrastructure, &e))?);
        }
        Ok(())
    }

    /// What is needed to write.
    fn for_writing(&mut self) -> Result<(&Profile, &LiveKernel, &GuestMemMut), RemoteError> {
        let (profile, live) = self.sampler.locate(&self.mem).map_err(|e| not_readable(&e))?;
        let unmapped =
            || RemoteError { code: ErrorCode::Infrastructure, message: "guest memory is not mapped".into() };
        Ok((profile, live, self.writable.as_ref().ok_or_else(unmapped)?))
    }

    /// Writes one number into a map.
    fn write_map(&mut self, write: &WriteMap, fds: Fds) -> Result<MapWritten, RemoteError> {
        self.map_for_writing(write.ram, fds)?;
        let (profile, live, writable) = self.for_writing()?;
        let WriteMap { map, path, value, .. } = write;
        let at = bpf::set_number(profile, live, writable, map, path, (*value).into())
            .map_err(|message| RemoteError { code: ErrorCode::BadRequest, message })?;
        Ok(MapWritten { what: format!("{path} in {map} is {value} now, at {at}") })
    }

    /// Writes values at places of the kernel.
    fn write_kernel(&mut self, write: &WriteKernel, fds: Fds) -> Result<KernelWritten, RemoteError> {
        self.map_for_writing(write.ram, fds)?;
        let (profile, live, writable) = self.for_writing()?;
        let what = kernel_place::write(profile, live, writable, &write.writes)
            .map_err(|e| RemoteError::new(ErrorCode::BadRequest, &e))?;
        Ok(KernelWritten { what })
    }

    fn locate_place(&mut self, what: &str) -> Result<Located, RemoteError> {
        let (profile, live) = self.sampler.locate(&self.mem).map_err(|e| not_readable(&e))?;
        let located = place::find(profile, live, &self.mem, what)
            .map_err(|e| RemoteError::new(ErrorCode::Unavailable, &e))?;
        let found = place::value(live, &self.mem, located.place);
        self.places.found(located.place, found);
        Ok(located)
    }

    /// What the write that stopped the guest has changed.
    fn written(&mut self, watched: &PlaceWritten) -> Written {
        let new = self.sampler.located().and_then(|(_, live)| place::value(live, &self.mem, watched.place));
        self.places.written(watched, new)
    }

    /// What was written to places since they are watched no more.
    fn look_at_places(&mut self) {
        if !self.places.any_busy() {
            return;
        }
        let Some((profile, live)) = self.sampler.located() else { return };
        let mem = &self.mem;
        self.places.look(|what, place| place::value_while_called(profile, live, mem, what, place));
    }

    /// Copies everything, says so, and only then reads the copy and writes it down.
    fn capture(
        &mut self,
        channel: &mut Channel<MonitorLink>,
        id: u32,
        capture: &Capture,
        fds: Fds,
    ) -> Result<(), ServeError> {
        // A capture may come before the sample that would have done it.
        self.set_watchdog(channel)?;
        let taken = self.take(capture, fds);
        let reply = taken.as_ref().map(|taken| MonitorReply::Capture(taken.read.clone()));
        channel.queue_reply(id, reply.map_err(RemoteError::clone), Fds::default())?;
        if let Ok(taken) = taken {
            channel.flush()?;
            let written = self.write(taken, &capture.why);
            channel.queue_event(&MonitorEvent::CaptureWritten(written), Fds::default())?;
        }
        self.freeze.end();
        Ok(())
    }

    /// Reads what was copied and writes it down; the guest may run again.
    fn write(&mut self, mut taken: Taken, why: &str) -> Result<(), String> {
        let (profile, live) = self.sampler.located().ok_or("the kernel is gone")?;
        let captured = self.freeze.read(profile, live, &self.mem);
        let mut json = std::io::BufWriter::new(&taken.json);
        let unwritten = |e: std::io::Error| format!("cannot write the capture: {e}");
        let mut node = captured.node(why).with("registers", stood::node(profile, live, &taken.registers));
        let mut why = why.to_owned();
        if let Some(written) = &taken.written {
            node = node.with("watched", written.node());
            why.push_str(&written.text());
        }
        serde_json::to_writer(&mut json, &node).map_err(|e| unwritten(e.into()))?;
        json.flush().map_err(unwritten)?;
        let text = captured.text(&why) + &stood::text(profile, live, &taken.registers);
        taken.text.write_all(text.as_bytes()).map_err(unwritten)
    }

    fn take(&mut self, capture: &Capture, mut fds: Fds) -> Result<Taken, RemoteError> {
        let began = Instant::now();
        let missing = |e: MissingFd| RemoteError::new(ErrorCode::BadRequest, &e);
        let json = File::from(fds.take(capture.json, "json").map_err(missing)?);
        let text = File::from(fds.take(capture.text, "text").map_err(missing)?);
        let core = capture.vmcore.map(|slot| fds.take(slot, "vmcore")).transpose().map_err(missing)?;
        let (profile, live) = self.sampler.locate(&self.mem).map_err(|e| not_readable(&e))?;
        let copied = self.freeze.touch(profile, live, &self.mem);
        let written = capture.watched.as_ref().map(|watched| self.written(watched));
        let (profile, live) = self.sampler.locate(&self.mem).map_err(|e| not_readable(&e))?;
        let view = View { profile, live, mem: live.view(&self.mem) };
        let clock_ns = state::newest_clock(&view);
        let (mut vmcore_bytes, mut no_core, mut no_registers) = (0, None, None);
        // A kernel without the note costs the core file, not what was read; no registers cost nothing else.
        if let Some(core) = core {
            let told = capture.registers.as_ref().map_err(Clone::clone);
            let about_cpus = told.and_then(|all| stood::notes(&view, all).map_err(|gap| chain(&gap)));
            let about_cpus = about_cpus.unwrap_or_else(|why| {
                no_registers = Some(why);
                Vec::new()
            });
            match vmcore::write(&view, &self.mem, &about_cpus, &mut File::from(core)) {
                Ok(bytes) => vmcore_bytes = bytes,
                Err(error) => no_core = Some(chain(&error)),
            }
        }
        let read = Captured {
            read_us: began.elapsed().as_micros() as u64,
            tasks: copied.tasks as u32,
            dsqs: copied.dsqs as u32,
            copied_bytes: copied.bytes as u64,
            vmcore_bytes,
            no_core,
            no_registers,
            clock_ns,
        };
        Ok(Taken { read, json, text, written, registers: capture.registers.clone() })
    }

    /// Time that did not pass for the guest does not count.
    fn thaw(&mut self, stood: Duration) {
        self.frozen = false;
        self.began += stood;
        self.observation.interrupt();
    }

    fn look_at_maps(&mut self) {
        if self.window_open
            && let Some((profile, live)) = self.sampler.located()
        {
            self.watches.look(profile, live, &self.mem);
        }
    }

    fn set_window(&mut self, window: Window) {
        // Counters as they are at the end.
        if window == Window::Close {
            self.look_at_maps();
            self.look_at_places();
        }
        match window {
            Window::Restart => {
                self.observation.restart();
                self.watches.restart();
            }
            Window::Open | Window::Close => self.observation.interrupt(),
        }
        self.window_open = window != Window::Close;
    }

    fn sample(&mut self, channel: &mut Channel<MonitorLink>) -> Result<(), ServeError> {
        let at = self.began.elapsed();
        let sample = match self.sampler.sample(&self.mem) {
            Ok(sample) => sample,
            Err(obstacle) => {
                self.observation.interrupt();
                self.last_obstacle = Some(chain(&obstacle));
                return Ok(());
            }
        };
        if !self.was_ready {
            self.was_ready = true;
            self.warm_up();
            channel.queue_event(&MonitorEvent::Ready, Fds::default())?;
            self.compare_cpus(channel, sample.cpus.len())?;
        } else if let Some((profile, live)) = self.sampler.located() {
            self.freeze.keep_warm(profile, live, &self.mem);
        }
        if let Some((profile, live)) = self.sampler.located()
            && let Some(compared) = self.cross_check.look(profile, live)
        {
            channel.queue_event(&MonitorEvent::SymbolsCompared(compared.clone()), Fds::default())?;
        }
        if let Scx::Loaded { .. } = sample.scx {
            self.set_watchdog(channel)?;
            self.look_for_signs(channel)?;
        }
        self.look_at_maps();
        self.look_at_places();
        let ran = self.vcpu_time.since_last();
        let used = match self.window_open {
            true => self.observation.add(&sample, ran.as_ref()),
            false => self.observation.skip(&sample),
        };
        for reason in self.reasons.of_sample(&sample) {
            channel.queue_event(&MonitorEvent::Unavailable(reason), Fds::default())?;
        }
        if used == Use::Counted && channel.backlog() < MAX_BACKLOG {
            let event = MonitorEvent::Sample(report::sample(&sample, at));
            channel.queue_event(&event, Fds::default())?;
        }
        Ok(())
    }

    fn compare_cpus(&mut self, channel: &mut Channel<MonitorLink>, found: usize) -> Result<(), ServeError> {
        let all = self.expected_cpus.saturating_add(self.absent_cpus);
        if [self.expected_cpus, all].contains(&u32::try_from(found).unwrap_or(u32::MAX)) {
            return Ok(());
        }
        let error = CpuCount { found, expected: self.expected_cpus };
        if let Some(reason) = self.reasons.tell(&error) {
            channel.queue_event(&MonitorEvent::Unavailable(reason), Fds::default())?;
        }
        Ok(())
    }

    fn summary(&self) -> MonitorSummary {
        let mut summary = report::summary(self.observation.summary(), &self.reasons);
        let (watched, missing) = self.watches.summary();
        summary.watched = watched;
        summary.busy_places = self.places.busy();
        summary.symbols = self.cross_check.compared().cloned();
        summary.unavailable.extend(missing);
        summary.vcpu_time_known = self.vcpu_time.is_known();
        if let (false, Some(obstacle)) = (self.was_ready, &self.last_obstacle) {
            summary.unavailable.push(format!("the kernel never became readable: {obstacle}"));
        }
        summary
    }
}

fn not_readable(obstacle: &NotReady) -> RemoteError {
    RemoteError::new(ErrorCode::Unavailable, obstacle)
}

/// Everything is copied; where it is to be written.
struct Taken {
    read: Captured,
    json: File,
    text: File,
    written: Option<Written>,
    registers: Registers,
}

/// Run time of the vCPUs between samples, from totals that arrive at times of their own.
#[derive(Debug, Default)]
struct VcpuTimes {
    totals: Option<BTreeMap<CpuId, Duration>>,
    at_last_sample: Option<BTreeMap<CpuId, Duration>>,
}

impl VcpuTimes {
    fn note(&mut self, ran_ns: &[u64]) {
        let numbered = (0..).map(CpuId).zip(ran_ns.iter().copied().map(Duration::from_nanos));
        self.totals = Some(numbered.collect());
    }

    fn is_known(&self) -> bool {
        self.totals.is_some()
    }

    /// What each vCPU ran since this was last asked.
    fn since_last(&mut self) -> Option<BTreeMap<CpuId, Duration>> {
        let now = self.totals.clone()?;
        let before = self.at_last_sample.replace(now.clone()).unwrap_or_default();
        let ran = |(cpu, total): (CpuId, Duration)| {
            (cpu, total.saturating_sub(before.get(&cpu).copied().unwrap_or_default()))
        };
        Some(now.into_iter().map(ran).collect())
    }
}

#[derive(Debug, Error)]
#[error("the guest has {found} possible CPUs, the machine was given {expected}")]
struct CpuCount {
    found: usize,
    expected: u32,
}

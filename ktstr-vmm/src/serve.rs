//! The role process: one machine for one orchestrator.
//!
//! ```text
//! Idle ──Start──► Running ──machine ends──► Ended ──socket closes──► process exits
//!   └────────────────┴───────────────socket closes: machine killed──────┘
//! ```
//!
//! It refuses a second machine, and everything after a frame it cannot read. What leaves the machine
//! is forwarded unread; while the orchestrator lags, the ring is not emptied and the guest waits.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use ktstr_jail::JailError;
use ktstr_proto::capture::{MAX_WATCHED, WatchPoint};
use ktstr_proto::channel::Filled;
use ktstr_proto::link::{ErrorCode, Fds, MissingFd, RemoteError, RequestFrame};
use ktstr_proto::ring::Mode as RingMode;
use ktstr_proto::run::Jail;
use ktstr_proto::vmm::{
    Accepted, ConsoleSockets, Paused, ProbeReport, RamRegion, Resumed, Snapshot, Start, Started, VmExit,
    VmmEvent, VmmLink, VmmReply, VmmRequest, Watching,
};
use ktstr_proto::{AccelKind, Channel, ChannelError};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::backend::{Backend, Ready};
use crate::confine;
use crate::console::{ConsoleError, PortOutput};
use crate::emulator::{EmulatorSpec, Mode, Origin, Version};
use crate::handover::Keep;
use crate::machine::{self, ConsoleFds, Devices, Exit, Gpa, MachineError, MachineSpec};
use crate::ring::RingMapError;
use crate::session::{Output, Session};

/// How often the machine's outlets are looked at.
const TICK: Duration = Duration::from_millis(4);
/// How often while the guest waits for its job.
const HANDOVER_TICK: Duration = Duration::from_millis(1);
/// Bytes waiting for the orchestrator from which on nothing more is taken from the machine.
const BACKLOG_LIMIT: usize = 1 << 20;
/// How long the orchestrator may take to introduce itself.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

const ORCHESTRATOR: Token = Token(0);
const MACHINE: Token = Token(1);

/// Why the role process ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The conversation failed.
    #[error("talk to the orchestrator")]
    Channel {
        /// The reason.
        #[from]
        source: ChannelError,
    },
    /// The event loop failed.
    #[error("{action}")]
    Loop {
        /// What was done.
        action: &'static str,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A serial port's output is lost.
    #[error("collect the machine's output")]
    Console {
        /// The reason.
        #[from]
        source: ConsoleError,
    },
}

/// Why a machine is not started.
#[derive(Debug, thiserror::Error)]
pub enum RefusedStart {
    /// A descriptor is missing.
    #[error("start a machine")]
    Fd {
        /// Which.
        #[from]
        source: MissingFd,
    },
    /// The emulator is not named.
    #[error("accelerator {accel} needs an emulator, and the request names none")]
    NoEmulator {
        /// The accelerator.
        accel: AccelKind,
    },
    /// `det` with a ring that the host writes to.
    #[error(
        "accelerator det needs a linear ring and its job in the initramfs: nothing is written by the host"
    )]
    WrappingDet,
    /// An emulated machine on CPUs of its own is still no fast one.
    #[error("accelerator {accel} isolates no machine: what it measures is the emulator")]
    Isolation {
        /// The accelerator.
        accel: AccelKind,
    },
    /// The topology cannot be built.
    #[error("start a machine")]
    Topology {
        /// Why.
        #[from]
        source: ktstr_proto::topology::TopologyError,
    },
    /// A socket or file is missing.
    #[error("make the console's sockets")]
    Console {
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A port cannot be set up.
    #[error("set up the serial ports")]
    Port {
        /// The reason.
        #[from]
        source: ConsoleError,
    },
    /// The backend failed.
    #[error("run the machine")]
    Machine {
        /// The reason.
        #[from]
        source: MachineError,
    },
    /// This process could not be confined.
    #[error("enter the jail")]
    Jail {
        /// The reason.
        #[from]
        source: JailError,
    },
    /// The ring cannot be reached.
    #[error("reach the guest channel")]
    Ring {
        /// The reason.
        #[from]
        source: RingMapError,
    },
}

impl RefusedStart {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Fd { .. } | Self::NoEmulator { .. } | Self::WrappingDet | Self::Topology { .. } => {
                ErrorCode::BadRequest
            }
            Self::Ring { .. } => ErrorCode::BadRequest,
            Self::Isolation { .. } => ErrorCode::Unavailable,
            Self::Jail { .. } => ErrorCode::Jail,
            Self::Machine { source } if source.is_of_snapshot() => ErrorCode::BadInput,
            Self::Machine { source } if source.is_refusal() => ErrorCode::Unavailable,
            Self::Console { .. } | Self::Port { .. } | Self::Machine { .. } => ErrorCode::Infrastructure,
        }
    }
}

enum State {
    Idle,
    Running(Box<Session>),
    Ended,
}

/// One orchestrator's VMM.
pub struct Server {
    channel: Channel<VmmLink>,
    state: State,
    poll: Poll,
    jail: Jail,
}

impl Server {
    /// Introduces itself on a connected channel; `jail` is what it confines itself to later.
    pub fn new(mut channel: Channel<VmmLink>, jail: Jail) -> Result<Server, ServeError> {
        channel.handshake("ktstr-vmm", HANDSHAKE_LIMIT)?;
        let poll =
            Poll::new().map_err(|source| ServeError::Loop { action: "make the event loop", source })?;
        poll.registry()
            .register(
                &mut SourceFd(&channel.as_raw_fd()),
                ORCHESTRATOR,
                Interest::READABLE | Interest::WRITABLE,
            )
            .map_err(|source| ServeError::Loop { action: "watch the orchestrator's socket", source })?;
        Ok(Server { channel, state: State::Idle, poll, jail })
    }

    /// Serves until the orchestrator closes the socket. Whatever the reason for returning, no machine
    /// runs afterwards.
    pub fn run(mut self) -> Result<(), ServeError> {
        let outcome = self.serve();
        if let State::Running(session) = &mut self.state {
            session.kill();
        }
        match outcome {
            Err(ServeError::Channel { source: ChannelError::Closed { .. } }) => Ok(()),
            other => other,
        }
    }

    fn serve(&mut self) -> Result<(), ServeError> {
        let mut events = Events::with_capacity(8);
        loop {
            loop {
                let filled = self.channel.fill()?;
                while let Some((message, fds)) = self.channel.next_message()? {
                    match message {
                        ktstr_proto::channel::Message::Request(request) => self.answer(request, fds)?,
                        other => {
                            return Err(ChannelError::Unexpected {
                                peer: "the orchestrator",
                                what: format!("{other:?} where only requests are served"),
                            }
                            .into());
                        }
                    }
                }
                match filled {
                    Filled::Data => {}
                    Filled::WouldBlock => break,
                    Filled::Eof => return Ok(()),
                }
            }
            self.forward()?;
            self.channel.flush()?;
            let timeout = match &self.state {
                State::Running(session) if session.is_handing_over() => Some(HANDOVER_TICK),
                State::Running(_) => Some(TICK),
                State::Idle | State::Ended => None,
            };
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ServeError::Loop { action: "wait for events", source }),
            }
        }
    }

    /// Takes what the machine has, as long as the orchestrator keeps up.
    fn forward(&mut self) -> Result<(), ServeError> {
        let State::Running(session) = &mut self.state else { return Ok(()) };
        while self.channel.backlog() < BACKLOG_LIMIT {
            let Some(output) = session.next_output()? else { return Ok(()) };
            let event = match output {
                Output::Com1(bytes) => VmmEvent::Console(bytes),
                Output::Com2(bytes) => VmmEvent::Com2(bytes),
                Output::Ring(bytes) => VmmEvent::Ring(bytes),
                Output::RingBroken(reason) => VmmEvent::RingBroken(reason),
                Output::Saved(saved) => VmmEvent::Saved(saved),
                Output::Written { place, cpu } => VmmEvent::Written { place, cpu },
                Output::Statistics(counted) => VmmEvent::Statistics(counted),
                Output::Station(what, after) => {
                    VmmEvent::Station { what: what.to_owned(), at_us: after.as_micros() as u64 }
                }
                Output::Exited(exit) => VmmEvent::Exited(exit_on_the_wire(exit)),
            };
            self.channel.queue_event(&event, Fds::default())?;
            if session.has_ended() {
                self.state = State::Ended;
                return Ok(());
            }
            self.channel.flush()?;
        }
        Ok(())
    }

    fn answer(&mut self, frame: RequestFrame<VmmRequest>, fds: Fds) -> Result<(), ServeError> {
        let mut attached = Fds::default();
        let result = match frame.request {
            VmmRequest::Probe(_) => Ok(VmmReply::Probe(probe())),
            VmmRequest::Start(start) => self.start(&start, fds, &mut attached).map(VmmReply::Start),
            VmmRequest::Pause(pause) => self.pause(pause.registers).map(VmmReply::Pause),
            VmmRequest::Resume(_) => self.running("resume").and_then(|session| {
                let stood = session.resume().map_err(|e| RemoteError::new(ErrorCode::Infrastructure, &e))?;
                Ok(VmmReply::Resume(Resumed { stood_us: stood.as_micros() as u64 }))
            }),
            VmmRequest::Shutdown(_) => self.running("shut down").and_then(|session| {
                if session.ask_shutdown() {
                    return Ok(VmmReply::Shutdown(Accepted));
                }
                Err(refusal(
                    "the guest cannot be asked to shut down: its channel takes nothing from the host",
                ))
            }),
            VmmRequest::Tell(tell) => self.running("answer the guest").and_then(|session| {
                session.tell(tell.id, &tell.answer).map_err(|reason| refusal(&reason))?;
                Ok(VmmReply::Tell(Accepted))
            }),
            VmmRequest::Watch(watch) => self.watch(&watch.places).map(VmmReply::Watch),
            VmmRequest::Kill(_) => self.running("kill").map(|session| {
                session.kill();
                VmmReply::Kill(Accepted)
            }),
        };
        self.channel.queue_reply(frame.id, result, attached)?;
        Ok(())
    }

    fn running(&mut self, action: &str) -> Result<&mut Session, RemoteError> {
        match &mut self.state {
            State::Running(session) => Ok(session),
            State::Idle => Err(refusal(&format!("{action}: no machine was started"))),
            State::Ended => Err(refusal(&format!("{action}: the machine has ended"))),
        }
    }

    fn pause(&mut self, registers: bool) -> Result<Paused, RemoteError> {
        let begun = Instant::now();
        let session = self.running("pause")?;
        session.pause().map_err(|e| RemoteError::new(ErrorCode::Infrastructure, &e))?;
        let took_us = begun.elapsed().as_micros() as u64;
        Ok(Paused { took_us, registers: registers.then(|| session.registers()) })
    }

    fn watch(&mut self, places: &[WatchPoint]) -> Result<Watching, RemoteError> {
        if places.len() > MAX_WATCHED || !places.iter().all(|place| place.is_possible()) {
            return Err(refusal(&format!(
                "watch: at most {MAX_WATCHED} places of 1, 2, 4 or 8 bytes, each a multiple of its length"
            )));
        }
        let session = self.running("watch")?;
        session.watch(places).map_err(|e| RemoteError::new(ErrorCode::Unavailable, &e))?;
        Ok(Watching)
    }

    fn start(&mut self, start: &Start, fds: Fds, attached: &mut Fds) -> Result<Started, RemoteError> {
        if !matches!(self.state, State::Idle) {
            return Err(refusal("start: this process has had its one attempt; start another process"));
        }
        // Whatever comes of it: this process may be confined afterwards and cannot try again.
        self.state = State::Ended;
        let (session, started) =
            launch(start, fds, attached, self.jail).map_err(|e| RemoteError::new(e.code(), &e))?;
        let watched = session.event_fd().as_raw_fd();
        self.poll
            .registry()
            .register(&mut SourceFd(&watched), MACHINE, Interest::READABLE)
            .map_err(|e| RemoteError::new(ErrorCode::Infrastructure, &e))?;
        self.state = State::Running(Box::new(session));
        Ok(started)
    }
}

fn refusal(message: &str) -> RemoteError {
    RemoteError { code: ErrorCode::BadRequest, message: message.to_owned() }
}

fn launch(
    start: &Start,
    mut fds: Fds,
    attached: &mut Fds,
    jail: Jail,
) -> Result<(Session, Started), RefusedStart> {
    let begun = Instant::now();
    let topology = start.topology.checked()?;
    let given_later = start.input.is_some() || start.snapshot != Snapshot::Unused;
    if start.accel == AccelKind::Det && (start.ring.mode != RingMode::Linear || given_later) {
        return Err(RefusedStart::WrappingDet);
    }
    if start.isolation.is_some() && start.accel != AccelKind::Kvm {
        return Err(RefusedStart::Isolation { accel: start.accel });
    }
    let backend = backend(start, jail)?;
    let (com1, com1_sink) = PortOutput::new("com1")?;
    let (com2, com2_sink) = PortOutput::new("com2")?;
    let console = start.interactive.then(ConsoleFds::sockets).transpose();
    let (console, ours) = console.map_err(|source| RefusedStart::Console { source })?.unzip();
    let spec = MachineSpec {
        topology,
        numa: start.numa.clone(),
        absent_llcs: start.absent_llcs,
        memory: u64::from(start.memory_mb) << 20,
        kernel: fds.take(start.kernel, "kernel")?,
        initrd: vec![fds.take(start.initrd, "initrd")?],
        cmdline: start.cmdline.clone(),
        ring: Some(machine::RingRegion { gpa: Gpa(start.ring.gpa), len: start.ring.len }),
        com1: com1_sink,
        com2: Some(com2_sink),
        console,
        devices: devices(start, &mut fds)?,
        isolation: start.isolation.clone(),
    };
    let (origin, keep) = match &start.snapshot {
        Snapshot::Unused => (Origin::Boot, None),
        Snapshot::Load(slot) => (Origin::Snapshot(fds.take(*slot, "snapshot")?.into()), None),
        Snapshot::Save { file, description } => {
            let file = fds.take(*file, "snapshot")?.into();
            (Origin::BootToKeep, Some(Keep { file, description: description.clone() }))
        }
    };
    let input = start.input.map(|slot| fds.take(slot, "input")).transpose()?;
    let ready = Ready::prepare_from(&backend, spec, origin)?;
    let confined = confine::this_process(jail)?;
    let running = ready.start(&confined)?;
    let mut session = Session::new(running.machine, com1, com2, &start.ring)?;
    if let Some(input) = input {
        session.hand_over(&start.ring, input.into(), keep)?;
    }
    session.asked_for_at(begun);
    let ram = session.ram();
    let regions = ram
        .regions
        .iter()
        .map(|region| RamRegion { gpa: region.gpa.0, len: region.len, offset: region.file_offset })
        .collect();
    let (emulator_pid, pidfd) = running.emulator.unzip();
    let memfd = ram.memfd.try_clone().map_err(|source| RingMapError::Duplicate { source })?;
    let started = Started {
        ram: attached.attach(memfd),
        regions,
        console: ours.map(|[terminal, size]| ConsoleSockets {
            terminal: attached.attach(terminal),
            size: attached.attach(size),
        }),
        emulator_pid,
        emulator: pidfd.map(|pidfd| attached.attach(pidfd)),
        walls: confine::walls(&confined),
        detail: detail(&backend, running.weakness),
    };
    Ok((session, started))
}

fn devices(start: &Start, fds: &mut Fds) -> Result<Devices, MissingFd> {
    let disk = match &start.disk {
        None => None,
        Some(disk) => Some((fds.take(disk.socket, "disk")?, disk.config)),
    };
    let networks = start.networks.iter();
    let networks = networks.map(|network| Ok((fds.take(network.socket, "network")?, network.config)));
    Ok(Devices { disk, networks: networks.collect::<Result<_, MissingFd>>()? })
}

fn backend(start: &Start, jail: Jail) -> Result<Backend, RefusedStart> {
    let mode = match start.accel {
        AccelKind::Kvm => return Ok(Backend::Kvm),
        AccelKind::Tcg => Mode::Tcg,
        AccelKind::Det => Mode::Det { seed: start.seed, shift: start.instruction_shift },
    };
    let emulator = start.emulator.as_ref().ok_or(RefusedStart::NoEmulator { accel: start.accel })?;
    let (major, minor) = emulator.version;
    Ok(Backend::Emulator(EmulatorSpec {
        program: emulator.program.clone(),
        version: Version { major, minor, micro: 0 },
        mode,
        files: emulator.files.clone(),
        host_cpus: std::thread::available_parallelism().map_or(1, Into::into),
        jail,
    }))
}

fn detail(backend: &Backend, weakness: Option<&str>) -> String {
    let name = match backend {
        Backend::Kvm => "KVM".to_owned(),
        Backend::Emulator(spec) => format!("QEMU {}.{}", spec.version.major, spec.version.minor),
    };
    match weakness {
        None => name,
        Some(weakness) => format!("{name}, {weakness}"),
    }
}

fn probe() -> ProbeReport {
    let start = std::time::Instant::now();
    let verdict = crate::probe::probe();
    let took_us = start.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
    ProbeReport { usable: verdict.is_usable(), detail: verdict.to_string(), took_us }
}

fn exit_on_the_wire(exit: Exit) -> VmExit {
    match exit {
        Exit::PowerOff => VmExit::PowerOff,
        Exit::Reset => VmExit::Reset,
        Exit::TripleFault(fault) => VmExit::TripleFault(fault),
        Exit::InternalError { detail } => VmExit::InternalError { detail },
        Exit::BackendDied { how, stderr } => VmExit::EmulatorDied { how, stderr },
        Exit::Killed => VmExit::Killed,
    }
}

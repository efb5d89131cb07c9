//! A machine run by the emulator, behind the interface that both backends share.
//!
//! ```text
//! Prepared::spawn ──► Prepared ──start──► EmulatedMachine ──► Exited (once, then silence)
//!   child waits        (slot for the jail)  pause ⇄ resume
//! ```
//!
//! The child is started with its vCPUs frozen. Between [`Prepared::spawn`] and [`Prepared::start`]
//! nothing that a guest controls has run: that is when the calling process confines itself.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ktstr_jail::{JailError, JailSpec};
use ktstr_proto::capture::WatchPoint;
use ktstr_proto::registers::VcpuRegisters;
use ktstr_proto::run::Jail;
use ktstr_proto::topology::{TopologyError, numa::NumaError};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::args::{self, Inherited, KERNEL_PARAMETERS, Mode, Threads};
use super::child::{ChildError, Emulator, describe};
use super::files::{one_initrd, sealed_ram, state_file};
use super::gdb::GdbError;
use super::layout::{self, LayoutError};
use super::migration::{self, MigrationError};
use super::preload::{Library, Preload};
use super::qmp::{Qmp, QmpError, QmpEvent, ShutdownReason};
use super::registers::{self, RegistersError};
use super::version::Version;
use super::watch::Debugger;
use crate::apic::ApicIds;
use crate::machine::{Event, Exit, MachineError, MachineSpec, Ram, Running};
use crate::nodes;
use crate::snapshot::{SnapshotFile, SnapshotFileError};

/// How long the emulator may take to answer its control socket. A host busy with other machines
/// delays a child by seconds, not by this.
pub(super) const CONTROL_LIMIT: Duration = Duration::from_secs(30);
/// How long to wait for the process of an emulator that has closed its control socket.
const LAST_BREATH: Duration = Duration::from_secs(2);
/// How long the threads of a stopped process may take until they stand.
const FREEZE_LIMIT: Duration = Duration::from_secs(5);

/// Which emulator runs the machine and how.
#[derive(Clone, Debug)]
pub struct EmulatorSpec {
    /// The executable, as the child will see it.
    pub program: PathBuf,
    /// Its version, detected before any jail.
    pub version: Version,
    /// For speed or for replay.
    pub mode: Mode,
    /// Firmware and further files it reads, shown read-only in its jail. Libraries are shown anyway.
    pub files: Vec<PathBuf>,
    /// CPUs of the host that the emulator may use.
    pub host_cpus: usize,
    /// How it is confined.
    pub jail: Jail,
}

/// Why an emulated machine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// RAM cannot be laid out.
    #[error("lay out guest RAM")]
    Layout {
        /// The reason.
        #[from]
        source: LayoutError,
    },
    /// The CPUs cannot be numbered.
    #[error("number the CPUs")]
    Topology {
        /// The reason.
        #[from]
        source: TopologyError,
    },
    /// RAM cannot be divided.
    #[error("divide guest RAM among the NUMA nodes")]
    Nodes {
        /// The reason.
        #[from]
        source: NumaError,
    },
    /// The emulator is too old for several nodes.
    #[error("{nodes} NUMA nodes need an emulator of version {need}, this one is {found}",
        need = Version::BACKEND_OFFSET)]
    TooOldForNodes {
        /// Nodes requested.
        nodes: usize,
        /// Version found.
        found: Version,
    },
    /// The emulator is too old for so many CPUs.
    #[error("CPUs with an APIC id above 254 need an emulator of version {need}, this one is {found}",
        need = Version::MANY_CPUS)]
    TooOldForCpus {
        /// Version found.
        found: Version,
    },
    /// An interactive console would feed host-timed input to a replayable run.
    #[error(
        "the det accelerator refuses an interactive console: what is typed cannot be replayed; use tcg or kvm"
    )]
    InteractiveDet,
    /// Nothing keeps the host's moments from a run that is to be repeated.
    #[error(
        "the emulator did not load the library that keeps the host's moments from a det run; use a \
         dynamically linked qemu-system-x86_64 of version 10"
    )]
    NoLockstep,
    /// RAM file, sockets or the like.
    #[error("{action}")]
    Resource {
        /// What was done.
        action: &'static str,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The child process.
    #[error("run the emulator")]
    Child {
        /// The reason.
        #[from]
        source: ChildError,
    },
    /// The child ended before the guest started.
    #[error("the emulator ended before the guest started ({end}): {complaints}")]
    Died {
        /// Whether it was given a snapshot.
        incoming: bool,
        /// How it ended.
        end: String,
        /// What it complained about.
        complaints: String,
    },
    /// The snapshot.
    #[error("use the snapshot")]
    Snapshot {
        /// The reason.
        #[from]
        source: SnapshotFileError,
    },
    /// The emulator does not take up what the snapshot holds.
    #[error("fill the emulated machine from the snapshot")]
    Migration {
        /// The reason.
        #[from]
        source: MigrationError,
    },
    /// The conversation failed.
    #[error("start the emulated machine")]
    Control {
        /// The reason.
        #[from]
        source: QmpError,
    },
}

impl StartError {
    /// Whether the snapshot may be the reason.
    #[must_use]
    pub fn is_of_snapshot(&self) -> bool {
        match self {
            Self::Snapshot { source } => source.is_damage(),
            Self::Migration { .. } => true,
            Self::Died { incoming, .. } => *incoming,
            _ => false,
        }
    }

    /// Whether the host lacks something that the machine was to have of it.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::TooOldForNodes { .. }
            | Self::TooOldForCpus { .. }
            | Self::InteractiveDet
            | Self::NoLockstep => true,
            Self::Child { source: ChildError::Spawn { source, .. } } => {
                matches!(source, JailError::UserNamespaceForbidden { .. })
            }
            _ => false,
        }
    }
}

impl From<StartError> for MachineError {
    fn from(error: StartError) -> Self {
        MachineError { action: "start the emulated machine".to_owned(), source: Some(Box::new(error)) }
    }
}

pub(super) fn resource<E: Into<std::io::Error>>(action: &'static str) -> impl FnOnce(E) -> StartError {
    move |source| StartError::Resource { action, source: source.into() }
}

/// An emulator process whose guest has not run yet.
#[derive(Debug)]
pub struct Prepared {
    child: Emulator,
    qmp: Qmp,
    ram: Ram,
    mode: Mode,
    cpus: u32,
    state: Option<OwnedFd>,
    incoming: bool,
    debugger: Debugger,
    preload: Option<Preload>,
    weakness: Option<&'static str>,
    stations: Vec<(&'static str, Instant)>,
}

/// What a machine begins with.
#[derive(Debug)]
pub enum Origin {
    /// Its kernel.
    Boot,
    /// Its kernel, and the state of its devices will be asked for.
    BootToKeep,
    /// A machine that stood.
    Snapshot(File),
}

impl Prepared {
    /// Makes guest RAM and starts the emulator with frozen vCPUs, to boot the kernel.
    pub fn spawn(spec: MachineSpec, emulator: &EmulatorSpec) -> Result<Prepared, StartError> {
        Self::spawn_from(spec, emulator, Origin::Boot)
    }

    /// Makes guest RAM and starts the emulator with frozen vCPUs. From a snapshot, RAM is complete when
    /// this returns; it is filled while the emulator's process starts.
    pub fn spawn_from(
        spec: MachineSpec,
        emulator: &EmulatorSpec,
        origin: Origin,
    ) -> Result<Prepared, StartError> {
        if spec.console.is_some() && matches!(emulator.mode, Mode::Det { .. }) {
            return Err(StartError::InteractiveDet);
        }
        let nodes = nodes::divide(&spec.topology, &spec.numa, spec.memory)?;
        if nodes.len() > 1 && emulator.version < Version::BACKEND_OFFSET {
            return Err(StartError::TooOldForNodes { nodes: nodes.len(), found: emulator.version });
        }
        let ids = ApicIds::new(spec.topology)?.with_absent(spec.absent_llcs)?;
        let x2apic = ids.need_x2apic();
        if x2apic && emulator.version < Version::MANY_CPUS {
            return Err(StartError::TooOldForCpus { found: emulator.version });
        }
        let ram = Ram { regions: layout::regions(spec.memory)?, memfd: sealed_ram(spec.memory)? };
        let (snapshot, state) = match origin {
            Origin::Boot => (None, None),
            Origin::BootToKeep => (None, Some(state_file(&[])?)),
            Origin::Snapshot(file) => {
                let snapshot = SnapshotFile::open(file, spec.memory)?;
                let state = state_file(&snapshot.state()?)?;
                (Some(snapshot), Some(state))
            }
        };
        let filling = snapshot.map(|snapshot| fill(snapshot, &ram)).transpose()?;
        let initrd = one_initrd(spec.initrd)?;
        let (ours, theirs) = UnixStream::pair().map_err(resource("make the control socket"))?;
        // Under `det` not even an unused socket more is in the emulator's process.
        let debugger = (emulator.mode == Mode::Tcg)
            .then(|| UnixStream::pair().map_err(resource("make the debugger's socket")))
            .transpose()?;
        let cpus = spec.topology.cpus();
        let threads = Threads::choose(emulator.mode, emulator.version, cpus, emulator.host_cpus);
        let preload = Library::choose(emulator.mode, threads)
            .map(|library| library.preload().map_err(resource("make the library that the emulator preloads")))
            .transpose()?;
        let cmdline = with_own_parameters(&spec.cmdline);
        let fds = Inherited {
            ram: ram.memfd.as_fd(),
            kernel: spec.kernel.as_fd(),
            initrd: initrd.as_fd(),
            com1: spec.com1.as_fd(),
            com2: spec.com2.as_ref().map(AsFd::as_fd),
            qmp: theirs.as_fd(),
            console: spec.console.as_ref().map(|console| [console.output.as_fd(), console.size.as_fd()]),
            disk: spec.devices.disk.as_ref().map(|(socket, _)| socket.as_fd()),
            networks: &spec.devices.networks,
            state: state.as_ref().map(AsFd::as_fd),
            gdb: debugger.as_ref().map(|(_, theirs)| theirs.as_fd()),
            preload: preload.as_ref().map(Preload::descriptors),
        };
        let incoming = filling.is_some();
        let mut stations = vec![("RAM made", Instant::now())];
        let machine = args::Machine {
            mode: emulator.mode,
            threads,
            topology: &spec.topology,
            possible: ids.possible(),
            x2apic,
            numa: &spec.numa,
            memory: spec.memory,
            nodes: &nodes,
            cmdline: &cmdline,
            incoming,
            fds,
        };
        let environment = preload.as_ref().map(Preload::environment).unwrap_or_default();
        let child = spawn_confined(emulator, &args::compose(&machine), &environment, &fds)?;
        stations.push(("emulator's process", Instant::now()));
        if let Some(filling) = filling {
            // No thread may be left when the process confines itself.
            filling
                .join()
                .map_err(|_| resource("fill guest RAM")(std::io::Error::other("it panicked")))??;
            stations.push(("RAM filled", Instant::now()));
        }
        let debugger = debugger.map_or(Debugger::Never, |(ours, _)| Debugger::Idle(ours));
        Ok(Prepared {
            child,
            qmp: Qmp::new(ours)?,
            ram,
            mode: emulator.mode,
            cpus,
            state,
            incoming,
            debugger,
            preload,
            weakness: None,
            stations,
        })
    }

    /// Guest RAM, so that an observer can map it before the first instruction.
    #[must_use]
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Lets the guest run.
    pub fn start(mut self) -> Result<EmulatedMachine, StartError> {
        if let Err(error) = self.qmp.handshake(CONTROL_LIMIT) {
            return Err(self.explain(error));
        }
        self.stations.push(("emulator answers", Instant::now()));
        if self.preload.take().is_some_and(|preload| !preload.confirms()) {
            match self.mode {
                Mode::Det { .. } => return Err(StartError::NoLockstep),
                Mode::Tcg => self.weakness = Some(STALE_TEXT),
            }
        }
        if let Some(state) = self.state.as_ref().filter(|_| self.incoming) {
            migration::take_in(&mut self.qmp, state.as_fd())?;
            self.stations.push(("devices restored", Instant::now()));
        }
        if let Err(error) = self.qmp.call("cont", CONTROL_LIMIT) {
            return Err(self.explain(error));
        }
        EmulatedMachine::new(self)
    }

    /// An emulator that dies while starting says why on its standard error, not on the socket.
    fn explain(&mut self, error: QmpError) -> StartError {
        if matches!(error, QmpError::Closed { .. }) {
            let end = last_status(&mut self.child);
            self.child.read_complaints();
            let complaints = self.child.complaints();
            return StartError::Died { incoming: self.incoming, end, complaints };
        }
        error.into()
    }
}

/// Of an emulator with several threads that does not take the library against it.
const STALE_TEXT: &str = "may run outdated kernel text";

/// Where distributions put the emulator's firmware, for callers that name no files.
const FIRMWARE: [&str; 2] = ["/usr/share/qemu", "/usr/share/seabios"];

/// Starts the child in its jail.
fn spawn_confined(
    emulator: &EmulatorSpec,
    args: &[String],
    environment: &[String],
    fds: &Inherited<'_>,
) -> Result<Emulator, ChildError> {
    let mut files: Vec<&Path> = emulator.files.iter().map(PathBuf::as_path).collect();
    if files.is_empty() {
        files.extend(FIRMWARE.map(Path::new));
    }
    let jail = JailSpec::emulator(&files);
    let jail = if fds.networks.is_empty() { jail } else { jail.with_networks() };
    Emulator::spawn(emulator.jail, jail, &emulator.program, args, environment, &fds.all())
}

/// Waits a moment for the end of a child that has closed its control socket.
fn last_status(child: &mut Emulator) -> String {
    let mut fds = [nix::poll::PollFd::new(child.pidfd(), nix::poll::PollFlags::POLLIN)];
    let _ = nix::poll::poll(&mut fds, LAST_BREATH.as_millis() as u16);
    match child.try_wait() {
        Some(status) => describe(status),
        None => "control socket closed, process alive".to_owned(),
    }
}

/// Copies RAM out of a snapshot on a thread of its own.
fn fill(snapshot: SnapshotFile, ram: &Ram) -> Result<JoinHandle<Result<(), SnapshotFileError>>, StartError> {
    let ram = File::from(ram.memfd.try_clone().map_err(resource("duplicate the descriptor of guest RAM"))?);
    std::thread::Builder::new()
        .name("fill".to_owned())
        .spawn(move || snapshot.fill(&ram))
        .map_err(resource("start a thread that fills guest RAM"))
}

/// The command line with the parameters that an emulated machine wants, unless they are there.
fn with_own_parameters(cmdline: &str) -> String {
    let mut complete = cmdline.to_owned();
    for parameter in KERNEL_PARAMETERS {
        if !cmdline.split(' ').any(|given| given == parameter) {
            complete.push(' ');
            complete.push_str(parameter);
        }
    }
    complete
}

/// A started machine.
#[derive(Debug)]
pub struct EmulatedMachine {
    child: Emulator,
    qmp: Qmp,
    ram: Ram,
    mode: Mode,
    cpus: u32,
    state: Option<OwnedFd>,
    debugger: Debugger,
    weakness: Option<&'static str>,
    stations: Vec<(&'static str, Instant)>,
    ready: Epoll,
    events: VecDeque<Event>,
    shutdown: Option<ShutdownReason>,
    broken: Option<String>,
    killed: bool,
    ended: bool,
}

impl EmulatedMachine {
    fn new(prepared: Prepared) -> Result<EmulatedMachine, StartError> {
        let Prepared { child, qmp, ram, mode, cpus, state, debugger, weakness, mut stations, .. } = prepared;
        stations.push(("vCPUs run", Instant::now()));
        let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(resource("make the event set"))?;
        for fd in [child.pidfd(), child.stderr(), qmp.as_fd()] {
            ready.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0)).map_err(resource("fill the event set"))?;
        }
        Ok(EmulatedMachine {
            child,
            qmp,
            ram,
            mode,
            cpus,
            state,
            debugger,
            weakness,
            stations,
            ready,
            events: VecDeque::new(),
            shutdown: None,
            broken: None,
            killed: false,
            ended: false,
        })
    }

    /// What this emulator cannot be trusted with, although its version could.
    #[must_use]
    pub fn weakness(&self) -> Option<&'static str> {
        self.weakness
    }

    /// The emulator's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Its pidfd.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd()
    }

    fn collect(&mut self) {
        if self.ended {
            return;
        }
        if !self.child.read_complaints() {
            let _ = self.ready.delete(self.child.stderr());
        }
        // Whether the child has ended is looked at before the socket: what it said last is then
        // already there to be read.
        let status = self.child.try_wait();
        loop {
            match self.qmp.next_event() {
                Ok(Some(QmpEvent::Shutdown(reason))) => self.shutdown = Some(reason),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    // An emulator that talks nonsense is not in control of itself any more.
                    self.broken = Some(error.to_string());
                    self.child.kill();
                    break;
                }
            }
        }
        if self.qmp.is_closed() {
            let _ = self.ready.delete(self.qmp.as_fd());
        }
        self.collect_writes();
        if let Some(status) = status.or_else(|| self.child.try_wait()) {
            self.child.read_complaints();
            self.end(self.outcome(status));
        }
    }

    /// Writes to watched places. A debugger interface that breaks tells of no more of them, and the
    /// machine, which would wait for it, is ended.
    fn collect_writes(&mut self) {
        let Debugger::Serving(gdb) = &mut self.debugger else { return };
        loop {
            match gdb.next_hit() {
                Ok(Some(hit)) => {
                    let place = gdb.place(hit.kva).unwrap_or(WatchPoint { kva: hit.kva, len: 1 });
                    self.events.push_back(Event::Written { place, cpu: hit.cpu });
                }
                Ok(None) => break,
                Err(error) => {
                    self.broken.get_or_insert(error.to_string());
                    self.child.kill();
                    break;
                }
            }
        }
        if gdb.is_closed() {
            let _ = self.ready.delete(gdb.as_fd());
        }
    }

    fn outcome(&self, status: std::process::ExitStatus) -> Exit {
        if self.killed {
            return Exit::Killed;
        }
        let died = |what: &str| Exit::BackendDied {
            how: format!("{what} ({})", describe(status)),
            stderr: self.child.complaints(),
        };
        if let Some(reason) = &self.broken {
            return died(reason);
        }
        match &self.shutdown {
            _ if !status.success() => died("died"),
            Some(ShutdownReason::GuestShutdown) => Exit::PowerOff,
            Some(ShutdownReason::GuestReset | ShutdownReason::GuestPanic) => Exit::Reset,
            Some(ShutdownReason::HostQuit) => Exit::Killed,
            Some(ShutdownReason::Other(reason)) => died(&format!("ended by {reason}")),
            None => died("ended without saying why"),
        }
    }

    fn end(&mut self, exit: Exit) {
        self.ended = true;
        self.events.push_back(Event::Exited(exit));
    }

    fn command(&mut self, command: &'static str) -> Result<(), MachineError> {
        if self.ended {
            return Ok(());
        }
        match self.qmp.call(command, CONTROL_LIMIT) {
            Ok(_) => Ok(()),
            // It ended meanwhile: the exit event tells how.
            Err(QmpError::Closed { .. }) => Ok(()),
            Err(error) => Err(MachineError {
                action: format!("{command} the emulated machine"),
                source: Some(Box::new(error)),
            }),
        }
    }
}

impl Running for EmulatedMachine {
    fn ram(&self) -> &Ram {
        &self.ram
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.ready.0.as_fd()
    }

    fn stations(&mut self) -> Vec<(&'static str, Instant)> {
        std::mem::take(&mut self.stations)
    }

    fn next_event(&mut self) -> Option<Event> {
        self.collect();
        self.events.pop_front()
    }

    /// Under `tcg` the emulator stops its vCPUs and with them the guest's clocks. Under `det` that
    /// would end the current vCPU's turn early and so change what follows; there the process itself
    /// is stopped, which nothing in it can see: its only clock counts instructions.
    fn pause(&mut self) -> Result<(), MachineError> {
        match self.mode {
            Mode::Tcg => self.command("stop"),
            Mode::Det { .. } => stopping("stop", self.child.freeze(FREEZE_LIMIT)),
        }
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        match self.mode {
            Mode::Tcg => match self.debugger.watching() {
                // Let run by the debugger it stops for it, too.
                Some(gdb) if !self.ended => gdb.go_on(CONTROL_LIMIT).or_else(|error| match error {
                    GdbError::Closed { .. } => Ok(()),
                    error => Err(refused("let the emulated machine go on", error)),
                }),
                _ => self.command("cont"),
            },
            Mode::Det { .. } => stopping("continue", self.child.thaw()),
        }
    }

    fn registers(&mut self) -> Result<Vec<VcpuRegisters>, MachineError> {
        let told = match self.mode {
            _ if self.ended => Err(RegistersError::Ended),
            Mode::Tcg => registers::ask(&mut self.qmp, self.cpus),
            Mode::Det { .. } => Err(RegistersError::Det),
        };
        told.map_err(|error| refused("read the vCPUs' registers", error))
    }

    fn watch(&mut self, places: &[WatchPoint]) -> Result<(), MachineError> {
        let failed = |error| refused("watch guest memory for writes", error);
        let idle = matches!(self.debugger, Debugger::Idle(_));
        self.debugger.watch(&mut self.qmp, places).map_err(failed)?;
        if let (true, Debugger::Serving(gdb)) = (idle, &self.debugger) {
            self.ready
                .add(gdb.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0))
                .map_err(|e| refused("watch the debugger's socket", e))?;
        }
        Ok(())
    }

    fn device_state(&mut self) -> Result<Vec<u8>, MachineError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| MachineError {
            action: "take the state of the emulated devices".to_owned(),
            source: Some(source),
        };
        let file =
            self.state.as_ref().ok_or_else(|| failed("the machine was not started to be kept".into()))?;
        migration::give_out(&mut self.qmp, file.as_fd()).map_err(|error| failed(Box::new(error)))
    }

    fn kill(&mut self) {
        if self.ended {
            return;
        }
        self.killed = self.child.try_wait().is_none();
        self.child.kill();
        self.collect();
    }
}

fn refused(action: &str, source: impl std::error::Error + Send + Sync + 'static) -> MachineError {
    MachineError { action: action.to_owned(), source: Some(Box::new(source)) }
}

fn stopping(action: &str, outcome: std::io::Result<()>) -> Result<(), MachineError> {
    outcome.map_err(|source| MachineError {
        action: format!("{action} the emulator's process"),
        source: Some(Box::new(source)),
    })
}

/// Waits for the next event; `None` when `limit` has passed. For callers without an event loop.
pub fn wait_event(machine: &mut dyn Running, limit: Duration) -> Option<Event> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(event) = machine.next_event() {
            return Some(event);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        let timeout = nix::poll::PollTimeout::try_from(left).unwrap_or(nix::poll::PollTimeout::MAX);
        let mut fds = [nix::poll::PollFd::new(machine.event_fd(), nix::poll::PollFlags::POLLIN)];
        let _ = nix::poll::poll(&mut fds, timeout);
    }
}

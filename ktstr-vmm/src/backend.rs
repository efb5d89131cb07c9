//! Which backend runs a machine, and the moment between building it and letting it run.
//!
//! [`Ready::prepare`] does everything that needs the host (opening `/dev/kvm`, starting the emulator
//! child); then the process confines itself; then [`Ready::start`] lets the guest run.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ktstr_jail::{Confined, GuestThreads};

use crate::emulator::{EmulatorSpec, Origin, Prepared};
use crate::kvm::KvmMachine;
use crate::machine::{Devices, MachineError, MachineSpec, Running};
use crate::snapshot::{SnapshotFile, SnapshotFileError};

/// What runs the vCPUs.
#[derive(Clone, Debug)]
pub enum Backend {
    /// Hardware KVM.
    Kvm,
    /// The emulator.
    Emulator(EmulatorSpec),
}

/// A machine that has not run yet.
#[derive(Debug)]
pub enum Ready {
    /// Opened KVM.
    Kvm {
        /// `/dev/kvm`.
        kvm: OwnedFd,
        /// What to build.
        spec: Box<MachineSpec>,
        /// What it is to go on from.
        snapshot: Option<SnapshotFile>,
    },
    /// An emulator child with frozen vCPUs.
    Emulated(Box<Prepared>),
}

/// A running machine and the emulator's process, if there is one.
pub struct Started {
    /// The machine.
    pub machine: Box<dyn Running>,
    /// Process id of the emulator and its pidfd.
    pub emulator: Option<(u32, OwnedFd)>,
    /// What the emulator cannot be trusted with.
    pub weakness: Option<&'static str>,
}

impl Ready {
    /// Everything that still needs the host.
    pub fn prepare(backend: &Backend, spec: MachineSpec) -> Result<Ready, MachineError> {
        Self::prepare_from(backend, spec, Origin::Boot)
    }

    /// As [`Self::prepare`], with another beginning.
    pub fn prepare_from(backend: &Backend, spec: MachineSpec, origin: Origin) -> Result<Ready, MachineError> {
        match backend {
            Backend::Kvm => {
                let snapshot = match origin {
                    Origin::Boot | Origin::BootToKeep => None,
                    Origin::Snapshot(file) => Some(SnapshotFile::open(file, spec.memory).map_err(unusable)?),
                };
                let spec = MachineSpec { devices: attach(spec.devices)?, ..spec };
                let kvm =
                    std::fs::File::options().read(true).write(true).open("/dev/kvm").map_err(|source| {
                        MachineError {
                            action: "open /dev/kvm (is the module loaded, may this user open it?)".to_owned(),
                            source: Some(Box::new(source)),
                        }
                    })?;
                Ok(Ready::Kvm { kvm: kvm.into(), spec: Box::new(spec), snapshot })
            }
            Backend::Emulator(emulator) => {
                Ok(Ready::Emulated(Box::new(Prepared::spawn_from(spec, emulator, origin)?)))
            }
        }
    }

    /// Lets the guest run, which only a confined process may do.
    pub fn start(self, confined: &Confined) -> Result<Started, MachineError> {
        match self {
            Ready::Kvm { kvm, spec, snapshot } => {
                let threads = GuestThreads::of(confined).map_err(|source| MachineError {
                    action: "compile the filter of its threads".to_owned(),
                    source: Some(Box::new(source)),
                })?;
                let machine =
                    KvmMachine::start_from(kvm, *spec, snapshot, Some(threads)).map_err(|source| {
                        MachineError {
                            action: "start the machine on KVM".to_owned(),
                            source: Some(Box::new(source)),
                        }
                    })?;
                Ok(Started { machine: Box::new(machine), emulator: None, weakness: None })
            }
            Ready::Emulated(prepared) => {
                let machine = prepared.start()?;
                let pidfd = machine.pidfd().try_clone_to_owned().map_err(|source| MachineError {
                    action: "duplicate the emulator's pidfd".to_owned(),
                    source: Some(Box::new(source)),
                })?;
                let emulator = Some((machine.pid(), pidfd));
                let weakness = machine.weakness();
                Ok(Started { machine: Box::new(machine), emulator, weakness })
            }
        }
    }
}

fn unusable(source: SnapshotFileError) -> MachineError {
    MachineError { action: "use the snapshot".to_owned(), source: Some(Box::new(source)) }
}

/// How long the server of a device may take to answer. Whoever waits is a vCPU, which cannot be stopped then.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Connections with a limit, made while there are paths to connect to.
fn attach(devices: Devices) -> Result<Devices, MachineError> {
    let limited = |stream: UnixStream| -> std::io::Result<OwnedFd> {
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        Ok(stream.into())
    };
    let connected = |place: &OwnedFd| {
        UnixStream::connect(format!("/proc/self/fd/{}", place.as_raw_fd())).and_then(limited)
    };
    let attached = || -> std::io::Result<Devices> {
        let disk =
            devices.disk.map(|(socket, config)| Ok::<_, std::io::Error>((limited(socket.into())?, config)));
        let networks = devices.networks.iter().map(|(place, config)| Ok((connected(place)?, *config)));
        Ok(Devices { disk: disk.transpose()?, networks: networks.collect::<std::io::Result<_>>()? })
    };
    attached().map_err(|source| MachineError {
        action: "connect to the server of a disk or network".to_owned(),
        source: Some(Box::new(source)),
    })
}

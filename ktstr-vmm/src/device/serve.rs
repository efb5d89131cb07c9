//! The device process: one machine's disks and networks for one orchestrator.
//!
//! ```text
//! greeted ──Serve──► jailed ──► users' connections taken, Serving ──► serving ──socket closes──► exit
//!            └─► refused, exit
//! ```
//!
//! It outlives its users: whether a machine that has gone away was to go is the orchestrator's to know.
//! A panic in any of its threads ends it, so that nobody waits for a device that is not served.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use ktstr_jail::{Confined, JailError};
use ktstr_proto::channel::{Filled, Message};
use ktstr_proto::device::{DeviceLink, DeviceReply, DeviceRequest, Serve, Serving};
use ktstr_proto::link::{ErrorCode, Fds, MissingFd, RemoteError};
use ktstr_proto::run::Jail;
use ktstr_proto::{Channel, ChannelError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringRwLock};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::block::Block;
use super::net::Net;
use super::queues::{Disk, Faults};
use super::relay;
use crate::confine;

/// How long the orchestrator may take to introduce itself.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to say what is to be served.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

/// Why the process ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The conversation failed.
    #[error("talk to the orchestrator")]
    Channel {
        /// The reason.
        #[from]
        source: ChannelError,
    },
    /// Something else than what may be asked came.
    #[error("expected one request to serve devices, got {what}")]
    Unexpected {
        /// What came.
        what: String,
    },
    /// Waiting failed.
    #[error("wait for events")]
    Wait {
        /// The operating system's reason.
        #[source]
        source: nix::errno::Errno,
    },
}

/// Why devices are not served.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A descriptor is missing.
    #[error("serve devices")]
    Fd {
        /// Which.
        #[from]
        source: MissingFd,
    },
    /// This process could not be confined.
    #[error("enter the jail")]
    Jail {
        /// The reason.
        #[from]
        source: JailError,
    },
    /// A device cannot be made.
    #[error("make {device}")]
    Make {
        /// Which.
        device: String,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The vhost-user side cannot be set up.
    #[error("serve {device}: {reason}")]
    Daemon {
        /// Which.
        device: String,
        /// The reason.
        reason: String,
    },
}

impl Refused {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Fd { .. } => ErrorCode::BadRequest,
            Self::Jail { .. } => ErrorCode::Jail,
            Self::Make { .. } | Self::Daemon { .. } => ErrorCode::Infrastructure,
        }
    }
}

/// What is being served; dropping it ends that.
struct Served {
    _disk: Option<VhostUserDaemon<Arc<Disk>>>,
    _networks: Vec<VhostUserDaemon<Arc<Net>>>,
    faults: Arc<Faults>,
}

/// Serves one orchestrator until it closes the socket.
pub fn run(mut channel: Channel<DeviceLink>, jail: Jail) -> Result<(), DeviceError> {
    abort_on_panic();
    channel.handshake("ktstr-vmm device", HANDSHAKE_LIMIT)?;
    let (frame, fds) = match channel.receive(REQUEST_LIMIT)? {
        (Message::Request(frame), fds) => (frame, fds),
        (other, _) => return Err(DeviceError::Unexpected { what: format!("{other:?}") }),
    };
    let DeviceRequest::Serve(wanted) = frame.request;
    match confine_and_serve(&wanted, fds, jail) {
        Ok(served) => {
            channel.queue_reply(frame.id, Ok(DeviceReply::Serve(Serving)), Fds::default())?;
            until_closed(channel, &served)
        }
        Err(refused) => {
            let error = RemoteError::new(refused.code(), &refused);
            channel.queue_reply(frame.id, Err(error), Fds::default())?;
            Ok(channel.drain(HANDSHAKE_LIMIT)?)
        }
    }
}

/// The standard hook says what happened; then the process ends, not the thread alone.
fn abort_on_panic() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say(panic);
        std::process::abort();
    }));
}

fn confine_and_serve(wanted: &Serve, mut fds: Fds, jail: Jail) -> Result<Served, Refused> {
    let disk = match &wanted.disk {
        None => None,
        Some(disk) => {
            let (image, listener) = (fds.take(disk.image, "image")?, fds.take(disk.listener, "listener")?);
            // Looking at a file's size is over before the jail, where no file can be looked at.
            let block = Block::new(image.into(), &disk.config)
                .map_err(|source| Refused::Make { device: "the disk".into(), source })?;
            Some((block, listener, disk.config))
        }
    };
    let networks = wanted.networks.iter();
    let networks = networks.map(|network| {
        let door = UnixListener::from(fds.take(network.listener, "listener")?);
        let (inner, link) = (fds.take(network.inner, "inner")?, fds.take(network.link, "link")?);
        Ok((door, inner, UnixStream::from(link), network.config))
    });
    let networks: Vec<_> = networks.collect::<Result<_, MissingFd>>()?;
    let largest = disk.as_ref().map_or(0, |(block, ..)| block.bytes());
    let confined = confine::device_process(jail, largest)?;
    let faults =
        Faults::new().map_err(|source| Refused::Make { device: "the report of faults".into(), source })?;
    let memory = || GuestMemoryAtomic::new(GuestMemoryMmap::<()>::new());
    let disk = match disk {
        None => None,
        Some((block, listener, config)) => {
            let (device, memory) = ("the disk".to_owned(), memory());
            let made = Disk::new(block, &config, memory.clone(), faults.clone());
            let disk = Arc::new(made.map_err(|source| Refused::Make { device: device.clone(), source })?);
            let timer = (disk.timer(), Disk::TIMER);
            Some(daemon(&confined, device, disk, memory, listener, Some(timer))?)
        }
    };
    let networks = networks.into_iter().enumerate().map(|(index, (door, inner, link, config))| {
        let (device, memory) = (format!("network {index}"), memory());
        let net = Arc::new(Net::new(device.clone(), config, memory.clone(), faults.clone()));
        let served = daemon(&confined, device.clone(), net, memory, inner, None)?;
        relay::spawn(door, link).map_err(|source| Refused::Make { device, source })?;
        Ok(served)
    });
    let networks = networks.collect::<Result<_, Refused>>()?;
    Ok(Served { _disk: disk, _networks: networks, faults })
}

/// Takes the one connection of `listener`, waiting for it if it must, and serves `backend` on it.
fn daemon<T>(
    _confined: &Confined,
    device: String,
    backend: T,
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
    listener: OwnedFd,
    timer: Option<(i32, u64)>,
) -> Result<VhostUserDaemon<T>, Refused>
where
    T: VhostUserBackend<Bitmap = (), Vring = VringRwLock> + Clone + 'static,
{
    let refused = |reason: String| Refused::Daemon { device: device.clone(), reason };
    let mut daemon =
        VhostUserDaemon::new(device.clone(), backend, memory).map_err(|e| refused(e.to_string()))?;
    if let Some((fd, event)) = timer {
        for handler in daemon.get_epoll_handlers() {
            handler.register_listener(fd, EventSet::IN, event).map_err(|e| refused(e.to_string()))?;
        }
    }
    let mut listener = vhost::vhost_user::Listener::from(UnixListener::from(listener));
    daemon.start(&mut listener).map_err(|e| refused(e.to_string()))?;
    Ok(daemon)
}

fn until_closed(mut channel: Channel<DeviceLink>, served: &Served) -> Result<(), DeviceError> {
    loop {
        for event in served.faults.take() {
            channel.queue_event(&event, Fds::default())?;
        }
        let all_sent = channel.flush()?;
        match channel.fill()? {
            Filled::Eof => return Ok(()),
            Filled::WouldBlock => {}
            Filled::Data => {
                if let Some((message, _)) = channel.next_message()? {
                    return Err(DeviceError::Unexpected { what: format!("{message:?}") });
                }
                continue;
            }
        }
        let writing = if all_sent { PollFlags::empty() } else { PollFlags::POLLOUT };
        // SAFETY: the descriptor belongs to `channel`, which lives longer than the list.
        let socket = unsafe { BorrowedFd::borrow_raw(channel.as_raw_fd()) };
        let mut fds = [
            PollFd::new(socket, PollFlags::POLLIN | writing),
            PollFd::new(served.faults.bell(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(source) => return Err(DeviceError::Wait { source }),
        }
    }
}

//! The process that serves a machine's disks and networks: its sockets, its start.
//!
//! Each device has a listening socket, which goes to the device process. A disk's has one connection
//! waiting in it, whose other end goes to the VMM. A network's is opened by its user: the emulator
//! passes descriptors over sockets of its own making only, so the VMM gets the listener's place as a
//! descriptor. The path lies in a directory that nobody else can enter and is gone before anybody gets
//! an end.

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::OpenOptionsExt,
            net::{UnixListener, UnixStream},
        },
    },
};

use ktstr_proto::{
    ChannelError, Fds,
    device::{DeviceLink, DeviceRequest, Serve, ServeDisk, ServeNetwork},
    run::RunSpec,
    vmm::{AttachDisk, AttachNetwork},
};

use crate::children::{Child, SpawnError};

/// Why devices are not served.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// A socket cannot be made.
    #[error("make the socket between a device and its machine")]
    Socket(#[source] io::Error),
    /// The process cannot be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// It cannot be told what to serve.
    #[error("tell the device process what to serve")]
    Channel(#[from] ChannelError),
}

/// What the VMM is to be told of the devices.
pub struct Attached {
    /// The disk.
    pub disk: Option<AttachDisk>,
    /// The networks.
    pub networks: Vec<AttachNetwork>,
}

/// Whether a run has any.
pub fn wanted(spec: &RunSpec) -> bool {
    spec.disk.is_some() || !spec.networks.is_empty()
}

/// Starts the process; `fds` are those of the message to the VMM.
pub fn start(
    spec: &RunSpec,
    image: Option<OwnedFd>,
    log: Option<std::fs::File>,
    fds: &mut Fds,
) -> Result<(Child<DeviceLink>, Attached), DevicesError> {
    let mut own = Fds::default();
    let mut attached = Attached { disk: None, networks: Vec::new() };
    let mut serve = Serve { disk: None, networks: Vec::new() };
    if let (Some(config), Some(image)) = (spec.disk, image) {
        let (listener, user) = pair().map_err(DevicesError::Socket)?;
        let (image, listener) = (own.attach(image), own.attach(listener));
        serve.disk = Some(ServeDisk { image, listener, config });
        attached.disk = Some(AttachDisk { socket: fds.attach(user), config });
    }
    for config in &spec.networks {
        let (listener, user) = door().map_err(DevicesError::Socket)?;
        let (inner, link) = pair().map_err(DevicesError::Socket)?;
        let (listener, inner, link) = (own.attach(listener), own.attach(inner), own.attach(link));
        serve.networks.push(ServeNetwork { listener, inner, link, config: *config });
        attached.networks.push(AttachNetwork { socket: fds.attach(user), config: *config });
    }
    let mut child = Child::<DeviceLink>::spawn("ktstr-vmm", &["device"], log, spec.jail)?;
    child.channel.queue_hello("ktstr-orch")?;
    child.channel.queue_request(DeviceRequest::Serve(serve), own)?;
    child.channel.flush()?;
    Ok((child, attached))
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let directory = tempfile::Builder::new().prefix("ktstr-").tempdir()?;
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path)?;
    let user = UnixStream::connect(&path)?;
    Ok((listener.into(), user.into()))
}

/// A listener and its place, which can be connected to through the descriptor and by no name.
fn door() -> io::Result<(OwnedFd, OwnedFd)> {
    let directory = tempfile::Builder::new().prefix("ktstr-").tempdir()?;
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path)?;
    let place = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(&path)?;
    Ok((listener.into(), place.into()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_door_is_found_by_descriptor_alone() {
        let (listener, place) = door().unwrap();
        let listener = UnixListener::from(listener);
        let _user = UnixStream::connect(format!("/proc/self/fd/{}", place.as_raw_fd())).unwrap();
        listener.accept().unwrap();
    }
}

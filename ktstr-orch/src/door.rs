//! The socket through which observers come in while a run lasts.
//!
//! It has a name of the abstract kind, made of the run's id: nothing in a file system can be left
//! behind by whatever death, and no path is too long for it. Such names have no owner, so both sides
//! look at who the other one is: only the user whose run it is may look in.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
};

use ktstr_proto::{RunId, capture::door_name};
use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::geteuid,
};

/// A listening socket.
#[derive(Debug)]
pub struct Door {
    /// Ready when somebody wants in.
    pub listener: UnixListener,
}

impl Door {
    /// Listens for observers of a run.
    pub fn open(run: &RunId) -> io::Result<Self> {
        let address = SocketAddr::from_abstract_name(door_name(run))?;
        let listener = UnixListener::bind_addr(&address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// The next one who wants in and may; `WouldBlock` when there is none.
    pub fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (socket, _) = self.listener.accept()?;
            if getsockopt(&socket, PeerCredentials).is_ok_and(|peer| peer.uid() == geteuid().as_raw()) {
                return Ok(socket);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_no_obstacle_and_one_run_has_one_door() {
        let run = RunId(format!("{}-{}", "very_long_name".repeat(20), std::process::id()));
        let door = Door::open(&run).unwrap();
        assert!(Door::open(&run).is_err());
        let address = SocketAddr::from_abstract_name(door_name(&run)).unwrap();
        let _inside = UnixStream::connect_addr(&address).unwrap();
        assert!(door.accept().is_ok());
        assert_eq!(door.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(door);
        assert!(UnixStream::connect_addr(&address).is_err());
    }
}

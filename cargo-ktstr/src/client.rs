//! The conversation with an orchestrator: a private `ktstr-orch run`, or the
//! running one that `KTSTR_ORCH_SOCK` names.
//!
//! Dropping the connection ends a private orchestrator and with it the run.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use ktstr_orch::children::Child;
use ktstr_orch::session::pump;
use ktstr_proto::channel::Message;
use ktstr_proto::client::{Cancel, ClientEvent, ClientLink, Submit, Submitted};
use ktstr_proto::run::RunSpec;
use ktstr_proto::{Call, Channel, Fds, RunId};

use crate::exit::{Exit, coded};

/// A healthy orchestrator answers at once; a loaded host may need a while.
const PATIENCE: Duration = Duration::from_secs(20);

enum Peer {
    Own(Box<Child<ClientLink>>),
    Running(Channel<ClientLink>),
}

/// A connection over which one run is carried out.
pub struct Orchestrator {
    peer: Peer,
    /// Events that came before the reply to the submission.
    early: Vec<(ClientEvent, Fds)>,
}

impl Orchestrator {
    /// Connects, starting an orchestrator unless one is named.
    pub fn connect() -> anyhow::Result<Self> {
        let infrastructure = |error: anyhow::Error| coded(Exit::Infrastructure, error);
        let peer = match std::env::var_os("KTSTR_ORCH_SOCK") {
            Some(path) => {
                let path = PathBuf::from(path);
                let socket = UnixStream::connect(&path)
                    .with_context(|| {
                        format!("cannot reach the orchestrator at {} (KTSTR_ORCH_SOCK)", path.display())
                    })
                    .map_err(infrastructure)?;
                Peer::Running(Channel::new(socket, "ktstr-orch").map_err(|e| infrastructure(e.into()))?)
            }
            None => {
                let log = std::io::stderr().as_fd().try_clone_to_owned().ok().map(std::fs::File::from);
                let child =
                    Child::spawn_free("ktstr-orch", &["run"], log).map_err(|e| infrastructure(e.into()))?;
                Peer::Own(Box::new(child))
            }
        };
        let mut connected = Self { peer, early: Vec::new() };
        connected.channel().handshake("ktstr", PATIENCE).map_err(|e| infrastructure(e.into()))?;
        Ok(connected)
    }

    /// Asks for a run.
    pub fn submit(&mut self, spec: RunSpec) -> anyhow::Result<Submitted> {
        let mut early = Vec::new();
        let asked = self
            .channel()
            .call(Submit(spec), Fds::default(), PATIENCE, |event, fds| early.push((event, fds)));
        self.early = early;
        let (submitted, _) = asked.map_err(|e| coded(Exit::Infrastructure, e))?;
        Ok(submitted)
    }

    /// Asks to end the run; its report still follows.
    pub fn cancel(&mut self, run: &RunId) -> anyhow::Result<()> {
        let channel = self.channel();
        channel.queue_request(Cancel(run.clone()).into_request(), Fds::default())?;
        Ok(channel.drain(PATIENCE)?)
    }

    /// The next event that is there, without waiting.
    pub fn next_event(&mut self) -> anyhow::Result<Option<(ClientEvent, Fds)>> {
        if !self.early.is_empty() {
            return Ok(Some(self.early.remove(0)));
        }
        loop {
            match pump(self.channel()) {
                Ok(Some((Message::Event(event), fds))) => return Ok(Some((event, fds))),
                // The reply to a cancellation says nothing that the report does not.
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                Err(error) => return Err(coded(Exit::Infrastructure, error)),
            }
        }
    }

    fn channel(&mut self) -> &mut Channel<ClientLink> {
        match &mut self.peer {
            Peer::Own(child) => &mut child.channel,
            Peer::Running(channel) => channel,
        }
    }
}

impl AsFd for Orchestrator {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.peer {
            Peer::Own(child) => child.channel.as_fd(),
            Peer::Running(channel) => channel.as_fd(),
        }
    }
}

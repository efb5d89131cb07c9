//! Client (test binary, CLI) ↔ orchestrator. The same for `ktstr-orch run` and `ktstr-orch serve`.

use serde::{Deserialize, Serialize};

use crate::{
    capture::{CaptureTaken, NumberSet, Query, QueryAnswer, SetNumber, TakeCapture},
    guest::LogSource,
    link::{Link, calls},
    run::{RunId, RunSpec},
    verdict::RunReport,
    vmm::ConsoleSockets,
};

/// The link itself; the client asks, the orchestrator serves.
#[derive(Debug)]
pub struct ClientLink;

impl Link for ClientLink {
    const ID: u8 = 1;
    const NAME: &'static str = "client-orchestrator";
    type Request = ClientRequest;
    type Reply = ClientReply;
    type Event = ClientEvent;
}

calls! {
    /// What a client asks.
        ClientLink: ClientRequest => ClientReply {
        /// Carry out one run; [`ClientEvent::Finished`] ends it.
        Submit => Submitted,
        /// End a run early.
        Cancel => Cancelled,
        /// Ask something about the guest of a live run.
        Query => QueryAnswer,
        /// Read everything of a live run's guest while it stands.
        TakeCapture => CaptureTaken,
        /// Set a number in a BPF map of a live run.
        SetNumber => NumberSet,
    }
}

/// See [`ClientRequest::Submit`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submit(pub RunSpec);

/// The run exists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submitted {
    /// Its name.
    pub run_id: RunId,
    /// Its directory.
    pub run_dir: std::path::PathBuf,
    /// Runs before it in the queue.
    pub queued_behind: u32,
}

/// See [`ClientRequest::Cancel`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cancel(pub RunId);

/// The run will end; its report follows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cancelled;

/// What the orchestrator tells a client unasked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ClientEvent {
    /// A line for people: which accelerator and why, what is being done.
    Notice(String),
    /// Output of the guest's processes.
    Output {
        /// Whose.
        source: LogSource,
        /// The text as it came, with its line ends.
        text: String,
    },
    /// Kernel console bytes, for `--dmesg`.
    Console(Vec<u8>),
    /// The interactive console is ready.
    ConsoleReady(ConsoleSockets),
    /// The run is over.
    Finished(RunReport),
    /// What the run came to, while a second one looks into its crash: the same comes in [`Self::Finished`], with what
    /// that showed. Who loses the orchestrator meanwhile has the verdict.
    Held(RunReport),
}

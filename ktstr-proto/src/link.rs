//! What a link is, and how a request is tied to the one reply that may answer it.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// One conversation between two processes.
pub trait Link: std::fmt::Debug {
    /// Number in the frame header.
    const ID: u8;
    /// Name for errors.
    const NAME: &'static str;
    /// What the requesting side may ask.
    type Request: Serialize + DeserializeOwned + std::fmt::Debug;
    /// What the serving side may answer.
    type Reply: Serialize + DeserializeOwned + std::fmt::Debug;
    /// What the serving side may tell unasked.
    type Event: Serialize + DeserializeOwned + std::fmt::Debug;
}

/// A request type together with the only reply type that answers it.
pub trait Call: Sized {
    /// The link on which it is asked.
    type Link: Link;
    /// The type of the answer.
    type Reply;
    /// As the link's request enum.
    fn into_request(self) -> <Self::Link as Link>::Request;
    /// The answer, if the reply enum holds the right variant.
    fn from_reply(reply: <Self::Link as Link>::Reply) -> Option<Self::Reply>;
}

/// A request on the wire: the reply repeats the id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestFrame<R> {
    /// Chosen by the requester, unique per connection.
    pub id: u32,
    /// What is asked.
    pub request: R,
}

/// A reply on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplyFrame<R> {
    /// The id of the request that is answered.
    pub id: u32,
    /// The answer, or why there is none.
    pub result: Result<R, RemoteError>,
}

/// First frame in each direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Which executable speaks, for messages.
    pub who: String,
    /// Identifies the build; differing builds refuse each other.
    pub build: String,
    /// Process id of the speaker in its own namespace.
    pub pid: u32,
}

/// An error that crossed a process boundary. Codes are stable, the text is for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RemoteError {
    /// What kind of failure, for programs.
    pub code: ErrorCode,
    /// The whole chain of causes, for people.
    pub message: String,
}

impl RemoteError {
    /// Joins an error and its sources into one line.
    pub fn new(code: ErrorCode, error: &dyn std::error::Error) -> Self {
        Self { code, message: chain(error) }
    }
}

/// An error with all its sources, separated by `: `.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Stable failure codes. Append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorCode {
    /// The request makes no sense now or at all.
    BadRequest,
    /// Something the request needs does not exist or cannot be used here (kernel, accelerator, file).
    Unavailable,
    /// The environment failed (fork, memory, descriptor limits).
    Infrastructure,
    /// A file or image is damaged or of the wrong kind.
    BadInput,
    /// The jail could not be entered.
    Jail,
    /// It cannot be done yet: the same request may be answered in a while.
    NotYet,
}

/// Names a descriptor attached to the same frame: its position in the frame's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdSlot(pub u8);

/// The descriptors that came with a frame; each can be taken once, by the slot that names it.
#[derive(Debug, Default)]
pub struct Fds(Vec<Option<OwnedFd>>);

/// A message names a descriptor that did not come with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("message names descriptor {slot} for {field}, but {attached} came with it")]
pub struct MissingFd {
    /// The slot named.
    pub slot: u8,
    /// The message field that names it.
    pub field: &'static str,
    /// How many descriptors were attached.
    pub attached: usize,
}

impl Fds {
    /// Wraps the descriptors of one frame.
    pub fn new(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }

    /// Adds a descriptor to send and returns the slot that names it.
    pub fn attach(&mut self, fd: OwnedFd) -> FdSlot {
        self.0.push(Some(fd));
        FdSlot((self.0.len() - 1) as u8)
    }

    /// Takes the descriptor that `field` names.
    pub fn take(&mut self, slot: FdSlot, field: &'static str) -> Result<OwnedFd, MissingFd> {
        let attached = self.0.len();
        self.0.get_mut(usize::from(slot.0)).and_then(Option::take).ok_or(MissingFd {
            slot: slot.0,
            field,
            attached,
        })
    }

    /// Number of descriptors, taken ones included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none came.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn into_vec(self) -> Vec<OwnedFd> {
        self.0.into_iter().flatten().collect()
    }
}

/// Declares a link's request and reply enums from a list of `Request => Reply` pairs and implements
/// [`Call`] for each request, so that a request cannot be answered by another request's reply.
macro_rules! calls {
    ($(#[$meta:meta])* $link:ident: $request:ident => $reply:ident { $($(#[$vmeta:meta])* $name:ident => $answer:ident),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        pub enum $request { $($(#[$vmeta])* $name($name)),* }

        #[doc = concat!("The answers to [`", stringify!($request), "`], in the same order.")]
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        pub enum $reply { $(#[doc = concat!("Answers [`", stringify!($name), "`].")] $name($answer)),* }

        $(impl $crate::link::Call for $name {
            type Link = $link;
            type Reply = $answer;
            fn into_request(self) -> $request { $request::$name(self) }
            #[allow(irrefutable_let_patterns, clippy::allow_attributes, reason = "a link may have one call only")]
            fn from_reply(reply: $reply) -> Option<$answer> {
                if let $reply::$name(answer) = reply { Some(answer) } else { None }
            }
        })*
    };
}
pub(crate) use calls;

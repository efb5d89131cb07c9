//! A unix stream socket that carries framed messages and descriptors. The only file that touches a
//! socket; it works blocking (tests, clients, children) and inside a readiness loop.
//!
//! Refuses what the peer may not send: oversized frames, descriptors nobody announced, foreign
//! versions. A refused stream is closed by its owner; nothing after a refused frame is read.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout},
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    VERSION,
    codec::{self, CodecError, HEADER_LEN, Header, Kind, MAX_FDS},
    link::{Call, Fds, Hello, Link, RemoteError, ReplyFrame, RequestFrame},
};

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed.
    #[error("socket to {peer} failed while {action}")]
    Io {
        /// Who is at the other end.
        peer: &'static str,
        /// What was being done.
        action: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The other end is gone.
    #[error("{peer} closed the connection")]
    Closed {
        /// Who was at the other end.
        peer: &'static str,
    },
    /// Nothing came in time.
    #[error("{peer} did not answer within {waited:?}")]
    Timeout {
        /// Who is at the other end.
        peer: &'static str,
        /// How long was waited.
        waited: Duration,
    },
    /// What came is not this protocol.
    #[error("{peer} sent a frame that cannot be accepted")]
    Codec {
        /// Who is at the other end.
        peer: &'static str,
        /// What is wrong with it.
        #[source]
        source: CodecError,
    },
    /// The frame is well formed but out of place.
    #[error("{peer} sent {what}")]
    Unexpected {
        /// Who is at the other end.
        peer: &'static str,
        /// What came and what was expected.
        what: String,
    },
    /// The peer answered with an error.
    #[error("{peer} refused")]
    Refused {
        /// Who is at the other end.
        peer: &'static str,
        /// Its reason.
        #[source]
        source: RemoteError,
    },
}

/// One decoded frame of link `L`.
#[derive(Debug)]
pub enum Message<L: Link> {
    /// The peer introduces itself.
    Hello(Hello),
    /// The peer asks.
    Request(RequestFrame<L::Request>),
    /// The peer answers.
    Reply(ReplyFrame<L::Reply>),
    /// The peer tells.
    Event(L::Event),
}

struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// What reading from the socket brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// Bytes arrived.
    Data,
    /// Nothing to read now.
    WouldBlock,
    /// The peer closed its end.
    Eof,
}

/// Either end of a link.
pub struct Channel<L: Link> {
    socket: UnixStream,
    peer: &'static str,
    inbuf: Vec<u8>,
    in_fds: VecDeque<OwnedFd>,
    out: VecDeque<Outgoing>,
    eof: bool,
    next_id: u32,
    link: std::marker::PhantomData<fn() -> L>,
}

impl<L: Link> Channel<L> {
    /// Takes over a connected socket; it becomes non-blocking. `peer` names the other end in errors.
    pub fn new(socket: UnixStream, peer: &'static str) -> Result<Self, ChannelError> {
        socket.set_nonblocking(true).map_err(|source| ChannelError::Io {
            peer,
            action: "making it non-blocking",
            source,
        })?;
        Ok(Self {
            socket,
            peer,
            inbuf: Vec::new(),
            in_fds: VecDeque::new(),
            out: VecDeque::new(),
            eof: false,
            next_id: 1,
            link: std::marker::PhantomData,
        })
    }

    /// Takes the socket a child process inherits as [`crate::CHILD_SOCKET_FD`].
    pub fn inherited(peer: &'static str) -> Result<Self, ChannelError> {
        let fd = crate::CHILD_SOCKET_FD;
        if nix::sys::socket::getsockname::<nix::sys::socket::UnixAddr>(fd).is_err() {
            return Err(ChannelError::Unexpected {
                peer,
                what: format!(
                    "no socket on descriptor {fd}: this executable is started by another one, not by hand"
                ),
            });
        }
        // SAFETY: getsockname just showed that the descriptor is open and a unix socket, and by the
        // start-up contract nothing else in this process owns it.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        nix::fcntl::fcntl(&owned, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))
            .map_err(|e| ChannelError::Io { peer, action: "setting close-on-exec", source: e.into() })?;
        Self::new(owned.into(), peer)
    }

    /// Queues one frame; [`Self::flush`] sends it.
    fn queue<T: Serialize>(&mut self, kind: Kind, body: &T, fds: Fds) -> Result<(), ChannelError> {
        let peer = self.peer;
        let body = codec::encode(body).map_err(|source| ChannelError::Codec { peer, source })?;
        let fds = fds.into_vec();
        if fds.len() > MAX_FDS {
            return Err(ChannelError::Codec {
                peer,
                source: CodecError::TooManyFds { count: fds.len() as u8 },
            });
        }
        let header =
            Header { version: VERSION, link: L::ID, kind, length: body.len() as u32, fds: fds.len() as u8 };
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(&body);
        self.out.push_back(Outgoing { bytes, sent: 0, fds });
        Ok(())
    }

    /// Queues the introduction.
    pub fn queue_hello(&mut self, who: &str) -> Result<(), ChannelError> {
        let hello = Hello { who: who.into(), build: build_id().into(), pid: std::process::id() };
        self.queue(Kind::Hello, &hello, Fds::default())
    }

    /// Queues a request and returns the id its reply will carry.
    pub fn queue_request(&mut self, request: L::Request, fds: Fds) -> Result<u32, ChannelError> {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1).max(1);
        self.queue(Kind::Request, &RequestFrame { id, request }, fds)?;
        Ok(id)
    }

    /// Queues the answer to request `id`.
    pub fn queue_reply(
        &mut self,
        id: u32,
        result: Result<L::Reply, RemoteError>,
        fds: Fds,
    ) -> Result<(), ChannelError> {
        self.queue(Kind::Reply, &ReplyFrame { id, result }, fds)
    }

    /// Queues an event.
    pub fn queue_event(&mut self, event: &L::Event, fds: Fds) -> Result<(), ChannelError> {
        self.queue(Kind::Event, event, fds)
    }

    /// Bytes queued and not yet taken by the socket: the measure for back-pressure.
    pub fn backlog(&self) -> usize {
        self.out.iter().map(|o| o.bytes.len() - o.sent).sum()
    }

    /// Sends what the socket takes now; true when nothing is left.
    pub fn flush(&mut self) -> Result<bool, ChannelError> {
        while let Some(front) = self.out.front_mut() {
            let raw: Vec<RawFd> = front.fds.iter().map(AsRawFd::as_raw_fd).collect();
            let rights = [ControlMessage::ScmRights(&raw)];
            let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
            let iov = [io::IoSlice::new(&front.bytes[front.sent..])];
            match sendmsg::<()>(self.socket.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(n) => {
                    front.fds.clear();
                    front.sent += n;
                    if front.sent == front.bytes.len() {
                        self.out.pop_front();
                    }
                }
                Err(Errno::EAGAIN) => return Ok(false),
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => {
                    return Err(ChannelError::Closed { peer: self.peer });
                }
                Err(e) => {
                    return Err(ChannelError::Io { peer: self.peer, action: "sending", source: e.into() });
                }
            }
        }
        Ok(true)
    }

    /// Reads what has arrived.
    pub fn fill(&mut self) -> Result<Filled, ChannelError> {
        let peer = self.peer;
        let mut chunk = vec![0u8; 64 << 10];
        let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
        loop {
            let mut iov = [io::IoSliceMut::new(&mut chunk)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let got = match recvmsg::<()>(self.socket.as_raw_fd(), &mut iov, Some(&mut control), flags) {
                Ok(got) => got,
                Err(Errno::EAGAIN) => return Ok(Filled::WouldBlock),
                Err(Errno::EINTR) => continue,
                Err(Errno::ECONNRESET) => {
                    self.eof = true;
                    return Ok(Filled::Eof);
                }
                Err(e) => return Err(ChannelError::Io { peer, action: "receiving", source: e.into() }),
            };
            let truncated = got.flags.contains(MsgFlags::MSG_CTRUNC);
            let control = got.cmsgs().map_err(|e| ChannelError::Io {
                peer,
                action: "reading descriptors",
                source: e.into(),
            })?;
            for message in control {
                if let ControlMessageOwned::ScmRights(fds) = message {
                    // SAFETY: the kernel has just installed these descriptors for us alone.
                    self.in_fds.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            let n = got.bytes;
            if truncated || self.in_fds.len() > 2 * MAX_FDS {
                return Err(ChannelError::Unexpected {
                    peer,
                    what: "more descriptors than a frame may carry".into(),
                });
            }
            if n == 0 {
                self.eof = true;
                return Ok(Filled::Eof);
            }
            self.inbuf.extend_from_slice(&chunk[..n]);
            return Ok(Filled::Data);
        }
    }

    /// The next complete frame among what was read.
    pub fn next_message(&mut self) -> Result<Option<(Message<L>, Fds)>, ChannelError> {
        let peer = self.peer;
        let Some(first) = self.inbuf.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let wrap = |source| ChannelError::Codec { peer, source };
        let header = Header::decode(first).map_err(wrap)?;
        if header.link != L::ID {
            return Err(wrap(CodecError::WrongLink { found: header.link, expected: L::ID }));
        }
        let end = HEADER_LEN + header.length as usize;
        if self.inbuf.len() < end {
            return Ok(None);
        }
        if self.in_fds.len() < usize::from(header.fds) {
            let what = format!("a frame announcing {} descriptors with {}", header.fds, self.in_fds.len());
            return Err(ChannelError::Unexpected { peer, what });
        }
        let fds = Fds::new(self.in_fds.drain(..usize::from(header.fds)).collect());
        let body = &self.inbuf[HEADER_LEN..end];
        fn get<T: DeserializeOwned>(peer: &'static str, body: &[u8]) -> Result<T, ChannelError> {
            codec::decode(body).map_err(|source| ChannelError::Codec { peer, source })
        }
        let message = match header.kind {
            Kind::Hello => Message::Hello(get(peer, body)?),
            Kind::Request => Message::Request(get(peer, body)?),
            Kind::Reply => Message::Reply(get(peer, body)?),
            Kind::Event => Message::Event(get(peer, body)?),
        };
        self.inbuf.drain(..end);
        Ok(Some((message, fds)))
    }

    /// Whether the peer has closed its end.
    pub fn is_eof(&self) -> bool {
        self.eof
    }

    /// Blocks until everything queued is sent or `timeout` has passed.
    pub fn drain(&mut self, timeout: Duration) -> Result<(), ChannelError> {
        let start = Instant::now();
        while !self.flush()? {
            self.wait(PollFlags::POLLOUT, start, timeout)?;
        }
        Ok(())
    }

    /// Blocks until a frame has arrived.
    pub fn receive(&mut self, timeout: Duration) -> Result<(Message<L>, Fds), ChannelError> {
        let start = Instant::now();
        loop {
            if let Some(message) = self.next_message()? {
                return Ok(message);
            }
            if self.eof {
                return Err(ChannelError::Closed { peer: self.peer });
            }
            if self.fill()? == Filled::WouldBlock {
                self.wait(PollFlags::POLLIN, start, timeout)?;
            }
        }
    }

    fn wait(&self, what: PollFlags, start: Instant, timeout: Duration) -> Result<(), ChannelError> {
        let peer = self.peer;
        let Some(left) = timeout.checked_sub(start.elapsed()) else {
            return Err(ChannelError::Timeout { peer, waited: timeout });
        };
        let wait = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match nix::poll::poll(&mut [PollFd::new(self.socket.as_fd(), what)], wait) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(ChannelError::Io { peer, action: "waiting", source: e.into() }),
        }
    }

    /// Blocking start of a conversation: both sides say who they are; other builds are refused.
    pub fn handshake(&mut self, who: &str, timeout: Duration) -> Result<Hello, ChannelError> {
        self.queue_hello(who)?;
        self.drain(timeout)?;
        let (message, _) = self.receive(timeout)?;
        self.accept_hello(message)
    }

    /// Checks the peer's first frame.
    pub fn accept_hello(&self, message: Message<L>) -> Result<Hello, ChannelError> {
        let peer = self.peer;
        match message {
            Message::Hello(hello) if hello.build == build_id() => Ok(hello),
            Message::Hello(hello) => Err(ChannelError::Unexpected {
                peer,
                what: format!(
                    "build `{}` ({}), this is build `{}`: install all ktstr executables from one build",
                    hello.build,
                    hello.who,
                    build_id()
                ),
            }),
            _ => Err(ChannelError::Unexpected { peer, what: "another frame before its hello".into() }),
        }
    }

    /// Asks and blocks for the answer; events that arrive before it go to `on_event`.
    pub fn call<C: Call<Link = L>>(
        &mut self,
        call: C,
        fds: Fds,
        timeout: Duration,
        mut on_event: impl FnMut(L::Event, Fds),
    ) -> Result<(C::Reply, Fds), ChannelError> {
        let peer = self.peer;
        let start = Instant::now();
        let id = self.queue_request(call.into_request(), fds)?;
        self.drain(timeout)?;
        loop {
            let (message, fds) = self.receive(timeout.saturating_sub(start.elapsed()))?;
            match message {
                Message::Event(event) => on_event(event, fds),
                Message::Reply(reply) if reply.id == id => {
                    let reply = reply.result.map_err(|source| ChannelError::Refused { peer, source })?;
                    let reply = C::from_reply(reply).ok_or_else(|| ChannelError::Unexpected {
                        peer,
                        what: format!("another request's reply to {}", std::any::type_name::<C>()),
                    })?;
                    return Ok((reply, fds));
                }
                other => {
                    let what = format!("{other:?} while {} was open", std::any::type_name::<C>());
                    return Err(ChannelError::Unexpected { peer, what });
                }
            }
        }
    }
}

impl<L: Link> AsFd for Channel<L> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<L: Link> AsRawFd for Channel<L> {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Identifies in handshakes what messages this executable speaks: the version of this crate and a sum over its
/// sources (`build.rs`).
pub fn build_id() -> &'static str {
    env!("KTSTR_BUILD_ID")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::client::ClientLink;

    #[test]
    fn another_build_is_refused_by_name() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let channel = Channel::<ClientLink>::new(ours, "client").unwrap();
        let hello = |build: &str| Message::Hello(Hello { who: "old".into(), build: build.into(), pid: 1 });
        assert!(channel.accept_hello(hello(build_id())).is_ok());
        let error = channel.accept_hello(hello("0.1.0-0123456789abcdef")).unwrap_err().to_string();
        for part in ["build `0.1.0-0123456789abcdef` (old)", build_id(), "from one build"] {
            assert!(error.contains(part), "{error}");
        }
    }
}

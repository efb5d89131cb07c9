//! How the test process speaks to PID 1: both ends of the socket pair named by `KTSTR_GUEST_FD`.
//!
//! Each frame is a little-endian `u32` length and the encoded [`GuestFrame`]. [`Reporter`] is the
//! test's end; [`Inbox`] takes the bytes apart in PID 1, which stamps the time and forwards the frame
//! through the ring. A frame longer than the ring allows is refused at both ends. What the test
//! process is asked to do it reads itself, with [`crate::job::read_job`].

use std::{
    io::{Read, Write},
    os::{
        fd::{FromRawFd, RawFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use ktstr_proto::{
    codec,
    guest::{CHANNEL_ENV, GuestFrame, HostReply, HostRequest, SchedulerReply, SchedulerRequest},
    ring,
};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{SockType, getsockopt, sockopt},
};

/// Longest encoded frame; leaves room for the time PID 1 adds.
pub const MAX_REPORT: usize = ring::MAX_FRAME - 64;

/// Why the test process cannot report, or what it reported cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The process was not started by PID 1.
    #[error("{CHANNEL_ENV} is not set: this process was not started by ktstr's PID 1")]
    NotInGuest,
    /// The variable names no descriptor.
    #[error("{CHANNEL_ENV}=`{value}` names no stream socket")]
    NoSocket {
        /// Value of the variable.
        value: String,
    },
    /// The frame cannot be encoded.
    #[error("cannot encode a report to PID 1")]
    Encode {
        /// The encoder's reason.
        #[source]
        source: codec::CodecError,
    },
    /// The frame is longer than the ring takes.
    #[error("report to PID 1 of {length} bytes, the limit is {MAX_REPORT}")]
    TooLong {
        /// Length in bytes.
        length: usize,
    },
    /// PID 1 does not take it.
    #[error("cannot send a report of {length} bytes to PID 1")]
    Send {
        /// Length in bytes.
        length: usize,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// PID 1 does not answer.
    #[error("PID 1 gave no answer")]
    Answer {
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The bytes are no frame.
    #[error("report {number} of the test process is no frame")]
    Decode {
        /// How many frames came before it.
        number: u64,
        /// The decoder's reason.
        #[source]
        source: codec::CodecError,
    },
}

/// The test process's end. Frames of several threads do not mix.
#[derive(Debug, Clone)]
pub struct Reporter {
    stream: Option<Arc<Mutex<UnixStream>>>,
}

impl Reporter {
    /// The channel PID 1 left to this process; children of the process do not inherit it. To be
    /// called once: the descriptor is owned by what is returned.
    pub fn from_env() -> Result<Self, ReportError> {
        let value = std::env::var(CHANNEL_ENV).map_err(|_| ReportError::NotInGuest)?;
        let no_socket = || ReportError::NoSocket { value: value.clone() };
        let fd: RawFd = value.parse().ok().filter(|fd| *fd > 2).ok_or_else(no_socket)?;
        // SAFETY: the descriptor was opened for this purpose by the parent, which names it in the
        // variable; nothing else in this process knows its number, so nothing else owns it. Should
        // it be none at all, the next call fails and the value is forgotten, not closed.
        let stream = unsafe { UnixStream::from_raw_fd(fd) };
        let checked = getsockopt(&stream, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream)
            && fcntl(&stream, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).is_ok();
        if !checked {
            std::mem::forget(stream);
            return Err(no_socket());
        }
        Ok(Self::new(stream))
    }

    /// Reports through a given stream.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream: Some(Arc::new(Mutex::new(stream))) }
    }

    /// Tells nobody: there is no PID 1 of ktstr on a host.
    pub fn nobody() -> Self {
        Self { stream: None }
    }

    /// Sends one frame; waits while PID 1 is behind.
    pub fn send(&self, frame: &GuestFrame) -> Result<(), ReportError> {
        let body = codec::encode(frame).map_err(|source| ReportError::Encode { source })?;
        let length = body.len();
        if length > MAX_REPORT {
            return Err(ReportError::TooLong { length });
        }
        let mut bytes = (length as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&body);
        let Some(stream) = &self.stream else { return Ok(()) };
        let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.write_all(&bytes).map_err(|source| ReportError::Send { length, source })
    }
}

impl Reporter {
    /// Asks PID 1 for something and waits for its answer.
    pub fn ask(&self, request: SchedulerRequest) -> Result<SchedulerReply, ReportError> {
        self.exchange(&GuestFrame::Ask(request))
    }

    /// Asks the host for something and waits for its answer.
    pub fn ask_host(&self, request: HostRequest) -> Result<HostReply, ReportError> {
        static ASKED: AtomicU32 = AtomicU32::new(0);
        let id = ASKED.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1);
        self.exchange(&GuestFrame::AskHost { id, request })
    }

    /// One question and its answer; those of several threads come one after the other.
    fn exchange<T: serde::de::DeserializeOwned>(&self, question: &GuestFrame) -> Result<T, ReportError> {
        static ONE: Mutex<()> = Mutex::new(());
        let Some(stream) = &self.stream else { return Err(ReportError::NotInGuest) };
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        self.send(question)?;
        let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
        let mut take = |length: usize| {
            let mut bytes = vec![0; length];
            stream.read_exact(&mut bytes).map_err(|source| ReportError::Answer { source })?;
            Ok(bytes)
        };
        let head = take(4)?.try_into().unwrap_or([0; 4]);
        let length = u32::from_le_bytes(head) as usize;
        if length > MAX_REPORT {
            return Err(ReportError::TooLong { length });
        }
        codec::decode(&take(length)?).map_err(|source| ReportError::Decode { number: 0, source })
    }
}

/// The bytes of an answer, as [`Reporter::ask`] takes them.
pub fn answer<T: serde::Serialize>(reply: &T) -> Result<Vec<u8>, ReportError> {
    Ok(framed(&codec::encode(reply).map_err(|source| ReportError::Encode { source })?))
}

/// An answer that is encoded already.
pub fn framed(body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// PID 1's end: turns bytes into frames. After an error the rest is lost.
#[derive(Debug, Default)]
pub struct Inbox {
    buffer: Vec<u8>,
    taken: u64,
}

impl Inbox {
    /// Adds bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that do not yet make a frame.
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }

    /// The next whole frame.
    pub fn next_frame(&mut self) -> Result<Option<GuestFrame>, ReportError> {
        let Some((head, rest)) = self.buffer.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*head) as usize;
        if length > MAX_REPORT {
            return Err(ReportError::TooLong { length });
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let frame =
            codec::decode(body).map_err(|source| ReportError::Decode { number: self.taken, source })?;
        self.buffer.drain(..4 + length);
        self.taken += 1;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use ktstr_proto::guest::Phase;

    use super::*;

    #[test]
    fn frames_cross_in_order_however_the_bytes_are_cut() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let reporter = Reporter::new(ours);
        let sent = [
            GuestFrame::Phase(Phase::ScenarioStarted),
            GuestFrame::Stimulus { what: "cpuset of a halved".into(), iterations: 7 },
            GuestFrame::Phase(Phase::ScenarioEnded),
        ];
        for frame in &sent {
            reporter.send(frame).unwrap();
        }
        drop(reporter);
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).unwrap();
        for piece in [1, 3, bytes.len()] {
            let mut inbox = Inbox::default();
            let mut got = Vec::new();
            for chunk in bytes.chunks(piece) {
                inbox.push(chunk);
                while let Some(frame) = inbox.next_frame().unwrap() {
                    got.push(frame);
                }
            }
            assert_eq!(got, sent);
            assert_eq!(inbox.pending(), 0);
        }
    }

    #[test]
    fn a_lying_length_and_a_garbage_body_are_errors() {
        let mut inbox = Inbox::default();
        inbox.push(&(1_u32 << 30).to_le_bytes());
        assert!(matches!(inbox.next_frame(), Err(ReportError::TooLong { length }) if length == 1 << 30));
        let mut inbox = Inbox::default();
        inbox.push(&[2, 0, 0, 0, 0xff, 0xff]);
        assert!(matches!(inbox.next_frame(), Err(ReportError::Decode { number: 0, .. })));
    }

    #[test]
    fn a_frame_the_ring_would_refuse_is_refused_before_it_is_sent() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let what = "x".repeat(ring::MAX_FRAME);
        let refused = Reporter::new(ours).send(&GuestFrame::Stimulus { what, iterations: 0 });
        assert!(matches!(refused, Err(ReportError::TooLong { .. })));
    }
}

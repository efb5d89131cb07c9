//! The emulator's control protocol (QMP): lines of JSON over an inherited socket.
//!
//! [`Decoder`] turns bytes into messages and bounds a line before keeping it; [`Qmp`] asks one thing
//! at a time and keeps the events that arrive in between. A line it does not understand is an error,
//! an event it does not know is not: new versions add some.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

/// Longest line accepted. The answers we ask for have a few hundred bytes.
const MAX_LINE: usize = 1 << 20;

/// Why a shutdown happened, as far as the machine's outcome depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShutdownReason {
    /// The guest switched itself off.
    GuestShutdown,
    /// The guest reset itself.
    GuestReset,
    /// The guest reported a panic through a panic device.
    GuestPanic,
    /// `quit` was asked for.
    HostQuit,
    /// Anything else, in the emulator's words.
    Other(String),
}

/// What the emulator tells unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QmpEvent {
    /// The machine shuts down.
    Shutdown(ShutdownReason),
    /// The vCPUs stopped.
    Stop,
    /// The vCPUs go on.
    Resume,
    /// An event without meaning here.
    Ignored(String),
}

/// One message from the emulator.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// First line of a connection.
    Greeting,
    /// Answer to a command.
    Return {
        /// The number given with the command.
        id: Option<u64>,
        /// The value.
        value: Value,
    },
    /// A command was refused.
    Refused {
        /// The number given with the command.
        id: Option<u64>,
        /// The emulator's words.
        reason: String,
    },
    /// Told unasked.
    Event(QmpEvent),
}

/// Why the conversation failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The emulator closed the socket.
    #[error("the emulator closed its control socket while {command} was expected")]
    Closed {
        /// What was waited for.
        command: String,
    },
    /// No answer came.
    #[error("the emulator did not answer {command} within {} s", .waited.as_secs())]
    Timeout {
        /// What was waited for.
        command: String,
        /// How long.
        waited: Duration,
    },
    /// The emulator refused a command.
    #[error("the emulator refused {command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// Its words.
        reason: String,
    },
    /// A line is not JSON, or not of this protocol.
    #[error("the emulator sent a line that is no control message: `{line}`")]
    Garbage {
        /// The line, shortened.
        line: String,
    },
    /// A line does not end.
    #[error("the emulator sent more than {MAX_LINE} bytes without an end of line")]
    TooLong,
    /// The socket failed.
    #[error("use the emulator's control socket")]
    Socket {
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// Splits the byte stream into messages.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
}

impl Decoder {
    /// Adds bytes and returns the messages they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Message>, QmpError> {
        let mut messages = Vec::new();
        for chunk in bytes.split_inclusive(|b| *b == b'\n') {
            if self.pending.len() + chunk.len() > MAX_LINE {
                return Err(QmpError::TooLong);
            }
            self.pending.extend_from_slice(chunk);
            if chunk.ends_with(b"\n") {
                let line = std::mem::take(&mut self.pending);
                let line = line.trim_ascii();
                if !line.is_empty() {
                    messages.push(parse(line)?);
                }
            }
        }
        Ok(messages)
    }
}

fn parse(line: &[u8]) -> Result<Message, QmpError> {
    let garbage = || QmpError::Garbage { line: String::from_utf8_lossy(line).chars().take(200).collect() };
    let Value::Object(mut object) = serde_json::from_slice(line).map_err(|_| garbage())? else {
        return Err(garbage());
    };
    let id = object.get("id").and_then(Value::as_u64);
    if object.contains_key("QMP") {
        return Ok(Message::Greeting);
    }
    if let Some(value) = object.remove("return") {
        return Ok(Message::Return { id, value });
    }
    if let Some(error) = object.get("error") {
        let reason = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given").to_owned();
        return Ok(Message::Refused { id, reason });
    }
    let name = object.get("event").and_then(Value::as_str).ok_or_else(garbage)?;
    Ok(Message::Event(match name {
        "SHUTDOWN" => {
            let reason = object.get("data").and_then(|d| d.get("reason")).and_then(Value::as_str);
            QmpEvent::Shutdown(match reason.unwrap_or("unknown") {
                "guest-shutdown" => ShutdownReason::GuestShutdown,
                "guest-reset" => ShutdownReason::GuestReset,
                "guest-panic" => ShutdownReason::GuestPanic,
                "host-qmp-quit" => ShutdownReason::HostQuit,
                other => ShutdownReason::Other(other.to_owned()),
            })
        }
        "STOP" => QmpEvent::Stop,
        "RESUME" => QmpEvent::Resume,
        other => QmpEvent::Ignored(other.to_owned()),
    }))
}

/// A connection.
#[derive(Debug)]
pub struct Qmp {
    socket: UnixStream,
    decoder: Decoder,
    inbox: VecDeque<Message>,
    events: VecDeque<QmpEvent>,
    next_id: u64,
    closed: bool,
}

impl Qmp {
    /// Takes our end of the socket.
    pub fn new(socket: UnixStream) -> Result<Qmp, QmpError> {
        socket.set_nonblocking(true).map_err(|source| QmpError::Socket { source })?;
        Ok(Qmp {
            socket,
            decoder: Decoder::default(),
            inbox: VecDeque::new(),
            events: VecDeque::new(),
            next_id: 1,
            closed: false,
        })
    }

    /// Waits for the greeting and leaves the negotiation mode.
    pub fn handshake(&mut self, limit: Duration) -> Result<(), QmpError> {
        let deadline = Instant::now() + limit;
        while self.wait("the greeting", deadline, limit)? != Message::Greeting {}
        self.call("qmp_capabilities", limit).map(drop)
    }

    /// Asks for one command without arguments and waits for its answer.
    pub fn call(&mut self, command: &str, limit: Duration) -> Result<Value, QmpError> {
        self.call_with(command, json!({}), limit)
    }

    /// Asks for one command and waits for its answer.
    pub fn call_with(&mut self, command: &str, arguments: Value, limit: Duration) -> Result<Value, QmpError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        // A command is far smaller than a socket buffer and only one is under way: a short write
        // means that the peer stopped reading for good.
        match self.socket.write(line.as_bytes()) {
            Ok(n) if n == line.len() => {}
            Ok(_) => return Err(QmpError::Closed { command: command.to_owned() }),
            Err(e) if e.kind() == ErrorKind::BrokenPipe => {
                return Err(QmpError::Closed { command: command.to_owned() });
            }
            Err(source) => return Err(QmpError::Socket { source }),
        }
        let deadline = Instant::now() + limit;
        loop {
            match self.wait(command, deadline, limit)? {
                Message::Return { id: Some(found), value } if found == id => return Ok(value),
                Message::Refused { id: Some(found), reason } if found == id => {
                    return Err(QmpError::Refused { command: command.to_owned(), reason });
                }
                _ => {}
            }
        }
    }

    /// The next event, without blocking. After the socket's end, `None` for ever.
    pub fn next_event(&mut self) -> Result<Option<QmpEvent>, QmpError> {
        self.read_available()?;
        self.sort_events();
        Ok(self.events.pop_front())
    }

    /// Whether the emulator has closed the socket.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    fn sort_events(&mut self) {
        for message in std::mem::take(&mut self.inbox) {
            match message {
                Message::Event(event) => self.events.push_back(event),
                other => self.inbox.push_back(other),
            }
        }
    }

    fn wait(&mut self, command: &str, deadline: Instant, limit: Duration) -> Result<Message, QmpError> {
        loop {
            self.sort_events();
            if let Some(message) = self.inbox.pop_front() {
                return Ok(message);
            }
            if self.closed {
                return Err(QmpError::Closed { command: command.to_owned() });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(QmpError::Timeout { command: command.to_owned(), waited: limit });
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(QmpError::Socket { source: errno.into() }),
            }
            self.read_available()?;
        }
    }

    fn read_available(&mut self) -> Result<(), QmpError> {
        let mut buffer = [0; 4096];
        while !self.closed {
            match self.socket.read(&mut buffer) {
                Ok(0) => self.closed = true,
                Ok(n) => self.inbox.extend(self.decoder.feed(&buffer[..n])?),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => self.closed = true,
                Err(source) => return Err(QmpError::Socket { source }),
            }
        }
        Ok(())
    }
}

impl AsFd for Qmp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_recognised_however_the_bytes_are_cut() {
        let stream = concat!(
            r#"{"QMP": {"version": {"qemu": {"major": 10}}, "capabilities": []}}"#,
            "\r\n",
            r#"{"return": {}, "id": 1}"#,
            "\n\n",
            r#"{"timestamp": {"seconds": 1}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#,
            "\n",
            r#"{"event": "STOP"}"#,
            "\n",
            r#"{"event": "RESUME"}"#,
            "\n",
            r#"{"event": "RTC_CHANGE", "data": {}}"#,
            "\n",
            r#"{"id": 4, "error": {"class": "GenericError", "desc": "no"}}"#,
            "\n",
        );
        let expected = vec![
            Message::Greeting,
            Message::Return { id: Some(1), value: json!({}) },
            Message::Event(QmpEvent::Shutdown(ShutdownReason::GuestShutdown)),
            Message::Event(QmpEvent::Stop),
            Message::Event(QmpEvent::Resume),
            Message::Event(QmpEvent::Ignored("RTC_CHANGE".into())),
            Message::Refused { id: Some(4), reason: "no".into() },
        ];
        assert_eq!(Decoder::default().feed(stream.as_bytes()).unwrap(), expected);
        let mut decoder = Decoder::default();
        let single: Vec<Message> = stream.bytes().flat_map(|byte| decoder.feed(&[byte]).unwrap()).collect();
        assert_eq!(single, expected);
    }

    #[test]
    fn shutdown_reasons_are_told_apart() {
        let reason = |text: &str| {
            let line = format!("{{\"event\":\"SHUTDOWN\",\"data\":{{\"reason\":\"{text}\"}}}}\n");
            Decoder::default().feed(line.as_bytes()).unwrap().remove(0)
        };
        let event = |reason| Message::Event(QmpEvent::Shutdown(reason));
        assert_eq!(reason("guest-reset"), event(ShutdownReason::GuestReset));
        assert_eq!(reason("guest-panic"), event(ShutdownReason::GuestPanic));
        assert_eq!(reason("host-signal"), event(ShutdownReason::Other("host-signal".into())));
    }

    #[test]
    fn garbage_is_an_error() {
        for line in ["nonsense\n", "[]\n", "{}\n", "{\"event\": 3}\n", "\u{1}\n"] {
            let found = Decoder::default().feed(line.as_bytes());
            assert!(matches!(found, Err(QmpError::Garbage { .. })), "{line:?}: {found:?}");
        }
        let endless = vec![b'x'; MAX_LINE + 1];
        assert!(matches!(Decoder::default().feed(&endless), Err(QmpError::TooLong)));
    }

    #[test]
    fn a_silent_and_a_dead_emulator_are_told_apart() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut qmp = Qmp::new(ours).unwrap();
        let limit = Duration::from_millis(20);
        assert!(matches!(qmp.handshake(limit), Err(QmpError::Timeout { .. })));
        drop(theirs);
        assert!(matches!(qmp.call("stop", limit), Err(QmpError::Closed { .. })));
    }

    #[test]
    fn events_between_command_and_answer_are_kept() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut qmp = Qmp::new(ours).unwrap();
        theirs.write_all(b"{\"event\":\"STOP\"}\n{\"return\":7,\"id\":1}\n").unwrap();
        assert_eq!(qmp.call("stop", Duration::from_secs(1)).unwrap(), json!(7));
        assert_eq!(qmp.next_event().unwrap(), Some(QmpEvent::Stop));
        assert_eq!(qmp.next_event().unwrap(), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_messages_or_an_error(bytes: Vec<u8>) {
            let _ = Decoder::default().feed(&bytes);
        }
    }
}

//! The emulator's debugger interface, as far as watching memory for writes needs it.
//!
//! The GDB remote serial protocol (GDB manual, appendix E): `$text#checksum` packets, each acknowledged
//! with `+`. One command is under way at a time; a stop reply may come at any moment and is kept. The
//! socket is inherited by the emulator; its server is started when the first place is watched.
//!
//! The emulator stops all vCPUs when any byte but an awaited acknowledgement comes while they run: so
//! commands are given to a machine that stands, and the last of them, `c`, lets it run.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ktstr_proto::capture::WatchPoint;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Longest packet accepted; those that are asked for have some dozen bytes.
const MAX_PACKET: usize = 64 << 10;

/// Why the debugger interface failed.
#[derive(Debug, thiserror::Error)]
pub enum GdbError {
    /// The emulator closed the socket.
    #[error("the emulator closed its debugger socket while the answer to {command} was expected")]
    Closed {
        /// What was asked.
        command: String,
    },
    /// No answer came.
    #[error("the emulator did not answer the debugger command {command} within {} s", .waited.as_secs())]
    Timeout {
        /// What was asked.
        command: String,
        /// How long.
        waited: Duration,
    },
    /// The emulator refused.
    #[error("the emulator answered {answer:?} to the debugger command {command}")]
    Refused {
        /// What was asked.
        command: String,
        /// Its words.
        answer: String,
    },
    /// Bytes that belong to no packet, a wrong checksum, or a packet without end.
    #[error("the emulator broke the debugger protocol: {what}")]
    Broken {
        /// What is wrong.
        what: &'static str,
    },
    /// The socket failed.
    #[error("use the emulator's debugger socket")]
    Socket {
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// A vCPU has written to a watched place; all stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The place's first byte.
    pub kva: u64,
    /// Number of the vCPU.
    pub cpu: u32,
}

/// What the emulator says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Acknowledged,
    Packet(String),
}

/// Splits bytes into acknowledgements and packets.
#[derive(Debug, Default)]
struct Decoder {
    pending: Vec<u8>,
}

impl Decoder {
    fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Said>, GdbError> {
        let broken = |what| GdbError::Broken { what };
        let mut said = Vec::new();
        for &byte in bytes {
            match (self.pending.is_empty(), byte) {
                (true, b'+') => said.push(Said::Acknowledged),
                (true, b'$') => self.pending.push(byte),
                (true, _) => return Err(broken("a byte outside of a packet")),
                (false, _) if self.pending.len() >= MAX_PACKET => {
                    return Err(broken("a packet without end"));
                }
                (false, _) => {
                    self.pending.push(byte);
                    let end = self.pending.len().checked_sub(3).filter(|&at| self.pending[at] == b'#');
                    if let Some(end) = end {
                        let given = std::str::from_utf8(&self.pending[end + 1..]).ok();
                        let given = given.and_then(|sum| u8::from_str_radix(sum, 16).ok());
                        if given != Some(checksum(&self.pending[1..end])) {
                            return Err(broken("a wrong checksum"));
                        }
                        let text = String::from_utf8_lossy(&self.pending[1..end]).into_owned();
                        said.push(Said::Packet(text));
                        self.pending.clear();
                    }
                }
            }
        }
        Ok(said)
    }
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// `T05thread:02;watch:ffffffff82c0a1b0;`; `None` for a stop of another kind.
fn hit(stop: &str) -> Option<Hit> {
    let pairs = stop.strip_prefix('T')?.get(2..)?.split(';').filter_map(|pair| pair.split_once(':'));
    let (mut kva, mut cpu) = (None, None);
    for (key, value) in pairs {
        match key {
            "watch" | "awatch" => kva = u64::from_str_radix(value, 16).ok(),
            // Threads are numbered from 1.
            "thread" => cpu = u32::from_str_radix(value, 16).ok().and_then(|nth| nth.checked_sub(1)),
            _ => {}
        }
    }
    Some(Hit { kva: kva?, cpu: cpu? })
}

/// A connection whose server runs.
#[derive(Debug)]
pub struct Gdb {
    socket: UnixStream,
    decoder: Decoder,
    inbox: VecDeque<Said>,
    hits: VecDeque<Hit>,
    watched: Vec<WatchPoint>,
    closed: bool,
}

impl Gdb {
    /// Takes our end of the socket.
    pub fn new(socket: UnixStream) -> Result<Self, GdbError> {
        socket.set_nonblocking(true).map_err(|source| GdbError::Socket { source })?;
        let (inbox, hits) = (VecDeque::new(), VecDeque::new());
        Ok(Self { socket, decoder: Decoder::default(), inbox, hits, watched: Vec::new(), closed: false })
    }

    /// Whether anything is watched: then the machine is let run by [`Self::go_on`].
    pub fn is_watching(&self) -> bool {
        !self.watched.is_empty()
    }

    /// The watched place that begins there.
    pub fn place(&self, kva: u64) -> Option<WatchPoint> {
        self.watched.iter().copied().find(|place| place.kva == kva)
    }

    /// Watches exactly these places. The machine stands.
    pub fn watch(&mut self, places: &[WatchPoint], limit: Duration) -> Result<(), GdbError> {
        let command = |what: char, place: &WatchPoint| format!("{what}2,{:x},{:x}", place.kva, place.len);
        for place in std::mem::take(&mut self.watched) {
            match places.contains(&place) {
                true => self.watched.push(place),
                false => self.ask(&command('z', &place), limit)?,
            }
        }
        for place in places {
            if !self.watched.contains(place) {
                self.ask(&command('Z', place), limit)?;
                self.watched.push(*place);
            }
        }
        Ok(())
    }

    /// Lets the machine run; it stops again when a watched place is written.
    pub fn go_on(&mut self, limit: Duration) -> Result<(), GdbError> {
        // A stop that it has told already is answered while it stands: answering it later would stop it for good.
        self.read_available()?;
        self.sort_stops();
        self.send("c")?;
        self.wait("c", limit, |said| *said == Said::Acknowledged).map(drop)
    }

    /// The next write, without blocking.
    pub fn next_hit(&mut self) -> Result<Option<Hit>, GdbError> {
        self.read_available()?;
        self.sort_stops();
        Ok(self.hits.pop_front())
    }

    /// Whether the emulator has closed the socket.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    fn ask(&mut self, command: &str, limit: Duration) -> Result<(), GdbError> {
        self.send(command)?;
        let answer = self.wait(command, limit, |said| matches!(said, Said::Packet(_)))?;
        match answer {
            Said::Packet(text) if text == "OK" => Ok(()),
            Said::Packet(answer) => Err(GdbError::Refused { command: command.to_owned(), answer }),
            Said::Acknowledged => Ok(()),
        }
    }

    fn send(&mut self, text: &str) -> Result<(), GdbError> {
        self.put(format!("${text}#{:02x}", checksum(text.as_bytes())).as_bytes(), text)
    }

    fn put(&mut self, bytes: &[u8], command: &str) -> Result<(), GdbError> {
        // Far smaller than a socket buffer: a short write means that the peer stopped reading for good.
        match self.socket.write(bytes) {
            Ok(n) if n == bytes.len() => Ok(()),
            Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(GdbError::Socket { source: e }),
            Ok(_) | Err(_) => Err(GdbError::Closed { command: command.to_owned() }),
        }
    }

    fn wait(&mut self, command: &str, limit: Duration, is_it: fn(&Said) -> bool) -> Result<Said, GdbError> {
        let deadline = Instant::now() + limit;
        loop {
            self.sort_stops();
            while let Some(said) = self.inbox.pop_front() {
                if is_it(&said) {
                    return Ok(said);
                }
            }
            if self.closed {
                return Err(GdbError::Closed { command: command.to_owned() });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(GdbError::Timeout { command: command.to_owned(), waited: limit });
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(GdbError::Socket { source: errno.into() }),
            }
            self.read_available()?;
        }
    }

    /// Stops are told unasked; none of the answers begins like one.
    fn sort_stops(&mut self) {
        for said in std::mem::take(&mut self.inbox) {
            match &said {
                Said::Packet(text) if text.starts_with(['T', 'S']) => self.hits.extend(hit(text)),
                _ => self.inbox.push_back(said),
            }
        }
    }

    fn read_available(&mut self) -> Result<(), GdbError> {
        let mut buffer = [0; 4096];
        while !self.closed {
            match self.socket.read(&mut buffer) {
                Ok(0) => self.closed = true,
                Ok(n) => {
                    let said = self.decoder.feed(&buffer[..n])?;
                    // At once: a packet that is not acknowledged would be sent again.
                    for _ in said.iter().filter(|said| matches!(said, Said::Packet(_))) {
                        self.put(b"+", "+")?;
                    }
                    self.inbox.extend(said);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => self.closed = true,
                Err(source) => return Err(GdbError::Socket { source }),
            }
        }
        Ok(())
    }
}

impl AsFd for Gdb {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn packets_are_recognised_however_the_bytes_are_cut() {
        let stream = b"+$OK#9a+$T05thread:02;watch:ffffffff82c0a1b0;#f8";
        let stop = "T05thread:02;watch:ffffffff82c0a1b0;";
        let stream =
            [&stream[..stream.len() - 2], format!("{:02x}", checksum(stop.as_bytes())).as_bytes()].concat();
        let packet = |text: &str| Said::Packet(text.into());
        let expected = [Said::Acknowledged, packet("OK"), Said::Acknowledged, packet(stop)];
        assert_eq!(Decoder::default().feed(&stream).unwrap(), expected);
        let mut decoder = Decoder::default();
        let single: Vec<Said> = stream.iter().flat_map(|byte| decoder.feed(&[*byte]).unwrap()).collect();
        assert_eq!(single, expected);
    }

    #[test]
    fn a_write_names_place_and_cpu_and_other_stops_are_none() {
        assert_eq!(
            hit("T05thread:02;watch:ffffffff82c0a1b0;"),
            Some(Hit { kva: 0xffff_ffff_82c0_a1b0, cpu: 1 })
        );
        assert_eq!(hit("T05watch:1f;thread:0b;"), Some(Hit { kva: 0x1f, cpu: 10 }));
        for other in ["T02thread:01;", "S05", "T05thread:00;watch:10;", "T", "T05watch:zz;thread:1;"] {
            assert_eq!(hit(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_no_packet_is_an_error() {
        for bytes in [&b"x"[..], b"$OK#9b", b"$OK#zz"] {
            assert!(matches!(Decoder::default().feed(bytes), Err(GdbError::Broken { .. })), "{bytes:?}");
        }
        let endless = [b"$".as_slice(), &[b'x'; MAX_PACKET]].concat();
        assert!(matches!(Decoder::default().feed(&endless), Err(GdbError::Broken { .. })));
    }

    /// Another emulator than ours: it answers what it is told to.
    #[test]
    fn places_are_set_and_taken_away_and_stops_in_between_are_kept() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut gdb = Gdb::new(ours).unwrap();
        let place = |kva| WatchPoint { kva, len: 4 };
        let stop = "T05thread:01;watch:1000;";
        let stop = format!("${stop}#{:02x}", checksum(stop.as_bytes()));
        theirs.write_all(format!("+{stop}$OK#9a+$OK#9a").as_bytes()).unwrap();
        gdb.watch(&[place(0x1000), place(0x2000)], LIMIT).unwrap();
        assert!(gdb.is_watching());
        theirs.write_all(b"+$OK#9a+").unwrap();
        gdb.watch(&[place(0x2000)], LIMIT).unwrap();
        gdb.go_on(LIMIT).unwrap();
        let mut heard = vec![0; 4096];
        let len = theirs.read(&mut heard).unwrap();
        let heard = String::from_utf8_lossy(&heard[..len]).replace('+', "");
        assert_eq!(heard, "$Z2,1000,4#d9$Z2,2000,4#da$z2,1000,4#f9$c#63");
        assert_eq!(gdb.next_hit().unwrap(), Some(Hit { kva: 0x1000, cpu: 0 }));
        assert_eq!(gdb.next_hit().unwrap(), None);
        theirs.write_all(b"+$E22#a9").unwrap();
        assert!(matches!(gdb.watch(&[], LIMIT), Err(GdbError::Refused { .. })));
        drop(theirs);
        assert!(matches!(gdb.go_on(LIMIT), Err(GdbError::Closed { .. } | GdbError::Socket { .. })));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_packets_or_an_error(bytes: Vec<u8>) {
            let _ = Decoder::default().feed(&bytes);
        }
    }
}

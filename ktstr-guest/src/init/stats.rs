//! What the scheduler says of itself, asked over its socket right before a capture ([`ktstr_proto::scx_stats`]).
//!
//! ```text
//! scenario starts ─► first question, whose answer nobody gets: what a scheduler counts since the
//!                    question before it counts from here
//! boundary due ────► question ─► answer ─► SchedulerStats
//! test asks ───────► question ─► answer ─► SchedulerStats, then the test's own question
//! ```
//!
//! All of it by the guest's clock and one question at a time, over one connection as long as it lasts. Nothing here
//! waits: a scheduler that hangs, lies or talks without end costs a reason why there are no statistics.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use ktstr_proto::{
    guest::{GuestJob, GuestTask},
    scx_stats::{
        ANSWER_LIMIT_MS, MAX_STATS, MAX_TOTAL, MissingStatsReason, SOCKET, Stats, StatsOf, boundary,
    },
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde_json::Value;

/// The question.
const QUESTION: &[u8] = b"{\"req\":\"stats\",\"args\":{}}\n";
/// What surrounds statistics in an answer.
const MARGIN: usize = 4 << 10;
/// What is passed on of an error's words.
const MAX_WORDS: usize = 512;

/// An answer, and for which capture.
pub type Answer = (StatsOf, Stats);

/// A connection and what has come over it.
struct Connection {
    stream: UnixStream,
    got: Vec<u8>,
}

/// A question that is not answered yet; for nobody, if it only begins a series.
struct Underway {
    of: Option<StatsOf>,
    until_ms: u64,
}

/// Asks the scheduler.
pub struct SchedulerStats {
    path: PathBuf,
    /// Snapshots of the first scenario, and its length.
    wanted: (u32, Duration),
    began: bool,
    /// When the next ones are due.
    due: VecDeque<(u64, u32)>,
    waiting: VecDeque<Option<StatsOf>>,
    connection: Option<Connection>,
    underway: Option<Underway>,
    room: usize,
}

impl SchedulerStats {
    /// What a job wants.
    pub fn of(job: &GuestJob) -> Self {
        match &job.task {
            GuestTask::Test(test) => Self::new(test.snapshots, Duration::from_millis(test.duration_ms)),
            GuestTask::Exec(_) | GuestTask::Shell(_) => Self::new(0, Duration::ZERO),
        }
    }

    /// For so many snapshots of a scenario of this length.
    pub fn new(snapshots: u32, length: Duration) -> Self {
        Self {
            path: SOCKET.into(),
            wanted: (snapshots, length),
            began: false,
            due: VecDeque::new(),
            waiting: VecDeque::new(),
            connection: None,
            underway: None,
            room: MAX_TOTAL,
        }
    }

    /// A scenario begins; snapshots belong to the first one.
    pub fn scenario_began(&mut self, now_ms: u64) {
        let (count, length) = self.wanted;
        if std::mem::replace(&mut self.began, true) || count == 0 {
            return;
        }
        let due_ms = |nth| now_ms + boundary(nth, count, length).as_millis() as u64;
        self.due = (0..count).map(|nth| (due_ms(nth), nth)).collect();
        self.waiting.push_back(None);
    }

    /// A capture is about to be asked for.
    pub fn ask(&mut self, of: StatsOf) {
        self.waiting.push_back(Some(of));
    }

    /// Milliseconds until something is to be done, whatever comes over the connection.
    pub fn due_in(&self, now_ms: u64) -> Option<u64> {
        let at = match &self.underway {
            Some(underway) => Some(underway.until_ms),
            None if !self.waiting.is_empty() => Some(now_ms),
            None => self.due.front().map(|(at, _)| *at),
        };
        at.map(|at| at.saturating_sub(now_ms))
    }

    /// What is to be watched for bytes.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref().map(|connection| connection.stream.as_fd())
    }

    /// Does what can be done without waiting; `attached` is asked whether a scheduler is in charge.
    pub fn turn(&mut self, now_ms: u64, attached: impl Fn() -> bool) -> Vec<Answer> {
        while let Some((_, nth)) = self.due.pop_front_if(|(at, _)| *at <= now_ms) {
            self.waiting.push_back(Some(StatsOf::Snapshot(nth)));
        }
        let mut answers = Vec::new();
        loop {
            if let Some(Underway { of, until_ms }) = self.underway.take() {
                let Some(stats) = self.answer(now_ms >= until_ms) else {
                    self.underway = Some(Underway { of, until_ms });
                    return answers;
                };
                answers.extend(of.map(|of| (of, stats)));
            }
            let Some(of) = self.waiting.pop_front() else {
                self.listen();
                return answers;
            };
            let asked = if attached() { self.question() } else { Err(MissingStatsReason::NoScheduler) };
            match asked {
                Ok(()) => self.underway = Some(Underway { of, until_ms: now_ms + ANSWER_LIMIT_MS }),
                Err(why) => answers.extend(of.map(|of| (of, Err(why)))),
            }
        }
    }

    /// Whoever says something without being asked, or has gone, is not listened to any more.
    fn listen(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        match connection.stream.read(&mut [0]) {
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => {}
            Ok(_) | Err(_) => self.connection = None,
        }
    }

    fn question(&mut self) -> Result<(), MissingStatsReason> {
        self.listen();
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let stream = connected(&self.path)
                    .map_err(|why| MissingStatsReason::NoSocket { why: why.desc().to_owned() })?;
                self.connection.insert(Connection { stream, got: Vec::new() })
            }
        };
        connection.got.clear();
        match connection.stream.write(QUESTION) {
            Ok(written) if written == QUESTION.len() => Ok(()),
            Ok(_) | Err(_) => {
                self.connection = None;
                Err(MissingStatsReason::Cancelled)
            }
        }
    }

    /// What has come of a question; nothing yet, unless it is too late.
    fn answer(&mut self, late: bool) -> Option<Stats> {
        let Some(connection) = &mut self.connection else { return Some(Err(MissingStatsReason::Cancelled)) };
        let limit = MAX_STATS.min(self.room);
        let got = match connection.line(limit + MARGIN) {
            Ok(Some(line)) => understood(&line, limit),
            Ok(None) if !late => return None,
            Ok(None) => Err(MissingStatsReason::Late { limit_ms: ANSWER_LIMIT_MS }),
            Err(Broken::Closed) => Err(MissingStatsReason::Cancelled),
            Err(Broken::TooLong) => Err(MissingStatsReason::TooLarge { limit }),
        };
        match &got {
            Ok(stats) => self.room -= stats.len(),
            // What it says later would be taken for the next answer.
            Err(
                MissingStatsReason::Late { .. }
                | MissingStatsReason::Cancelled
                | MissingStatsReason::TooLarge { .. },
            ) => self.connection = None,
            Err(_) => {}
        }
        Some(got)
    }
}

enum Broken {
    Closed,
    TooLong,
}

impl Connection {
    /// A whole line, once it is there.
    fn line(&mut self, limit: usize) -> Result<Option<Vec<u8>>, Broken> {
        let mut piece = [0; 16 << 10];
        loop {
            if let Some(end) = self.got.iter().position(|byte| *byte == b'\n') {
                let line = self.got[..end].to_vec();
                self.got.drain(..=end);
                return Ok(Some(line));
            }
            if self.got.len() > limit {
                return Err(Broken::TooLong);
            }
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(Broken::Closed),
                Ok(read) => self.got.extend_from_slice(&piece[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken::Closed),
            }
        }
    }
}

/// A connection that never blocks: connecting fails where whoever listens does not accept.
fn connected(path: &Path) -> nix::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let own: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(own.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(own.into())
}

/// The statistics of an answer.
fn understood(line: &[u8], limit: usize) -> Stats {
    let missing = |why: String| MissingStatsReason::MissingResp { why: cut(why) };
    let mut answer: Value = serde_json::from_slice(line).map_err(|error| missing(error.to_string()))?;
    let errno = answer.get("errno").and_then(Value::as_i64);
    let resp = answer.pointer_mut("/args/resp").map(Value::take);
    match errno {
        None => Err(missing("no `errno`".into())),
        Some(0) => {
            let stats = resp.ok_or_else(|| missing("no `resp`".into()))?.to_string();
            if stats.len() > limit {
                return Err(MissingStatsReason::TooLarge { limit });
            }
            Ok(stats)
        }
        Some(errno) => {
            let errno = i32::try_from(errno).unwrap_or(i32::MAX);
            let args = resp.map_or_else(String::new, |resp| match resp {
                Value::String(words) => words,
                other => other.to_string(),
            });
            Err(MissingStatsReason::SchedulerError { errno, args: cut(args) })
        }
    }
}

fn cut(mut words: String) -> String {
    let end = (0..=words.len().min(MAX_WORDS)).rev().find(|end| words.is_char_boundary(*end));
    words.truncate(end.unwrap_or(0));
    words
}

#[cfg(test)]
mod tests;

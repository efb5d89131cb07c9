//! The one loop of PID 1: everything that may happen while something runs, in one `poll`.
//!
//! ```text
//! SIGCHLD ─► reap ──────────► who ended, kept until asked for
//! kernel log ───────────────► ScxDisabled
//! test's channel ───────────► its frames, as they are
//! scheduler's statistics ───► SchedulerStats, before the capture they belong to
//! pipes of the children ────► Log
//! ```
//!
//! Children are reaped first and read afterwards, so that all they wrote stands in the ring before
//! their end is acted upon. It takes no decision: [`super::scheduler`] and [`super::task`] do.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    process::Command,
};

use ktstr_proto::{
    guest::{
        BY_KERNEL, GuestFrame, HostRefusal, HostReply, HostRequest, Phase, ProcessEnd, SchedulerReply,
        SchedulerRequest,
    },
    link::chain,
    ring::RingError,
    scx_stats::StatsOf,
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{
    clock,
    kmsg::{Kmsg, SchedExt},
    outbox::Outbox,
    scheduler,
    stats::SchedulerStats,
    streams::Stream,
};
use crate::report::{self, Inbox};

/// How long the kernel's details may lag behind its `disabled`.
const DETAIL_MS: u64 = 50;
/// How often the host's signal is looked at.
const SIGNAL_MS: u64 = 100;
/// How often it is looked at while the test waits for an answer of the host, which waits for nothing else.
const ANSWER_MS: u64 = 2;
/// Most pieces taken from one source per turn, so that no source starves the others.
const PIECES: usize = 64;

/// Why the loop cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Child signals cannot be watched.
    #[error("cannot watch for the end of children")]
    Signals(#[source] Errno),
    /// The kernel log cannot be read.
    #[error("cannot follow the kernel log /dev/kmsg")]
    Kmsg(#[source] io::Error),
    /// Waiting failed.
    #[error("cannot wait for events")]
    Poll(#[source] Errno),
    /// Nothing can be said any more.
    #[error("cannot write to the ring")]
    Ring(#[source] RingError),
}

impl From<RingError> for WatchError {
    fn from(source: RingError) -> Self {
        Self::Ring(source)
    }
}

/// The kernel's word that it ended the scheduler.
#[derive(Debug)]
struct Disabled {
    name: String,
    reason: String,
    at_ms: u64,
}

/// Everything that is watched.
pub struct Watch {
    signals: SignalFd,
    kmsg: Kmsg,
    channel: Option<(UnixStream, Inbox)>,
    streams: Vec<Stream>,
    children: Vec<Pid>,
    ended: Vec<(Pid, ProcessEnd)>,
    asked: VecDeque<SchedulerRequest>,
    /// The question that the host has not answered yet, and its number.
    asked_host: Option<(u32, HostRequest)>,
    stats: SchedulerStats,
    /// A capture that the test wants, which waits for statistics.
    held: Option<(u32, HostRequest)>,
    unsaid: Option<Disabled>,
    disabled_at_ms: Option<u64>,
    /// Why it was disabled last.
    reason: Option<String>,
    /// The kernel took the scheduler away by itself, which may come back.
    sent_away: bool,
    look_at_once: bool,
}

/// The answer where the host cannot give one.
fn without_host(request: &HostRequest) -> HostReply {
    match request {
        HostRequest::Capture { .. } => Ok(String::new()),
        HostRequest::ReadMap { .. }
        | HostRequest::WriteMap { .. }
        | HostRequest::ReadKernel { .. }
        | HostRequest::WriteKernel { .. } => Err(HostRefusal {
            not_here: true,
            reason: "under det nothing on the host answers the guest or writes into its memory".into(),
        }),
    }
}

/// The signal that is taken from a descriptor instead of interrupting.
fn child_signal() -> SigSet {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask
}

impl Watch {
    /// Begins to watch for children and the kernel's words.
    pub fn new(kmsg: Kmsg, stats: SchedulerStats) -> Result<Self, WatchError> {
        let mask = child_signal();
        mask.thread_block().map_err(WatchError::Signals)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&mask, flags).map_err(WatchError::Signals)?;
        Ok(Self {
            signals,
            kmsg,
            channel: None,
            streams: Vec::new(),
            children: Vec::new(),
            ended: Vec::new(),
            asked: VecDeque::new(),
            asked_host: None,
            stats,
            held: None,
            unsaid: None,
            disabled_at_ms: None,
            reason: None,
            sent_away: false,
            look_at_once: false,
        })
    }

    /// Starts a child with no signal blocked: it inherits the mask, and a shell that never hears of
    /// its own children waits for ever. What ends meanwhile is found by the next turn.
    pub fn start(&mut self, command: &mut Command) -> io::Result<Pid> {
        self.look_at_once = true;
        child_signal().thread_unblock()?;
        let child = command.spawn();
        child_signal().thread_block()?;
        let pid = Pid::from_raw(child?.id().cast_signed());
        self.children.push(pid);
        Ok(pid)
    }

    /// Follows the output of a child.
    pub fn add_stream(&mut self, stream: Stream) {
        self.streams.push(stream);
    }

    /// Follows the test's channel, a non-blocking stream.
    pub fn set_channel(&mut self, stream: UnixStream) {
        self.channel = Some((stream, Inbox::default()));
    }

    /// How a started child ended, once; other processes are only reaped.
    pub fn take_end(&mut self, pid: Pid) -> Option<ProcessEnd> {
        let index = self.ended.iter().position(|(p, _)| *p == pid)?;
        Some(self.ended.swap_remove(index).1)
    }

    /// What the test asks for, once.
    pub fn take_request(&mut self) -> Option<SchedulerRequest> {
        self.asked.pop_front()
    }

    /// Answers the test. One that is gone needs no answer.
    pub fn answer(&mut self, out: &mut Outbox, reply: &SchedulerReply) -> Result<(), WatchError> {
        let bytes = report::answer(reply).map_err(|e| chain(&e));
        self.pass_on(out, bytes)
    }

    /// Passes the host's answer on, if it is there. Where the host may not write into the guest, a capture
    /// is taken when the host sees the question, and nothing else can be had.
    fn pass_host_answer(&mut self, out: &mut Outbox) -> Result<(), WatchError> {
        let answer = match &self.asked_host {
            None => return Ok(()),
            Some((id, _)) if out.listens() => out.host_answer(*id).map(|answer| Ok(report::framed(&answer))),
            Some((_, request)) => Some(report::answer(&without_host(request)).map_err(|e| chain(&e))),
        };
        let Some(answer) = answer else { return Ok(()) };
        self.asked_host = None;
        self.pass_on(out, answer)
    }

    fn pass_on(&mut self, out: &mut Outbox, bytes: Result<Vec<u8>, String>) -> Result<(), WatchError> {
        let Some((stream, _)) = &mut self.channel else { return Ok(()) };
        // The test waits for the answer and has room for it.
        let sent = bytes.and_then(|bytes| stream.write_all(&bytes).map_err(|e| e.to_string()));
        match sent {
            Ok(()) => Ok(()),
            Err(reason) => Ok(out.note(&format!("the test cannot be answered: {reason}"))?),
        }
    }

    /// When the kernel said last, in guest milliseconds, that it disabled the BPF scheduler.
    pub fn disabled_at_ms(&self) -> Option<u64> {
        self.disabled_at_ms
    }

    /// Whether the kernel took the scheduler away by itself, and it has not come back yet.
    pub fn is_sent_away(&self) -> bool {
        self.sent_away
    }

    /// Why it disabled a scheduler last, in its words.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Another scheduler begins, of which the kernel has said nothing yet.
    pub fn forget_reason(&mut self) {
        self.reason = None;
    }

    /// The scheduler is in charge again.
    pub fn forget_disabled(&mut self) {
        self.disabled_at_ms = None;
    }

    /// Passes on what stands in the kernel log, without waiting for more.
    pub fn hear_kernel_out(&mut self, out: &mut Outbox) -> Result<(), WatchError> {
        self.read_kernel_log(out)?;
        self.say_disabled(out, None)
    }

    /// Takes turns until `done` gives something or `limit_ms` have passed.
    pub fn until<T>(
        &mut self,
        out: &mut Outbox,
        limit_ms: u64,
        mut done: impl FnMut(&mut Self) -> Option<T>,
    ) -> Result<Option<T>, WatchError> {
        let until = clock::now_ms() + limit_ms;
        loop {
            if let Some(found) = done(self) {
                return Ok(Some(found));
            }
            let now = clock::now_ms();
            if now >= until {
                return Ok(None);
            }
            self.turn(out, Some(until - now))?;
        }
    }

    /// Waits for something, at most `limit_ms`, and passes on whatever is there.
    pub fn turn(&mut self, out: &mut Outbox, limit_ms: Option<u64>) -> Result<(), WatchError> {
        self.wait(out, limit_ms)?;
        let ended_before = self.ended.len();
        self.reap()?;
        self.read_kernel_log(out)?;
        self.read_channel(out)?;
        self.ask_scheduler(out)?;
        self.pass_host_answer(out)?;
        self.read_streams(out)?;
        let someone_ended = self.ended.len() > ended_before;
        if self.unsaid.as_ref().is_some_and(|d| someone_ended || clock::now_ms() >= d.at_ms + DETAIL_MS) {
            self.say_disabled(out, None)?;
        }
        Ok(())
    }

    fn wait(&mut self, out: &Outbox, limit_ms: Option<u64>) -> Result<(), WatchError> {
        let limits = [
            limit_ms,
            out.listens().then_some(SIGNAL_MS),
            self.asked_host.as_ref().map(|_| ANSWER_MS),
            self.stats.due_in(clock::now_ms()),
            self.unsaid.as_ref().map(|_| DETAIL_MS),
            std::mem::take(&mut self.look_at_once).then_some(0),
        ];
        let timeout = match limits.into_iter().flatten().min() {
            Some(ms) => PollTimeout::try_from(ms.min(60_000)).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.kmsg.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(self.channel.iter().map(|(c, _)| PollFd::new(c.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.stats.fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        fds.extend(self.streams.iter().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(source) => Err(WatchError::Poll(source)),
        }
    }

    /// Takes every child that ended, adopted ones included.
    fn reap(&mut self) -> Result<(), WatchError> {
        while self.signals.read_signal().map_err(WatchError::Signals)?.is_some() {}
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => self.note_end(pid, ProcessEnd::Exited(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    self.note_end(pid, ProcessEnd::Signaled(signal as i32));
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(source) => return Err(WatchError::Signals(source)),
            }
        }
    }

    fn note_end(&mut self, pid: Pid, end: ProcessEnd) {
        if let Some(index) = self.children.iter().position(|child| *child == pid) {
            self.children.swap_remove(index);
            self.ended.push((pid, end));
        }
    }

    fn read_kernel_log(&mut self, out: &mut Outbox) -> Result<(), WatchError> {
        while let Some(said) = self.kmsg.next().map_err(WatchError::Kmsg)? {
            match said {
                SchedExt::Enabled { .. } => {
                    self.say_disabled(out, None)?;
                    // Who starts a scheduler says so itself; this one did it without being told.
                    if std::mem::take(&mut self.sent_away) {
                        self.disabled_at_ms = None;
                        out.phase(Phase::SchedulerAttached)?;
                    }
                }
                SchedExt::Disabled { name, reason } => {
                    self.say_disabled(out, None)?;
                    self.sent_away = reason.starts_with(BY_KERNEL);
                    let at_ms = clock::now_ms();
                    self.disabled_at_ms = Some(at_ms);
                    self.unsaid = Some(Disabled { name, reason, at_ms });
                }
                SchedExt::Detail { name, text } => {
                    if self.unsaid.as_ref().is_some_and(|d| d.name == name) {
                        self.say_disabled(out, Some(&text))?;
                    } else {
                        out.note(&format!("kernel: sched_ext: {name}: {text}"))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Says what the kernel said, with the detail when there is one.
    fn say_disabled(&mut self, out: &mut Outbox, detail: Option<&str>) -> Result<(), WatchError> {
        if let Some(Disabled { reason, .. }) = self.unsaid.take() {
            let reason = detail.map_or(reason.clone(), |detail| format!("{reason}: {detail}"));
            self.reason = Some(reason.clone());
            out.send(GuestFrame::ScxDisabled { reason })?;
        }
        Ok(())
    }

    /// Passes the test's frames on. A channel that carries no frames is closed and said to be so.
    fn read_channel(&mut self, out: &mut Outbox) -> Result<(), WatchError> {
        let Some((stream, inbox)) = &mut self.channel else { return Ok(()) };
        let mut piece = [0; 16 << 10];
        for _ in 0..PIECES {
            match stream.read(&mut piece) {
                Ok(0) => {
                    let pending = inbox.pending();
                    self.channel = None;
                    if pending > 0 {
                        out.note(&format!(
                            "the test process ended within a report: {pending} bytes of it came"
                        ))?;
                    }
                    return Ok(());
                }
                Ok(n) => inbox.push(&piece[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.channel = None;
                    return Ok(out.note(&format!("the test's channel broke: {error}"))?);
                }
            }
            loop {
                match inbox.next_frame() {
                    Ok(Some(frame)) => {
                        match &frame {
                            GuestFrame::Ask(request) => self.asked.push_back(request.clone()),
                            GuestFrame::AskHost { id, request: request @ HostRequest::Capture { .. } }
                                if self.held.is_none() =>
                            {
                                self.held = Some((*id, request.clone()));
                                self.stats.ask(StatsOf::Question(*id));
                                continue;
                            }
                            GuestFrame::AskHost { id, request } => {
                                self.asked_host = Some((*id, request.clone()));
                            }
                            GuestFrame::Phase(Phase::ScenarioStarted) => {
                                self.stats.scenario_began(clock::now_ms());
                            }
                            _ => {}
                        }
                        out.send(frame)?;
                    }
                    Ok(None) => break,
                    Err(error) => {
                        self.channel = None;
                        return Ok(out.note(&chain(&error))?);
                    }
                }
            }
        }
        Ok(())
    }

    /// Passes on what the scheduler says of itself, and the capture that waited for it.
    fn ask_scheduler(&mut self, out: &mut Outbox) -> Result<(), WatchError> {
        for (of, stats) in self.stats.turn(clock::now_ms(), scheduler::is_enabled) {
            out.send(GuestFrame::SchedulerStats { of, stats })?;
            if let Some((id, request)) = self.held.take_if(|(id, _)| of == StatsOf::Question(*id)) {
                out.send(GuestFrame::AskHost { id, request: request.clone() })?;
                self.asked_host = Some((id, request));
            }
        }
        Ok(())
    }

    fn read_streams(&mut self, out: &mut Outbox) -> Result<(), WatchError> {
        for stream in &mut self.streams {
            for _ in 0..PIECES {
                let Some(text) = stream.next_piece() else { break };
                out.log(stream.source(), text)?;
            }
        }
        self.streams.retain(|stream| !stream.is_closed());
        Ok(())
    }
}

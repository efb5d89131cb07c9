//! What is to be done, what is under way, and what became of it: the state behind the errands of one run, which the
//! session moves on (`super`).

use std::{
    collections::VecDeque,
    path::PathBuf,
    time::{Duration, Instant},
};

use ktstr_proto::{
    capture::{Answer, CaptureTaken, Captured, PlaceWritten, Query},
    client::ClientReply,
    guest::HostRequest,
    link::RemoteError,
    registers::Registers,
    scx_stats::{MissingStatsReason, StatsOf},
    verdict::CaptureMark,
};

use crate::session::{
    asked,
    told::{self, Told},
};

/// How long the guest stands for a question, at most.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// How long it stands for a capture, at most. Some milliseconds are usual; a host may be slow.
const CAPTURE_LIMIT: Duration = Duration::from_secs(15);
/// How long it stands while all of its memory is written to a file, at most.
const VMCORE_LIMIT: Duration = Duration::from_secs(120);
/// Whoever waits for an answer: a connection of the server, and the number of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// The connection.
    pub connection: usize,
    /// Its request.
    pub request: u32,
}

/// An answer on its way out.
pub type Answered = (Asker, Result<ClientReply, RemoteError>);

/// Why a capture is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Somebody asked.
    Asked(Asker),
    /// The run was told to before it began.
    Planned,
    /// Something was seen that may not be seen again.
    Seen,
    /// The test asked, by this number.
    Test(u32),
    /// A watched place was written.
    Written,
}

/// Who wants something of a BPF map or of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueAsker {
    /// The test, by this number.
    Test(u32),
    /// Somebody who attached for writing.
    Client(Asker),
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Errand {
    Query {
        asker: Asker,
        query: Query,
    },
    Capture {
        cause: Cause,
        why: String,
        vmcore: bool,
        boundary: Option<Duration>,
        watched: Option<PlaceWritten>,
    },
    /// Something in a BPF map or in the kernel is read or written.
    Value {
        by: ValueAsker,
        request: HostRequest,
    },
}

impl Errand {
    pub(super) fn asker(&self) -> Option<Asker> {
        match self {
            Self::Query { asker, .. } => Some(*asker),
            Self::Capture { cause: Cause::Asked(asker), .. } => Some(*asker),
            Self::Value { by: ValueAsker::Client(asker), .. } => Some(*asker),
            Self::Capture { .. } | Self::Value { .. } => None,
        }
    }

    /// The number of the test's question that it answers.
    pub(super) fn test(&self) -> Option<u32> {
        match self {
            Self::Capture { cause: Cause::Test(id), .. } | Self::Value { by: ValueAsker::Test(id), .. } => {
                Some(*id)
            }
            Self::Capture { .. } | Self::Query { .. } | Self::Value { .. } => None,
        }
    }

    pub(super) fn freezes(&self) -> bool {
        match self {
            Self::Query { query, .. } => query.freeze,
            Self::Capture { .. } => true,
            // What is found may be freed before it is written.
            Self::Value { request, .. } => matches!(
                request,
                HostRequest::WriteMap { .. }
                    | HostRequest::ReadKernel { cold: true, .. }
                    | HostRequest::WriteKernel { cold: true, .. }
            ),
        }
    }

    /// Whether what the vCPUs were about to do is part of it.
    pub(super) fn wants_registers(&self) -> bool {
        matches!(self, Self::Capture { .. })
    }

    pub(super) fn limit(&self) -> Duration {
        match self {
            Self::Capture { vmcore: true, .. } => VMCORE_LIMIT,
            // The test fails when its answer does not come.
            Self::Capture { .. } | Self::Value { .. } => CAPTURE_LIMIT,
            Self::Query { .. } => READ_LIMIT,
        }
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::Query { .. } => "a question".into(),
            Self::Value { by: ValueAsker::Test(_), .. } => "what the test asked for".into(),
            Self::Value { .. } => "the write into a map".into(),
            Self::Capture { why, .. } => format!("the capture ({why})"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Stopping { request: u32 },
    Reading { request: u32, frozen: bool },
    Thawing { request: u32 },
}

/// What was found out so far.
#[derive(Debug)]
pub(super) enum Found {
    Answer(Answer),
    Captured { read: Captured, path: PathBuf },
    Written(String),
    Nothing(RemoteError),
}

#[derive(Debug)]
pub(super) struct Underway {
    pub(super) errand: Errand,
    pub(super) stage: Stage,
    pub(super) until: Instant,
    /// When the guest was found standing.
    pub(super) at: Option<Instant>,
    /// What the vCPUs' registers held then.
    pub(super) registers: Option<Registers>,
    pub(super) found: Option<Found>,
    pub(super) path: PathBuf,
}

/// Snapshots of a scenario: when each is due, and at which time of the scenario that is.
type Planned = VecDeque<(Instant, Duration)>;

/// Errands of one run.
#[derive(Debug, Default)]
pub(in crate::session) struct Errands {
    pub(super) waiting: VecDeque<Errand>,
    pub(super) underway: Option<Underway>,
    /// A reply of the monitor that was given up on.
    pub(super) late: Option<u32>,
    /// A capture whose files are being written while the guest runs again.
    pub(super) unwritten: Option<(Cause, CaptureTaken)>,
    /// A capture that was given up on is being written: its files are nobody's, and the word that they are
    /// written is not the next capture's.
    pub(super) late_files: bool,
    /// They were written before the guest ran again.
    pub(super) written: Option<Result<(), String>>,
    /// Captures begun: each has files of its own.
    pub(super) begun: u32,
    pub(super) automatic: u32,
    /// For the server to deliver.
    pub(in crate::session) answers: Vec<Answered>,
    /// When captures were asked for in advance, and how many there were of them.
    pub(super) planned: Planned,
    pub(super) nr_planned: u32,
    /// What the scheduler said before captures.
    pub(super) told: Told,
    /// When the first scenario began, moved on by the time the guest has stood since.
    pub(super) began: Option<Instant>,
    /// What became of captures.
    pub(super) marks: Vec<CaptureMark>,
    /// The guest's own time, where the host's says nothing of it (`det`).
    pub(super) guest: Option<GuestTime>,
}

/// The guest's own time: nanoseconds of `CLOCK_MONOTONIC` or what runs like it.
#[derive(Debug, Clone, Copy)]
pub(super) struct GuestTime {
    /// When the first scenario began.
    pub(super) began_ns: u64,
    /// The newest that is known.
    pub(super) now_ns: u64,
}

impl GuestTime {
    pub(super) fn since_began(self, at_ns: u64) -> i64 {
        let span = (i128::from(at_ns) - i128::from(self.began_ns)).div_euclid(1_000_000);
        i64::try_from(span).unwrap_or(i64::MAX)
    }
}

impl Errands {
    /// When something is due.
    pub(in crate::session) fn deadline(&self, observed: bool) -> Option<Instant> {
        // Where nobody observes nothing is taken, and waiting for it would be a busy loop.
        // What is due by the guest's time is due when the guest is heard of.
        let waits = observed && self.is_idle() && self.guest.is_none();
        let planned = self.planned.front().filter(|_| waits).map(|(at, _)| *at + self.patience());
        self.underway.as_ref().map(|underway| underway.until).into_iter().chain(planned).min()
    }

    /// What became of captures, those that came to nothing too.
    pub(in crate::session) fn marks(&self) -> Vec<CaptureMark> {
        self.marks.clone()
    }

    /// Milliseconds after the scenario's start; before it, negative ones.
    pub(super) fn scenario_ms(&self, at: Instant) -> i64 {
        if let Some(guest) = self.guest {
            return guest.since_began(guest.now_ns);
        }
        let Some(began) = self.began else { return 0 };
        let ms = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        at.checked_duration_since(began).map_or_else(|| -ms(began - at), ms)
    }

    /// How long after its time the first planned capture waits for what the scheduler says before it: not at all,
    /// once it is there.
    fn patience(&self) -> Duration {
        let left = u32::try_from(self.planned.len()).unwrap_or(u32::MAX);
        let first = StatsOf::Snapshot(self.nr_planned.saturating_sub(left));
        if self.told.awaits(first) { told::WAIT } else { Duration::ZERO }
    }

    /// Whether the first planned capture is due, and what the scheduler says before it is there, or too late.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let wait = self.patience();
        self.planned.front().is_some_and(|(at, boundary)| match self.guest {
            Some(guest) => {
                u128::from(guest.now_ns.saturating_sub(guest.began_ns)) >= (*boundary + wait).as_nanos()
            }
            None => *at + wait <= now,
        })
    }

    pub(super) fn mark(
        &mut self,
        cause: Cause,
        why: &str,
        at: Instant,
        boundary: Option<Duration>,
    ) -> &mut CaptureMark {
        let kind = match cause {
            Cause::Asked(_) => "asked",
            Cause::Planned => "periodic",
            Cause::Seen => "seen",
            Cause::Test(_) => "",
            Cause::Written => "watched",
        };
        let nth = self.marks.iter().filter(|mark| mark.tag.starts_with(kind)).count();
        let tag = match cause {
            Cause::Test(_) => asked::tag(why, self.marks.iter().map(|mark| mark.tag.as_str())),
            _ => format!("{kind}_{nth:03}"),
        };
        let stats = match cause {
            Cause::Planned => self.told.take(StatsOf::Snapshot(u32::try_from(nth).unwrap_or(u32::MAX))),
            Cause::Test(id) => self.told.take(StatsOf::Question(id)),
            Cause::Asked(_) | Cause::Seen | Cause::Written => Err(MissingStatsReason::DuringFreeze),
        };
        let mark = CaptureMark {
            tag,
            why: why.to_owned(),
            at_ms: self.scenario_ms(at),
            boundary_ms: boundary.map(|boundary| boundary.as_millis() as u64),
            stood_us: 0,
            file: Err("it was not taken".to_owned()),
            stats,
        };
        self.marks.push(mark);
        self.marks.last_mut().expect("it was just pushed")
    }

    /// The guest's clocks show this.
    pub(in crate::session) fn guest_time(&mut self, now_ns: Option<u64>) {
        if let (Some(guest), Some(now_ns)) = (&mut self.guest, now_ns) {
            guest.now_ns = guest.now_ns.max(now_ns);
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.underway.is_none()
            && self.unwritten.is_none()
            && self.late.is_none()
            && !self.late_files
            && self.waiting.is_empty()
    }

    /// Whether the guest stands, or may.
    pub(in crate::session) fn stands(&self) -> bool {
        self.underway.as_ref().is_some_and(|u| u.errand.freezes())
    }
}

//! A worker as the loops of the work types see it: its meter, its random choices, its place in its group
//! and the means by which members of a group wait for and wake each other.
//!
//! Who is about to wait says so on its own line; who wakes it puts the time there first. So a wake latency
//! runs from just before the wake to the run, also when one wake follows another before the woken one ran.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    sync::atomic::Ordering::SeqCst,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        eventfd::{EfdFlags, EventFd},
    },
    unistd::pipe2,
};

use super::{
    WorkType,
    board::{Board, GROUP_LINES, Line},
    burn::Burner,
    meter::Meter,
    not_run::NotRun,
    rng::Rng,
    sys,
};

/// Longest uninterrupted wait: a worker whose partner is gone looks at the stop flag this often.
pub(super) const WAIT_SLICE: Duration = Duration::from_millis(100);

/// What a loop returns: nothing, or why the work cannot be done on this machine.
pub(super) type Done = Result<(), NotRun>;

/// Which worker it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Among all of the workload.
    pub index: usize,
    /// Number of its group.
    pub group: usize,
    /// Place in the group.
    pub position: usize,
    /// Size of the group.
    pub size: usize,
}

impl Place {
    pub fn of(index: usize, size: usize) -> Self {
        Self { index, group: index / size, position: index % size, size }
    }
}

/// Descriptors that the members of a group share.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// A pipe to each member: its read and its write end.
    pub pipes: Vec<(OwnedFd, OwnedFd)>,
    /// An event counter of each producer.
    pub events: Vec<EventFd>,
    /// What waits for all of them.
    pub epoll: Option<Epoll>,
    /// A block device of the worker's own.
    pub disk: Option<File>,
}

impl Links {
    /// What a group of this work type needs.
    pub fn of(work_type: &WorkType) -> nix::Result<Self> {
        let mut links = Self { disk: super::kinds::own_disk(work_type), ..Self::default() };
        let pipes = match work_type {
            WorkType::PipeIo { .. } | WorkType::CachePipe { .. } => 2,
            WorkType::WakeChain { depth, wake: super::WakeMechanism::Pipe, .. } => *depth,
            _ => 0,
        };
        for _ in 0..pipes {
            links.pipes.push(pipe2(OFlag::O_CLOEXEC)?);
        }
        if let WorkType::EpollStorm { producers, .. } = work_type {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            for producer in 0..*producers {
                let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_SEMAPHORE;
                let event = EventFd::from_flags(flags)?;
                epoll.add(&event, EpollEvent::new(EpollFlags::EPOLLIN, u64::from(producer)))?;
                links.events.push(event);
            }
            links.epoll = Some(epoll);
        }
        Ok(links)
    }
}

/// A worker at work.
pub(super) struct Worker<'a> {
    pub meter: Meter<'a>,
    pub rng: Rng,
    pub burner: Burner,
    pub place: Place,
    pub links: &'a Links,
    pub board: &'a Board,
}

impl<'a> Worker<'a> {
    /// Whether it was told to stop.
    pub fn stopped(&self) -> bool {
        self.meter.stopped()
    }

    /// A line that all of the group share.
    pub fn line(&self, line: usize) -> &'a Line {
        debug_assert!(line < GROUP_LINES);
        self.board.group_line(self.place.group, line)
    }

    /// The line of a member of the group.
    pub fn member(&self, position: usize) -> &'a Line {
        self.board.member_line(self.place.group, position)
    }

    /// The next member of the group, the first after the last.
    pub fn next(&self) -> usize {
        (self.place.position + 1) % self.place.size
    }

    /// Computes so many steps, counted as work.
    pub fn compute(&mut self, steps: u64) {
        self.burner.compute(steps);
        self.meter.did(steps.div_ceil(super::burn::STEPS_PER_UNIT).max(1), 0);
    }

    /// Computes for so much CPU time, counted as work; what measuring costs is part of it.
    pub fn burst(&mut self, time: Duration) {
        // In slices, so that a long burst can be stopped and measured.
        const SLICE_NS: u64 = 2_000_000;
        let until = sys::cpu_ns() + time.as_nanos() as u64;
        loop {
            let now = sys::cpu_ns();
            if now >= until || self.stopped() {
                break;
            }
            let units = self.burner.burn_until(until.min(now + SLICE_NS));
            self.meter.did(units, 0);
            self.meter.checkpoint();
        }
    }

    /// Sleeps until a point of `CLOCK_MONOTONIC`; how late it woke is a wake latency. Sleeps in slices only
    /// to notice the stop flag.
    pub fn sleep_until(&mut self, deadline_ns: u64) {
        if sys::now_ns() >= deadline_ns {
            return;
        }
        self.meter.blocking(|| sys::sleep_until(deadline_ns));
        if sys::now_ns() >= deadline_ns {
            self.meter.woken(deadline_ns);
        }
    }

    /// Sleeps for so long.
    pub fn sleep(&mut self, time: Duration) {
        self.sleep_until(sys::now_ns() + time.as_nanos() as u64);
    }

    /// Waits until the word of `line` no longer holds `seen`; false when told to stop.
    pub fn wait_while(&mut self, line: &Line, seen: u32) -> bool {
        let own = self.member(self.place.position);
        own.stamp.store(0, SeqCst);
        own.waiting.store(1, SeqCst);
        let mut slept = false;
        while line.word.load(SeqCst) == seen {
            if self.stopped() {
                return false;
            }
            slept = self.meter.blocking(|| sys::futex_wait(&line.word, seen, WAIT_SLICE));
            self.meter.checkpoint();
        }
        own.waiting.store(0, SeqCst);
        if slept {
            self.meter.woken(own.stamp.load(SeqCst));
        }
        true
    }

    /// Waits once, no longer than `most`, for the word of `line` to become another than `seen`.
    pub fn await_change(&mut self, line: &Line, seen: u32, most: Duration) {
        let own = self.member(self.place.position);
        own.stamp.store(0, SeqCst);
        own.waiting.store(1, SeqCst);
        let slept = self.meter.blocking(|| sys::futex_wait(&line.word, seen, most));
        own.waiting.store(0, SeqCst);
        if slept {
            self.meter.woken(own.stamp.load(SeqCst));
        }
    }

    /// Waits on its own line until [`Self::call`] chooses it, for a moment at most, unless there is no need any more
    /// once it has said that it waits. The condition is the caller's to look at again. False when told to stop.
    ///
    /// `since` orders those that wait: who waits for the same thing for the second time keeps its place.
    pub fn wait_turn(&mut self, since: u64, needless: impl Fn() -> bool) -> bool {
        let own = self.member(self.place.position);
        own.word.store(0, SeqCst);
        own.stamp.store(0, SeqCst);
        own.value.store(since, SeqCst);
        own.waiting.store(1, SeqCst);
        if needless() {
            own.waiting.store(0, SeqCst);
            return !self.stopped();
        }
        self.meter.blocking(|| sys::futex_wait(&own.word, 0, WAIT_SLICE));
        own.waiting.store(0, SeqCst);
        // Also one that was stopped meanwhile, and then finds that it was called.
        self.meter.woken(own.stamp.load(SeqCst));
        self.meter.checkpoint();
        !self.stopped()
    }

    /// Wakes the one of these members that comes first by `order` and then has waited longest. Its latency counts from
    /// this wake, whoever runs before it.
    pub fn call(&self, among: std::ops::Range<usize>, order: impl Fn(usize) -> usize) {
        let waits = |position: &usize| self.member(*position).waiting.load(SeqCst) == 1;
        let key = |position: &usize| (order(*position), self.member(*position).value.load(SeqCst));
        let Some(chosen) = among.filter(waits).min_by_key(key) else { return };
        let line = self.member(chosen);
        if line.waiting.swap(0, SeqCst) == 1 {
            line.stamp.store(sys::now_ns(), SeqCst);
            line.word.store(1, SeqCst);
            sys::futex_wake(&line.word, 1);
        }
    }

    /// Puts the time on the line of a member that waits; to be called just before what wakes it.
    pub fn stamp(&self, position: usize) {
        let line = self.member(position);
        if line.waiting.swap(0, SeqCst) == 1 {
            line.stamp.store(sys::now_ns(), SeqCst);
        }
    }

    /// Stamps every other member.
    pub fn stamp_others(&self) {
        for position in (0..self.place.size).filter(|position| *position != self.place.position) {
            self.stamp(position);
        }
    }

    /// Changes the word of `line` and wakes at most `count` who wait for that.
    pub fn set_and_wake(&self, line: &Line, value: u32, count: u32) -> u32 {
        line.word.store(value, SeqCst);
        sys::futex_wake(&line.word, count)
    }

    /// Sends a byte to a member; false when told to stop.
    pub fn send_byte(&mut self, position: usize) -> bool {
        self.stamp(position);
        loop {
            match nix::unistd::write(self.links.pipes[position].1.as_fd(), &[1]) {
                Ok(_) => return true,
                Err(Errno::EINTR) if !self.stopped() => {}
                Err(_) => return false,
            }
        }
    }

    /// Waits for a byte; false when told to stop.
    pub fn receive_byte(&mut self) -> bool {
        let own = self.member(self.place.position);
        own.stamp.store(0, SeqCst);
        own.waiting.store(1, SeqCst);
        let pipe = self.links.pipes[self.place.position].0.as_fd();
        loop {
            if self.stopped() {
                return false;
            }
            match self.meter.blocking(|| nix::unistd::read(pipe, &mut [0])) {
                Ok(1) => break,
                Err(Errno::EINTR) => self.meter.checkpoint(),
                _ => return false,
            }
        }
        own.waiting.store(0, SeqCst);
        self.meter.woken(own.stamp.load(SeqCst));
        true
    }
}

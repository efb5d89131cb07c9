//! Making, starting, stopping and reaping the workers of one workload.
//!
//! ```text
//!  spawn ──▶ set up, parked ──start──▶ working ──stop flag + SIGUSR1──▶ finished, exited
//!                     │ dropped                     │ dies by itself                 │ not in time
//!                     ▼                             ▼                                ▼
//!                  killed                  Exited / Signaled                    killed: TimedOut
//! ```
//!
//! A worker is a forked process, a thread of a forked process that hosts all of one or several workloads,
//! or a thread of the calling process. A process that hosts several is ended by the last that is left. Forked ones die with the thread that made them, and what they fork dies with
//! them. Waiting for workers is bounded; nothing here waits for one that does not come. A thread of the
//! calling process that does not stop cannot be killed: it is reported, and left behind.

mod error;
mod first_iteration;
mod park;

use std::{
    fs::{self, File},
    io::{self, Read},
    ops::Range,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::Ordering::{Acquire, Relaxed, SeqCst},
    },
    time::{Duration, Instant},
};

use ktstr_proto::verdict::{WorkerExit, WorkerReport};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, getpid, pipe2, setpgid},
};

use super::{
    WorkType,
    board::Board,
    kinds::Siblings,
    life::{self, Birth, GIVE_UP, GO, PANICKED},
    report::report,
    sys,
    worker::{Links, Place},
};
use crate::attributes::{self, Attributes};

pub use error::WorkError;
pub use first_iteration::FIRST_ITERATION_TIMEOUT;

/// How long workers may take to stop, in guest time.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// The stop signal is repeated this often, for workers that were about to block when it came.
const STOP_REPEAT: Duration = Duration::from_millis(20);
/// How long workers may take until they are ready to start, in guest time. One that takes longer is
/// started all the same: that it gets no CPU is the scenario's finding.
const READY_TIMEOUT: Duration = Duration::from_secs(5);

fn system<T>(action: &'static str, result: nix::Result<T>) -> Result<T, WorkError> {
    result.map_err(|e| WorkError::System { action, source: e.into() })
}

/// Refuses a number of workers that cannot be divided into the groups that the work takes.
pub(crate) fn in_groups(work_type: &WorkType, workers: u32) -> Result<(), WorkError> {
    let group = work_type.group_size();
    match workers.is_multiple_of(group) {
        true => Ok(()),
        false => Err(WorkError::Group { work_type: work_type.name(), group, workers }),
    }
}

/// What a worker is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum CloneMode {
    /// A forked process each.
    #[default]
    Fork,
    /// A thread each of the calling process, and so in its cgroup.
    Thread,
    /// A thread each of one forked process, whose leader has this name (`task->comm` of the thread group).
    Pcomm(String),
}

/// What to start; by default one forked worker that spins.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkloadConfig {
    /// Number of workers.
    pub workers: u32,
    /// What each does.
    pub work_type: WorkType,
    /// Name of their cgroup, for reports.
    pub cgroup: String,
    /// CPUs the cgroup allows, ascending; empty when unrestricted; for reports.
    pub cpus_allowed: Vec<u32>,
    /// Seed of the workers' own choices.
    pub seed: u64,
    /// What each worker asks for itself, by worker; those beyond the end ask for nothing.
    pub attributes: Vec<Attributes>,
    /// Whether workers are processes or threads.
    pub mode: CloneMode,
    /// Whether [`WorkloadHandle::start`] returns only once each worker has done its first iteration.
    pub signal_first_iteration: bool,
    /// After how many iterations each worker parks: it sleeps until [`WorkloadHandle::release`] or its end.
    pub park_after_iterations: Option<u64>,
}

impl Default for WorkloadConfig {
    fn default() -> Self {
        Self {
            workers: 1,
            work_type: WorkType::default(),
            cgroup: String::new(),
            cpus_allowed: Vec::new(),
            seed: 0,
            attributes: Vec::new(),
            mode: CloneMode::Fork,
            signal_first_iteration: false,
            park_after_iterations: None,
        }
    }
}

/// A forked process and the workers of this workload in it.
struct Process {
    pid: Pid,
    workers: Range<usize>,
    /// How it ended; shared with the other workloads in it.
    end: Arc<Mutex<Option<WaitStatus>>>,
}

impl Process {
    fn new(pid: Pid, workers: Range<usize>) -> Self {
        Self { pid, workers, end: Arc::default() }
    }

    fn end(&self) -> Option<WaitStatus> {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> bool {
        self.end().is_some()
    }

    fn set_end(&self, status: WaitStatus) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    /// Whether it hosts other workloads that are still there.
    fn shared(&self) -> bool {
        Arc::strong_count(&self.end) > 1
    }
}

/// Workers. Dropping it ends them.
pub struct WorkloadHandle {
    config: Arc<WorkloadConfig>,
    board: Arc<Board>,
    processes: Vec<Process>,
    /// Each worker says here that it is ready, or what was refused.
    ready: Option<File>,
    /// Readable (at its end) once no worker holds the other end.
    alive: OwnedFd,
    started: Option<Instant>,
    siblings: Option<Siblings>,
}

impl WorkloadHandle {
    /// Makes the workers, parked.
    pub fn spawn(config: WorkloadConfig) -> Result<Self, WorkError> {
        let (mut handle, alive_write, ready) = Self::prepare(config)?;
        let (workers, group) = (handle.board.slots(), handle.config.work_type.group_size() as usize);
        match handle.config.mode.clone() {
            CloneMode::Fork => {
                let mut links = Vec::new();
                for index in 0..workers {
                    if index % group == 0 {
                        // Dropped here once the group before has its own copies.
                        links = vec![handle.links()?];
                    }
                    handle.fork(index, &links[0], &ready)?;
                }
            }
            CloneMode::Pcomm(comm) => host(std::slice::from_mut(&mut handle), &[ready], &comm)?,
            CloneMode::Thread => handle.threads(ready)?,
        }
        drop(alive_write);
        Ok(handle)
    }

    /// Makes workloads whose workers are threads of one process, parked. Each is started, stopped and
    /// collected on its own; the process ends with the last.
    pub fn spawn_sharing(configs: Vec<WorkloadConfig>) -> Result<Vec<Self>, WorkError> {
        let Some(CloneMode::Pcomm(comm)) = configs.first().map(|config| config.mode.clone()) else {
            return if configs.is_empty() { Ok(Vec::new()) } else { Err(WorkError::Unshared) };
        };
        if configs.iter().any(|config| config.mode != CloneMode::Pcomm(comm.clone())) {
            return Err(WorkError::Unshared);
        }
        let (mut handles, mut ends, mut ready) = (Vec::new(), Vec::new(), Vec::new());
        for config in configs {
            let (handle, alive_write, ready_write) = Self::prepare(config)?;
            handles.push(handle);
            ends.push(alive_write);
            ready.push(ready_write);
        }
        host(&mut handles, &ready, &comm)?;
        drop(ends);
        Ok(handles)
    }

    /// All but the workers, the end of the life pipe that they inherit, and where they say they are ready.
    fn prepare(config: WorkloadConfig) -> Result<(Self, OwnedFd, File), WorkError> {
        config.work_type.check()?;
        if config.workers == 0 {
            return Err(WorkError::NoWorkers);
        }
        in_groups(&config.work_type, config.workers)?;
        if config.mode == CloneMode::Thread && config.work_type.needs_own_process() {
            return Err(WorkError::Threads { work_type: config.work_type.name() });
        }
        park::check(&config)?;
        let board = Board::new(config.workers as usize, config.work_type.group_size() as usize)
            .map_err(|source| WorkError::System { action: "map memory for the workers' figures", source })?;
        let (alive, alive_write) = system("create the life pipe", pipe2(OFlag::O_CLOEXEC))?;
        let (ready, ready_write) = system("create the ready pipe", pipe2(OFlag::O_CLOEXEC))?;
        let handle = Self {
            config: Arc::new(config),
            board: Arc::new(board),
            processes: Vec::new(),
            ready: Some(ready.into()),
            alive,
            started: None,
            siblings: None,
        };
        ignore_wake_ups()?;
        Ok((handle, alive_write, File::from(ready_write)))
    }

    fn links(&self) -> Result<Links, WorkError> {
        system("make the descriptors of a group of workers", Links::of(&self.config.work_type))
    }

    fn all_links(&self) -> Result<Vec<Links>, WorkError> {
        (0..self.config.workers / self.config.work_type.group_size()).map(|_| self.links()).collect()
    }

    /// The birth of this workload's workers in a process whose parent is the calling one.
    fn birth<'a>(&'a self, ready: &'a File) -> Birth<'a> {
        Birth { board: &self.board, config: &self.config, parent: Some(getpid()), ready }
    }

    fn fork(&mut self, worker: usize, links: &Links, ready: &File) -> Result<(), WorkError> {
        let birth = self.birth(ready);
        let child = in_child(|| life::process(&birth, worker, links))?;
        self.processes.push(Process::new(child, worker..worker + 1));
        Ok(())
    }

    fn threads(&self, ready: File) -> Result<(), WorkError> {
        let group = self.config.work_type.group_size() as usize;
        let shared = Arc::new((self.all_links()?, ready));
        for index in 0..self.board.slots() {
            let (board, config, shared) = (self.board.clone(), self.config.clone(), shared.clone());
            let name = format!("{}-{index}", config.work_type.name());
            let run = move || {
                let (links, ready) = &*shared;
                let birth = Birth { board: &board, config: &config, parent: None, ready };
                life::thread(&birth, index, &links[index / group]);
            };
            std::thread::Builder::new()
                .name(name)
                .spawn(run)
                .map_err(|source| WorkError::System { action: "start a worker thread", source })?;
        }
        Ok(())
    }

    /// For how long they have been at work; `None` before their start.
    pub fn lived(&self) -> Option<Duration> {
        self.started.map(|started| started.elapsed())
    }

    /// Number of workers.
    pub fn workers(&self) -> usize {
        self.board.slots()
    }

    /// Processes to be placed in the workload's cgroup: one for each worker, the hosting one, or none when
    /// workers are threads of the calling process.
    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(|process| process.pid.as_raw() as u32).collect()
    }

    /// Thread ids, by worker; 0 for one that has not begun to set itself up.
    pub fn tids(&self) -> Vec<u32> {
        (0..self.workers()).map(|index| self.tid(index)).collect()
    }

    fn tid(&self, index: usize) -> u32 {
        match self.config.mode {
            CloneMode::Fork => self.processes.get(index).map_or(0, |process| process.pid.as_raw() as u32),
            _ => self.board.slot(index).tid.load(Relaxed),
        }
    }

    /// Waits until every worker has got what it asked for; the first refusal is the error.
    pub fn await_ready(&mut self) -> Result<(), WorkError> {
        let Some(mut pipe) = self.ready.take() else { return Ok(()) };
        let until = Instant::now() + READY_TIMEOUT;
        let (mut said, mut piece) = (String::new(), [0; 4096]);
        while said.lines().count() < self.workers() {
            let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now()));
            let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, left.unwrap_or(PollTimeout::ZERO)) {
                Err(Errno::EINTR) => continue,
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            match pipe.read(&mut piece) {
                Ok(0) => break,
                Ok(n) => said.push_str(&String::from_utf8_lossy(&piece[..n])),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let refusal = said.lines().find_map(|line| line.split_once(' '));
        match refusal {
            None => Ok(()),
            Some((worker, reason)) => Err(WorkError::Refused {
                worker: worker.parse().unwrap_or_default(),
                cgroup: self.config.cgroup.clone(),
                reason: reason.into(),
            }),
        }
    }

    /// Lets the parked workers go once all are ready, and waits for their first iterations where
    /// [`WorkloadConfig::signal_first_iteration`] says so. A second call lets nobody go.
    pub fn start(&mut self) -> Result<(), WorkError> {
        self.begin()?;
        self.first_iterations()
    }

    /// As [`Self::start`], without waiting for anybody's iterations.
    pub(crate) fn begin(&mut self) -> Result<(), WorkError> {
        self.await_ready()?;
        if self.started.is_none() {
            if let Some(first) = self.processes.first() {
                let made = Siblings::make(&self.config.work_type, first.pid.as_raw() as u32);
                let action = "make the sibling cgroups that the workers move through";
                self.siblings = Some(made.map_err(|source| WorkError::System { action, source })?);
            }
            self.started = Some(Instant::now());
            self.board.went_ns().store(sys::now_ns(), SeqCst);
            self.say(GO);
        }
        Ok(())
    }

    fn say(&self, word: u32) {
        self.board.go().store(word, SeqCst);
        sys::futex_wake(self.board.go(), u32::MAX);
    }

    /// Says that the workers' cgroup was frozen for so long; before it is thawed, so that they know when they run.
    pub fn was_frozen(&self, time: Duration) {
        self.board.frozen_ns().fetch_add(time.as_nanos() as u64, SeqCst);
    }

    /// Iterations of all workers so far.
    pub fn iterations(&self) -> u64 {
        self.board.iterations()
    }

    /// Says that phase `phase` of the scenario has begun; what workers do from now on counts into it.
    /// Phases from [`super::MAX_PHASES`] on count into the last.
    pub fn enter_phase(&self, phase: u32) {
        self.board.enter_phase(phase);
    }

    /// Every worker's figures as of its last checkpoint, while they work, without distributions. Those the
    /// kernel counts are up to 100 ms old.
    pub fn snapshot(&self) -> Vec<WorkerReport> {
        (0..self.workers()).map(|index| self.report(index, false)).collect()
    }

    /// Restricts one worker to some CPUs from now on.
    pub fn set_affinity(&self, worker: usize, cpus: &[u32]) -> Result<(), WorkError> {
        let tid = if worker < self.workers() { self.tid(worker) } else { u32::MAX };
        let action = "restrict a worker to some CPUs";
        system(action, attributes::set_affinity(tid, cpus))?;
        if self.config.work_type.has_threads() && self.reaches_threads() {
            // Those made since then have it from the worker.
            for thread in fs::read_dir(format!("/proc/{tid}/task")).into_iter().flatten().flatten() {
                let Some(thread) = thread.file_name().to_str().and_then(|name| name.parse().ok()) else {
                    continue;
                };
                match attributes::set_affinity(thread, cpus) {
                    // It ended meanwhile.
                    Err(Errno::ESRCH) => {}
                    other => system(action, other)?,
                }
            }
        }
        Ok(())
    }

    /// Whether what is done to a worker is done to the threads of its own, too: those of one process cannot be told apart.
    pub(crate) fn reaches_threads(&self) -> bool {
        !self.config.work_type.has_threads() || self.config.mode == CloneMode::Fork
    }

    /// Tells the workers to stop, without waiting; those that ended before are noted as dead.
    pub fn request_stop(&mut self) {
        self.reap();
        self.board.stop();
        self.wake_all();
    }

    /// Stops the workers, waits for them at most [`STOP_TIMEOUT`], kills the rest, and returns every
    /// worker's figures, by worker.
    pub fn stop_and_collect(mut self) -> Vec<WorkerReport> {
        self.end();
        (0..self.workers()).map(|index| self.report(index, true)).collect()
    }

    /// As [`Self::stop_and_collect`], with the CPUs each worker was seen on in each epoch up to `epochs`.
    pub(crate) fn stop_and_collect_places(mut self, epochs: usize) -> Vec<(WorkerReport, Vec<Vec<u32>>)> {
        self.end();
        let places = |index: usize| {
            (0..epochs as u32).map(|epoch| self.board.slot(index).cpus_used_in(epoch)).collect()
        };
        (0..self.workers()).map(|index| (self.report(index, true), places(index))).collect()
    }

    /// From now on the workers may use other CPUs, where the kernel has put them already. False where the record
    /// has no more room: then what they may use now is added to what they were allowed before.
    pub(crate) fn next_epoch(&self) -> bool {
        self.board.next_epoch()
    }

    fn end(&mut self) {
        if !self.board.stopped() {
            self.request_stop();
        }
        self.await_end(Instant::now() + STOP_TIMEOUT);
        self.reap_rest();
    }

    fn await_end(&mut self, deadline: Instant) {
        self.reap();
        while !self.all_ended() && Instant::now() < deadline {
            if self.wait_a_while() {
                // Descriptors close a moment before a process can be reaped.
                std::thread::sleep(Duration::from_millis(1));
            } else {
                self.wake_all();
            }
            self.reap();
        }
    }

    fn all_ended(&self) -> bool {
        let threads_gone = || self.board.left().load(SeqCst) == 0;
        match self.config.mode {
            CloneMode::Thread => threads_gone(),
            _ => {
                let over = |process: &Process| process.ended() || (process.shared() && threads_gone());
                self.processes.iter().all(over)
            }
        }
    }

    /// Whether the workers' own word is waited for, and not the end of their process.
    fn ends_by_threads(&self) -> bool {
        self.config.mode == CloneMode::Thread || self.processes.iter().any(Process::shared)
    }

    /// Waits for the end of all workers, at most [`STOP_REPEAT`]; whether they are gone.
    fn wait_a_while(&self) -> bool {
        if self.ends_by_threads() {
            let left = self.board.left();
            let seen = left.load(SeqCst);
            return seen != 0 && sys::futex_wait(left, seen, STOP_REPEAT);
        }
        let mut fds = [PollFd::new(self.alive.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(STOP_REPEAT).unwrap_or(PollTimeout::ZERO);
        matches!(poll(&mut fds, timeout), Ok(n) if n > 0)
    }

    /// Takes every worker out of what it blocks in, and out of the wait for the start.
    fn wake_all(&self) {
        if self.board.go().load(SeqCst) == 0 {
            self.say(GIVE_UP);
        }
        let own = getpid().as_raw() as u32;
        for index in 0..self.workers() {
            let slot = self.board.slot(index);
            let (tid, process) = (self.tid(index), self.process_of(index));
            let ended = process.is_some_and(Process::ended);
            if tid != 0 && !ended && !slot.gone.load(Acquire) {
                let tgid = process.map_or(own, |process| process.pid.as_raw() as u32);
                // It may just have ended.
                let _ = sys::signal_thread(tgid, tid, Signal::SIGUSR1 as i32);
            }
        }
    }

    fn process_of(&self, index: usize) -> Option<&Process> {
        self.processes.iter().find(|process| process.workers.contains(&index))
    }

    /// Collects processes that have ended, and ends what they have left.
    fn reap(&mut self) {
        for process in self.processes.iter().filter(|process| !process.ended()) {
            match waitpid(process.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => continue,
                Ok(status) => process.set_end(status),
                // Somebody else reaped it.
                Err(_) => process.set_end(WaitStatus::Exited(process.pid, -1)),
            }
            kill_group(process.pid);
        }
    }

    /// Collects all, killing those that have not ended and in which nobody else works.
    fn reap_rest(&mut self) {
        self.reap();
        for process in self.processes.iter().filter(|process| !process.ended() && !process.shared()) {
            kill_group(process.pid);
            let _ = kill(process.pid, Signal::SIGKILL);
            while matches!(waitpid(process.pid, None), Err(Errno::EINTR)) {}
            kill_group(process.pid);
            process.set_end(WaitStatus::StillAlive);
        }
        self.siblings = None;
    }

    /// How a worker ended, as far as is known.
    fn exit_of(&self, index: usize) -> WorkerExit {
        let slot = self.board.slot(index);
        if slot.panicked.load(Acquire) {
            return WorkerExit::Panicked;
        }
        if slot.finished.load(Acquire) {
            let expected = !slot.early.load(Relaxed) || slot.not_run.load(Acquire) != 0;
            return if expected { WorkerExit::Completed } else { WorkerExit::Exited { code: 0 } };
        }
        match self.process_of(index).map(Process::end) {
            Some(Some(WaitStatus::Exited(_, PANICKED))) => WorkerExit::Panicked,
            Some(Some(WaitStatus::Exited(_, code))) => WorkerExit::Exited { code },
            Some(Some(WaitStatus::Signaled(_, signal, _))) => WorkerExit::Signaled { signal: signal as i32 },
            _ if self.config.mode != CloneMode::Fork && slot.gone.load(Acquire) => {
                WorkerExit::Exited { code: 0 }
            }
            _ => WorkerExit::TimedOut,
        }
    }

    /// One worker's figures so far; with distributions, its histograms and phases, too.
    pub(super) fn report(&self, index: usize, with_distributions: bool) -> WorkerReport {
        let waited = self.lived().map_or(0, |lived| lived.as_nanos() as u64);
        let place = Place::of(index, self.config.work_type.group_size() as usize);
        let slot = self.board.slot(index);
        let mut report = report(slot, place, &self.config, self.exit_of(index), waited, with_distributions);
        report.tid = self.tid(index);
        let (began, seen) = (slot.began_ns.load(Relaxed), slot.seen_ns.load(Relaxed));
        if self.board.stopped() && report.exit == WorkerExit::TimedOut && began != 0 {
            // It was last seen then and has not come back: the gap that nobody else can report.
            let now = sys::now_ns();
            let gap = now.saturating_sub(seen);
            if gap > report.max_gap_ns {
                (report.max_gap_ns, report.max_gap_at_ns) = (gap, now.saturating_sub(began));
                (report.max_gap_moment.from_ns, report.max_gap_moment.to_ns) = (seen, now);
            }
        }
        report
    }
}

impl Drop for WorkloadHandle {
    fn drop(&mut self) {
        if self.ends_by_threads() && !self.all_ended() {
            self.request_stop();
            self.await_end(Instant::now() + STOP_TIMEOUT);
        }
        if self.config.mode != CloneMode::Thread {
            self.reap_rest();
        }
    }
}

/// Forks a process that lives `life`.
fn in_child(life: impl FnOnce()) -> Result<Pid, WorkError> {
    // SAFETY: the child runs worker code only and leaves through `_exit`; it takes no lock that
    // another thread of this process may hold (glibc makes the allocator usable after fork).
    match system("fork a worker", unsafe { fork() })? {
        ForkResult::Child => {
            life();
            // SAFETY: ends this forked process without running the parent's exit handlers.
            unsafe { nix::libc::_exit(PANICKED) }
        }
        ForkResult::Parent { child } => {
            // Both sides ask, so that it holds whoever runs first; one that has already ended is past it.
            let _ = setpgid(child, child);
            Ok(child)
        }
    }
}

/// Forks the one process of all these workloads, called `comm`.
fn host(handles: &mut [WorkloadHandle], ready: &[File], comm: &str) -> Result<(), WorkError> {
    let links = handles.iter().map(WorkloadHandle::all_links).collect::<Result<Vec<_>, _>>()?;
    let births: Vec<_> = handles.iter().zip(ready).map(|(handle, ready)| handle.birth(ready)).collect();
    let child = in_child(|| life::hosting(&births, comm, &links))?;
    let end: Arc<Mutex<Option<WaitStatus>>> = Arc::default();
    for handle in handles {
        let workers = 0..handle.workers();
        handle.processes.push(Process { pid: child, workers, end: end.clone() });
    }
    Ok(())
}

/// Ends what a worker has forked; there is nothing to end as a rule.
fn kill_group(leader: Pid) {
    let _ = kill(Pid::from_raw(-leader.as_raw()), Signal::SIGKILL);
}

/// Gives SIGUSR1 a handler that does nothing, so that it interrupts a blocking call. Forked workers
/// inherit it: one that never ran before the stop is not killed by the signal but found without progress.
fn ignore_wake_ups() -> Result<(), WorkError> {
    extern "C" fn wake_up(_: std::ffi::c_int) {}
    let action = SigAction::new(SigHandler::Handler(wake_up), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it is safe at any moment.
    system("install the stop signal", unsafe { sigaction(Signal::SIGUSR1, &action) }).map(drop)
}

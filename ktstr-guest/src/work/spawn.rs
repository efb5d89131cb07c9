//! Forking, starting, stopping and reaping the workers of one workload.
//!
//! ```text
//!  spawn ──▶ parked on the start pipe ──start──▶ working ──stop flag + SIGUSR1──▶ finished, exited
//!                     │ dropped                     │ dies by itself                 │ not in time
//!                     ▼                             ▼                                ▼
//!                  killed                  Exited / Signaled                    killed: TimedOut
//! ```
//!
//! A worker dies with its parent. Waiting for workers is bounded; nothing here waits for one that
//! does not come.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    sync::atomic::Ordering::{Acquire, Relaxed},
    time::{Duration, Instant},
};

use ktstr_proto::verdict::{WorkerExit, WorkerReport};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction, signal},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, getpid, getppid, gettid, pipe2},
};

use crate::attributes::{self, Attributes};

use super::{WorkType, board::Board, kinds::Partner, meter::Meter};

/// How long workers may take to stop, in guest time.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// The stop signal is repeated this often, for workers that were about to block when it came.
const STOP_REPEAT: Duration = Duration::from_millis(20);
/// How long workers may take until they are ready to start, in guest time. One that takes longer is
/// started all the same: that it gets no CPU is the scenario's finding.
const READY_TIMEOUT: Duration = Duration::from_secs(5);
/// Exit status of a worker whose code panicked.
const PANICKED: i32 = 101;

/// Why workers cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// The number of workers does not fit the kind of work.
    #[error("{work_type} works in groups of {group}: {workers} workers cannot be divided into such groups")]
    Group {
        /// Kind of work.
        work_type: &'static str,
        /// Workers in a group.
        group: u32,
        /// Workers asked for.
        workers: u32,
    },
    /// A worker cannot be what it should be.
    #[error("worker {worker} of cgroup `{cgroup}` cannot be set up as asked: it {reason}")]
    Refused {
        /// Which, from 0.
        worker: usize,
        /// Its cgroup.
        cgroup: String,
        /// What it asked for and why it was refused.
        reason: String,
    },
    /// The system refused.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

fn system<T>(action: &'static str, result: nix::Result<T>) -> Result<T, WorkError> {
    result.map_err(|e| WorkError::System { action, source: e.into() })
}

/// What to start.
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
}

/// Forked workers. Dropping it kills them.
pub struct WorkloadHandle {
    config: WorkloadConfig,
    board: Board,
    pids: Vec<Pid>,
    ends: Vec<Option<WorkerExit>>,
    start: Option<File>,
    /// Each worker says here that it is ready, or what was refused.
    ready: Option<File>,
    /// Readable (at its end) once no worker holds the other end.
    alive: OwnedFd,
    started: Option<Instant>,
}

impl WorkloadHandle {
    /// Forks the workers, parked.
    pub fn spawn(config: WorkloadConfig) -> Result<Self, WorkError> {
        let group = config.work_type.group_size();
        if !config.workers.is_multiple_of(group) {
            let work_type = config.work_type.name();
            return Err(WorkError::Group { work_type, group, workers: config.workers });
        }
        let board = Board::new(config.workers as usize)
            .map_err(|source| WorkError::System { action: "map memory for the workers' figures", source })?;
        let (start_read, start_write) = system("create the start pipe", pipe2(OFlag::O_CLOEXEC))?;
        let (alive, alive_write) = system("create the life pipe", pipe2(OFlag::O_CLOEXEC))?;
        let (ready, ready_write) = system("create the ready pipe", pipe2(OFlag::O_CLOEXEC))?;
        let mut start_write = Some(start_write);
        let mut handle = Self {
            board,
            pids: Vec::new(),
            ends: vec![None; config.workers as usize],
            start: None,
            ready: Some(ready.into()),
            alive,
            started: None,
            config,
        };
        ignore_wake_ups()?;
        let parent = getpid();
        let mut partners = Vec::new();
        for index in 0..handle.config.workers as usize {
            if partners.is_empty() {
                partners = partner_ends(group)?;
            }
            // The last of the group first, so that popping serves the leader first.
            let partner = partners.pop();
            // SAFETY: the child runs worker code only and leaves through `_exit`; it takes no lock that
            // another thread of this process may hold (glibc makes the allocator usable after fork).
            match system("fork a worker", unsafe { fork() })? {
                ForkResult::Child => {
                    drop(start_write.take());
                    partners.clear();
                    let _life = alive_write;
                    let pipes = (start_read.into(), ready_write.into());
                    live(&handle.board, index, &handle.config, parent, pipes, partner);
                }
                ForkResult::Parent { child } => handle.pids.push(child),
            }
        }
        handle.start = start_write.map(File::from);
        Ok(handle)
    }

    /// Process ids, by worker.
    pub fn pids(&self) -> Vec<u32> {
        self.pids.iter().map(|pid| pid.as_raw() as u32).collect()
    }

    /// Waits until every worker has got what it asked for; the first refusal is the error.
    pub fn await_ready(&mut self) -> Result<(), WorkError> {
        let Some(mut pipe) = self.ready.take() else { return Ok(()) };
        let until = Instant::now() + READY_TIMEOUT;
        let (mut said, mut piece) = (String::new(), [0; 4096]);
        while said.lines().count() < self.pids.len() {
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

    /// Lets the parked workers go once all are ready; a second call does nothing.
    pub fn start(&mut self) -> Result<(), WorkError> {
        self.await_ready()?;
        if let Some(mut pipe) = self.start.take() {
            self.started = Some(Instant::now());
            pipe.write_all(&vec![1; self.pids.len()])
                .map_err(|source| WorkError::System { action: "start the workers", source })?;
        }
        Ok(())
    }

    /// Iterations of all workers so far.
    pub fn iterations(&self) -> u64 {
        self.board.iterations()
    }

    /// Every worker's figures as of its last checkpoint, while they work. Run delay and the number of
    /// times it was run are known at the end only.
    pub fn snapshot(&self) -> Vec<WorkerReport> {
        (0..self.pids.len()).map(|index| self.report(index)).collect()
    }

    /// Restricts one worker to some CPUs from now on.
    pub fn set_affinity(&self, worker: usize, cpus: &[u32]) -> Result<(), WorkError> {
        let pid = self.pids.get(worker).map_or(u32::MAX, |pid| pid.as_raw() as u32);
        system("restrict a worker to some CPUs", attributes::set_affinity(pid, cpus))
    }

    /// Tells the workers to stop, without waiting; those that ended before are noted as dead.
    pub fn request_stop(&mut self) {
        self.reap();
        self.board.stop();
        self.signal_all(Signal::SIGUSR1);
    }

    /// Stops the workers, waits for them at most [`STOP_TIMEOUT`], kills the rest, and returns every
    /// worker's figures, by worker.
    pub fn stop_and_collect(mut self) -> Vec<WorkerReport> {
        if !self.board.stopped() {
            self.request_stop();
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        self.reap();
        while self.ends.iter().any(Option::is_none) && Instant::now() < deadline {
            if self.all_gone(STOP_REPEAT) {
                // Descriptors close a moment before a process can be reaped.
                std::thread::sleep(Duration::from_millis(1));
            } else {
                self.signal_all(Signal::SIGUSR1);
            }
            self.reap();
        }
        self.reap_rest();
        (0..self.pids.len()).map(|index| self.report(index)).collect()
    }

    /// Waits until no worker is left, at most `timeout`.
    fn all_gone(&self, timeout: Duration) -> bool {
        let mut fds = [PollFd::new(self.alive.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::ZERO);
        matches!(poll(&mut fds, timeout), Ok(n) if n > 0)
    }

    fn signal_all(&self, signal: Signal) {
        for (pid, _) in self.pids.iter().zip(&self.ends).filter(|(_, end)| end.is_none()) {
            // It may just have ended.
            let _ = kill(*pid, signal);
        }
    }

    /// Collects those that have ended.
    fn reap(&mut self) {
        for (index, pid) in self.pids.iter().enumerate() {
            if self.ends[index].is_none() {
                self.ends[index] = ended(waitpid(*pid, Some(WaitPidFlag::WNOHANG)), &self.board, index);
            }
        }
    }

    /// Collects all, killing those that have not ended.
    fn reap_rest(&mut self) {
        self.reap();
        self.signal_all(Signal::SIGKILL);
        for (index, pid) in self.pids.iter().enumerate() {
            if self.ends[index].is_none() {
                while matches!(waitpid(*pid, None), Err(Errno::EINTR)) {}
                self.ends[index] = Some(WorkerExit::TimedOut);
            }
        }
    }

    fn report(&self, index: usize) -> WorkerReport {
        let slot = self.board.slot(index);
        let exit = self.ends[index].clone().unwrap_or(WorkerExit::TimedOut);
        let wall = match exit {
            WorkerExit::Completed => slot.wall_time_ns.load(Relaxed),
            // What it did not live to write down.
            _ => self.started.map_or(0, |start| start.elapsed().as_nanos() as u64),
        };
        WorkerReport {
            tid: self.pids[index].as_raw() as u32,
            cgroup: self.config.cgroup.clone(),
            work_type: self.config.work_type.name().into(),
            work_units: slot.work_units.load(Relaxed),
            iterations: slot.iterations.load(Relaxed),
            cpu_time_ns: slot.cpu_time_ns.load(Relaxed),
            wall_time_ns: wall,
            migrations: slot.migrations.load(Relaxed),
            cpus_used: slot.cpus_used(),
            cpus_allowed: self.config.cpus_allowed.clone(),
            voluntary_off_cpu_ns: slot.voluntary_off_cpu_ns.load(Relaxed),
            max_gap_ns: slot.max_gap_ns.load(Relaxed),
            max_gap_cpu: slot.max_gap_cpu.load(Relaxed),
            max_gap_at_ns: slot.max_gap_at_ns.load(Relaxed),
            run_delay_ns: slot.run_delay_ns.load(Relaxed),
            pcount: slot.pcount.load(Relaxed),
            exit,
        }
    }
}

impl Drop for WorkloadHandle {
    fn drop(&mut self) {
        if self.ends.iter().take(self.pids.len()).any(Option::is_none) {
            self.reap_rest();
        }
    }
}

/// What a wait status says, if the worker has ended. One that finished its figures and left with 0
/// was told to stop; any other end is its own.
fn ended(status: nix::Result<WaitStatus>, board: &Board, index: usize) -> Option<WorkerExit> {
    let finished = board.stopped() && board.slot(index).finished.load(Acquire);
    match status {
        Ok(WaitStatus::Exited(_, 0)) if finished => Some(WorkerExit::Completed),
        Ok(WaitStatus::Exited(_, code)) => Some(WorkerExit::Exited { code }),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(WorkerExit::Signaled { signal: signal as i32 }),
        Ok(_) => None,
        // Somebody else reaped it.
        Err(_) => Some(if finished { WorkerExit::Completed } else { WorkerExit::Exited { code: -1 } }),
    }
}

/// Gives SIGUSR1 a handler that does nothing, so that it interrupts a blocking call. Forked workers
/// inherit it: one that never ran before the stop is not killed by the signal but found without progress.
fn ignore_wake_ups() -> Result<(), WorkError> {
    extern "C" fn wake_up(_: std::ffi::c_int) {}
    let action = SigAction::new(SigHandler::Handler(wake_up), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it is safe at any moment.
    system("install the stop signal", unsafe { sigaction(Signal::SIGUSR1, &action) }).map(drop)
}

/// The pipe ends of one group, its leader last.
fn partner_ends(group: u32) -> Result<Vec<Partner>, WorkError> {
    if group != 2 {
        return Ok(Vec::new());
    }
    let (there_read, there_write) = system("create a worker pipe", pipe2(OFlag::O_CLOEXEC))?;
    let (back_read, back_write) = system("create a worker pipe", pipe2(OFlag::O_CLOEXEC))?;
    Ok(vec![
        Partner { from: there_read.into(), to: back_write.into(), leads: false },
        Partner { from: back_read.into(), to: there_write.into(), leads: true },
    ])
}

/// The whole life of a worker process.
fn live(
    board: &Board,
    index: usize,
    config: &WorkloadConfig,
    parent: Pid,
    (start, mut ready): (File, File),
    partner: Option<Partner>,
) -> ! {
    let work = || -> nix::Result<()> {
        let refused = config.attributes.get(index).and_then(|wanted| wanted.apply().err());
        // The parent may have given up; then the check below ends this worker.
        let _ = match &refused {
            None => ready.write_all(b"ready\n"),
            Some(error) => ready.write_all(format!("{index} {error}\n").as_bytes()),
        };
        drop(ready);
        if refused.is_some() {
            return Err(Errno::EPERM);
        }
        // Credentials that change clear it, so it comes after them.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        board.slot(index).tid.store(gettid().as_raw() as u32, Relaxed);
        // Workers whose partner stopped first must see an error, not be killed by the signal.
        // SAFETY: this forked process has one thread, and the standard library wants it so.
        unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }?;
        // A parent that died before the request above no longer sends anything.
        if getppid() != parent || !await_start(&start) {
            return Ok(());
        }
        let mut meter = Meter::start(board, index, config.work_type.blocking());
        config.work_type.run(&mut meter, config.seed.wrapping_add(index as u64), partner);
        meter.finish();
        Ok(())
    };
    let code = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(Ok(())) => 0,
        Ok(Err(_)) => 1,
        Err(_) => PANICKED,
    };
    // SAFETY: ends this forked process without running the parent's exit handlers.
    unsafe { libc::_exit(code) }
}

/// Blocks until told to begin; false when the parent gave up.
fn await_start(mut start: &File) -> bool {
    let mut byte = [0];
    loop {
        match start.read(&mut byte) {
            Ok(n) => return n == 1,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(workers: u32, work_type: WorkType) -> WorkloadConfig {
        WorkloadConfig {
            workers,
            work_type,
            cgroup: "cg".into(),
            cpus_allowed: Vec::new(),
            seed: 1,
            attributes: Vec::new(),
        }
    }

    fn run(workers: u32, work_type: WorkType) -> Vec<WorkerReport> {
        let mut handle = WorkloadHandle::spawn(config(workers, work_type)).unwrap();
        assert_eq!(handle.iterations(), 0, "nobody works before the start");
        handle.start().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        handle.stop_and_collect()
    }

    #[test]
    fn every_kind_of_work_makes_progress_and_stops_when_told() {
        let bursty = WorkType::Bursty { burst: Duration::from_millis(5), sleep: Duration::from_secs(3600) };
        for work_type in [WorkType::SpinWait, WorkType::YieldHeavy, bursty, WorkType::pipe_io()] {
            let reports = run(2, work_type);
            assert_eq!(reports.len(), 2);
            for report in reports {
                assert_eq!(report.exit, WorkerExit::Completed, "{report:?}");
                assert!(report.work_units > 0 && report.cpu_time_ns > 0, "{report:?}");
                assert!(report.wall_time_ns >= report.cpu_time_ns, "{report:?}");
                assert!(!report.cpus_used.is_empty(), "{report:?}");
                assert_ne!(report.tid, 0);
            }
        }
    }

    #[test]
    fn workers_that_block_say_so() {
        let work_type =
            WorkType::Bursty { burst: Duration::from_millis(5), sleep: Duration::from_millis(50) };
        let reports = run(1, work_type);
        assert!(reports[0].voluntary_off_cpu_ns > 100_000_000, "{reports:?}");
    }

    #[test]
    fn a_worker_that_dies_is_evidence_and_not_a_hang() {
        let mut handle = WorkloadHandle::spawn(config(2, WorkType::SpinWait)).unwrap();
        handle.start().unwrap();
        kill(handle.pids[1], Signal::SIGKILL).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let reports = handle.stop_and_collect();
        assert_eq!(reports[0].exit, WorkerExit::Completed);
        assert_eq!(reports[1].exit, WorkerExit::Signaled { signal: 9 });
    }

    #[test]
    fn one_partner_that_dies_takes_the_other_out_of_its_wait() {
        let mut handle = WorkloadHandle::spawn(config(2, WorkType::pipe_io())).unwrap();
        handle.start().unwrap();
        kill(handle.pids[0], Signal::SIGKILL).unwrap();
        let start = Instant::now();
        let reports = handle.stop_and_collect();
        assert!(start.elapsed() < STOP_TIMEOUT);
        assert_eq!(reports[0].exit, WorkerExit::Signaled { signal: 9 });
    }

    #[test]
    fn partners_end_in_any_order_and_are_not_killed_by_each_other() {
        // As before `main`, where nothing has told the system to spare writers of closed pipes.
        // SAFETY: restores the default disposition; no other code of this test depends on it.
        unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.unwrap();
        for _ in 0..20 {
            let mut handle =
                WorkloadHandle::spawn(config(4, WorkType::PipeIo { burst_iters: 100_000 })).unwrap();
            handle.start().unwrap();
            std::thread::sleep(Duration::from_millis(5));
            for report in handle.stop_and_collect() {
                assert_eq!(report.exit, WorkerExit::Completed, "{report:?}");
            }
        }
    }

    #[test]
    fn a_worker_that_does_not_stop_is_killed_after_the_timeout() {
        let mut handle = WorkloadHandle::spawn(config(1, WorkType::SpinWait)).unwrap();
        handle.start().unwrap();
        kill(handle.pids[0], Signal::SIGSTOP).unwrap();
        let reports = handle.stop_and_collect();
        assert_eq!(reports[0].exit, WorkerExit::TimedOut);
    }

    #[test]
    fn dropping_a_handle_leaves_no_worker() {
        let handle = WorkloadHandle::spawn(config(2, WorkType::SpinWait)).unwrap();
        let pids = handle.pids.clone();
        drop(handle);
        for pid in pids {
            assert_eq!(kill(pid, None), Err(Errno::ESRCH));
        }
    }

    #[test]
    fn a_worker_that_is_refused_what_it_asks_for_is_an_error_at_once() {
        let attributes =
            vec![Attributes::default(), Attributes { affinity: vec![511], ..Attributes::default() }];
        let config = WorkloadConfig { attributes, ..config(2, WorkType::SpinWait) };
        let error = WorkloadHandle::spawn(config).unwrap().start().unwrap_err().to_string();
        assert!(error.contains("worker 1 of cgroup `cg`") && error.contains("CPUs 511"), "{error}");
    }

    #[test]
    fn an_odd_number_of_partners_is_refused() {
        let error = WorkloadHandle::spawn(config(3, WorkType::pipe_io())).err().unwrap().to_string();
        assert_eq!(error, "PipeIo works in groups of 2: 3 workers cannot be divided into such groups");
    }
}

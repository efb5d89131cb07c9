//! The worker's side: a process of its own, or a thread in one; from the fork to the end.

use std::{
    fs::File,
    io::Write,
    sync::atomic::Ordering::{Relaxed, Release, SeqCst},
    time::Duration,
};

use nix::{
    sys::{
        prctl,
        signal::{SigHandler, Signal, signal},
    },
    unistd::{Pid, getpid, getppid, gettid, setpgid},
};

use super::{
    WorkloadConfig,
    board::Board,
    burn::Burner,
    kinds,
    meter::{Blocking, Meter},
    rng::Rng,
    sys,
    worker::{Links, Place, Worker},
};

/// Exit status of a worker whose code panicked.
pub(super) const PANICKED: i32 = 101;
/// A worker that waits for the start looks this often whether its parent is still there.
const PARENT_CHECK: Duration = Duration::from_millis(200);

/// How long workers wait for each other before they begin.
const PREPARATION: Duration = Duration::from_secs(1);

/// What the parent says on the `go` word.
pub(super) const GO: u32 = 1;
/// The parent has given up.
pub(super) const GIVE_UP: u32 = 2;

/// What a worker is born with.
pub(super) struct Birth<'a> {
    pub board: &'a Board,
    pub config: &'a WorkloadConfig,
    /// Whose death ends the worker.
    pub parent: Option<Pid>,
    /// Where it says that it is ready.
    pub ready: &'a File,
}

/// The whole life of a process that is one worker.
pub(super) fn process(birth: &Birth<'_>, index: usize, links: &Links) -> ! {
    live(|| worker(birth, index, links))
}

/// The whole life of a process called `comm` that hosts the workers of all `births` as threads; `links`
/// are those of each birth's groups.
pub(super) fn hosting(births: &[Birth<'_>], comm: &str, links: &[Vec<Links>]) -> ! {
    live(|| lead(births, comm, links))
}

fn live(life: impl FnOnce() -> bool) -> ! {
    let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // A group of its own, so that what it forks is ended with it.
        let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
        // Workers whose partner stopped first must see an error, not be killed by the signal.
        // SAFETY: this forked process has one thread, and the standard library wants it so.
        let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
        life()
    }));
    let code = match lived {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(_) => PANICKED,
    };
    // SAFETY: ends this forked process without running the parent's exit handlers.
    unsafe { nix::libc::_exit(code) }
}

/// Leads a process whose threads are the workers.
fn lead(births: &[Birth<'_>], comm: &str, links: &[Vec<Links>]) -> bool {
    let name = std::ffi::CString::new(comm.replace('\0', "")).unwrap_or_default();
    let _ = prctl::set_name(&name);
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (birth, links) in births.iter().zip(links) {
            let group = birth.config.work_type.group_size() as usize;
            for index in 0..birth.board.slots() {
                threads.push(scope.spawn(move || thread(birth, index, &links[index / group])));
            }
        }
        threads.into_iter().map(|thread| thread.join().unwrap_or(false)).fold(true, |all, one| all & one)
    })
}

/// A worker that is a thread.
pub(super) fn thread(birth: &Birth<'_>, index: usize, links: &Links) -> bool {
    let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| worker(birth, index, links)));
    let left = birth.board.left();
    if lived.is_err() {
        birth.board.slot(index).panicked.store(true, Release);
    }
    birth.board.slot(index).gone.store(true, Release);
    left.fetch_sub(1, SeqCst);
    sys::futex_wake(left, u32::MAX);
    lived.unwrap_or(false)
}

/// The calling thread becomes worker `index`; whether it got to work.
fn worker(birth: &Birth<'_>, index: usize, links: &Links) -> bool {
    let Birth { board, config, parent, mut ready } = *birth;
    let slot = board.slot(index);
    let place = Place::of(index, config.work_type.group_size() as usize);
    let (pid, tid) = (getpid().as_raw() as u32, gettid().as_raw() as u32);
    slot.tid.store(tid, Relaxed);
    let refused = config.attributes.get(index).and_then(|wanted| wanted.apply().err());
    // The parent may have given up; then the start never comes.
    let _ = match &refused {
        None => ready.write_all(b"ready\n"),
        Some(error) => ready.write_all(format!("{index} {error}\n").as_bytes()),
    };
    if refused.is_some() {
        return false;
    }
    if let (Some(parent), true) = (parent, pid == tid) {
        // Credentials that change clear it, so it comes after them. A parent that died before no longer
        // sends anything.
        let _ = prctl::set_pdeathsig(Signal::SIGKILL);
        if getppid() != parent {
            return false;
        }
    }
    if !await_start(board, parent.filter(|_| pid == tid)) {
        return false;
    }
    // How late it is run for the first time; what comes before it measures itself is preparation.
    let late_ns = sys::now_ns().saturating_sub(board.went_ns().load(SeqCst));
    // In a frozen cgroup nobody runs.
    let late_ns = late_ns.saturating_sub(board.frozen_ns().load(SeqCst));
    let member = board.member_line(place.group, place.position);
    member.pid.store(pid, SeqCst);
    member.tid.store(tid, SeqCst);
    let prepared = kinds::prepare(&config.work_type, place);
    await_prepared(board);
    let blocking = if config.work_type.never_blocks() { Blocking::Never } else { Blocking::Sometimes };
    let seed = config.seed.wrapping_add(index as u64);
    let mut meter = Meter::start(board, index, blocking);
    meter.parks_after(config.park_after_iterations);
    meter.began_late(late_ns);
    let mut worker = Worker { meter, rng: Rng::new(seed), burner: Burner::new(seed), place, links, board };
    if let Err(not_run) = prepared.and_then(|()| kinds::run(&config.work_type, &mut worker)) {
        not_run.note(slot);
    }
    slot.early.store(!board.stopped(), Relaxed);
    member.tid.store(0, SeqCst);
    worker.meter.finish();
    true
}

/// Waits until every worker has the CPU and the policy of its kind; not for those that do not come.
fn await_prepared(board: &Board) {
    let (prepared, all) = (board.prepared(), board.slots() as u32);
    if prepared.fetch_add(1, SeqCst) + 1 >= all {
        sys::futex_wake(prepared, u32::MAX);
        return;
    }
    let until = sys::now_ns() + PREPARATION.as_nanos() as u64;
    loop {
        let seen = prepared.load(SeqCst);
        if seen >= all || board.stopped() || sys::now_ns() >= until {
            return;
        }
        sys::futex_wait(prepared, seen, PREPARATION);
    }
}

/// Blocks until told to begin; false when the parent gave up or is gone.
fn await_start(board: &Board, parent: Option<Pid>) -> bool {
    loop {
        match board.go().load(SeqCst) {
            0 => sys::futex_wait(board.go(), 0, PARENT_CHECK),
            GO => return true,
            _ => return false,
        };
        if parent.is_some_and(|parent| getppid() != parent) {
            return false;
        }
    }
}

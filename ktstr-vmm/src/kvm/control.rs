//! Run, pause, stop: what is wanted from the threads of a machine and how far they are.
//!
//! ```text
//!            pause                    finish / kill
//!   Run ───────────────▶ Pause ─────────────────────┐
//!    ▲                     │                        ▼
//!    └──────── resume ─────┘        Run ─────────▶ Stop ── last vCPU gone ──▶ Event::Exited
//! ```
//!
//! The first reason to stop wins. `Exited` is sent once, after the last vCPU thread is gone.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::kick::{RunPage, ThreadId};
use super::x86_64::state::{StateError, VcpuState};
use ktstr_proto::capture::WatchPoint;
use ktstr_proto::link::chain;
use ktstr_proto::registers::VcpuRegisters;

use crate::machine::{Event, Exit};

/// How long `pause` waits before it gives up on a vCPU.
const PAUSE_DEADLINE: Duration = Duration::from_secs(10);
/// How often it asks again meanwhile.
const KICK_AGAIN: Duration = Duration::from_millis(50);

/// What the threads shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Wanted {
    /// Execute guest code.
    Run = 0,
    /// Wait.
    Pause = 1,
    /// End.
    Stop = 2,
}

/// What a vCPU thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Execute guest code.
    Run,
    /// Say what the vCPU is, which stands.
    Save,
    /// End.
    Stop,
}

/// There is no state of a machine's vCPUs.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// It is only had of vCPUs that stand.
    #[error("the vCPUs do not stand, or have ended")]
    Moving,
    /// Some took too long.
    #[error("{missing} vCPUs did not tell their state within {} s", PAUSE_DEADLINE.as_secs())]
    TimedOut {
        /// How many.
        missing: usize,
    },
    /// One could not.
    #[error("save vCPU {cpu}")]
    Vcpu {
        /// Which.
        cpu: usize,
        /// Why.
        #[source]
        source: StateError,
    },
}

/// There are no registers of a machine's vCPUs.
#[derive(Debug, thiserror::Error)]
pub enum RegistersError {
    /// They are only had of vCPUs that stand.
    #[error("vCPU {cpu} does not stand, or has ended")]
    Moving {
        /// Which.
        cpu: usize,
    },
    /// KVM does not tell.
    #[error("read the registers of vCPU {cpu}")]
    Kvm {
        /// Which.
        cpu: usize,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What KVM told of the registers of a vCPU.
pub type ToldRegisters = Result<VcpuRegisters, kvm_ioctls::Error>;

/// Some vCPUs did not stop in time.
#[derive(Debug, thiserror::Error)]
#[error("{running} of {live} vCPUs did not leave the guest within {} s", PAUSE_DEADLINE.as_secs())]
pub struct PauseTimedOut {
    running: usize,
    live: usize,
}

#[derive(Debug)]
struct Member {
    page: Arc<RunPage>,
    thread: ThreadId,
}

#[derive(Debug, Default)]
struct State {
    members: Vec<Option<Member>>,
    live: usize,
    parked: usize,
    /// By vCPU, of those that are parked.
    registers: Vec<Option<ToldRegisters>>,
    exit: Option<Exit>,
    events: VecDeque<Event>,
    watched: Vec<WatchPoint>,
    /// Which vCPUs are to tell their state, and what they have told.
    saving: Vec<Saving>,
}

#[derive(Debug)]
enum Saving {
    Unasked,
    Asked,
    Told(Result<Box<VcpuState>, StateError>),
}

/// The state shared by all threads of a machine.
#[derive(Debug)]
pub struct Control {
    wanted: AtomicU8,
    /// How often the watched places have changed.
    watches: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
    event: EventFd,
}

impl Control {
    /// For a machine of this many vCPUs.
    pub fn new(vcpus: u32) -> std::io::Result<Self> {
        let members = (0..vcpus).map(|_| None).collect();
        let registers = vec![None; vcpus as usize];
        Ok(Self {
            wanted: AtomicU8::new(Wanted::Run as u8),
            watches: AtomicU64::new(0),
            state: Mutex::new(State { members, registers, live: vcpus as usize, ..State::default() }),
            changed: Condvar::new(),
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// What is wanted now.
    pub fn wanted(&self) -> Wanted {
        match self.wanted.load(Ordering::SeqCst) {
            0 => Wanted::Run,
            1 => Wanted::Pause,
            _ => Wanted::Stop,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every update is complete before anything in it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a vCPU thread reachable. Called by that thread.
    pub fn join(&self, cpu: u32, page: Arc<RunPage>, thread: ThreadId) {
        self.state().members[cpu as usize] = Some(Member { page, thread });
    }

    /// Waits while paused and nothing is asked of this vCPU, whose `registers` are noted before.
    pub fn turn(&self, cpu: u32, registers: impl FnOnce() -> ToldRegisters) -> Turn {
        match self.wanted() {
            Wanted::Run => return Turn::Run,
            Wanted::Stop => {
                self.stood(cpu, registers());
                return Turn::Stop;
            }
            Wanted::Pause => {}
        }
        let registers = registers();
        let mut state = self.state();
        state.registers[cpu as usize] = Some(registers);
        state.parked += 1;
        self.changed.notify_all();
        let turn = loop {
            match self.wanted() {
                Wanted::Run => break Turn::Run,
                Wanted::Stop => break Turn::Stop,
                Wanted::Pause => {}
            }
            if let Some(asked @ Saving::Asked) = state.saving.get_mut(cpu as usize) {
                *asked = Saving::Unasked;
                break Turn::Save;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.parked -= 1;
        if turn != Turn::Stop {
            state.registers[cpu as usize] = None;
        }
        turn
    }

    /// Notes where a vCPU is that runs no more.
    pub fn stood(&self, cpu: u32, registers: ToldRegisters) {
        self.state().registers[cpu as usize] = Some(registers);
    }

    /// The registers of all vCPUs, by number. The machine stands, or has ended.
    pub fn registers(&self) -> Result<Vec<VcpuRegisters>, RegistersError> {
        let state = self.state();
        let told = state.registers.iter().enumerate().map(|(cpu, told)| match told {
            Some(Ok(registers)) => Ok(*registers),
            Some(Err(errno)) => Err(RegistersError::Kvm { cpu, source: (*errno).into() }),
            None => Err(RegistersError::Moving { cpu }),
        });
        told.collect()
    }

    /// What a vCPU is. Called by its thread after [`Turn::Save`].
    pub fn tell(&self, cpu: u32, told: Result<Box<VcpuState>, StateError>) {
        let mut state = self.state();
        if let Some(saving) = state.saving.get_mut(cpu as usize) {
            *saving = Saving::Told(told);
        }
        self.changed.notify_all();
    }

    /// What all vCPUs are, by number. The machine stands.
    pub fn collect(&self) -> Result<Vec<VcpuState>, CollectError> {
        let mut state = self.state();
        state.saving = (0..state.members.len()).map(|_| Saving::Asked).collect();
        self.changed.notify_all();
        let deadline = Instant::now() + PAUSE_DEADLINE;
        let missing =
            |state: &State| state.saving.iter().filter(|saving| !matches!(saving, Saving::Told(_))).count();
        while missing(&state) > 0 && self.wanted() == Wanted::Pause && Instant::now() < deadline {
            state = self.changed.wait_timeout(state, KICK_AGAIN).unwrap_or_else(PoisonError::into_inner).0;
        }
        let all = std::mem::take(&mut state.saving);
        if self.wanted() != Wanted::Pause {
            return Err(CollectError::Moving);
        }
        let missing = all.iter().filter(|saving| !matches!(saving, Saving::Told(_))).count();
        let told = all.into_iter().enumerate().map(|(cpu, saving)| match saving {
            Saving::Told(Ok(state)) => Ok(*state),
            Saving::Told(Err(source)) => Err(CollectError::Vcpu { cpu, source }),
            Saving::Asked | Saving::Unasked => Err(CollectError::TimedOut { missing }),
        });
        told.collect()
    }

    /// A vCPU thread is gone; true if it was the last.
    pub fn leave(&self, cpu: u32) -> bool {
        let mut state = self.state();
        state.members[cpu as usize] = None;
        state.live -= 1;
        self.changed.notify_all();
        state.live == 0
    }

    /// Sends `Exited`. Called once, when the last vCPU is gone and all output is flushed.
    pub fn announce_exit(&self) {
        let mut exit = self.state().exit.clone().unwrap_or(Exit::Killed);
        if let Exit::TripleFault(fault) = &mut exit {
            fault.registers = self.registers().map_err(|e| chain(&e));
        }
        self.send(Event::Exited(exit));
    }

    /// Queues an event.
    pub fn send(&self, event: Event) {
        self.state().events.push_back(event);
        // Fails only when the counter is full, and then it is readable already.
        let _ = self.event.write(1);
    }

    /// Takes the next event.
    pub fn next_event(&self) -> Option<Event> {
        let mut state = self.state();
        let event = state.events.pop_front();
        if state.events.is_empty() {
            let _ = self.event.read();
        }
        event
    }

    /// Readable while events wait.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor lives as long as `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }

    /// Stops the machine for this reason, unless another came first.
    pub fn finish(&self, exit: Exit) {
        let mut state = self.state();
        state.exit.get_or_insert(exit);
        self.wanted.store(Wanted::Stop as u8, Ordering::SeqCst);
        self.changed.notify_all();
        kick(&state);
    }

    /// Freezes; returns when no vCPU runs guest code.
    pub fn pause(&self) -> Result<(), PauseTimedOut> {
        let mut state = self.state();
        if self.wanted() == Wanted::Run {
            self.wanted.store(Wanted::Pause as u8, Ordering::SeqCst);
        }
        let deadline = Instant::now() + PAUSE_DEADLINE;
        // A thread that has not joined yet sees the wish before its first run, so it parks as well.
        while self.wanted() == Wanted::Pause && state.parked < state.live {
            kick(&state);
            state = self.changed.wait_timeout(state, KICK_AGAIN).unwrap_or_else(PoisonError::into_inner).0;
            if Instant::now() > deadline && state.parked < state.live {
                return Err(PauseTimedOut { running: state.live - state.parked, live: state.live });
            }
        }
        Ok(())
    }

    /// Watches these places. Every vCPU takes them over before it runs again.
    pub fn watch(&self, places: &[WatchPoint]) {
        let mut state = self.state();
        state.watched = places.to_vec();
        self.watches.fetch_add(1, Ordering::SeqCst);
    }

    /// The watched places, if they have changed since `seen`, which is brought up to date.
    pub fn new_watches(&self, seen: &mut u64) -> Option<Vec<WatchPoint>> {
        let now = self.watches.load(Ordering::SeqCst);
        if now == std::mem::replace(seen, now) {
            return None;
        }
        let state = self.state();
        *seen = self.watches.load(Ordering::SeqCst);
        Some(state.watched.clone())
    }

    /// A vCPU has written to a watched place: all are to stop. The caller is that vCPU, which parks next.
    pub fn written(&self, place: WatchPoint, cpu: u32) {
        {
            let state = self.state();
            if self.wanted() == Wanted::Run {
                self.wanted.store(Wanted::Pause as u8, Ordering::SeqCst);
            }
            kick(&state);
        }
        self.send(Event::Written { place, cpu });
    }

    /// Lets the vCPUs go on.
    pub fn resume(&self) {
        let _state = self.state();
        if self.wanted() == Wanted::Pause {
            self.wanted.store(Wanted::Run as u8, Ordering::SeqCst);
        }
        self.changed.notify_all();
    }
}

fn kick(state: &State) {
    for member in state.members.iter().flatten() {
        member.page.set_immediate_exit(true);
        member.thread.interrupt();
    }
}

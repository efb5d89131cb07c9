//! The kinds of work and the loops that do them.
//!
//! Loops spin on arithmetic, not on the CPU's pause instruction: under emulation that leaves the
//! translated code each time, and the figures would say more about the emulator than about the guest.

use std::{
    fs::File,
    hint::black_box,
    io::{ErrorKind, Read, Write},
    time::Duration,
};

use nix::{sched::sched_yield, time::ClockId};

use super::meter::{Blocking, Meter};

/// What a worker does all day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WorkType {
    /// Computes without pause.
    #[default]
    SpinWait,
    /// Yields the CPU after each unit.
    YieldHeavy,
    /// Computes for `burst`, sleeps for `sleep`, in turn.
    Bursty {
        /// Time of computing.
        burst: Duration,
        /// Time of sleeping.
        sleep: Duration,
    },
    /// Pairs of workers: each computes `burst_iters` steps, passes a byte to its partner and waits for one.
    PipeIo {
        /// Steps between two bytes.
        burst_iters: u64,
    },
}

/// Steps of arithmetic in one unit of work.
const STEPS_PER_UNIT: u64 = 1024;
/// Units between two checkpoints of a loop that does nothing but compute.
const UNITS_PER_CHECKPOINT: u64 = 16;
/// Yields between two checkpoints.
const YIELDS_PER_CHECKPOINT: u64 = 16;

/// A worker's ends of the two pipes it shares with its partner.
#[derive(Debug)]
pub(super) struct Partner {
    pub from: File,
    pub to: File,
    /// The first of the two sends before it waits.
    pub leads: bool,
}

impl WorkType {
    /// 50 ms of computing, 100 ms of sleep.
    pub const fn bursty() -> Self {
        Self::Bursty { burst: Duration::from_millis(50), sleep: Duration::from_millis(100) }
    }

    /// 1024 steps between two bytes.
    pub const fn pipe_io() -> Self {
        Self::PipeIo { burst_iters: 1024 }
    }

    /// Name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SpinWait => "SpinWait",
            Self::YieldHeavy => "YieldHeavy",
            Self::Bursty { .. } => "Bursty",
            Self::PipeIo { .. } => "PipeIo",
        }
    }

    /// Workers that belong together; a number of workers is a multiple of it.
    pub fn group_size(&self) -> u32 {
        match self {
            Self::PipeIo { .. } => 2,
            _ => 1,
        }
    }

    pub(super) fn blocking(&self) -> Blocking {
        match self {
            Self::SpinWait | Self::YieldHeavy => Blocking::Never,
            Self::Bursty { .. } | Self::PipeIo { .. } => Blocking::Sometimes,
        }
    }

    /// Works until told to stop.
    pub(super) fn run(&self, meter: &mut Meter<'_>, seed: u64, partner: Option<Partner>) {
        let mut state = seed;
        match (*self, partner) {
            (Self::SpinWait, _) => {
                while !meter.stopped() {
                    state = compute(state, STEPS_PER_UNIT * UNITS_PER_CHECKPOINT);
                    meter.did(UNITS_PER_CHECKPOINT, 1);
                    meter.checkpoint();
                }
            }
            (Self::YieldHeavy, _) => {
                while !meter.stopped() {
                    for _ in 0..YIELDS_PER_CHECKPOINT {
                        state = compute(state, STEPS_PER_UNIT);
                        // Fails never on Linux.
                        let _ = sched_yield();
                    }
                    meter.did(YIELDS_PER_CHECKPOINT, YIELDS_PER_CHECKPOINT);
                    meter.checkpoint();
                }
            }
            (Self::Bursty { burst, sleep }, _) => {
                while !meter.stopped() {
                    state = compute_for(meter, state, burst);
                    meter.blocking(|| doze(sleep));
                    meter.did(0, 1);
                    meter.checkpoint();
                }
            }
            (Self::PipeIo { burst_iters }, Some(partner)) => pass_bytes(meter, state, burst_iters, partner),
            (Self::PipeIo { .. }, None) => {}
        }
        black_box(state);
    }
}

/// `steps` dependent multiplications, which no compiler can shorten.
fn compute(mut state: u64, steps: u64) -> u64 {
    for _ in 0..steps {
        state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
    state
}

/// Computes until `burst` has passed in the guest's clock.
fn compute_for(meter: &mut Meter<'_>, mut state: u64, burst: Duration) -> u64 {
    let start = std::time::Instant::now();
    while start.elapsed() < burst && !meter.stopped() {
        state = compute(state, STEPS_PER_UNIT * 4);
        meter.did(4, 0);
    }
    meter.checkpoint();
    state
}

/// Sleeps; a signal ends it early.
fn doze(time: Duration) {
    let _ = nix::time::clock_nanosleep(
        ClockId::CLOCK_MONOTONIC,
        nix::time::ClockNanosleepFlags::empty(),
        &time.into(),
    );
}

fn pass_bytes(meter: &mut Meter<'_>, mut state: u64, burst_iters: u64, mut partner: Partner) {
    let mut sends = partner.leads;
    while !meter.stopped() {
        if sends {
            state = compute(state, burst_iters);
            meter.did(burst_iters.div_ceil(STEPS_PER_UNIT).max(1), 1);
            match partner.to.write_all(&[1]) {
                Ok(()) => {}
                // The partner is gone; so is the work.
                Err(_) => break,
            }
        }
        sends = true;
        let mut byte = [0];
        match meter.blocking(|| partner.from.read(&mut byte)) {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => sends = false,
            Err(_) => break,
        }
        meter.checkpoint();
    }
    black_box(state);
}

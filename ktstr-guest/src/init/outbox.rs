//! What PID 1 says: frames with their time, through the ring.

use ktstr_proto::{
    guest::{GuestFrame, GuestMessage, Log, LogSource, Phase},
    ring::{HostSignal, Mode, RingError, RingRegion, RingWriter},
};

use super::clock;
use crate::ring_memory::{MapError, MappedRing};

/// How long to sleep while the host is behind.
const WAIT_US: u64 = 500;

/// Why the ring is not there.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// Its memory cannot be mapped.
    #[error("the ring's memory is not usable")]
    Map(#[source] MapError),
    /// It cannot be set up.
    #[error("the ring cannot be set up")]
    Ring(#[source] RingError),
}

/// The producer's end of the ring.
pub struct Outbox {
    ring: RingWriter<MappedRing>,
    mode: Mode,
}

impl Outbox {
    /// Maps the region and sets the ring up.
    pub fn open(region: RingRegion) -> Result<Self, OutboxError> {
        Self::over(MappedRing::open(region).map_err(OutboxError::Map)?, region.mode)
    }

    /// Sets the ring up in memory that is mapped already.
    pub fn over(memory: MappedRing, mode: Mode) -> Result<Self, OutboxError> {
        let ring = RingWriter::create(memory, mode).map_err(OutboxError::Ring)?;
        Ok(Self { ring, mode })
    }

    /// Says one thing; waits while a wrapping ring is full.
    pub fn send(&mut self, body: GuestFrame) -> Result<(), RingError> {
        let message = GuestMessage { t_ns: clock::now_ns(), body };
        self.ring.send(&message, || clock::sleep_us(WAIT_US))
    }

    /// Says that a station was reached.
    pub fn phase(&mut self, phase: Phase) -> Result<(), RingError> {
        self.send(GuestFrame::Phase(phase))
    }

    /// Passes text on.
    pub fn log(&mut self, source: LogSource, text: String) -> Result<(), RingError> {
        self.send(GuestFrame::Log(Log { source, text }))
    }

    /// A line of PID 1's own.
    pub fn note(&mut self, line: &str) -> Result<(), RingError> {
        self.log(LogSource::Init, format!("{line}\n"))
    }

    /// Whether the host asks to end the run. A linear ring carries no signal: what the host writes
    /// there must not reach the guest.
    pub fn shutdown_requested(&self) -> bool {
        self.listens() && self.ring.host_signal() == HostSignal::Shutdown
    }

    /// The host's answer to a question of the test, encoded.
    pub fn host_answer(&self, id: u32) -> Option<Vec<u8>> {
        self.ring.host_answer(id)
    }

    /// Whether the host may say something through the ring.
    pub fn listens(&self) -> bool {
        self.mode == Mode::Wrap
    }

    /// Waits until the host has taken everything, at most `limit_ms`.
    pub fn drain(&self, limit_ms: u64) {
        let until = clock::now_ms() + limit_ms;
        while !self.ring.is_drained() && clock::now_ms() < until {
            clock::sleep_us(WAIT_US);
        }
    }
}

//! One machine and everything that leaves it: both serial ports, the ring, the end.
//!
//! [`Session::next_output`] hands out one piece at a time, so whoever forwards pieces decides the
//! pace: what is not asked for stays in the machine, and a full ring makes the guest wait. The end
//! comes last, after everything the machine has written.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use ktstr_proto::capture::WatchPoint;
use ktstr_proto::link::chain;
use ktstr_proto::registers::Registers;
use ktstr_proto::ring::{HostSignal, Mode, RingReader, RingRegion};
use ktstr_proto::vmm::Saved;

use crate::console::{ConsoleError, PortOutput};
use crate::handover::{Handover, Keep};
use crate::machine::{Event, Exit, MachineError, Ram, Running, VcpuStatistics};
use crate::ring::{GuestRing, RingMapError};
use crate::snapshot;

/// Largest piece of the ring taken at once, in bytes.
const RING_PIECE: usize = 256 << 10;

/// One piece of what leaves a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Bytes of the kernel console.
    Com1(Vec<u8>),
    /// Bytes of the fallback port.
    Com2(Vec<u8>),
    /// Bytes of the ring.
    Ring(Vec<u8>),
    /// The guest broke the ring's rules; no more ring bytes follow.
    RingBroken(String),
    /// What was counted for each vCPU; the end follows.
    Statistics(Vec<VcpuStatistics>),
    /// The machine is gone; nothing follows.
    Exited(Exit),
    /// Where the start has got to, and how long after the request.
    Station(&'static str, Duration),
    /// The snapshot asked for was written, or why not.
    Saved(Result<Saved, String>),
    /// A vCPU wrote to a watched place; the machine stands.
    Written {
        /// The place.
        place: WatchPoint,
        /// Number of the vCPU.
        cpu: u32,
    },
}

/// A running machine with its outlets.
pub struct Session {
    machine: Box<dyn Running>,
    com1: PortOutput,
    com2: PortOutput,
    ring: Option<RingReader<GuestRing>>,
    handover: Option<Handover>,
    linear: bool,
    exit: Option<Exit>,
    ended: bool,
    /// Since when the vCPUs stand.
    frozen: Option<Instant>,
    /// When the start was asked for, and what has been done since that nobody has been told.
    begun: Instant,
    stations: VecDeque<(&'static str, Instant)>,
}

impl Session {
    /// Takes over a started machine.
    pub fn new(
        machine: Box<dyn Running>,
        com1: PortOutput,
        com2: PortOutput,
        ring: &RingRegion,
    ) -> Result<Session, RingMapError> {
        let reader = RingReader::new(GuestRing::map(machine.ram(), ring)?, ring.mode);
        let linear = ring.mode == Mode::Linear;
        Ok(Session {
            machine,
            com1,
            com2,
            ring: Some(reader),
            handover: None,
            linear,
            exit: None,
            ended: false,
            frozen: None,
            begun: Instant::now(),
            stations: VecDeque::new(),
        })
    }

    /// Gives the guest `archive` when it waits for it, and keeps a snapshot before that if asked to.
    pub fn hand_over(
        &mut self,
        ring: &RingRegion,
        archive: File,
        keep: Option<Keep>,
    ) -> Result<(), RingMapError> {
        let region = GuestRing::map(self.machine.ram(), ring)?;
        let handover = Handover::new(region, archive, keep);
        self.handover = Some(handover.map_err(|source| RingMapError::Archive { source })?);
        Ok(())
    }

    /// The machine was asked for at this moment; [`Output::Station`] tells what has been done since.
    pub fn asked_for_at(&mut self, begun: Instant) {
        self.begun = begun;
        self.stations = self.machine.stations().into();
        self.station("machine handed out");
    }

    fn station(&mut self, what: &'static str) {
        self.stations.push_back((what, Instant::now()));
    }

    /// Whether the guest may wait for the next piece of its job at any moment.
    #[must_use]
    pub fn is_handing_over(&self) -> bool {
        self.handover.is_some()
    }

    fn serve_handover(&mut self) -> Option<Output> {
        let frozen = self.frozen.is_some();
        let handover = self.handover.as_mut().filter(|handover| !frozen && handover.is_awaited())?;
        if handover.is_new() {
            self.stations.push_back(("guest waits", Instant::now()));
        }
        if let Some(keep) = handover.keep() {
            let saved = match handover.taint() {
                0 if handover.is_unspoken() => self.keep(&keep),
                0 => Err("the host has told its guest something that no other guest should hear".into()),
                taint => {
                    Err(format!("its kernel is tainted ({taint:#x}) by what happened to it while it booted"))
                }
            };
            return Some(Output::Saved(saved));
        }
        match handover.give() {
            Ok(true) => None,
            Ok(false) => {
                self.handover = None;
                self.station("job given");
                None
            }
            Err(error) => {
                self.handover = None;
                Some(Output::RingBroken(format!("the guest's job cannot be read: {error}")))
            }
        }
    }

    /// The machine goes on whatever comes of the snapshot; one that cannot has ended.
    fn keep(&mut self, keep: &Keep) -> Result<Saved, String> {
        let begun = Instant::now();
        let stands = self.machine.pause();
        let written =
            stands.and_then(|()| self.machine.device_state()).map_err(|e| chain(&e)).and_then(|state| {
                let ram = self.machine.ram();
                let bytes = ram.regions.iter().map(|region| region.len).sum();
                snapshot::write(&keep.file, ram.memfd.as_fd(), bytes, &state, &keep.description)
                    .map_err(|e| chain(&e))
            });
        if let Err(error) = self.machine.resume() {
            let detail =
                format!("after its snapshot was taken the machine does not go on: {}", chain(&error));
            self.exit = Some(Exit::InternalError { detail: detail.clone() });
            self.machine.kill();
            return Err(detail);
        }
        let stood_us = begun.elapsed().as_micros() as u64;
        written.map(|bytes| Saved { bytes, stood_us })
    }

    /// Guest RAM.
    #[must_use]
    pub fn ram(&self) -> &Ram {
        self.machine.ram()
    }

    /// Readable when the machine has something to say. Its outlets have to be polled.
    #[must_use]
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.machine.event_fd()
    }

    /// Whether [`Output::Exited`] has been handed out.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Freezes the machine.
    pub fn pause(&mut self) -> Result<(), MachineError> {
        // A machine that a write has stopped may still have a vCPU on its way.
        self.machine.pause()?;
        self.frozen.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// The registers of all vCPUs, by number. The machine stands.
    pub fn registers(&mut self) -> Registers {
        self.machine.registers().map_err(|e| chain(&e))
    }

    /// Lets it go on, and says how long it stood. Also undoes a pause that did not come about.
    pub fn resume(&mut self) -> Result<Duration, MachineError> {
        self.machine.resume()?;
        Ok(self.frozen.take().map_or(Duration::ZERO, |since| since.elapsed()))
    }

    /// Watches these places for writes and no others. The machine stands meanwhile.
    pub fn watch(&mut self, places: &[WatchPoint]) -> Result<(), MachineError> {
        let stood = self.frozen.is_some();
        self.machine.pause()?;
        let set = self.machine.watch(places);
        if !stood {
            self.machine.resume()?;
        }
        set
    }

    /// Ends it now.
    pub fn kill(&mut self) {
        self.machine.kill();
    }

    /// Asks the guest to end itself. `false` where nothing may be written into the guest.
    pub fn ask_shutdown(&mut self) -> bool {
        match &mut self.ring {
            Some(ring) if !self.linear => {
                ring.signal(HostSignal::Shutdown);
                true
            }
            _ => false,
        }
    }

    /// Answers a question of the guest.
    pub fn tell(&mut self, id: u32, answer: &[u8]) -> Result<(), String> {
        match &mut self.ring {
            Some(ring) if !self.linear => ring.answer(id, answer).map_err(|e| chain(&e)),
            _ => Err("the guest's channel takes nothing from the host".into()),
        }
    }

    /// The next piece, if there is one now.
    pub fn next_output(&mut self) -> Result<Option<Output>, ConsoleError> {
        if self.ended {
            return Ok(None);
        }
        if let Some((what, at)) = self.stations.pop_front() {
            return Ok(Some(Output::Station(what, at.saturating_duration_since(self.begun))));
        }
        // The machine's end is looked at before its outlets: what they hold then is all there is.
        while let (None, Some(event)) = (&self.exit, self.machine.next_event()) {
            match event {
                Event::Exited(exit) => self.exit = Some(exit),
                Event::Written { place, cpu } => {
                    // Stopped by itself; who takes the event lets it go on.
                    self.frozen.get_or_insert_with(Instant::now);
                    return Ok(Some(Output::Written { place, cpu }));
                }
                Event::DeviceFailed { device, detail } => {
                    return Ok(Some(Output::Com1(format!("\n[{device} failed: {detail}]\n").into_bytes())));
                }
            }
        }
        for (port, output) in [(&mut self.com1, Output::Com1 as fn(_) -> _), (&mut self.com2, Output::Com2)] {
            let bytes = port.take()?;
            if !bytes.is_empty() {
                return Ok(Some(output(bytes)));
            }
        }
        if let Some(output) = self.serve_handover() {
            return Ok(Some(output));
        }
        if let Some(output) = self.take_ring() {
            return Ok(Some(output));
        }
        if !self.com1.is_drained() || !self.com2.is_drained() {
            return Ok(None);
        }
        if self.exit.is_some() {
            let counted = self.machine.statistics();
            if !counted.is_empty() {
                return Ok(Some(Output::Statistics(counted)));
            }
        }
        let exit = self.exit.take();
        self.ended = exit.is_some();
        Ok(exit.map(Output::Exited))
    }

    fn take_ring(&mut self) -> Option<Output> {
        match self.ring.as_mut()?.take(RING_PIECE) {
            Ok(bytes) => bytes.map(Output::Ring),
            Err(error) => {
                self.ring = None;
                Some(Output::RingBroken(error.to_string()))
            }
        }
    }
}

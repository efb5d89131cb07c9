//! What the VMM says: that it knows us, that the machine started, what comes out of it, how it ended.
//!
//! What it says out of turn ends the run as its own death; what the guest says through it is heard in [`super::guest`].

use ktstr_proto::{
    ChannelError, Fds,
    channel::Message,
    client::ClientEvent,
    link::{ErrorCode, RemoteError, chain},
    run::{Boot, Job},
    verdict::Process,
    vmm::{ConsoleSockets, Started, VmExit, VmmEvent, VmmLink, VmmReply, Walls},
};

use super::{Session, State, pump};
use crate::{
    children::{Child, describe, pid_of},
    host_time::HostWatch,
    judge::Stopped,
};

impl Session {
    /// The VMM's socket is ready.
    pub fn vmm_ready(&mut self) {
        loop {
            let Some(vmm) = &mut self.vmm else { return };
            let step = pump(&mut vmm.channel);
            match step {
                Ok(Some((message, fds))) => self.vmm_message(message, fds),
                Ok(None) => return,
                // Its end is told by the pidfd, with the exit status.
                Err(ChannelError::Closed { .. }) => return,
                Err(error) => {
                    let how = format!("broke the protocol: {}", chain(&error));
                    return self.stop(Stopped::Died(Process::Vmm, how));
                }
            }
        }
    }

    pub(super) fn vmm_message(&mut self, message: Message<VmmLink>, fds: Fds) {
        match message {
            Message::Hello(_) => {
                let accepted = self.vmm.as_ref().map(|vmm| vmm.channel.accept_hello(message));
                self.vmm_known = true;
                if let Some(Err(error)) = accepted {
                    self.stop(Stopped::BadRequest(chain(&error)));
                }
            }
            _ if !self.vmm_known => self.stop(Stopped::Died(Process::Vmm, "spoke before its hello".into())),
            Message::Event(event) => self.vmm_event(event),
            Message::Reply(reply) if self.vmm_switched(reply.id, &reply.result) => {}
            Message::Reply(reply) if self.vmm_watches(reply.id, &reply.result) => {}
            // A stop or a start that came too late for its errand.
            Message::Reply(reply) if matches!(reply.result, Ok(VmmReply::Pause(_) | VmmReply::Resume(_))) => {
                self.record("vmm-late", &reply.result.ok());
            }
            Message::Reply(reply) => match reply.result {
                Ok(VmmReply::Start(started)) => {
                    if let Err(stopped) = self.machine_started(started, fds) {
                        self.stop(stopped);
                    }
                }
                Ok(other) => self.record("vmm-reply", &other),
                Err(error) if self.state == State::Starting && !self.device_is_gone() => {
                    if self.boot != Boot::Warm {
                        self.stop(refused(&error));
                    } else if let Err(stopped) =
                        self.start_cold(&error.message, error.code == ErrorCode::BadInput)
                    {
                        self.stop(stopped);
                    }
                }
                // The machine ended while the request was on its way: its exit is told, or the pidfd tells.
                Err(error) => self.record("vmm-late", &error),
            },
            Message::Request(_) => {
                self.stop(Stopped::Died(Process::Vmm, "asked instead of answering".into()))
            }
        }
    }

    fn machine_started(&mut self, started: Started, mut fds: Fds) -> Result<(), Stopped> {
        let wrong = |e: ktstr_proto::link::MissingFd| Stopped::Died(Process::Vmm, chain(&e));
        self.record("vmm-started", &started);
        self.accel_detail.clone_from(&started.detail);
        self.state = State::Running;
        match started.walls {
            Walls::All => {}
            Walls::NoUserNamespace => self.notice(
                "jail: this host forbids user namespaces; root's privilege made the others, and user id 0 of \
                 the processes is the host's"
                    .into(),
            ),
            Walls::None => self.notice(
                "jail: reduced: no namespaces and no root of their own; Landlock and system call filters are \
                 what confines the processes"
                    .into(),
            ),
        }
        let emulator = started.emulator.map(|slot| fds.take(slot, "emulator")).transpose().map_err(wrong)?;
        let emulator = emulator.and_then(|pidfd| pid_of(&pidfd));
        self.record("emulator-pid", &emulator);
        let runs_vcpus = emulator.or_else(|| self.vmm.as_ref().map(Child::pid));
        self.host = runs_vcpus.map(|pid| HostWatch::new(pid, self.spec.topology.cpus()));
        if let Some(console) = started.console {
            let terminal = fds.take(console.terminal, "console").map_err(wrong)?;
            let size = fds.take(console.size, "terminal size").map_err(wrong)?;
            let mut out = Fds::default();
            let sockets = ConsoleSockets { terminal: out.attach(terminal), size: out.attach(size) };
            self.outbox.push((ClientEvent::ConsoleReady(sockets), out));
        }
        let ram = fds.take(started.ram, "ram").map_err(wrong)?;
        if self.spec.observe
            && let Err(error) = self.attach_monitor(ram, &started)
        {
            self.notice(format!("the monitor does not observe this run: {error}"));
        }
        Ok(())
    }

    fn vmm_event(&mut self, event: VmmEvent) {
        match event {
            VmmEvent::Console(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                self.evidence.console.push(&text);
                self.timeline.console(&text, self.begun.elapsed());
                self.keep(|dir| dir.console(&bytes));
                if matches!(&self.spec.job, Job::Shell(shell) if shell.dmesg) {
                    self.outbox.push((ClientEvent::Console(bytes), Fds::default()));
                }
            }
            VmmEvent::Com2(bytes) => {
                self.evidence.console.push(&String::from_utf8_lossy(&bytes));
                self.keep(|dir| dir.com2(&bytes));
            }
            VmmEvent::Ring(bytes) => self.ring_bytes(&bytes),
            VmmEvent::RingBroken(reason) => {
                if !self.rather_boot(&reason) {
                    self.stop(Stopped::Channel(reason));
                }
            }
            VmmEvent::Saved(saved) => self.saved(saved),
            VmmEvent::Written { place, cpu } => self.place_written(place, cpu),
            station @ VmmEvent::Station { .. } => self.record("station", &station),
            VmmEvent::Statistics(counted) => self.keep(|dir| dir.write_json("kvm-statistics.json", &counted)),
            VmmEvent::Exited(exit @ (VmExit::EmulatorDied { .. } | VmExit::InternalError { .. }))
                if self.device_is_gone() =>
            {
                self.record("vmm-exited", &exit);
            }
            VmmEvent::Exited(exit) => {
                self.record("vmm-exited", &exit);
                if self.first_frame.is_none() {
                    let why = "the guest ended before it said anything";
                    if exit.is_of_itself() && self.rather_boot(why) {
                        return;
                    }
                    self.distrust_snapshot(why);
                } else if matches!(exit, VmExit::Reset | VmExit::TripleFault(_)) {
                    // Whatever did it may have been there before the snapshot was taken.
                    self.distrust_snapshot("a guest that began from it did not end well");
                }
                self.evidence.exit = Some(exit);
                self.wind_up();
            }
        }
    }

    /// The VMM's pidfd is readable.
    pub fn vmm_ended(&mut self) {
        self.vmm_ready();
        let Some(status) = self.vmm.as_mut().and_then(Child::ended) else { return };
        if self.evidence.exit.is_none() && self.state != State::Done {
            self.stop(Stopped::Died(Process::Vmm, describe(Some(status))));
        }
    }
}

/// A refusal of the VMM, as what it means for the run.
fn refused(error: &RemoteError) -> Stopped {
    use ktstr_proto::link::ErrorCode;
    match error.code {
        ErrorCode::Unavailable | ErrorCode::NotYet | ErrorCode::Jail => {
            Stopped::Missing(error.message.clone())
        }
        ErrorCode::BadRequest | ErrorCode::BadInput => Stopped::BadRequest(error.message.clone()),
        ErrorCode::Infrastructure => {
            Stopped::Died(Process::Vmm, format!("could not start the machine: {}", error.message))
        }
    }
}

//! The process that serves a run's disks and networks, as the session sees it.
//!
//! Its death ends the run: a guest whose disk does not answer tells nothing about a scheduler. After
//! the machine is gone its end is of no interest.

use ktstr_proto::{
    ChannelError,
    channel::Message,
    device::{DeviceEvent, DeviceLink},
    link::chain,
    verdict::Process,
};

use super::{Session, State, pump};
use crate::{
    children::{Child, describe},
    judge::Stopped,
};

impl Session {
    /// The device process, for the readiness loop.
    pub fn device(&self) -> Option<&Child<DeviceLink>> {
        self.device.as_ref()
    }

    /// Its socket is ready.
    pub fn device_ready(&mut self) {
        loop {
            let Some(device) = &mut self.device else { return };
            match pump(&mut device.channel) {
                Ok(Some((message, _))) => self.device_message(message),
                // Its end is told by the pidfd, with the exit status.
                Ok(None) | Err(ChannelError::Closed { .. }) => return,
                Err(error) => return self.device_lost(format!("broke the protocol: {}", chain(&error))),
            }
        }
    }

    fn device_message(&mut self, message: Message<DeviceLink>) {
        match message {
            Message::Hello(_) => {
                let accepted = self.device.as_ref().map(|device| device.channel.accept_hello(message));
                if let Some(Err(error)) = accepted {
                    self.stop(Stopped::BadRequest(chain(&error)));
                }
            }
            Message::Reply(reply) => match reply.result {
                Ok(serving) => self.record("device-serving", &serving),
                Err(error) => self.device_lost(format!("could not serve: {}", error.message)),
            },
            Message::Event(DeviceEvent::Broken { device, reason }) => {
                self.notice(format!("the guest broke {device}, which serves nothing more: {reason}"));
            }
            Message::Request(_) => self.device_lost("asked instead of answering".into()),
        }
    }

    /// Its pidfd is readable.
    pub fn device_ended(&mut self) {
        self.device_ready();
        if let Some(status) = self.device.as_mut().and_then(Child::ended) {
            self.device_lost(describe(Some(status)));
        }
    }

    /// Whether it is gone: then what the machine died of is not the machine's.
    pub(super) fn device_is_gone(&mut self) -> bool {
        let ended = self.device.as_mut().and_then(Child::ended);
        if let Some(status) = ended {
            self.device_lost(describe(Some(status)));
        }
        ended.is_some()
    }

    fn device_lost(&mut self, how: String) {
        self.device = None;
        if matches!(self.state, State::Starting | State::Running) && self.evidence.exit.is_none() {
            self.stop(Stopped::Died(Process::Device, how));
        }
    }
}

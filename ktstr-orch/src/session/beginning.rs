//! How a run's machine begins: it boots, or it goes on from a snapshot.
//!
//! A snapshot is never trusted more than a boot: whatever the VMM finds wrong with it costs the snapshot
//! and a few milliseconds, and the same run boots. So does one whose guest ends or hangs before it has said
//! a word. From its first word on a run is what it is, whatever it began from.

use std::time::{Duration, Instant};

use ktstr_proto::{
    Fds,
    ring::FrameDecoder,
    run::Boot,
    vmm::{Saved, Snapshot},
};

use super::{Session, State, Stopped};
use crate::{judge::Tail, plan::Plan};

/// How long a guest that was ready may take until it is heard. It takes a hundredth of that where it is not
/// kept from running, and what is lost when it is, is time.
const FIRST_WORD: Duration = Duration::from_secs(30);

impl Session {
    /// A snapshot there is, or one to be written.
    pub(super) fn begin_from(&mut self, plan: &Plan, fds: &mut Fds) -> Snapshot {
        self.boot = Boot::Cold;
        let Some(warm) = &plan.warm else { return Snapshot::Unused };
        if let Some(Ok(file)) = warm.snapshot.as_ref().map(std::fs::File::try_clone) {
            self.boot = Boot::Warm;
            return Snapshot::Load(fds.attach(file.into()));
        }
        let begun = warm.store.begin(&warm.likeness).and_then(|unfinished| {
            let Some(unfinished) = unfinished else { return Ok(None) };
            let file = unfinished.file()?;
            Ok(Some((unfinished, file)))
        });
        match begun {
            Ok(Some((unfinished, file))) => {
                self.unfinished = Some(unfinished);
                let description = warm.likeness.text().to_owned();
                Snapshot::Save { file: fds.attach(file), description }
            }
            // Another run keeps one.
            Ok(None) => Snapshot::Unused,
            Err(error) => {
                self.notice(format!("no snapshot will be kept of this machine: {error}"));
                Snapshot::Unused
            }
        }
    }

    /// When a machine that has been told to start must have been heard.
    pub(super) fn must_speak_by(&self, plan: &Plan) -> Instant {
        let limit = if self.boot == Boot::Warm { FIRST_WORD.min(plan.boot_limit) } else { plan.boot_limit };
        Instant::now() + limit
    }

    /// The VMM does not take the snapshot: the same run, booted. One that is not to blame stays.
    pub(super) fn start_cold(&mut self, why: &str, to_blame: bool) -> Result<(), Stopped> {
        let Some(mut plan) = self.plan.take() else { return Ok(()) };
        plan.boot_instead();
        if let Some(warm) = &plan.warm {
            let warning = if to_blame {
                warm.store.discard(&warm.likeness, why)
            } else {
                format!("warning: the snapshot was not used, the guest boots cold: {why}")
            };
            self.notice(warning);
        }
        // It lives until its successor has descriptors of other numbers.
        let refused = self.vmm.take();
        self.vmm_known = false;
        let started = self.start(plan);
        drop(refused);
        started
    }

    /// A machine from a snapshot is of no use before its guest has said a word: the same run, booted. False
    /// where it is not about a snapshot.
    pub(super) fn rather_boot(&mut self, why: &str) -> bool {
        let silent = self.first_frame.is_none() && matches!(self.state, State::Starting | State::Running);
        if self.boot != Boot::Warm || !silent {
            return false;
        }
        self.monitor_lost();
        self.abandon("the machine boots anew");
        // It lives until its successor has descriptors of other numbers.
        self.retired = self.monitor.take();
        (self.monitor_known, self.monitor_attached, self.kernel_readable) = (false, false, false);
        self.host = None;
        self.decoder = FrameDecoder::default();
        self.evidence.console = Tail::default();
        if let Err(stopped) = self.start_cold(why, true) {
            self.stop(stopped);
        }
        true
    }

    /// What a snapshot came to is not what a machine comes to.
    pub(super) fn distrust_snapshot(&mut self, why: &str) {
        if self.boot == Boot::Warm
            && let Some(warm) = self.plan.as_mut().and_then(|plan| plan.warm.as_mut())
            && warm.snapshot.take().is_some()
        {
            let warning =
                warm.store.discard(&warm.likeness, why).replace("the guest boots", "the next one boots");
            self.notice(warning);
        }
    }

    /// The VMM has written a snapshot, or could not.
    pub(super) fn saved(&mut self, saved: Result<Saved, String>) {
        self.record("snapshot-saved", &saved);
        let Some(unfinished) = self.unfinished.take() else { return };
        let kept = saved.and_then(|_| unfinished.keep().map_err(|error| error.to_string()));
        match kept {
            Ok(note) => {
                self.boot = Boot::Kept;
                note.into_iter().for_each(|note| self.notice(note));
            }
            Err(why) => self.notice(format!("no snapshot was kept of this machine: {why}")),
        }
    }
}

//! How a run's machine begins: it boots, or it goes on from a snapshot.
//!
//! A snapshot is never trusted more than a boot: whatever the VMM finds wrong with it costs the snapshot
//! and a few milliseconds, and the same run boots. One whose guest says nothing is removed as well.

use ktstr_proto::{
    Fds,
    run::Boot,
    vmm::{Saved, Snapshot},
};

use super::{Session, Stopped};
use crate::plan::Plan;

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
            let file = unfinished.file.try_clone()?;
            Ok((unfinished, file))
        });
        match begun {
            Ok((unfinished, file)) => {
                self.unfinished = Some(unfinished);
                let description = warm.likeness.text().to_owned();
                Snapshot::Save { file: fds.attach(file.into()), description }
            }
            Err(error) => {
                self.notice(format!("no snapshot will be kept of this machine: {error}"));
                Snapshot::Unused
            }
        }
    }

    /// The VMM does not take the snapshot: the same run, booted.
    pub(super) fn start_cold(&mut self, why: &str) -> Result<(), Stopped> {
        let Some(mut plan) = self.plan.take() else { return Ok(()) };
        plan.boot_instead();
        if let Some(warm) = &plan.warm {
            let warning = warm.store.discard(&warm.likeness, why);
            self.notice(warning);
        }
        // It lives until its successor has descriptors of other numbers.
        let refused = self.vmm.take();
        self.vmm_known = false;
        let started = self.start(plan);
        drop(refused);
        started
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
        match saved {
            Ok(_) => {
                self.boot = Boot::Kept;
                // The disk may take its time; whoever ends before it is done leaves nothing half-written.
                let keep = move || {
                    if let Err(error) = unfinished.keep() {
                        tracing::warn!("the snapshot could not be kept: {error}");
                    }
                };
                self.keeping = std::thread::Builder::new().name("keep".into()).spawn(keep).ok();
            }
            Err(why) => self.notice(format!("no snapshot was kept of this machine: {why}")),
        }
    }
}

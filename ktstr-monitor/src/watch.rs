//! Signs that a scheduler is about to be ended, looked for in every sample.
//!
//! The kernel's watchdog ends a scheduler that leaves a runnable task waiting for too long, and then
//! the evidence is gone with it. So a task that has waited for half of that is told of. One sight is
//! not believed: lists change while they are read.

use ktstr_proto::capture::Stalling;

use crate::addr::Kva;
use crate::kernel::list;
use crate::kernel::{LiveKernel, Profile, Reading, View};
use crate::mem::GuestMem;

/// Tasks looked at on each CPU's list; it begins with those that wait longest.
const LOOKED_AT: usize = 64;

/// What was seen and told.
#[derive(Debug, Default)]
pub struct Watch {
    suspect: Option<Kva>,
    told_stalling: Option<Kva>,
    told_exiting: Option<Kva>,
}

/// A sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sign {
    /// A task waits for long.
    Stalling(Stalling),
    /// The scheduler is being ended.
    Exiting {
        /// The enumerator of `scx_exit_kind`.
        kind: String,
    },
}

impl Watch {
    /// Looks at the guest; each sign is given once per scheduler.
    pub fn look(&mut self, profile: &Profile, live: &LiveKernel, mem: &GuestMem) -> Vec<Sign> {
        let view = View { profile, live, mem: live.view(mem) };
        let Ok(instance @ 1..) = view.word("scx_root") else {
            self.suspect = None;
            return Vec::new();
        };
        let instance = Kva(instance);
        let mut signs = Vec::new();
        if self.told_exiting != Some(instance)
            && let Some(kind) = exiting(&view, instance)
        {
            self.told_exiting = Some(instance);
            signs.push(Sign::Exiting { kind });
        }
        if self.told_stalling != Some(instance) {
            let found = longest_waiting(&view, instance).ok().flatten();
            let suspect = found.as_ref().map(|(task, _)| *task);
            if let Some((task, stalling)) = found
                && self.suspect == Some(task)
            {
                self.told_stalling = Some(instance);
                signs.push(Sign::Stalling(stalling));
            }
            self.suspect = suspect;
        }
        signs
    }
}

fn exiting(view: &View<'_, '_>, instance: Kva) -> Option<String> {
    let state = crate::kernel::scx_state::exit_kind(view, instance).ok()?;
    (state != "SCX_EXIT_NONE").then_some(state)
}

/// The task that has waited longest, if that is at least half of what the watchdog tolerates.
fn longest_waiting(view: &View<'_, '_>, instance: Kva) -> Reading<Option<(Kva, Stalling)>> {
    let limit = crate::kernel::scx_state::watchdog_timeout(view, Some(instance))?;
    let jiffies = view.word("jiffies_64").or_else(|_| view.word("jiffies"))?;
    let (head, node) =
        (view.offset("rq", "scx.runnable_list")?, view.offset("task_struct", "scx.runnable_node")?);
    let stamp = view.offset("task_struct", "scx.runnable_at")?;
    let mut longest: Option<(Kva, u32, u64)> = None;
    for area in view.live.cpus() {
        let rq = view.live.per_cpu(view.profile.runqueues(), *area);
        let list = list::list_head(&view.mem, "rq.scx.runnable_list", rq.wrapping_add(head), LOOKED_AT);
        for task in list.items.into_iter().map(|at| list::container(at, node)) {
            let Ok(Kva(since)) = list::pointer(&view.mem, task.wrapping_add(stamp), "scx.runnable_at") else {
                continue;
            };
            let age = jiffies.wrapping_sub(since);
            // A stamp from after jiffies was read, or from a task that is just being freed.
            let plausible = since != 0 && age < u64::from(u32::MAX);
            if plausible && age >= limit / 2 && longest.is_none_or(|(_, _, most)| age > most) {
                longest = Some((task, area.cpu.0, age));
            }
        }
    }
    let Some((task, cpu, age)) = longest else { return Ok(None) };
    let copy = view.profile.state.task(view, task)?;
    let (pid, comm, running) = (copy.pid?, copy.comm?, copy.on_cpu? != 0);
    // The one that runs is on the list, too, with the stamp of when it became runnable.
    let stalling = Stalling { pid, comm, cpu, age_jiffies: age, limit_jiffies: limit };
    Ok((!running).then_some((task, stalling)))
}

//! The kernel's stall watchdog, told to be more patient: the one thing that a monitor writes.
//!
//! `ops.timeout_ms` ends at 30 s, and an emulator or a busy host can need more. Where the kernel keeps
//! the limit in the scheduler (`scx_sched.watchdog_timeout`) it is written there, else in the variable
//! `scx_watchdog_timeout`; which of the two is there is what the kernel's types say. Each scheduler
//! that is loaded gets it anew.
//!
//! Refuses to shorten it: the next check is due by the old limit, and until then the kernel would take
//! its own lateness for a stall (`scx_tick`). A scheduler that wants less says so itself.

use ktstr_proto::link::chain;
use thiserror::Error;

use crate::addr::Kva;
use crate::kernel::{Gap, LiveKernel, Profile, View, scx_state, state};
use crate::mem::GuestMemMut;
use crate::paging::AccessError;

/// `struct scx_sched`'s member, since schedulers may have limits of their own.
const MEMBER: &str = "scx_sched.watchdog_timeout";
/// The variable of older kernels.
const VARIABLE: &str = "scx_watchdog_timeout";
/// A day: what comes out of more than this in jiffies is no limit.
const MAX_MS: u64 = 24 * 60 * 60 * 1000;

/// A limit that schedulers are to get.
#[derive(Debug)]
pub struct Patience {
    ram: GuestMemMut,
    ms: u64,
    /// The scheduler that was looked at last, what it is to have, in jiffies, and whether that was written.
    seen: Option<(Kva, u64, bool)>,
}

/// What was done for one scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Where: the member or the variable.
    pub place: &'static str,
    /// Jiffies there were.
    pub from: u64,
    /// Jiffies there are.
    pub to: u64,
}

/// Why a scheduler keeps its limit.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum WatchdogError {
    /// This kernel keeps it nowhere.
    #[error("this kernel has neither `{MEMBER}` nor `{VARIABLE}`: the watchdog keeps its limit")]
    Nowhere(#[source] Gap),
    /// It cannot be read.
    #[error("the watchdog's limit cannot be read: it stays")]
    Unreadable(#[source] Gap),
    /// It would be shorter.
    #[error(
        "the watchdog's limit stays at {from} jiffies: {to} would be less, and the kernel would take its own next \
         check, which is due by the old limit, for late; give the scheduler a shorter `timeout_ms`"
    )]
    Shorter {
        /// What it is.
        from: u64,
        /// What it would be.
        to: u64,
    },
    /// Another scheduler runs, or none.
    #[error("the watchdog's limit stays: the scheduler is gone")]
    Gone,
    /// It cannot be written.
    #[error("the watchdog's limit cannot be written: it stays")]
    Unwritten(#[source] AccessError),
}

impl Patience {
    /// Schedulers of the guest with this memory are to get a limit of `ms`.
    pub fn new(ram: GuestMemMut, ms: u64) -> Self {
        Self { ram, ms: ms.min(MAX_MS), seen: None }
    }

    /// Gives a scheduler its limit if it has not got it, and tells of it when that is news. Where the kernel
    /// does not tell how long a jiffy is nothing is done.
    ///
    /// A kernel that keeps the limit in a variable names the scheduler first and sets the variable later: what is
    /// written in between is lost, and what is refused because of the scheduler before it is no answer for this
    /// one. So every look looks at the limit.
    pub fn look(&mut self, profile: &Profile, live: &LiveKernel) -> Option<Result<Written, WatchdogError>> {
        let view = View { profile, live, mem: live.view(self.ram.read()) };
        let instance = Kva(view.word("scx_root").ok().filter(|root| *root != 0)?);
        let known = self.seen.filter(|(of, ..)| *of == instance);
        let to = match known {
            Some((_, to, _)) => to,
            None => self.ms * u64::from(state::hz(&view).ok()?) / 1000,
        };
        if known.is_some() && scx_state::watchdog_timeout(&view, Some(instance)).is_ok_and(|now| now >= to) {
            return None;
        }
        let done = write(&view, &self.ram, instance, to);
        let written = known.is_some_and(|(.., written)| written);
        self.seen = Some((instance, to, written || done.is_ok()));
        let is_news = known.is_none() || (!written && done.is_ok());
        is_news.then_some(done)
    }
}

fn write(view: &View<'_, '_>, ram: &GuestMemMut, instance: Kva, to: u64) -> Result<Written, WatchdogError> {
    let (place, at) = match view.offset("scx_sched", "watchdog_timeout") {
        Ok(into) => (MEMBER, instance.wrapping_add(into)),
        Err(gap) => (VARIABLE, view.symbol(VARIABLE).map_err(|_| WatchdogError::Nowhere(gap))?),
    };
    let from = scx_state::watchdog_timeout(view, Some(instance)).map_err(WatchdogError::Unreadable)?;
    if to < from {
        return Err(WatchdogError::Shorter { from, to });
    }
    // It may have gone meanwhile, and its memory be something else's.
    if view.word("scx_root").ok() != Some(instance.0) {
        return Err(WatchdogError::Gone);
    }
    // An aligned word is stored in one piece: the kernel sees the old limit or the new one.
    view.mem.write_through(ram, at, &to.to_le_bytes()).map_err(WatchdogError::Unwritten)?;
    Ok(Written { place, from, to })
}

impl std::fmt::Display for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` raised from {} to {} jiffies", self.place, self.from, self.to)
    }
}

/// The same in words, whatever came of it.
pub fn told(done: &Result<Written, WatchdogError>) -> String {
    done.as_ref().map_or_else(|error| chain(error), Written::to_string)
}

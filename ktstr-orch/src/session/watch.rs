//! Places that are watched for writes: from a name to a capture.
//!
//! ```text
//!           Locate (again and again)        Watch                Written
//! wanted ───────────────────────────▶ found ─────▶ watched ─────────────▶ an errand, the guest stands
//!    │ det, too many, VMM refuses             │                 │ enough of them
//!    └────────▶ a mark that says why ◀────────┘                 └──▶ watched no more
//! ```
//!
//! The monitor finds the place, the VMM watches it, this session alone knows both. What is not there
//! yet (a scheduler's variable before it is loaded) is looked for until the run ends.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use ktstr_proto::{
    Fds,
    capture::{BusyPlace, Locate, Located, MAX_WATCHED, PlaceWritten, WatchPoint},
    link::RemoteError,
    monitor::{MonitorReply, MonitorRequest},
    run::AccelKind,
    vmm::{Resume, VmmReply, VmmRequest, Watch},
};

use super::{Session, State};

/// How often a place that is not there yet is looked for.
const AGAIN: Duration = Duration::from_millis(200);
/// Captures taken of one place, at most: a busy one would stop the guest for ever.
const MAX_HITS: u32 = 16;
/// Places asked for in one run, at most.
const MAX_WANTED: usize = 32;

/// A place by name that has not been found yet.
#[derive(Debug)]
struct Wanted {
    what: String,
    /// Why it was not found the last time.
    why_not: String,
}

/// A place that is, or is about to be, watched.
#[derive(Debug)]
struct Armed {
    what: String,
    place: WatchPoint,
    hits: u32,
    /// It goes with the scheduler.
    of_scheduler: bool,
}

/// What one run watches.
#[derive(Debug, Default)]
pub(super) struct Watches {
    wanted: Vec<Wanted>,
    armed: Vec<Armed>,
    /// Which of `wanted` the monitor looks for, under which request.
    looking: Option<(u32, String)>,
    /// What the VMM was told last: its request, and what is new in it.
    setting: Vec<(u32, Option<String>)>,
    next: Option<Instant>,
    /// What has been watched at some time.
    seen: BTreeSet<String>,
    /// How often a wish was refused.
    refused: usize,
}

impl Watches {
    /// When something is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next.filter(|_| !self.wanted.is_empty() && self.looking.is_none())
    }

    fn places(&self) -> Vec<WatchPoint> {
        self.armed.iter().map(|armed| armed.place).collect()
    }
}

impl Session {
    /// The test wants to see each write to a place.
    pub(super) fn watch(&mut self, what: String) {
        let watches = &self.watches;
        let known = watches.wanted.iter().any(|wanted| wanted.what == what)
            || watches.armed.iter().any(|armed| armed.what == what);
        if known {
            return;
        }
        let refused = match self.plan.as_ref().map(|plan| plan.accel) {
            Some(AccelKind::Det) => Some(
                "det watches nothing: a place is set at a moment that the host chooses, and the run would not replay"
                    .to_owned(),
            ),
            _ if !self.spec.observe => Some("no monitor observes this run (KTSTR_OBSERVE=0)".to_owned()),
            _ if watches.wanted.len() + watches.armed.len() >= MAX_WANTED => {
                Some(format!("more than {MAX_WANTED} places are watched already"))
            }
            _ if what.is_empty() || what.len() > 512 => Some("it is no name".to_owned()),
            _ => None,
        };
        match refused {
            // A guest may wish without end.
            Some(_) if self.watches.refused > MAX_WANTED => {}
            Some(why) => {
                self.watches.refused += 1;
                let short: String = what.chars().take(128).collect();
                self.not_watched(&short, &why);
                if self.watches.refused > MAX_WANTED {
                    self.notice("what else is not watched is not said any more".to_owned());
                }
            }
            None => {
                self.watches.wanted.push(Wanted { what, why_not: "the run ended before".into() });
                self.watches.next = Some(Instant::now());
                self.watches_tick(Instant::now());
            }
        }
    }

    fn not_watched(&mut self, what: &str, why: &str) {
        self.notice(format!("{what} is not watched: {why}"));
        self.no_watch_capture(what, why);
    }

    /// Time has passed: looks for what is wanted next, one at a time.
    pub(super) fn watches_tick(&mut self, now: Instant) {
        let due = self.watches.deadline().is_some_and(|at| at <= now);
        if !due || !self.monitor_attached || self.state != State::Running {
            return;
        }
        self.watches.next = Some(now + AGAIN);
        // Everybody in turn.
        self.watches.wanted.rotate_left(1);
        let Some(what) = self.watches.wanted.last().map(|wanted| wanted.what.clone()) else { return };
        let request = MonitorRequest::Locate(Locate { what: what.clone() });
        let asked = self.monitor.as_mut().map(|monitor| {
            let id = monitor.channel.queue_request(request, Fds::default())?;
            monitor.channel.flush().map(|_| id)
        });
        if let Some(Ok(id)) = asked {
            self.watches.looking = Some((id, what));
        }
    }

    /// A reply of the monitor, if it says where a place is.
    pub(super) fn place_located(&mut self, id: u32, result: &Result<MonitorReply, RemoteError>) -> bool {
        let Some((_, what)) = self.watches.looking.take_if(|(request, _)| *request == id) else {
            return false;
        };
        match result {
            Ok(MonitorReply::Locate(located)) => self.set_watch(&what, located),
            Ok(_) => self.lose_monitor("answered something else than where a place is"),
            Err(error) => {
                if let Some(wanted) = self.watches.wanted.iter_mut().find(|wanted| wanted.what == what) {
                    wanted.why_not.clone_from(&error.message);
                }
            }
        }
        true
    }

    fn set_watch(&mut self, what: &str, located: &Located) {
        self.watches.wanted.retain(|wanted| wanted.what != what);
        self.record("watch", &(what, located));
        if self.watches.armed.len() >= MAX_WATCHED {
            return self.not_watched(what, &format!("a processor watches {MAX_WATCHED} places at a time"));
        }
        if self.watches.armed.iter().any(|armed| armed.place == located.place) {
            return self.not_watched(what, "the same place is watched under another name");
        }
        let of_scheduler = located.of_scheduler;
        self.watches.armed.push(Armed { what: what.to_owned(), place: located.place, hits: 0, of_scheduler });
        self.tell_vmm(Some(what.to_owned()));
    }

    fn tell_vmm(&mut self, new: Option<String>) {
        let places = self.watches.places();
        if let Some(id) = self.ask_vmm(VmmRequest::Watch(Watch { places })) {
            self.watches.setting.push((id, new));
        }
    }

    /// A reply of the VMM, if it is about watching.
    pub(super) fn vmm_watches(&mut self, id: u32, result: &Result<VmmReply, RemoteError>) -> bool {
        let Some(at) = self.watches.setting.iter().position(|(request, _)| *request == id) else {
            return false;
        };
        let (_, new) = self.watches.setting.remove(at);
        match (new, result) {
            (Some(what), Ok(_)) => {
                self.record("watched", &what);
                self.watches.seen.insert(what);
            }
            (Some(what), Err(error)) => {
                self.watches.armed.retain(|armed| armed.what != what);
                // Its end is told otherwise.
                if self.state == State::Running {
                    self.not_watched(&what, &error.message);
                }
            }
            (None, _) => {}
        }
        true
    }

    /// A CPU has written to a watched place; the guest stands.
    pub(super) fn place_written(&mut self, place: WatchPoint, cpu: u32) {
        self.record("written", &(place, cpu));
        let Some(armed) = self.watches.armed.iter_mut().find(|armed| armed.place == place) else {
            // Not watched any more: the guest stands for nothing.
            return self.go_on();
        };
        armed.hits += 1;
        let (what, nth, last) = (armed.what.clone(), armed.hits, armed.hits >= MAX_HITS);
        if last {
            self.watches.armed.retain(|armed| armed.place != place);
            self.tell_vmm(None);
            self.notice(format!(
                "writes to {what} stopped the guest {MAX_HITS} times; it is watched no more, and what is \
                 written there later is not captured"
            ));
        }
        if !self.capture_written_place(PlaceWritten { what, place, cpu, nth, last }) {
            self.go_on();
        }
    }

    /// What became of a place that was not watched to the end.
    pub(super) fn place_was_busy(&mut self, place: &BusyPlace) {
        self.notice(told(place));
    }

    /// A scheduler is gone, and its memory with it: its places are looked for in the next one.
    pub(super) fn scheduler_gone(&mut self) {
        let (gone, stay) = std::mem::take(&mut self.watches.armed).into_iter().partition(|a| a.of_scheduler);
        self.watches.armed = stay;
        let gone: Vec<Armed> = gone;
        if gone.is_empty() {
            return;
        }
        self.tell_vmm(None);
        // Those that were written have been of use; whether there is another scheduler is not known.
        let again = gone.into_iter().map(|armed| Wanted { what: armed.what, why_not: String::new() });
        self.watches.wanted.extend(again);
        self.watches.next = Some(Instant::now() + AGAIN);
    }

    /// Lets a guest go on that nobody looks into; whoever does lets it go on himself.
    pub(super) fn go_on(&mut self) {
        if self.errands.stands() {
            return;
        }
        if let Some(id) = self.ask_vmm(VmmRequest::Resume(Resume)) {
            self.watches.setting.push((id, None));
        }
    }

    /// The machine is gone: what was not found will not be.
    pub(super) fn abandon_watches(&mut self) {
        for wanted in std::mem::take(&mut self.watches.wanted) {
            // Written in an earlier scheduler, and looked for since in vain.
            if !self.watches.seen.contains(&wanted.what) {
                self.not_watched(&wanted.what, &wanted.why_not);
            }
        }
        self.watches.armed.clear();
    }
}

fn told(place: &BusyPlace) -> String {
    let BusyPlace { what, captured, last_captured, last_read } = place;
    let (Some(then), Some(now)) = (last_captured, last_read) else {
        return format!("what {what} was after the {captured} captured writes could not be read");
    };
    match now.checked_sub(*then) {
        Some(0) => format!("{what} was {then} at the last captured write and when it was last read"),
        Some(more) => format!(
            "{what} was {then} at the last captured write and {now} when it was last read: {more} more, if it \
             counts"
        ),
        None => format!("{what} was {then} at the last captured write and {now} when it was last read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_after_the_last_capture_is_told() {
        let place =
            |then, now| BusyPlace { what: "hits".into(), captured: 16, last_captured: then, last_read: now };
        assert!(
            told(&place(Some(16), Some(90))).ends_with("90 when it was last read: 74 more, if it counts")
        );
        assert!(
            told(&place(Some(16), Some(16)))
                .ends_with("was 16 at the last captured write and when it was last read")
        );
        assert!(
            told(&place(Some(16), Some(2)))
                .ends_with("16 at the last captured write and 2 when it was last read")
        );
        assert!(told(&place(None, Some(2))).contains("could not be read"));
    }
}

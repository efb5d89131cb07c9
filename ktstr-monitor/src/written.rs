//! What watched places held: when they were found, after each captured write, and after the last of them.
//!
//! A place that is written all the time is captured a number of times and then watched no more, or the guest
//! would stand for ever. What is written there later raises no capture, but it is not forgotten: the place is
//! read with each sample, as long as it is still called what it was called, so that whoever watched a counter
//! knows how much came after. How places are found: [`crate::place`].

use std::collections::BTreeMap;

use ktstr_proto::capture::{BusyPlace, PlaceWritten, WatchPoint};

use crate::addr::Kva;
use crate::node::Node;

/// One place.
#[derive(Debug, Default)]
struct Known {
    /// Before it was watched.
    found: Option<u64>,
    /// After the last captured write.
    last: Option<u64>,
    /// Since it is watched no more.
    busy: Option<Busy>,
}

/// A place that was written too often.
#[derive(Debug)]
struct Busy {
    what: String,
    /// How many writes had been captured.
    captured: u32,
    /// The newest value that was read since.
    now: Option<u64>,
}

/// All places that are or were watched.
#[derive(Debug, Default)]
pub struct WatchedPlaces {
    places: BTreeMap<WatchPoint, Known>,
}

impl WatchedPlaces {
    /// A place is about to be watched, perhaps again.
    pub fn found(&mut self, place: WatchPoint, value: Option<u64>) {
        self.places.insert(place, Known { found: value, ..Known::default() });
    }

    /// The write that stopped the guest has left `new` there.
    pub fn written(&mut self, by: &PlaceWritten, new: Option<u64>) -> Written {
        let known = self.places.entry(by.place).or_default();
        let old = std::mem::replace(&mut known.last, new);
        if by.last {
            known.busy = Some(Busy { what: by.what.clone(), captured: by.nth, now: new });
        }
        Written { by: by.clone(), found: known.found, old, new }
    }

    /// Whether anything is to be [read](Self::look).
    pub fn any_busy(&self) -> bool {
        self.places.values().any(|known| known.busy.is_some())
    }

    /// Reads the places that are watched no more; `read` yields nothing where the name means another place by
    /// now, or none.
    pub fn look(&mut self, mut read: impl FnMut(&str, WatchPoint) -> Option<u64>) {
        for (place, known) in &mut self.places {
            if let Some(busy) = &mut known.busy
                && let Some(value) = read(&busy.what, *place)
            {
                busy.now = Some(value);
            }
        }
    }

    /// The places that are watched no more.
    pub fn busy(&self) -> Vec<BusyPlace> {
        let of = |known: &Known| {
            let busy = known.busy.as_ref()?;
            let (what, captured) = (busy.what.clone(), busy.captured);
            Some(BusyPlace { what, captured, last_captured: known.last, last_read: busy.now })
        };
        self.places.values().filter_map(of).collect()
    }
}

/// A write to a watched place, with what was there before and after it.
#[derive(Debug)]
pub struct Written {
    by: PlaceWritten,
    /// Before it was watched.
    found: Option<u64>,
    /// After the write before.
    old: Option<u64>,
    new: Option<u64>,
}

impl Written {
    /// For the capture.
    pub fn node(&self) -> Node {
        let or = |value: Option<u64>, why: &str| value.map_or(Node::Unreadable(why.into()), Node::from);
        let not_read = "it was not read";
        Node::map([
            ("what", self.by.what.as_str().into()),
            ("at", Kva(self.by.place.kva).into()),
            ("len", self.by.place.len.into()),
            ("cpu", self.by.cpu.into()),
            ("nth", self.by.nth.into()),
            ("last", Node::Bool(self.by.last)),
            ("found", or(self.found, not_read)),
            ("old", or(self.old, "this is the first write that was seen")),
            ("new", or(self.new, not_read)),
        ])
    }

    /// For the capture's title.
    pub fn text(&self) -> String {
        let value =
            |value: Option<u64>| value.map_or("?".to_owned(), |value| format!("{value} ({value:#x})"));
        let last = match self.by.last {
            true => {
                format!("; after {} it is watched no more, what comes later is not captured", self.by.nth)
            }
            false => String::new(),
        };
        match self.old.or(self.found) {
            was if was.is_some() && was == self.new => format!(": {}, as it was{last}", value(was)),
            was => format!(": {} where {} was{last}", value(self.new), value(was)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: WatchPoint = WatchPoint { kva: 0xffff_c900_0000_1000, len: 8 };

    fn write(nth: u32, last: bool) -> PlaceWritten {
        PlaceWritten { what: "hits".into(), place: PLACE, cpu: 1, nth, last }
    }

    #[test]
    fn a_place_that_is_watched_no_more_is_still_read() {
        let mut places = WatchedPlaces::default();
        places.found(PLACE, Some(3));
        places.written(&write(1, false), Some(4));
        assert!(!places.any_busy(), "it is watched");
        places.look(|_, _| panic!("what is watched need not be read"));
        assert_eq!(places.busy(), []);

        // The same value again, or a write that was captured with the one before.
        assert_eq!(places.written(&write(2, false), Some(4)).text(), ": 4 (0x4), as it was");

        let last = places.written(&write(2, true), Some(5));
        assert_eq!(
            last.text(),
            ": 5 (0x5) where 4 (0x4) was; after 2 it is watched no more, what comes later is not captured"
        );
        let busy = |last_read| {
            vec![BusyPlace { what: "hits".into(), captured: 2, last_captured: Some(5), last_read }]
        };
        assert_eq!(places.busy(), busy(Some(5)), "nothing is known to have come after");
        places.look(|what, place| (what == "hits" && place == PLACE).then_some(90));
        // The scheduler is gone: its memory is somebody else's.
        places.look(|_, _| None);
        assert_eq!(places.busy(), busy(Some(90)));

        places.found(PLACE, Some(90));
        assert_eq!(places.busy(), [], "it is watched again");
    }
}

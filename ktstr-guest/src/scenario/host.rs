//! What a test asks of the host while it runs: captures, and values in the maps of the scheduler's programs.
//! Those of the kernel are in [`super::kernel`].
//!
//! The host does it from outside, through guest memory; the caller waits for the answer. Under `det`, where
//! nothing on the host reaches the guest, captures are taken without waiting and maps are out of reach.

use ktstr_proto::guest::{HostRefusal, HostRequest, SchedulerRequest};
use serde_json::Value;

use super::Ctx;
use crate::report::ReportError;

/// Longest name of a capture.
const MAX_NAME: usize = 64;
/// What the name of a map begins with that was pinned by what follows.
pub(super) const PINNED: &str = "pinned:";
/// What names of captures begin with that nobody asked for by name.
const RESERVED: [&str; 4] = ["periodic_", "seen_", "asked_", "watched_"];

/// Why the host did not do it.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No capture can be called so.
    #[error("no capture can be called `{name}`: {reason}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        reason: String,
    },
    /// There is no way to the host.
    #[error("the host cannot be asked")]
    Report(#[from] ReportError),
    /// No run of this kind can have it.
    #[error("{0}")]
    NotHere(String),
    /// The host tried, or says why it did not.
    #[error("{0}")]
    Refused(String),
    /// The answer is no JSON.
    #[error("the host's answer cannot be read")]
    Answer(#[source] serde_json::Error),
}

/// A value that was read in a BPF map.
#[derive(Debug, Clone, PartialEq)]
pub struct MapValue(Value);

impl MapValue {
    /// As JSON, the way captures have it.
    pub fn json(&self) -> &Value {
        &self.0
    }

    /// As an unsigned number, if it is one.
    pub fn as_u64(&self) -> Option<u64> {
        self.0.as_u64()
    }

    /// As a signed number, if it is one.
    pub fn as_i64(&self) -> Option<i64> {
        self.0.as_i64()
    }

    /// As a text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        self.0.as_str()
    }
}

impl std::fmt::Display for MapValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Refuses names that are no file names or those of other captures.
pub(super) fn check_capture_name(name: &str) -> Result<(), HostError> {
    let refuse = |reason: &str| Err(HostError::Name { name: name.into(), reason: reason.into() });
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fits) {
        return refuse("a snapshot's name has 1 to 64 letters, digits, `_`, `-` and `.`");
    }
    match RESERVED.iter().find(|reserved| name.starts_with(**reserved)) {
        Some(reserved) => refuse(&format!("names that begin with `{reserved}` are given by ktstr itself")),
        None => Ok(()),
    }
}

impl Ctx {
    /// Has the host capture all of the guest's state; the host's half of the test finds it by this name, as
    /// `VmResult::snapshot_bridge().get(name)`.
    pub fn capture_snapshot(&self, name: &str) -> Result<(), HostError> {
        check_capture_name(name)?;
        self.ask_host(HostRequest::Capture { name: name.into() }).map(drop)
    }

    /// Has the host read the value at `path` in the BPF map `map`, which may be the end of its name (`.bss`).
    pub fn read_map(&self, map: &str, path: &str) -> Result<MapValue, HostError> {
        let (map, path) = (self.map_named(map)?, path.to_owned());
        let json = self.ask_host(HostRequest::ReadMap { map, path })?;
        serde_json::from_str(&json).map(MapValue).map_err(HostError::Answer)
    }

    /// Has the host set the number at `path` in the BPF map `map`.
    pub fn write_map(&self, map: &str, path: &str, value: i64) -> Result<(), HostError> {
        let (map, path) = (self.map_named(map)?, path.to_owned());
        self.ask_host(HostRequest::WriteMap { map, path, value }).map(drop)
    }

    /// Keeps a BPF map of the scheduler when the scheduler goes. From now on [`Self::read_map`] and
    /// [`Self::write_map`] find it as `pinned:NAME`, whatever other maps of its name there are. `name` may be the end of
    /// the map's name; of several of one name it is the running scheduler's. The map's number, which it has for good.
    pub fn pin_bpf_map(&self, name: &str) -> Result<u32, HostError> {
        let pinned = self.reporter.ask(SchedulerRequest::PinMap(name.into()))?.map_err(HostError::Refused)?;
        let id: u32 = pinned.parse().map_err(|_| {
            HostError::Refused(format!("PID 1 answered `{pinned}`, which is no number of a map"))
        })?;
        self.keep_pinned(name, id);
        Ok(id)
    }

    /// The name by which the host finds a map: a pinned one by its number.
    fn map_named(&self, map: &str) -> Result<String, HostError> {
        let Some(pinned) = map.strip_prefix(PINNED) else { return Ok(map.to_owned()) };
        let number = self.pinned_as(pinned).map(|id| format!("#{id}"));
        number.ok_or_else(|| HostError::Refused(format!("no BPF map was pinned as `{pinned}`")))
    }

    pub(super) fn ask_host(&self, request: HostRequest) -> Result<String, HostError> {
        self.reporter.ask_host(request)?.map_err(|HostRefusal { not_here, reason }| match not_here {
            true => HostError::NotHere(reason),
            false => HostError::Refused(reason),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_captures_are_file_names_of_their_own() {
        assert!(check_capture_name("before-the_swap.1").is_ok());
        for (name, why) in [("", "1 to 64"), ("a/b", "letters"), ("periodic_000", "given by ktstr itself")] {
            let error = check_capture_name(name).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}

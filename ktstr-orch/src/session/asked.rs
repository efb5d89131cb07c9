//! What the test in the guest asks of the host: captures by a name of its choice, and values in
//! BPF maps and in the kernel.
//!
//! The guest is trusted for nothing: names become tags of known form, there is a limit to captures, and what
//! paths and maps mean is for the monitor to find. The answer goes back through the VMM, which does not look
//! into it; under `det`, where nothing is written into the guest, it waits for none.

use std::os::fd::OwnedFd;

use ktstr_proto::{
    Fds,
    capture::{Ask, Question},
    codec,
    guest::{HostRefusal, HostReply, HostRequest},
    monitor::{MonitorRequest, WriteKernel, WriteMap},
    ring::{MAX_ANSWER, Mode},
    vmm::{Tell, VmmRequest},
};

use super::Session;

/// Captures of one run, beyond which the test gets no more.
const MAX_CAPTURES: usize = 256;
/// Longest tag.
const MAX_TAG: usize = 64;

impl Session {
    pub(super) fn guest_asks(&mut self, id: u32, request: &HostRequest) {
        self.record("guest-asks", request);
        match request {
            HostRequest::Capture { .. } if self.captures() >= MAX_CAPTURES => {
                let reason = format!("a run takes at most {MAX_CAPTURES} captures");
                self.tell_guest(id, Err(refusal(&reason)));
            }
            HostRequest::Capture { name } => self.capture_for_test(id, name),
            HostRequest::ReadMap { .. }
            | HostRequest::WriteMap { .. }
            | HostRequest::ReadKernel { .. }
            | HostRequest::WriteKernel { .. } => self.value_for_test(id, request.clone()),
        }
    }

    /// Answers the test, which waits for it unless nothing may be written into its memory.
    pub(super) fn tell_guest(&mut self, id: u32, reply: HostReply) {
        if self.plan.as_ref().is_none_or(|plan| plan.ring.mode == Mode::Linear) {
            return;
        }
        let answer = encoded(&reply);
        let asked = self.vmm.as_mut().map(|vmm| {
            let asked = vmm.channel.queue_request(VmmRequest::Tell(Tell { id, answer }), Fds::default());
            // A socket that is closed shows in its pidfd.
            let _ = vmm.channel.flush();
            asked
        });
        if let Some(Err(error)) = asked {
            self.record("guest-not-told", &error.to_string());
        }
    }
}

/// The reply as it is sent; one that there is no room for becomes a refusal.
fn encoded(reply: &HostReply) -> Vec<u8> {
    let too_long = |length: usize| -> HostReply {
        Err(refusal(&format!("the answer of {length} bytes is too long: ask for a part of the value")))
    };
    let bytes = codec::encode(reply).unwrap_or_default();
    if !bytes.is_empty() && bytes.len() <= MAX_ANSWER {
        return bytes;
    }
    codec::encode(&too_long(bytes.len())).unwrap_or_default()
}

pub(super) fn refusal(reason: &str) -> HostRefusal {
    let end = (0..=reason.len().min(MAX_ANSWER / 2)).rev().find(|end| reason.is_char_boundary(*end));
    HostRefusal { not_here: false, reason: reason[..end.unwrap_or(0)].to_owned() }
}

/// What the monitor is asked.
pub(super) fn value_request(
    request: &HostRequest,
    ram: Option<&OwnedFd>,
    frozen: bool,
    fds: &mut Fds,
) -> Result<MonitorRequest, String> {
    let mut memory = || {
        let ram = ram.ok_or("nothing may be written into this guest's memory")?;
        Ok::<_, String>(fds.attach(ram.try_clone().map_err(|e| e.to_string())?))
    };
    match request {
        HostRequest::Capture { .. } => Err("a capture is no question about a value".into()),
        HostRequest::ReadKernel { target, width, .. } => {
            let question = Question::Kernel(target.clone(), *width);
            Ok(MonitorRequest::Ask(Ask { question, frozen }))
        }
        HostRequest::WriteKernel { writes, .. } => {
            let (ram, writes) = (memory()?, writes.clone());
            Ok(MonitorRequest::WriteKernel(WriteKernel { ram, writes, frozen }))
        }
        HostRequest::ReadMap { map, path } => {
            let question = Question::Map(map.clone(), Some(path.clone()));
            Ok(MonitorRequest::Ask(Ask { question, frozen }))
        }
        HostRequest::WriteMap { map, path, value } => Ok(MonitorRequest::WriteMap(WriteMap {
            ram: memory()?,
            map: map.clone(),
            path: path.clone(),
            value: *value,
        })),
    }
}

/// The tag of a capture that the test calls `name`: what a tag cannot hold is replaced, and a name that is
/// taken gets a number.
pub(super) fn tag<'a>(name: &str, taken: impl Iterator<Item = &'a str> + Clone) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || "_-.".contains(c) { c } else { '_' };
    let mut tag: String = name.chars().take(MAX_TAG).map(fits).collect();
    if tag.is_empty() || ["periodic_", "seen_", "asked_", "watched_"].iter().any(|kind| tag.starts_with(kind))
    {
        tag.insert_str(0, "test_");
    }
    let is_free = |tag: &str| taken.clone().all(|other| other != tag);
    if is_free(&tag) {
        return tag;
    }
    (2..).map(|number| format!("{tag}_{number}")).find(|tag| is_free(tag)).unwrap_or(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_of_a_known_form_and_unique() {
        assert_eq!(tag("before", [].into_iter()), "before");
        assert_eq!(tag("before", ["before", "before_2"].into_iter()), "before_3");
        assert_eq!(tag("../../x y", [].into_iter()), ".._.._x_y");
        assert_eq!(tag("periodic_000", [].into_iter()), "test_periodic_000");
        assert_eq!(tag("", [].into_iter()), "test_");
        assert_eq!(tag(&"x".repeat(999), [].into_iter()).len(), MAX_TAG);
    }

    #[test]
    fn an_answer_always_has_room() {
        let read = |bytes: Vec<u8>| codec::decode::<HostReply>(&bytes).unwrap();
        assert_eq!(read(encoded(&Ok("7".into()))), Ok("7".into()));
        let refused = read(encoded(&Ok("x".repeat(MAX_ANSWER)))).unwrap_err();
        assert!(refused.reason.contains("too long"), "{refused:?}");
        let cut = encoded(&Err(refusal(&"é".repeat(9000))));
        assert!(cut.len() <= MAX_ANSWER && read(cut).is_err());
    }
}

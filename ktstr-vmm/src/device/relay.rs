//! Between whoever uses a network and its server: the agreement on protocol features that one of them leaves
//! out.
//!
//! A queue is enabled with a message that only the agreement on VHOST_USER_F_PROTOCOL_FEATURES allows
//! (specification "Vhost-user Protocol", ring states). The emulator sends that message for a network before
//! it has agreed on any feature, and the server refuses it. So the agreement is sent first, here; everything
//! after it passes, message by message, with its descriptors. What is set up like this never comes here again: frames
//! pass in guest memory.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Header of a message: request 2 (VHOST_USER_SET_FEATURES), version 1, eight bytes of payload.
const SET_FEATURES: [u8; 12] = [2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0];
/// VHOST_USER_F_PROTOCOL_FEATURES.
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Length of a header, bytes; the last four are the length of what follows.
const HEADER: usize = 12;
/// The longest message behind its header, bytes, as the server has it.
const LONGEST: usize = 4096;
/// Descriptors of one message at most: one per region of guest RAM.
const DESCRIPTORS: usize = 32;

/// Waits for the one user of `door` and passes on what the two say, until either goes.
pub fn spawn(door: UnixListener, server: UnixStream) -> io::Result<()> {
    std::thread::Builder::new().name("relay".into()).spawn(move || {
        // Whoever is left sees the other end close, which is all there is to say.
        let _ = relay(&door, server);
    })?;
    Ok(())
}

fn relay(door: &UnixListener, mut server: UnixStream) -> io::Result<()> {
    let (user, _) = door.accept()?;
    server.write_all(&SET_FEATURES)?;
    server.write_all(&PROTOCOL_FEATURES.to_ne_bytes())?;
    let (user, server) = (Arc::new(user), Arc::new(server));
    let back = (server.clone(), user.clone());
    std::thread::Builder::new().name("relay".into()).spawn(move || pass(&back.0, &back.1))?;
    pass(&user, &server);
    Ok(())
}

/// Until one end closes; then the other is closed.
fn pass(from: &UnixStream, to: &UnixStream) {
    while let Ok(true) = pass_one(from, to) {}
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// A message with its descriptors; false at the end.
///
/// One by one: a longer read joins messages, and a descriptor would arrive with an earlier one than its own.
fn pass_one(from: &UnixStream, to: &UnixStream) -> io::Result<bool> {
    let mut header = [0; HEADER];
    let Some(descriptors) = receive(from, &mut header)? else { return Ok(false) };
    let [.., a, b, c, d] = header;
    let len = u32::from_ne_bytes([a, b, c, d]) as usize;
    if len > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {len} bytes")));
    }
    let mut message = header.to_vec();
    message.resize(HEADER + len, 0);
    match receive(from, &mut message[HEADER..])? {
        Some(late) if late.is_empty() => {}
        Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "descriptors behind a header")),
        None if len == 0 => {}
        None => return Err(io::ErrorKind::UnexpectedEof.into()),
    }
    let raw: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights: &[_] = if raw.is_empty() { &[] } else { &rights };
    let whole = [IoSlice::new(&message)];
    let sent = loop {
        match sendmsg::<()>(to.as_raw_fd(), &whole, rights, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            sent => break sent?,
        }
    };
    // Descriptors have gone with the first byte.
    (&mut &*to).write_all(&message[sent..])?;
    Ok(true)
}

/// Fills `bytes`; the descriptors that came with them, or nothing at the end.
fn receive(from: &UnixStream, bytes: &mut [u8]) -> io::Result<Option<Vec<OwnedFd>>> {
    let mut descriptors = Vec::new();
    let mut filled = 0;
    while filled < bytes.len() {
        let mut space = cmsg_space!([i32; DESCRIPTORS]);
        let mut parts = [IoSliceMut::new(&mut bytes[filled..])];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = match recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Err(Errno::EINTR) => continue,
            received => received?,
        };
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = message {
                // SAFETY: the kernel has just put these descriptors into this process, for us.
                descriptors.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if received.flags.contains(MsgFlags::MSG_CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more descriptors than a message has"));
        }
        match received.bytes {
            0 if filled == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => filled += more,
        }
    }
    Ok(Some(descriptors))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_agreement_comes_first_and_descriptors_pass() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("door");
        let door = UnixListener::bind(&path).unwrap();
        let (server, mut seen) = UnixStream::pair().unwrap();
        spawn(door, server).unwrap();
        let mut user = UnixStream::connect(&path).unwrap();
        let mut agreement = [0; 20];
        seen.read_exact(&mut agreement).unwrap();
        assert_eq!(agreement[..12], SET_FEATURES);
        assert_eq!(u64::from_ne_bytes(agreement[12..].try_into().unwrap()), PROTOCOL_FEATURES);

        // The first message waits when the second one comes, which has the descriptor.
        let (first, second) = (message(b"none"), message(b"one"));
        user.write_all(&first).unwrap();
        let (mine, theirs) = UnixStream::pair().unwrap();
        let (raw, some) = ([theirs.as_raw_fd()], [IoSlice::new(&second)]);
        sendmsg::<()>(user.as_raw_fd(), &some, &[ControlMessage::ScmRights(&raw)], MsgFlags::empty(), None)
            .unwrap();
        drop(theirs);
        let mut bytes = [0; HEADER + 4];
        seen.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes[..], first);
        let mut header = [0; HEADER];
        let fds = receive(&seen, &mut header).unwrap().expect("a message");
        let [passed] = <[OwnedFd; 1]>::try_from(fds).unwrap();
        seen.read_exact(&mut bytes[..3]).unwrap();
        assert_eq!(([&header[..], &bytes[..3]]).concat(), second);
        UnixStream::from(passed).write_all(b"!").unwrap();
        (&mine).read_exact(&mut bytes[..1]).unwrap();
        assert_eq!(bytes[0], b'!');

        let reply = message(b"reply");
        seen.write_all(&reply).unwrap();
        let mut bytes = [0; HEADER + 5];
        user.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes[..], reply);
        drop(seen);
        assert_eq!(user.read(&mut bytes).unwrap(), 0, "the user notices that the server is gone");
    }

    #[test]
    fn a_message_without_end_ends_the_conversation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("door");
        let (server, mut seen) = UnixStream::pair().unwrap();
        spawn(UnixListener::bind(&path).unwrap(), server).unwrap();
        let mut user = UnixStream::connect(&path).unwrap();
        seen.read_exact(&mut [0; 20]).unwrap();
        let mut header = message(b"")[..].to_vec();
        header[8..].fill(0xff);
        user.write_all(&header).unwrap();
        assert_eq!(user.read(&mut [0]).unwrap(), 0);
        assert_eq!(seen.read(&mut [0]).unwrap(), 0);
    }

    fn message(body: &[u8]) -> Vec<u8> {
        let len = (body.len() as u32).to_ne_bytes();
        [&[1, 0, 0, 0, 1, 0, 0, 0][..], &len, body].concat()
    }
}

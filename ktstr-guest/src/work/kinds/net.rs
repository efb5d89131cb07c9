//! Work that sends and receives raw frames on a network device (`AF_PACKET`).

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use nix::{errno::Errno, libc};

use crate::work::{
    not_run::{Missing, NotRun},
    sys::now_ns,
    worker::{Done, WAIT_SLICE, Worker},
};

/// Ethernet type of the frames (local experimental, IEEE 802).
const ETHERTYPE: u16 = 0x88b5;
/// Where the frame holds the time it was sent.
const STAMP_AT: usize = 16;

/// A raw socket on one device.
struct Wire {
    socket: OwnedFd,
}

/// The first device that is up and no loopback, by name.
fn device() -> Option<u32> {
    let mut names: Vec<_> = fs::read_dir("/sys/class/net").ok()?.flatten().collect();
    names.sort_by_key(fs::DirEntry::file_name);
    names.iter().find_map(|entry| {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).ok();
        // IFF_UP without IFF_LOOPBACK, `include/uapi/linux/if.h`.
        let flags = u32::from_str_radix(read("flags")?.trim().trim_start_matches("0x"), 16).ok()?;
        (flags & 0x9 == 0x1).then(|| read("ifindex")?.trim().parse().ok()).flatten()
    })
}

impl Wire {
    fn open() -> Result<Self, NotRun> {
        let index = device().ok_or(Missing::Device)?;
        let refused = |errno| Missing::Device.because(errno);
        let protocol = i32::from(ETHERTYPE.to_be());
        // SAFETY: takes numbers only; the descriptor it returns is owned from here on.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol);
            OwnedFd::from_raw_fd(Errno::result(fd).map_err(refused)?)
        };
        // SAFETY: all fields are numbers, for which zero is valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ETHERTYPE.to_be();
        address.sll_ifindex = index as i32;
        // SAFETY: the kernel reads the address, whose size is given.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        Errno::result(bound).map_err(refused)?;
        Ok(Self { socket })
    }

    /// A broadcast frame that carries the time.
    fn send(&self, frame: &mut [u8]) -> nix::Result<()> {
        frame[..6].fill(0xff);
        frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
        frame[STAMP_AT..STAMP_AT + 8].copy_from_slice(&now_ns().to_le_bytes());
        // SAFETY: the kernel reads the frame, whose length is given.
        let sent = unsafe {
            libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), libc::MSG_DONTWAIT)
        };
        Errno::result(sent).map(drop)
    }
}

pub(super) fn traffic(w: &mut Worker<'_>, interval_us: u64, frame_bytes: u32) -> Done {
    let wire = Wire::open()?;
    let mut frame = vec![0; frame_bytes as usize];
    while !w.stopped() {
        match wire.send(&mut frame) {
            Ok(()) => w.meter.did(1, 1),
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => w.sleep(Duration::from_micros(50)),
            Err(errno) => return Err(Missing::Device.because(errno)),
        }
        if interval_us > 0 {
            w.sleep(Duration::from_micros(interval_us));
        }
        w.meter.checkpoint();
    }
    Ok(())
}

/// The first of the two sends.
pub(super) fn irq_wake(w: &mut Worker<'_>, interval_us: u64, frame_bytes: u32) -> Done {
    if w.place.position == 0 {
        return traffic(w, interval_us, frame_bytes);
    }
    let wire = Wire::open()?;
    let mut frame = vec![0; 2048];
    while !w.stopped() {
        let mut fds = [nix::poll::PollFd::new(wire.socket.as_fd(), nix::poll::PollFlags::POLLIN)];
        let slice = WAIT_SLICE.as_millis() as u8;
        if !matches!(w.meter.blocking(|| nix::poll::poll(&mut fds, slice)), Ok(1..)) {
            w.meter.checkpoint();
            continue;
        }
        // SAFETY: the kernel writes at most the length given.
        let got = unsafe {
            libc::recv(wire.socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), libc::MSG_DONTWAIT)
        };
        if got >= (STAMP_AT + 8) as isize {
            let stamp: [u8; 8] = frame[STAMP_AT..STAMP_AT + 8].try_into().unwrap_or_default();
            w.meter.woken(u64::from_le_bytes(stamp));
            w.meter.did(1, 1);
        }
        w.meter.checkpoint();
    }
    Ok(())
}

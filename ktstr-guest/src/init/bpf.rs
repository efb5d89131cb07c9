//! `bpf(2)`, asked directly, without a library: a few commands, `include/uapi/linux/bpf.h`.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use nix::libc;

/// Loads a program.
pub const PROG_LOAD: libc::c_long = 5;
/// Runs it once.
pub const PROG_TEST_RUN: libc::c_long = 10;
/// The number of the next map.
pub const MAP_GET_NEXT_ID: libc::c_long = 12;
/// A descriptor of a map by its number.
pub const MAP_GET_FD_BY_ID: libc::c_long = 14;
/// Facts about what a descriptor is of.
pub const OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// Asks the kernel; the words are the beginning of `union bpf_attr`, of which the rest is zero.
pub fn bpf<const N: usize>(command: libc::c_long, words: &mut [u32; N]) -> io::Result<RawFd> {
    #[repr(C, align(8))]
    struct Attr([u32; 32]);
    let mut attr = Attr([0; 32]);
    attr.0[..N].copy_from_slice(words);
    // SAFETY: the kernel reads and writes at most the given length of `attr`; where a command takes the address of a
    // buffer, it is one of the caller's, which is as long as the caller says beside it.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<Attr>()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    words.copy_from_slice(&attr.0[..N]);
    Ok(done as RawFd)
}

/// Asks with a command that answers with a descriptor.
pub fn descriptor<const N: usize>(command: libc::c_long, mut words: [u32; N]) -> io::Result<OwnedFd> {
    let fd = bpf(command, &mut words)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An address as two words.
pub fn address<T>(of: *const T) -> [u32; 2] {
    let at = of as u64;
    [at as u32, (at >> 32) as u32]
}

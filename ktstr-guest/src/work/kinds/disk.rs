//! A block device for a worker of a guest that has no disk: a loop device over memory, through which reads
//! and writes take the block layer's way and sleep until a kernel worker has done them.
//!
//! Only inside ktstr's guests: on a host the temporary file lies on a real file system, and setting up
//! devices there is nobody's wish. The device goes away with the last descriptor that holds it.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use ktstr_proto::guest::{ON_DEMAND_PATH, TEST_ENV};
use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    libc,
};

const CONTROL: &str = "/dev/loop-control";
/// `include/uapi/linux/loop.h`.
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Others may take a free device first.
const TRIES: usize = 64;

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    numbers: [u64; 5],
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names: [u8; 160],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

/// Whether this is a test in one of ktstr's guests.
pub(super) fn is_guest() -> bool {
    std::env::var_os(TEST_ENV).is_some()
}

/// A loop device over `backing`, opened with `flags`; `None` where there are none.
pub(super) fn over(backing: &File, flags: i32) -> Option<File> {
    if !Path::new(CONTROL).exists() {
        load_module("loop").ok()?;
    }
    let control = OpenOptions::new().read(true).write(true).open(CONTROL).ok()?;
    for _ in 0..TRIES {
        // SAFETY: takes no argument; the kernel returns a number.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        let device = format!("/dev/loop{}", Errno::result(number).ok()?);
        let device = OpenOptions::new().read(true).write(true).custom_flags(flags).open(device).ok()?;
        let config = LoopConfig {
            fd: backing.as_raw_fd() as u32,
            block_size: 0,
            info: LoopInfo {
                numbers: [0; 5],
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: LO_FLAGS_AUTOCLEAR,
                names: [0; 160],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        // SAFETY: the kernel reads one loop_config, whose layout is checked above and which lives across the
        // call.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        match Errno::result(done) {
            Ok(_) => return Some(device),
            Err(Errno::EBUSY) => {}
            Err(_) => return None,
        }
    }
    None
}

/// Loads a module that is packed but not loaded at boot; already loaded is fine.
fn load_module(name: &str) -> Result<(), std::io::Error> {
    let file = File::open(Path::new(ON_DEMAND_PATH).join(format!("{name}.ko")))?;
    match finit_module(&file, &CString::default(), ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

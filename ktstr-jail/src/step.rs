//! The single steps into a jail. Each is prepared beforehand and then only makes system calls: no
//! allocation, no lock, no libc state, so a step may run in the child of a process with threads.
//!
//! Which steps, and in which order, is decided in `plan.rs`.

use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{c_int, c_long, c_uint, c_ulong};
use nix::errno::Errno;
use seccompiler::BpfProgram;

/// Where the new root is put together. Present everywhere, and nothing is mounted from below it.
pub(crate) const STAGING: &CStr = c"/sys";

const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOSUID: u64 = 2;
const MOUNT_ATTR_NODEV: u64 = 4;
const SECBITS_NO_ROOT_PRIVILEGE: c_ulong = 0x2f;
const LAST_CAPABILITY: c_ulong = 63;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// What a bind mount may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Reading, and executing where the host allows it.
    ReadOnly,
    /// A device node, which is written to.
    Device,
    /// Own descriptors. They can be opened anew, for more than they were opened for: see `ruleset.rs`.
    Descriptors,
}

/// One prepared step.
#[derive(Debug)]
pub(crate) enum Step {
    Unshare {
        flags: c_int,
    },
    /// Writes to a file of procfs; `optional` where the kernel may lack it.
    WriteProc {
        path: &'static CStr,
        content: Vec<u8>,
        optional: bool,
    },
    StopPropagation,
    MountEmptyRoot,
    MakeDirectory {
        path: CString,
    },
    MakeFile {
        path: CString,
    },
    MakeLink {
        path: CString,
        content: CString,
    },
    Bind {
        source: CString,
        target: CString,
        usage: Use,
    },
    SealRoot,
    PivotRoot,
    Limit {
        resource: c_int,
        value: u64,
    },
    /// Both may lack the privilege where they are not `needed`.
    LockSecureBits {
        needed: bool,
    },
    DropBoundingSet {
        needed: bool,
    },
    DropCapabilities,
    NotDumpable,
    NoNewPrivileges,
    DieWithParent,
    KeepOnly {
        sorted: Vec<c_int>,
    },
    Landlock {
        ruleset: OwnedFd,
    },
    Filter {
        program: BpfProgram,
    },
    /// Of the calling thread alone.
    FilterThread {
        program: BpfProgram,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unshare { .. } => f.write_str("create namespaces"),
            Self::WriteProc { path, .. } => write!(f, "write {}", path.to_string_lossy()),
            Self::StopPropagation => f.write_str("cut the mounts off from the host's"),
            Self::MountEmptyRoot => f.write_str("mount an empty root"),
            Self::MakeDirectory { path } => write!(f, "create the directory {}", shown(path)),
            Self::MakeFile { path } => write!(f, "create the mount point {}", shown(path)),
            Self::MakeLink { path, .. } => write!(f, "create the link {}", shown(path)),
            Self::Bind { source, .. } => {
                write!(f, "mount {} into the jail", source.to_string_lossy())
            }
            Self::SealRoot => f.write_str("make the root read-only"),
            Self::PivotRoot => f.write_str("leave the host's root"),
            Self::Limit { resource, value } => {
                write!(f, "lower resource limit {resource} to {value}")
            }
            Self::LockSecureBits { .. } => f.write_str("take the privileges of user id 0 away"),
            Self::DropBoundingSet { .. } => f.write_str("empty the capability bounding set"),
            Self::DropCapabilities => f.write_str("drop all capabilities"),
            Self::NotDumpable => f.write_str("forbid core dumps and tracing"),
            Self::NoNewPrivileges => f.write_str("set no_new_privs"),
            Self::DieWithParent => f.write_str("ask to be killed with the parent"),
            Self::KeepOnly { .. } => f.write_str("mark all other descriptors close-on-exec"),
            Self::Landlock { .. } => f.write_str("enforce the Landlock ruleset"),
            Self::Filter { .. } => f.write_str("load a system call filter"),
            Self::FilterThread { .. } => f.write_str("load a thread's system call filter"),
        }
    }
}

fn shown(path: &CStr) -> String {
    let text = path.to_string_lossy();
    text.strip_prefix("/sys").unwrap_or(&text).to_owned()
}

impl Step {
    /// Does it.
    pub(crate) fn run(&self) -> Result<(), Errno> {
        match self {
            // SAFETY: a number is passed; the caller's threads were counted when the plan was made.
            Self::Unshare { flags } => check(unsafe { libc::unshare(*flags) }),
            Self::WriteProc { path, content, optional } => write_file(path, content, *optional),
            Self::StopPropagation => mount(None, c"/", None, libc::MS_SLAVE | libc::MS_REC, None),
            Self::MountEmptyRoot => mount(
                Some(c"ktstr-jail"),
                STAGING,
                Some(c"tmpfs"),
                libc::MS_NOSUID | libc::MS_NODEV,
                Some(c"size=256k,mode=0755"),
            ),
            Self::MakeDirectory { path } => make_directory(path),
            Self::MakeFile { path } => make_file(path),
            Self::MakeLink { path, content } => {
                // SAFETY: both strings live until the call returns.
                check(unsafe { libc::symlink(content.as_ptr(), path.as_ptr()) })
            }
            Self::Bind { source, target, usage } => bind(source, target, *usage),
            Self::SealRoot => set_attributes(STAGING, MOUNT_ATTR_RDONLY, 0),
            Self::PivotRoot => pivot_root(),
            Self::Limit { resource, value } => limit(*resource, *value),
            Self::LockSecureBits { needed } => {
                unless_unprivileged(*needed, prctl(libc::PR_SET_SECUREBITS, SECBITS_NO_ROOT_PRIVILEGE))
            }
            Self::DropBoundingSet { needed } => unless_unprivileged(*needed, drop_bounding_set()),
            Self::DropCapabilities => drop_capabilities(),
            Self::NotDumpable => prctl(libc::PR_SET_DUMPABLE, 0),
            Self::NoNewPrivileges => prctl(libc::PR_SET_NO_NEW_PRIVS, 1),
            Self::DieWithParent => prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong),
            Self::KeepOnly { sorted } => keep_only(sorted),
            Self::Landlock { ruleset } => {
                // SAFETY: numbers are passed; the descriptor is open as long as the step lives.
                check_long(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })
            }
            Self::Filter { program } => load_filter(program, libc::SECCOMP_FILTER_FLAG_TSYNC),
            Self::FilterThread { program } => load_filter(program, 0),
        }
    }
}

fn check(result: c_int) -> Result<(), Errno> {
    Errno::result(result).map(drop)
}

fn check_long(result: c_long) -> Result<(), Errno> {
    Errno::result(result).map(drop)
}

fn unless_unprivileged(needed: bool, result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::EPERM) if !needed => Ok(()),
        result => result,
    }
}

fn write_file(path: &CStr, content: &[u8], optional: bool) -> Result<(), Errno> {
    // SAFETY: path and buffer live until the calls return; the descriptor is ours alone.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd < 0 && optional && Errno::last() == Errno::ENOENT {
            return Ok(());
        }
        let fd = Errno::result(fd)?;
        let written = Errno::result(libc::write(fd, content.as_ptr().cast(), content.len()));
        libc::close(fd);
        written.map(drop)
    }
}

fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: c_ulong,
    data: Option<&CStr>,
) -> Result<(), Errno> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: each pointer is null or a string that lives until the call returns.
    check(unsafe {
        libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, pointer(data).cast())
    })
}

fn make_directory(path: &CStr) -> Result<(), Errno> {
    // SAFETY: the string lives until the call returns.
    match check(unsafe { libc::mkdir(path.as_ptr(), 0o755) }) {
        Err(Errno::EEXIST) => Ok(()),
        result => result,
    }
}

fn make_file(path: &CStr) -> Result<(), Errno> {
    // SAFETY: the string lives until the call returns; the descriptor is ours alone.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_CREAT | libc::O_WRONLY | libc::O_CLOEXEC, 0o444 as c_uint);
        check(libc::close(Errno::result(fd)?))
    }
}

fn bind(source: &CStr, target: &CStr, usage: Use) -> Result<(), Errno> {
    mount(Some(source), target, None, libc::MS_BIND | libc::MS_REC, None)?;
    match usage {
        Use::ReadOnly => {
            let attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
            set_attributes(target, attributes, libc::AT_RECURSIVE as c_uint)
        }
        Use::Device => set_attributes(target, MOUNT_ATTR_NOSUID, 0),
        Use::Descriptors => set_attributes(target, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0),
    }
}

/// Adds attributes and keeps those that the host has locked, which a remount would have to repeat.
fn set_attributes(target: &CStr, attributes: u64, flags: c_uint) -> Result<(), Errno> {
    // struct mount_attr: attr_set, attr_clr, propagation, userns_fd.
    let request = [attributes, 0, 0, 0];
    // SAFETY: the kernel reads the array, whose length is passed, and the string.
    check_long(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            target.as_ptr(),
            flags,
            request.as_ptr(),
            size_of_val(&request),
        )
    })
}

/// The old root ends up on top of the new one and is then taken off, so it needs no directory.
fn pivot_root() -> Result<(), Errno> {
    // SAFETY: constant strings.
    unsafe {
        check(libc::chdir(STAGING.as_ptr()))?;
        check_long(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH))?;
        check(libc::chdir(c"/".as_ptr()))
    }
}

fn limit(resource: c_int, value: u64) -> Result<(), Errno> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes to, then reads from, a structure that lives until the calls return.
    unsafe {
        check_long(libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            std::ptr::null::<libc::rlimit>(),
            &raw mut limit,
        ))?;
        let value = value.min(limit.rlim_max);
        let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
        check_long(libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit>(),
        ))
    }
}

fn prctl(option: c_int, value: c_ulong) -> Result<(), Errno> {
    let zero: c_ulong = 0;
    // SAFETY: numbers only.
    check(unsafe { libc::prctl(option, value, zero, zero, zero) })
}

fn drop_bounding_set() -> Result<(), Errno> {
    for capability in 0..=LAST_CAPABILITY {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            // Beyond the last capability that this kernel knows.
            Err(Errno::EINVAL) if capability > 0 => break,
            result => result?,
        }
    }
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong)
}

fn drop_capabilities() -> Result<(), Errno> {
    let header = [CAPABILITY_VERSION_3, 0];
    let none = [0_u32; 6];
    // SAFETY: the sizes are those of version 3: two words, and twice three words.
    check_long(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) })
}

/// `sorted` ascends. Everything between its members gets close-on-exec, the members lose it.
fn keep_only(sorted: &[c_int]) -> Result<(), Errno> {
    const CLOSE_RANGE_CLOEXEC: c_uint = 4;
    let mut first: c_uint = 0;
    for &fd in sorted {
        let number = fd as c_uint;
        if number > first {
            // SAFETY: numbers only.
            check_long(unsafe {
                libc::syscall(libc::SYS_close_range, first, number - 1, CLOSE_RANGE_CLOEXEC)
            })?;
        }
        // SAFETY: numbers only.
        check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) })?;
        first = number + 1;
    }
    // SAFETY: numbers only.
    check_long(unsafe { libc::syscall(libc::SYS_close_range, first, c_uint::MAX, CLOSE_RANGE_CLOEXEC) })
}

fn load_filter(program: &BpfProgram, flags: libc::c_ulong) -> Result<(), Errno> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: the instructions live in `program` until the call returns; the kernel only reads them,
    // and both crates' sock_filter have the kernel's layout.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match Errno::result(result)? {
        0 => Ok(()),
        // The id of a thread that has a filter of its own.
        _ => Err(Errno::EBUSY),
    }
}

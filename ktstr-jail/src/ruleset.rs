//! The Landlock ruleset of a jail: a second wall behind the empty root and the filter, held by another part
//! of the kernel (Documentation/userspace-api/landlock.rst).
//!
//! A jail that shows nothing may open, make, execute nothing and use no TCP port. One that shows something may
//! read and execute that, and make or remove nothing. What it holds it can open anew by `/proc/self/fd`,
//! and for that the kernel asks the file, not the descriptor: only files that it holds for writing can be
//! written. A kernel without Landlock, or with an older one, enforces what it knows; the other walls do not
//! depend on it, but this last rule does.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, Scope,
};

use nix::fcntl::{FcntlArg, fcntl};

use crate::{JailError, JailSpec, Mount, Namespaces, Role};

/// The newest version whose rights are named here.
const VERSION: ABI = ABI::V6;

/// What a child that is to be confined gets.
#[derive(Default)]
pub(crate) struct Held<'a> {
    /// Descriptors that it keeps. The standard ones are not its parent's and need no opening.
    pub files: &'a [RawFd],
    /// What it executes.
    pub program: Option<RawFd>,
}

/// The ruleset as a descriptor, or `None` where the kernel has no Landlock.
pub(crate) fn ruleset(spec: &JailSpec, held: &Held<'_>) -> Result<Option<OwnedFd>, JailError> {
    let created = || -> Result<Option<OwnedFd>, RulesetError> {
        let created = Ruleset::default()
            .handle_access(files(spec))?
            .handle_access(AccessNet::from_all(VERSION))?
            .scope(scopes(spec.role))?
            .create()?;
        open_again(&created, spec, held);
        Ok(created.into())
    };
    created().map_err(|source| JailError::Ruleset { source })
}

/// Where there is no root of its own, this alone says what can be read.
fn files(spec: &JailSpec) -> BitFlags<AccessFs> {
    if spec.mounts.is_empty() || spec.namespaces == Namespaces::Forgone {
        return AccessFs::from_all(VERSION);
    }
    // The program that it executes is not in the jail.
    AccessFs::from_all(VERSION) & !AccessFs::from_read(VERSION)
}

/// What may be opened although it is not in the jail, or there is none.
fn open_again(created: &RulesetCreated, spec: &JailSpec, held: &Held<'_>) {
    let allow = |fd: BorrowedFd<'_>, access: BitFlags<AccessFs>| {
        // A file of the kernel's own, such as a memfd or a pipe, takes no rule and needs none. Any other that
        // takes none stays closed.
        if let Ok(same) = created.try_clone() {
            let _ = same.add_rule(PathBeneath::new(fd, access & files(spec)));
        }
    };
    let write = AccessFs::WriteFile | AccessFs::Truncate;
    for &fd in held.files.iter().filter(|fd| **fd > 2) {
        // SAFETY: the caller holds these descriptors while the plan is made.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let read = BitFlags::from(AccessFs::ReadFile);
        allow(fd, if writable(fd) { read | write } else { read });
    }
    if spec.namespaces != Namespaces::Forgone {
        return;
    }
    if let Some(program) = held.program {
        // SAFETY: as above.
        allow(unsafe { BorrowedFd::borrow_raw(program) }, AccessFs::ReadFile | AccessFs::Execute);
    }
    for mount in &spec.mounts {
        let (path, access) = match mount {
            Mount::ReadOnly(path) | Mount::Link(path, _) => (path, AccessFs::from_read(VERSION)),
            Mount::Device(path) => (path, write | AccessFs::ReadFile),
            Mount::OwnDescriptors => continue,
        };
        if let Ok(fd) = PathFd::new(path) {
            allow(fd.as_fd(), access);
        }
    }
}

fn writable(fd: BorrowedFd<'_>) -> bool {
    let flags = fcntl(fd, FcntlArg::F_GETFL).unwrap_or(0);
    flags & libc::O_PATH == 0 && flags & libc::O_ACCMODE != libc::O_RDONLY
}

/// Nobody outside is reached by abstract sockets or signals; the VMM ends its emulator by one.
fn scopes(role: Role) -> BitFlags<Scope> {
    match role {
        Role::Vmm => Scope::AbstractUnixSocket.into(),
        _ => Scope::from_all(VERSION),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::ErrorKind, net::TcpListener, os::unix::net::UnixDatagram, thread};

    use super::*;
    use crate::step::Step;

    /// What a thread with only this wall around it can do; Landlock is per thread.
    fn behind_the_wall(spec: &JailSpec) -> Option<[Result<(), ErrorKind>; 4]> {
        let ruleset = ruleset(spec, &Held::default()).unwrap()?;
        let directory = std::env::temp_dir();
        let tries = thread::spawn(move || {
            Step::NoNewPrivileges.run().unwrap();
            Step::Landlock { ruleset }.run().unwrap();
            let new = directory.join(format!("ktstr-landlock-{}", std::process::id()));
            [
                File::open("/proc/version").map(drop),
                File::create_new(new).map(drop),
                TcpListener::bind("127.0.0.1:0").map(drop),
                UnixDatagram::unbound().map(drop),
            ]
            .map(|tried| tried.map_err(|e| e.kind()))
        });
        Some(tries.join().unwrap())
    }

    const DENIED: Result<(), ErrorKind> = Err(ErrorKind::PermissionDenied);

    #[test]
    fn an_empty_jail_opens_makes_and_binds_nothing() {
        let Some(tried) = behind_the_wall(&JailSpec::monitor()) else {
            println!("NOT RUN: this kernel has no Landlock");
            return;
        };
        assert_eq!(tried, [DENIED, DENIED, DENIED, Ok(())]);
    }

    #[test]
    fn a_jail_that_shows_something_reads_and_makes_nothing() {
        let Some(tried) = behind_the_wall(&JailSpec::emulator(&[])) else {
            println!("NOT RUN: this kernel has no Landlock");
            return;
        };
        assert_eq!(tried, [Ok(()), DENIED, DENIED, Ok(())]);
    }

    #[test]
    fn a_jail_without_a_root_of_its_own_reads_what_it_would_show() {
        let spec = JailSpec::emulator(&[]).with_namespaces(Namespaces::Forgone);
        let Some(tried) = behind_the_wall(&spec) else {
            println!("NOT RUN: this kernel has no Landlock");
            return;
        };
        assert_eq!(tried, [DENIED, DENIED, DENIED, Ok(())]);
    }

    #[test]
    fn the_vmm_may_end_its_emulator() {
        assert!(!scopes(Role::Vmm).contains(Scope::Signal));
        assert!(scopes(Role::Monitor).contains(Scope::Signal));
    }
}

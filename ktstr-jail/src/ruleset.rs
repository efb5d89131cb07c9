//! The Landlock ruleset of a jail: a second wall behind the empty root and the filter, held by another part
//! of the kernel (Documentation/userspace-api/landlock.rst).
//!
//! A jail that shows nothing may open, make, execute nothing and use no TCP port. One that shows something may
//! read and execute that, and make or remove nothing. A kernel without Landlock, or with an older one,
//! enforces what it knows; the other walls do not depend on it.

use std::os::fd::OwnedFd;

use landlock::{ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetError, Scope};

use crate::{JailError, JailSpec, Role};

/// The newest version whose rights are named here.
const VERSION: ABI = ABI::V6;

/// The ruleset as a descriptor, or `None` where the kernel has no Landlock.
pub(crate) fn ruleset(spec: &JailSpec) -> Result<Option<OwnedFd>, JailError> {
    let created = || -> Result<Option<OwnedFd>, RulesetError> {
        let ruleset = Ruleset::default()
            .handle_access(files(spec))?
            .handle_access(AccessNet::from_all(VERSION))?
            .scope(scopes(spec.role))?;
        Ok(ruleset.create()?.into())
    };
    created().map_err(|source| JailError::Ruleset { source })
}

fn files(spec: &JailSpec) -> BitFlags<AccessFs> {
    if spec.mounts.is_empty() {
        return AccessFs::from_all(VERSION);
    }
    // Files it holds are opened again by `/proc/self/fd`, wherever they lie; its program is not in the jail.
    let opened_again =
        AccessFs::from_read(VERSION) | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    AccessFs::from_all(VERSION) & !opened_again
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
        let ruleset = ruleset(spec).unwrap()?;
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
    fn the_vmm_may_end_its_emulator() {
        assert!(!scopes(Role::Vmm).contains(Scope::Signal));
        assert!(scopes(Role::Monitor).contains(Scope::Signal));
    }
}

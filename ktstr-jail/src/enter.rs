//! Confinement of the calling process.
//!
//! It cannot enter a process id namespace (only its children would): [`crate::start`] gives it one at its
//! birth. It must not have started threads. Descriptors stay open: what the process has opened before is what it may use.

use std::sync::Arc;

use nix::errno::Errno;

use crate::Role;
use crate::error::JailError;
use crate::plan::{NAMESPACES, Walker, plan};
use crate::policy::{self, OwnNumbers};
use crate::spec::{JailSpec, Namespaces};
use crate::step::Step;

/// Proof that this process is confined. Only [`enter`] makes one.
#[derive(Debug)]
pub struct Confined {
    role: Role,
    namespaces: Namespaces,
}

impl Confined {
    /// Whose jail it is.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether it has namespaces.
    #[must_use]
    pub fn namespaces(&self) -> Namespaces {
        self.namespaces
    }
}

/// What threads of a confined VMM load that work for the guest: less than the process may do.
#[derive(Debug, Clone)]
pub struct GuestThreads(Arc<Step>);

impl GuestThreads {
    /// Compiles it; the process must be confined by then.
    pub fn of(_confined: &Confined) -> Result<Self, JailError> {
        let own = OwnNumbers { pid: std::process::id(), exec_fd: u32::MAX };
        let program =
            policy::compile_for_guest_threads(own).map_err(|source| JailError::Policy { source })?;
        Ok(Self(Arc::new(Step::FilterThread { program })))
    }

    /// Confines the calling thread for good.
    pub fn confine(&self) -> Result<(), JailError> {
        self.0.run().map_err(|errno| step_failed(&self.0, errno))
    }
}

/// Confines the calling process for good, all of it: no part can be undone.
///
/// Call it in a process of one thread. On an error the process may be confined in part; it should
/// report the error over a descriptor it holds and exit.
pub fn enter(spec: &JailSpec) -> Result<Confined, JailError> {
    single_thread()?;
    for step in plan(spec, &Walker::Caller)? {
        step.run().map_err(|errno| failure(spec, &step, errno))?;
    }
    Ok(Confined { role: spec.role, namespaces: spec.namespaces })
}

fn single_thread() -> Result<(), JailError> {
    let tasks = std::fs::read_dir("/proc/self/task").map_err(|source| JailError::CountThreads { source })?;
    match tasks.count() {
        1 => Ok(()),
        threads => Err(JailError::ThreadsRunning { threads }),
    }
}

fn failure(spec: &JailSpec, step: &Step, errno: Errno) -> JailError {
    if spec.namespaces != Namespaces::Forgone && makes_namespaces(step) && forbids(errno) {
        return JailError::UserNamespaceForbidden { errno: errno as i32 };
    }
    step_failed(step, errno)
}

/// Whether it fails on hosts that forbid namespaces: some grant a user namespace and no power in it, which the
/// mapping of ids or the next namespace shows, and root may lack the power to make the others.
pub(crate) fn makes_namespaces(step: &Step) -> bool {
    match step {
        Step::Unshare { flags } => [libc::CLONE_NEWUSER, NAMESPACES].contains(flags),
        Step::WriteProc { .. } => true,
        _ => false,
    }
}

/// Whether it says that namespaces are not allowed or not there, not that something is short.
pub(crate) fn forbids(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EPERM | Errno::EACCES | Errno::ENOSPC | Errno::EUSERS | Errno::EINVAL | Errno::ENOSYS
    )
}

pub(crate) fn step_failed(step: &Step, errno: Errno) -> JailError {
    JailError::Step { step: step.to_string(), source: errno.into() }
}

//! Confinement of the calling process.
//!
//! It cannot enter a process id namespace (only its children would), and it must not have started
//! threads. Descriptors stay open: what the process has opened before is what it may use.

use nix::errno::Errno;

use crate::Role;
use crate::error::JailError;
use crate::plan::{Walker, plan};
use crate::spec::{JailSpec, UserNamespace};
use crate::step::Step;

/// Proof that this process is confined. Only [`enter`] makes one.
#[derive(Debug)]
pub struct Confined {
    role: Role,
}

impl Confined {
    /// Whose jail it is.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
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
    Ok(Confined { role: spec.role })
}

fn single_thread() -> Result<(), JailError> {
    let tasks = std::fs::read_dir("/proc/self/task").map_err(|source| JailError::CountThreads { source })?;
    match tasks.count() {
        1 => Ok(()),
        threads => Err(JailError::ThreadsRunning { threads }),
    }
}

fn failure(spec: &JailSpec, step: &Step, errno: Errno) -> JailError {
    let user = matches!(step, Step::Unshare { flags } if *flags == libc::CLONE_NEWUSER);
    if user && spec.user_namespace == UserNamespace::New {
        return JailError::UserNamespaceForbidden { errno: errno as i32 };
    }
    step_failed(step, errno)
}

pub(crate) fn step_failed(step: &Step, errno: Errno) -> JailError {
    JailError::Step { step: step.to_string(), source: errno.into() }
}

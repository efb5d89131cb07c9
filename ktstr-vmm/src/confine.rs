//! The jail of this process, entered after everything that needs the host and before the guest runs.
//!
//! What may be kept is decided in `ktstr-jail`; here is only when, and what happens on hosts that
//! forbid user namespaces to everybody: root has no need of one.

use ktstr_jail::{Confined, JailError, JailSpec, UserNamespace, enter};

/// Confines this process for good.
pub fn this_process() -> Result<Confined, JailError> {
    enter_or_keep(JailSpec::vmm())
}

/// Confines this process for good as one that serves disks and networks.
pub fn device_process() -> Result<Confined, JailError> {
    enter_or_keep(JailSpec::device())
}

fn enter_or_keep(spec: JailSpec) -> Result<Confined, JailError> {
    match enter(&spec) {
        // It is the first step, so nothing has been given up yet.
        Err(JailError::UserNamespaceForbidden { .. }) if is_root() => enter(&without_user_namespace(spec)),
        outcome => outcome,
    }
}

/// Whether namespaces can be entered without a user namespace.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The same jail for root on hosts that forbid user namespaces.
#[must_use]
pub fn without_user_namespace(spec: JailSpec) -> JailSpec {
    JailSpec { user_namespace: UserNamespace::Keep, ..spec }
}

//! The jail of this process, entered after everything that needs the host and before the guest runs.
//!
//! What may be kept is decided in `ktstr-jail`; here is only when, and what happens on hosts that forbid user
//! namespaces: root has no need of one, and somebody may have asked for a jail without. Whoever gets less
//! than all walls is told so.

use ktstr_jail::{Confined, JailError, JailSpec, Namespaces, enter};
use ktstr_proto::run::Jail;
use ktstr_proto::vmm::Walls;

/// Confines this process for good.
pub fn this_process(jail: Jail) -> Result<Confined, JailError> {
    fitting(jail, JailSpec::vmm(), enter)
}

/// Room for what it complains about, bytes.
const LOG: u64 = 16 << 20;

/// Confines this process for good as one that serves disks and networks, the largest of so many bytes.
pub fn device_process(jail: Jail, largest: u64) -> Result<Confined, JailError> {
    fitting(jail, JailSpec::device().with_files_of(largest.max(LOG)), enter)
}

/// Does something in the best jail of this kind that the host allows.
pub fn fitting<T>(
    jail: Jail,
    spec: JailSpec,
    mut act: impl FnMut(&JailSpec) -> Result<T, JailError>,
) -> Result<T, JailError> {
    if jail == Jail::Reduced {
        return act(&spec.with_namespaces(Namespaces::Forgone));
    }
    match act(&spec) {
        // It is the first step, so nothing has been given up yet.
        Err(forbidden @ JailError::UserNamespaceForbidden { .. }) if nix::unistd::geteuid().is_root() => {
            match act(&spec.with_namespaces(Namespaces::OfRoot)) {
                // What the host must allow is the same.
                Err(JailError::UserNamespaceForbidden { .. }) => Err(forbidden),
                outcome => outcome,
            }
        }
        outcome => outcome,
    }
}

/// What stands around it.
#[must_use]
pub fn walls(confined: &Confined) -> Walls {
    match confined.namespaces() {
        Namespaces::OfNewUser => Walls::All,
        Namespaces::OfRoot => Walls::NoUserNamespace,
        Namespaces::Forgone => Walls::None,
    }
}

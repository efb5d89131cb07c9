//! From a [`JailSpec`] to the list of steps, in the one order that works:
//!
//! 1. namespaces, and the identity map of the new user namespace: all that follows needs its
//!    capabilities;
//! 2. the mount root: private, empty, then what the jail shows, then read-only, then the host's gone;
//! 3. resource limits;
//! 4. the privileges of user id 0, the bounding set, the capabilities: the last use of them is over;
//! 5. not dumpable, no_new_privs, which the filter requires;
//! 6. descriptors and the parent's death, for a child;
//! 7. the Landlock ruleset, where the kernel has it: the mounts are done;
//! 8. the filters, allow-list last: after it almost none of the above could be done.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use crate::error::JailError;
use crate::policy::{self, OwnNumbers};
use crate::ruleset::{self, Held};
use crate::spec::{JailSpec, Mount, Namespaces};
use crate::step::{STAGING, Step, Use};

/// Namespaces every jail has beside the user namespace.
pub(crate) const NAMESPACES: i32 =
    libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;

/// Who walks the plan.
pub(crate) enum Walker<'a> {
    /// The calling process, which stays what it is.
    Caller,
    /// A child that is about to execute a program and keeps these descriptors, ascending.
    Child { keep: &'a [i32], program: i32, exec_fd: u32 },
}

/// Stands in filters for the id of a process that has no process id namespace of its own and is not there
/// yet. No process has it: the kernel's ids end at 2^22.
pub(crate) const PID_TO_COME: u32 = 0x4b54_5350;

pub(crate) fn user_namespace_flag(spec: &JailSpec) -> i32 {
    match spec.namespaces {
        Namespaces::OfNewUser => libc::CLONE_NEWUSER,
        Namespaces::OfRoot | Namespaces::Forgone => 0,
    }
}

pub(crate) fn plan(spec: &JailSpec, walker: &Walker<'_>) -> Result<Vec<Step>, JailError> {
    let mut steps = Vec::new();
    if matches!(walker, Walker::Caller) {
        // In a step of its own, so that its failure can be told from the others'.
        let user = user_namespace_flag(spec);
        steps.extend((user != 0).then_some(Step::Unshare { flags: user }));
    }
    if spec.namespaces == Namespaces::OfNewUser {
        map_identity(&mut steps);
    }
    let walled = spec.namespaces != Namespaces::Forgone;
    if walled {
        if matches!(walker, Walker::Caller) {
            steps.push(Step::Unshare { flags: NAMESPACES });
        }
        root(spec, &mut steps)?;
    }
    limits(spec, &mut steps);
    // Without a capability to begin with there is nothing that user id 0 could get back.
    let needed = walled;
    steps.extend([Step::LockSecureBits { needed }, Step::DropBoundingSet { needed }, Step::DropCapabilities]);
    let own = match walker {
        Walker::Caller => {
            steps.push(Step::NotDumpable);
            OwnNumbers { pid: std::process::id(), exec_fd: u32::MAX }
        }
        Walker::Child { keep, exec_fd, .. } => {
            steps.push(Step::DieWithParent);
            steps.push(Step::KeepOnly { sorted: keep.to_vec() });
            // In namespaces it is the first process of its own.
            OwnNumbers { pid: if walled { 1 } else { PID_TO_COME }, exec_fd: *exec_fd }
        }
    };
    let held = match walker {
        Walker::Caller => Held::default(),
        Walker::Child { keep, program, .. } => Held { files: keep, program: Some(*program) },
    };
    steps.push(Step::NoNewPrivileges);
    steps.extend(ruleset::ruleset(spec, &held)?.map(|ruleset| Step::Landlock { ruleset }));
    let filters = policy::compile(spec.role, own).map_err(|source| JailError::Policy { source })?;
    steps.extend(filters.into_iter().map(|program| Step::Filter { program }));
    Ok(steps)
}

/// The own ids map to themselves, all others to none.
pub(crate) fn map_identity(steps: &mut Vec<Step>) {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    steps.extend([
        Step::WriteProc { path: c"/proc/self/setgroups", content: b"deny".to_vec(), optional: true },
        Step::WriteProc {
            path: c"/proc/self/uid_map",
            content: format!("{uid} {uid} 1\n").into_bytes(),
            optional: false,
        },
        Step::WriteProc {
            path: c"/proc/self/gid_map",
            content: format!("{gid} {gid} 1\n").into_bytes(),
            optional: false,
        },
    ]);
}

fn root(spec: &JailSpec, steps: &mut Vec<Step>) -> Result<(), JailError> {
    steps.extend([Step::StopPropagation, Step::MountEmptyRoot]);
    let mut shown = std::collections::BTreeSet::new();
    for mount in &spec.mounts {
        // A second mount on the same point would be made inside the first, which is read-only.
        if !shown.insert(mount) {
            continue;
        }
        match mount {
            Mount::ReadOnly(path) => show(path, path, Use::ReadOnly, steps)?,
            Mount::Device(path) => show(path, path, Use::Device, steps)?,
            Mount::OwnDescriptors => {
                let path = Path::new("/proc/self/fd");
                show(path, path, Use::Descriptors, steps)?;
            }
            Mount::Link(path, content) => {
                parents(path, steps)?;
                steps.push(Step::MakeLink { path: staged(path)?, content: c_path("link", content)? });
            }
        }
    }
    steps.extend([Step::SealRoot, Step::PivotRoot]);
    Ok(())
}

fn show(source: &Path, target: &Path, usage: Use, steps: &mut Vec<Step>) -> Result<(), JailError> {
    parents(target, steps)?;
    let metadata = std::fs::metadata(source)
        .map_err(|error| JailError::MountSource { path: source.to_path_buf(), source: error })?;
    let point = staged(target)?;
    steps.push(if metadata.is_dir() {
        Step::MakeDirectory { path: point.clone() }
    } else {
        Step::MakeFile { path: point.clone() }
    });
    steps.push(Step::Bind { source: c_path("mount", source)?, target: point, usage });
    Ok(())
}

/// Directories above `path`, which must be absolute and may not climb out of the root.
fn parents(path: &Path, steps: &mut Vec<Step>) -> Result<(), JailError> {
    let climbs = path.components().any(|part| part == Component::ParentDir);
    // Hidden by the new root from the moment that it is put together.
    let hidden = path.starts_with(Path::new(OsStr::from_bytes(STAGING.to_bytes())));
    if !path.is_absolute() || climbs || hidden || path.parent().is_none() {
        return Err(JailError::MountPath { path: path.to_path_buf() });
    }
    let mut above: Vec<&Path> = path.ancestors().skip(1).filter(|a| a.parent().is_some()).collect();
    above.reverse();
    for directory in above {
        steps.push(Step::MakeDirectory { path: staged(directory)? });
    }
    Ok(())
}

fn staged(path: &Path) -> Result<CString, JailError> {
    let mut bytes = STAGING.to_bytes().to_vec();
    bytes.extend_from_slice(path.as_os_str().as_bytes());
    c_string("mount point", bytes)
}

fn c_path(what: &'static str, path: &Path) -> Result<CString, JailError> {
    c_string(what, path.as_os_str().as_bytes().to_vec())
}

pub(crate) fn c_string(what: &'static str, bytes: Vec<u8>) -> Result<CString, JailError> {
    CString::new(bytes).map_err(|error| {
        let text = String::from_utf8_lossy(&error.into_vec()).into_owned();
        JailError::ZeroByte { what, text }
    })
}

fn limits(spec: &JailSpec, steps: &mut Vec<Step>) {
    let values = [
        (libc::RLIMIT_CORE, Some(0)),
        (libc::RLIMIT_MEMLOCK, Some(0)),
        (libc::RLIMIT_MSGQUEUE, Some(0)),
        (libc::RLIMIT_NOFILE, Some(spec.limits.open_files)),
        (libc::RLIMIT_FSIZE, spec.limits.file_size),
    ];
    let values = values.into_iter().filter_map(|(resource, value)| Some((resource, value?)));
    steps.extend(values.map(|(resource, value)| Step::Limit { resource: resource as i32, value }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(steps: &[Step], wanted: fn(&Step) -> bool) -> usize {
        steps.iter().position(wanted).expect("the step is in the plan")
    }

    #[test]
    fn order_gives_up_each_power_after_its_last_use() {
        let spec = JailSpec::emulator(&[]);
        let steps = plan(&spec, &Walker::Child { keep: &[0, 1], program: 0, exec_fd: 9 }).unwrap();
        let order = [
            position(&steps, |s| matches!(s, Step::WriteProc { .. })),
            position(&steps, |s| matches!(s, Step::MountEmptyRoot)),
            position(&steps, |s| matches!(s, Step::Bind { .. })),
            position(&steps, |s| matches!(s, Step::SealRoot)),
            position(&steps, |s| matches!(s, Step::PivotRoot)),
            position(&steps, |s| matches!(s, Step::Limit { .. })),
            position(&steps, |s| matches!(s, Step::DropCapabilities)),
            position(&steps, |s| matches!(s, Step::NoNewPrivileges)),
            position(&steps, |s| matches!(s, Step::Filter { .. })),
        ];
        assert!(order.is_sorted(), "{order:?}");
        assert!(matches!(steps.last(), Some(Step::Filter { .. })));
    }

    #[test]
    fn mounts_that_climb_or_are_relative_or_missing_are_refused() {
        let mut spec = JailSpec::vmm();
        for path in ["usr", "/usr/../etc", "/", "/sys/kernel"] {
            spec.mounts = vec![Mount::ReadOnly(path.into())];
            assert!(matches!(plan(&spec, &Walker::Caller), Err(JailError::MountPath { .. })), "{path}");
        }
        spec.mounts = vec![Mount::ReadOnly("/no/such/file".into())];
        assert!(matches!(plan(&spec, &Walker::Caller), Err(JailError::MountSource { .. })));
    }

    #[test]
    fn a_child_does_not_unshare_and_a_caller_does() {
        let unshares = |walker: Walker<'_>| {
            let steps = plan(&JailSpec::monitor(), &walker).unwrap();
            steps.iter().filter(|step| matches!(step, Step::Unshare { .. })).count()
        };
        assert_eq!(unshares(Walker::Caller), 2);
        assert_eq!(unshares(Walker::Child { keep: &[], program: 0, exec_fd: 9 }), 0);
    }
}

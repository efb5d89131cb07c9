//! Why a process could not be confined, or a confined one not started.

use std::path::PathBuf;

use crate::PolicyError;

/// Why a process could not be confined, or a confined one not started.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// Namespaces can only be changed by a process of one thread.
    #[error("enter the jail: {threads} threads run already; enter before any thread is started")]
    ThreadsRunning {
        /// How many there are.
        threads: usize,
    },
    /// The kernel did not tell how many threads there are.
    #[error("count this process's threads in /proc/self/task")]
    CountThreads {
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The host does not let this user create a user namespace.
    #[error(
        "create a user namespace: {}; the host must allow it: `sysctl user.max_user_namespaces` \
         above 0, on Debian `kernel.unprivileged_userns_clone=1`, on Ubuntu \
         `kernel.apparmor_restrict_unprivileged_userns=0`, in a container a seccomp profile that \
         permits unshare and clone (Docker: --security-opt seccomp=unconfined or --privileged); or ask for a \
         jail without namespaces: --jail=reduced or KTSTR_JAIL=reduced, which the report will say",
        std::io::Error::from_raw_os_error(*errno)
    )]
    UserNamespaceForbidden {
        /// The error number.
        errno: i32,
    },
    /// One of the jail's steps failed.
    #[error("confine the process: {step}")]
    Step {
        /// What was tried.
        step: String,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The role's filter is not usable.
    #[error("compile the system call filter")]
    Policy {
        /// What is wrong with it.
        #[source]
        source: PolicyError,
    },
    /// The kernel has Landlock and refuses the ruleset.
    #[error("make the Landlock ruleset")]
    Ruleset {
        /// The reason.
        #[source]
        source: landlock::RulesetError,
    },
    /// A path or argument that no system call takes.
    #[error("{what} contains a zero byte: {text:?}")]
    ZeroByte {
        /// Which one.
        what: &'static str,
        /// Its content.
        text: String,
    },
    /// A mount that is not absolute, climbs, or lies where the new root is put together.
    #[error("mount {path} into the jail: the path must be absolute, without `..` and outside /sys")]
    MountPath {
        /// The path.
        path: PathBuf,
    },
    /// A mount whose source is missing.
    #[error("look at {path}, which the jail should show")]
    MountSource {
        /// The path.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The executable cannot be opened.
    #[error("open the executable {path}")]
    OpenProgram {
        /// Its path.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The pipes between parent and child could not be made.
    #[error("create the pipe on which a starting child reports")]
    Pipe {
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The child ended without saying why.
    #[error("the child ended while it was being confined: {status}")]
    ChildEnded {
        /// How it ended.
        status: std::process::ExitStatus,
    },
}

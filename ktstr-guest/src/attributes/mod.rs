//! What a worker asks of the kernel for itself before it works: name, credentials, scheduling policy,
//! nice value, memory policy, CPUs.
//!
//! [`Attributes::apply`] is called by the worker's own thread, so that it serves forked processes and
//! threads alike. The first refusal is an [`AttributeError`] that names what was asked; nothing is left
//! out silently.

mod memory;
mod policy;

use nix::{errno::Errno, libc};

pub use memory::{MemPolicy, MemPolicyError, MpolFlags};
pub use policy::{SchedPolicy, SchedPolicyError};

/// The kernel refused something a worker asked for itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {action}: {reason}", reason = errno.desc())]
pub struct AttributeError {
    /// What was asked.
    pub action: String,
    /// The kernel's reason.
    pub errno: Errno,
}

/// All that one worker asks for itself; `None` and empty mean that nothing is changed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Attributes {
    /// `task->comm`; the kernel keeps the first 15 bytes.
    pub comm: Option<String>,
    /// Nice value, −20 to 19.
    pub nice: Option<i32>,
    /// Scheduling policy.
    pub sched_policy: Option<SchedPolicy>,
    /// Where its memory comes from.
    pub mem_policy: Option<MemPolicy>,
    /// How the nodes of `mem_policy` are meant.
    pub mpol_flags: MpolFlags,
    /// CPUs it may use; empty is all that its cgroup allows.
    pub affinity: Vec<u32>,
    /// User id.
    pub uid: Option<u32>,
    /// Group id.
    pub gid: Option<u32>,
}

impl Attributes {
    /// Asks the kernel for everything, for the calling thread alone. Credentials come last, since they
    /// may take away the right to the rest; they also clear the parent-death signal.
    pub fn apply(&self) -> Result<(), AttributeError> {
        if let Some(comm) = &self.comm {
            let name = std::ffi::CString::new(comm.replace('\0', "")).unwrap_or_default();
            refused(nix::sys::prctl::set_name(&name), || format!("take the name `{comm}`"))?;
        }
        if let Some(policy) = &self.mem_policy {
            refused(policy.apply(self.mpol_flags), || format!("set the memory policy {policy:?}"))?;
        }
        if !self.affinity.is_empty() {
            refused(set_affinity(0, &self.affinity), || {
                format!("restrict itself to CPUs {}", crate::scenario::cpu_list(&self.affinity))
            })?;
        }
        if let Some(nice) = self.nice {
            refused(set_nice(nice), || format!("set the nice value {nice}"))?;
        }
        if let Some(policy) = &self.sched_policy {
            refused(policy.apply(0, self.nice), || format!("set the scheduling policy {policy:?}"))?;
        }
        if let Some(gid) = self.gid {
            // The raw calls change the calling thread alone.
            refused(system_call(libc::SYS_setresgid, [gid; 3]), || format!("take the group id {gid}"))?;
        }
        if let Some(uid) = self.uid {
            refused(system_call(libc::SYS_setresuid, [uid; 3]), || format!("take the user id {uid}"))?;
        }
        Ok(())
    }
}

fn refused(result: nix::Result<()>, action: impl FnOnce() -> String) -> Result<(), AttributeError> {
    result.map_err(|errno| AttributeError { action: action(), errno })
}

fn system_call(number: libc::c_long, ids: [u32; 3]) -> nix::Result<()> {
    // SAFETY: takes three numbers and touches no memory.
    Errno::result(unsafe { libc::syscall(number, ids[0], ids[1], ids[2]) }).map(drop)
}

fn set_nice(nice: i32) -> nix::Result<()> {
    // SAFETY: takes numbers only; 0 is the calling thread.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }).map(drop)
}

/// Restricts a thread to some CPUs; 0 is the calling one.
pub fn set_affinity(tid: u32, cpus: &[u32]) -> nix::Result<()> {
    let mut mask = [0_u64; ktstr_proto::topology::MAX_CPUS as usize / 64];
    for cpu in cpus {
        *mask.get_mut(*cpu as usize / 64).ok_or(Errno::EINVAL)? |= 1 << (cpu % 64);
    }
    // SAFETY: the kernel reads `size` bytes from the array and writes nothing.
    let done = unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, size_of_val(&mask), mask.as_ptr()) };
    Errno::result(done).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a thread of its own, which the change ends with.
    fn apart<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(run).join().unwrap()
    }

    #[test]
    fn name_nice_and_cpus_reach_the_kernel() {
        let (name, nice, cpus) = apart(|| {
            let cpu = nix::sched::sched_getcpu().unwrap() as u32;
            let wanted = Attributes {
                comm: Some("wanted-name".into()),
                nice: Some(7),
                affinity: vec![cpu],
                ..Attributes::default()
            };
            wanted.apply().unwrap();
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = |key: &str| {
                status.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default().trim().to_owned()
            };
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let nice = stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap().to_owned();
            (line("Name:"), nice, line("Cpus_allowed_list:") == cpu.to_string())
        });
        assert_eq!((name.as_str(), nice.as_str(), cpus), ("wanted-name", "7", true));
    }

    #[test]
    fn a_refusal_names_what_was_asked() {
        let wanted = Attributes { affinity: vec![511], ..Attributes::default() };
        let error = apart(move || wanted.apply()).unwrap_err().to_string();
        assert!(error.starts_with("cannot restrict itself to CPUs 511: "), "{error}");
        assert_eq!(apart(|| set_affinity(0, &[100_000])), Err(Errno::EINVAL));
    }
}

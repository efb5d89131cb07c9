//! What a test expects of the machine: all CPUs, counters switched on, a loopback, a shell.

use std::{fs, io, os::unix::fs::symlink, path::Path};

use ktstr_proto::topology::Topology;

use super::clock;

/// Keeps this CPU computing: under `det` that is a number of instructions, and shifts all that follows.
pub fn compute_for(time: std::time::Duration) {
    let began = std::time::Instant::now();
    while began.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// The shell commands are run with.
pub const SHELL: &str = "/bin/sh";
const BUSYBOX: &str = "/bin/busybox";
const CMDLINE: &str = "/proc/cmdline";
const ONLINE: &str = "/sys/devices/system/cpu/online";
/// How long CPUs may take to come up.
const CPUS_MS: u64 = 2_000;

/// Switches worth having; kernels without them run tests all the same.
const SYSCTLS: [(&str, &str); 2] =
    [("/proc/sys/kernel/sched_schedstats", "1"), ("/proc/sys/kernel/bpf_stats_enabled", "1")];

/// Why the machine is not what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// The number of CPUs is wrong.
    #[error("{online} CPUs are online after {CPUS_MS} ms, topology {shape} asks for {wanted}")]
    Cpus {
        /// CPUs online.
        online: u32,
        /// CPUs asked for.
        wanted: u32,
        /// Machine shape asked for.
        shape: Topology,
    },
    /// A command cannot be run.
    #[error("the initramfs holds neither {SHELL} nor {BUSYBOX}: no command can be run")]
    NoShell,
    /// The shell cannot be linked.
    #[error("cannot link {SHELL} to {BUSYBOX}")]
    Link {
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Number of CPUs in a kernel CPU list such as `0-3,6`; `None` when it is none.
fn count_cpus(list: &str) -> Option<u32> {
    let list = list.trim();
    if list.is_empty() {
        return Some(0);
    }
    list.split(',').try_fold(0_u32, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// Number of CPUs online; 0 when the kernel does not say.
pub fn cpus_online() -> u32 {
    fs::read_to_string(ONLINE).ok().and_then(|list| count_cpus(&list)).unwrap_or(0)
}

/// How many CPUs of the shape a kernel starts that was told `cmdline`.
fn started_cpus(shape: Topology, cmdline: &str) -> u32 {
    let words = || cmdline.split_whitespace();
    let without_smt = words().any(|word| word == "nosmt" || word == "nosmt=force");
    let all = if without_smt { shape.cpus() / shape.threads } else { shape.cpus() };
    let limit = |word: &str| {
        let value = word.strip_prefix("maxcpus=").or_else(|| word.strip_prefix("nr_cpus="))?;
        value.parse().ok()
    };
    words().filter_map(limit).fold(all, |count, limit: u32| count.min(limit.max(1)))
}

/// Waits until exactly the CPUs are online that the shape has and the command line leaves.
pub fn wait_for_cpus(shape: Topology) -> Result<(), SystemError> {
    let wanted = started_cpus(shape, &fs::read_to_string(CMDLINE).unwrap_or_default());
    if clock::wait_until(CPUS_MS, || cpus_online() == wanted) {
        return Ok(());
    }
    Err(SystemError::Cpus { online: cpus_online(), wanted, shape })
}

/// Switches counters on; returns what this kernel does not have.
pub fn set_sysctls() -> Vec<String> {
    let set = |(path, value): &(&str, &str)| fs::write(path, value).err().map(|e| format!("{path}: {e}"));
    SYSCTLS.iter().filter_map(set).collect()
}

/// Makes a shell available. Every other command busybox knows is found by that shell itself;
/// [`install_commands`] is for programs that look for them.
pub fn install_shell() -> Result<(), SystemError> {
    if Path::new(SHELL).exists() {
        return Ok(());
    }
    if !Path::new(BUSYBOX).exists() {
        return Err(SystemError::NoShell);
    }
    symlink(BUSYBOX, SHELL).map_err(|source| SystemError::Link { source })
}

/// Links every command busybox knows, unless the initramfs has the links already; returns why that
/// is not possible.
pub fn install_commands() -> Option<String> {
    if Path::new("/usr/bin/env").exists() {
        return None;
    }
    for directory in ["/bin", "/sbin", "/usr/bin", "/usr/sbin"] {
        // Where it cannot be made, the links fail and say so.
        let _ = fs::create_dir_all(directory);
    }
    let run = std::process::Command::new(BUSYBOX).args(["--install", "-s"]).output();
    match run {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("commands: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Some(format!("commands: {BUSYBOX}: {error}")),
    }
}

/// Puts PID 1 before everything the scheduler under test decides about: it must be able to report
/// while that scheduler runs nobody. What it starts begins as an ordinary task again.
pub fn escape_scheduler() -> io::Result<()> {
    let first = libc::sched_param { sched_priority: 1 };
    // SAFETY: the structure outlives the call, which only reads it; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &first) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Switches the loopback interface on.
pub fn loopback_up() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use std::os::fd::AsRawFd;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all-zero is a valid value of this C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: the request is a complete, zero-terminated `ifreq` that outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_may_leave_cpus_out() {
        let shape = Topology::new(1, 2, 4, 2).unwrap();
        for (cmdline, count) in [
            ("console=ttyS0", 16),
            ("nosmt quiet", 8),
            ("nosmt=force", 8),
            ("maxcpus=3", 3),
            ("nosmt nr_cpus=12 maxcpus=0", 1),
            ("nosmtx maxcpus=many", 16),
        ] {
            assert_eq!(started_cpus(shape, cmdline), count, "{cmdline}");
        }
    }

    #[test]
    fn cpu_lists_are_counted() {
        for (list, count) in [("0\n", 1), ("0-3\n", 4), ("0-1,4,6-7", 5), ("", 0)] {
            assert_eq!(count_cpus(list), Some(count), "{list}");
        }
        for broken in ["a", "3-1", "1,,2", "-", "0-4294967295"] {
            assert_eq!(count_cpus(broken), None, "{broken}");
        }
    }
}

//! CPUs of the guest while it runs: which are online, taking one away, giving it back, SMT as a whole.
//!
//! For test functions, which run as root in the guest. A change returns when the kernel has made it.
//! It refuses CPUs that do not exist with the kernel's own error. Next: `scenario::topology` knows
//! which CPUs belong together.

use std::{fs, io, path::PathBuf};

use crate::scenario::parse_cpu_list;

const CPUS: &str = "/sys/devices/system/cpu";

/// Why a CPU stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// A file of sysfs could not be read.
    #[error("read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A file of sysfs could not be written.
    #[error("write `{value}` to {path}")]
    Write {
        /// What.
        value: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's reason: EBUSY for the last CPU, ENOENT for one that cannot be taken away.
        #[source]
        source: io::Error,
    },
    /// The kernel wrote something that is no list of CPUs.
    #[error("{path} says `{text}`, which is no list of CPUs")]
    Text {
        /// Which.
        path: PathBuf,
        /// What it says.
        text: String,
    },
}

/// What the kernel does with the threads of a core (`/sys/devices/system/cpu/smt/control`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Smt {
    /// All of them may run.
    On,
    /// Only the first of each core; can be changed.
    Off,
    /// As `Off`, until the next boot.
    ForceOff,
    /// These CPUs have one thread per core, or this kernel has no such switch.
    NotSupported,
}

fn read(path: PathBuf) -> Result<(PathBuf, String), CpuError> {
    match fs::read_to_string(&path) {
        Ok(text) => Ok((path, text.trim().to_owned())),
        Err(source) => Err(CpuError::Read { path, source }),
    }
}

fn write(path: PathBuf, value: &'static str) -> Result<(), CpuError> {
    fs::write(&path, value).map_err(|source| CpuError::Write { value, path, source })
}

fn list(name: &str) -> Result<Vec<u32>, CpuError> {
    let (path, text) = read(PathBuf::from(CPUS).join(name))?;
    parse_cpu_list(&text).ok_or(CpuError::Text { path, text })
}

/// The CPUs that are online, ascending.
pub fn online() -> Result<Vec<u32>, CpuError> {
    list("online")
}

/// The CPUs for which the kernel keeps what it keeps per CPU, ascending: those present and those that it believes
/// could come.
pub fn possible() -> Result<Vec<u32>, CpuError> {
    list("possible")
}

/// Takes a CPU away (`false`) or gives it back (`true`). What ran there moves elsewhere first.
pub fn set_online(cpu: u32, online: bool) -> Result<(), CpuError> {
    write(PathBuf::from(CPUS).join(format!("cpu{cpu}/online")), if online { "1" } else { "0" })
}

/// How SMT stands.
pub fn smt() -> Result<Smt, CpuError> {
    let path = PathBuf::from(CPUS).join("smt/control");
    if !path.exists() {
        return Ok(Smt::NotSupported);
    }
    Ok(match read(path)?.1.as_str() {
        "on" => Smt::On,
        "off" => Smt::Off,
        "forceoff" => Smt::ForceOff,
        _ => Smt::NotSupported,
    })
}

/// Switches the second and further threads of all cores on or off.
pub fn set_smt(on: bool) -> Result<(), CpuError> {
    write(PathBuf::from(CPUS).join("smt/control"), if on { "on" } else { "off" })
}

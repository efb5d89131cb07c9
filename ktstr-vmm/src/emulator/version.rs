//! Which emulator is installed, and what that version can be trusted with.
//!
//! Detection runs the executable once, before any jail. What a version may do is decided here and
//! nowhere else. Next: `args`, which turns the decision into a command line.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Version of the emulator, as it prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub micro: u32,
}

/// Why the emulator's version is not known.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// The executable could not be run.
    #[error("run `{program} --version`: install qemu-system-x86 or name another executable")]
    Run {
        /// The executable.
        program: String,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It ran and failed.
    #[error("`{program} --version` ended with {status}: {stderr}")]
    Failed {
        /// The executable.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it complained about.
        stderr: String,
    },
    /// It printed something that holds no version.
    #[error("`{text}` holds no emulator version (expected `QEMU emulator version X.Y.Z`)")]
    Unreadable {
        /// What was printed, shortened.
        text: String,
    },
}

impl Version {
    /// First version under which several translation threads were seen not to break a guest kernel's
    /// text patching; 7.2 makes kernels oops at static-branch sites.
    pub const THREADS_SOUND: Version = Version { major: 10, minor: 0, micro: 0 };

    /// First version whose file memory backend takes an offset, which several NUMA nodes in one RAM
    /// file need.
    pub const BACKEND_OFFSET: Version = Version { major: 8, minor: 1, micro: 0 };

    /// First version whose q35 board takes more than 288 CPUs, and whose local APICs know x2APIC without a
    /// hypervisor below since the release before.
    pub const MANY_CPUS: Version = Version { major: 9, minor: 1, micro: 0 };

    /// Asks the executable.
    pub fn detect(program: &Path) -> Result<Version, VersionError> {
        let name = program.display().to_string();
        let output = Command::new(program)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(|source| VersionError::Run { program: name.clone(), source })?;
        if !output.status.success() {
            return Err(VersionError::Failed {
                program: name,
                status: output.status,
                stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        Version::parse(&String::from_utf8_lossy(&output.stdout))
    }

    /// Reads `QEMU emulator version 10.0.2 (Debian …)` or a bare `10.0.2`.
    pub fn parse(text: &str) -> Result<Version, VersionError> {
        let unreadable = || VersionError::Unreadable { text: text.chars().take(120).collect() };
        let rest = text.trim().strip_prefix("QEMU emulator version ").unwrap_or(text.trim());
        let number = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next().ok_or_else(unreadable)?;
        let mut parts = number.split('.').map(str::parse::<u32>);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(micro))) => Ok(Version { major, minor, micro }),
            (Some(Ok(major)), Some(Ok(minor)), None) => Ok(Version { major, minor, micro: 0 }),
            _ => Err(unreadable()),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_distributions_print_them() {
        let debian =
            "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright (c) 2003\n";
        assert_eq!(Version::parse(debian).unwrap(), Version { major: 10, minor: 0, micro: 2 });
        let old = Version::parse("QEMU emulator version 7.2.19 (Debian 1:7.2+dfsg-7)").unwrap();
        assert!(old < Version::THREADS_SOUND && old < Version::BACKEND_OFFSET);
        assert_eq!(Version::parse("11.1").unwrap(), Version { major: 11, minor: 1, micro: 0 });
    }

    #[test]
    fn other_text_is_refused() {
        for text in
            ["", "QEMU emulator version", "QEMU emulator version x.y", "bash 5", "1..2", "99999999999.1"]
        {
            assert!(matches!(Version::parse(text), Err(VersionError::Unreadable { .. })), "{text}");
        }
    }

    #[test]
    fn a_missing_executable_is_named() {
        let error = Version::detect(Path::new("/nonexistent/emulator")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/emulator --version"), "{error}");
    }
}

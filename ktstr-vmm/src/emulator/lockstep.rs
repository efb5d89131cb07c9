//! What the emulator runs with under `det`, so that no moment of the host's reaches the guest.
//!
//! The emulator counts instructions, but its event loop runs when the host schedules it, and what it does
//! there (advancing the clock of idle vCPUs, running timers) is not the same at every moment. A small
//! library (`lockstep.c`) is preloaded, which lets only one of event loop and vCPU thread run at a time and
//! has them change over where the guest's own progress says so.

use std::{
    fs::File,
    io::{PipeReader, PipeWriter, Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::{
    fcntl::{FcntlArg, OFlag, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

/// The library, built by `build.rs`.
const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lockstep.so"));

/// The library as a file of the child's, and what it reports by.
#[derive(Debug)]
pub(super) struct Lockstep {
    library: File,
    report: PipeReader,
    reporter: PipeWriter,
}

impl Lockstep {
    /// The file and the pipe.
    pub(super) fn new() -> std::io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let mut library = File::from(memfd_create(c"lockstep", flags)?);
        library.write_all(LIBRARY)?;
        fcntl(&library, FcntlArg::F_ADD_SEALS(SealFlag::all()))?;
        let (report, reporter) = std::io::pipe()?;
        fcntl(&report, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { library, report, reporter })
    }

    /// What the child inherits.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.library.as_fd(), self.reporter.as_fd()]
    }

    /// The child's environment, `NAME=value`.
    pub(super) fn environment(&self) -> Vec<String> {
        let library = super::args::path(self.library.as_fd());
        vec![format!("LD_PRELOAD={library}"), format!("KTSTR_LOCKSTEP={}", self.reporter.as_raw_fd())]
    }

    /// Whether the child, which has started, has loaded the library.
    pub(super) fn confirms(mut self) -> bool {
        let mut said = [0];
        matches!(self.report.read(&mut said), Ok(1)) && said == *b"l"
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ktstr_jail::JailSpec;
    use ktstr_proto::run::Jail;
    use nix::poll::{PollFd, PollFlags, poll};

    use super::{super::child::Emulator, *};

    /// Whether a program that is started with `environment` reports.
    fn reports(environment: fn(&Lockstep) -> Vec<String>) -> bool {
        let lockstep = Lockstep::new().unwrap();
        let (jail, environment) = (JailSpec::emulator(&[]), environment(&lockstep));
        let program = Path::new("/bin/true");
        let mut child =
            Emulator::spawn(Jail::Full, jail, program, &[], &environment, &lockstep.descriptors()).unwrap();
        poll(&mut [PollFd::new(child.pidfd(), PollFlags::POLLIN)], 10_000u16).unwrap();
        assert!(child.try_wait().expect("it has ended").success(), "{}", child.complaints());
        lockstep.confirms()
    }

    #[test]
    fn whether_a_program_has_loaded_it_is_known() {
        assert!(reports(Lockstep::environment));
        assert!(!reports(|_| Vec::new()), "one that was not told to");
    }
}

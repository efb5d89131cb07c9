//! What is preloaded into the emulator: a library that changes one thing about how it runs vCPUs.
//!
//! Under `det`, [`LOCKSTEP`] (`lockstep.c`): the emulator counts instructions, but its event loop runs when the
//! host schedules it, and what it does there (advancing the clock of idle vCPUs, running timers) is not the
//! same at every moment. Only one of event loop and vCPU thread runs at a time, and they change over where
//! the guest's own progress says so.
//!
//! With vCPUs on threads of their own, [`COHERENCE`] (`coherence.c`): a vCPU never executes kernel text as it
//! was before another one replaced it.

use std::{
    ffi::CStr,
    fs::File,
    io::{PipeReader, PipeWriter, Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::{
    fcntl::{FcntlArg, OFlag, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

use super::args::{Mode, Threads};

/// A library, as `build.rs` builds it.
#[derive(Debug)]
pub(super) struct Library {
    name: &'static CStr,
    content: &'static [u8],
    /// The variable that names the descriptor to report by.
    variable: &'static str,
    /// What it reports once it is in force.
    word: u8,
}

/// No moment of the host's reaches the guest.
pub(super) static LOCKSTEP: Library = Library {
    name: c"lockstep",
    content: include_bytes!(concat!(env!("OUT_DIR"), "/lockstep.so")),
    variable: "KTSTR_LOCKSTEP",
    word: b'l',
};

/// No vCPU executes kernel text that another one has replaced.
pub(super) static COHERENCE: Library = Library {
    name: c"coherence",
    content: include_bytes!(concat!(env!("OUT_DIR"), "/coherence.so")),
    variable: "KTSTR_COHERENCE",
    word: b'c',
};

impl Library {
    /// The one that an emulator needs.
    pub(super) fn choose(mode: Mode, threads: Threads) -> Option<&'static Library> {
        match (mode, threads) {
            (Mode::Det { .. }, _) => Some(&LOCKSTEP),
            (Mode::Tcg, Threads::Multi) => Some(&COHERENCE),
            (Mode::Tcg, Threads::Single) => None,
        }
    }

    /// The file and the pipe.
    pub(super) fn preload(&'static self) -> std::io::Result<Preload> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let mut file = File::from(memfd_create(self.name, flags)?);
        file.write_all(self.content)?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::all()))?;
        let (report, reporter) = std::io::pipe()?;
        fcntl(&report, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Preload { library: self, file, report, reporter })
    }
}

/// A library as a file of the child's, and what it reports by.
#[derive(Debug)]
pub(super) struct Preload {
    library: &'static Library,
    file: File,
    report: PipeReader,
    reporter: PipeWriter,
}

impl Preload {
    /// What the child inherits.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.file.as_fd(), self.reporter.as_fd()]
    }

    /// The child's environment, `NAME=value`.
    pub(super) fn environment(&self) -> Vec<String> {
        let file = super::args::path(self.file.as_fd());
        vec![format!("LD_PRELOAD={file}"), format!("{}={}", self.library.variable, self.reporter.as_raw_fd())]
    }

    /// Whether the child, which has started, has loaded the library and that is in force.
    pub(super) fn confirms(mut self) -> bool {
        let mut said = [0];
        matches!(self.report.read(&mut said), Ok(1)) && said == [self.library.word]
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ktstr_jail::JailSpec;
    use ktstr_proto::run::Jail;
    use nix::poll::{PollFd, PollFlags, poll};

    use super::{super::child::Emulator, *};

    /// Whether `library` reports from a program that is started with `environment`.
    fn reports(library: &'static Library, environment: fn(&Preload) -> Vec<String>) -> bool {
        let preload = library.preload().unwrap();
        let (jail, environment) = (JailSpec::emulator(&[]), environment(&preload));
        let program = Path::new("/bin/true");
        let mut child =
            Emulator::spawn(Jail::Full, jail, program, &[], &environment, &preload.descriptors()).unwrap();
        poll(&mut [PollFd::new(child.pidfd(), PollFlags::POLLIN)], 10_000u16).unwrap();
        assert!(child.try_wait().expect("it has ended").success(), "{}", child.complaints());
        preload.confirms()
    }

    #[test]
    fn whether_a_program_has_loaded_it_is_known() {
        assert!(reports(&LOCKSTEP, Preload::environment));
        assert!(!reports(&LOCKSTEP, |_| Vec::new()), "one that was not told to");
    }

    #[test]
    fn a_program_without_the_parts_of_an_emulator_is_left_as_it_is() {
        assert!(!reports(&COHERENCE, Preload::environment));
    }
}

//! Starting a child: its environment, its pipes, its place in the watch.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Command, Stdio},
};

use ktstr_proto::{
    device::{DISK_DEVICE, DiskConfig, Filesystem},
    guest::{GuestJob, LogSource},
};
use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{streams::Stream, watch::Watch};
use crate::work::DISK_ENV;

/// Where commands are looked for.
pub const PATH: &str = "/include-files:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// No pipe for its output.
    #[error("cannot make a pipe for the output of {program}")]
    Pipe {
        /// The program.
        program: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel does not run it.
    #[error("cannot run {program}: {hint}")]
    Exec {
        /// The program.
        program: String,
        /// What that usually means.
        hint: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Whose output goes where.
#[derive(Debug, Clone, Copy)]
pub enum Output {
    /// Standard output and error are one text.
    Joined(LogSource),
    /// Standard output and error apart.
    Apart,
}

/// A command with the environment of the guest's processes and nothing else.
pub fn command(program: &str, job: &GuestJob) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("TERM", "linux")
        .env("KTSTR_SEED", job.seed.to_string())
        .envs(work_disk(job))
        .envs(job.env.iter().map(|(name, value)| (name, value)))
        .current_dir("/");
    command
}

/// A raw disk that can be written is there to be written: work types that press on block devices take it.
fn work_disk(job: &GuestJob) -> Option<(&'static str, &'static str)> {
    let raw = |disk: &&DiskConfig| matches!(disk.filesystem, Filesystem::Raw) && !disk.read_only;
    job.disk.as_ref().filter(raw).map(|_| (DISK_ENV, DISK_DEVICE))
}

/// Starts a command in a process group of its own, its output watched.
pub fn spawn(watch: &mut Watch, mut command: Command, output: Output) -> Result<Pid, SpawnError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let pipe = |source: LogSource| {
        let (reader, writer) = io::pipe()?;
        Ok((Stream::new(reader, source)?, OwnedFd::from(writer)))
    };
    let pipe_failed = |source: io::Error| SpawnError::Pipe { program: program.clone(), source };
    let (streams, stdout, stderr) = match output {
        Output::Joined(source) => {
            let (stream, writer) = pipe(source).map_err(pipe_failed)?;
            let second = writer.try_clone().map_err(pipe_failed)?;
            (vec![stream], writer, second)
        }
        Output::Apart => {
            let (first, stdout) = pipe(LogSource::Stdout).map_err(pipe_failed)?;
            let (second, stderr) = pipe(LogSource::Stderr).map_err(pipe_failed)?;
            (vec![first, second], stdout, stderr)
        }
    };
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).process_group(0);
    let pid = start(watch, &mut command)?;
    streams.into_iter().for_each(|stream| watch.add_stream(stream));
    Ok(pid)
}

/// Starts a command as it is.
pub fn start(watch: &mut Watch, command: &mut Command) -> Result<Pid, SpawnError> {
    watch.start(command).map_err(|source| SpawnError::Exec {
        program: command.get_program().to_string_lossy().into_owned(),
        hint: hint(&source),
        source,
    })
}

/// Signals the whole group a child leads; gone is fine.
pub fn signal_group(pid: Pid, signal: Signal) {
    let _ = killpg(pid, signal);
}

fn hint(error: &io::Error) -> &'static str {
    match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        Errno::ENOENT => "it, or the interpreter it names, is not in the initramfs",
        Errno::ENOEXEC => "it is no executable for this machine",
        Errno::EACCES => "it is not marked executable",
        Errno::ENOMEM => "too little guest memory",
        _ => "the kernel refuses",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_refuses_is_put_into_words() {
        assert!(hint(&io::Error::from(Errno::ENOEXEC)).contains("no executable"));
        assert!(hint(&io::Error::from(Errno::ENOENT)).contains("not in the initramfs"));
        assert_eq!(hint(&io::Error::other("x")), "the kernel refuses");
    }
}

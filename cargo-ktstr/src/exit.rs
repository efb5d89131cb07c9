//! Exit codes of our own commands and how errors reach the terminal.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Context;

/// What a command ended with. The order of the codes is not one of badness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything passed.
    Pass = 0,
    /// A test failed, or a command could not do what was asked.
    Fail = 1,
    /// No verdict was possible.
    Inconclusive = 2,
    /// Something was missing, such as a kernel.
    NotRun = 3,
    /// One of our own processes died or could not be started.
    Infrastructure = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// An error that stands for another exit code than [`Exit::Fail`].
#[derive(Debug)]
pub struct Coded {
    /// The code.
    pub exit: Exit,
    /// The error.
    pub error: anyhow::Error,
}

impl std::fmt::Display for Coded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Coded {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.chain().nth(1)
    }
}

/// Gives `error` the exit code `exit`.
pub fn coded(exit: Exit, error: impl Into<anyhow::Error>) -> anyhow::Error {
    Coded { exit, error: error.into() }.into()
}

/// Prints on standard output what a command found. A reader that has seen enough and closed it, such as
/// `head`, is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot print"),
        _ => Ok(()),
    }
}

/// [`print`] of a value as JSON.
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Prints the error's chain on one line each and gives its code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let mut text = String::new();
    let mut last = String::new();
    for cause in error.chain().map(ToString::to_string) {
        // A transparent wrapper says the same as what it wraps.
        if cause != last {
            text.push_str(if text.is_empty() { "error: " } else { "\n  caused by: " });
            text.push_str(&cause);
        }
        last = cause;
    }
    eprintln!("{text}");
    error.downcast_ref::<Coded>().map_or(Exit::Fail, |coded| coded.exit).into()
}

/// Prints what the argument parser has to say: help on stdout with code 0,
/// mistakes on stderr with code 1.
pub fn usage(error: &clap::Error) -> ExitCode {
    // Nothing is left to do when the terminal is gone.
    let _ = error.print();
    if error.use_stderr() { Exit::Fail.into() } else { Exit::Pass.into() }
}

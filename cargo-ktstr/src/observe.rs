//! `query`, `write`, `capture`, `attach` and `schema`: the monitor's own commands, under the name that users know.
//!
//! Nothing is parsed here; this process becomes `ktstr-monitor`, whose exit codes are then ours.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::Context;

use crate::cli::MonitorArgs;
use crate::exit::{Exit, coded};

/// Does not return when it succeeds.
pub fn run(command: &str, args: &MonitorArgs) -> anyhow::Result<ExitCode> {
    let program = ktstr_orch::children::find_executable("ktstr-monitor")
        .map_err(|error| coded(Exit::Infrastructure, error))?;
    let help = args.args.iter().any(|arg| arg == "--help" || arg == "-h");
    let command = if help { "--help" } else { command };
    let error = Command::new(&program).arg(command).args(&args.args).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

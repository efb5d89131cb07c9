//! The `ktstr` and `cargo ktstr` commands: what a user types.
//!
//! This package parses arguments, prints and sets exit codes. It boots
//! nothing itself and holds no guest memory: VMs are asked of the
//! orchestrator, kernels of its store. [`cli`] has every option, the other
//! modules one subcommand each, [`exit`] the codes.

mod budget;
pub mod cli;
mod client;
pub mod exit;
mod kernel;
mod locks;
mod observe;
mod progress;
mod scenarios;
mod shell;
mod summary;
mod terminal;
mod test;
mod thresholds;
mod topo;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

/// Runs one command line and gives the code to exit with.
///
/// `cargo ktstr X` reaches us as `cargo-ktstr ktstr X`; the extra word is
/// dropped.
pub fn run(args: impl IntoIterator<Item = OsString>, name: &'static str) -> ExitCode {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let plugin = name == "cargo-ktstr";
    if plugin && args.get(1).is_some_and(|arg| arg == "ktstr") {
        args.remove(1);
    }
    let parsed = match cli::Cli::try_parse_from(&args) {
        Ok(parsed) => parsed,
        Err(error) => return exit::usage(&error),
    };
    match dispatch(parsed, plugin) {
        Ok(code) => code,
        Err(error) => exit::report(&error),
    }
}

fn dispatch(parsed: cli::Cli, plugin: bool) -> anyhow::Result<ExitCode> {
    use cli::Command;
    match parsed.command {
        Command::Test(args) => test::run(&args),
        Command::Kernel(action) => kernel::run(&action),
        Command::Shell(args) => shell::run(args),
        Command::Query(args) => observe::run("query", &args),
        Command::Write(args) => observe::run("write", &args),
        Command::Capture(args) => observe::run("capture", &args),
        Command::Attach(args) => observe::run("attach", &args),
        Command::Schema(args) => observe::run("schema", &args),
        Command::Topo => topo::run(),
        Command::Locks(args) => locks::run(&args),
        Command::List(args) => scenarios::list(&args),
        Command::Run(args) => scenarios::run(&args),
        Command::Cleanup(args) => scenarios::cleanup(&args),
        Command::ShowThresholds(args) => thresholds::show(&args),
        Command::Completions(args) => {
            cli::completions(&args, plugin);
            Ok(ExitCode::SUCCESS)
        }
    }
}

//! The ktstr-monitor executable: the role process when the orchestrator starts it (no arguments),
//! else the commands with which a user looks into a run.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    if args.is_empty() { ktstr_monitor::role_main() } else { ktstr_monitor::command_main(&args) }
}

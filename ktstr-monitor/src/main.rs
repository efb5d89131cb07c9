//! The ktstr-monitor executable: the role process when the orchestrator starts it (no arguments
//! but for its jail),
//! else the commands with which a user looks into a run.

use std::process::ExitCode;

use ktstr_jail::Namespaces;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => ktstr_monitor::role_main(Namespaces::OfNewUser),
        ["--jail=reduced"] => ktstr_monitor::role_main(Namespaces::Forgone),
        _ => ktstr_monitor::command_main(&args),
    }
}

//! The ktstr-monitor executable: started by the orchestrator, never by hand.

use std::process::ExitCode;

fn main() -> ExitCode {
    ktstr_monitor::role_main()
}

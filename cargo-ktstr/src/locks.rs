//! `locks`: which runs hold which of the host's last-level caches.
//!
//! Reads the lock files' directory and `/proc/locks`; takes no lock.

use std::process::ExitCode;

use ktstr_orch::host::locks::{Claim, Holder, LockDir};

use crate::cli::LocksArgs;
use crate::exit::{print, print_json};

/// Prints it.
pub fn run(args: &LocksArgs) -> anyhow::Result<ExitCode> {
    let holders = LockDir::of_environment().holders();
    if args.json {
        print_json(&serde_json::json!({ "llcs": holders }))?;
    } else {
        print(&render(&holders))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn render(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return "no last-level cache is held\n".to_owned();
    }
    let line = |holder: &Holder| {
        let claim = match holder.claim {
            Claim::Exclusive => "alone",
            Claim::Shared => "shared",
        };
        format!("LLC {} {claim}: process {} {}\n", holder.llc, holder.pid, holder.command)
    };
    holders.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_told_with_their_commands() {
        let holder = Holder { llc: 2, claim: Claim::Shared, pid: 7, command: "ktstr-orch run".into() };
        let alone = Holder { claim: Claim::Exclusive, ..holder.clone() };
        let text = render(&[alone, holder]);
        assert_eq!(text, "LLC 2 alone: process 7 ktstr-orch run\nLLC 2 shared: process 7 ktstr-orch run\n");
        assert!(render(&[]).starts_with("no last-level cache"));
    }
}

//! The ktstr-vmm executable.

use std::process::ExitCode;

fn main() -> ExitCode {
    ktstr_vmm::role_main()
}

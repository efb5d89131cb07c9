//! The `cargo-ktstr` executable, for `cargo ktstr …`; all of it is in the
//! library.

use std::process::ExitCode;

fn main() -> ExitCode {
    cargo_ktstr::run(std::env::args_os(), "cargo-ktstr")
}

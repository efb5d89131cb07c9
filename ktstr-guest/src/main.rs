//! The ktstr-guest executable: `/init` of the guest. All of it is [`ktstr_guest::init`].

fn main() -> std::process::ExitCode {
    ktstr_guest::init::main()
}

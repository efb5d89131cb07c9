//! The virtual machine monitor: hardware KVM or an emulator child behind one interface.
//!
//! [`machine`] is that interface, [`kvm`] and [`emulator`] are its backends, [`backend`] chooses.
//! [`session`] is one machine with everything that leaves it ([`console`], [`ring`]); [`serve`] runs
//! it for an orchestrator.

pub mod backend;
pub mod console;
pub mod emulator;
pub mod kvm;
pub mod machine;
pub mod ring;
pub mod serve;
pub mod session;
pub mod terminal;

/// What the executable does: serves the orchestrator that started it.
#[must_use]
pub fn role_main() -> std::process::ExitCode {
    let served = ktstr_proto::Channel::inherited("the orchestrator")
        .map_err(serve::ServeError::from)
        .and_then(serve::Server::new)
        .and_then(serve::Server::run);
    match served {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ktstr-vmm: {}", ktstr_proto::link::chain(&error));
            std::process::ExitCode::from(4)
        }
    }
}

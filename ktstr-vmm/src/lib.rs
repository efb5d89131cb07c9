//! The virtual machine monitor: hardware KVM or an emulator child behind one interface.
//!
//! [`machine`] is that interface, [`kvm`] and [`emulator`] are its backends, [`backend`] chooses.
//! [`session`] is one machine with everything that leaves it ([`console`], [`ring`]); [`serve`] runs
//! it for an orchestrator, [`standalone`] for a person. [`device`] is another process: disks and networks.

pub mod apic;
pub mod backend;
pub mod confine;
pub mod console;
pub mod device;
pub mod emulator;
#[doc(hidden)]
pub mod fuzz;
pub mod handover;
pub mod kvm;
pub mod machine;
pub mod nodes;
pub mod probe;
pub mod ring;
pub mod serve;
pub mod session;
pub mod snapshot;
pub mod standalone;
pub mod terminal;

use ktstr_proto::run::Jail;

/// What the executable does: serves the orchestrator that started it, or runs a shell.
#[must_use]
pub fn role_main() -> std::process::ExitCode {
    use clap::Parser;
    let standalone::options::Options { command, jail } = Parser::parse();
    let ended = match command {
        Some(standalone::options::Command::Shell(options)) => {
            standalone::shell::run(&options, jail).map_err(|error| ktstr_proto::link::chain(&error))
        }
        Some(standalone::options::Command::Device) => {
            serve_devices(jail).map(|()| 0).map_err(|error| ktstr_proto::link::chain(&error))
        }
        None => serve_orchestrator(jail).map(|()| 0).map_err(|error| ktstr_proto::link::chain(&error)),
    };
    std::process::ExitCode::from(ended.unwrap_or_else(|message| {
        eprintln!("ktstr-vmm: {message}");
        4
    }))
}

fn serve_devices(jail: Jail) -> Result<(), device::serve::DeviceError> {
    device::serve::run(ktstr_proto::Channel::inherited("the orchestrator")?, jail)
}

fn serve_orchestrator(jail: Jail) -> Result<(), serve::ServeError> {
    let channel = ktstr_proto::Channel::inherited("the orchestrator")?;
    serve::Server::new(channel, jail)?.run()
}

//! Developer automation: `cargo xtask …`, one module per subcommand.
//!
//! The first thing built on a fresh clone, so its dependency tree stays small
//! and none of the workspace's crates is in it. Exit codes are the project's:
//! 0 pass, 1 fail, 2 inconclusive, 3 not run, 4 infrastructure; a command run
//! in the lab passes its own code on.

mod bench;
mod book;
mod demo;
mod det_check;
mod fuzz;
mod lab;
mod prereq;
mod published;
mod race;
mod scenarios;
mod soak;
mod suite;
mod topologies;
mod trust;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer automation for ktstr")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Judge a real scheduler on a real kernel: install, build, pull, run
    Demo(demo::DemoArgs),
    /// The whole test suite, real kernels and the KVM lab included
    Test(suite::TestArgs),
    /// Run the demo under `det` many times and compare every byte
    DetCheck(det_check::DetCheckArgs),
    /// Find the race planted in the fixture scheduler by seeds and repeat it
    Race(race::RaceArgs),
    /// Build a scheduler that others publish and judge it unpatched
    Published(published::PublishedArgs),
    /// Boot every named machine shape and compare what the guest sees
    Topologies(topologies::TopologiesArgs),
    /// Run every scenario of the catalogue under several schedulers and write docs/scenarios.md
    Scenarios(scenarios::ScenariosArgs),
    /// Boot many times and look for a guest that the emulator corrupted
    Soak(soak::SoakArgs),
    /// Look for bytes that break what reads them in the monitor and the VMM
    Fuzz(fuzz::FuzzArgs),
    /// Break a scheduler in known ways, many times, and count which checks notice
    Trust(trust::TrustArgs),
    /// Run a command in a VM that has a working /dev/kvm, on any machine
    Lab(lab::LabArgs),
    /// Check for, and install, what building and running needs
    Prereq(prereq::PrereqArgs),
    /// Compile the book's examples; --record runs what it shows
    Book(book::BookArgs),
    /// Measure start-up against bare QEMU, as ratios
    Bench(bench::BenchArgs),
    /// PID 1 inside the lab
    #[command(name = lab::AGENT_COMMAND, hide = true)]
    LabAgent,
    /// The process that owns the lab's emulator
    #[command(name = lab::KEEPER_COMMAND, hide = true)]
    LabKeeper {
        /// State directory of the lab
        dir: std::path::PathBuf,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::command(&args),
        Command::Test(args) => suite::command(&args),
        Command::DetCheck(args) => det_check::command(&args),
        Command::Race(args) => race::command(&args),
        Command::Published(args) => published::command(&args),
        Command::Topologies(args) => topologies::command(&args),
        Command::Scenarios(args) => scenarios::command(&args),
        Command::Soak(args) => soak::command(&args),
        Command::Fuzz(args) => fuzz::command(&args),
        Command::Trust(args) => trust::command(&args),
        Command::Lab(args) => lab::command(args),
        Command::Prereq(args) => prereq::command(&args),
        Command::Book(args) => book::command(&args),
        Command::Bench(args) => bench::command(&args),
        Command::LabAgent => lab::agent_main(),
        Command::LabKeeper { dir } => lab::keeper_main(&dir),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(err) => {
            eprintln!("xtask: {err:#}");
            ExitCode::from(lab::INFRASTRUCTURE)
        }
    }
}

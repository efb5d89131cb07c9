//! The command line of the executable when it is not started by an orchestrator.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ktstr_proto::{AccelKind, run::Jail, topology::Shape};

/// The virtual machine monitor of ktstr. Without a command it serves the orchestrator that started
/// it, over descriptor 3.
#[derive(Debug, Parser)]
#[command(name = "ktstr-vmm", version)]
pub struct Options {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How this process and its emulator are confined: full, or reduced on hosts that forbid namespaces.
    #[arg(long, global = true, default_value_t = Jail::Full)]
    pub jail: Jail,
}

/// What to do without an orchestrator.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boots a machine for a shell or one command.
    Shell(ShellOptions),
    /// Serves disks and networks for the orchestrator that started it, over descriptor 3.
    #[command(hide = true)]
    Device,
}

/// The machine and what runs in it.
#[derive(Debug, Args)]
pub struct ShellOptions {
    /// Decompressed kernel (vmlinux, an ELF file with a PVH entry).
    #[arg(long)]
    pub kernel: PathBuf,
    /// Initramfs with ktstr-guest as PID 1.
    #[arg(long)]
    pub initrd: PathBuf,
    /// NUMA nodes, LLCs, cores per LLC, threads per core; or the name of a preset. Nodes are described
    /// behind it: 2n4l2c1t/mem=512,1024/cxl=256.
    #[arg(long, default_value = "1,1,1,1", value_name = "N,L,C,T")]
    pub topology: Shape,
    /// Guest memory in MiB.
    #[arg(long, default_value_t = 1024, value_name = "MB", value_parser = clap::value_parser!(u32).range(128..))]
    pub memory_mb: u32,
    /// What runs the vCPUs.
    #[arg(long, value_enum, default_value_t = AccelOption::Tcg)]
    pub accel: AccelOption,
    /// Streams the kernel console to standard error.
    #[arg(long)]
    pub dmesg: bool,
    /// Runs one command instead of a shell; its exit status becomes ours.
    #[arg(long, value_name = "CMD")]
    pub exec: Option<String>,
    /// The emulator.
    #[arg(long, default_value = "/usr/bin/qemu-system-x86_64", value_name = "PROGRAM")]
    pub emulator: PathBuf,
}

/// The accelerators that can be asked for here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccelOption {
    /// Hardware KVM.
    Kvm,
    /// The emulator, for speed.
    Tcg,
    /// The emulator, replayable; only with --exec.
    Det,
}

impl From<AccelOption> for AccelKind {
    fn from(option: AccelOption) -> Self {
        match option {
            AccelOption::Kvm => AccelKind::Kvm,
            AccelOption::Tcg => AccelKind::Tcg,
            AccelOption::Det => AccelKind::Det,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Options as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn no_command_means_serving() {
        assert!(Options::parse_from(["ktstr-vmm"]).command.is_none());
        let shell = "ktstr-vmm shell --kernel k --initrd i --topology 1,2,3,1 --accel det --exec true";
        let Some(Command::Shell(shell)) = Options::parse_from(shell.split(' ')).command else {
            panic!("no shell command");
        };
        assert_eq!((shell.topology.topology.cpus(), shell.accel), (6, AccelOption::Det));
        let tiny = "ktstr-vmm shell --kernel k --initrd i --memory-mb 1";
        assert!(Options::try_parse_from(tiny.split(' ')).is_err());
    }
}

//! A scheduler as data, and the list of all that are declared.

use ktstr_proto::{Topology, verdict::Assert};

use crate::host::Constraints;

/// A kernel parameter below `/proc/sys`, set before anything runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sysctl {
    /// Its name, parts joined by dots.
    pub name: &'static str,
    /// Its value.
    pub value: &'static str,
}

impl Sysctl {
    /// A parameter and its value.
    pub const fn new(name: &'static str, value: &'static str) -> Self {
        Self { name, value }
    }
}

/// How a scheduler takes its configuration from a test: an argument with `{file}` in it, and the file's
/// path in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigFileDef {
    /// The arguments, separated by spaces; `{file}` stands for the path.
    pub template: &'static str,
    /// The path in the guest.
    pub guest_path: &'static str,
}

/// A scheduler under test; made by [`crate::declare_scheduler!`], or by [`Scheduler::named`] where it
/// should not be registered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scheduler {
    /// Name for people.
    pub name: &'static str,
    /// Executable: a bare name to be found, or a path.
    pub binary: &'static str,
    /// Commands that switch it on, where the kernel has it; then there is no executable.
    pub kernel_builtin_enable: &'static [&'static str],
    /// Commands that switch it off again.
    pub kernel_builtin_disable: &'static [&'static str],
    /// Machine shape of tests that do not say another.
    pub topology: Topology,
    /// Arguments it is always given.
    pub sched_args: &'static [&'static str],
    /// Kernels it is meant for; empty is all.
    pub kernels: &'static [&'static str],
    /// Thresholds that differ from the defaults.
    pub assert: Assert,
    /// Words for the kernel's command line.
    pub kargs: &'static [&'static str],
    /// Kernel parameters.
    pub sysctls: &'static [Sysctl],
    /// Machines it is meant for.
    pub constraints: Constraints,
    /// Cgroup under which all workload cgroups are made, from the root of the hierarchy.
    pub cgroup_parent: Option<&'static str>,
    /// Configuration on the host, given to it with `--config`.
    pub config_file: Option<&'static str>,
    /// How it takes a configuration from a test.
    pub config_file_def: Option<ConfigFileDef>,
    /// Presets the verifier sweep leaves out.
    pub verifier_exclude_topologies: &'static [&'static str],
    /// Package that declares it.
    pub package: &'static str,
    /// That package's directory.
    pub manifest_dir: &'static str,
}

macro_rules! builders {
    ($($(#[doc = $doc:literal])* $name:ident: $type:ty;)*) => {
        $($(#[doc = $doc])*
        #[must_use]
        pub const fn $name(mut self, $name: $type) -> Self {
            self.$name = $name;
            self
        })*
    };
}

impl Scheduler {
    /// A scheduler without executable on a machine of one cache and two cores.
    pub const fn named(name: &'static str) -> Self {
        Self {
            name,
            binary: "",
            kernel_builtin_enable: &[],
            kernel_builtin_disable: &[],
            topology: Topology { numa_nodes: 1, llcs: 1, cores: 2, threads: 1 },
            sched_args: &[],
            kernels: &[],
            assert: Assert::NO_OVERRIDES,
            kargs: &[],
            sysctls: &[],
            constraints: Constraints::NONE,
            cgroup_parent: None,
            config_file: None,
            config_file_def: None,
            verifier_exclude_topologies: &[],
            package: "",
            manifest_dir: "",
        }
    }

    /// Sets the name of its executable, which is looked for.
    #[must_use]
    pub const fn binary_discover(mut self, name: &'static str) -> Self {
        self.binary = name;
        self
    }

    /// Sets the path of its executable.
    #[must_use]
    pub const fn binary_path(mut self, path: &'static str) -> Self {
        self.binary = path;
        self
    }

    /// Makes it one that the kernel has: commands for the guest's shell that switch it on and off.
    #[must_use]
    pub const fn kernel_builtin(
        mut self,
        enable: &'static [&'static str],
        disable: &'static [&'static str],
    ) -> Self {
        self.kernel_builtin_enable = enable;
        self.kernel_builtin_disable = disable;
        self
    }

    /// Whether the kernel has it, so that it has no program of its own.
    pub const fn is_builtin(&self) -> bool {
        !self.kernel_builtin_enable.is_empty()
    }

    /// Sets the machine shape of tests that do not say another.
    #[must_use]
    pub const fn topology(mut self, numa_nodes: u32, llcs: u32, cores: u32, threads: u32) -> Self {
        self.topology = Topology { numa_nodes, llcs, cores, threads };
        self
    }

    builders! {
        /// Sets the arguments it is always given.
        sched_args: &'static [&'static str];
        /// Sets the kernels it is meant for.
        kernels: &'static [&'static str];
        /// Sets thresholds that differ from the defaults.
        assert: Assert;
        /// Sets words for the kernel's command line.
        kargs: &'static [&'static str];
        /// Sets kernel parameters.
        sysctls: &'static [Sysctl];
        /// Sets the machines it is meant for.
        constraints: Constraints;
        /// Sets the presets that the verifier sweep leaves out.
        verifier_exclude_topologies: &'static [&'static str];
    }

    /// Sets the cgroup under which all workload cgroups are made.
    #[must_use]
    pub const fn cgroup_parent(mut self, path: &'static str) -> Self {
        self.cgroup_parent = Some(path);
        self
    }

    /// Sets a configuration on the host, given to it with `--config`.
    #[must_use]
    pub const fn config_file(mut self, path: &'static str) -> Self {
        self.config_file = Some(path);
        self
    }

    /// Lets each test bring its configuration: `template` with `{file}` in it becomes arguments, and the
    /// file is at `guest_path`. Every test of the scheduler then must have `config = …`.
    #[must_use]
    pub const fn config_file_def(mut self, template: &'static str, guest_path: &'static str) -> Self {
        self.config_file_def = Some(ConfigFileDef { template, guest_path });
        self
    }

    /// Sets the package that declares it, and that package's directory.
    #[must_use]
    pub const fn package(mut self, package: &'static str, manifest_dir: &'static str) -> Self {
        self.package = package;
        self.manifest_dir = manifest_dir;
        self
    }
}

/// All schedulers declared in this executable.
#[linkme::distributed_slice]
pub static KTSTR_SCHEDULERS: [&'static Scheduler];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheduler_can_be_built_as_a_constant() {
        const LAYERED: Scheduler = Scheduler::named("layered")
            .binary_discover("scx_layered")
            .topology(1, 2, 4, 1)
            .assert(Assert::NO_OVERRIDES.max_gap_ms(50))
            .sysctls(&[Sysctl::new("kernel.panic", "1")])
            .config_file_def("--config {file}", "/include-files/layered.json");
        assert_eq!((LAYERED.binary, LAYERED.topology.cpus()), ("scx_layered", 8));
        assert_eq!(LAYERED.config_file_def.unwrap().guest_path, "/include-files/layered.json");
    }
}

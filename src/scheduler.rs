//! A scheduler as data, and the list of all that are declared.

use ktstr_proto::{Topology, topology::preset, verdict::Assert};

use crate::host::{Constraints, cell_parent};

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

    /// What of it cannot work, and what to write instead; follows on its name.
    ///
    /// `declare_scheduler!` refuses the same where it stands. What is built as a constant is first looked at when a
    /// test asks for it.
    pub(crate) fn objection(&self) -> Option<String> {
        if self.name.is_empty() {
            return Some("has no name: say one to `Scheduler::named`".into());
        }
        self.source_objection().or_else(|| self.config_objection()).or_else(|| self.cell_objection()).or_else(|| {
            let unknown = |name: &&&str| preset::find(name).is_none();
            let name = self.verifier_exclude_topologies.iter().find(unknown)?;
            let nearest = preset::nearest(name);
            Some(format!(
                "leaves out the unknown preset `{name}` (`verifier_exclude_topologies`): did you mean `{nearest}`?"
            ))
        })
    }

    fn source_objection(&self) -> Option<String> {
        let binary = self.binary;
        match (self.is_builtin(), binary.is_empty()) {
            (true, false) => {
                return Some(format!(
                    "has the executable `{binary}` and commands for the kernel's own (`kernel_builtin`): keep one"
                ));
            }
            (false, true) if self.kernel_builtin_disable.is_empty() => {
                return Some(
                    "has no executable: add `binary_discover`, `binary_path` or `kernel_builtin`".into(),
                );
            }
            (false, _) if !self.kernel_builtin_disable.is_empty() => {
                return Some("is switched off by commands and on by none: give `kernel_builtin` both".into());
            }
            _ => {}
        }
        if binary.contains('/') && !binary.starts_with('/') {
            return Some(format!(
                "has the executable `{binary}`, a relative path: begin it with `/`, or give its name alone to \
                 `binary_discover`"
            ));
        }
        let of_a_program = [
            ("sched_args", !self.sched_args.is_empty()),
            ("config_file", self.config_file.is_some()),
            ("config_file_def", self.config_file_def.is_some()),
        ];
        let (given, _) = of_a_program.into_iter().find(|(_, given)| *given && self.is_builtin())?;
        Some(format!("is the kernel's own, and no program is there that `{given}` could be for: remove it"))
    }

    fn cell_objection(&self) -> Option<String> {
        cell_parent::objection(self.sched_args, self.cgroup_parent)
    }

    fn config_objection(&self) -> Option<String> {
        let ConfigFileDef { template, guest_path } = self.config_file_def?;
        if let Some(file) = self.config_file {
            return Some(format!(
                "has a configuration of its own (`config_file`, `{file}`) and one from each test \
                 (`config_file_def`): keep one"
            ));
        }
        if !template.contains("{file}") {
            return Some(format!(
                "takes its configuration by `{template}` (`config_file_def`), without `{{file}}` in it: write that \
                 where the file's path goes, `--config {{file}}`"
            ));
        }
        (!guest_path.starts_with('/')).then(|| {
            format!(
                "wants its configuration at `{guest_path}` in the guest (`config_file_def`), a relative path: begin \
                 it with `/`"
            )
        })
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
        assert_eq!(LAYERED.objection(), None);
        assert_eq!(Scheduler::named("k").kernel_builtin(&["on"], &[]).objection(), None);
    }

    #[test]
    fn what_cannot_work_says_what_to_write() {
        const NAMED: Scheduler = Scheduler::named("s");
        const FOUND: Scheduler = NAMED.binary_discover("scx_s");
        const OWN: Scheduler = NAMED.kernel_builtin(&["on"], &["off"]);
        for (scheduler, said) in [
            (Scheduler::named("").binary_discover("b"), "has no name: say one to `Scheduler::named`"),
            (NAMED, "has no executable: add `binary_discover`, `binary_path` or `kernel_builtin`"),
            (
                FOUND.kernel_builtin(&["on"], &["off"]),
                "has the executable `scx_s` and commands for the kernel's own (`kernel_builtin`): keep one",
            ),
            (
                NAMED.kernel_builtin(&[], &["off"]),
                "is switched off by commands and on by none: give `kernel_builtin` both",
            ),
            (
                FOUND.kernel_builtin(&[], &["off"]),
                "is switched off by commands and on by none: give `kernel_builtin` both",
            ),
            (
                NAMED.binary_path("target/scx_s"),
                "has the executable `target/scx_s`, a relative path: begin it with `/`, or give its name alone to \
                 `binary_discover`",
            ),
            (
                OWN.sched_args(&["-v"]),
                "is the kernel's own, and no program is there that `sched_args` could be for: remove it",
            ),
            (
                OWN.config_file("f"),
                "is the kernel's own, and no program is there that `config_file` could be for: remove it",
            ),
            (
                OWN.config_file_def("{file}", "/f"),
                "is the kernel's own, and no program is there that `config_file_def` could be for: remove it",
            ),
            (
                FOUND.config_file("f").config_file_def("{file}", "/f"),
                "has a configuration of its own (`config_file`, `f`) and one from each test (`config_file_def`): \
                 keep one",
            ),
            (
                FOUND.config_file_def("--config", "/f"),
                "takes its configuration by `--config` (`config_file_def`), without `{file}` in it: write that where \
                 the file's path goes, `--config {file}`",
            ),
            (
                FOUND.config_file_def("--config {file}", "f.json"),
                "wants its configuration at `f.json` in the guest (`config_file_def`), a relative path: begin it \
                 with `/`",
            ),
            (
                FOUND.sched_args(&["--cell-parent-cgroup", "/a"]).cgroup_parent("/b"),
                "is given `--cell-parent-cgroup /a`, and its `cgroup_parent` is `/b`: the workers would be in one \
                 cgroup and its cells below the other; say the same twice",
            ),
            (
                FOUND.verifier_exclude_topologies(&["tiny-1llc", "8cpu-2llc-sm"]),
                "leaves out the unknown preset `8cpu-2llc-sm` (`verifier_exclude_topologies`): did you mean \
                 `8cpu-2llc-smt`?",
            ),
        ] {
            assert_eq!(scheduler.objection().as_deref(), Some(said));
        }
    }
}
